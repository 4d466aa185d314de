"""OpenVINO graphs: forms, rows of caches, schemes, shared weights, the same bytes, telemetry."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("edgevlm.exporters.to_openvino.library")

from torch import nn  # noqa: E402

from edgevlm.bundle.functions import Block, Function, Tensor  # noqa: E402
from edgevlm.errors import ExportError  # noqa: E402
from edgevlm.exporters.contract import TargetOptions  # noqa: E402
from edgevlm.exporters.to_openvino import target as to_openvino  # noqa: E402
from edgevlm.graphs.trace import trace, weights  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.pipeline import export  # noqa: E402
from edgevlm.quantization.schemes import threshold  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

X = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)) * 3
IMPORTS = """
import socket, sys
def refused(*arguments):
    raise SystemExit(f"asked the network: {arguments}")
socket.getaddrinfo = socket.socket.connect = refused
import edgevlm.exporters.to_openvino.library
from edgevlm.runtimes.engine import find_engine
print(find_engine("openvino").summary())
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
import openvino_telemetry  # is installed, and can be imported by others
"""


@pytest.fixture
def evaluate(saved: Any) -> Any:
    """A module as a saved graph, run by the engine."""
    return partial(saved, "openvino", "openvino")


FORMS = {
    "gelu by tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "rms_norm": lambda x: nn.functional.rms_norm(x, (8,), torch.arange(8.0) / 3, 1e-6),
    "rotary": lambda x: torch.ops.edgevlm.rotary(x, x[..., :4].cos(), x[..., :4].sin(), 2),
    "part of a rotary": lambda x: torch.ops.edgevlm.rotary(x, x[..., :2].cos(), x[..., :2], 2),
    "attention in windows": lambda x: torch.ops.edgevlm.attention(
        torch.cat((x, x * 3)), torch.cat((x * 2, x)), torch.cat((x + 1, x)), 2
    ),
    "attention with a bias": lambda x: torch.ops.edgevlm.attention(
        x, x * 2, x + 1, 2, x[:, None, :1, :5]
    ),
    "outputs that are inputs": lambda x: (x, x.view(5, 8), x + 1),
    "only an input": lambda x: x.view(5, 8),
    "a constant": lambda x: (torch.arange(3.0), x * 2),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_the_operators_again(name, evaluate, calls, tmp_path):
    found, expected = evaluate(calls(FORMS[name]), tmp_path, X), FORMS[name](X)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for mine, its in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, its, rtol=0, atol=3e-6 * float(its.abs().max()))


def test_a_cache_that_the_graph_reads_further_is_whole(evaluate, calls, tmp_path):
    """Its new rows alone are an output where nothing reads them; then the engine writes them."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 3, n, generator=generator) for n in (16, 8, 8))
    caches = [torch.randn(1, 2, 9, 4, generator=generator) for _ in range(2)]
    hidden = torch.arange(9) > torch.arange(4, 7)[:, None]
    mask = torch.where(hidden, -1e4, 0.0)[None, None]
    inputs = (q, k, v, mask, torch.tensor([4], dtype=torch.int32), *caches)

    def run(q, k, v, mask, position, keys, values):
        out, keys, values = torch.ops.edgevlm.attention_kv(
            q, k, v, keys, values, mask, position, 4
        )
        return out + keys.sum(), keys, values

    found = evaluate(calls(run), tmp_path, *inputs, names={5: "past_key_0", 6: "past_value_0"})
    for mine, expected in zip(found, run(*inputs), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-5)
    root = ElementTree.parse(tmp_path / "test-0.run.xml")
    results = {layer.get("name") for layer in root.iter("layer") if layer.get("type") == "Result"}
    assert results == {"y0", "present_key_0", "present_value_0@x4"}


class Layers(nn.Module):
    """Two matrices, the second with columns that are no whole group."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.first, self.second = nn.Linear(64, 40), nn.Linear(40, 24)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Some result."""
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("scheme", [s for s in to_openvino.SCHEMES if s != "w8a8s"])
def test_schemes_reach_their_thresholds_and_sizes(scheme, evaluate, tmp_path):
    module = Layers()
    x = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(3))
    (found,) = evaluate(module, tmp_path, x, scheme=scheme)
    rel_error, psnr_db = difference(found, module(x).detach().numpy())
    assert threshold(scheme).accepts(rel_error, psnr_db), (rel_error, psnr_db)
    size = (tmp_path / "test-0.weights").stat().st_size
    planned = sum(to_openvino.matrix_bytes(*m.weight.shape, scheme, "") for m in module.children())
    assert planned <= size <= planned + 4 * (40 + 24) + 64 * 12


def test_static_scales_need_calibration(tmp_path):
    module = Layers()
    tensors = {"x": Tensor("x", "f32", (1, 7, 64)), "y": Tensor("y", "f32", (1, 7, 24))}
    function = Function("run", (tensors["x"],), (tensors["y"],))
    block = Block("test-0", "test", (0, 1), 0, (function,))
    traced = {"run": trace(module, function, block)}
    lowered = to_openvino.lower(traced, block, TargetOptions("w8a8s"))
    with pytest.raises(ExportError, match="no image of --calibrate reached the layer of 'first"):
        to_openvino.write(lowered, block, weights(module), tmp_path, None)
    tops = {f"{name}.weight.top": torch.tensor(5.0) for name in ("first", "second")}
    to_openvino.write(lowered, block, weights(module) | tops, tmp_path, None)
    kinds = [x.get("type") for x in ElementTree.parse(tmp_path / "test-0.run.xml").iter("layer")]
    assert kinds.count("FakeQuantize") == 2


@pytest.mark.slow
def test_each_methods_reduce(method, reduction, evaluate, tmp_path):
    """The choice of tokens in the saved graph is PyTorch's."""
    module, inputs = reduction("openvino", method)
    expected = module(*(x.clone() for x in inputs))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for mine, its in zip(evaluate(module, tmp_path, *inputs), expected, strict=True):
        np.testing.assert_allclose(mine, its, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["none", "w8a8,vision=w8a8s"])
def test_the_same_recipe_gives_the_same_bytes(scheme, tiny_model, tmp_path):
    calibrate = "2" if "w8a8s" in scheme else None
    recipe = Recipe(tiny_model, None, "openvino", 16, quantize=scheme, calibrate=calibrate)
    bundles = [export(recipe, tmp_path / f"{index}.edgevlm") for index in range(2)]
    assert all(done.verification.ok for done in bundles)
    first, second = ({f.path: f.sha256 for f in done.bundle.plan.files} for done in bundles)
    assert first == second
    assert not any(name.endswith(".bin") for name in first if "table" not in name)


def test_nothing_is_reported_and_nothing_is_written(tmp_path):
    """`import openvino` reports to Google Analytics where its telemetry is not hidden."""
    pytest.importorskip("openvino_telemetry")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(tmp_path), "CI": ""},
        check=False,
    )
    assert (done.returncode, done.stdout[:8]) == (0, "OpenVINO"), done
    assert not list(tmp_path.iterdir())


def test_an_operator_without_a_translation_is_named(evaluate, calls, tmp_path):
    with pytest.raises(ExportError, match=r"to OpenVINO: no translation of 'aten.special_i1e.de"):
        evaluate(calls(torch.special.i1e), tmp_path, X)
