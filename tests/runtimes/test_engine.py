"""Whatever a library raises in a call of an engine leaves it as one line of ours."""

from __future__ import annotations

import inspect

import pytest

from edgevlm import api
from edgevlm.errors import BundleError, EdgeVLMError, RuntimeLoadError
from edgevlm.registry import ENGINES
from edgevlm.runtimes import engine
from edgevlm.runtimes.engine import CALLS, WHOLE_CALLS

RAISED = (
    ValueError("\n[Library] no\nmore"), KeyError("kv"), MemoryError(), OSError(28, "No space"),
    RuntimeError(""), Exception("bare"), SystemError("x"), AttributeError("a"),
)  # fmt: skip
ARGUMENTS = {"bind": ("encode", {}), "prepare": ("encode", "private"), "run": ("encode",)}


def broken(cause):
    """An engine whose library fails in every call."""

    def fail(*_, **__):
        raise cause

    calls = dict.fromkeys(CALLS, fail) | dict.fromkeys(("__init__", "operators"), fail)
    return type("Broken", (engine.Engine,), {"name": "broken", **calls, "summary": fail,
                                             "inspect": classmethod(fail)})  # fmt: skip


@pytest.mark.parametrize("cause", RAISED, ids=lambda cause: type(cause).__name__)
def test_every_error_is_one_line_with_the_place(cause):
    kind = broken(cause)
    runs = object.__new__(kind)
    for name, what in CALLS.items():
        arguments = ARGUMENTS.get(name, ())
        with pytest.raises(RuntimeLoadError) as error:
            getattr(runs, name)("decoder-0", *arguments)
        where = "decoder-0.encode" if arguments else "decoder-0"
        assert str(error.value).startswith(f"{where} {what}: ")
        assert "\n" not in str(error.value)
        assert error.value.__cause__ is cause
    for name, what in WHOLE_CALLS.items():
        with pytest.raises(RuntimeLoadError) as error:
            kind(None) if name == "__init__" else getattr(runs, name)({})
        assert str(error.value).startswith(f"engine 'broken' {what}: ")


def test_an_error_of_ours_is_left_as_it_is():
    runs = object.__new__(broken(BundleError("'a' was changed")))
    for call in (lambda: runs.load("decoder-0", function="decode"), lambda: runs.operators({})):
        with pytest.raises(BundleError, match=r"^'a' was changed$"):
            call()
    kind = broken(ValueError("no"))
    with pytest.raises(RuntimeLoadError, match=r"^decoder-0\.decode does not load: no$"):
        object.__new__(kind).load("decoder-0", function="decode", mode="private")


@pytest.mark.parametrize("name", ENGINES.names())
def test_each_engine_of_ours_is_wrapped_and_keeps_its_signatures(name):
    kind = ENGINES.load(name).Engine
    for call in {*CALLS, *WHOLE_CALLS} & vars(kind).keys():
        assert hasattr(getattr(kind, call), "__wrapped__")
    assert list(inspect.signature(kind.run).parameters) == ["self", "block", "function"]


def test_a_failing_run_names_block_function_and_reason(exported, monkeypatch):
    pytest.importorskip("onnxruntime")
    from PIL import Image

    from edgevlm.runtimes.on_onnxruntime.engine import Engine

    class Session:
        def run_with_iobinding(self, binding):
            raise Exception(
                "\n\n[ONNXRuntimeError] : 6 : Gather: index 7 is out of bounds\nat x.cc"
            )

    model = api.load(exported.bundle.path)
    runs = model._loop.blocks.engine
    assert isinstance(runs, Engine)
    runs.run("vision-0", "encode")
    runs._sessions["vision-0", "encode"] = Session()
    with pytest.raises(EdgeVLMError) as error:
        model.generate(Image.new("RGB", (64, 64)), "What?")
    expected = (
        "vision-0.encode does not run: [ONNXRuntimeError] : 6 : Gather: index 7 is out of bounds"
    )
    assert str(error.value) == expected
