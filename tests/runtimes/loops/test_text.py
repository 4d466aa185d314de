"""The text loop on exported tiny bundles: turns, pictures, context, sampling, streaming."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from edgevlm.api import Model
from edgevlm.bundle.files import Bundle
from edgevlm.errors import InputError
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.sampling import Sampling
from edgevlm.runtimes.loops.sequence import assemble, text_rows
from edgevlm.runtimes.loops.text import TextLoop, TextStream
from edgevlm.runtimes.on_onnxruntime.engine import Engine
from edgevlm.runtimes.residency.resident import ResidentBlocks

ROOT = Path(__file__).resolve().parents[3]
FLOWER, STREAM = (
    images.load(ROOT / "edgevlm" / "photos" / f"{name}.jpg") for name in ("flower", "stream")
)
QUESTION = "What is in this picture?"


def seeing(loop, *pictures):
    return lambda: [loop.see([picture]) for picture in pictures]


@pytest.mark.parametrize(
    ("chunk", "context"), [(8, 512), pytest.param(64, 8192, marks=pytest.mark.slow)]
)
def test_the_chunk_changes_no_token(loop_of, loop, chunk, context):
    other = loop_of(chunk=chunk, context=context)
    for pictures in ((FLOWER,), (STREAM, FLOWER)):
        loop.reset()
        other.reset()
        one = loop.ask(QUESTION, seeing(loop, *pictures), max_new_tokens=24)
        two = other.ask(QUESTION, seeing(other, *pictures), max_new_tokens=24)
        assert one.token_ids == two.token_ids
        assert one.prompt_tokens == two.prompt_tokens


def test_a_further_turn_equals_prefilling_the_whole_conversation(loop):
    visual = loop.see([FLOWER])
    first = loop.ask(QUESTION, lambda: [visual], max_new_tokens=7)
    assert first.stopped == "length"
    assert first.summary.endswith("; cut off after 7 tokens (--max-new-tokens)")
    second = loop.ask("And why?", max_new_tokens=1)
    turn = loop.logits().copy()  # scores after the token of the second answer
    plan = loop.plan
    prompt = assemble(
        plan, plan.host.layout.prompt, loop.table, loop.tokenizer, QUESTION, [visual], 0
    )
    more = assemble(plan, plan.host.layout.turn, loop.table, loop.tokenizer, "And why?", [], 0)
    reply = loop.table[[*first.token_ids]]
    rows = np.concatenate([prompt.rows, reply, more.rows])
    loop.reset()
    loop.prefill(text_rows(plan, rows))
    whole = loop.logits().copy()
    assert int(whole.argmax()) == second.token_ids[0]
    loop.reset()
    loop.ask(QUESTION, lambda: [visual], max_new_tokens=7)
    loop.prefill(text_rows(plan, more.rows, loop.position))
    np.testing.assert_allclose(loop.logits(), whole, atol=1e-4 * np.abs(whole).max())
    assert turn.shape == whole.shape


def test_a_picture_that_is_asked_about_again_is_computed_once(loop_of, monkeypatch):
    loop, fresh = (loop_of(chunk=16, context=512) for _ in range(2))
    runs, run = [], loop.blocks.run

    def counted(block, function):
        runs.append((block, function))
        run(block, function)

    monkeypatch.setattr(loop.blocks, "run", counted)
    loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=4)
    before = runs.copy()
    for question in ("And what else?", QUESTION):  # the second has more in common with no answer
        runs.clear()
        loop.reset()
        answer = loop.ask(question, seeing(loop, FLOWER), max_new_tokens=12)
        fresh.forget()
        assert (
            answer.token_ids
            == fresh.ask(question, seeing(fresh, FLOWER), max_new_tokens=12).token_ids
        )
        assert not {"encode", "reduce"} & {function for _, function in runs}
        chunks = sum(function == "prefill" for _, function in runs)
        assert 0 < chunks <= sum(function == "prefill" for _, function in before) / 2
        assert answer.vision_ms == answer.reduce_ms == 0.0
        assert answer.prompt_tokens > 64
    loop.reset()
    runs.clear()
    loop.ask(QUESTION, seeing(loop, STREAM), max_new_tokens=1)
    assert ("reduce-0", "reduce") in runs
    assert len(loop._known) == 2
    for shade in range(6):
        loop.see([FLOWER.point(lambda value, shade=shade: value // (shade + 2))])
    assert len(loop._known) == 4


def test_a_reset_forgets(loop):
    one = loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=8)
    loop.ask("And why?", max_new_tokens=8)
    loop.reset()
    assert loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=8).token_ids == one.token_ids


def test_several_images_stand_in_their_order(loop):
    counts, tokens = {}, {}
    for name, pictures in {
        "one": (FLOWER,),
        "two": (FLOWER, STREAM),
        "turned": (STREAM, FLOWER),
        "none": (),
    }.items():
        loop.reset()
        answer = loop.ask(QUESTION, seeing(loop, *pictures), max_new_tokens=8)
        counts[name], tokens[name] = answer.prompt_tokens, answer.token_ids
        assert answer.visual_tokens == 64 * len(pictures)
    assert (
        counts["two"] - counts["one"]
        == counts["one"] - counts["none"]
        == loop.plan.host.image_tokens
    )
    assert counts["two"] == counts["turned"]
    assert len(set(tokens.values())) == 4


def test_pictures_in_a_further_turn_are_refused(loop):
    loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=2)
    with pytest.raises(InputError, match=r"^images belong to the first turn; start a new"):
        loop.ask(QUESTION, seeing(loop, STREAM))


def test_another_number_of_frames_is_refused(loop):
    with pytest.raises(InputError, match=r"^the bundle takes 1 frames per clip, got 2$"):
        loop.see([FLOWER, STREAM])


def test_the_answer_ends_when_the_context_is_full(loop):
    answer = loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=10_000)
    assert answer.stopped == "context"
    assert answer.summary.endswith("; cut off, as the context is full (export --context)")
    assert (
        answer.prompt_tokens + len(answer.token_ids) == loop.plan.host.states.tokens == loop.length
    )
    with pytest.raises(
        InputError, match=r"^the turn has \d+ tokens, the context of 512 has room for 0; begin a"
    ):
        loop.ask("And why?")


def test_a_turn_that_does_not_fit_changes_nothing(loop):
    first = loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=4)
    length = loop.length
    with pytest.raises(
        InputError, match=r"^the turn has \d+ tokens, the context of 512 has room for \d+; begin a"
    ):
        loop.ask("word " * 600)
    assert loop.length == length
    after = loop.ask("And why?", max_new_tokens=4)
    loop.reset()
    assert loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=4).token_ids == first.token_ids
    assert loop.ask("And why?", max_new_tokens=4).token_ids == after.token_ids


def test_the_context_is_named_only_where_it_is_what_cuts(loop):
    room = loop.plan.host.states.tokens - loop.ask(QUESTION, max_new_tokens=1).prompt_tokens
    for most, expected in ((room - 1, "length"), (room, "length"), (room + 1, "context")):
        loop.reset()
        answer = loop.ask(QUESTION, max_new_tokens=most)
        assert (answer.stopped, len(answer.token_ids)) == (expected, min(most, room))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 1, got -1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, got 2.5"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be a whole number, got 2.0"),
        ({"max_new_tokens": "5"}, "max_new_tokens must be a whole number, got '5'"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, got True"),
        ({"max_new_tokens": None}, "max_new_tokens must be a whole number, got NoneType"),
        ({"max_new_tokens": np.zeros(900)}, "max_new_tokens must be a whole number, got ndarray"),
        ({"prompt": None}, "the prompt must be a text, got NoneType"),
        ({"prompt": b"hi"}, "the prompt must be a text, got bytes; decode it first"),
        ({"prompt": "\ud800"}, "the prompt is not valid UTF-8"),
        ({"sampling": 0.5}, "sampling must be a Sampling, got float"),
        ({"on_text": "print"}, "on_text must be a function, got str"),
        ({"draft": 3}, "draft must be a text, got int"),
        ({"video": 3}, "the bundle takes still images; export it with --frames for video"),
    ],
)
def test_a_wrong_argument_is_one_line(loop, arguments, text):
    model = Model(loop)
    with pytest.raises(InputError) as error:
        model.generate(FLOWER, **({"prompt": QUESTION} | arguments))
    assert str(error.value) == text
    if {"image", "video"}.isdisjoint(arguments):
        with pytest.raises(InputError) as error:
            model.chat(**({"prompt": QUESTION} | arguments))
        assert str(error.value) == text
    assert model.generate(FLOWER, QUESTION, max_new_tokens=2).token_ids


def test_numpy_numbers_are_numbers(loop):
    answer = loop.ask(QUESTION, seeing(loop, FLOWER), np.int64(3), Sampling(np.float32(0.5)))
    assert len(answer.token_ids) == 3


def test_threads_get_their_own_answers(loop):
    model, pictures = Model(loop), {"flower": FLOWER, "stream": STREAM}
    expected = {name: model.generate(p, QUESTION, max_new_tokens=6) for name, p in pictures.items()}
    assert expected["flower"].token_ids != expected["stream"].token_ids
    with ThreadPoolExecutor(4) as pool:
        asked = [
            (name, pool.submit(model.generate, pictures[name], QUESTION, max_new_tokens=6))
            for name in [*pictures] * 6
        ]
        for name, answer in asked:
            assert answer.result().token_ids == expected[name].token_ids
            assert answer.result().text == expected[name].text


def test_a_question_inside_an_answer_is_refused(loop):
    model = Model(loop)
    with pytest.raises(InputError, match=r"^the model is answering; ask it again after the answer"):
        model.generate(FLOWER, QUESTION, on_text=lambda _: model.chat("And why?"))
    assert model.generate(FLOWER, QUESTION, max_new_tokens=2).token_ids  # it is free again


def test_max_new_tokens_is_the_most(loop):
    for count in (1, 2, 5):
        loop.reset()
        answer = loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=count)
        assert len(answer.token_ids) == count
        assert (answer.decode_tokens_per_s is None) == (count == 1)


def test_a_stop_token_ends_the_answer_and_is_not_text(loop):
    free = loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=12)
    stop = free.token_ids[6]
    first = free.token_ids.index(stop)
    host = replace(loop.plan.host, stop_ids=(stop,))
    bundle = Bundle(loop.bundle.path, replace(loop.plan, host=host))
    stopping = TextLoop(bundle, ResidentBlocks(bundle.plan, Engine(bundle, threads=1)))
    shown = []
    answer = stopping.ask(
        QUESTION, seeing(stopping, FLOWER), max_new_tokens=12, on_text=shown.append
    )
    assert answer.stopped == "stop"
    assert "cut off" not in answer.summary
    assert answer.token_ids == free.token_ids[: first + 1]
    assert answer.text == loop.tokenizer.decode(list(free.token_ids[:first]))
    assert answer.text == "".join(shown)
    # The turn's layout writes the stop token itself.
    assert stopping.length == answer.prompt_tokens + first


def test_sampling_follows_its_seed(loop):
    def sampled(**options):
        loop.reset()
        sampling = Sampling(temperature=1.5, **options)
        return loop.ask(QUESTION, seeing(loop, FLOWER), 16, sampling).token_ids

    assert sampled(seed=3) == sampled(seed=3)
    assert sampled(seed=3) != sampled(seed=4)
    assert sampled(seed=3) == sampled(seed=3, top_p=1.0)
    greedy = sampled(top_p=0.0)
    loop.reset()
    assert greedy == loop.ask(QUESTION, seeing(loop, FLOWER), 16).token_ids


@given(st.text(max_size=40))
def test_streamed_text_is_the_text_whatever_the_tokens_cut(shared, text):
    shown = []
    stream = TextStream(shared.tokenizer, shown.append)
    for token in shared.tokenizer.encode(text, add_special_tokens=False).ids:
        stream.add(token)
        assert "".join(shown) == text[: len("".join(shown))]
    assert stream.finish() == "".join(shown) == text


@given(st.lists(st.integers(0, 1023), max_size=30))
def test_streamed_text_is_the_final_text_of_any_tokens(shared, ids):
    shown = []
    stream = TextStream(shared.tokenizer, shown.append)
    for token in ids:
        stream.add(token)
    assert stream.finish() == "".join(shown)


@given(st.lists(st.sampled_from([0x41, 0x80, 0xC3, 0xA9, 0xE2, 256, 257]), max_size=8))
@example([0x41, 0xC3, 257])  # "A" until the next byte makes none of both
def test_streamed_bytes_are_those_of_the_final_text(ids):
    words = {f"<0x{i:02X}>": i for i in range(256)} | {"<unk>": 256, "m": 257}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    shown = []
    stream = TextStream(tokenizer, shown.append)
    for token in ids:
        stream.add(token)
    assert stream.finish() == "".join(shown)


def test_a_character_of_several_tokens_is_shown_once_it_is_whole(shared):
    ids = shared.tokenizer.encode("a🙂b").ids
    assert len(ids) > 4
    shown = []
    stream = TextStream(shared.tokenizer, shown.append)
    for token in ids:
        stream.add(token)
    assert shown == ["a", "🙂", "b"]


def test_an_answer_streams_its_text(loop):
    shown = []
    answer = loop.ask(QUESTION, seeing(loop, FLOWER), 40, on_text=shown.append)
    assert "".join(shown) == answer.text
    assert len(shown) > 10


def test_the_cache_is_one_buffer_written_in_place(loop):
    pointers = [one.ctypes.data for one in loop.arrays.states]
    loop.forget()  # else rows that an earlier test wrote are taken to be there
    for one in loop.arrays.states:
        one[:] = 0
    for name in ("prefill", "decode"):
        arrays = loop.blocks.engine.arrays["decoder-0", name]
        for layer in range(len(loop.plan.host.states.layers)):
            for part in ("key", "value"):
                past, present = (arrays[f"{time}_{part}_{layer}"] for time in ("past", "present"))
                assert past is present
                assert past.ctypes.data in pointers
    loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=20)
    assert pointers == [one.ctypes.data for one in loop.arrays.states]
    for one in loop.arrays.states:
        assert np.abs(one[:, :, : loop.length]).min(axis=(0, 1, 3)).size == loop.length
        assert (np.abs(one[0, :, : loop.length]).max(-1) > 0).all()
        assert (one[:, :, loop.length + loop.plan.host.chunk :] == 0).all()


@pytest.fixture(scope="module")
def original(loop_of):
    methods = ("divprune:positions=original",)
    return loop_of(chunk=16, context=512, tokens=16, methods=methods)


def test_original_positions_are_those_of_the_full_sequence(loop, original):
    original.reset()
    full, kept = loop.see([FLOWER]), original.see([FLOWER])
    pieces = [
        assemble(
            one.plan, one.plan.host.layout.prompt, one.table, one.tokenizer, QUESTION, [visual], 0
        )
        for one, visual in ((loop, full), (original, kept))
    ]
    assert len(pieces[0].rows) - len(pieces[1].rows) == 48
    begin = next(i for i, row in enumerate(pieces[0].rows) if np.array_equal(row, full.tokens[0]))
    expected = [*range(begin), *(begin + kept.positions), *range(begin + 64, len(pieces[0].rows))]
    assert pieces[1].positions[:, 0].tolist() == expected
    assert pieces[0].positions[:, 0].tolist() == list(range(len(pieces[0].rows)))
    assert pieces[0].next == pieces[1].next == len(pieces[0].rows)


def test_decoding_goes_on_at_the_original_position(loop, original):
    original.reset()
    a = loop.ask(QUESTION, seeing(loop, FLOWER), max_new_tokens=3)
    b = original.ask(QUESTION, seeing(original, FLOWER), max_new_tokens=3)
    assert a.prompt_tokens - b.prompt_tokens == 48
    assert loop.position == original.position == loop.length == original.length + 48
    original.ask("And why?", max_new_tokens=3)
    loop.ask("And why?", max_new_tokens=3)
    assert loop.position == original.position == original.length + 48


def test_running_a_bundle_imports_no_torch(loop):
    program = """
import sys, edgevlm
model = edgevlm.load(sys.argv[1], threads=1)
answer = model.generate(sys.argv[2], "What is this?", max_new_tokens=4)
heavy = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "jinja2", "safetensors"}
print(answer.token_ids, sorted(heavy & set(sys.modules)))
"""
    photo = ROOT / "edgevlm" / "photos" / "flower.jpg"
    done = subprocess.run(
        [sys.executable, "-c", program, str(loop.bundle.path), str(photo)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    expected = loop.ask("What is this?", seeing(loop, FLOWER), max_new_tokens=4)
    assert done.stdout.strip() == f"{expected.token_ids} []"


def test_the_tokenizer_is_the_checkpoints(loop, tiny_model):
    own = Tokenizer.from_file(str(Path(tiny_model, "tokenizer.json")))
    assert loop.tokenizer.get_vocab() == own.get_vocab()
    assert loop.tokenizer.get_added_tokens_decoder() == own.get_added_tokens_decoder()
    assert [loop.tokenizer.padding, loop.tokenizer.truncation] == [None, None]
