"""What float16 cannot hold is refused before a trace, with the module and its number."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

for library in ("torch", "transformers", "coremltools"):
    pytest.importorskip(library)
safetensors = pytest.importorskip("safetensors.torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.quantization.half import check_half  # noqa: E402
from edgevlm.quantization.schemes import Schemes  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

LOUD = "model.text_model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def loud(preset, tmp_path_factory):
    """A tiny model whose first layer computes numbers of 100,000; its weights are below 65,504."""
    path = Path(shutil.copytree(preset("tiny-smolvlm"), tmp_path_factory.mktemp("loud") / "model"))
    tensors = safetensors.load_file(path / "model.safetensors")
    tensors[f"{LOUD}.weight"] *= 3e4
    assert float(tensors[f"{LOUD}.weight"].abs().max()) < 10_000
    safetensors.save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return str(path)


def checked(model, scheme, target="coreml", **options):
    """Steps that `check_half` reports."""
    recipe = Recipe(model=model, target=target, quantize=Schemes.parse(scheme), **options)
    planned = make_plan(recipe, find(model))
    steps = []
    check_half(planned, planned.checkpoint.load_model(), steps.append)
    return steps


@pytest.mark.parametrize("scheme", ["fp16", "none,decoder=fp16", "w4g32a16"])
def test_an_overflow_is_named(loud, scheme):
    with pytest.raises(PlanError) as error:
        checked(loud, scheme)
    text = str(error.value)
    assert text.startswith(f"float16 overflows: the output of '{LOUD}' is as large as ")
    number = float(text.partition("as large as ")[2].partition(" ")[0].replace(",", ""))
    assert 65_504 < number < 10**6
    assert f"scheme '{scheme.rpartition('=')[2]}' computes, ends at 65,504" in text


@pytest.mark.parametrize(
    ("scheme", "target"), [("none", "coreml"), ("none,vision=fp16", "coreml"), ("fp16", "onnx")]
)
def test_stages_that_compute_in_float32_are_not_asked(loud, scheme, target):
    asked = ["check numbers for float16"] * ("vision" in scheme)
    assert checked(loud, scheme, target) == asked


@pytest.mark.parametrize(
    ("name", "options"), [("tiny-smolvlm", {}), ("tiny-smolvlm", {"frames": 2}), ("tiny-clip", {})]
)
def test_a_quiet_model_passes(preset, name, options):
    assert checked(str(preset(name)), "fp16", **options) == ["check numbers for float16"]


def test_nothing_stays_on_the_model(preset):
    planned = make_plan(
        Recipe(model=str(preset("tiny-smolvlm")), target="coreml", quantize=Schemes("fp16")),
        find(str(preset("tiny-smolvlm"))),
    )
    model = planned.checkpoint.load_model()
    check_half(planned, model, lambda _: None)
    assert not any(module._forward_hooks for module in model.modules())
