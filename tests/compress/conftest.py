"""Shared steps of the method tests: trace and check a method, run it by ONNX Runtime, vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgevlm.graphs.trace import check

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"


class Wrapped(nn.Module):
    """A module that calls a function and nothing else."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        """Call it."""
        return self.function(*inputs)


@pytest.fixture(scope="session")
def trace() -> Callable[..., ExportedProgram]:
    """Export a function for some inputs; refuse symbolic shapes and banned operators."""

    def run(function: Callable[..., Any], *inputs: Tensor) -> ExportedProgram:
        program = torch.export.export(Wrapped(function), inputs, strict=False)
        assert not program.range_constraints
        check(program, "method")
        # Beyond what every graph must keep to: a method gathers rows with index_select alone.
        assert not any(str(node.target) == "aten.index.Tensor" for node in program.graph.nodes)
        return program

    return run


@pytest.fixture(scope="session")
def engine() -> Callable[..., Callable[..., list[Any]]]:
    """Turn a traced program into a function that ONNX Runtime executes."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from edgevlm.exporters.to_onnx.torchlib import tables_read_once

    def load(program: ExportedProgram) -> Callable[..., list[Any]]:
        with tables_read_once():
            model = torch.onnx.export(
                program, dynamo=True, opset_version=23, optimize=False, verbose=False
            )
        assert model is not None
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        session = runtime.InferenceSession(
            model.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [i.name for i in session.get_inputs()]

        def run(*inputs: Tensor) -> list[Any]:
            feed = {n: x.numpy() for n, x in zip(names, inputs, strict=True)}
            return list(session.run(None, feed))

        return run

    return load


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Iterator[dict[str, Any]]]:
    """Cases recorded from a method's reference implementation, by file name."""

    def load(name: str) -> Iterator[dict[str, Any]]:
        path = VECTORS / f"{name}.npz"
        if not path.exists():
            pytest.skip("reference vectors are not in this checkout")
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        for number in range(len({key.split("_")[0] for key in arrays})):
            prefix = f"case{number}_"
            yield {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    return load


@pytest.fixture
def features() -> Tensor:
    """64 tokens of 16 channels, f32 [1, 64, 16]: a smooth image and some noise."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(1, 16, 3, 3, generator=generator)
    smooth = nn.functional.interpolate(smooth, (8, 8), mode="bicubic").flatten(2).transpose(1, 2)
    return smooth + 0.1 * torch.randn(1, 64, 16, generator=generator)
