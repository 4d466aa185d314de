from __future__ import annotations

import pkgutil
import sys

import pytest

import edgevlm
from edgevlm import registry
from edgevlm.errors import RecipeError, RuntimeLoadError, unknown_name
from edgevlm.registry import DATASETS, ENGINES, FAMILIES, METHODS, TARGETS, Registry, SiteRegistry


def test_public_names_are_few_and_there():
    assert edgevlm.__all__ == [
        "Bundle", "EdgeVLMError", "Model", "Recipe", "export", "load", "plan", "verify"
    ]  # fmt: skip
    assert len(edgevlm.__all__) < 10
    modules = {module.name for module in pkgutil.iter_modules(edgevlm.__path__)}
    assert not modules & set(edgevlm.__all__)  # a module would take the function's place
    for name in edgevlm.__all__:
        assert getattr(edgevlm, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'edgevlm' has no attribute 'pipeline_of'"):
        _ = edgevlm.pipeline_of


@pytest.mark.parametrize(
    ("plug_ins", "wrong", "near"),
    [(METHODS, "divprun", "divprune"), (TARGETS, "onx", "onnx"), (FAMILIES, "smolvln", "smolvlm"),
     (ENGINES, "onnx-runtime", "onnxruntime"), (DATASETS, "nlvx", "nlvr")],
    ids=["method", "target", "family", "engine", "dataset"],
)  # fmt: skip
def test_an_unknown_name_comes_with_the_nearest(plug_ins, wrong, near):
    with pytest.raises(RecipeError) as error:
        plug_ins.load(wrong)
    known = ", ".join(plug_ins.names())
    expected = f"unknown {plug_ins.kind} '{wrong}'; did you mean '{near}'? known: {known}"
    assert str(error.value) == expected


@pytest.mark.parametrize(
    "name", ["", "../recipe", "_primitives", "__init__", "os", "a.b", "x" * 500]
)
def test_only_plug_ins_are_imported(name):
    with pytest.raises(RecipeError, match="unknown method") as error:
        METHODS.load(name)
    known = len(", ".join(METHODS.names()))
    assert len(str(error.value)) < 120 + known


def test_a_dash_may_stand_for_an_underscore():
    pytest.importorskip("torch")
    assert METHODS.load("average-pool") is METHODS.load("average_pool")


def test_sites_are_folders_in_order_of_preference():
    assert METHODS.sites() == ["tokens", "vision", "decoder", "input"]
    assert METHODS.sites_of("mustdrop") == ["vision", "decoder"]
    assert METHODS.site_of("tome") == "tokens"
    assert METHODS.site_of("tome", "vision") == "vision"
    assert "fastv" in METHODS.names("decoder")
    assert "fastv" not in METHODS.names("tokens")


def test_a_method_is_loaded_by_name_and_site():
    pytest.importorskip("torch")
    assert METHODS.load("tome").__name__ == "edgevlm.compress.tokens.tome"
    assert METHODS.load("tome", "vision").__name__ == "edgevlm.compress.vision.tome"
    with pytest.raises(RecipeError) as error:
        METHODS.load("fastv", "vision")
    assert str(error.value) == "method 'fastv' works at site 'decoder', not 'vision'"


def test_a_new_folder_is_a_new_site(plug_ins):
    folder, plug_in = plug_ins
    for site in ("late", "early"):
        (folder / site).mkdir()
        (folder / site / "__init__.py").touch()
        (folder / site / "drop.py").touch()
    by_site = SiteRegistry("method", plug_in.package, ("late",))
    assert by_site.sites_of("drop") == ["late", "early"]
    assert by_site.load("drop", "early").__name__ == f"{plug_in.package}.early.drop"


def test_without_any_plug_in():
    assert unknown_name("method", "x", []) == "unknown method 'x'; known: none"


@pytest.fixture
def plug_ins(tmp_path, monkeypatch):
    """A registry over a folder that a test may fill; its files begin with `to_`."""
    package = tmp_path / "plug_ins_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package, Registry("target", package.name, "to_")
    for name in [n for n in sys.modules if n.startswith(package.name)]:
        del sys.modules[name]


def test_a_new_file_is_a_new_plug_in(plug_ins):
    folder, plug_in = plug_ins
    (folder / "to_new_one.py").write_text("NAME = 'new'")
    (folder / "_shared.py").touch()
    (folder / "other.py").touch()
    assert plug_in.names() == ["new_one"]
    assert plug_in.load("new-one").NAME == "new"


def test_a_missing_library_names_the_extra_and_keeps_the_cause(plug_ins):
    folder, plug_in = plug_ins
    (folder / "to_coreml.py").write_text("import no_such_library.inner")
    with pytest.raises(RuntimeLoadError) as error:
        plug_in.load("coreml")
    expected = "target 'coreml' needs 'no_such_library'; pip install 'edgevlm[coreml]'"
    assert str(error.value) == expected
    assert isinstance(error.value.__cause__, ModuleNotFoundError)


def test_our_own_missing_module_is_a_defect(plug_ins):
    folder, plug_in = plug_ins
    (folder / "to_broken.py").write_text("import edgevlm.no_such_module")
    with pytest.raises(ModuleNotFoundError):
        plug_in.load("broken")


def test_no_engine_gives_every_engines_reason(monkeypatch):
    def load(self, name):
        raise RuntimeLoadError(f"engine '{name}' needs a library; pip install 'edgevlm[{name}]'")

    monkeypatch.setattr(Registry, "load", load)
    with pytest.raises(RuntimeLoadError) as error:
        registry.engine_for("onnx")
    assert str(error.value).startswith("no engine here runs target 'onnx'; engine '")
    assert "pip install 'edgevlm[onnxruntime]'" in str(error.value)
