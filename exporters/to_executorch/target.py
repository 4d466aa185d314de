"""ExecuTorch: one `.pte` program per block, with a method for each of the block's functions.

    traced function -> our operators rewritten -> quantized -> partitioned for the backend

The methods of a program share their weights. The caches are plain inputs that a method writes in
place (KV form `shared_buffer`): the host owns them, and every block of a bundle is loaded
separately. Linear layers alone are quantized: their weights at export, their activations at run
time, with a scale for each token (`a8`).

Source: ExecuTorch 1.5, torchao 0.18; `operators` has the operators that XNNPACK lacks.
"""

from __future__ import annotations

import gc
import operator
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgevlm.bundle.documents import dumps
from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.kernels import Kernels, Left
from edgevlm.bundle.plan import Requires
from edgevlm.errors import ExportError
from edgevlm.exporters.contract import SharedMatrix, Target, TargetOptions
from edgevlm.exporters.repeats import without_repeats
from edgevlm.exporters.to_executorch.operators import LOWERINGS
from edgevlm.graphs.trace import example, with_weights
from edgevlm.libraries import first_line, replaced, silent

with silent():
    from executorch.backends.xnnpack.partition.config import (
        gemm_configs,
        generic_node_configs,
        node_configs,
        xnnpack_config,
    )
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        to_edge_transform_and_lower,
    )
    from executorch.exir.delegate import executorch_call_delegate
    from executorch.exir.dialects._ops import ops
    from executorch.exir.memory import alloc
    from executorch.exir.passes import MemoryPlanningPass
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

SCHEMES = ("none", "w8a8", "w4g32a8")
# Schemes of each backend. Only the first runs on every machine, so only it is verified.
BACKENDS = {"xnnpack": SCHEMES, "coreml": ("none",), "vulkan": ("none", "w4g32a8")}
# Schemes without a benefit, with the measurement (tests/benchmarks/static_rows.py).
REFUSED = {
    "w8a8s": "on XNNPACK static scales are 0.9 to 1.1 times as fast as w8a8, no smaller, and lose 5"
    " to 10 dB; use w8a8"
}
PROGRAM = ".pte"  # suffix of a block's file
GROUP = 32
COPY = ops.edge.aten.copy.default


class _Reasons(dict[str, str]):
    """Why XNNPACK does not compute a node, by node name, from its partitioner's log."""

    def debug(self, why: Any) -> None:
        """Record a reason; called by the partitioner in the place of a logger."""
        self.setdefault(why.node.name, why.reason)


@contextmanager
def _reasons() -> Iterator[_Reasons]:
    """Collect the reasons of programs that are partitioned inside the body."""
    reasons = _Reasons()
    with ExitStack() as stack:
        for configs in (gemm_configs, generic_node_configs, node_configs, xnnpack_config):
            stack.enter_context(replaced(configs.why, "logger", reasons))
        yield reasons


@dataclass(frozen=True)
class Lowered:
    """The traced functions of one signature; every block converts them with its own weights."""

    programs: Mapping[str, ExportedProgram]
    scheme: str
    backend: str


def table_format(scheme: str) -> str:
    """Format of the embedding table: 4 bits in every scheme, as the head has its own copy."""
    return "f32" if scheme == "none" else "w4g32"


def matrix_bytes(rows: int, columns: int, scheme: str, stage: str) -> int:
    """Bytes of a linear layer's matrix under a scheme."""
    if scheme == "none":
        return 4 * rows * columns
    if scheme == "w4g32a8" and columns % GROUP == 0:
        return rows * columns // 2 + rows * columns // GROUP * 2
    return rows * columns + 4 * rows


def lower(programs: Mapping[str, ExportedProgram], block: Block, options: TargetOptions) -> Lowered:
    """Keep the traced functions of one signature."""
    return Lowered(programs, options.scheme, options.backend)


def write(
    lowered: Lowered,
    block: Block,
    tensors: Mapping[str, Tensor],
    folder: Path,
    shared: SharedMatrix | None,
) -> tuple[Function, ...]:
    """Write the block's program into `folder`; return its functions with their file.

    Args:
        lowered: Traces of the block's signature.
        block: The block.
        tensors: Its weights by traced name.
        folder: An existing folder.
        shared: Not used: a program holds all its weights.

    Raises:
        ExportError: If ExecuTorch cannot convert a function.
    """
    file, names = folder / f"{block.name}{PROGRAM}", [function.name for function in block.functions]
    try:
        with silent(), torch.no_grad(), without_repeats(), _reasons() as reasons:
            edge = _partitioned(lowered, block, tensors)
            for name in names:
                _drop_copies(edge.exported_program(name))
            planning = MemoryPlanningPass(alloc_graph_input=False)
            program = edge.to_executorch(
                ExecutorchBackendConfig(memory_planning_pass=planning, run_reinplace_pass=True)
            )
    except Exception as cause:  # of many types; its first line is the reason
        line = first_line(cause)
        raise ExportError(f"{block.name} does not convert to ExecuTorch: {line}") from cause
    with file.open("wb") as out:
        program.write_to_file(out)
    kernels = {name: _kernels(edge.exported_program(name), reasons) for name in names}
    (folder / f"{block.name}.kernels.json").write_text(dumps(kernels), "utf-8")
    del edge, program
    gc.collect()  # programs contain reference cycles that hold the block's weights
    return tuple(replace(function, file=file.name) for function in block.functions)


def _partitioned(lowered: Lowered, block: Block, tensors: Mapping[str, Tensor]) -> Any:
    """The block's functions as an edge program, partitioned for the backend.

    Where XNNPACK's grouping would make a cycle (prefill with pruning in the decoder), each operator
    is a separate call.
    """

    def lowered_by(partitioner: Any) -> Any:
        programs = {f.name: _prepared(lowered, f, tensors) for f in block.functions}
        # `index_put_` into a cache is not a core ATen operator.
        config = EdgeCompileConfig(_check_ir_validity=False)
        return to_edge_transform_and_lower(
            programs, partitioner=[partitioner], compile_config=config
        )

    try:
        return lowered_by(_partitioner(lowered.backend))
    except AssertionError as cause:
        if lowered.backend != "xnnpack" or "dependency cycles" not in str(cause):
            raise
    return lowered_by(XnnpackPartitioner(per_op_mode=True))


def _partitioner(backend: str) -> Any:
    """The partitioner of a backend; writes to a cache are excluded."""
    with silent():
        if backend == "coreml":
            import coremltools as ct
            from executorch.backends.apple.coreml.compiler import CoreMLBackend
            from executorch.backends.apple.coreml.partition import CoreMLPartitioner

            specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS18)
            left = ["aten.index_put.default", "aten.copy.default"]
            return CoreMLPartitioner(skip_ops_for_coreml_delegation=left, compile_specs=specs)
        if backend == "vulkan":
            from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

            return VulkanPartitioner({}, operator_blocklist=[COPY])
    return XnnpackPartitioner()


def _drop_copies(program: ExportedProgram) -> None:
    """Remove `copy(x, y)`, which equals y: the second trace has one for each write into an input.

    The write into a cache is then the last use of it, and can be in place.
    """
    renamed = {}
    for node in list(program.graph.nodes):
        if node.op == "call_function" and node.target is COPY:
            renamed[node.name] = node.args[1].name
            node.replace_all_uses_with(node.args[1])
            program.graph.erase_node(node)
    for spec in program.graph_signature.output_specs:
        while spec.arg.name in renamed:
            spec.arg.name = renamed[spec.arg.name]
    program.graph_module.recompile()


def _kernels(program: ExportedProgram, reasons: Mapping[str, str]) -> Kernels:
    """Count the operators of a lowered function, by the backend and by ExecuTorch."""
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    calls = [n for n in nodes if n.target is executorch_call_delegate]
    taken = [
        inner
        for call in calls
        for inner in getattr(
            program.graph_module, call.args[0].target
        ).original_module.graph_module.graph.nodes
        if inner.op == "call_function" and inner.target is not operator.getitem
    ]
    left: dict[str, Left] = {}
    for node in nodes:
        if node not in calls and node.target not in (operator.getitem, alloc):
            kind = node.target.__name__.removeprefix("aten.").partition(".")[0]
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.dtype != torch.float32:
                reason = f"{str(value.dtype).removeprefix('torch.')}, not float32"
            else:
                reason = reasons.get(node.name, "no operator of the backend")
            known = left.get(kind, Left(kind, 0, reason))
            left[kind] = replace(known, count=known.count + 1)
    return Kernels(len(taken), len(calls), tuple(left[kind] for kind in sorted(left)))


def _prepared(
    lowered: Lowered, function: Function, tensors: Mapping[str, Tensor]
) -> ExportedProgram:
    """A traced function with the block's weights, quantized and rewritten for XNNPACK."""
    inner = with_weights(lowered.programs[function.name], tensors)
    if lowered.scheme != "none":
        _quantize(inner, lowered.scheme)
    return torch.export.export(Rewritten(inner, function), example(function), strict=False)


class Rewritten(nn.Module):
    """A traced function rewritten for XNNPACK; caches are written in place and are not outputs."""

    def __init__(self, inner: fx.GraphModule, function: Function) -> None:
        super().__init__()
        self.inner = inner
        self.outputs = len(function.results)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the rewritten function."""
        outputs = _Rewriter(self.inner).run(*inputs)
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        caches = outputs[self.outputs :]
        for past, present in zip(inputs[len(inputs) - len(caches) :], caches, strict=True):
            if present is not past:  # a new tensor, where the decoder drops tokens
                past.copy_(present)
        # An output that is also an input would not be an output of its own.
        return tuple(out.clone() for out in outputs[: self.outputs])


class _Rewriter(fx.Interpreter):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        rewritten = LOWERINGS.get(target)
        return (
            rewritten(*args, **kwargs) if rewritten else super().call_function(target, args, kwargs)
        )


def _quantize(inner: fx.GraphModule, scheme: str) -> None:
    """Replace linear operators by modules, which torchao quantizes."""
    linears: dict[tuple[str, ...], str] = {}
    for node in list(inner.graph.nodes):
        if node.target is torch.ops.aten.linear.default:
            x, *names = node.args
            key = tuple(str(name.target) for name in names if name is not None)
            name = linears.setdefault(key, f"linear_{len(linears)}")
            if not hasattr(inner, name):
                inner.add_submodule(name, _linear(inner, *key))
            with inner.graph.inserting_before(node):
                new = inner.graph.call_module(name, (x,))
            new.meta = node.meta
            node.replace_all_uses_with(new)
            inner.graph.erase_node(node)
    inner.graph.eliminate_dead_code()
    inner.delete_all_unused_submodules()
    inner.recompile()
    wide = Int8DynamicActivationIntxWeightConfig(torch.int8, PerAxis(0))
    narrow = Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(GROUP))  # type: ignore[attr-defined]
    if scheme == "w4g32a8":
        quantize_(inner, narrow, lambda m, _: _is_linear(m) and m.in_features % GROUP == 0)
        quantize_(inner, wide, lambda m, _: _is_linear(m) and m.in_features % GROUP != 0)
    else:
        quantize_(inner, wide, lambda m, _: _is_linear(m))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _linear(inner: fx.GraphModule, weight: str, bias: str | None = None) -> nn.Linear:
    rows, columns = (matrix := _tensor(inner, weight)).shape
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(matrix, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(_tensor(inner, bias), requires_grad=False)
    return layer


def _tensor(inner: fx.GraphModule, name: str) -> Tensor:
    attribute: Any = inner
    for part in name.split("."):
        attribute = getattr(attribute, part)
    tensor: Tensor = attribute.detach()
    return tensor


TARGET = Target(
    summary="ExecuTorch programs for XNNPACK (CPUs of phones and boards); weights of 32, 8 or 4"
    " bits",
    schemes=SCHEMES,
    requires=Requires((("executorch", "1.5"),)),
    weight_suffixes=(PROGRAM,),
    lower=lower,
    write=write,
    refused=REFUSED,
    backends=BACKENDS,
    table_format=table_format,
    matrix_bytes=matrix_bytes,
)
