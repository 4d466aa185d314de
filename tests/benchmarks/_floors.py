"""What this processor can do at best, and what the model needs at least.

A floor is the work divided by the best rate that any round saw:

    vision            linear layers and attention at the rate of the precision
    prefill           linear layers at the rate of the precision, attention at that of float32
    decode            weights of all layers and of the head read once, and a float32 cache

8 bits: ONNX Runtime's DynamicQuantizeMatMul, rounding of the rows included. 4 bits need what 8 bits
need where they multiply, and 4.5 bits a weight where they are read (groups of 32, 16-bit scales).
Softmax, norms and moving data are not counted, so nothing reaches its floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from peer._given import DECODED, PROMPTS, Given

from edgevlm.runtimes.on_onnxruntime.library import import_onnxruntime

SHAPES = ((1024, 768, 3072), (1024, 3072, 768), (352, 576, 1536), (352, 1536, 576))
READ_BYTES = 512 * 2**20
WEIGHT_BYTES = {"fp32": 4.0, "int8": 1.0, "int4": 4.5 / 8}
TRIES = 3


@dataclass
class Floors:
    """Best rates so far, in operations and bytes per second."""

    given: Given
    rates: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("fp32", "int8"), 0.0))
    bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        import torch

        torch.set_num_threads(self.given.threads)
        self._products: list[tuple[str, float, Callable[[], object]]] = []
        for rows, inner, columns in SHAPES:
            work = 2.0 * rows * inner * columns
            a, b = torch.randn(rows, inner), torch.randn(inner, columns)
            self._products.append(("fp32", work, lambda a=a, b=b: torch.mm(a, b)))  # type: ignore[misc]
            for kind in ("fp32", "int8"):
                run = _session(kind, inner, columns, self.given.threads)
                x = a.numpy()
                self._products.append((kind, work, lambda r=run, x=x: r(x)))  # type: ignore[misc]
        self._read = torch.ones(READ_BYTES // 4)

    def measure(self) -> None:
        """One round; better rates replace those before."""
        for kind, work, run in self._products:
            self.rates[kind] = max(self.rates[kind], work / _best_s(run))
        self.bytes_per_s = max(self.bytes_per_s, READ_BYTES / _best_s(self._read.sum))

    def ms(self, work: str, precision: str) -> float:
        """The floor of `vision`, `prefill N`, `ttft` or `decode` (a token)."""
        if work == "ttft":
            return self.ms("vision", precision) + self.ms(f"prefill {PROMPTS[0]}", precision)
        if work == "decode":
            return 1e3 * _token_bytes(self.given, precision) / self.bytes_per_s
        rate = self.rates["fp32" if precision == "fp32" else "int8"]
        if work == "vision":
            return 1e3 * sum(_vision_work(self.given.config)) / rate
        linear, attention = _prefill_work(self.given.config, int(work.split()[1]))
        return 1e3 * (linear / rate + attention / self.rates["fp32"])


def _best_s(run: Callable[[], object]) -> float:
    spent = []
    for _ in range(TRIES):
        started = time.perf_counter()
        run()
        spent.append(time.perf_counter() - started)
    return min(spent)


def _session(kind: str, inner: int, columns: int, threads: int) -> Callable[[Any], object]:
    """A product with a constant matrix as ONNX Runtime computes it."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    if kind == "fp32":
        matrix = random.standard_normal((inner, columns)).astype(np.float32)
        constants = [numpy_helper.from_array(matrix, "b")]
        node = helper.make_node("MatMul", ["a", "b"], ["y"])
    else:
        matrix = random.integers(-127, 128, (inner, columns)).astype(np.int8)
        scale, zero = np.full(columns, 0.01, np.float32), np.zeros(columns, np.int8)
        named: dict[str, Any] = {"b": matrix, "s": scale, "z": zero}
        constants = [numpy_helper.from_array(value, name) for name, value in named.items()]
        inputs = ["a", "b", "s", "z"]
        node = helper.make_node("DynamicQuantizeMatMul", inputs, ["y"], domain="com.microsoft")
    a = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", inner])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])
    graph = helper.make_graph([node], "product", [a], [y], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    ort = import_onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"a": x})


def _vision_work(config: dict[str, Any]) -> tuple[float, float]:
    """Operations of linear layers and of attention for one tile."""
    c = config["vision_config"]
    width, inner = c["hidden_size"], c["intermediate_size"]
    patches = (c["image_size"] // c["patch_size"]) ** 2
    embedding = 3 * c["patch_size"] ** 2 * width
    layers = c["num_hidden_layers"]
    connector = width * config["text_config"]["hidden_size"]  # scale² fewer rows, scale² wider
    linear = 2.0 * patches * (embedding + layers * (4 * width**2 + 2 * width * inner) + connector)
    return linear, 4.0 * layers * patches**2 * width


def _prefill_work(config: dict[str, Any], rows: int) -> tuple[float, float]:
    """Operations of linear layers with one row of scores, and of causal attention."""
    c = config["text_config"]
    head = 2.0 * c["hidden_size"] * c["vocab_size"]
    heads = c["num_attention_heads"] * c["head_dim"]
    attention = 2.0 * c["num_hidden_layers"] * rows**2 * heads
    return 2.0 * rows * _layer_weights(c) + head, attention


def _layer_weights(c: dict[str, Any]) -> int:
    width = c["hidden_size"]
    heads, pairs = (c[k] * c["head_dim"] for k in ("num_attention_heads", "num_key_value_heads"))
    each = width * (2 * heads + 2 * pairs + 3 * c["intermediate_size"])
    return int(each * c["num_hidden_layers"])


def _token_bytes(given: Given, precision: str) -> float:
    c = given.config["text_config"]
    weights = _layer_weights(c) + c["hidden_size"] * c["vocab_size"]
    pairs = 2 * c["num_key_value_heads"] * c["head_dim"] * c["num_hidden_layers"]
    cache = 4 * pairs * (max(PROMPTS) + DECODED / 2)
    return float(WEIGHT_BYTES[precision] * weights + cache)
