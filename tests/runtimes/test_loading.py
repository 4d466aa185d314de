"""Arrays that cannot fit are refused before any is allocated."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")

from edgevlm.errors import PlanError, RuntimeLoadError
from edgevlm.runtimes import loading
from edgevlm.runtimes.loading import array_bytes, load_loop


@pytest.fixture
def no_arrays(monkeypatch):
    def refuse(*_):
        raise AssertionError("arrays were allocated")

    monkeypatch.setattr(loading, "make_blocks", refuse)


def test_caches_count_once(exported):
    plan = exported.bundle.plan
    states = plan.host.states
    assert sum(len(b.functions[0].caches) for b in plan.stage("decoder")) == 2 * len(states.layers)
    most = 2 * states.bytes + 4 * plan.host.chunk * states.tokens + 10**6
    assert states.bytes < array_bytes(plan) < most


def test_arrays_above_the_budget(exported, no_arrays, monkeypatch):
    needed = array_bytes(exported.bundle.plan)
    monkeypatch.setattr(loading, "MEASURED_BYTES", 1000)
    with pytest.raises(PlanError, match=r"arrays take .* MB, the budget is .* MB; export with"):
        load_loop(exported.bundle.path, memory=needed - 1)


def test_arrays_above_the_machine(exported, no_arrays, monkeypatch):
    monkeypatch.setattr(loading, "memory_bytes", lambda: 1000)
    with pytest.raises(RuntimeLoadError, match="this machine has "):
        load_loop(exported.bundle.path)
