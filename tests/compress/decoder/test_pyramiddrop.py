"""PyramidDrop against the reference, its plans and refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgevlm.compress.decoder.pyramiddrop import Method
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import DecoderLayer
from edgevlm.graphs.pruning import Look, PrunedDecoderBlock, Pruning


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
    layer: Any = SimpleNamespace(self_attn=attn, input_layernorm=norm)
    size = width // heads
    angles = torch.arange(hidden.shape[1])[:, None] * 10000 ** -(torch.arange(0, size, 2) / size)
    angles = torch.cat([angles, angles], 1)[None]
    start, initial = int(case["param_image_start"]), int(case["param_image_tokens_initial"])
    visual = torch.arange(start, start + int(initial * 0.5 ** int(case["param_stage"])))
    last = torch.tensor([hidden.shape[1] - 1])
    return Look(DecoderLayer(layer, heads, heads), hidden, angles.cos(), angles.sin(), visual, last)


@torch.no_grad()
def test_equals_reference(vectors: Any) -> None:
    """Queries and keys of the next layer, the score, and the rows that stay, numbered anew."""
    for case in vectors("pyramiddrop"):
        look = look_at(case)
        close = {"rtol": 0, "atol": 1e-5}
        np.testing.assert_allclose(look.queries(look.last), case["out_last_query_roped"], **close)
        np.testing.assert_allclose(look.keys(), case["out_keys_roped"], **close)
        np.testing.assert_allclose(look.last_to_visual(), case["out_score"], **close)
        kept = len(case["out_keep_indices"])
        pruning = Pruning(Method(), (len(look.visual), kept), 64, (1.0,))
        block = PrunedDecoderBlock([], None, 0, pruning)
        out, cos, _, rows, last = block._prune(look, look.hidden, kept)
        np.testing.assert_array_equal(out, case["out_hidden_states"])
        np.testing.assert_array_equal(
            look.visual[Method()(look, out, kept)[1]], case["out_keep_indices"]
        )
        assert torch.equal(cos, look.cos[:, : out.shape[1]])  # positions 0, 1, 2, …
        assert torch.equal(out[0, rows], look.hidden[0, case["out_keep_indices"]])
        assert int(last) == out.shape[1] - 1


def test_plans() -> None:
    """Visual tokens that each of eight layers sees."""
    assert Method().plan(64, 8) == (64, 64, 32, 32, 16, 16, 8, 8)
    assert Method(layers="3+5").plan(64, 8) == (64, 64, 64, 32, 32, 16, 16, 16)


def test_refusals() -> None:
    """Layers that do not ascend, and a list of another form."""
    with pytest.raises(PlanError, match=r"^pyramiddrop: got layers \[3, 2\], expected"):
        Method(layers="3+2").plan(64, 4)
    with pytest.raises(ValueError, match=r"^layers of pyramiddrop are numbers with"):
        Method(layers="2,3")


def test_the_fake_layer_has_what_every_layer_has() -> None:
    """`Look` uses the heads of a layer."""
    assert {"heads", "kv_heads"} <= set(DecoderLayer.__init__.__code__.co_varnames)
