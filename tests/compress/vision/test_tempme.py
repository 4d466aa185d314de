"""TempMe: merging against the recorded one, the published numbers, and CLIP over frames with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from edgevlm.compress.vision.tempme import Method, factors
from edgevlm.errors import PlanError
from edgevlm.graphs.signals import encode
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe

VECTORS = Path(__file__).resolve().parents[3].parent / "shared" / "vectors"


def test_merging_is_the_originals() -> None:
    """All recorded cases: tokens, sizes, and which token each became part of."""
    if not VECTORS.is_dir():
        pytest.skip("the recorded vectors are not here")
    recorded, compared = np.load(VECTORS / "tempme.npz"), 0
    for index in range(len({key.split("_")[0] for key in recorded.files})):
        case = {
            name: recorded[f"case{index}_{name}"]
            for name in ("in_x", "in_metric", "in_size", "out_x", "out_size", "out_source")
        }
        numbers = (int(recorded[f"case{index}_param_{name}"]) for name in ("r", "cls_num"))
        removed, classes = numbers
        for row in range(len(case["in_x"])):
            own = (torch.from_numpy(case[name][row]) for name in ("in_x", "in_metric", "in_size"))
            x, size, row_of = Method()(*own, removed, classes)
            np.testing.assert_allclose(x, case["out_x"][row], atol=1e-4)
            assert np.array_equal(size, case["out_size"][row])
            assert case["out_source"][row][row_of, np.arange(len(row_of))].all()
            compared += 1
    assert compared


def test_windows_are_the_published_ones() -> None:
    """12 frames of 7 x 7 patches in 12 layers, and the first windows that are joined."""
    assert Method().plan_frames(12, 49, 12) == (
        *((12, 50 - 2 * layer) for layer in range(1, 9)), (6, 44), (3, 56), (1, 107), (1, 97)
    )  # fmt: skip
    stage = Method().stages(12, 49, 12)[8]
    assert (stage.joined, stage.classes, stage.before, stage.inside) == (2, 2, 68, 48)
    assert factors(12) == (2, 2, 3)


def test_what_cannot_be_planned_is_one_line() -> None:
    """Joins that do not fit, shares that merge nothing, and numbers out of range."""
    for options, frames, message in (
        ({}, 24, r"4 joins \(2\+2\+2\+3\) from layer 8 on, and the encoder has 10 layers"),
        ({"join": "2+3"}, 8, "joins 2.3 do not divide 8 frames"),
        ({"across": 0.001}, 4, "across=0.001 merges none of the "),
    ):
        with pytest.raises(PlanError, match=message):
            Method(**{"layer": 8} | options).stages(frames, 49, 10)
    for wrong in ({"across": 0.0}, {"inside": 0.6}, {"r": -1}, {"join": "1+2"}, {"join": "x"}):
        with pytest.raises(ValueError, match=r"must (be|look)"):
            Method(**wrong)


def by_hand(x: torch.Tensor, metric: torch.Tensor, size: torch.Tensor, r: int, classes: int) -> Any:
    """One merging as TempMe has it, pair by pair."""
    rest = list(range(classes, len(x)))
    sources, others = rest[classes % 2 :: 2], rest[1 - classes % 2 :: 2]
    unit = metric / metric.norm(dim=-1, keepdim=True)
    likeness = unit[sources] @ unit[others].T
    best = likeness.max(1)
    pairs = sorted(range(len(sources)), key=lambda i: -best.values[i])[:r]
    total, sizes = x * size, size.clone()
    for i in pairs:
        into = others[int(best.indices[i])]
        total[into] += x[sources[i]] * size[sources[i]]
        sizes[into] += size[sources[i]]
    gone = {sources[i] for i in pairs}
    left = [*range(classes), *(i for i in sources if i not in gone), *others]
    return (total / sizes)[left], sizes[left]


def test_clip_over_frames_with_it_is_transformers_driven_so(preset: Any) -> None:
    """Patches merge in the first layer; before the second, frames are joined in pairs."""
    recipe = Recipe(str(preset("tiny-clip")), frames=4, methods=("tempme:join=2",))
    planned: Any = make_plan(recipe, find(recipe.model))
    image = planned.plan.host.image
    assert (image.views, planned.plan.host.encoder.tokens) == (1, (200, 192, 2 * 62))
    model = planned.checkpoint.load_model()
    torch.manual_seed(0)
    pixels = torch.randn(1, image.channels, image.height, image.width)
    vision, found = model.vision_model, []

    def layer(module: Any, windows: list[Any], removed: int, classes: int) -> list[Any]:
        merged = []
        for x, size in windows:
            h, own = module.layer_norm1(x), module.self_attn
            q, k, v = (
                part(h).reshape(len(x), own.num_heads, -1).transpose(0, 1)
                for part in (own.q_proj, own.k_proj, own.v_proj)
            )
            scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5 + size.log().reshape(1, 1, -1)
            mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)
            x = x + own.out_proj(mixed)
            x, size = by_hand(x, k.mean(0), size, removed, classes)
            merged.append((x + module.mlp(module.layer_norm2(x)), size))
        return merged

    with torch.no_grad():
        x = vision.pre_layrnorm(vision.embeddings(pixels.reshape(4, 3, image.height, image.width)))
        windows = [(frame, torch.ones(len(frame), 1)) for frame in x]
        windows = layer(vision.encoder.layers[0], windows, 2, 1)
        joined = []
        for pair in (windows[:2], windows[2:]):
            both = [torch.cat([one[i][:1] for one in pair]) for i in (0, 1)]
            rest = [torch.cat([one[i][1:] for one in pair]) for i in (0, 1)]
            x, size = (torch.cat(parts) for parts in zip(both, rest, strict=True))
            joined.append(by_hand(x, x, size, int(0.3 * len(x)), 2))
        for x, _ in layer(vision.encoder.layers[1], joined, int(0.1 * len(joined[0][0])), 2):
            each = model.visual_projection(vision.post_layernorm(x[:2]))
            found.append(each / each.norm(dim=-1, keepdim=True))
        ours = encode(planned.parts(model).encoder.modules, pixels)[0][0][0]
    clip = torch.cat(found).mean(0)
    assert (ours - clip).abs().max() < 1e-5 * clip.abs().max()


@pytest.mark.slow
def test_blocks_of_a_bundle_agree_with_pytorch(preset: Any, tmp_path: Path) -> None:
    """A block for each layer, so that sizes go from block to block; the answer is the model's."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from edgevlm.pipeline import export

    recipe = Recipe(
        str(preset("tiny-clip")), frames=4, methods=("tempme:join=2",), block_size_bytes=1000
    )
    done = export(recipe, tmp_path / "tiny.edgevlm")
    assert done.verification.ok
    inputs = [
        {tensor.name for tensor in block.functions[0].inputs}
        for block in done.bundle.plan.stage("vision")
    ]
    assert {"hidden", "size"} in [names - {"origin"} for names in inputs]


def test_frames_with_a_class_token_are_needed(preset: Any) -> None:
    """A picture has none to join."""
    recipe = Recipe(str(preset("tiny-clip")), methods=("tempme",))
    with pytest.raises(PlanError, match="tempme at site vision joins the frames of a clip"):
        make_plan(recipe, find(recipe.model))
