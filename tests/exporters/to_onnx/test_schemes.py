"""ONNX with weights of few bits: products, parity, sizes, one copy of the table, refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from edgevlm.bundle.functions import Block, Function, Tensor  # noqa: E402
from edgevlm.bundle.packed import PACKINGS, Packing, pack, unpack  # noqa: E402
from edgevlm.errors import RecipeError  # noqa: E402
from edgevlm.exporters.contract import TargetOptions, find_target  # noqa: E402
from edgevlm.exporters.to_onnx.linear import FORMATS  # noqa: E402
from edgevlm.exporters.to_onnx.target import lower, write  # noqa: E402
from edgevlm.graphs.trace import trace, weights  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.quantization.schemes import threshold  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.loading import load_loop  # noqa: E402
from edgevlm.runtimes.loops.tables import load_table  # noqa: E402

PRODUCTS = {"Cast", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits"}
SMALL = {"fp": 0.51, "w8": 0.30, "w4": 0.18}  # of float32, embedding and head included
LEAST_DB = {
    "fp16": 55.0,
    "w8a32": 40.0,
    "w8a8": 30.0,
    "w8a8s": 30.0,
    "w4g32a32": 20.0,
    "w4g32a8": 20.0,
}


@pytest.mark.parametrize("scheme", FORMATS)
@pytest.mark.parametrize("columns", [64, 80])
def test_a_product_is_that_of_the_rounded_matrix(scheme, columns, tmp_path):
    """Also where the columns are no whole runs, and with a bias."""
    module = nn.Linear(columns, 48).eval()
    x = torch.randn(1, 7, columns, generator=torch.Generator().manual_seed(0))
    given, made = Tensor("x", "f32", (1, 7, columns)), Tensor("y", "f32", (1, 7, 48))
    function = Function("run", (given,), (made,), 0)
    block = Block("test-0", "test", (0, 1), 0, (function,))
    lowered = lower({"run": trace(module, function, block)}, block, TargetOptions(scheme))
    tensors = weights(module) | {"weight.top": x.abs().max()}
    (written,) = write(lowered, block, tensors, tmp_path, None)
    (found,) = onnxruntime.InferenceSession(tmp_path / written.file).run(None, {"x": x.numpy()})
    packing = (
        Packing(8, columns) if scheme in ("w8a8", "w8a8s") else PACKINGS[FORMATS[scheme].packing]
    )
    rounded = unpack(*pack(module.weight.detach().numpy(), packing), packing, columns)
    expected = x.numpy() @ rounded.T + module.bias.detach().numpy()
    rel_error, _ = difference(found, expected)
    assert rel_error <= (1e-6 if scheme.endswith(("a32", "fp16")) else 0.02)


@pytest.mark.parametrize(
    ("model", "scheme"),
    [  # each scheme once; the rest is slow, and so are float32 rows, packed as those of 8 bits are
        pytest.param(
            model,
            scheme,
            marks=() if i == j % 2 and not scheme.endswith("a32") else pytest.mark.slow,
        )
        for i, model in enumerate(("tiny-smolvlm", "tiny-llava-onevision"))
        for j, scheme in enumerate(FORMATS)
    ],
)
def test_a_bundle_agrees_with_pytorch_and_is_small(model, scheme, preset, lowered_once, tmp_path):
    """Every linear layer is packed; embedding and head are one table that the host can read."""
    recipe = Recipe(model=str(preset(model)), tokens=16, methods=("strided",), quantize=scheme)
    recipe = replace(recipe, block_size_bytes=200_000)
    recipe = replace(recipe, calibrate="2" if scheme == "w8a8s" else None)
    done = lowered_once(recipe, tmp_path / "tiny.edgevlm")
    bundle, embedding = done.bundle, done.bundle.plan.host.embedding
    assert threshold(scheme).psnr_db == LEAST_DB[scheme]
    for block in done.verification.blocks:
        stage = block.name.rpartition("-")[0]
        assert stage == "reduce" or block.psnr_db >= LEAST_DB[scheme]
    for block in bundle.plan.blocks:
        for function, path in bundle.files_of(block).items():
            graph = onnx.load(path, load_external_data=False).graph
            stored = {tensor.name for tensor in graph.initializer}
            plain = [n for n in graph.node if n.op_type in ("Gemm", "MatMul")]
            assert block.stage == "reduce" or not any(stored & {*n.input} for n in plain), function
            kinds = {n.op_type for n in graph.node}
            packed = kinds & PRODUCTS
            assert packed or block.stage not in ("decoder", "head")

    files = {f.path: f.bytes for f in bundle.plan.files}
    kept = [path for path in files if path.endswith((".weights", "table.bin"))]
    size = sum(files[path] for path in kept if "vision" not in path)
    exact = make_plan(replace(recipe, quantize="none", calibrate=None), find(recipe.model)).plan
    layers = sum(b.weights_bytes for b in exact.stage("decoder"))
    assert size <= SMALL[scheme[:2]] * (layers + exact.host.embedding.bytes)
    planned = make_plan(recipe, find(recipe.model))
    said = planned.plan.weights_bytes  # the files begin each weight at a multiple of 64
    assert said <= sum(files[path] for path in kept) <= 1.05 * said + 2000
    assert [b.span for b in planned.plan.blocks] == [b.span for b in exact.blocks]
    matrix = torch.cat(planned.parts(find(recipe.model).load_model()).table).numpy()
    packing = PACKINGS[embedding.dtype]
    table = load_table(bundle, bundle.plan.host.embedding)
    rounded = unpack(*pack(matrix, packing), packing, embedding.columns)
    assert np.array_equal(table[:], rounded)
    assert np.array_equal(table[7], rounded[7])
    assert files[embedding.file] == embedding.bytes
    assert load_loop(bundle.path).ask("Hello", max_new_tokens=4).token_ids


def test_each_head_block_reads_its_rows_of_the_table(tiny_model, lowered_once, tmp_path):
    recipe = Recipe(model=tiny_model, tokens=16, methods=("strided",), quantize="head=w4g32a8")
    recipe = replace(recipe, block_size_bytes=140_000)
    bundle = lowered_once(recipe, tmp_path / "t.edgevlm").bundle
    embedding, seen = bundle.plan.host.embedding, []
    assert embedding.dtype == "w4g32"
    for block in bundle.plan.stage("head"):
        (path,) = bundle.files_of(block).values()
        graph = onnx.load(path, load_external_data=False).graph
        outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        places = [{e.key: e.value for e in t.external_data} for t in outside]
        assert {place["location"] for place in places} == {"table.bin"}
        offsets = sorted(int(place["offset"]) for place in places)
        assert tuple(offsets) == embedding.row_offset(block.span[0])
        seen.append(sum(int(place["length"]) for place in places))
        assert all(
            int(place["length"]) == math.prod(t.dims) * (4 if "scales" in t.name else 1)
            for t, place in zip(outside, places, strict=True)
        )
    assert len(seen) > 1
    rows = bundle.plan.stage("head")[-1].span[1]
    assert sum(seen) == rows * sum(embedding.row_bytes)
    weights = (bundle.path / "blocks/decoder/decoder-0.weights").stat().st_size
    assert weights >= bundle.plan.block("decoder-0").weights_bytes > 100_000  # float32


def test_stage_embed_is_for_tables_of_their_own(tiny_model):
    recipe = Recipe(model=tiny_model, tokens=16, methods=("strided",), quantize="embed=w8a32")
    with pytest.raises(
        RecipeError, match=r"^stage 'embed' cannot have its own scheme: its table is the head's$"
    ):
        make_plan(recipe, find(tiny_model))


@pytest.mark.parametrize(("scheme", "size"), [("none", 96), ("fp16", 48), ("w8a8", 24 + 4 * 4)])
def test_planned_bytes_of_a_matrix(scheme, size):
    assert find_target("onnx").matrix_bytes(4, 6, scheme, "decoder") == size
