"""What takes long says that it goes on."""

from __future__ import annotations

import time

from edgevlm.cli.shared.output import waiting


def test_what_takes_long_is_said_and_what_does_not_is_not(capsys):
    with waiting("plan 'x'", seconds=5.0):
        pass
    with waiting("plan 'y'", seconds=0.05):
        time.sleep(0.3)
    assert capsys.readouterr().err == "[   0.1 s] plan 'y' …\n"
