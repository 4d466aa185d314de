"""What a plan does not know of a model: the end of its context, and its stop tokens."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.processor import stop_ids  # noqa: E402
from edgevlm.parity.checks import CONTEXT_LIMIT, preprocessing_check, prompt_check, stop_check  # noqa: E402
from edgevlm.parity.own.vlm import context_rel_error, own_stop_ids  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.loops.sequence import text_rows  # noqa: E402


def measured(folder, change=lambda model: None):
    """The difference at the end of the context, after a change of transformers' model."""
    planned = make_plan(Recipe(model=folder, tokens=16, context=160), find(folder))
    model = planned.checkpoint.load_model()
    parts, width = planned.parts(model), planned.plan.host.embedding.columns
    prompt = text_rows(planned.plan, np.ones((40, width), np.float32))
    change(model)
    with torch.no_grad():
        return context_rel_error(model, parts, planned.plan, prompt)


def turned_faster(model):
    model.model.text_model.rotary_emb.inv_freq *= 1.01


def scaled_late(model):
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.tanh())


@pytest.mark.parametrize("change", [turned_faster, scaled_late])
def test_what_the_language_model_does_beside_its_layers_is_found(tiny_model, change):
    assert measured(tiny_model) < CONTEXT_LIMIT / 10
    assert measured(tiny_model, change) > CONTEXT_LIMIT


def test_a_window_that_hides_a_few_rows_is_found(preset, tmp_path):
    folder = shutil.copytree(preset("tiny-llava-next"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"model_type": "mistral", "sliding_window": None}
    (folder / "config.json").write_text(json.dumps(config))

    def hide(model):
        model.config.text_config.sliding_window = 150
        model.model.language_model.config.sliding_window = 150

    assert measured(str(folder)) < CONTEXT_LIMIT / 10
    assert measured(str(folder), hide) > CONTEXT_LIMIT


def test_stop_tokens_are_asked_of_the_model(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].pop("eos_token_id")
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [7, 5]}))
    checkpoint = find(str(folder))
    own = own_stop_ids(checkpoint.empty_model(), folder)
    assert own == stop_ids(checkpoint, 1024) == (5, 7)


def test_other_stop_tokens_do_not_pass():
    check = stop_check((5,), (5, 7))
    assert (check.ok, check.value) == (False, 0.5)
    assert check.text == "an answer ends at [5], the model's generation config says [5, 7]"
    assert stop_check((), ()).ok
    assert not stop_check((), (5,)).ok


def test_another_number_of_visual_tokens_does_not_pass():
    assert not prompt_check(1.0, "the processor writes 25").ok
    assert prompt_check(1.0, "").ok


def test_views_that_cannot_be_compared_do_not_pass():
    check = preprocessing_check(None)
    assert not check.ok
    assert check.text.startswith("preprocessing cannot be compared: the checkpoint's processor")


def test_a_bundle_with_other_stop_tokens_is_no_good(edited):
    pytest.importorskip("onnxruntime")
    from edgevlm.parity.verify import verify

    path = edited(lambda document: document["host"].update(stop_ids=[3]))
    result = verify(path)
    assert [check.name for check in result.checks if not check.ok] == ["stop_ids_equal"]
    assert result.first_failure().startswith("an answer ends at [3], the model's generation config")
