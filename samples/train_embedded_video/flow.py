"""The denoiser and the text encoder, trained together by flow matching.

Between a clip's latents x and noise e lies z = (1 - s) x + s e, with s from 0 to 1; the denoiser
learns the velocity e - x (arXiv 2210.02747; the sign is that of diffusers, which steps from
s = 1 down). s is drawn evenly and then shifted as the scheduler shifts its steps, to the noisy end
where it is decided what will be seen. One caption in eight is empty, for guidance (2207.12598).

Muon for the matrices of the layers, AdamW for the rest; the weights written are an average over
the last steps. bfloat16 products, float32 weights.
"""

from __future__ import annotations

import csv
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from autoencoder import drawn, latents
from check import check
from diffusers import AutoencoderKLWan
from model import (
    LATENT,
    LAYERS,
    SHIFT,
    build_encoder,
    build_tokenizer,
    build_transformer,
    pipeline,
    save,
    write,
)
from torch import Tensor, nn

from edgevlm.evaluation.videos import shapes

BATCH, WORDS = 32, 16  # clips; tokens of a text while training
FIRST_POOL, POOL, NEW = 640, 12000, 2  # encoded clips at the start and in the end; new ones a step
EMPTY = 0.125
AVERAGE = 0.998  # of the weights that are written
RATE = 2e-3
DECAY = 0.3  # share of the time in which the rate falls


class Attention:
    """Attention of the denoiser while it trains: plain products, which are faster backward here.

    Texts have `WORDS` tokens instead of the 512 that the pipeline pads to by default. Padding is
    not masked in Wan; its rows are equal, so that the last one, `bias` = log of how many there
    are, stands for all of them exactly. The model so learns to bear any length.
    """

    bias = 0.0

    def __call__(self, attn, hidden, text=None, mask=None, rotary=None) -> Tensor:
        """What `WanAttnProcessor` gives: [B, N, D]; to the video itself where `text` is None."""
        source = hidden if text is None else text
        query, key = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(source))
        query, key, value = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2)
                             for x in (query, key, attn.to_v(source)))  # fmt: skip
        if rotary is not None:
            cos, sin = (x.transpose(1, 2) for x in rotary)  # [1, 1, N, D]
            query, key = (x * cos + turned(x) * sin for x in (query, key))
        scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
        if text is not None:
            scores = scores + nn.functional.pad(torch.full((1,), self.bias), (key.shape[2] - 1, 0))
        found = scores.softmax(-1).to(value.dtype) @ value
        return attn.to_out[0](found.transpose(1, 2).flatten(2))


def turned(x: Tensor) -> Tensor:
    """Each pair (a, b) of the last axis as (-b, a)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-b, a], -1).flatten(-2)


class Model(nn.Module):
    """Text encoder and denoiser; batches of ids [B, S] and latents [B, C, F, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_encoder(len(build_tokenizer()))
        self.transformer = build_transformer()

    def train_attention(self) -> Attention:
        """Let the denoiser attend as it does in training."""
        shared = Attention()
        self.transformer.set_attn_processor(shared)
        return shared

    def forward(self, noisy: Tensor, time: Tensor, ids: Tensor) -> Tensor:
        """Velocity [B, C, F, h, w]."""
        mask = ids != 0
        text = self.encoder(ids, mask.long()).last_hidden_state * mask[..., None]
        return self.transformer(noisy, time, text, return_dict=False)[0]


@dataclass
class Pool:
    """Encoded clips and the ids of their texts; grows while training goes on."""

    vae: AutoencoderKLWan
    clips: Iterator[tuple[shapes.Prompt, np.ndarray]]
    latents: Tensor
    ids: Tensor
    size: int = 0
    drawn: int = 0

    def grow(self, count: int) -> None:
        """Draw and encode clips; the oldest are replaced when there is no more room."""
        some = [next(self.clips) for _ in range(count)]
        at = torch.arange(self.drawn, self.drawn + count) % POOL
        self.latents[at] = latents(self.vae, [frames for _, frames in some])
        self.ids[at] = texts([prompt.text for prompt, _ in some])
        self.drawn += count
        self.size = min(self.drawn, POOL)


def texts(sentences: list[str]) -> Tensor:
    """Ids i64 [B, WORDS]."""
    made = tokenizer()(sentences, padding="max_length", max_length=WORDS, truncation=True)
    return torch.tensor(made.input_ids)


tokenizer = functools.cache(build_tokenizer)


def captioned(seed: int) -> Iterator[tuple[shapes.Prompt, np.ndarray]]:
    """Clips with their prompts."""
    return zip(shapes.examples(seed, held_out=False), drawn(seed), strict=True)


def train(run: Path, vae: AutoencoderKLWan, out: Path, seconds: float, every: float,
          seed: int) -> None:  # fmt: skip
    """Train for a time, or go on; `out` is written and checked every so often, and in the end."""
    model, smooth = Model(), Model().eval().requires_grad_(False)
    smooth.load_state_dict(model.state_dict())
    attention, muon_and_adam = model.train_attention(), optimisers(model)
    at = {"step": 0, "seconds": 0.0}
    if (run / "flow.pt").is_file():
        state = torch.load(run / "flow.pt", weights_only=True)
        model.load_state_dict(state["model"])
        smooth.load_state_dict(state["smooth"])
        for optimiser, content in zip(muon_and_adam, state["optimisers"], strict=True):
            optimiser.load_state_dict(content)
        at = {name: state[name] for name in at}
    pool = Pool(vae, captioned(seed + 7 + at["step"]), torch.zeros(POOL, LATENT, 6, 8, 8),
                torch.zeros(POOL, WORDS, dtype=torch.long))  # fmt: skip
    last = time.perf_counter()
    while pool.size < FIRST_POOL:
        pool.grow(8)
    empty, losses, checked = texts([""])[0], [], at["seconds"]
    while at["seconds"] < seconds:
        pool.grow(NEW)
        share = at["seconds"] / seconds
        rate = RATE * min((at["step"] + 1) / 100, 1.0, (1 - share) / DECAY)
        chosen = torch.randint(pool.size, (BATCH,))
        ids = torch.where((torch.rand(BATCH) < EMPTY)[:, None], empty, pool.ids[chosen])
        padded = WORDS * (32 ** np.random.rand() if np.random.rand() < 0.5 else 1)
        attention.bias = math.log(1 + padded - WORDS)
        loss = flow_loss(model, pool.latents[chosen], ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in muon_and_adam:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad()
        keep = min(AVERAGE, (at["step"] + 1) / (at["step"] + 20))
        for average, new in zip(smooth.parameters(), model.parameters(), strict=True):
            average.lerp_(new.detach(), 1 - keep)
        losses.append(loss.item())
        at["step"] += 1
        now = time.perf_counter()
        at["seconds"], last = at["seconds"] + now - last, now
        if at["step"] % 50 == 0:
            print(f"flow {at['step']} {at['seconds']:.0f} s loss {np.mean(losses):.4f}", flush=True)
        if at["seconds"] - checked > every or at["seconds"] >= seconds:
            save({"model": model.state_dict(), "smooth": smooth.state_dict(),
                  "optimisers": [o.state_dict() for o in muon_and_adam], **at},
                 run / "flow.pt")  # fmt: skip
            made = pipeline(smooth.encoder, smooth.transformer, vae)
            write(made, out)
            row = {"step": at["step"], "seconds": round(at["seconds"]), "pool": pool.size,
                   "loss": round(float(np.mean(losses)), 4)}  # fmt: skip
            log(run / "log.csv", row | check(made, count=12, sheet=run / f"{at['step']:06}.png"))
            losses, checked, last = [], at["seconds"], time.perf_counter()


def flow_loss(model: Model, clean: Tensor, ids: Tensor) -> Tensor:
    """Mean squared error of the velocity at one noise level a clip, spread evenly in a batch."""
    count = len(clean)
    even = (torch.randperm(count) + torch.rand(count)) / count
    sigma = SHIFT * even / (1 + (SHIFT - 1) * even)
    noise = torch.randn_like(clean)
    noisy = torch.lerp(clean, noise, sigma[:, None, None, None, None])
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(noisy, sigma * 1000, ids)
    return (velocity.float() - (noise - clean)).square().mean()


def optimisers(model: Model) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the denoiser's layers, AdamW for everything else."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and name.startswith("transformer.blocks.")
        (matrices if inside else others).append(parameter)
    assert len(matrices) == 10 * LAYERS
    return [
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=RATE, weight_decay=0.01, betas=(0.9, 0.98), fused=True),
    ]


def log(path: Path, row: dict[str, object]) -> None:
    """A row of log.csv, and a line on the screen."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(" ".join(f"{name} {value}" for name, value in row.items()), flush=True)
