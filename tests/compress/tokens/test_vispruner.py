"""VisPruner against its reference, by hand, and over tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgevlm.compress.tokens.vispruner import Method, select
from edgevlm.graphs.visual_shape import VisualShape


def directions(*degrees: float) -> torch.Tensor:
    """Unit vectors f32 [n, 2]."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_by_hand() -> None:
    """Token 3 is the important one; the rest by attention is 0, 1, 2, 4.

    Even places hold 0 and 2, odd ones 1 and 4. Token 2 is 5 degrees from token 4 and goes; then the
    list is 0, 1, 4, token 0 is 20 degrees from 1, token 4 is 70 degrees from it: 0 goes.
    """
    features = directions(0, 20, 85, 200, 90)
    attention = torch.tensor([0.25, 0.2, 0.15, 0.3, 0.1])
    first, rest = select(features, attention, 3, 1, 1)
    assert first.tolist() == [3]
    assert rest.tolist() == [4, 1]
    method = Method(tokens=3, important_ratio=0.4, r=1)
    shape = VisualShape(((1, 5),), 2)
    lengths = torch.arange(10.0).reshape(1, 5, 2)  # what stays is not what is compared
    kept, positions = method(
        lengths, cls_attention=attention[None], hidden=features[None], shape=shape
    )
    assert positions.tolist() == [[1, 3, 4]]
    assert torch.equal(kept, lengths[:, [1, 3, 4]])


def test_equals_reference(vectors: Any) -> None:
    """Same tokens in the same order, important and diverse; the score is the mean of the heads."""
    for case in vectors("vispruner"):
        count, ratio = int(case["param_K"]), float(case["param_important_ratio"])
        for row, features in enumerate(torch.from_numpy(case["in_features"])):
            attention = torch.from_numpy(case["in_cls_attention"][row]).mean(0)
            first, rest = select(features, attention, count, int(count * ratio), 8)
            assert first.tolist() == case["out_important_indices"][row].tolist()
            assert rest.tolist() == case["out_diverse_indices"][row].tolist()
            kept, positions = Method(tokens=count, important_ratio=ratio)(
                features[None],
                cls_attention=attention[None],
                hidden=features[None],
                shape=VisualShape(((1, len(features)),), features.shape[1]),
            )
            assert torch.equal(kept[0], torch.from_numpy(case["out_tokens"][row]))
            assert positions[0].tolist() == case["out_mask"][row].nonzero()[0].tolist()


def test_onnx_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """ONNX Runtime makes the same picks, over 22 rounds."""
    case = list(vectors("vispruner"))[1]
    features = torch.from_numpy(case["in_features"])
    attention = torch.from_numpy(case["in_cls_attention"]).mean(1)
    method = Method(tokens=int(case["param_K"]))

    def call(features: torch.Tensor, attention: torch.Tensor) -> Any:
        return method(features, cls_attention=attention, hidden=features)

    _, positions = engine(trace(call, features, attention))(features, attention)
    assert positions[0].tolist() == case["out_mask"][0].nonzero()[0].tolist()


def test_copies_do_not_flip(trace: Any, engine: Any) -> None:
    """A still video of 3 frames: cosines come in copies, and the engines still agree."""
    frame = torch.randn(1, 25, 32, generator=torch.Generator().manual_seed(0))
    features = frame.repeat(1, 3, 1)
    attention = torch.linspace(0, 1, 25).repeat(1, 3)
    shape = VisualShape(((5, 15),), 32)

    def call(features: torch.Tensor, attention: torch.Tensor) -> Any:
        method = Method(tokens=20)
        return method(features, cls_attention=attention, hidden=features, shape=shape)

    _, positions = call(features, attention)
    _, in_onnx = engine(trace(call, features, attention))(features, attention)
    assert in_onnx.tolist() == positions.tolist()


def test_a_round_is_a_few_nodes(trace: Any) -> None:
    """One round of 8 more makes the graph larger by as many nodes as the docstring says."""
    features, attention = torch.zeros(64, 8), torch.zeros(64)
    sizes = []
    for kept in (16, 8):

        def call(x: torch.Tensor, a: torch.Tensor, kept: int = kept) -> Any:
            return select(x, a, kept, 0, 8)

        nodes = trace(call, features, attention).graph.nodes
        sizes.append(sum(node.op == "call_function" for node in nodes))
    assert sizes[1] - sizes[0] == 21


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_one_kind_only(ratio: float) -> None:
    """All by attention is FasterVLM; none is still K tokens of each tile's share."""
    features = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0))
    attention = torch.linspace(0, 1, 12)[None]
    shape = VisualShape(((2, 4), (2, 2)), 8)
    method = Method(tokens=3, important_ratio=ratio)
    _, positions = method(features, cls_attention=attention, hidden=features, shape=shape)
    assert [int(p) >= 8 for p in positions[0]] == [False, False, True]
    if ratio:
        assert positions.tolist() == [[6, 7, 11]]


def test_wrong_options() -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=r"important_ratio is a share .* 0 to 1, got 1.5"):
        Method(tokens=4, important_ratio=1.5)
    with pytest.raises(ValueError, match=r"r is the most tokens .* at least 1, got 0"):
        Method(tokens=4, r=0)
