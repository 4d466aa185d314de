"""Layers of T5 and parts of Wan's video decoder, converted by each target and run by its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from edgevlm.models.shared.diffusion.t5 import encoder_layers  # noqa: E402
from edgevlm.models.shared.diffusion.wan_vae import VaePart, decoder_parts  # noqa: E402

ENGINES = {"onnx": "onnxruntime", "executorch": "executorch", "coreml": "coreml_reference"}
# Core ML's converter makes a scale by channel a batch norm whose default epsilon, 1e-5, stays in.
ERRORS = {"onnx": 1e-5, "executorch": 1e-5, "coreml": 1e-4}
LIBRARIES = {"onnx": "onnxruntime", "executorch": "executorch", "coreml": "coremltools"}


@pytest.fixture(params=ENGINES)
def target(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(LIBRARIES[request.param])
    return str(request.param)


def compare(saved: Any, target: str, module: Any, folder: Path, *inputs: torch.Tensor) -> Any:
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = saved(target, ENGINES[target], module, folder, *inputs)
    for actual, each in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, each.numpy(), atol=ERRORS[target], rtol=1e-5)
    return expected


def test_the_last_layer_of_a_text_encoder(target: str, saved: Any, tmp_path: Path) -> None:
    """It has its own table of positions, the last norm and padding of zeros."""
    config = transformers.UMT5Config(
        vocab_size=20, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.UMT5EncoderModel(config).eval()
    model.encoder.block[1].layer[0].SelfAttention.relative_attention_bias.weight.data.normal_()
    hidden, mask = torch.randn(1, 12, 16), (torch.arange(12) < 9).float()[None]
    compare(saved, target, encoder_layers(model, 12)[1], tmp_path, hidden, mask)


@pytest.mark.parametrize(
    "target", ["onnx", "coreml", pytest.param("executorch", marks=pytest.mark.slow)], indirect=True
)
def test_a_video_decoder(target: str, saved: Any, tmp_path: Path) -> None:
    """All kinds of steps as one part: the first latent frame, then one with its caches."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    model = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5],
    ).eval()  # fmt: skip
    part = VaePart([step for each in decoder_parts(model) for step in each.steps])
    first, further = torch.randn(2, 1, 4, 1, 3, 5).unbind()
    for name in ("first", "next"):
        (tmp_path / name).mkdir()
    _, *caches = compare(saved, target, part, tmp_path / "first", first)
    frames, *_ = compare(saved, target, part, tmp_path / "next", further, *caches)
    assert frames.shape == (1, 3, 2, 6, 10)
