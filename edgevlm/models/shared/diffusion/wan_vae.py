"""Static parts of Wan 2.1's video decoder (arXiv 2503.20314, section 4.1), over diffusers' modules.

It goes on a latent frame at a time: a convolution over three frames sees the two before its own,
which are its cache. Nothing stands before the first latent frame, so its caches are zeros.

    Conv3d over cached frames      -> the sum of a Conv2d over each frame        CausalConv
    the first latent frame skips   -> the same modules without caches, of which
    what doubles frames               each gives the ones for the next frame     Doubling
    batches of frames by five axes -> frames as a batch throughout

A part takes hidden [1, C, f, h, w] and its caches [1, C, 2, h, w], none of the first latent frame,
and gives hidden and new caches. The parts are equal to `AutoencoderKLWan.decode`, which goes on in
the same steps; tests/models/diffusion compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.ops import attention

KEPT = 2  # frames before its own that a convolution sees


class CausalConv(nn.Module):
    """A convolution over time and space as a sum over space alone: [f, C, h, w] -> [f, C', h, w].

    It takes two frames before the first one [2, C, h, w], and gives the last two. Not one
    convolution over frames side by side: of 4 frames of 96 channels and 128x128 places that
    allocates 430 MiB in ONNX Runtime 1.32, the sum 160, in as much time.
    """

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        steps = [_flat(weight[:, :, i], None) for i in range(weight.shape[2] - 1)]
        self.convs = nn.ModuleList([*steps, _flat(weight[:, :, -1], bias)])

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        before = torch.zeros_like(torch.cat((x[:1], x[:1]))) if before is None else before
        frames, count = torch.cat((before, x)), x.shape[0]
        given: Tensor = self.convs[-1](x)
        for index, conv in enumerate(self.convs[:-1]):
            given = given + conv(frames[index : index + count])
        return given, frames[-KEPT:]


class Norm(nn.Module):
    """Root mean square over channels: frames [f, C, h, w] -> same."""

    gamma: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.scale = norm.scale
        self.register_buffer("gamma", norm.gamma.detach().reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        length = x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
        return x / length * self.scale * self.gamma


class Residual(nn.Module):
    """A residual block of two convolutions; two caches."""

    caches = 2

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norms = nn.ModuleList((Norm(block.norm1), Norm(block.norm2)))
        self.convs = nn.ModuleList((CausalConv(block.conv1), CausalConv(block.conv2)))
        self.act = block.nonlinearity
        shortcut = block.conv_shortcut
        self.shortcut = None if isinstance(shortcut, nn.Identity) else _pointwise(shortcut)

    def forward(self, x: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        given = []
        entering = x if self.shortcut is None else self.shortcut(x)
        for index, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            x, kept = conv(self.act(norm(x)), caches[index] if caches else None)
            given.append(kept)
        return (x + entering, *given)


class FrameAttention(nn.Module):
    """Attention of one head over the places of each frame; no cache."""

    caches = 0

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = Norm(block.norm), block.to_qkv, block.proj

    def forward(self, x: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        count, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        seen = attention(q, k, v, 1).transpose(1, 2)
        return (x + self.proj(seen.reshape(count, channels, height, width)),)


class Doubling(nn.Module):
    """Twice as many frames, of all but the first latent frame; one cache."""

    caches = 1

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.conv = CausalConv(convolution)

    def forward(self, x: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        if not caches:  # the convolution never sees the first frame
            return x, torch.zeros_like(torch.cat((x, x)))
        count, channels, height, width = x.shape
        twice, kept = self.conv(x, caches[0])
        return twice.reshape(2 * count, channels, height, width), kept


class Enlarging(nn.Module):
    """Twice the height and width, by the nearest place and a convolution; no cache."""

    caches = 0

    def __init__(self, resample: Any) -> None:
        super().__init__()
        self.conv = resample[1]

    def forward(self, x: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        return (self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")),)


class Entering(nn.Module):
    """Latents as the decoder takes them: their deviation and mean are put back; one cache."""

    caches = 1
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        for name in ("mean", "std"):
            numbers = torch.tensor(getattr(config, f"latents_{name}"), dtype=torch.float32)
            self.register_buffer(name, numbers.reshape(1, -1, 1, 1))
        self.mixed = _pointwise(model.post_quant_conv)
        self.conv = CausalConv(model.decoder.conv_in)

    def forward(self, x: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        return self.conv(self.mixed(x * self.std + self.mean), caches[0] if caches else None)


class Leaving(nn.Module):
    """Colours from -1 to 1; one cache."""

    caches = 1

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.norm, self.act = Norm(decoder.norm_out), decoder.nonlinearity
        self.conv = CausalConv(decoder.conv_out)

    def forward(self, x: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        colours, kept = self.conv(self.act(self.norm(x)), caches[0] if caches else None)
        return colours.clamp(-1, 1), kept


class VaePart(nn.Module):
    """Steps of the decoder in turn, over frames as a batch.

    hidden [1, C, f, h, w] and caches [1, C, 2, h, w] -> hidden and caches.
    """

    def __init__(self, steps: Sequence[Any]) -> None:
        super().__init__()
        self.steps: Any = nn.ModuleList(steps)

    def forward(self, hidden: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        x, kept, given, at = _frames(hidden), [_frames(c) for c in caches], list[Tensor](), 0
        for step in self.steps:
            x, *new = step(x, *kept[at : at + step.caches])
            at += step.caches if kept else 0
            given += new
        return _video(x), *map(_video, given)


def decoder_parts(model: Any) -> list[VaePart]:
    """The parts of the decoder of an `AutoencoderKLWan`, one a residual block or so."""
    decoder: Any = model.decoder
    middle = decoder.mid_block
    groups: list[list[Any]] = [[Entering(model)], [Residual(middle.resnets[0])]]
    for attn, block in zip(middle.attentions, middle.resnets[1:], strict=True):
        groups[-1].append(FrameAttention(attn))
        groups.append([Residual(block)])
    for up in decoder.up_blocks:
        groups += [[Residual(block)] for block in up.resnets]
        for sampler in up.upsamplers or ():
            doubled = [Doubling(sampler.time_conv)] if sampler.mode == "upsample3d" else []
            groups.append([*doubled, Enlarging(sampler.resample)])
    return [VaePart(group) for group in [*groups, [Leaving(decoder)]]]


def _pointwise(convolution: Any) -> nn.Conv2d:
    """A convolution of one frame and one place, over frames as a batch."""
    return _flat(convolution.weight.detach()[:, :, 0], convolution.bias)


def _flat(weight: Tensor, bias: nn.Parameter | None) -> nn.Conv2d:
    """A convolution over space that keeps the size, of a weight [C', C, height, width]."""
    out, inside, height, width = weight.shape
    padding = height // 2, width // 2
    conv = nn.Conv2d(inside, out, (height, width), padding=padding, bias=False, device="meta")
    conv.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    conv.bias = bias
    return conv


def _frames(x: Tensor) -> Tensor:
    return x[0].transpose(0, 1)  # [f, C, h, w]


def _video(x: Tensor) -> Tensor:
    return x.transpose(0, 1).unsqueeze(0)  # [1, C, f, h, w]
