"""Methods of site `decoder` against their references, their plans, and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgevlm.compress import (
    aim,
    dyvte,
    fastv,
    holitom,
    mustdrop,
    pyramiddrop,
    schedule,
    sparsevlm,
    visiondrop,
)
from edgevlm.compress.fastv import best
from edgevlm.compress.holitom import fold
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import DecoderLayer
from edgevlm.graphs.pruning import Look, PrunedDecoderBlock, Pruning


def test_fastv_equals_reference(vectors: Any) -> None:
    """The rows that stay, by the last row of attention, mean over heads."""
    for case in vectors("fastv"):
        start, count = int(case["param_sys_length"]), int(case["param_image_token_length"])
        weights = torch.from_numpy(case["in_last_token_attention"])[0].mean(0)
        kept = best(weights[start : start + count], int(case["param_attention_rank"])) + start
        total = weights.shape[0]
        rows = [*range(start), *kept.tolist(), *range(start + count, total)]
        np.testing.assert_array_equal(rows, case["out_keep_indices"])


def look_at(case: dict[str, Any]) -> Look:
    """A layer with the weights of a case, and its input."""
    hidden = torch.from_numpy(case["in_hidden_states"])
    width, heads = hidden.shape[2], int(case["param_num_heads"])
    attn = SimpleNamespace(
        q_proj=nn.Linear(width, width, False), k_proj=nn.Linear(width, width, False)
    )
    attn.q_proj.weight.data = torch.from_numpy(case["in_q_weight"])
    attn.k_proj.weight.data = torch.from_numpy(case["in_k_weight"])
    norm = SimpleNamespace(weight=torch.from_numpy(case["in_norm_weight"]), variance_epsilon=1e-6)
    layer = SimpleNamespace(self_attn=attn, input_layernorm=norm)
    fake: Any = SimpleNamespace(layer=layer, heads=heads, kv_heads=heads)
    size = width // heads
    angles = torch.arange(hidden.shape[1])[:, None] * 10000 ** -(torch.arange(0, size, 2) / size)
    angles = torch.cat([angles, angles], 1)[None]
    start, initial = int(case["param_image_start"]), int(case["param_image_tokens_initial"])
    visual = torch.arange(start, start + int(initial * 0.5 ** int(case["param_stage"])))
    last = torch.tensor([hidden.shape[1] - 1])
    return Look(fake, hidden, angles.cos(), angles.sin(), visual, last)


@torch.no_grad()
def test_pyramiddrop_equals_reference(vectors: Any) -> None:
    """Queries and keys of the next layer, the score, and the rows that stay, numbered anew."""
    for case in vectors("pyramiddrop"):
        look = look_at(case)
        close = {"rtol": 0, "atol": 1e-5}
        np.testing.assert_allclose(look.queries(look.last), case["out_last_query_roped"], **close)
        np.testing.assert_allclose(look.keys(), case["out_keys_roped"], **close)
        np.testing.assert_allclose(look.last_to_visual(), case["out_score"], **close)
        kept = len(case["out_keep_indices"])
        pruning = Pruning(pyramiddrop.DecoderMethod(), (len(look.visual), kept), 64, (1.0,))
        block = PrunedDecoderBlock([], None, 0, pruning)
        out, cos, _, rows, last = block._prune(look, look.hidden, kept)
        np.testing.assert_array_equal(out, case["out_hidden_states"])
        np.testing.assert_array_equal(
            look.visual[pyramiddrop.DecoderMethod()(look, out, kept)[1]], case["out_keep_indices"]
        )
        assert torch.equal(cos, look.cos[:, : out.shape[1]])  # positions 0, 1, 2, …
        assert torch.equal(out[0, rows], look.hidden[0, case["out_keep_indices"]])
        assert int(last) == out.shape[1] - 1


class Given(Look):
    """A look whose rotated queries and keys are those of a case."""

    given: dict[str, Tensor]

    def queries(self, rows: Tensor) -> Tensor:
        return self.given["queries"].index_select(1, rows)

    def keys(self) -> Tensor:
        return self.given["keys"]


def test_visiondrop_equals_reference(vectors: Any) -> None:
    """Score, dominant tokens and merged ones, which are at their targets' rows here."""
    for case in vectors("visiondrop"):
        start, count = int(case["param_image_start"]), int(case["param_image_tokens"])
        hidden = torch.from_numpy(case["in_hidden_states"])
        none: Any = None
        look = Given(none, hidden, none, none, torch.arange(start, start + count), none)
        Given.given = {
            name: torch.from_numpy(case[f"in_{name}_roped"]) for name in ("queries", "keys")
        }
        score = look.attention(look.visual).mean((0, 1))[look.visual]
        np.testing.assert_allclose(score, case["out_score"], rtol=0, atol=1e-6)
        dominant, contextual = int(case["param_dominant"]), int(case["param_contextual"])
        kept = dominant + contextual
        method = visiondrop.DecoderMethod(contextual=(contextual + 0.5) / kept)
        tokens, places = method(look, hidden, kept)
        stays = np.isin(places, case["out_dominant_indices_sorted"])
        assert stays.sum() == dominant
        found = torch.cat([tokens[0, stays], tokens[0, ~stays]])
        bound = 1e-4 * np.abs(case["out_visual_tokens"]).max()
        np.testing.assert_allclose(found, case["out_visual_tokens"], rtol=0, atol=bound)


def test_holitom_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """The rows that stay, each with what was folded into it; ONNX Runtime too."""
    for case in vectors("holitom_inllm"):
        start, count = int(case["param_image_start"]), int(case["param_image_len"])
        kept = round(count * (1 - float(case["param_r"])))
        hidden = torch.from_numpy(case["in_hidden_states"])
        weights = torch.from_numpy(case["in_last_token_attention"])[0].mean(0)

        def run(
            hidden: Tensor, weights: Tensor, rows: slice = slice(start, start + count),
            kept: int = kept,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            chosen = best(weights[rows], kept)
            return fold(hidden[:, rows], chosen), chosen

        expected = case["out_hidden_states"][0, start : start + kept]
        wanted = case["out_keep_indices"][start : start + kept] - start
        bound = 1e-4 * np.abs(expected).max()
        for tokens, chosen in (
            run(hidden, weights),
            engine(trace(run, hidden, weights))(hidden, weights),
        ):
            np.testing.assert_array_equal(chosen, wanted)
            np.testing.assert_allclose(np.asarray(tokens)[0], expected, rtol=0, atol=bound)


def test_plans() -> None:
    """Visual tokens that each of eight layers sees."""
    assert fastv.DecoderMethod().plan(64, 8) == (64, 64, *[32] * 6)
    assert fastv.DecoderMethod(tokens=9, layer=7).plan(64, 8) == (*[64] * 7, 9)
    assert pyramiddrop.DecoderMethod().plan(64, 8) == (64, 64, 32, 32, 16, 16, 8, 8)
    assert pyramiddrop.DecoderMethod(layers="3+5").plan(64, 8) == (64, 64, 64, 32, 32, 16, 16, 16)
    assert schedule.DecoderMethod(stages="6x64+2x4").plan(64, 8) == (*[64] * 6, 4, 4)
    assert dyvte.DecoderMethod().plan(64, 8) == (*[64] * 7, 0)
    assert holitom.DecoderMethod().plan(64, 8) == (*[64] * 5, 32, 32, 32)
    assert mustdrop.DecoderMethod().plan(64, 32) == (
        *[64] * 2,
        *[32] * 4,
        *[16] * 4,
        *[8] * 4,
        *[4] * 18,
    )
    assert mustdrop.DecoderMethod(tokens="9+3", layers="1+4").plan(64, 5) == (64, 9, 9, 9, 3)
    assert visiondrop.DecoderMethod().plan(48, 8) == (48, 48, 35, 35, 26, 26, 19, 19)
    assert visiondrop.DecoderMethod(tokens="20+9", layers="2+3").plan(64, 5) == (64, 64, 20, 9, 9)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            fastv.DecoderMethod(layer=0),
            r"^fastv: got layers \[0\], expected ascending numbers from",
        ),
        (
            fastv.DecoderMethod(layer=4),
            r"^fastv: got layers \[4\], expected ascending numbers from",
        ),
        (fastv.DecoderMethod(tokens=65), "^fastv: got 65 tokens from layer 2 on, expected 0 to 64"),
        (pyramiddrop.DecoderMethod(layers="3+2"), r"^pyramiddrop: got layers \[3, 2\], expected"),
        (
            mustdrop.DecoderMethod(tokens="9+3", layers=1),
            "^mustdrop: got tokens for 2 stages and 1 ",
        ),
        (schedule.DecoderMethod(stages="2x64"), "^schedule: got stages of 2 layers, expected 4"),
        (schedule.DecoderMethod(stages="4x8"), "^schedule: the first stage has 8 tokens, expected"),
        (schedule.DecoderMethod(stages="1x64+1x8+2x9"), "^schedule: got 9 tokens from layer 2 on"),
    ],
)
def test_impossible_plans(method: Any, message: str) -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=message):
        method.plan(64, 4)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (pyramiddrop.DecoderMethod, {"layers": "2,3"}, "^layers of pyramiddrop are numbers with"),
        (schedule.DecoderMethod, {"stages": "8"}, "^stages look like 8x64"),
        (
            visiondrop.DecoderMethod,
            {"contextual": 1},
            "^contextual is a share, 0 to below 1, got 1",
        ),
    ],
)
def test_wrong_options(make: Any, options: dict[str, Any], message: str) -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_mustdrop_keeps_what_one_word_looks_at_much_or_all_a_little() -> None:
    """Rows that are no words of the question have no say."""
    weights = torch.tensor(
        [[0.9, 0.0, 0.0, 0.0], [0.0, 0.1, 0.02, 0.0], [0.0, 0.1, 0.02, 0.3], [0.9, 0.0, 0.0, 0.0]]
    )
    found = mustdrop.looked_at(weights, torch.tensor([False, True, True, False]))
    np.testing.assert_allclose(found, [0.0, 0.2 / 0.54, 0.04 / 0.54, 0.3 / 0.54])
    assert best(found, 2).tolist() == [1, 3]


def test_the_layer_type_is_the_families() -> None:
    """`Look` uses what every decoder layer has."""
    assert {"heads", "kv_heads"} <= set(DecoderLayer.__init__.__code__.co_varnames)


def test_aim_importance_equals_reference(vectors: Any) -> None:
    """PageRank over a layer's attention, and the visual tokens that stay."""
    for case in vectors("aim_importance"):
        logits = torch.from_numpy(case["in_attn_logits"])[0]
        total = logits.shape[1]
        found = aim.importance(logits, torch.ones(total))
        expected = case["out_importance"][0]
        start, count = int(case["param_visual_start"]), int(case["param_visual_len"])
        visual = slice(start, start + count)
        bound = 1e-4 * expected[visual].max()
        np.testing.assert_allclose(found[visual], expected[visual], rtol=0, atol=bound)
        mask = case["out_keep_mask"][0]
        kept = best(found[visual], int(mask[visual].sum()))
        np.testing.assert_array_equal(kept, np.flatnonzero(mask[visual]))


def test_sparsevlm_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """Raters, scores, what stays, and the clusters; ONNX Runtime too."""
    for case in vectors("sparsevlm"):
        start, count = int(case["param_v_token_start"]), int(case["param_v_token_num"])
        hidden = torch.from_numpy(case["in_hidden_states"])[0]
        rows = torch.arange(hidden.shape[0])
        raters = sparsevlm.rate(hidden[start : start + count], hidden, rows >= start + count)
        found = np.flatnonzero(raters) - start - count
        np.testing.assert_array_equal(found, np.sort(case["out_text_rater_indices"]))
        weights = torch.from_numpy(case["in_text_to_visual_attention"])[0].mean(0)
        scores = weights[found].mean(0)
        np.testing.assert_allclose(scores, case["out_score"][0], rtol=0, atol=1e-6)
        tokens = torch.from_numpy(case["in_layer_outputs"])[:, start : start + count]
        kept = int(case["out_keep_mask"].sum())

        def run(tokens: Tensor, scores: Tensor, kept: int = kept) -> tuple[Tensor, Tensor]:
            return sparsevlm.recycle(tokens, scores, kept)

        assert sparsevlm.clusters(count - kept)[1] == int(case["out_cluster_num"])
        stays = np.flatnonzero(case["out_keep_mask"][0])
        bound = 1e-4 * np.abs(case["out_cluster_tokens"]).max()
        for made, places in (
            run(tokens, scores),
            engine(trace(run, tokens, scores))(tokens, scores),
        ):
            made, places = np.asarray(made)[0], np.asarray(places)
            own = np.isin(places, stays)
            np.testing.assert_array_equal(places[own], stays)
            np.testing.assert_array_equal(made[own], tokens[0, stays].numpy())
            ours = made[~own][np.lexsort(made[~own].T)]
            theirs = case["out_cluster_tokens"][0]
            theirs = theirs[np.lexsort(theirs.T)]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)
