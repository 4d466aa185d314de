"""A stream over a tiny bundle: what the cache holds, what leaves it, and what is asked of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.sequence import text_rows
from edgevlm.runtimes.loops.stream import Stream, StreamRequest
from edgevlm.runtimes.loops.stream.window import evict

QUESTION = "What is this?"


def told(loop, frames, asked=(), **options):
    """All events of a stream; `asked` are questions by the frames before them."""
    stream = Stream(loop, StreamRequest(frames, max_new_tokens=4, **options))
    found = []
    for event in stream.events():
        found.append(event)
        if event.event == "frame" and event.frames in asked:
            stream.ask(asked[event.frames])
    return found


def cached(loop):
    """Keys and values of the rows of the cache."""
    return [array[:, :, : loop.length].copy() for array in loop.arrays.states]


def of_kind(events, kind):
    return [event for event in events if event.event == kind]


def test_a_stream_of_a_clips_frames_is_the_clip(streaming, pictures):
    frames = list(pictures(3))
    (answer, _) = told(streaming, frames, prompt=QUESTION)[-2:]
    rows, streamed = streaming.length, cached(streaming)
    streaming.reset()
    streaming.forget()
    whole = streaming.ask(QUESTION, streaming.visuals(frames), 4)
    assert answer.text == whole.text
    assert answer.rows + rows == whole.prompt_tokens
    for ours, array in zip(streamed, streaming.arrays.states, strict=True):
        np.testing.assert_allclose(ours, array[:, :, :rows], atol=1e-4)


def test_a_question_leaves_no_trace(streaming, pictures):
    frames = list(pictures(12))
    asked = told(streaming, frames, dict.fromkeys((1, 2, 5, 9), QUESTION), prompt="And this?")
    after = cached(streaming), streaming.position
    without = told(streaming, frames, prompt="And this?")
    assert [len(of_kind(events, "answer")) for events in (asked, without)] == [5, 1]
    assert asked[-2].text == without[-2].text
    assert after[1] == streaming.position
    for one, other in zip(after[0], cached(streaming), strict=True):
        np.testing.assert_array_equal(one, other)


def test_frames_leave_and_the_context_is_never_full(streaming, pictures):
    events = told(streaming, pictures(40), prompt=QUESTION, ask_every=7)
    seen, end = of_kind(events, "frame"), events[-1]
    assert [e.frames for e in seen] == list(range(1, 41))
    room = streaming.plan.host.states.tokens - 4 - 32
    assert max(e.cached for e in seen) <= room
    assert end.evicted > 30
    assert end.frames == 40
    assert end.dropped == end.refused == 0
    assert [e.seconds for e in of_kind(events, "answer")] == [7, 14, 21, 28, 35]
    assert streaming.position == streaming.length  # words and frames lie one behind the other


def test_what_left_is_seen_no_more_and_what_stayed_is_as_it_was(streaming, tiny_model):
    """transformers' model, from whose cache the same rows were taken, says what comes next."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    loop, plan = streaming, streaming.plan
    model = transformers.AutoModelForImageTextToText.from_pretrained(tiny_model)
    model = model.float().eval()
    rows = np.array(loop.table[np.arange(41) * 7 % 1000])
    loop.forget()
    loop.prefill(text_rows(plan, rows[:40]))
    evict(plan, loop.arrays.states, 4, 20, 40, 0)
    loop.go_back(24, 40, 4)
    loop.step("decode", rows[40:])
    cache = transformers.DynamicCache()
    with torch.no_grad():
        given = torch.from_numpy(rows)[None]
        model.model.text_model(inputs_embeds=given[:, :40], past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            layer.keys = torch.cat((layer.keys[:, :, :4], layer.keys[:, :, 20:]), 2)
            layer.values = torch.cat((layer.values[:, :, :4], layer.values[:, :, 20:]), 2)
        hidden = model.model.text_model(
            inputs_embeds=given[:, 40:],
            past_key_values=cache,
            position_ids=torch.tensor([[40]]),
            use_cache=True,
        ).last_hidden_state
        expected = model.lm_head(hidden)[0, -1].numpy()
    actual = loop.logits()
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_keys_that_are_turned_back_are_those_of_lower_positions(streaming):
    loop, plan = streaming, streaming.plan
    rows = np.array(loop.table[np.arange(60) * 11 % 1000])
    loop.forget()
    loop.prefill(text_rows(plan, rows[40:], 0))
    fresh = cached(loop)
    loop.forget()
    loop.prefill(text_rows(plan, rows))
    evict(plan, loop.arrays.states, 0, 40, 60, 40)
    # The first layer's keys are of the rows alone, not of what they saw.
    np.testing.assert_allclose(loop.arrays.states[0][:, :, :20], fresh[0], atol=1e-5)
    # Where all that is left moves together, nothing that is computed of it changes.
    next_row = np.array(loop.table[[5]])
    loop.go_back(20, 20, 0)
    loop.step("decode", next_row)
    moved = loop.logits().copy()
    loop.forget()
    loop.prefill(text_rows(plan, rows))
    evict(plan, loop.arrays.states, 0, 40, 60, 0)
    loop.go_back(20, 60, 0)
    loop.step("decode", next_row)
    np.testing.assert_allclose(moved, loop.logits(), atol=1e-4 * np.abs(moved).max())


def test_a_changed_scene_is_an_event(streaming, pictures):
    one, other = list(pictures(2, seed=5))
    events = told(streaming, [one, one, one, other, other])
    (change,) = of_kind(events, "scene_change")
    assert change.seconds == 3
    assert [e.changed for e in of_kind(events, "frame")][1:3] == [0, 0]


def test_a_question_that_does_not_fit_is_refused_and_the_stream_goes_on(streaming, pictures):
    events = told(streaming, pictures(3), {1: "word " * 2000, 2: QUESTION})
    (refused,) = of_kind(events, "refused")
    assert "the context has room for" in refused.error
    assert len(of_kind(events, "answer")) == 1
    assert json.dumps(refused.error)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ([], "the stream has no frame"),
        ([3], "expected an image"),
        (7, "expected a video or frames one by one, got int"),
        ("gopher://host/x", "'gopher://' is no address of a stream"),
        ("http://127.0.0.1:9/x", "cannot be read as a video"),
        ("nowhere.mp4", "no video at 'nowhere.mp4'"),
    ],
)
def test_a_source_that_gives_no_frame_is_refused_in_a_line(streaming, source, said):
    pytest.importorskip("av")
    with pytest.raises(InputError, match=said) as refused:
        told(streaming, source)
    assert "\n" not in str(refused.value)


def test_a_bundle_without_streams_says_how_to_get_one(shared):
    with pytest.raises(InputError, match="a stream needs a bundle of clips"):
        Stream(shared, StreamRequest([]))


def test_a_context_that_is_too_short_says_what_would_do(streaming, pictures):
    request = StreamRequest(list(pictures(1)), max_new_tokens=400)
    with pytest.raises(InputError, match=r"too short for a stream.* --context \d+"):
        list(Stream(streaming, request).events())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fps": 0}, "fps must be a number from 0.001 to 1e[+]06, got 0"),
        ({"prompt": "a", "ask_every": -1}, "ask_every must be"),
        ({"ask_every": 1}, "needs a prompt"),
    ],
)
def test_numbers_of_a_stream_are_checked(options, said):
    with pytest.raises(InputError, match=said):
        replace(StreamRequest([]), **options)
