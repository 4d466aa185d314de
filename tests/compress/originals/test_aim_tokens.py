"""AIM before the language model: frames are pooled after the projector, then halved twice.

As LaVi-Lab/AIM has it for clips of LLaVA-OneVision: each frame by itself, plain means.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def merged(frame: Tensor) -> tuple[Tensor, list[int]]:
    """Half of the tokens [n, C] merge, those of even index into their nearest of odd index.

    The original's order: even tokens that stay by descending cosine, then the odd ones.
    """
    unit = torch.nn.functional.normalize(frame, dim=-1)
    best, target = (unit[::2] @ unit[1::2].T).max(1)
    order = best.argsort(descending=True).tolist()
    sources, staying = order[: len(frame) // 2], order[len(frame) // 2 :]
    groups = [[row] for row in frame[1::2]]
    for source in sources:
        groups[int(target[source])].append(frame[2 * source])
    rows = [frame[2 * i] for i in staying] + [torch.stack(g).mean(0) for g in groups]
    return torch.stack(rows), [2 * i for i in staying] + list(range(1, len(frame), 2))


@torch.no_grad()
def test_the_model_keeps_the_same_tokens(llava_onevision: Any, views: Any) -> None:
    """Two frames of 4 x 4 tokens: 8 after the first round, 4 after the second."""
    pixels = views(2)
    clip = llava_onevision.own.model.get_video_features(pixels[None], return_dict=True)
    frames = clip.pooler_output[0, :-1].unflatten(0, (2, -1))  # the last row is the newline
    expected, where = [], []
    for number, frame in enumerate(frames):
        first, at = merged(frame)
        second, of_first = merged(first)
        positions = [at[i] + number * len(frame) for i in of_first]
        order = sorted(range(len(positions)), key=positions.__getitem__)
        expected.append(second[order])
        where += [positions[i] for i in order]
    exported = llava_onevision.exported("aim@tokens", tokens=8, frames=2)
    tokens, kept = exported.reduced(pixels)
    assert kept.tolist() == where
    torch.testing.assert_close(tokens, torch.cat(expected), rtol=1e-4, atol=1e-4)
