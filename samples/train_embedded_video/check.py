"""How often the model does what it is told: diffusers' own pipeline, and the judge.

Usage: `python samples/train_embedded_video/check.py FOLDER [--steps 25] [--guidance 4]
[--count 100] [--length 16] [--seed 0] [--sheet FILE.png]`.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from model import load
from PIL import Image

from edgevlm.evaluation.videos import shapes


def check(
    made: WanPipeline,
    count: int = 100,
    steps: int = 25,
    guidance: float = 4.0,
    length: int = 16,
    sheet: Path | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Share of clips that show all of their prompt, for held-out prompts and for trained ones.

    Args:
        made: The pipeline.
        count: Clips of each of the two.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance; 1 does without.
        length: Tokens that texts are padded to.
        sheet: File for a picture: a row a clip, every fourth frame.
        seed: Of the prompts and of the noise.
    """
    found: dict[str, object] = {}
    wrong: Counter[str] = Counter()
    rows: list[np.ndarray] = []
    start = time.perf_counter()
    for held_out in (True, False):
        asked = list(itertools.islice(shapes.examples(seed, held_out=held_out), count))
        right = 0
        for first in range(0, count, 20):
            some = asked[first : first + 20]
            clips = made(
                [prompt.text for prompt in some],
                height=shapes.SIZE,
                width=shapes.SIZE,
                num_frames=shapes.FRAMES,
                num_inference_steps=steps,
                guidance_scale=guidance,
                max_sequence_length=length,
                generator=[torch.Generator().manual_seed(seed + first + i)
                           for i in range(len(some))],
            ).frames  # fmt: skip
            for prompt, clip in zip(some, clips, strict=True):
                parts = shapes.judge(clip).wrong(prompt)
                wrong.update(parts)
                right += not parts
                rows.append(np.concatenate([*clip[::4], np.full((64, 6, 3), float(not parts))], 1))
        found["held_out" if held_out else "trained"] = right / count
    if sheet:
        half = len(rows) // 2
        sides = np.concatenate(rows[:half]), np.concatenate(rows[half : 2 * half])
        Image.fromarray(np.uint8(np.concatenate(sides, 1) * 255)).save(sheet)
    found["wrong"] = " ".join(f"{name}:{number}" for name, number in wrong.most_common())
    found["check_seconds"] = round(time.perf_counter() - start, 1)
    return found


def main() -> None:
    """Check a folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path)
    asked = vars(parser.parse_args())
    print(check(load(asked.pop("folder")), **asked))


if __name__ == "__main__":
    main()
