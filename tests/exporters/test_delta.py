"""The gated delta rule and rotation of a part of a head, as files of each target, run."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevlm.graphs.recurrent.delta import GatedDelta  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402

SLOW = pytest.mark.slow
ENGINES = {
    "onnx": "onnxruntime",
    "executorch": "executorch",
    "coreml": "coreml-reference",
    "openvino": "openvino",
}
NEEDS = {
    "onnx": "onnxscript",
    "executorch": "executorch",
    "coreml": "coremltools",
    "openvino": "edgevlm.exporters.to_openvino.library",
}
TARGETS = ["onnx", *(pytest.param(t, marks=SLOW) for t in ("executorch", "coreml", "openvino"))]


@pytest.fixture(scope="module")
def mixer():
    """transformers' module with seeded weights, two value heads to a key head, and ours over it."""
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    config = transformers.AutoConfig.for_model(
        "qwen3_5_text", hidden_size=48, num_hidden_layers=1, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=24,
    )  # fmt: skip
    torch.manual_seed(0)
    return GatedDelta(Qwen3_5GatedDeltaNet(config, 0).eval()).requires_grad_(False)


@pytest.mark.parametrize("rows", [1, 16, 150])
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_computes_the_delta_rule(saved, calls, mixer, tmp_path, target, rows):
    pytest.importorskip(NEEDS[target])
    generator = torch.Generator().manual_seed(1)
    shapes = (1, rows, 48), (1, 3, 160), (1, 4, 16, 24)
    given = [torch.randn(shape, generator=generator) for shape in shapes]
    given.append(torch.tensor([max(1, rows - 5)], dtype=torch.int32))
    module, given = calls(mixer), given[: 3 if rows == 1 else 4]
    found = saved(target, ENGINES[target], module, tmp_path, *given)
    expected = module(*given)
    for ours, theirs in zip(found, expected, strict=True):
        assert difference(torch.from_numpy(np.asarray(ours)), theirs)[0] <= 1e-5


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_turns_a_part_of_a_head(saved, calls, tmp_path, target):
    pytest.importorskip(NEEDS[target])
    generator = torch.Generator().manual_seed(0)
    x, angles = (torch.randn(1, 5, n, generator=generator) for n in (48, 4))
    tables = torch.cat((angles, angles), -1)
    module = calls(lambda x, angles: torch.ops.edgevlm.rotary(x, angles.cos(), angles.sin(), 2))
    (found,) = saved(target, ENGINES[target], module, tmp_path, x, tables)
    assert difference(torch.from_numpy(np.asarray(found)), module(x, tables))[0] <= 1e-6
