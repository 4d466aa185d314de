"""Recorded vectors, schedules by diffusers' own schedulers, and a tiny Wan denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.bundle.kinds.shared.video import Schedule

VECTORS = Path(__file__).resolve().parents[3].parent / "shared" / "vectors"
LATENTS = (4, 2, 4, 4)


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Iterator[dict[str, Any]]]:
    """Cases recorded from an original implementation, by file name."""

    def load(name: str) -> Iterator[dict[str, Any]]:
        path = VECTORS / f"{name}.npz"
        if not path.exists():
            pytest.skip("reference vectors are not in this checkout")
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        for number in range(len({key.split("_")[0] for key in arrays})):
            prefix = f"case{number}_"
            yield {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    return load


@pytest.fixture(scope="session")
def schedule() -> Callable[..., Schedule]:
    """A schedule of n steps by hand, shifted by 3 as Wan's small model is."""

    def make(steps: int, sampler: str = "euler", magnitudes: tuple[float, ...] = ()) -> Schedule:
        share = np.linspace(1, 0, steps + 1)
        sigmas = 3 * share / (1 + 2 * share)
        if sampler == "unipc":
            sigmas[0] = 0.9997  # at 1 the clean latents have no share, and their logarithm no value
        times = tuple(float(1000 * sigma) for sigma in sigmas[:-1])
        return Schedule(sampler, times, tuple(map(float, sigmas)), magnitudes)

    return make


@pytest.fixture(scope="session")
def make_wan() -> Callable[[], Any]:
    """Builds the same tiny Wan denoiser of 4 layers each time, random weights."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")

    def make() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = diffusers.WanTransformer3DModel(
                patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
                out_channels=4, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=4,
                rope_max_seq_len=16,
            )  # fmt: skip
            for weight in model.parameters():
                weight.data += 0.1 * torch.randn_like(weight)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def texts() -> list[Any]:
    """Embeddings of a text and of a negative one, [1, 5, 8]."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 5, 8, generator=generator) for _ in range(2)]


@pytest.fixture(scope="session")
def parts(make_wan: Callable[[], Any]) -> list[Any]:
    """The tiny denoiser as static modules."""
    from edgevlm.models.shared.diffusion.wan_denoiser import WanEmbeddings, WanHead, WanLayer

    model = make_wan()
    layers = map(WanLayer, model.blocks)
    return [WanEmbeddings(model, LATENTS), *layers, WanHead(model, LATENTS)]


@pytest.fixture(scope="session")
def begun() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Noise [1, C, F, h, w] from which all runs begin."""
    return np.random.default_rng(2).standard_normal((1, *LATENTS), dtype=np.float32)
