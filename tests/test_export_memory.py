"""A bundle is the same whether the model is in memory or its weights stay in their files."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm import pipeline
from edgevlm.recipe import Recipe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny-smolvlm", {"quantize": "w8a8s", "calibrate": "2", "tokens": 16}),
        ("tiny-smolvlm", {"target": "coreml", "quantize": "fp16"}),
        ("tiny-smolvlm", {"target": "executorch"}),
        ("tiny-smolvlm", {"methods": ("fastv:tokens=8,layer=1",)}),
        ("tiny-internvl", {"tokens": 8}),
        ("tiny-siglip", {"quantize": "w8a8s", "calibrate": "2"}),
        ("tiny-siglip2", {}),
        ("tiny-clip", {}),
    ],
)
def test_weights_in_their_files_make_the_same_bundle(preset, tmp_path, monkeypatch, name, options):
    module = {"coreml": "coremltools", "executorch": "executorch"}
    pytest.importorskip(module.get(options.get("target", ""), "onnxscript"))
    recipe, made = Recipe(model=str(preset(name)), **options), []
    for kept_bytes in (None, 0):
        monkeypatch.setattr(pipeline, "KEPT_BYTES", kept_bytes)
        done = pipeline.export(recipe, tmp_path / f"{kept_bytes}.edgevlm")
        made.append((done.bundle.plan.files, done.verification.summary))
    assert made[0] == made[1]
