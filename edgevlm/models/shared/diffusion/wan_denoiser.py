"""Static forms of Wan's denoiser (arXiv 2503.20314, section 4.2), over diffusers' modules.

    patches by a strided Conv3d                  -> a matrix over packed patches     WanEmbeddings
    rotary tables made of the latents' shape     -> tables of each axis, put together
                                                    once a step                      WanEmbeddings
    timestep embedding made of a number          -> the same, frequencies constant   WanEmbeddings
    patches put back by seven axes               -> by steps of five                 WanHead

Each is compared with diffusers' own forward in tests/models/diffusion. Shapes: N tokens, D
channels, S tokens of the text, C channels of F latent frames of h x w, patches of p x q x r.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.ops import attention
from edgevlm.models.shared.encoders.vjepa2 import turned

Patch = tuple[int, int, int]


class WanEmbeddings(nn.Module):
    """What all layers take: latents [1, C, F, h, w], timestep [1], text [1, S, Ct].

    Gives hidden [1, N, D], modulation [1, 6, D], context [1, S, D], the rotary tables cos and sin
    [1, N, head size], and time [1, D].
    """

    frequencies: Tensor

    def __init__(self, model: Any, latents: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.axes = axes_of(latents, tuple(model.config.patch_size))
        for name, tables in zip(("cos", "sin"), rotary_tables(model, self.axes), strict=True):
            for axis, table in enumerate(tables):
                self.register_buffer(f"{name}_{axis}", table)
        self.patch: Patch = tuple(model.config.patch_size)
        self.projection = _as_linear(model.patch_embedding)
        condition = model.condition_embedder
        self.time_embedder, self.time_proj = condition.time_embedder, condition.time_proj
        self.act, self.text_embedder = condition.act_fn, condition.text_embedder
        half = condition.timesteps_proj.num_channels // 2
        steps = torch.arange(half, dtype=torch.float32)
        powers = -torch.log(torch.tensor(10000.0)) * steps / half
        self.register_buffer("frequencies", torch.exp(powers)[None])

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor
    ) -> tuple[Tensor, ...]:
        angles = timestep[:, None] * self.frequencies
        time = self.time_embedder(torch.cat((angles.cos(), angles.sin()), dim=-1))
        modulation = self.time_proj(self.act(time)).unflatten(1, (6, -1))
        hidden = self.projection(packed(latents, self.patch))
        tables = (self.table("cos"), self.table("sin"))
        return hidden, modulation, self.text_embedder(text), *tables, time

    def table(self, name: str) -> Tensor:
        """cos or sin of all tokens, [1, N, head size]."""
        parts = []
        for axis in range(3):
            own: Tensor = getattr(self, f"{name}_{axis}")
            shape = [1, 1, 1, own.shape[1]]
            shape[axis] = self.axes[axis]
            parts.append(own.reshape(shape).expand(*self.axes, -1))
        return torch.cat(parts, dim=-1).flatten(0, 2).unsqueeze(0)


class WanLayer(nn.Module):
    """A layer: hidden [1, N, D] and what `WanEmbeddings` gives for all layers -> hidden."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden: Tensor, modulation: Tensor, context: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        layer: Any = self.layer
        shift, scale, gate, fed_shift, fed_scale, fed_gate = (
            layer.scale_shift_table + modulation
        ).chunk(6, dim=1)
        entering = layer.norm1(hidden) * (1 + scale) + shift
        hidden = hidden + self.attend(entering, cos, sin) * gate
        hidden = hidden + crossed(layer.attn2, layer.norm2(hidden), context)
        entering = layer.norm3(hidden) * (1 + fed_scale) + fed_shift
        return hidden + layer.ffn(entering) * fed_gate

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Self-attention over all tokens, [1, N, D] -> same."""
        attn: Any = self.layer.attn1
        query = turned(attn.norm_q(attn.to_q(x)), cos, sin)
        key = turned(attn.norm_k(attn.to_k(x)), cos, sin)
        given: Tensor = attn.to_out[0](attention(query, key, attn.to_v(x), attn.heads))
        return given


def crossed(attn: Any, x: Tensor, context: Tensor) -> Tensor:
    """Cross-attention of tokens [1, N, D] to a text [1, S, D]."""
    query, key = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(context))
    given: Tensor = attn.to_out[0](attention(query, key, attn.to_v(context), attn.heads))
    return given


class WanHead(nn.Module):
    """hidden [1, N, D], time [1, D] -> velocity [1, C, F, h, w]."""

    def __init__(self, model: Any, latents: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.norm, self.projection = model.norm_out, model.proj_out
        self.table = model.scale_shift_table
        self.latents, self.patch = latents, tuple(model.config.patch_size)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.table + time.unsqueeze(1)).chunk(2, dim=1)
        patches = self.projection(self.norm(hidden) * (1 + scale) + shift)
        return unpacked(patches, self.latents, self.patch)


def packed(latents: Tensor, patch: Patch) -> Tensor:
    """Patches of latents, [1, C, F, h, w] -> [1, N, C*p*q*r], as a convolution reads them."""
    _, channels, frames, height, width = latents.shape
    p, q, r = patch
    x = latents.reshape(channels * frames // p, p, height // q, q, width)
    x = x.transpose(1, 2)  # [C*F', h', p, q, w]
    x = x.reshape(channels, -1, p * q, width // r, r).transpose(2, 3)  # [C, F'*h', w', p*q, r]
    return x.reshape(channels, -1, p * q * r).transpose(0, 1).reshape(1, -1, channels * p * q * r)


def unpacked(patches: Tensor, latents: tuple[int, int, int, int], patch: Patch) -> Tensor:
    """Patches [1, N, p*q*r*C], the channels last in each -> latents [1, C, F, h, w]."""
    channels, frames, height, width = latents
    p, q, r = patch
    x = patches.reshape(-1, p * q * r, channels).permute(2, 0, 1)  # [C, N, p*q*r]
    x = x.reshape(-1, width // r, p * q, r).transpose(1, 2)  # [C*F'*h', p*q, w', r]
    x = x.reshape(-1, height // q, p, q, width).transpose(1, 2)  # [C*F', p, h', q, w]
    return x.reshape(1, channels, frames, height, width)


def axes_of(latents: tuple[int, int, int, int], patch: Patch) -> Patch:
    """Patches of latents along time, height and width."""
    _, *sides = latents
    frames, height, width = (side // of for side, of in zip(sides, patch, strict=True))
    return frames, height, width


def rotary_tables(model: Any, axes: Patch) -> tuple[list[Tensor], list[Tensor]]:
    """cos and sin of each axis, [places, its share of the head size], by diffusers' own module."""
    kind, config = type(model.rope), model.config
    with torch.device("cpu"):
        own = kind(config.attention_head_dim, tuple(config.patch_size), config.rope_max_seq_len)
    shares = [own.t_dim, own.h_dim, own.w_dim]
    cos, sin = (
        [t[:n].clone() for t, n in zip(table.float().split(shares, dim=1), axes, strict=True)]
        for table in (own.freqs_cos, own.freqs_sin)
    )
    return cos, sin


def _as_linear(convolution: Any) -> nn.Linear:
    """A convolution whose stride is its kernel, as a matrix over packed patches."""
    weight = convolution.weight
    linear = nn.Linear(weight[0].numel(), len(weight), device="meta")
    linear.weight = nn.Parameter(weight.detach().flatten(1), requires_grad=False)
    linear.bias = convolution.bias
    return linear
