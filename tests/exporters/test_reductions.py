"""Which methods the targets' tests run by default: together they have every operator of all."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_methods_that_run_by_default_have_the_operators_of_the_others(reduction, short_methods):
    """Operators with the type of their result, as torch.export writes them for a target."""

    def operators(methods):
        found = set()
        for method in methods:
            module, inputs = reduction("onnx", method)
            with torch.no_grad():
                program = torch.export.export(module, tuple(inputs), strict=False)
            for node in program.graph.nodes:
                if node.op == "call_function":
                    value = node.meta["val"]
                    first = value[0] if isinstance(value, tuple | list) else value
                    found.add((str(node.target), str(getattr(first, "dtype", None))))
        return found

    slow = operators(short_methods["slow"])
    assert len(slow) > 30
    assert slow <= operators(short_methods["default"])
