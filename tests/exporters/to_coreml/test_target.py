"""Core ML packages: what coremltools would get wrong, shared weights, equal bytes, parity."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")
pytest.importorskip("onnxscript")

from coremltools.converters.mil.frontend.torch.torch_op_registry import (  # noqa: E402
    _TORCH_OPS_REGISTRY,
)
from coremltools.converters.mil.mil.passes.defs.quantization import (  # noqa: E402
    FP16ComputePrecision,
)
from torch import nn  # noqa: E402

from edgevlm import pipeline  # noqa: E402
from edgevlm.bundle.functions import Block, Function, Tensor  # noqa: E402
from edgevlm.exporters.contract import TargetOptions  # noqa: E402
from edgevlm.exporters.to_coreml import target as to_coreml  # noqa: E402
from edgevlm.exporters.to_coreml.operators import overflows_float16, translations  # noqa: E402
from edgevlm.graphs.trace import trace, weights  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.pipeline import export  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402


@pytest.fixture
def evaluate(saved: Any) -> Any:
    """A module as a saved package, run by the engine."""
    return partial(saved, "coreml", "coreml-reference")


X = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)) * 3
TRANSLATED = {
    # coremltools reads the word by its place only, and torch.export gives it by name.
    "gelu by tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu": nn.functional.gelu,
    "rms_norm": lambda x: nn.functional.rms_norm(x, (8,), torch.arange(8.0), 1e-6),
    "and, or of bools": lambda x: (((x > 0) & (x < 1)) | (x > 2)).float(),
    "where with a number": lambda x: torch.where(x > 0, x, -1.0),
    "where of whole numbers": lambda x: torch.where(torch.full((8,), -1) < 0, 7, 3).float() + x,
    "whole parts": lambda x: x[0].index_select(0, torch.arange(9) * 2 // 5),
    "zeros of bools": lambda x: torch.where(torch.zeros(8, dtype=torch.bool) | (x > 0), x, 0.0),
    "a matrix and a vector": lambda x: (x[0] @ x[0, 0]) + (x[0, 0] @ x[0].T),
    "index_select of bools": lambda x: (x[0] > 0).index_select(0, torch.tensor([2, 0])).float(),
    "where with two numbers": lambda x: torch.where(x > 0, 2.0, -1.0) + x,
    "rotary": lambda x: torch.ops.edgevlm.rotary(
        x, x[..., :4].cos().repeat(1, 1, 1), x[..., :4].sin(), 2
    ),
    "attention": lambda x: torch.ops.edgevlm.attention(x, x * 2, x + 1, 2),
    "attention in windows": lambda x: torch.ops.edgevlm.attention(
        torch.cat((x, x * 3)), torch.cat((x * 2, x)), torch.cat((x + 1, x)), 2
    ),
    "attention with a bias": lambda x: torch.ops.edgevlm.attention(
        x, x * 2, x + 1, 2, x[:, None, :1, :5]
    ),
}


@pytest.mark.parametrize("name", TRANSLATED)
def test_translations(name, evaluate, calls, tmp_path):
    module = calls(TRANSLATED[name])
    (found,) = evaluate(module, tmp_path, X)
    expected = module(X)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


def test_an_output_that_is_an_input_has_its_own_name(evaluate, calls, tmp_path):
    (found,) = evaluate(calls(lambda x: x), tmp_path, X)
    np.testing.assert_array_equal(found, X)


@pytest.mark.parametrize("value", [1.0, 65504.0, 65505.0, 7e4, 2e38, -7e4, float("inf")])
def test_what_overflows_float16_is_what_coremltools_says(value):
    """The same answers as the text of its own function, without the list of places."""
    sizes = np.abs(np.expand_dims(np.asarray([1.0, value], np.float32), 0))
    theirs = np.max(sizes[np.where(sizes < 1e38)], initial=0.0) > 65504
    made = SimpleNamespace(op_type="const", val=SimpleNamespace(val=np.asarray([1.0, value])))
    var = SimpleNamespace(op=made, is_tensor_or_scalar_of=lambda dtype: dtype == "fp32")
    for inputs in ({"x": var}, {"x": [var]}):
        operation = SimpleNamespace(inputs=inputs)
        assert overflows_float16(operation) == theirs
    assert not overflows_float16(SimpleNamespace(inputs={"x": SimpleNamespace(op=None)}))


def test_coremltools_is_afterwards_as_it_was(tmp_path):
    def state():
        return dict(_TORCH_OPS_REGISTRY.name_to_func_mapping), vars(FP16ComputePrecision).get(
            "fp16_overflow"
        )

    before = state()
    assert not any("edgevlm" in name for name in before[0])
    with translations():
        assert state()[0]["edgevlm::rotary"] is not None
        assert state()[1] is not before[1]
    assert state() == before
    rows = Tensor("x0", "f32", (1, 4)), Tensor("y0", "f32", (1, 4))
    function = Function("run", rows[:1], rows[1:], 0)
    block, module = Block("test-0", "test", (0, 1), 0, (function,)), nn.Linear(4, 4).eval()
    lowered = to_coreml.lower({"run": trace(module, function, block)}, block, TargetOptions("none"))
    to_coreml.write(lowered, block, weights(module), tmp_path, None)
    assert state() == before


def test_weights_of_another_block_leave_the_traced_ones_as_they_were(tmp_path):
    first, second = nn.Linear(4, 4).eval(), nn.Linear(4, 4).eval()
    before = first.weight.detach().clone()
    rows = Tensor("x0", "f32", (1, 4)), Tensor("y0", "f32", (1, 4))
    function = Function("run", rows[:1], rows[1:], 0)
    block = Block("test-0", "test", (0, 1), 0, (function,))
    lowered = to_coreml.lower({"run": trace(first, function, block)}, block, TargetOptions("none"))
    to_coreml.write(lowered, block, weights(second), tmp_path, None)
    assert torch.equal(first.weight, before)


@pytest.mark.parametrize("groups", [1, 2])
def test_attention_with_a_cache(groups, evaluate, calls, tmp_path):
    """Rows are written at the position, and each query sees its own group up to itself."""
    generator = torch.Generator().manual_seed(1)
    heads, size, rows, total = 4, 4, 3, 9

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.where(torch.arange(total) > torch.arange(4, 7)[:, None], -1e4, 0.0)[None, None]
    inputs = (
        random(1, rows, heads * size),
        random(1, rows, groups * size),
        random(1, rows, groups * size),
        random(1, groups, total, size),
        random(1, groups, total, size),
        mask,
        torch.tensor([4], dtype=torch.int32),
        random(1, 1, 1, total),
    )
    module = calls(lambda *x: torch.ops.edgevlm.attention_kv(*x[:7], heads, x[7]))
    for found, expected in zip(evaluate(module, tmp_path, *inputs), module(*inputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_each_methods_reduce(method, reduction, evaluate, tmp_path):
    """The choice of tokens in the saved program is PyTorch's."""
    module, inputs = reduction("coreml", method)
    tokens, kept = module(*inputs)
    found = evaluate(module, tmp_path, *inputs)
    np.testing.assert_array_equal(found[1], kept)
    bound = 2e-6 * float(tokens.abs().max())
    np.testing.assert_allclose(found[0], tokens, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("scheme", "least_db", "most_bytes"),
    [("fp16", 55, 0.51), ("w8a16", 40, 0.27), ("p6", 30, 0.21), ("w4g32a16", 20, 0.17),
     ("p4", 20, 0.15)],
)  # fmt: skip
def test_schemes(scheme, least_db, most_bytes, evaluate, tmp_path):
    """A matrix of 128 x 128 in few bits, read back from the file."""
    torch.manual_seed(0)
    module = nn.Linear(128, 128).requires_grad_(False)
    x = torch.randn(1, 7, 128)
    (found,) = evaluate(module, tmp_path, x, scheme=scheme)
    _, psnr_db = difference(found, module(x).numpy())
    assert psnr_db >= least_db
    (file,) = tmp_path.glob("*.mlpackage/Data/com.apple.CoreML/weights/weight.bin")
    assert file.stat().st_size <= most_bytes * 4 * (128 * 128 + 128)


@pytest.mark.parametrize("scheme", ["w4g32a16", "p4"])
def test_constants_that_are_no_weights_keep_their_bits(scheme, evaluate, calls, tmp_path):
    """A mask or a table of positions, as large as a matrix, is float16."""
    table = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(1))
    module = calls(lambda x: x * table + table)
    (found,) = evaluate(module, tmp_path, x, scheme=scheme)
    _, psnr_db = difference(found, module(x).numpy())
    assert psnr_db >= 60


CASES = {
    "smolvlm": ("tiny-smolvlm", "none", ("fastervlm",)),
    "llava_onevision, inside the decoder": ("tiny-llava-onevision", "none", ("fastv:layer=1",)),
    "llava_next, inside the encoder": ("tiny-llava-next", "none", ("tome@vision:r=4",)),
    "fp16": ("tiny-smolvlm", "fp16", ("average_pool",)),
    "w8a16": ("tiny-llava-onevision", "w8a16", ("strided",)),
    "palettes": ("tiny-llava-onevision", "p4,vision=p6", ("strided",)),
    # With a signal of the encoder.
    "each stage its own": ("tiny-smolvlm", "fp16,decoder=w4g32a16,head=w8a16", ("fastervlm",)),
}


QUICK = ("llava_onevision, inside the decoder", "each stage its own")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_a_bundle_agrees_with_pytorch(case, preset, tmp_path):
    model, scheme, methods = CASES[case]
    recipe = Recipe(
        model=str(preset(model)), target="coreml", tokens=16, methods=methods, quantize=scheme
    )
    done = export(recipe, tmp_path / "tiny.edgevlm")
    assert done.verification.ok
    assert done.verification.engine == "coreml-reference"
    if scheme == "none":
        assert max(block.rel_error for block in done.verification.blocks) <= 1e-3
        assert done.verification.tokens_equal >= 0.9  # its cache is float16
    assert done.bundle.plan.host.states.form == "states"


def test_functions_share_weights_and_the_same_recipe_gives_the_same_bytes(
    coreml_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline, "runs_here", lambda recipe: False)  # the same bytes run alike
    again = export(coreml_bundle.plan.recipe, tmp_path / "again.edgevlm").bundle
    files = [
        {f.path: f.sha256 for f in bundle.plan.files if f.path.startswith("blocks")}
        for bundle in (coreml_bundle, again)
    ]
    assert files[0] == files[1]
    plan = coreml_bundle.plan
    (block,) = plan.stage("decoder")
    path = "blocks/decoder/decoder-0.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    entry = next(f for f in plan.files if f.path == path)
    assert entry.bytes <= 1.02 * block.weights_bytes

    from coremltools.proto import Model_pb2

    content = (coreml_bundle.path / path).parents[1] / "model.mlmodel"
    about = Model_pb2.Model.FromString(content.read_bytes()).description
    assert dict(about.metadata.userDefined) == {
        "edgevlm.block": "decoder-0", "edgevlm.stage": "decoder", "edgevlm.scheme": "none"
    }  # fmt: skip
    assert [f.name for f in about.functions] == ["prefill", "decode"]
    for function in about.functions:
        features = (*function.input, *function.output, *function.state)
        assert len(features) == 6 + 2 * len(plan.host.states.layers)
        assert all(feature.shortDescription for feature in features)
