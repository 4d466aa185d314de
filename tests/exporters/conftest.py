"""What the tests of several targets share: a module, saved and run; each method's reduction."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.bundle.functions import Block, Cache, Function, Tensor  # noqa: E402
from edgevlm.bundle.plan import Requires  # noqa: E402
from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.exporters.contract import TargetOptions, find_target  # noqa: E402
from edgevlm.graphs.blocks import build  # noqa: E402
from edgevlm.graphs.trace import trace, weights  # noqa: E402
from edgevlm.models.checkpoint import find  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.engine import find_engine  # noqa: E402


class Calls(torch.nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


@pytest.fixture
def calls() -> type[Calls]:
    return Calls


@pytest.fixture
def saved() -> Any:
    """`saved(target, engine, module, folder, *inputs)`: its outputs, from the file that it wrote.

    Inputs called `past_*` and outputs called `present_*` are named by `names`.
    """

    def run(
        target: str,
        engine: str,
        module: torch.nn.Module,
        folder: Path,
        *inputs: torch.Tensor,
        scheme: str = "none",
        names: dict[int, str] | None = None,
    ) -> list[np.ndarray]:
        types = {torch.float32: "f32", torch.int32: "i32"}
        with torch.no_grad():
            expected = module(*(x.clone() for x in inputs))
        expected = expected if isinstance(expected, tuple) else (expected,)
        named = [(names or {}).get(i, f"x{i}") for i in range(len(inputs))]
        written_to = [name.removeprefix("past_") for name in named if name.startswith("past_")]
        own = len(expected) - len(written_to)
        made_names = [f"y{i}" for i in range(own)] + [f"present_{name}" for name in written_to]
        given = tuple(
            Tensor(n, types[x.dtype], tuple(x.shape)) for n, x in zip(named, inputs, strict=True)
        )
        made = tuple(
            Tensor(n, types[x.dtype], tuple(x.shape))
            for n, x in zip(made_names, expected, strict=True)
        )
        caches = tuple(Cache(name, f"past_{name}", f"present_{name}") for name in written_to)
        function = Function("run", given, made, 0, caches)
        block = Block("test-0", "test", (0, 1), 0, (function,))
        to = find_target(target)
        options = TargetOptions(scheme, to.backend(None))
        lowered = to.lower({"run": trace(module, function, block)}, block, options)
        (written,) = to.write(lowered, block, weights(module), folder, None)
        planned = SimpleNamespace(functions=(written,), function=lambda _: written)
        bundle: Any = SimpleNamespace(
            plan=SimpleNamespace(block=lambda _: planned, requires=Requires()),
            files_of=lambda _: {"run": folder / written.file},
        )
        loaded = find_engine(engine)(bundle)
        arrays = {t.name: x.numpy().copy() for t, x in zip(given, inputs, strict=True)}
        for t in made:
            shared = arrays.get(t.name.replace("present_", "past_"))
            dtype = np.int32 if t.dtype == "i32" else np.float32
            arrays[t.name] = np.zeros(t.shape, dtype) if shared is None else shared
        loaded.load("test-0")
        loaded.bind("test-0", "run", arrays)
        loaded.run("test-0", "run")
        return [arrays[t.name] for t in made]

    return run


@pytest.fixture
def reduction(preset: Any) -> Any:
    """`reduction(target, method)`: its block `reduce` of 24 tokens, and random inputs for it."""

    def make(target: str, method: str) -> tuple[torch.nn.Module, list[torch.Tensor]]:
        model = str(preset("tiny-llava-next"))
        for tiles in ((1, 1), (2, 2)):
            recipe = Recipe(
                model=model, target=target, tokens=24, methods=(f"{method}@tokens",), tiles=tiles
            )
            try:
                planned = make_plan(recipe, find(model, None))
            except PlanError:
                continue
            break
        (block,) = planned.plan.stage("reduce")
        parts = planned.parts(planned.checkpoint.load_model())
        module = build(block, parts, planned.method, planned.description.shape)
        generator = torch.Generator().manual_seed(0)
        return module, [torch.rand(t.shape, generator=generator) for t in block.functions[0].inputs]

    return make
