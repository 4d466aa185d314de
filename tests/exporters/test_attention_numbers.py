"""Attention with a cache in every target: its numbers, and masks that show later rows."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

HEADS, SIZE, ROWS, TOTAL, AT = 4, 8, 3, 11, 5
ENGINES = {
    "onnx": ("onnxruntime", "onnxscript"),
    "coreml": ("coreml-reference", "coremltools"),
    "executorch": ("executorch", "executorch"),
    "openvino": ("openvino", "edgevlm.exporters.to_openvino.library"),
}
CAUSAL = torch.arange(TOTAL) > torch.arange(AT, AT + ROWS)[:, None]
# The first two of the new rows see each other.
PAIR = CAUSAL & ~((torch.arange(TOTAL) == AT + 1) & (torch.arange(ROWS)[:, None] == 0))
NUMBERS = {
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "window": {"window": 4},
    "a window of the cache": {"window": TOTAL},
    "all": {"scale": 0.3, "softcap": 2.0, "window": 4},
    "both ways": {"causal": False},
    "both ways, all": {"causal": False, "scale": 0.3, "softcap": 2.0, "window": 4},
}


def inputs(hidden):
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return 2 * torch.randn(shape, generator=generator)

    mask = torch.where(hidden, -1e4, 0.0)[None, None]
    new = [random(1, ROWS, n * SIZE) for n in (HEADS, 2, 2)]
    at = torch.tensor([AT], dtype=torch.int32)
    return (*new, mask, at, random(1, 2, TOTAL, SIZE), random(1, 2, TOTAL, SIZE))


CASES = [
    pytest.param(target, name, bias, marks=() if "all" in name and bias else pytest.mark.slow)
    for target in ENGINES
    for name in NUMBERS
    for bias in (False, True)
]


@pytest.mark.parametrize(("target", "name", "bias"), CASES)
def test_equals_pytorch(target, name, bias, saved, calls, tmp_path):
    engine, library = ENGINES[target]
    pytest.importorskip(library)
    numbers = NUMBERS[name]
    added = torch.linspace(-1, 1, TOTAL)[None, None, None] if bias else None
    module = calls(
        lambda q, k, v, mask, position, keys, values: torch.ops.edgevlm.attention_kv(
            q, k, v, keys, values, mask, position, HEADS, added, **numbers
        )
    )
    given = inputs(CAUSAL if numbers.get("causal", True) else PAIR)
    names = None if target == "coreml" else {5: "past_key_0", 6: "past_value_0"}
    found = saved(target, engine, module, tmp_path, *given, names=names)
    for mine, expected in zip(found, module(*given), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=4e-6)
