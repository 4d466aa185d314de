from __future__ import annotations

import pytest
from typer.testing import CliRunner

from edgevlm.cli import app


@pytest.fixture
def run():
    """Run a command in this process; anything but our own exit fails the test."""

    def call(*arguments, stdin=None):
        result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call
