"""Tiny text encoders and video decoders of text-to-video pipelines, with seeded weights."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

MEANS, DEVIATIONS = [0.1, -0.2, 0.3, 0.05], [1.3, 0.7, 2.0, 1.1]


def seeded(model: Any, spread: float = 0.3) -> Any:
    """Every weight drawn anew, so that none is 0 or 1 as it begins."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            each = max(weight[0].numel(), 1) if weight.dim() > 1 else 1
            weight.add_(spread * torch.randn_like(weight) / each**0.5)
    return model.eval()


@pytest.fixture
def wan_vae() -> Any:
    """`wan_vae(**config)`: a tiny `AutoencoderKLWan`."""
    from diffusers import AutoencoderKLWan

    def make(**config: Any) -> Any:
        sizes = {"base_dim": 6, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
        numbers = {"latents_mean": MEANS, "latents_std": DEVIATIONS}
        torch.manual_seed(0)
        return seeded(AutoencoderKLWan(**(sizes | numbers | config)))

    return make
