"""Rows of calls where tokens see later ones, and what does not go with such layers."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

from edgevlm.bundle.host import Layout, LayoutItem, Rope
from edgevlm.bundle.kinds.shared.decoder import most_together
from edgevlm.bundle.kinds.shared.states import CacheSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import LayerNumbers
from edgevlm.graphs.parts import DecoderSpec
from edgevlm.planning.calls import (
    MOST_VISUAL,
    check_layers,
    check_visual,
    chunk_tokens,
    context_tokens,
)
from edgevlm.recipe import Recipe


def spec(mask="causal", window=0, ropes=1):
    layers = (LayerNumbers(window=window), LayerNumbers())
    tables = (Rope((1.0,), 1.0),) * ropes
    return DecoderSpec(4, (CacheSpec(1, 2),) * 2, layers, tables, 1.0, 4096, mask=mask)


def test_a_prompt_with_a_picture_is_one_call():
    assert chunk_tokens(Recipe(), 600, False) == 216
    assert chunk_tokens(Recipe(), 600, False, picture=560) == 632


def test_a_clip_is_calls_that_each_take_a_frame_whole():
    assert chunk_tokens(Recipe(), 628, False, picture=70) == 224
    assert chunk_tokens(Recipe(), 2060, False, picture=500) == 504
    with pytest.raises(PlanError, match=r"^chunk 64 is too short: the 70 visual tokens"):
        chunk_tokens(Recipe(chunk=64), 628, False, picture=70)


def test_visual_tokens_together_are_those_of_a_frame_where_words_stand_between_frames():
    words, frames = LayoutItem("ids", ids=(1,)), [LayoutItem("visual", stop=8, start=0)]
    frames += [replace(frames[0], start=8, stop=16), replace(frames[0], start=16, stop=24)]
    apart = [item for frame in frames for item in (words, frame)]
    for items, kept, most in ((apart, 24, 8), (apart, 6, 6), (frames, 24, 24), (frames, 9, 9)):
        assert most_together(Layout((), tuple(items), (), ()), kept) == most


def test_a_chunk_takes_a_picture_whole():
    with pytest.raises(PlanError, match=r"^chunk 24 is too short: the 32 visual tokens"):
        chunk_tokens(Recipe(chunk=24), 60, False, picture=32)
    assert chunk_tokens(Recipe(chunk=32), 60, False, picture=32) == 32


def test_the_context_has_room_for_a_call_that_ends_early():
    line = "take 60 tokens, and a call that ends early up to 32 more, expected 93 at least; give"
    with pytest.raises(PlanError, match=rf"^context 90 is too short: .* {line} --context 93 or"):
        context_tokens(Recipe(context=90), 60, 32, spec("pictures"), False, picture=32)
    assert context_tokens(Recipe(context=90), 60, 32, spec(), False) == 96
    assert context_tokens(Recipe(context=93), 60, 32, spec("pictures"), False, picture=32) == 96


@pytest.mark.parametrize(("speculate", "least"), [(0, 62), (8, 102)])
def test_a_short_context_is_told_the_least_that_would_do(speculate, least):
    recipe = Recipe(context=20, speculate=speculate)
    with pytest.raises(PlanError, match=rf"expected {least} at least; give --context {least} or"):
        context_tokens(recipe, 60, 2, spec(), False)
    assert context_tokens(replace(recipe, context=least), 60, 2, spec(), False) == least


def test_a_chunk_that_leaves_too_little_of_the_model_is_told_so():
    few = replace(spec(), max_positions=100)
    line = "^chunk 64 does not fit: whole chunks within the model's 100 positions are 64 tokens, ex"
    with pytest.raises(PlanError, match=line + "pected 82 at least; give a smaller --chunk$"):
        context_tokens(Recipe(context=90), 80, 64, few, False)


def test_a_prompt_beyond_the_model_is_told_so_whatever_the_context():
    few = replace(spec(), max_positions=100)
    for context in (None, 90):
        with pytest.raises(PlanError, match="take 120 tokens, more than fit the model's 100 pos"):
            context_tokens(Recipe(context=context), 120, 64, few, False)


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        (spec("pictures"), "tokens of a picture or prompt see each other both ways"),
        (spec("prefix"), "tokens of a picture or prompt see each other both ways"),
        (spec(ropes=2), "layers have 2 rotary tables"),
        (spec(window=50), "some layers see 50 tokens of 64"),
    ],
)
def test_methods_inside_need_plain_causal_layers(decoder, reason):
    with pytest.raises(PlanError, match=f"^fastv at site decoder needs .* {reason}; leave it out$"):
        check_layers(decoder, "fastv at site decoder", 32, 64)
    check_layers(decoder, "", 32, 64)


def test_a_window_that_hides_nothing_takes_all_methods():
    check_layers(spec(window=64), "fastv at site decoder", 32, 64)


def test_a_prompt_is_no_longer_than_a_window():
    with pytest.raises(PlanError, match="layers with a window of 50 tokens cannot"):
        check_layers(spec("prefix", window=50), "", 56, 64)
    check_layers(spec("prefix", window=56), "", 56, 64)


def test_visual_tokens_that_cannot_fit_are_refused_before_a_prompt_is_made():
    check_visual(MOST_VISUAL, 4095, spec())
    with pytest.raises(PlanError, match=r"^4096 visual tokens are more than fit the model's"):
        check_visual(5000, 4096, spec())
    with pytest.raises(PlanError, match=r"^the encoder gives 16385 visual tokens, expected"):
        check_visual(MOST_VISUAL + 1, 64, spec())
