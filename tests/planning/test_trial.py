"""The first layers of a language model alone: a plan, a model and a bundle that say so."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.errors import PlanError, RecipeError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

TRIAL = "a trial: the first 1 layer of the language model alone; its answers mean nothing"


def planned(model, **options):
    return make_plan(Recipe(model=model, **options), find(model))


def test_a_trial_has_the_first_layers_alone(tiny_model, caplog):
    whole, made = planned(tiny_model), planned(tiny_model, layers=1)
    assert whole.notes == ()
    assert made.notes == (TRIAL,)
    assert not caplog.records  # the other layers' tensors are left out on purpose
    assert len(made.plan.host.states.layers) == 1
    assert [b.span for b in made.plan.stage("decoder")] == [(0, 1)]
    for stage in ("vision", "reduce", "head"):
        assert made.plan.stage(stage) == whole.plan.stage(stage)


def test_all_layers_are_no_trial(tiny_model):
    whole, made = planned(tiny_model), planned(tiny_model, layers=2)
    assert made.notes == ()
    assert made.plan == whole.plan  # whose bundle says nothing of a trial either


def test_the_layers_are_those_of_the_model(tiny_model):
    whole, made = planned(tiny_model), planned(tiny_model, layers=1)
    rows = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoder = whole.parts(whole.checkpoint.load_model()).decoder
        states = decoder.language_model(inputs_embeds=rows, output_hidden_states=True)
        cut = made.parts(made.checkpoint.load_model()).decoder.language_model
        expected = decoder.norm(states.hidden_states[1])
        assert torch.allclose(cut(inputs_embeds=rows).last_hidden_state, expected, atol=1e-6)


def test_lists_with_an_entry_a_layer_are_cut(tiny_model):
    checkpoint = find(tiny_model)
    checkpoint.config.text_config.layer_types = ["full_attention", "sliding_attention"]
    checkpoint.config.text_config.eos_token_id = [1, 2]
    text = checkpoint.cut(1).config.text_config
    assert (text.num_hidden_layers, text.layer_types) == (1, ["full_attention"])
    assert text.eos_token_id == [1, 2]
    assert checkpoint.config.text_config.num_hidden_layers == 2


def test_more_layers_than_there_are(tiny_model, preset):
    with pytest.raises(PlanError) as error:
        planned(tiny_model, layers=3)
    assert str(error.value) == "layers is 3, and the language model has 2; give fewer"
    with pytest.raises(RecipeError, match=r"^--layers is for models with a language model"):
        planned(str(preset("tiny-clip")), layers=1)


def test_layers_of_which_none_attends(preset):
    with pytest.raises(PlanError, match=r"layers, 1, are all recurrent, .* --layers$"):
        planned(str(preset("tiny-qwen3-5")), layers=1)


def test_a_trial_says_so_when_it_runs(run, edited):
    bundle = edited(lambda document: document["recipe"].update({"layers": 1}))
    done = run("run", bundle, "--prompt", "what", "--max-new-tokens", "1")
    assert TRIAL in done.stderr
    assert TRIAL in run("inspect", bundle).stdout
    assert json.loads(run("inspect", bundle, "--json").stdout)["format_version"]
