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
from edgevlm.models.find import find  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.registry import METHODS  # noqa: E402
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
        planned = SimpleNamespace(
            name="test-0", stage="test", functions=(written,), function=lambda _: written
        )
        bundle: Any = SimpleNamespace(
            path=folder,
            plan=SimpleNamespace(
                block=lambda _: planned,
                requires=Requires(),
                recipe=SimpleNamespace(scheme=lambda _: scheme),
            ),
            files_of=lambda _: {"run": folder / written.file},
            weights_of=lambda _: [SimpleNamespace(path=p.name) for p in folder.glob("*.weights")],
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


NAMES = [name for name in METHODS.names("tokens") if name != "identity"]
# Tokens and options for which a method's rounds are few, and each kind of round is there.
SHORT = {
    "aim": (56, "aim"),
    "catp": (8, "catp"),
    "divprune": (8, "divprune"),
    "frame_merge": (90, "frame_merge"),
    "k_medoids": (8, "k_medoids:rounds=2"),
    "todre": (8, "todre"),
    "tome": (56, "tome"),
    "vispruner": (24, "vispruner:r=24"),
    "vqtoken": (8, "vqtoken:rounds=2"),
}
# Tokens of methods that keep the first frame of a clip whole, of 49.
FIRST_WHOLE = {"evs": (80, "evs"), "timechat": (80, "timechat")}
# All their operators, with the types of their results, are in graphs of other methods too
# (test_reductions.py), so that a target's translations are seen without them.
COVERED = (
    "aim", "evs", "fastervlm", "frame_merge", "hired", "random", "strided", "streamingtom",
    "tome", "vflowopt", "vispruner",
)  # fmt: skip


def short(name: str) -> tuple[int, str]:
    """Tokens of a method with few rounds, and its text."""
    return (SHORT | FIRST_WHOLE).get(name, (24, name))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`method` of `reduction`: tokens and text of each; by default short, and without COVERED."""
    if "method" in metafunc.fixturenames and "reduction" in metafunc.fixturenames:
        cases = [
            pytest.param(
                short(name),
                id=name,
                marks=pytest.mark.slow if name in COVERED else (),
            )
            for name in NAMES
        ]
        cases += [
            pytest.param((24, name), id=f"{name}, long", marks=pytest.mark.slow) for name in SHORT
        ]
        metafunc.parametrize("method", cases)


@pytest.fixture(scope="session")
def short_methods() -> dict[str, list[tuple[int, str]]]:
    """Tokens and texts of the methods, those that run by default and those that do not."""
    made: dict[str, list[tuple[int, str]]] = {"default": [], "slow": []}
    for name in NAMES:
        made["slow" if name in COVERED else "default"].append(short(name))
    return made


@pytest.fixture(scope="session")
def models(preset: Any) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Checkpoint, model and shape: the tiny LLaVA-NeXT, with tiles, and a clip of OneVision."""
    found = {}
    for name in ("tiny-llava-next", "tiny-llava-onevision"):
        checkpoint = find(str(preset(name)), None)
        found[name] = checkpoint, checkpoint.load_model()
    stills, clips = found.values()
    return [(*stills, {}), (*stills, {"tiles": (2, 2)}), (*clips, {"frames": 4})]


@pytest.fixture
def reduction(models: Any) -> Any:
    """`reduction(target, (tokens, method))`: its block `reduce`, and random inputs for it."""

    def make(target: str, method: tuple[int, str]) -> tuple[torch.nn.Module, list[torch.Tensor]]:
        name, colon, options = method[1].partition(":")
        for checkpoint, model, shape in models:
            recipe = Recipe(
                model=str(checkpoint.folder),
                target=target,
                tokens=method[0],
                methods=(f"{name}@tokens{colon}{options}",),
                **shape,
            )
            try:
                planned, chosen = make_plan(recipe, checkpoint), model
            except PlanError:
                continue
            break
        (block,) = planned.plan.stage("reduce")
        parts = planned.parts(chosen)
        module = build(block, parts, planned.method, planned.description.shape)
        generator = torch.Generator().manual_seed(0)
        return module, [torch.rand(t.shape, generator=generator) for t in block.functions[0].inputs]

    return make
