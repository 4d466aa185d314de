"""The ONNX files: static, small, every weight once on disk, and the operators that we mean."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from safetensors.torch import load_file, save_file  # noqa: E402

from edgevlm.exporters.contract import TargetOptions  # noqa: E402
from edgevlm.exporters.to_onnx.target import ALIGN_BYTES, OPSET, lower, write  # noqa: E402
from edgevlm.graphs.blocks import build  # noqa: E402
from edgevlm.graphs.trace import signature, trace, weights  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.pipeline import export  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

# Each layer of the tiny model becomes a block, and its head two.
BLOCK = 140_000


@pytest.fixture(scope="module")
def tied(tiny_model, lowered_once, tmp_path_factory):
    """The tiny model in small blocks; its reduction is one constant matrix."""
    recipe = Recipe(model=tiny_model, tokens=16, methods=("average_pool",), block_size_bytes=BLOCK)
    return lowered_once(recipe, tmp_path_factory.mktemp("onnx") / "tied.edgevlm").bundle


@pytest.fixture(scope="module")
def untied_checkpoint(tiny_model, tmp_path_factory):
    """The tiny model with an output matrix of its own."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "untied")
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if n.endswith("embed_tokens.weight"))
    generator = torch.Generator().manual_seed(0)
    tensors["lm_head.weight"] = torch.randn(tensors[name].shape, generator=generator) / 8
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def untied(untied_checkpoint, tmp_path_factory):
    recipe = Recipe(model=str(untied_checkpoint), block_size_bytes=BLOCK)
    return export(recipe, tmp_path_factory.mktemp("onnx") / "untied.edgevlm").bundle


@pytest.fixture(params=["tied", "untied"])
def bundle(request):
    return request.getfixturevalue(request.param)


def functions(bundle, stage=None):
    """(block, function, graph without weights) of a bundle."""
    for block in bundle.plan.blocks:
        if stage in (None, block.stage):
            for function in block.functions:
                file = bundle.path / function.file
                yield block, function, onnx.load(file, load_external_data=False)


def outside(tensor):
    """Where a tensor lies: file name, offset, length; None if it is inside the graph."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    place = {e.key: e.value for e in tensor.external_data}
    return place["location"], int(place["offset"]), int(place["length"])


def read(bundle, function, tensor):
    """Values of a weight from its file."""
    name, offset, length = outside(tensor)
    data = ((bundle.path / function.file).parent / name).read_bytes()
    return np.frombuffer(data[offset : offset + length], np.float32).reshape(tensor.dims)


def test_every_shape_is_static(bundle):
    for block, function, model in functions(bundle):
        graph = model.graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            dims = value.type.tensor_type.shape.dim
            where = f"{block.name}.{function.name}: {value.name}"
            assert all(d.HasField("dim_value") and d.dim_value > 0 for d in dims), where


def test_opset_is_the_stated_one(bundle):
    assert dict(bundle.plan.requires.versions)["ai.onnx"] == str(OPSET)
    for _, _, model in functions(bundle):
        versions = {o.domain: o.version for o in model.opset_import}
        assert versions[""] == OPSET
        assert {node.domain for node in model.graph.node} <= {"", "com.microsoft"}


def test_inputs_and_outputs_are_the_manifests(bundle):
    kinds = {onnx.TensorProto.FLOAT: "f32", onnx.TensorProto.INT32: "i32"}
    for _, function, model in functions(bundle):
        for values, specs in (
            (model.graph.input, function.inputs),
            (model.graph.output, function.outputs),
        ):
            found = [
                (
                    v.name,
                    kinds[v.type.tensor_type.elem_type],
                    tuple(d.dim_value for d in v.type.tensor_type.shape.dim),
                )
                for v in values
            ]
            assert found == [(s.name, s.dtype, s.shape) for s in specs]


def test_the_causal_rule_replaces_the_mask(bundle):
    for _, function, model in functions(bundle, "decoder"):
        assert "mask" not in {v.name for v in model.graph.input}
        assert "mask" not in {t.name for t in function.inputs}
        assert "position" in {t.name for t in function.inputs}


def test_operators_of_a_decoder_layer(bundle):
    for block, _, model in functions(bundle, "decoder"):
        layers = block.span[1] - block.span[0]
        last = block is bundle.plan.stage("decoder")[-1]
        used = Counter(node.op_type for node in model.graph.node)
        assert used["GroupQueryAttention"] == layers
        assert used["RotaryEmbedding"] == 2 * layers
        assert used["SimplifiedLayerNormalization"] == 2 * layers + last
        assert used["MatMul"] == 7 * layers
        assert not {"Softmax", "Transpose", "Linear"} & set(used)


def test_operators_of_an_encoder_layer(bundle):
    for block, _, model in functions(bundle, "vision"):
        used = Counter(node.op_type for node in model.graph.node)
        layers = sum(0 < piece < 3 for piece in range(*block.span))
        assert used["MultiHeadAttention"] == layers
        assert "Softmax" not in used


def test_graphs_read_every_weight_whatever_its_values(bundle):
    # The graph is shared by blocks whose weights may be equal in one and differ in the next: the
    # tiny model's norms are all ones, and must stay apart.
    for block in bundle.plan.blocks:
        names = [
            {t.name for t in model.graph.initializer if outside(t)}
            for found, _, model in functions(bundle)
            if found is block
        ]
        norms = set()
        if block.stage == "vision" and block.span[0] in (1, 2):
            norms = {f"pieces.0.layer.layer_norm{i}.weight" for i in (1, 2)}
        if block.stage == "decoder":
            norms = {f"layers.0.layer.{n}_layernorm.weight" for n in ("input", "post_attention")}
        for found in names:
            assert norms <= found


def test_equal_weights_of_one_block_do_not_bind_the_next(tiny_model, tmp_path):
    import onnxruntime

    planned = make_plan(Recipe(model=tiny_model, block_size_bytes=BLOCK), find(tiny_model))
    model = planned.checkpoint.load_model()
    parts = planned.checkpoint.family.parts(model, planned.description)
    parts.encoder.layers[1].layer.layer_norm2.weight.mul_(1.5)
    first, second = planned.plan.stage("vision")[1:3]
    modules = [build(b, parts, planned.method, planned.description.shape) for b in (first, second)]
    assert signature(modules[0], first) == signature(modules[1], second)
    (function,) = first.functions
    lowered = lower({"encode": trace(modules[0], function, first)}, first, TargetOptions("none"))
    (written,) = write(lowered, second, weights(modules[1]), tmp_path, None)
    session = onnxruntime.InferenceSession(tmp_path / written.file)
    hidden = torch.randn(function.inputs[0].shape)
    (out,) = session.run(None, {"hidden": hidden.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), modules[1](hidden), atol=1e-4, rtol=1e-4)


def test_each_weight_is_once_on_disk(bundle):
    files = [
        f for f in bundle.plan.files if f.path.endswith(".weights") or f.path.endswith("table.bin")
    ]
    total, expected = sum(f.bytes for f in files), bundle.plan.weights_bytes
    count = sum(
        len(
            {
                outside(t)
                for _, f, m in functions(bundle)
                for t in m.graph.initializer
                if Path(f.file).parent / (outside(t) or ("",))[0] == Path(file.path)
            }
        )
        for file in files
    )
    assert expected <= total <= expected + ALIGN_BYTES * count


def test_prefill_and_decode_read_the_same_bytes(bundle):
    for block in bundle.plan.stage("decoder"):
        places = [
            {t.name: outside(t) for t in model.graph.initializer if outside(t)}
            for found, _, model in functions(bundle, "decoder")
            if found is block
        ]
        assert len(places) == 2
        assert places[0] == places[1]


def test_weights_do_not_overlap_and_are_aligned(bundle):
    by_file = {}
    for block, _, model in functions(bundle):
        for place in filter(None, map(outside, model.graph.initializer)):
            by_file.setdefault((block.stage, place[0]), set()).add(place[1:])
    for (_, name), ranges in by_file.items():
        end = 0
        for offset, length in sorted(ranges):
            assert offset >= end
            assert name == "table.bin" or offset % ALIGN_BYTES == 0
            end = offset + length


def test_graph_files_hold_no_weights(bundle):
    for block, function, model in functions(bundle):
        for tensor in model.graph.initializer:
            inside = outside(tensor) is None
            large = 4 * np.prod(tensor.dims, dtype=int) > 1024
            assert not (inside and large and block.stage != "reduce"), (function.file, tensor.name)


def test_graph_files_hold_nothing_of_the_machine_that_made_them(bundle):
    for _, function, model in functions(bundle):
        text = (bundle.path / function.file).read_bytes()
        assert b"/home/" not in text
        assert b".py" not in text
        assert {p.key for p in model.metadata_props} == {
            "edgevlm.block",
            "edgevlm.function",
            "edgevlm.stage",
        }
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_blocks_that_share_a_graph_differ_in_weights(bundle):
    first, second = (
        next((f, m) for b, f, m in functions(bundle, "vision") if b.name == name)
        for name in ("vision-1", "vision-2")
    )
    nodes = [[(n.op_type, *n.input, *n.output) for n in m.graph.node] for _, m in (first, second)]
    assert nodes[0] == nodes[1]
    pairs = list(zip(first[1].graph.initializer, second[1].graph.initializer, strict=True))
    large = [(a, b) for a, b in pairs if outside(a) and np.prod(a.dims) > 1000]
    assert len(large) == 6
    for a, b in large:
        assert a.name == b.name
        assert not np.array_equal(read(bundle, first[0], a), read(bundle, second[0], b))


def test_weights_in_the_files_are_the_models(tied, tiny_model):
    model = find(tiny_model).load_model()
    attn = model.model.text_model.layers[1].self_attn
    ((function, graph),) = [
        (f, m.graph)
        for b, f, m in functions(tied, "decoder")
        if b.span == (1, 2) and f.name == "decode"
    ]
    names = {t.name: t for t in graph.initializer}
    stored = read(tied, function, next(t for n, t in names.items() if "o_proj" in n))
    np.testing.assert_array_equal(stored, attn.o_proj.weight.numpy().T)  # [in, out]


def test_a_tied_head_is_a_range_of_the_table(tied):
    embedding = tied.plan.host.embedding
    blocks = tied.plan.stage("head")
    assert all(block.shares == "embedding" for block in blocks)
    assert len(blocks) == 2
    assert embedding.file == "blocks/head/table.bin"
    for block, function, model in functions(tied, "head"):
        (tensor,) = filter(outside, model.graph.initializer)
        name, offset, length = outside(tensor)
        assert name == "table.bin"
        assert Path(function.file).parent / name == Path(embedding.file)
        assert offset == block.span[0] * embedding.columns * 4
        assert length == block.weights_bytes
    assert not [f for f in tied.plan.files if "head" in f.path and f.path.endswith(".weights")]


def test_an_untied_head_has_its_own_file_for_each_block(untied, untied_checkpoint):
    assert not any(block.shares for block in untied.plan.blocks)
    assert untied.plan.host.embedding.file == "blocks/embed/table.bin"
    matrix = load_file(untied_checkpoint / "model.safetensors")["lm_head.weight"].numpy()
    found = []
    for block, function, model in functions(untied, "head"):
        (tensor,) = filter(outside, model.graph.initializer)
        assert outside(tensor)[0] == f"{block.name}.weights"
        found.append(read(untied, function, tensor))
    assert len(found) == 2
    np.testing.assert_array_equal(np.concatenate(found), matrix)


def test_the_table_file_is_the_embedding(bundle):
    embedding = bundle.plan.host.embedding
    table = np.fromfile(bundle.path / embedding.file, np.float32).reshape(embedding.rows, -1)
    model = find(bundle.plan.source.model).load_model()
    np.testing.assert_array_equal(table, model.model.text_model.embed_tokens.weight.numpy())
