"""ExecuTorch programs: forms for XNNPACK, caches in place, shared weights, schemes, parity."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("executorch")
pytest.importorskip("torchao")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from edgevlm import pipeline  # noqa: E402
from edgevlm.bundle.functions import Block, Function, Tensor  # noqa: E402
from edgevlm.errors import BundleError, ExportError, RecipeError, RuntimeLoadError  # noqa: E402
from edgevlm.exporters.contract import TargetOptions  # noqa: E402
from edgevlm.exporters.to_executorch import target as to_executorch  # noqa: E402
from edgevlm.graphs.blocks import build  # noqa: E402
from edgevlm.graphs.trace import trace, weights  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.pipeline import export  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.quantization.schemes import threshold  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.loading import load_loop  # noqa: E402
from edgevlm.runtimes.on_executorch.engine import Engine  # noqa: E402

XNNPACK = TargetOptions("none", "xnnpack")
SMALL = {"w8a8": 0.27, "w4g32a8": 0.15}  # of float32
X = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def evaluate(saved: Any) -> Any:
    """A module as a saved program, run by the engine."""
    return partial(saved, "executorch", "executorch")


def kernels(folder: Any, block: str) -> dict[str, Any]:
    """What a program is made of, with the operators that XNNPACK left by name."""
    found: dict[str, Any] = json.loads((folder / f"{block}.kernels.json").read_text())
    for made in found.values():
        made["left"] = {left["operator"]: left["count"] for left in made["left"]}
    return found


FORMS = {
    "gelu by tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu": nn.functional.gelu,
    "rms_norm": lambda x: nn.functional.rms_norm(x, (8,), torch.arange(8.0), 1e-6),
    "rotary": lambda x: torch.ops.edgevlm.rotary(x, x[..., :4].cos(), x[..., :4].sin(), 2),
    "attention": lambda x: torch.ops.edgevlm.attention(x, x * 2, x + 1, 2),
    "attention in windows": lambda x: torch.ops.edgevlm.attention(
        torch.cat((x, x * 3)), torch.cat((x * 2, x)), torch.cat((x + 1, x)), 2
    ),
    "attention with a bias": lambda x: torch.ops.edgevlm.attention(
        x, x * 2, x + 1, 2, x[:, None, :1, :5]
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_the_operators_again_and_xnnpack_takes_them(name, evaluate, calls, tmp_path):
    (found,) = evaluate(calls(FORMS[name]), tmp_path, X)
    expected = FORMS[name](X)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
    made = kernels(tmp_path, "test-0")["run"]
    assert made["calls"] == 1
    of_the_test = {"arange", "slice_copy", "unsqueeze_copy"}
    of_the_test.add("_to_dim_order_copy")  # an output that is a view
    assert set(made["left"]) <= of_the_test


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_are_written_into_the_callers_cache(groups, evaluate, calls, tmp_path):
    """At the position, in place, without a copy of the cache; queries see their own group."""
    generator = torch.Generator().manual_seed(1)
    heads, size, rows, total = 4, 4, 3, 9

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.where(torch.arange(total) > torch.arange(4, 7)[:, None], -1e4, 0.0)[None, None]
    inputs = (
        random(1, rows, heads * size),
        random(1, rows, groups * size),
        random(1, rows, groups * size),
        mask,
        torch.tensor([4], dtype=torch.int32),
        random(1, 1, 1, total),
        random(1, groups, total, size),
        random(1, groups, total, size),
    )
    module = calls(
        lambda q, k, v, mask, position, bias, keys, values: torch.ops.edgevlm.attention_kv(
            q, k, v, keys, values, mask, position, heads, bias
        )
    )
    found = evaluate(module, tmp_path, *inputs, names={6: "past_key_0", 7: "past_value_0"})
    for mine, expected in zip(found, module(*inputs), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=2e-6)
    left = kernels(tmp_path, "test-0")["run"]["left"]
    assert left["index_put_"] == 2
    assert not {"copy", "copy_", "expand_copy", "index_put"} & set(left)


def test_each_methods_reduce(method, reduction, evaluate, tmp_path):
    """The choice of tokens in the saved program is PyTorch's."""
    module, inputs = reduction("executorch", method)
    tokens, kept = module(*inputs)
    found = evaluate(module, tmp_path, *inputs)
    np.testing.assert_array_equal(found[1], kept)
    bound = 3e-6 * float(tokens.abs().max())
    np.testing.assert_allclose(found[0], tokens, rtol=0, atol=bound)


@pytest.mark.parametrize("columns", [64, 80])
@pytest.mark.parametrize(
    ("scheme", "least_db", "most_bytes"), [("w8a8", 40, 0.30), ("w4g32a8", 20, 0.17)]
)
def test_schemes(scheme, columns, least_db, most_bytes, evaluate, tmp_path):
    """A matrix in few bits; one without whole runs of 32 columns has 8 bits."""
    torch.manual_seed(0)
    module = nn.Linear(columns, 512).requires_grad_(False)
    x = torch.randn(1, 7, columns)
    (found,) = evaluate(module, tmp_path, x, scheme=scheme)
    _, psnr_db = difference(found, module(x).numpy())
    assert psnr_db >= (40 if columns == 80 else least_db)
    size = (tmp_path / "test-0.pte").stat().st_size
    planned = to_executorch.matrix_bytes(512, columns, scheme, "test") + 4 * 512
    assert planned <= size <= planned + 4000
    if columns == 64:
        assert to_executorch.matrix_bytes(512, 64, scheme, "test") <= most_bytes * 4 * 512 * 64


def test_the_same_block_gives_the_same_bytes_and_weights_stand_once(tmp_path):
    """Two functions over one matrix; the traced module keeps its own weights."""
    first, second = nn.Linear(64, 256).eval(), nn.Linear(64, 256).eval()
    before = first.weight.detach().clone()
    functions = tuple(
        Function(name, (Tensor("x", "f32", (1, n, 64)),), (Tensor("y", "f32", (1, n, 256)),), 0)
        for name, n in (("prefill", 8), ("decode", 1))
    )
    block = Block("test-0", "test", (0, 1), 0, functions)
    programs = {f.name: trace(first, f, block) for f in functions}
    digests = set()
    for _ in range(2):
        lowered = to_executorch.lower(programs, block, XNNPACK)
        to_executorch.write(lowered, block, weights(second), tmp_path, None)
        digests.add(hashlib.sha256((tmp_path / "test-0.pte").read_bytes()).hexdigest())
    assert len(digests) == 1
    assert torch.equal(first.weight, before)
    size = 4 * (64 * 256 + 256)
    assert size <= (tmp_path / "test-0.pte").stat().st_size <= size + 8000


def test_xnnpack_is_afterwards_as_it_was(evaluate, calls, tmp_path):
    from executorch.backends.xnnpack.partition.config import gemm_configs, xnnpack_config

    loggers = [configs.why.logger for configs in (gemm_configs, xnnpack_config)]
    evaluate(calls(lambda x: x.cumsum(-1)), tmp_path, X)
    made = json.loads((tmp_path / "test-0.kernels.json").read_text())["run"]["left"]
    assert made[0]["reason"] != ""
    assert [configs.why.logger for configs in (gemm_configs, xnnpack_config)] == loggers
    assert all(isinstance(logger, logging.Logger) for logger in loggers)


@torch.library.custom_op("edgevlm_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_what_cannot_be_converted_is_named(calls, tmp_path):
    function = Function("run", (Tensor("x", "f32", (4,)),), (Tensor("y", "f32", (4,)),), 0)
    block = Block("test-0", "test", (0, 1), 0, (function,))
    module = calls(twice)
    lowered = to_executorch.lower({"run": trace(module, function, block)}, block, XNNPACK)
    with pytest.raises(ExportError, match=r"^test-0 does not convert to ExecuTorch: .*twice"):
        to_executorch.write(lowered, block, {}, tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods",
    [("fastv:tokens=8,layer=1",), ("strided:calibrate=size",), ("tome@vision:r=4", "strided")],
)
def test_methods_inside_agree_with_pytorch(methods, preset, tmp_path):
    """Caches that a method makes anew, attention with a bias, merging inside the encoder."""
    recipe = Recipe(
        model=str(preset("tiny-smolvlm")), target="executorch", tokens=16, methods=methods
    )
    done = export(recipe, tmp_path / "tiny.edgevlm")
    assert done.verification.ok
    assert done.verification.tokens_equal == 1.0


CASES = [
    pytest.param(model, scheme, scheme, marks=pytest.mark.slow)
    for model in ("tiny-smolvlm", "tiny-llava-onevision")
    for scheme in to_executorch.SCHEMES
]
# The encoder in float32, and one layer of the decoder: each takes ten seconds in eight bits.
CASES.append(pytest.param("shallow", "w8a8", "none,embed=w8a8,decoder=w8a8,head=w8a8"))


@pytest.mark.parametrize(("model", "scheme", "quantize"), CASES)
def test_a_bundle_agrees_with_pytorch(model, scheme, quantize, preset, with_layers, tmp_path):
    """Blocks of one signature have weights of their own; the engine refuses what was changed."""
    small = model == "shallow"
    recipe = Recipe(
        model=str(with_layers("tiny-smolvlm", 1) if small else preset(model)),
        target="executorch",
        tokens=16,
        methods=("strided",),
        quantize=quantize,
        block_size_bytes=200_000 if small else 2**26,
    )
    done = export(recipe, tmp_path / "tiny.edgevlm")
    bundle, files = done.bundle, {f.path: f.bytes for f in done.bundle.plan.files}
    assert done.verification.ok
    assert done.verification.engine == "executorch"
    assert bundle.plan.host.states.form == "shared_buffer"
    assert len(bundle.plan.stage("head")) == (2 if small else 1)
    if scheme == "none":
        assert done.verification.logits_rel_error <= 1e-3
        assert done.verification.tokens_equal == 1.0
    least = threshold(scheme).psnr_db or 0.0
    for found in done.verification.blocks:
        assert found.name == "reduce-0" or (found.psnr_db or least) >= least
    for block in bundle.plan.stage("decoder"):
        made = kernels(bundle.path / "blocks" / "decoder", block.name)
        assert set(made) == {"prefill", "decode"}
        layers = block.span[1] - block.span[0]
        assert made["decode"]["calls"] == layers + 1
        assert made["decode"]["left"]["index_put_"] == 2 * layers
    assert load_loop(bundle.path).ask("Hello", max_new_tokens=4).token_ids
    if small:
        _refusals(bundle)
    if scheme == "none":
        return
    exact = make_plan(replace(recipe, quantize="none"), find(recipe.model)).plan
    layers = sum(b.weights_bytes for b in exact.stage("decoder"))
    planned = sum(b.weights_bytes for s in ("decoder", "head") for b in bundle.plan.stage(s))
    table = exact.host.embedding.bytes
    assert planned <= SMALL[scheme] * (layers + table)
    assert files["blocks/embed/table.bin"] <= 0.16 * table


@pytest.mark.parametrize("backend", [b for b in to_executorch.BACKENDS if b != "xnnpack"])
def test_other_backends_ahead_of_time(backend, calls, preset, tmp_path):
    """Programs for phones: converted here, not run here, and that is said."""
    if backend == "coreml":
        pytest.importorskip("coremltools")
    recipe = Recipe(
        model=str(preset("tiny-smolvlm")),
        target="executorch",
        tokens=16,
        methods=("strided",),
        block_size_bytes=200_000,
    )
    planned = make_plan(replace(recipe, backend=backend), find(recipe.model))
    assert dict(planned.plan.requires.versions)["backend"] == backend
    block, _ = planned.plan.stage("decoder")
    parts = planned.parts(planned.checkpoint.load_model())
    module = build(block, parts, planned.method, planned.description.shape)
    traced = {"decode": trace(module, block.function("decode"), block)}
    block = replace(block, functions=(block.function("decode"),))
    lowered = to_executorch.lower(traced, block, TargetOptions("none", backend))
    to_executorch.write(lowered, block, weights(module), tmp_path, None)
    made = kernels(tmp_path, "decoder-0")["decode"]
    assert made["left"] == {"index_put_": 2}  # rows go into the caller's cache here too
    assert made["calls"] == 2
    bundle: Any = SimpleNamespace(plan=planned.plan)
    with pytest.raises(RuntimeLoadError, match=f"lacks the bundle's backend '{backend}'"):
        Engine(bundle)
    assert not pipeline.runs_here(replace(recipe, backend=backend))
    assert pipeline.runs_here(recipe)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(backend="vulkan"), "'onnx' has no backend 'vulkan'; available: none"),
        (
            Recipe(target="executorch", backend="metal"),
            "'executorch' has no backend 'metal'; available: xnnpack, coreml, vulkan",
        ),
        (
            Recipe(target="executorch", backend="coreml", quantize="w8a8"),
            "backend 'coreml' does not support scheme 'w8a8'; available: none",
        ),
        (
            Recipe(target="executorch", quantize="none,decoder=w8a8s"),
            "scheme 'w8a8s' is not offered: on XNNPACK static scales are 0.9 to",
        ),
    ],
)
def test_what_the_backends_do_not_have_is_one_line(recipe, said, tiny_model):
    with pytest.raises(RecipeError, match=re.escape(said)):
        make_plan(replace(recipe, model=tiny_model), find(tiny_model))


def _refusals(bundle: Any) -> None:
    names = {b.name: next(iter(bundle.files_of(b).values())) for b in bundle.plan.blocks}
    other = SimpleNamespace(
        plan=bundle.plan, files_of=lambda b: {f.name: names["head-0"] for f in b.functions}
    )
    with pytest.raises(RuntimeLoadError, match=r"decoder-0\.prefill does not load"):
        Engine(other).load("decoder-0")
    other.files_of = lambda b: {f.name: names["head-1"] for f in b.functions}
    Engine(other).load("head-0")  # the same shapes
    other.files_of = lambda b: {f.name: names["vision-1"] for f in b.functions}
    with pytest.raises(RuntimeLoadError, match="differ from the manifest"):
        Engine(other).load("vision-0")
    path = names["decoder-0"]
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    with pytest.raises(BundleError, match="was changed"):
        Engine(bundle).load("decoder-0")
    other.files_of = lambda b: {f.name: path for f in b.functions}
    path.write_bytes(b"no program")
    with pytest.raises(RuntimeLoadError, match=r"decoder-0\.prefill does not load"):
        Engine(other).load("decoder-0")
