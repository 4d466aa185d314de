"""Wan's denoiser against diffusers' own forward."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from edgevlm.models.shared.diffusion.wan_denoiser import (  # noqa: E402
    WanEmbeddings,
    WanHead,
    WanLayer,
)

LATENTS = (4, 4, 6, 8)


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 1), (2, 2, 2)], ids=str)
def test_the_denoiser_is_diffusers_own(patch):
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=patch, num_attention_heads=2, attention_head_dim=24, in_channels=4,
        out_channels=4, text_dim=20, freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=64,
    ).eval()  # fmt: skip
    latents, text, time = torch.randn(1, *LATENTS), torch.randn(1, 7, 20), torch.tensor([737.25])
    with torch.no_grad():
        expected = model(latents, time, text, return_dict=False)[0]
        hidden, *beside, last = WanEmbeddings(model, LATENTS)(latents, time, text)
        for layer in model.blocks:
            hidden = WanLayer(layer)(hidden, *beside)
        velocity = WanHead(model, LATENTS)(hidden, last)
    assert torch.allclose(velocity, expected, atol=1e-5 * float(expected.abs().max()))
