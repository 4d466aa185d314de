"""The autoencoder: trained on drawn clips, then the scale of its latents is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from model import LATENT, build_vae, save
from torch import Tensor

from edgevlm.evaluation.videos import shapes

CROP = 32  # pixels a side
# Share of the time until which clips have so many frames, and so many are a batch; then whole ones.
STAGES = (0.55, 5, 12, True), (0.85, 21, 4, True), (1.0, 21, 2, False)
KL_WEIGHT = 1e-4  # of the mean over latents, where the error is the mean over pixels
RATE, MATRIX_RATE = 3e-3, 6e-3


def train(run: Path, seconds: float, seed: int) -> AutoencoderKLWan:
    """Train for a time; `vae.pt` in the run's folder is the result, and is taken up if there.

    First few frames of crops around the shape, then all frames of crops, then whole clips.
    """
    kept = run / "vae.pt"
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        vae = build_vae(state["mean"], state["std"])
        vae.load_state_dict(state["vae"])
        return vae.eval().requires_grad_(False)
    vae = build_vae()
    start_well(vae)
    kernels = [p for p in vae.parameters() if p.ndim >= 4 and min(p.flatten(1).shape) >= 8]
    others = [p for p in vae.parameters() if all(p is not kernel for kernel in kernels)]
    muon = Muon(kernels)
    adam = torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    start, step, seen = time.perf_counter(), 0, []
    clips = drawn(seed)
    while (share := (time.perf_counter() - start) / seconds) < 1:
        rise = min((step + 1) / 30, 0.02 + 0.98 * math.cos(share * math.pi / 2))
        for group in adam.param_groups:
            group["lr"] = RATE * rise
        _, length, count, crops = next(stage for stage in STAGES if share < stage[0])
        first = step % (shapes.FRAMES - length + 1)
        frames = [next(clips)[first : first + length] for _ in range(count)]
        if crops:
            frames = [crop(f, seed + step * 16 + i) for i, f in enumerate(frames)]
        error, kl = losses(vae, tensor(frames))
        (error + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        muon.step(MATRIX_RATE * rise)
        adam.step()
        adam.zero_grad()
        seen.append((error.item(), kl.item()))
        step += 1
        if step % 50 == 0:
            error_mean, kl_mean = np.mean(seen, 0)
            print(f"vae {step} share {share:.2f} error {error_mean:.4f} kl {kl_mean:.3f}",
                  flush=True)  # fmt: skip
            seen = []
    vae.eval().requires_grad_(False)
    mean, std = scale(vae, drawn(seed + 1))
    save({"vae": vae.state_dict(), "mean": mean, "std": std}, kept)
    return train(run, seconds, seed)


def start_well(vae: AutoencoderKLWan) -> None:
    """Weights that keep the size of what passes; PyTorch's own shrink it at each convolution.

    And almost no noise at first: else the decoder learns to do without latents.
    """
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            torch.nn.init.zeros_(module.bias)
    with torch.no_grad():
        vae.quant_conv.bias[LATENT:] = -6.0
        vae.quant_conv.weight[LATENT:] *= 0.1


class Muon:
    """torch.optim.Muon for kernels of convolutions, each taken as a matrix of its outputs."""

    def __init__(self, kernels: list[Tensor]) -> None:
        self.kernels, self.momenta = kernels, [torch.zeros_like(k) for k in kernels]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step, and the gradients are gone."""
        for kernel, momentum in zip(self.kernels, self.momenta, strict=True):
            momentum.mul_(0.9).add_(kernel.grad)
            way = (kernel.grad + 0.9 * momentum).flatten(1)
            tall = way.shape[0] > way.shape[1]
            way = way.T if tall else way
            way = way / (way.norm() + 1e-7)
            for _ in range(5):  # Newton-Schulz, with the factors of Muon's authors
                square = way @ way.T
                way = 3.4445 * way + (2.0315 * square @ square - 4.775 * square) @ way
            way = way.T if tall else way
            size = 0.2 * max(way.shape) ** 0.5
            kernel.add_(way.reshape(kernel.shape), alpha=-rate * size)
            kernel.grad = None


def losses(vae: AutoencoderKLWan, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute and squared error of the decoded clips [B, 3, T, H, W]; divergence of latents."""
    found = vae.encode(batch).latent_dist
    away = decode(vae, found.sample()) - batch
    kl = 0.5 * (found.mean.square() + found.var - 1 - found.logvar).mean()
    return 0.5 * away.abs().mean() + 2 * away.square().mean(), kl


def decode(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """As `vae.decode`, but not clamped to -1 to 1: black and white would have no gradient."""
    vae.clear_cache()
    hidden, made = vae.post_quant_conv(z), []
    for frame in range(z.shape[2]):
        cache = {"feat_cache": vae._feat_map, "feat_idx": [0], "first_chunk": frame == 0}
        made.append(vae.decoder(hidden[:, :, frame : frame + 1], **cache))
    vae.clear_cache()
    return torch.cat(made, 2)


def drawn(seed: int) -> Iterator[np.ndarray]:
    """Endless clips of prompts of training, u8 [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    for prompt in shapes.examples(seed, held_out=False):
        yield shapes.draw(prompt, rng)


def crop(frames: np.ndarray, seed: int) -> np.ndarray:
    """A square of `CROP` pixels near where the shape is in one frame, for all frames."""
    rng = np.random.default_rng(seed)
    frame = frames[rng.integers(len(frames))].astype(int)
    rows, columns = np.nonzero(np.abs(frame - frame[0, 0]).sum(-1) > 60)
    corner = np.array([rows.mean(), columns.mean()]) - CROP / 2 + rng.uniform(-12, 12, 2)
    y, x = np.clip(corner, 0, shapes.SIZE - CROP).astype(int)
    return frames[:, y : y + CROP, x : x + CROP]


def tensor(clips: list[np.ndarray]) -> Tensor:
    """Clips as the autoencoder takes them: f32 [B, 3, T, H, W], -1 to 1."""
    batch = torch.from_numpy(np.stack(clips)).float() / 127.5 - 1
    return batch.permute(0, 4, 1, 2, 3).contiguous()


@torch.no_grad()
def scale(vae: AutoencoderKLWan, clips: Iterator[np.ndarray]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of sampled latents.

    Of sampled ones, not of their means: a channel that says nothing has a mean near 0 everywhere,
    and must not be blown up.
    """
    some = torch.cat([vae.encode(tensor([next(clips)])).latent_dist.sample() for _ in range(200)])
    return some.mean((0, 2, 3, 4)).tolist(), some.std((0, 2, 3, 4)).tolist()


@torch.no_grad()
def latents(vae: AutoencoderKLWan, clips: list[np.ndarray]) -> Tensor:
    """Scaled means of latents f32 [B, C, F, h, w]: what the denoiser learns."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1)
                 for v in (vae.config.latents_mean, vae.config.latents_std))  # fmt: skip
    return (vae.encode(tensor(clips)).latent_dist.mode() - mean) / std
