"""Packed matrices in the cache: what `run` computes with is checked, built again, and verified."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from edgevlm.bundle import cache
from edgevlm.bundle.cache import cache_folder
from edgevlm.runtimes import built
from edgevlm.runtimes.loading import bind_arrays
from edgevlm.runtimes.on_onnxruntime.engine import PREPACKED, Engine
from edgevlm.runtimes.residency import measure

BLOCK, FUNCTION = "vision-0", "encode"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "_CHECKED", {})
    monkeypatch.setattr(built, "_HELD", {})


def features(bundle):
    """The engine, and a block's output over inputs of ones, from the packed matrices."""
    engine = Engine(bundle, 1)
    bind_arrays(bundle.plan, engine)
    arrays = engine.arrays[BLOCK, FUNCTION]
    function = bundle.plan.block(BLOCK).function(FUNCTION)
    for tensor in function.inputs:
        arrays[tensor.name][:] = 1
    engine.load(BLOCK, FUNCTION, PREPACKED)
    engine.run(BLOCK, FUNCTION)
    return engine, arrays[function.outputs[0].name].copy()


def packed(end):
    (path,) = cache_folder().glob(f"onnxruntime/*/made/{FUNCTION}/{BLOCK}.{end}")
    return path


@pytest.mark.parametrize("end", ["onnx", "matrices"])
@pytest.mark.parametrize("damage", ["zeros", "cut", "gone"])
def test_damaged_matrices_are_packed_again(exported, end, damage):
    _, wanted = features(exported.bundle)
    path = packed(end)
    size, contents = path.stat().st_size, path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.touch()
        os.truncate(path, size if damage == "zeros" else size // 2)
    _, again = features(exported.bundle)
    np.testing.assert_array_equal(again, wanted)
    assert np.abs(wanted).max() > 0
    assert packed(end).read_bytes() == contents


def test_a_packed_graph_that_does_not_open_is_left(exported, monkeypatch):
    _, wanted = features(exported.bundle)
    monkeypatch.setattr(built, "_is_sound", lambda folder: True)
    packed("onnx").write_bytes(b"no graph")
    engine, plain = features(exported.bundle)
    np.testing.assert_allclose(plain, wanted, rtol=1e-4, atol=1e-5)
    assert engine.is_built("decoder-0")
    assert not list(cache_folder().glob(f"onnxruntime/*/made/{FUNCTION}/{BLOCK}.onnx"))


def test_a_budget_packs_in_another_process(exported, monkeypatch):
    bundle, engine, steps = exported.bundle, Engine(exported.bundle, 1), []
    assert not engine.is_built(BLOCK)
    measure.build_apart(bundle, engine, steps.append)
    count = len(bundle.plan.blocks)
    each = [f"prepare {b.name} ({i + 1} of {count})" for i, b in enumerate(bundle.plan.blocks)]
    assert steps == [f"prepare {count} blocks on this machine, once", *each]
    assert all(engine.is_built(block.name) for block in bundle.plan.blocks)
    monkeypatch.setattr(measure, "_apart", None)
    measure.build_apart(bundle, engine, steps.append)
    assert len(steps) == 1 + count


def test_verify_reads_what_run_computes_with(exported):
    from edgevlm.parity.verify import verify

    loaded, load = [], Engine.load

    def record(engine, block, function=None, mode="private"):
        loaded.append(mode)
        load(engine, block, function, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "load", record)
        assert verify(exported.bundle.path).ok
    assert set(loaded) == {PREPACKED}
    assert packed("matrices").is_file()
