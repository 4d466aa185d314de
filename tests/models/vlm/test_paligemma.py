"""PaliGemma: prompts without a chat, windows and caps; the rest is in test_families.py."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import InputError, PlanError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

QUESTION = "What is in this picture, and why?"


def test_a_prompt_is_one_group_that_begins_at_position_1(tiny, prompt):
    made = tiny("tiny-paligemma")
    host, ours = made.plan.host, prompt(made)
    assert (host.mask, host.first_position) == ("prefix", 1)
    assert host.layout.text == host.layout.turn == ()
    ours.rows(QUESTION, [torch.zeros(1, 64, 64)])
    assert ours.last.positions[0, 0] == 1
    assert not ours.last.groups.any()


@pytest.mark.parametrize(("name", "cap"), [("tiny-paligemma", 0.0), ("tiny-paligemma2", 3.0)])
def test_scores_of_words_are_bounded_as_the_models_are(tiny, name, cap):
    parts = tiny(name).parts
    hidden = 9 * torch.randn(3, 64)
    scores = hidden @ parts.head.T
    assert parts.logit_softcap == cap
    expected = cap * torch.tanh(scores / cap) if cap else scores
    torch.testing.assert_close(parts.scores(hidden), expected)


def test_a_prompt_longer_than_a_window_is_refused(preset):
    path = str(preset("tiny-paligemma2"))
    with pytest.raises(PlanError, match="layers with a window of 192 tokens cannot say so for a c"):
        make_plan(Recipe(model=path, chunk=208, context=240), find(path))


@pytest.mark.slow
def test_an_answer_is_about_pictures_and_the_only_one(preset, tmp_path, photo):
    pytest.importorskip("onnxruntime")
    from edgevlm import api

    out = tmp_path / "tiny.edgevlm"
    api.export(Recipe(model=str(preset("tiny-paligemma")), chunk=160), out)
    model, picture = api.load(out), photo(56, 56)
    assert model.generate([picture, photo(56, 56, "stream")], QUESTION).visual_tokens == 128
    for ask in (lambda: model.generate(None, QUESTION), lambda: model.chat("And now?")):
        with pytest.raises(InputError, match=r"^the model answers one question about a"):
            ask()
    with pytest.raises(
        InputError, match="tokens of the prompt see each other, and a call takes 160"
    ):
        model.generate(picture, QUESTION * 20)
