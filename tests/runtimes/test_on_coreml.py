"""Core ML's engine where there is no Mac: its calls, against coremltools' own signatures."""

from __future__ import annotations

import inspect
import json
import platform
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

pytest.importorskip("torch")
ct = pytest.importorskip("coremltools")

from coremltools.models.compute_plan import MLComputePlan  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from edgevlm.api import load  # noqa: E402
from edgevlm.bundle.files import Bundle  # noqa: E402
from edgevlm.cli import app  # noqa: E402
from edgevlm.errors import RuntimeLoadError  # noqa: E402
from edgevlm.registry import engine_for  # noqa: E402
from edgevlm.runtimes import on_coreml  # noqa: E402
from edgevlm.runtimes.engine import find_engine  # noqa: E402
from edgevlm.runtimes.on_coreml_reference import engine as on_coreml_reference  # noqa: E402

REAL, MLState = ct.models.CompiledMLModel, ct.models.model.MLState
REAL_PLAN = MLComputePlan.load_from_path
PICTURE = Path(__file__).resolve().parents[2] / "edgevlm" / "photos" / "flower.jpg"


def fits(call, *arguments):
    """The arguments are ones that coremltools takes."""
    inspect.signature(call).bind(*arguments)


class State(dict):
    """An `MLState`: arrays by name."""

    def write_state(self, name, value):
        fits(MLState.write_state, self, name, value)
        assert value.dtype == np.float16
        self[name][:] = value

    def read_state(self, name):
        fits(MLState.read_state, self, name)
        return self[name]


class Compiled:
    """A `CompiledMLModel` that the reference engine executes."""

    opened: ClassVar[list[tuple[str, str, str]]] = []
    bundle: Bundle

    def __init__(self, path, units, function):
        fits(REAL.__init__, self, path, units, function)
        self.block, self.function = next(Path(path).glob("*.block")).stem, function
        self.opened.append((self.block, units.name, function))
        self.engine = on_coreml_reference.Engine(self.bundle)
        self.engine.load(self.block)
        self.planned = self.bundle.plan.block(self.block).function(function)

    def make_state(self):
        return State(
            {t.name[5:]: np.zeros(t.shape, np.float16) for t in self.planned.inputs
             if t.name.startswith("past_")}
        )  # fmt: skip

    def predict(self, data, state):
        fits(REAL.predict, self, data, state)
        arrays = dict(data) | {f"past_{k}": v for k, v in (state or {}).items()}
        for spec in self.planned.outputs:
            dtype = np.int32 if spec.dtype == "i32" else np.float32
            arrays.setdefault(spec.name, np.zeros(spec.shape, dtype))
        self.engine.bind(self.block, self.function, arrays)
        self.engine.run(self.block, self.function)
        return {t.name: arrays[t.name] for t in self.planned.outputs}


@pytest.fixture
def bundle(coreml_halves):
    return coreml_halves


@pytest.fixture
def mac(bundle, monkeypatch):
    """The engine's module, as on a Mac with coremltools' stand-in."""
    real = ct.models.utils.compile_model

    def compile_model(package, destination):
        fits(real, package, destination)
        shutil.copytree(package, destination)
        (Path(destination) / f"{Path(package).stem}.block").touch()
        return destination

    Compiled.opened, Compiled.bundle = [], bundle
    monkeypatch.setattr(ct.models, "CompiledMLModel", Compiled)
    monkeypatch.setattr(ct.models.utils, "compile_model", compile_model)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    return on_coreml


def test_elsewhere_it_says_what_runs_the_target():
    with pytest.raises(RuntimeLoadError, match=r"needs macOS 15, this is Linux; .*-reference"):
        find_engine("coreml")
    assert engine_for("coreml") == "coreml-reference"


def test_inspect_shows_the_largest_numbers_of_pictures(bundle):
    show = ("inspect", str(bundle.path), "--image", str(PICTURE))
    done = CliRunner().invoke(app, [*show, "--json"])
    found = json.loads(done.stdout)["largest_float16"]
    assert {"vision-1.encode", "decoder-0.prefill", "decoder-0.decode"} <= set(found)
    kinds = found["decoder-0.prefill"]
    assert list(kinds.values()) == sorted(kinds.values(), reverse=True)
    assert 0 < kinds["linear"] < 65_504
    text = CliRunner().invoke(app, show).stdout
    assert "Largest values in float16 (maximum 65,504), 1 image:" in text
    again = CliRunner().invoke(app, [*show, "--image", str(PICTURE.with_name("hand.jpg"))])
    assert "2 images" in again.stdout


def test_on_a_mac_it_answers_as_the_reference_does(mac, bundle):
    expected = load(bundle.path, "coreml-reference").generate(PICTURE, "What?", max_new_tokens=6)
    model = load(bundle.path)
    for _ in range(2):
        answer = model.generate(PICTURE, "What?", max_new_tokens=6)
        assert answer.engine == "coreml"
        assert answer.token_ids == expected.token_ids
    units = {block: units for block, units, _ in Compiled.opened}
    assert units["reduce-0"] == "CPU_ONLY"
    assert {u for block, u in units.items() if block != "reduce-0"} == {"ALL"}
    assert len(Compiled.opened) == sum(len(block.functions) for block in bundle.plan.blocks)


def test_a_package_is_compiled_once(mac, bundle, monkeypatch):
    block = bundle.plan.block("head-0")
    first = mac.compiled(bundle, block)
    monkeypatch.setattr(ct.models.utils, "compile_model", None)
    assert mac.compiled(bundle, block) == first
    assert {p.suffix for p in first.parent.iterdir()} == {".mlmodelc", ".json"}


def test_a_block_that_comes_back_has_its_cache(mac, bundle):
    engine = mac.Engine(bundle)
    block = bundle.plan.stage("decoder")[0]
    made = block.function("decode")
    rng, types = np.random.default_rng(0), {"f32": np.float32, "i32": np.int32}
    arrays = {t.name: np.zeros(t.shape, types[t.dtype]) for t in (*made.inputs, *made.outputs)}
    arrays["hidden"][:] = rng.standard_normal(arrays["hidden"].shape)
    arrays["cos"][:] = 1
    engine.bind(block.name, "decode", arrays)
    engine.load(block.name)
    engine.run(block.name, "decode")
    engine.unload(block.name)
    row = arrays["past_key_0"][:, :, 0].copy()
    assert np.abs(row).max() > 0
    engine.load(block.name)
    arrays["position"][:] = 1
    engine.run(block.name, "decode")
    arrays["past_key_0"][:] = 0
    engine.sync(block.name)
    assert np.array_equal(arrays["past_key_0"][:, :, 0], row)


def test_placement_counts_devices_by_function(mac, bundle, monkeypatch):
    class MLCPUComputeDevice:
        pass

    class MLNeuralEngineComputeDevice:
        pass

    usages = {"a": MLCPUComputeDevice(), "b": MLNeuralEngineComputeDevice(), "const": None}

    class Plan:
        def __init__(self):
            block = SimpleNamespace(operations=["a", "b", "b", "const"])
            functions = {"one": SimpleNamespace(block=block)}
            program = SimpleNamespace(functions=functions)
            self.model_structure = SimpleNamespace(program=program)

        def get_compute_device_usage_for_mlprogram_operation(self, operation):
            found = usages[operation]
            return found and SimpleNamespace(preferred_compute_device=found)

    def load_from_path(path, units):
        fits(REAL_PLAN, path, units)
        assert path.endswith(".mlmodelc")
        return Plan()

    monkeypatch.setattr(MLComputePlan, "load_from_path", load_from_path)
    found = mac.placement(bundle)
    assert found["decoder-0.one"] == {"cpu": 1, "neural_engine": 2}
    assert len(found) == len(bundle.plan.blocks)
