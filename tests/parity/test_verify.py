"""`verify` over engines whose numbers are wrong in one place: that place is named, and no other."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from edgevlm.bundle.documents import dumps
from edgevlm.parity.verify import verify
from edgevlm.runtimes.on_onnxruntime import engine as onnxruntime
from edgevlm.runtimes.on_onnxruntime.engine import Engine


@pytest.fixture
def faulty(monkeypatch):
    """`faulty(block, function, output, change)`: an engine that changes one output of each call."""

    def put(block, function, output, change):
        class Faulty(Engine):
            def bind(self, name, called, arrays):
                self.arrays = arrays
                super().bind(name, called, arrays)

            def run(self, name, called):
                super().run(name, called)
                if (name, called) == (block, function):
                    change(self.arrays[output])

        monkeypatch.setattr(onnxruntime, "Engine", Faulty)

    return put


def scaled(array):
    array *= 1.01


def no_number(array):
    array.flat[-1] = np.nan


def shifted(array):
    array[:] = (array + 1) % 64


FAULTS = [
    ("vision-0", "encode", "hidden_out", scaled),
    ("reduce-0", "reduce", "visual_tokens", scaled),
    ("reduce-0", "reduce", "kept_positions", shifted),
    ("decoder-0", "prefill", "hidden_out", scaled),
    ("decoder-1", "decode", "hidden_out", scaled),
    ("decoder-1", "decode", "present_value_0", scaled),
    ("decoder-1", "prefill", "present_key_0", scaled),
    ("head-1", "logits", "logits", scaled),
    ("head-1", "logits", "logits", no_number),
]


@pytest.mark.parametrize(("block", "function", "output", "change"), FAULTS)
def test_a_block_that_is_wrong_is_named(exported, faulty, block, function, output, change):
    """The chain goes on with wrong numbers, and every other block agrees on those."""
    faulty(block, function, output, change)
    result = verify(exported.bundle.path)
    assert not result.ok
    assert result.first_failure().startswith(f"{block}.{function} differs from PyTorch: rel_error ")
    # A cache that one function spoils is the other's too, whose copy in PyTorch is its own.
    wrong = {b.name for b in result.blocks if not b.ok}
    assert wrong == {block}


def test_checks_are_all_blocks_and_then_the_measures_of_the_whole(exported):
    result = verify(exported.bundle.path)
    functions = [f"{b.name}.{f.name}" for b in exported.bundle.plan.blocks for f in b.functions]
    measures = [
        "image_sensitivity", "preprocessing_error", "token_ids_equal", "stop_ids_equal",
        "context_rel_error", "logits", "tokens_equal",
    ]  # fmt: skip
    assert [check.name for check in result.checks] == functions + measures
    assert result.ok
    assert all(check.ok for check in result.checks)
    assert result.engine == "onnxruntime"


def test_every_number_of_the_document_is_one_of_json(exported, faulty):
    """NaN and Infinity are no JSON: what is not finite is written as the worst difference."""
    faulty("decoder-1", "decode", "hidden_out", no_number)
    text = dumps(verify(exported.bundle.path))
    assert '"checks"' in text
    assert "NaN" not in text
    assert "Infinity" not in text


def test_the_same_photo_twice_verifies_nothing(exported):
    """Then logits change by nothing, as those of a model that ignores the image would."""
    from edgevlm.parity.verify import PHOTOS

    result = verify(exported.bundle.path, photos=(PHOTOS[0], PHOTOS[0]))
    assert [check.name for check in result.checks if not check.ok] == ["image_sensitivity"]
    assert result.first_failure().startswith("the logits change by 0.000 with another image")
