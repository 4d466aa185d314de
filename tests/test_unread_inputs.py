"""A method that asks for a signal and does not read it: ONNX leaves the input out of the graph."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from edgevlm.recipe import Recipe


def test_a_reduce_that_does_not_read_its_keys_is_exported_and_verified(
    preset, lowered_once, tmp_path
):
    recipe = Recipe(
        model=str(preset("tiny-smolvlm")),
        tokens=16,
        block_size_bytes=100_000,
        methods=("visionzip:merge=mean,calibrate=size",),
    )
    done = lowered_once(recipe, tmp_path / "tiny.edgevlm")
    planned = [t.name for t in done.bundle.plan.stage("vision")[-2].functions[0].outputs]
    (reduce,) = done.bundle.plan.stage("reduce")
    assert "keys" in planned
    assert "keys" not in [tensor.name for tensor in reduce.functions[0].inputs]
    assert done.verification.ok
    assert done.verification.tokens_equal == 1.0
