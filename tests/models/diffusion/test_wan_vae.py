"""Wan's video decoder, latent frame by latent frame, beside diffusers' own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from edgevlm.bundle.functions import Block, Function, Tensor  # noqa: E402
from edgevlm.graphs.trace import trace  # noqa: E402
from edgevlm.models.diffusion.wan import reference_frames  # noqa: E402
from edgevlm.models.shared.diffusion.wan_vae import decoder_parts  # noqa: E402
from edgevlm.runtimes.loops.video.tiles import Tiling  # noqa: E402

FORMS = {
    "as Wan 2.1": {},
    "two residual blocks": {"num_res_blocks": 2},
    "time is doubled once": {"temperal_downsample": [False, False, True]},
    "time first": {"temperal_downsample": [True, True, False]},
    "a size of its own": {"decoder_base_dim": 8},
}


def decoded(model: Any, latents: torch.Tensor) -> torch.Tensor:
    """Frames of latents [1, C, F, h, w], as a loop makes them."""
    parts = decoder_parts(model)
    caches: list[list[torch.Tensor]] = [[] for _ in parts]
    frames = []
    with torch.no_grad():
        for index in range(latents.shape[2]):
            hidden = latents[:, :, index : index + 1]
            for at, part in enumerate(parts):
                hidden, *caches[at] = part(hidden, *caches[at])
            frames.append(hidden)
    return torch.cat(frames, dim=2)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_video_is_decoded_as_diffusers_does(wan_vae: Any, form: str, count: int) -> None:
    model, latents = wan_vae(**FORMS[form]), noise(1, 4, count, 3, 5)
    with torch.no_grad():
        expected = reference_frames(SimpleNamespace(vae=model), latents)
    actual = decoded(model, latents)
    assert 0.05 < expected.abs().mean() < 0.95  # colours are not all at the ends of the range
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_caches_keep_their_size_and_the_first_frame_is_one(wan_vae: Any) -> None:
    parts = decoder_parts(wan_vae())
    first, further = noise(1, 4, 1, 2, 2), noise(1, 4, 1, 2, 2)
    for part in parts:
        first, *caches = part(first)
        further, *again = part(further, *caches)
        assert [c.shape for c in caches] == [c.shape for c in again]
        assert all(c.shape[2] == 2 for c in caches)
    assert first.shape == (1, 3, 1, 16, 16)
    assert further.shape == (1, 3, 4, 16, 16)


def test_parts_are_traced(wan_vae: Any) -> None:
    """Both forms of each part have no operator and no shape that a target refuses."""
    shapes = {"first": (1, 4, 1, 2, 3), "next": (1, 4, 1, 2, 3)}
    for part in decoder_parts(wan_vae()):
        kept: list[torch.Tensor] = []
        for name in shapes:
            inputs = [torch.zeros(shapes[name]), *kept]
            hidden, *given = part(*inputs)
            named = [Tensor(f"x{i}", "f32", tuple(x.shape)) for i, x in enumerate(inputs)]
            function = Function(name, tuple(named), (), 0)
            trace(part, function, Block("vae-0", "vae", (0, 1), 0, (function,)))
            shapes[name] = tuple(hidden.shape)
            kept = given


def quiet(model: Any) -> Any:
    """The model with colours that are never cut off at -1 or 1, which diffusers does last."""
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(0.02)
        model.decoder.conv_out.bias.mul_(0.02)
    return model


def tiled(model: Any, latents: torch.Tensor, tile: int, stride: int) -> torch.Tensor:
    """Frames of latents, decoded by tiles and blended by the loop's own code."""
    height, width = latents.shape[-2:]
    size = min(tile, height), min(tile, width)
    steps = (stride if height > tile else height), (stride if width > tile else width)
    plan = Tiling((height, width), size, steps, 8)
    frames = np.zeros((3, 4 * latents.shape[2] - 3, 8 * height, 8 * width), np.float32)
    for each in plan:
        cut = torch.from_numpy(each.cut(latents.numpy(), size))
        rows, columns, pixels = plan.blend(each, decoded(model, cut)[0].numpy())
        frames[..., rows, columns] = pixels
    return torch.from_numpy(frames)[None]


@pytest.mark.parametrize(("height", "width"), [(4, 7), (7, 4), (8, 8)])
def test_tiles_are_blended_as_diffusers_does(wan_vae: Any, height: int, width: int) -> None:
    """Up to the last tile of a row or column, which diffusers cuts off at the edge."""
    model, latents = quiet(wan_vae()), noise(1, 4, 2, height, width)
    model.enable_tiling(32, 32, 24, 24)
    with torch.no_grad():
        expected = reference_frames(SimpleNamespace(vae=model), latents)
    actual = tiled(model, latents, 4, 3)
    assert actual.shape == expected.shape
    assert expected.abs().max() < 1
    cut = [next(at for at in range(0, side, 3) if at + 4 > side) for side in (height, width)]
    ends = [8 * at for at in cut]  # of the tiles that diffusers has whole
    inner = (..., slice(ends[0]), slice(ends[1]))
    assert expected[inner].numel() > expected.numel() / 5
    torch.testing.assert_close(actual[inner], expected[inner], atol=1e-6, rtol=0)


def test_one_tile_is_the_whole_picture(wan_vae: Any) -> None:
    model, latents = wan_vae(), noise(1, 4, 2, 4, 4)
    with torch.no_grad():
        expected = reference_frames(SimpleNamespace(vae=model), latents)
    torch.testing.assert_close(tiled(model, latents, 4, 3), expected, atol=1e-5, rtol=0)


def test_each_last_tile_ends_at_the_edge(wan_vae: Any) -> None:
    """The last tile of a row: diffusers' own ramps over a whole tile that ends at the edge."""
    model, latents = quiet(wan_vae()), noise(1, 4, 1, 4, 9)
    a, b, c = (decoded(model, latents[..., x : x + 4]) for x in (0, 3, 5))
    c = c[..., 8:]  # it would begin at 6
    b = model.blend_h(a, b.clone(), 8)
    c = model.blend_h(b, c.clone(), 8)
    expected = torch.cat((a[..., :24], b[..., :24], c), dim=-1)
    torch.testing.assert_close(tiled(model, latents, 4, 3), expected, atol=1e-6, rtol=0)
