"""Qwen2.5-VL's clips as TimeChat-Online and EVS have them: tokens behind the merger of patches.

A frame of theirs is a group of two, the encoder's; all tokens of one have one place on the axis of
time, by which TimeChat-Online finds it. Places of tokens that stay are the clip's, not new.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgevlm.models.shared.qwen_pictures import as_patches

START, PAD, END = 61, 62, 63
SIZE, TOKENS, FRAMES = (56, 112), 8, 3  # of a group: 2 x 4 tokens; two groups of a window, a third


@pytest.fixture(scope="module")
def qwen(clip_model: Any) -> Any:
    return clip_model("qwen2_5_vl")


@pytest.fixture(scope="module")
def driven(qwen: Any) -> Any:
    """The model's own features and places of a clip of three groups, and how they become a prompt.

    The second group differs from the first by noise, the third is another.
    """
    generator = torch.Generator().manual_seed(3)
    first, third = torch.randn(2, 6, *SIZE, generator=generator)
    noise = torch.randn(6, *SIZE, generator=generator) * torch.linspace(0.0, 2.0, SIZE[1])
    pixels = torch.stack([first, first + noise, third])
    patches, grid = as_patches(pixels, qwen.own.config.vision_config)
    with torch.no_grad():
        features = qwen.own.model.get_video_features(patches, grid, return_dict=True)
    ids = torch.tensor([[5, START, *[PAD] * FRAMES * TOKENS, END, 7]])
    kinds, seconds = (ids == PAD).int() * 2, torch.tensor([4.0])
    positions, _ = qwen.own.model.get_rope_index(
        ids, kinds, video_grid_thw=grid, second_per_grid_ts=seconds
    )
    hidden = qwen.own.get_input_embeddings()(ids).clone()
    hidden[ids == PAD] = torch.cat(tuple(features.pooler_output))
    return SimpleNamespace(pixels=pixels, ids=ids[0], positions=positions[:, 0], hidden=hidden[0])


def dropped(driven: Any, share: float) -> Tensor:
    """Which tokens of the prompt stay after TimeChat-Online's `token_drop`, by features, relative.

    Between its two marks, place by place on the axis of time; the first frame stays whole.
    """
    inside = torch.zeros(len(driven.ids), dtype=torch.bool)
    inside[int((driven.ids == START).nonzero()) + 1 : int((driven.ids == END).nonzero())] = True
    keep, before = torch.ones_like(inside), None
    for time in driven.positions[0].unique():
        at = ((driven.positions[0] == time) & inside).nonzero()[:, 0]
        if len(at) == 0:
            continue
        frame = driven.hidden[at]
        if before is not None:
            similar = torch.nn.functional.cosine_similarity(before, frame, dim=1)
            keep[at[similar.topk(int(len(at) * share)).indices]] = False
        before = frame
    return keep


@pytest.mark.parametrize("share", [0.75, 0.4])
def test_timechat_keeps_the_same_tokens(qwen: Any, driven: Any, share: float) -> None:
    """And their places on all three axes."""
    keep = dropped(driven, share)
    visual = driven.ids == PAD
    count = TOKENS + (FRAMES - 1) * (TOKENS - int(TOKENS * share))
    assert int((keep & visual).sum()) == count
    exported = qwen.exported("timechat", tokens=count, frames=2 * FRAMES, size=SIZE)
    tokens, positions = exported.reduced(driven.pixels)
    torch.testing.assert_close(tokens, driven.hidden[keep & visual], rtol=1e-4, atol=1e-4)
    assert positions.tolist() == keep[visual].nonzero()[:, 0].tolist()
    torch.testing.assert_close(
        driven.positions[:, visual][:, positions], driven.positions[:, keep & visual]
    )


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_evs_keeps_the_same_tokens(qwen: Any, driven: Any, rate: float) -> None:
    """As vLLM: of the video's embeddings, before they are written into the prompt."""
    visual = driven.hidden[driven.ids == PAD]
    frames = visual.reshape(FRAMES, TOKENS, -1)
    unlike = 1 - torch.nn.functional.cosine_similarity(frames[1:], frames[:-1], dim=-1)
    unlike = torch.cat([torch.full((TOKENS,), 255.0), unlike.flatten()])
    count = max(TOKENS, int(TOKENS * FRAMES * (1 - rate)))
    kept = sorted(unlike.argsort(descending=True, stable=True)[:count].tolist())
    exported = qwen.exported("evs", tokens=count, frames=2 * FRAMES, size=SIZE)
    tokens, positions = exported.reduced(driven.pixels)
    assert positions.tolist() == kept
    torch.testing.assert_close(tokens, visual[kept], rtol=1e-4, atol=1e-4)
