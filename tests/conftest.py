"""Shared by all tests: caches in a temporary folder, so that no test reads or fills the user's."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
