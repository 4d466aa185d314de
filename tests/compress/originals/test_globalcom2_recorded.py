"""GlobalCom2 against what its original gave, all 22 recorded cases, two of them from pixels on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgevlm.compress.shared.tiles import largest_of_groups, shown
from edgevlm.compress.tokens.globalcom2 import groups, joint_scores, scales, tile_budgets
from edgevlm.graphs.visual_shape import VisualShape

TOWER = Path(__file__).resolve().parents[3].parent / "shared/vectors/globalcom2_logits.safetensors"


def case_shape(case: dict[str, Any]) -> VisualShape:
    """A thumbnail and tiles, with the padding that LLaVA's packing takes off for this picture."""
    views, tokens = case["in_cls_logits"].shape
    side = round(tokens**0.5)
    rows, columns = int(case["param_num_patch_height"]), int(case["param_num_patch_width"])
    height, width = rows * side, columns * side
    own_height, own_width = int(case["param_image_h"]), int(case["param_image_w"])
    padding = (0, (width - int(own_width * (height / own_height))) // 2)
    if own_width / own_height > width / height:
        padding = ((height - int(own_height * (width / own_width))) // 2, 0)
    return VisualShape(((side, side),) * views, 2, (rows, columns), "first", padding=padding)


def cases(vectors: Any, *names: str) -> Iterator[tuple[dict[str, Any], VisualShape]]:
    """Those that have logits or attention as an input."""
    for name in names:
        for case in vectors(name):
            case.setdefault("in_cls_logits", case.get("in_cls_attn", case.get("out_cls_logits")))
            yield case, case_shape(case)


def outputs(case: dict[str, Any], shape: VisualShape, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the tiles, and what is kept at the original's counts, over thumbnail and tiles."""
    flat, side = logits.flatten(), shape.grids[0][0]
    counts = [*case["out_counts"].tolist(), len(case["out_thumbnail_indices"]), 0]
    scores = joint_scores(flat, shape)
    kept = largest_of_groups(scores, groups(shape), torch.tensor(counts), sum(counts))
    share = scales(flat[: side * side], (side, side), shape.tiles, float(case["param_temperature"]))
    return (share * float(case["param_base_scale"])).clamp(max=1.0), kept


def expected_positions(case: dict[str, Any]) -> Any:
    """What the original keeps, in the order of our tokens, ascending."""
    numbers = np.arange(1, len(case["in_cls_logits"])).repeat(case["out_counts"])
    tiles = np.sort(case["out_crop_indices_in_full"] + numbers * case["in_cls_logits"].shape[1])
    return np.concatenate([np.sort(case["out_thumbnail_indices"]), tiles])


def test_equals_reference(vectors: Any) -> None:
    """Logits and attention, filled tiles and padded ones: shares, and the tokens at the counts."""
    padded = 0
    for case, shape in cases(vectors, "globalcom2", "globalcom2_logits"):
        valid = shown(shape)[case["in_cls_logits"].shape[1] :]
        np.testing.assert_array_equal(valid, case["out_unpad_mask"].flatten())
        padded += not valid.all()
        share, kept = outputs(case, shape, torch.from_numpy(case["in_cls_logits"]))
        np.testing.assert_allclose(share, case["out_scales"], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(kept, expected_positions(case))
    assert padded >= 9


def test_counts_are_the_originals_and_what_they_round_off(vectors: Any) -> None:
    """At K = base scale x N: no tile has less than in the original, and none two more."""
    for case, shape in cases(vectors, "globalcom2_logits"):
        tokens = int(valid_tokens(case) * float(case["param_base_scale"]))
        logits = torch.from_numpy(case["in_cls_logits"]).flatten()
        of_thumbnail = len(case["out_thumbnail_indices"])
        mine = tile_budgets(logits, shape, 10.0, tokens - of_thumbnail).numpy()
        assert mine.sum() == tokens - of_thumbnail
        if shape.padding == (0, 0):
            assert set(mine - case["out_counts"]) <= {0, 1}
        assert abs(mine - case["out_counts"]).max() <= 2


def valid_tokens(case: dict[str, Any]) -> int:
    """Tokens of the thumbnail and of tiles without padding."""
    return case["in_cls_logits"].shape[1] + int(case["out_unpad_mask"].sum())


def test_onnx_makes_the_same_choice(vectors: Any, trace: Any, engine: Any) -> None:
    """A picture that fills its tiles, and a padded one with left-over columns."""
    for index, (case, shape) in enumerate(cases(vectors, "globalcom2_logits")):
        if index not in (0, 7):
            continue
        logits = torch.from_numpy(case["in_cls_logits"])

        def run(x: Tensor, case: Any = case, shape: Any = shape) -> tuple[Tensor, Tensor]:
            return outputs(case, shape, x)

        share, kept = engine(trace(run, logits))(logits)
        np.testing.assert_allclose(share, case["out_scales"], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(kept, expected_positions(case))


def sequence(case: dict[str, Any], shape: VisualShape, features: Tensor, kept: Tensor) -> Tensor:
    """Tiles' tokens by rows of the grid, each row closed by a newline, as the layout puts them.

    The original takes the place of a token among the tokens of its tile that are no padding.
    """
    tokens, (rows, columns) = features.shape[1], shape.tiles
    side = shape.grids[0][0]
    valid = case["out_unpad_mask"]
    lines: list[list[tuple[int, Tensor]]] = [[] for _ in range(rows * side)]
    for position in kept[kept >= tokens].tolist():
        tile, index = divmod(position - tokens, tokens)
        row, column = divmod(int(valid[tile, :index].sum()), side)
        line, start = tile // columns * side + row, tile % columns * side
        lines[line].append((start + column, features[tile + 1, index]))
    newline = torch.from_numpy(case["in_image_newline"])
    ordered = [[token for _, token in sorted(line, key=lambda item: item[0])] for line in lines]
    return torch.stack([token for line in ordered for token in (*line, newline)])


def test_tokens_with_newlines_equal_the_reference(vectors: Any) -> None:
    """Exactly, where features are exact in float16; the end-to-end cases have none."""
    for case, shape in cases(vectors, "globalcom2_logits"):
        if case["param_end_to_end"]:
            continue
        features = torch.from_numpy(case["in_features"])
        _, kept = outputs(case, shape, torch.from_numpy(case["in_cls_logits"]))
        found = sequence(case, shape, features, kept)
        np.testing.assert_array_equal(found, case["out_crop_tokens_with_newline"])
        best = features[0][torch.from_numpy(case["out_thumbnail_indices"])]
        np.testing.assert_array_equal(best, case["out_thumbnail_tokens"])


@pytest.fixture(scope="module")
def recorded(model_of: Any) -> Any:
    """LLaVA-NeXT over the tower that the end-to-end cases were recorded with, and no projector."""
    safetensors = pytest.importorskip("safetensors")
    if not TOWER.exists():
        pytest.skip("reference vectors are not in this checkout")
    with safetensors.safe_open(TOWER, "pt") as file:
        vision = json.loads(file.metadata()["config"])
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    model = model_of("llava_next", vision=vision, text={"hidden_size": vision["hidden_size"]})
    model.tower.load_state_dict({k.removeprefix("vision_model."): v for k, v in weights.items()})
    model.own.model.multi_modal_projector = nn.Identity()
    return model


@pytest.mark.parametrize("number", [16, 17])
def test_from_pixels_to_the_sequence(vectors: Any, recorded: Any, traced: Any, number: int) -> None:
    """Our encoder's modules, one view by their trace too, then the method."""
    case, shape = list(cases(vectors, "globalcom2_logits"))[number]
    pixels = torch.from_numpy(case["in_pixel_values"])
    exported = recorded.exported("globalcom2", tokens=99, tiles=shape.tiles)
    assert exported.parts.encoder.spec.layers == 2  # of three: features of the last but one
    features, logits = exported.encoded(pixels)
    tokens = shape.grids[0][0] ** 2
    per_view = logits.reshape(-1, tokens)
    atol = 1e-4 * np.abs(case["out_cls_logits"]).max()
    np.testing.assert_allclose(per_view, case["out_cls_logits"], rtol=0, atol=atol)
    share, kept = outputs(case, shape, per_view)
    np.testing.assert_allclose(share, case["out_scales"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(kept, expected_positions(case))
    by_view = features.reshape(len(pixels), tokens, -1)
    best = by_view[0][torch.from_numpy(case["out_thumbnail_indices"])]
    atol = 1e-4 * np.abs(case["out_thumbnail_tokens"]).max()
    np.testing.assert_allclose(best, case["out_thumbnail_tokens"], rtol=0, atol=atol)
    found, wanted = sequence(case, shape, by_view, kept), case["out_crop_tokens_with_newline"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())
    if number == 16:
        in_graph = traced(exported.vision, [pixels[1:2]])
        torch.testing.assert_close(in_graph[0][0], by_view[1])
        torch.testing.assert_close(in_graph[1][0], per_view[1])
