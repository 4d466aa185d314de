"""Scales of rows found beforehand against scales of each row, in 8 bits on XNNPACK.

    python tests/benchmarks/static_rows.py

Eight gated feed-forward layers of SmolVLM-256M's sizes with random weights, in float32 and in both
forms of 8 bits by PT2E's XNNPACKQuantizer, in turn: why target `executorch` refuses `w8a8s`.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

HIDDEN, INNER, LAYERS, ROUNDS = 576, 1536, 8, 40
FORMS = ("float32", "scales of each row", "scales beforehand")


class Layer(nn.Module):
    """x + down(silu(gate(norm(x))) * up(norm(x)))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN)
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rows in, rows out."""
        rows = self.norm(x)
        added: Tensor = self.down(nn.functional.silu(self.gate(rows)) * self.up(rows))
        return x + added


def program(model: nn.Module, x: Tensor, form: str) -> bytes:
    """The model as a program for rows like `x`; shown four random inputs where it rounds."""
    graph = torch.export.export(model, (x,)).module()
    if form != "float32":
        rounding = get_symmetric_quantization_config(
            is_per_channel=True, is_dynamic=form == "scales of each row"
        )
        quantizer = XNNPACKQuantizer()
        quantizer.set_operator_type(torch.ops.aten.linear.default, rounding)
        graph = prepare_pt2e(graph, quantizer)
        for _ in range(4):
            graph(torch.randn_like(x))
        graph = convert_pt2e(graph)
    traced = torch.export.export(graph, (x,))
    edge = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
    return bytes(edge.to_executorch().buffer)


def main() -> None:
    """Print median and p90 of each form, and how far it is from PyTorch's float32."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Layer() for _ in range(LAYERS))).eval()
    for rows in (256, 1):
        x = torch.randn(1, rows, HIDDEN)
        loaded = [Runtime.get().load_program(program(model, x, form)) for form in FORMS]
        methods = [each.load_method("forward") for each in loaded]
        exact = model(x).detach()
        wrong = [float((m.execute([x])[0] - exact).square().mean().sqrt()) for m in methods]
        times: list[list[float]] = [[] for _ in FORMS]
        for _ in range(ROUNDS):
            for method, taken in zip(methods, times, strict=True):
                started = time.perf_counter()
                method.execute([x])
                taken.append((time.perf_counter() - started) * 1e3)
        for form, taken, rmse in zip(FORMS, times, wrong, strict=True):
            median, p90 = np.median(taken), np.percentile(taken, 90)
            psnr = 20 * np.log10(float(exact.abs().max()) / rmse)
            print(f"{rows:4} rows  {form:20} {median:7.2f} / {p90:7.2f} ms  {psnr:6.1f} dB")


if __name__ == "__main__":
    main()
