"""Train the embedded text-to-video model: a small Wan that moves one coloured shape.

    python samples/train_embedded_video RUN --out FOLDER [--vae-minutes 8] [--minutes 50]

RUN is a folder that keeps the state (the same command goes on from it), log.csv and sheets of
clips. FOLDER is what `diffusers.WanPipeline.from_pretrained` loads.

1. Autoencoder (autoencoder.py), on clips that are drawn as they are needed.
2. Text encoder and denoiser together (flow.py), on latents of such clips.
3. Every few minutes the pipeline makes clips of prompts it has never seen and the judge of
   edgevlm/evaluation/videos/shapes.py says whether they show what was asked (check.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import autoencoder
import flow
import numpy as np
import torch


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae-minutes", type=float, default=8)
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--every", type=float, default=6, help="minutes between checks")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(asked.seed)
    np.random.seed(asked.seed)
    vae = autoencoder.train(asked.run, 60 * asked.vae_minutes, asked.seed)
    flow.train(asked.run, vae, asked.out, 60 * asked.minutes, 60 * asked.every, asked.seed)


if __name__ == "__main__":
    main()
