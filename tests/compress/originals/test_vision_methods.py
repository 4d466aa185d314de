"""ToMe, DyMU and MustDrop in CLIP and SigLIP towers, run as the originals run them.

The layers are transformers' own; merging is written here anew, as the originals' code does it:

    ToMe      after a layer's attention and before its MLP the r best pairs of the mean keys merge;
              attention of later layers adds log(size)
    DyMU      the same, but all pairs above the layer's threshold merge
    MustDrop  after the first layer windows merge, by threshold; later layers are called as they are

Compared are the tokens that come out, and the features of the model with these tokens put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.functions import Tensor as TensorSpec
from edgevlm.compress.vision import dymu, mustdrop
from edgevlm.exporters.contract import TargetOptions, find_target
from edgevlm.graphs.blocks import VisionBlock
from edgevlm.graphs.parts import EncoderParts
from edgevlm.graphs.trace import trace, weights
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe

Merged = tuple[Tensor, Tensor, Tensor]  # tokens [n, D], sizes [n, 1], origin [N]
CLIP, SIGLIP = "tiny-llava-next", "tiny-llava-onevision"
towers = pytest.mark.parametrize("name", [CLIP, SIGLIP])


@pytest.fixture(scope="module")
def opened(preset: Any) -> Callable[[str], tuple[Any, Any]]:
    """A tiny model by the name of its preset: checkpoint and model, both as transformers has it."""
    made: dict[str, tuple[Any, Any]] = {}

    def give(name: str) -> tuple[Any, Any]:
        if name not in made:
            checkpoint = find(str(preset(name)), None)
            model = checkpoint.load_model()
            model.model.vision_tower.set_attn_implementation("eager")
            made[name] = checkpoint, model
        return made[name]

    return give


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Three smooth pictures with a little noise, f32 [3, 3, 56, 56]."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(3, 3, 5, 5, generator=generator)
    large = torch.nn.functional.interpolate(smooth, (56, 56), mode="bicubic")
    return large + 0.02 * torch.randn(large.shape, generator=generator)


def encoder_of(opened: Any, name: str, method: str | None) -> EncoderParts:
    """Our encoder of the model, with a method."""
    checkpoint, model = opened(name)
    methods = (method,) if method else ()
    planned: Any = make_plan(Recipe(str(checkpoint.folder), methods=methods), checkpoint)
    encoder: EncoderParts = planned.parts(model).encoder
    return encoder


class Tower:
    """transformers' tower up to the layer of the features, a layer at a time."""

    def __init__(self, model: Any, pixels: Tensor) -> None:
        tower, config = model.model.vision_tower, model.config
        self.class_token = hasattr(tower.embeddings, "class_embedding")
        self.embedded = tower.embeddings(pixels)
        if self.class_token:
            self.embedded = tower.pre_layrnorm(self.embedded)
        depth, layer = len(tower.encoder.layers), config.vision_feature_layer
        self.layers = tower.encoder.layers[: depth + 1 + layer if layer < 0 else layer]
        self.projector = model.model.multi_modal_projector

    def features(self, merged: Merged) -> Tensor:
        """What the projector gives, each position of the grid with its token: [1, N, C]."""
        tokens, _, origin = merged
        features: Tensor = self.projector(tokens[origin][int(self.class_token) :].unsqueeze(0))
        return features

    def tome(
        self,
        count: Callable[[int, Tensor], int],
        proportional: bool = True,
        by_index: bool = False,
    ) -> Merged:
        """ToMe's block: `count` says how many pairs merge, from the layer and all best cosines.

        What does not merge stays by descending cosine; behind a class token, and in DyMU's
        calibration, in order of index.
        """
        x, size = self.embedded[0], torch.ones(self.embedded.shape[1], 1)
        origin = torch.arange(len(x))
        for index, layer in enumerate(self.layers):
            normed, attention = layer.layer_norm1(x.unsqueeze(0)), layer.self_attn
            bias = size.log().reshape(1, 1, 1, -1) if proportional else None
            x = x + attention(normed, attention_mask=bias)[0][0]
            keys = attention.k_proj(normed)[0].reshape(len(x), attention.num_heads, -1).mean(1)
            best, destination = pairs(keys, self.class_token)
            in_order = by_index or self.class_token
            merged = merge_pairs(x, size, best, destination, count(index, best), in_order)
            x, size, row = merged
            x, origin = x + layer.mlp(layer.layer_norm2(x)), row[origin]
        return x, size, origin

    def mustdrop(self, threshold: float, window: int) -> Merged:
        """MustDrop's loop over the layers: the first, its windows, the others as they are."""
        x = layer_output(self.layers[0], self.embedded)
        first = int(self.class_token)
        x, size, row = merge_windows(x[0], first, threshold, window)
        for layer in self.layers[1:]:
            x = layer_output(layer, x.unsqueeze(0))[0]
        return x, size, row


def layer_output(layer: Any, x: Tensor) -> Tensor:
    """What a layer of transformers gives, called as the tower calls it."""
    output = layer(x, attention_mask=None)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def pairs(keys: Tensor, class_token: bool) -> tuple[Tensor, Tensor]:
    """The largest cosine of each even token to an odd one, and which odd one it is."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    cosines = unit[::2] @ unit[1::2].T
    if class_token:
        cosines[0] = -math.inf
    largest = cosines.max(1)
    return largest.values, largest.indices


def merge_pairs(
    x: Tensor, size: Tensor, best: Tensor, destination: Tensor, merged: int, by_index: bool
) -> Merged:
    """The best pairs merge; tokens come as unmerged even ones, then odd ones."""
    order = best.argsort(descending=True)
    source, stays = order[:merged], order[merged:]
    stays = stays.sort().values if by_index else stays
    into = destination[source]
    total = size[1::2].index_add(0, into, size[::2][source])
    summed = (x * size)[1::2].index_add(0, into, (x * size)[::2][source])
    row = torch.empty(len(x), dtype=torch.int64)
    row[1::2] = len(stays) + torch.arange(len(total))
    row[2 * stays], row[2 * source] = torch.arange(len(stays)), len(stays) + into
    return torch.cat([x[::2][stays], summed / total]), torch.cat([size[::2][stays], total]), row


def merge_windows(x: Tensor, first: int, threshold: float, window: int) -> Merged:
    """Windows whose patches have a mean cosine of `threshold` or more become their means."""
    patches = x[first:]
    side = math.isqrt(len(patches))
    grid = torch.arange(side * side).reshape(side, side)
    members = [
        grid[i : i + window, j : j + window].flatten()
        for i in range(0, side, window)
        for j in range(0, side, window)
    ]
    scores = []
    for inside in members:
        cosine = torch.nn.functional.cosine_similarity(
            patches[inside][:, None], patches[inside][None], dim=-1
        )
        scores.append((cosine.sum() - cosine.trace()) / (len(inside) * (len(inside) - 1)))
    ranked = torch.stack(scores).sort(descending=True)
    chosen = [members[int(w)] for w in ranked.indices[ranked.values >= threshold]]
    gone = torch.cat(chosen)
    left = torch.tensor([p for p in range(side * side) if p not in set(gone.tolist())])
    rows = [*x[:first], *(patches[inside].mean(0) for inside in chosen), *patches[left]]
    row = torch.arange(len(x))
    for number, inside in enumerate(chosen):
        row[first + inside] = first + number
    row[first + left] = first + len(chosen) + torch.arange(len(left))
    sizes = torch.ones(len(rows), 1)
    sizes[first : first + len(chosen)] = window * window
    return torch.stack(rows), sizes, row


def run(encoder: EncoderParts, pixels: Tensor) -> tuple[Merged, Tensor]:
    """Our encoder: the tokens before the connector, and the features after it."""
    state: tuple[Tensor, ...] = (pixels,)
    for module in encoder.modules[:-1]:
        outputs = module(*state)
        state = outputs if isinstance(outputs, tuple) else (outputs,)
    tokens, size, origin = state
    features = VisionBlock(encoder.modules)(pixels)
    return (tokens[0], size[0], origin[0].long()), features


def check(actual: tuple[Merged, Tensor], tower: Tower, expected: Merged) -> None:
    """Tokens, their sizes and places are the original's, and so are the features."""
    (tokens, size, origin), features = actual
    assert torch.equal(origin, expected[2])
    assert torch.equal(size, expected[1])
    bound = {"rtol": 0, "atol": 1e-5 * float(expected[0].abs().max())}
    torch.testing.assert_close(tokens, expected[0], **bound)
    wanted = tower.features(expected)
    torch.testing.assert_close(features, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@towers
def test_tome_has_the_originals_tokens(opened: Any, pictures: Tensor, name: str) -> None:
    """30 pairs merge in each layer."""
    with torch.no_grad():
        actual = run(encoder_of(opened, name, "tome@vision:r=30"), pictures[:1])
        tower = Tower(opened(name)[1], pictures[:1])
        check(actual, tower, tower.tome(lambda layer, best: 30))
        plain = tower.tome(lambda layer, best: 30, proportional=False)
    assert not torch.allclose(plain[0], actual[0][0], atol=1e-3)  # the bias is no small thing


class Views:
    """An encoder and the pictures for a calibration of it."""

    def __init__(self, encoder: EncoderParts, pixels: Tensor) -> None:
        self.encoder, self.pixels = encoder, pixels

    def views(self) -> Any:
        """Each picture."""
        return iter(self.pixels.split(1))


@towers
def test_dymu_calibrated_on_a_picture_has_the_originals_tokens_of_it(
    opened: Any, pictures: Tensor, name: str
) -> None:
    """The original with these thresholds merges as many pairs of the picture as `merges` says."""
    with torch.no_grad():
        views = Views(encoder_of(opened, name, None), pictures[:1])
        found = dymu.calibrate(views, lambda line: None, patches=135)
        thresholds = found.measured["thresholds"]
        # What is not merged is in another order when the original runs than when it calibrates.
        assert found.options == {"merges": {CLIP: "31+30", SIGLIP: "31+31"}[name]}
        method = f"dymu:merges={found.options['merges']}"
        actual = run(encoder_of(opened, name, method), pictures[:1])
        tower = Tower(opened(name)[1], pictures[:1])
        check(actual, tower, tower.tome(lambda i, best: _above(best, thresholds[i])))


@towers
def test_dymu_thresholds_are_those_of_a_batch(opened: Any, pictures: Tensor, name: str) -> None:
    """Of three pictures the best 3 r pairs merge, whosesoever they are; then layer by layer."""
    wanted, thresholds, merged = (31, 30), list[float](), list[tuple[int, ...]]([()] * 3)
    with torch.no_grad():
        run_of = [Tower(opened(name)[1], picture) for picture in pictures.split(1)]
        for layer, r in enumerate(wanted):
            cosines = [
                _cosines(tower, own, layer) for tower, own in zip(run_of, merged, strict=True)
            ]
            ranked = torch.cat(cosines).sort(descending=True).values
            thresholds.append(float(ranked[3 * r]))
            counts = [int((best > thresholds[-1]).sum()) for best in cosines]
            merged = [(*own, count) for own, count in zip(merged, counts, strict=True)]
        found = dymu.calibrate(
            Views(encoder_of(opened, name, None), pictures), lambda line: None, patches=135
        )
        left = [len(tower.tome(lambda i, best: _above(best, thresholds[i]))[0]) for tower in run_of]
    assert len(set(merged)) > 1  # pictures differ in how many merge
    assert found.measured["thresholds"] == pytest.approx(thresholds, abs=1e-5)
    left = [count - run_of[0].class_token for count in left]
    assert found.measured["patches_least"] == min(left)
    assert found.measured["patches_most"] == max(left)
    assert found.measured["patches_mean"] == sum(left) / 3


def _cosines(tower: Tower, merges: tuple[int, ...], layer: int) -> Tensor:
    """The best cosines of a layer where so many pairs merged before it, in order of index."""
    seen: list[Tensor] = []

    def count(index: int, best: Tensor) -> int:
        seen.append(best)
        return merges[index] if index < len(merges) else 0

    tower.tome(count, by_index=True)
    return seen[layer]


def _above(cosines: Tensor, threshold: float) -> int:
    """Pairs above a threshold: that of the next pair itself, which rounding must not lift."""
    return int((cosines > threshold + 1e-6).sum())


@towers
def test_mustdrop_calibrated_on_a_picture_has_the_originals_tokens_of_it(
    opened: Any, pictures: Tensor, name: str, tmp_path: Path
) -> None:
    """By threshold in the original, by the number of windows here; CLIP's through ONNX Runtime."""
    with torch.no_grad():
        tower = Tower(opened(name)[1], pictures[:1])
        views = Views(encoder_of(opened, name, None), pictures[:1])
        found = mustdrop.calibrate(views, lambda line: None, threshold=0.9, window=2)
        patches = found.options["patches"]
        expected = tower.mustdrop(0.9, 2)
        assert 49 < patches < 196
        encoder = encoder_of(opened, name, f"mustdrop:patches={patches},window=2")
        check(run(encoder, pictures[:1]), tower, expected)
    if name == CLIP:
        wanted = tower.features(expected).detach().numpy()
        features = through_onnxruntime(VisionBlock(encoder.modules), pictures[:1], tmp_path)
        np.testing.assert_allclose(features, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def through_onnxruntime(block: VisionBlock, pixels: Tensor, folder: Path) -> Any:
    """What a block gives, written as a bundle has it and run by its engine."""
    block.eval().requires_grad_(False)
    taken = TensorSpec("pixel_values", "f32", tuple(pixels.shape))
    given = TensorSpec("features", "f32", tuple(block(pixels).shape))
    function = Function("encode", (taken,), (given,), 0)
    planned = Block("vision-0", "vision", (0, 1), 0, (function,))
    target, options = find_target("onnx"), TargetOptions("none", None)
    lowered = target.lower({"encode": trace(block, function, planned)}, planned, options)
    (written,) = target.write(lowered, planned, weights(block), folder, None)
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(folder / written.file, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": pixels.numpy()})[0]
