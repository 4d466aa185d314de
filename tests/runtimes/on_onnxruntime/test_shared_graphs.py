"""Sessions that blocks with equal graphs share, and the weights that are bound to them."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("google.protobuf")

from edgevlm.bundle.files import Bundle
from edgevlm.errors import BundleError, RuntimeLoadError
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.on_onnxruntime import engine as on_onnxruntime
from edgevlm.runtimes.on_onnxruntime.engine import UNPACKED, Engine
from edgevlm.runtimes.on_onnxruntime.shared_graphs import Maps, without_weights


class Bound:
    """Blocks for a loop that binds and loads nothing."""

    keeps_all = True
    loads = 0

    def __init__(self, engine):
        self.engine, self.bind, self.run = engine, engine.bind, engine.run

    def open(self):
        pass

    def begin(self, name, passes):
        pass


def functions(bundle):
    return [(b.name, f.name) for b in bundle.plan.blocks for f in b.functions]


def outputs(bundle, mode):
    """What each function makes of the same numbers, in one load mode."""
    engine = Engine(bundle, 1)
    TextLoop(bundle, Bound(engine))
    found = {}
    for key in functions(bundle):
        made = bundle.plan.block(key[0]).function(key[1])
        arrays, random = engine.arrays[key], np.random.default_rng(0)
        for spec in made.inputs:
            if spec.dtype == "f32":
                arrays[spec.name][:] = random.standard_normal(spec.shape)
        engine.load(*key, mode)
        engine.run(*key)
        engine.unload(*key)
        found[key] = {spec.name: arrays[spec.name].copy() for spec in made.outputs}
    return found


def test_shared_blocks_compute_what_blocks_alone_do(exported):
    alone, shared = (outputs(exported.bundle, mode) for mode in ("private", "shared_graph"))
    for key, wanted in alone.items():
        for name, array in wanted.items():
            np.testing.assert_allclose(
                shared[key][name], array, 1e-4, 1e-4, err_msg=f"{key} {name}"
            )


def test_blocks_with_equal_graphs_have_one_session_and_a_block_its_pages_once(exported):
    bundle = exported.bundle
    engine = Engine(bundle, 1)
    layers, views = bundle.plan.stage("decoder"), bundle.plan.stage("vision")
    for block in (*layers, *views):
        engine.load(block.name, None, "shared_graph")
    between = {id(engine._sessions[block.name, "encode"]) for block in views[1:-1]}
    assert len(views) > 3
    assert len(between) == 1
    places = [
        {name: array.ctypes.data for name, array in engine._weights[layers[0].name, f].items()}
        for f in ("prefill", "decode")
    ]
    shared = places[0].keys() & places[1].keys()
    assert shared
    assert all(places[0][name] == places[1][name] for name in shared)
    engine.unload(layers[0].name)
    gc.collect()
    assert not any(str(path).endswith(f"{layers[0].name}.weights") for path, *_ in _open(engine))


def _open(engine):
    return list(engine._maps._open)


def test_weights_must_lie_inside_their_file(bundle_copy):
    bundle = Bundle.open(bundle_copy)
    block = bundle.plan.stage("decoder")[0]
    _, weights = without_weights(bundle.files_of(block)["decode"])
    name = f"{block.name}.weights"
    short = bundle_copy / name
    short.write_bytes(b"\0" * (max(w.offset + w.bytes for w in weights) - 1))
    with pytest.raises(RuntimeLoadError, match=rf"^weight '.+' is not inside '{name}'$"):
        Maps().weights(weights, {name: short})
    with pytest.raises(RuntimeLoadError, match=rf"is not inside '{name}'$"):
        Maps().weights(weights, {})


def test_what_is_no_graph_is_one_line(tmp_path):
    file = tmp_path / "x.onnx"
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(
        RuntimeLoadError, match=r"^x does not load: it is not an ONNX graph of this exporter: "
    ):
        without_weights(file)


def test_a_changed_file_is_refused(bundle_copy):
    bundle = Bundle.open(bundle_copy)
    block = bundle.plan.stage("decoder")[0]
    (bundle_copy / f"blocks/decoder/{block.name}.weights").write_bytes(b"\0")
    with pytest.raises(BundleError, match=r"\.weights' was changed"):
        Engine(bundle, 1).load(block.name, "decode", "shared_graph")


@pytest.mark.parametrize(
    ("scheme", "overflows", "count"), [("none", 1, 2), ("w8a8", 0, 2), ("w8a8", 1, 1)]
)
def test_matrices_that_a_session_changes_are_no_inputs(
    exported, monkeypatch, scheme, overflows, count
):
    """x86 without VNNI adds products of 8 bits in 16; ONNX Runtime then changes the matrices."""
    monkeypatch.setattr(on_onnxruntime, "_adds_in_16_bits", lambda: bool(overflows))
    plan = exported.bundle.plan
    bundle = Bundle(
        exported.bundle.path, replace(plan, recipe=replace(plan.recipe, quantize=scheme))
    )
    assert Engine(bundle, 1).load_modes("decoder-0") == ("prepacked", "shared_graph")[:count]


def test_schemes_that_unpack_are_the_exporters():
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from edgevlm.exporters.to_onnx import target as to_onnx

    assert to_onnx.TARGET.unpacked == UNPACKED
