"""Conversations with a system prompt, and with texts between pictures, on a tiny bundle."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import edgevlm
from edgevlm.errors import InputError
from edgevlm.runtimes.loops.sequence import assemble, text_rows
from edgevlm.runtimes.loops.spelling import first_turn

PHOTOS = Path(__file__).resolve().parents[3] / "edgevlm" / "photos"
FLOWER, STREAM = PHOTOS / "flower.jpg", PHOTOS / "stream.jpg"
SYSTEM = "Answer in one word."
PARTS = ["Is ", None, " like ", None, "?"]


@pytest.fixture(scope="module")
def model(exported):
    return edgevlm.load(exported.bundle.path, threads=1)


def mixed(**options):
    return {"prompt": ["Is ", FLOWER, " like ", STREAM, "?"], "max_new_tokens": 6, **options}


def test_the_rows_are_those_of_the_whole_conversation(model):
    first = model.generate(None, **mixed(system=SYSTEM))
    second = model.chat("And why?", max_new_tokens=1)
    loop = model._loop
    plan, layout = loop.plan, loop.plan.host.layout
    visuals = loop.visuals([FLOWER, STREAM])()
    items = first_turn(layout, PARTS, SYSTEM)
    prompt = assemble(plan, items, loop.table, loop.tokenizer, "", visuals, 0)
    more = assemble(plan, layout.turn, loop.table, loop.tokenizer, "And why?", [], 0)
    assert (first.prompt_tokens, second.prompt_tokens) == (len(prompt.rows), len(more.rows))
    loop.forget()
    loop.prefill(prompt)
    assert int(np.argmax(loop.logits())) == first.token_ids[0]
    said = np.concatenate([loop.table[list(first.token_ids)], more.rows])
    loop.prefill(text_rows(plan, said, loop.position))
    assert int(np.argmax(loop.logits())) == second.token_ids[0]


def test_a_conversation_reuses_the_rows_of_the_same_beginning(model):
    fresh = model.generate(None, **mixed(system=SYSTEM))
    model.generate(FLOWER, "What is this?", system=SYSTEM, max_new_tokens=4)
    loop = model._loop
    known = loop._marked
    assert model.generate(None, **mixed(system=SYSTEM)).token_ids == fresh.token_ids
    assert known > 10
    plain = model.generate(None, **mixed())
    assert plain.token_ids == model.generate(None, **mixed()).token_ids
    assert plain.prompt_tokens < fresh.prompt_tokens


def test_the_command_line_says_the_same(model, exported, run):
    question = ["--prompt", "Is {image} like {image}?", "--image", FLOWER, "--image", STREAM]
    options = ["--system", SYSTEM, "--max-new-tokens", "6", "--threads", "1", "--json"]
    done = run("run", exported.bundle.path, *question, *options)
    assert done.exit_code == 0
    document = json.loads(done.stdout.splitlines()[-1])
    assert tuple(document["token_ids"]) == model.generate(None, **mixed(system=SYSTEM)).token_ids


def test_a_system_prompt_holds_for_a_chat_from_stdin(model, exported, run):
    options = ["--system", SYSTEM, "--max-new-tokens", "4", "--threads", "1", "--json", "--chat"]
    done = run("run", exported.bundle.path, *options, stdin="Hello\nAnd why?\n")
    first, second = map(json.loads, done.stdout.splitlines())
    assert tuple(first["token_ids"]) == (
        model.generate(None, "Hello", system=SYSTEM, max_new_tokens=4).token_ids
    )
    assert tuple(second["token_ids"]) == model.chat("And why?", max_new_tokens=4).token_ids


def test_all_texts_count_in_a_memory_budget(model, monkeypatch):
    monkeypatch.setattr(model._loop.blocks, "shortage", lambda size: 7 * 10**6)
    letters = len(SYSTEM) + len("Is  like ?")
    with pytest.raises(InputError, match=rf"^the prompt of {letters} letters takes .* raise --mem"):
        model.generate(None, **mixed(system=SYSTEM))


def test_one_order_is_that_of_pictures_and_a_prompt(model):
    flower, stream = FLOWER.read_bytes(), np.asarray(edgevlm_image(STREAM))
    listed = model.generate(None, [flower, "", stream, "What?"], max_new_tokens=6)
    assert listed.token_ids == model.generate([FLOWER, STREAM], "What?", max_new_tokens=6).token_ids
    letters = model.generate(None, list("Why?"), max_new_tokens=6)
    assert letters.token_ids == model.generate(None, "Why?", max_new_tokens=6).token_ids


def edgevlm_image(path):
    from edgevlm.runtimes.loops import images

    return images.load(path)


def test_marks_and_tokens_in_texts_are_words(model):
    texts = ["\ue000", FLOWER, "\ue002 \ue001\0{image}", "<image>"]
    answer = model.generate(None, texts, system="\ue002\ue000", max_new_tokens=2)
    assert answer.visual_tokens == 16
    assert model.generate(FLOWER, "What is {image}?", max_new_tokens=2).visual_tokens == 16


NESTED = [[1, 2], [3, 4]]
REFUSED = {
    "no text": ((None, []), {}, "the prompt has neither a text nor a picture"),
    "empty texts": ((None, ["", ""]), {}, "the prompt has neither a text nor a picture"),
    "a number": ((None, ["a", 7]), {}, "prompt[1] must be a text or a picture, got int"),
    "nothing": ((None, [None, "a"]), {}, "prompt[0] must be a text or a picture, got NoneType"),
    "a list": ((None, ["a", NESTED]), {}, "prompt[1] must be a text or a picture, got list"),
    "a flat array": ((None, ["a", np.zeros(3)]), {}, "the array"),
    "an array": ((None, np.zeros((4, 4))), {}, "the prompt must be a text, got ndarray"),
    "bytes": ((None, b"Why?"), {}, "the prompt must be a text, got bytes; decode it first"),
    "half a letter": ((None, ["a", "\ud800"]), {}, "prompt[1] is not valid UTF-8"),
    "a picture twice": ((FLOWER, ["a"]), {}, "the pictures of a prompt that is a list stand in it"),
    "a video": ((None, ["a"]), {"video": "x"}, "the pictures of a prompt that is a list stand in"),
    "no file": ((None, ["a", Path("gone.jpg")]), {}, "no image at 'gone.jpg'"),
    "a file open as text": ((None, ["a", io.StringIO("x")]), {}, "the image (StringIO) is open as"),
    "blank": ((None, "a"), {"system": " \n"}, "the system prompt is empty; give a text, or leave"),
    "no system text": ((None, "a"), {"system": 5}, "the system prompt must be a text, got int"),
    "100 kB": ((None, "a"), {"system": "word " * 20_000}, "the turn has more than "),
    "many texts": ((None, ["word "] * 20_000), {}, "the turn has more than "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_prompt_is_refused_in_one_line(model, name):
    arguments, options, line = REFUSED[name]
    with pytest.raises(InputError) as error:
        model.generate(*arguments, **options)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert model.generate(None, "Why?", max_new_tokens=1).token_ids


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--prompt", "{image}?"], "the prompt has {image} 1 times, and images are 0"),
        (["--prompt", "{image} {image}?", "--image", FLOWER], "the prompt has {image} 2 times"),
        (["--prompt", "a", "--system", ""], "the system prompt is empty"),
        (["--system", "a"], "no input: "),
    ],
)
def test_what_the_command_line_refuses(exported, run, options, line):
    done = run("run", exported.bundle.path, *options)
    assert done.exit_code == 1
    assert line in done.stderr


def without(layout):
    empty = ("prompt_system", "text_system", "text_text", "text_image", "image_end")
    layout.update({key: [] for key in empty}, mixes=False)


def test_a_model_without_a_place_refuses_by_name(edited):
    model = edgevlm.load(edited(lambda document: without(document["host"]["layout"])), threads=1)
    with pytest.raises(InputError, match=r"^the chat template of this smolvlm model has no place"):
        model.generate(None, "a", system=SYSTEM)
    with pytest.raises(InputError, match=r"^the chat template of this smolvlm model puts images"):
        model.generate(None, **mixed())
    assert model.generate(None, [FLOWER, "What?"], max_new_tokens=1).visual_tokens == 16


def test_a_further_turn_is_one_text(model):
    model.generate(None, "Why?", max_new_tokens=1)
    for prompt, system in ((["a", "b"], None), ("a", SYSTEM)):
        with pytest.raises(InputError, match=r"^a further turn is one text, and a system prompt"):
            model._loop.ask(prompt, system=system)


@pytest.mark.parametrize("prompt", [["Why?"], [FLOWER], (b"Why?",), []])
def test_a_list_is_no_prompt_of_a_chat(model, prompt):
    got = type(prompt).__name__
    with pytest.raises(InputError, match=rf"^the prompt of chat must be one text, got {got}; a"):
        model.chat(prompt)
