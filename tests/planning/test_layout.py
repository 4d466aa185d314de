"""Ids by a layout are those of one call over the whole text, whatever the tokenizer does."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, processors
from tokenizers.pre_tokenizers import (
    ByteLevel,
    Digits,
    Metaspace,
    Sequence,
    Split,
)
from transformers import PreTrainedTokenizerFast

from edgevlm.bundle.host import LayoutItem
from edgevlm.errors import ModelError
from edgevlm.models.processor import bundle_tokenizer
from edgevlm.models.speller import Speller
from edgevlm.planning.layout import make_layout
from edgevlm.planning.prompt import QUESTION, REPLY, SYSTEM, Joints, Prompts, SystemTexts
from edgevlm.runtimes.loops.spelling import Slot, Visual, first_turn, spell

WORDS = 600
# Not those that a plan tries.
QUESTIONS = ("Why?", " \u00a0 two  blanks\t", "\nline\n", "ümläut ½ 数", "a", "", "  ", "x.\n\n")
MERGES = [
    ("h", "e"),
    ("▁", "W"),
    ("Ġ", "W"),
    ("▁", "▁"),
    ("Ġ", "Ġ"),
    (".", "Ċ"),
    ("▁", "a"),
    (":", "▁"),
]


def tokenizer(pre=None, normalizer=None, post=None, added=(), **setup):
    """transformers' tokenizer over bytes and single letters, with merges across blanks."""
    letters = sorted(
        {chr(i) for i in range(33, 127)} | set("▁½ümläut数\n") | {*ByteLevel.alphabet()}
    )
    words = ["<unk>", *letters, *(a + b for a, b in MERGES)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.BPE(vocabulary, MERGES, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre or ByteLevel(add_prefix_space=False)
    if normalizer:
        made.normalizer = normalizer
    tokens = [t if isinstance(t, AddedToken) else AddedToken(t, normalized=False) for t in added]
    made.add_special_tokens(["<s>", "</s>", "<image>", *tokens])
    if post:
        number = made.token_to_id(post.split()[0 if post.startswith("<") else 1])
        token = "<s>" if "<s>" in post else "</s>"
        made.post_processor = processors.TemplateProcessing(post, special_tokens=[(token, number)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", **setup
    )


def layout(
    own, before="USER: ", after="{q} ASSISTANT:", joint=" ", image=None, trim="", between=""
):
    """The layout of a chat format, and the texts that it is of."""
    after = after.replace("{q}", QUESTION)
    told, end = f"{before}Do {SYSTEM}.\n", after.partition(QUESTION)[2]
    prompts = Prompts(
        first=f"{before}<image>{after}",
        plain=f"{before}{after}",
        both=f"{before}<image>{after} {REPLY}{joint}{before}{after}",
        between=between,
        trim=trim,
        plain_trim=trim,
        system=SystemTexts(f"{told}<image>{after}", f"{told}{after}", "", str),
        joints=Joints(" a", "he\n", f".{end}"),
    )
    slot = LayoutItem("visual", start=0, stop=4)
    description = SimpleNamespace(
        placeholder="<image>",
        full_image=image or (slot,),
        reduced_image=(slot,),
        chats=True,
        image=SimpleNamespace(frames=1),
    )
    speller = Speller(own, WORDS, "<image>")
    return make_layout(description, prompts, speller, reduced=False), prompts, speller


def ids(made, speller, question, turn="prompt", images=1):
    """Ids by the layout, one placeholder for each place of visual tokens."""
    clip = Visual(None, None, (0.0, 61.5), 3661.0)
    parts = spell(getattr(made, turn), made, speller.bundled, question, [clip] * images)
    return [i for part in parts for i in ([speller.slot] if isinstance(part, Slot) else part)]


def mixed_ids(made, speller, texts, system=None):
    """Ids of a first turn of texts, and None for images, by the layout."""
    clip = Visual(None, None, (0.0, 61.5), 3661.0)
    items = first_turn(made, texts, system)
    parts = spell(items, made, speller.bundled, "", [clip] * texts.count(None))
    return [i for part in parts for i in ([speller.slot] if isinstance(part, Slot) else part)]


def check_chat(own, made, prompts, speller):
    """A system text, and texts between images, for questions that no plan tries."""
    for question, other in zip(QUESTIONS, QUESTIONS[1:] + QUESTIONS[:1], strict=True):
        for texts, text in (
            ([None, question], prompts.system.first),
            ([question], prompts.system.plain),
        ):
            expected = text.replace(SYSTEM, other).replace(QUESTION, question)
            assert mixed_ids(made, speller, texts, other) == one_call(own, expected)
        for order in ("TI", "TIT", "ITIT", "TTIIT"):
            text = prompts.mixture(order, "<image>")
            told = prompts.system.plain if order[0] == "T" else prompts.system.first
            mark = QUESTION if order[0] == "T" else "<image>"
            told = told.partition(mark)[0] + mark + text.partition(mark)[2]
            spoken = iter([question, other, question])
            texts = [next(spoken) if kind == "T" else None for kind in order]
            for system, written in ((None, text), ("  So\n", told.replace(SYSTEM, "  So\n"))):
                for spoken_text in (t for t in texts if t is not None):
                    written = written.replace(QUESTION, spoken_text, 1)
                assert mixed_ids(made, speller, texts, system) == one_call(own, written)


def one_call(own, text):
    return list(own(text, add_special_tokens=not text.startswith("<s>"))["input_ids"])


def check(own, **form):
    """Both turns and the text alone, for questions that no plan tries."""
    made, prompts, speller = layout(own, **form)
    two = f"<image>{form.get('between', '')}<image>".join(prompts.first.split("<image>"))
    for question in QUESTIONS:
        for turn, text in (("prompt", prompts.first), ("text", prompts.plain)):
            assert ids(made, speller, question, turn) == one_call(
                own, text.replace(QUESTION, question)
            )
        both = ids(made, speller, question, images=2)
        assert both == one_call(own, two.replace(QUESTION, question))
        first, _, further = prompts.both.partition(REPLY)
        first = first.replace(QUESTION, "So") + "Flowers"
        whole = one_call(own, first + further.replace(QUESTION, question))
        assert one_call(own, first) + ids(made, speller, question, "turn") == whole
    assert made.prompt_system
    assert made.mixes
    check_chat(own, made, prompts, speller)
    return made


PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
TOKENIZERS = {
    "bytes": {},
    "bytes, a blank in front": {"pre": ByteLevel(add_prefix_space=True)},
    "digits": {
        "pre": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    },
    "first": {"pre": Metaspace(prepend_scheme="first", split=False)},
    "first, words": {"pre": Metaspace(prepend_scheme="first", split=True)},
    "first in a sequence": {"pre": Sequence([Digits(), Metaspace(prepend_scheme="first")])},
    "always": {"pre": Metaspace(prepend_scheme="always")},
    "never": {"pre": Metaspace(prepend_scheme="never")},
    "prepend": {"pre": Split(Regex("(?!)"), "isolated"), "normalizer": PREPEND},
    "nfkc": {"normalizer": normalizers.NFKC()},
    "lower case": {"normalizer": normalizers.Lowercase()},
    "a start": {"post": "<s> $A"},
    "a start, first": {"post": "<s> $A", "pre": Metaspace(prepend_scheme="first")},
    "a side cut off": {"model_max_length": 8, "truncation_side": "left"},
}
FORMS = {
    "words": {},
    "a line": {"before": "USER:\n", "after": "\n{q}\nASSISTANT: ", "joint": "\n"},
    "the question first": {"before": "", "after": "{q}", "joint": "\n"},
    "a start in the text": {"before": "<s>U: ", "after": "{q}</s>", "joint": "</s>"},
    "trim": {"trim": ""},
    "an image a line": {"after": "\n{q} ASSISTANT:", "between": "\n"},
}  # fmt: skip


@pytest.mark.parametrize("form", [f for f in FORMS if f != "trim"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_one_call(name, form):
    check(tokenizer(**TOKENIZERS[name]), **FORMS[form])


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("special", [False, True])
def test_a_special_token_takes_the_blanks_beside_it(left, right, special):
    token = AddedToken("<|x|>", lstrip=left, rstrip=right, normalized=False, special=special)
    own = tokenizer(added=[token])
    made = check(own, before="U <|x|> ", after=" <|x|>{q}  <|x|> A:", joint="<|x|>")
    sides = {
        (False, False): "",
        (False, True): "left",
        (True, False): "right",
        (True, True): "both",
    }
    assert [i.strip for i in made.prompt if i.kind == "user_text"] == [sides[left, right]]


def test_an_image_token_takes_the_blanks_beside_it():
    own = tokenizer(added=[AddedToken("<image>", lstrip=True, rstrip=True, normalized=False)])
    check(own, before="U: ", after=" {q} A:")


def test_a_token_of_normalized_text_is_found_in_the_template():
    token = AddedToken("<end>", normalized=True, special=False)
    check(
        tokenizer(added=[token], normalizer=normalizers.Lowercase()),
        after="{q}<END> A:",
        joint="<End>",
    )


def test_padding_and_truncation_are_not_in_a_bundle():
    own = tokenizer()
    own.backend_tokenizer.enable_padding(length=32)
    own.backend_tokenizer.enable_truncation(8)
    speller = Speller(own, WORDS, "<image>")
    document = json.loads(speller.bundled.to_str())
    assert [document["padding"], document["truncation"]] == [None, None]
    check(own)


def test_text_around_an_image_is_tokenized_with_what_meets_it():
    times = [
        LayoutItem("duration", prefix="A clip of ", suffix=".\n"),
        LayoutItem("timestamp", start=1),
        LayoutItem("seconds", start=0, stop=2, prefix="At ", suffix=" s"),
    ]
    image = (times[0], "<image>", times[1], LayoutItem("visual", start=0, stop=4), times[2], ".\n")
    made, _, speller = layout(tokenizer(), before="USER: ", after="\n\n{q} A:", image=image)
    text = "USER: A clip of 1:01:01.\n<image>01:01<image>At 30.8 s.\n\n\nWhy? A:"
    assert ids(made, speller, "Why?") == one_call(speller.own, text)
    assert made.prompt[0] == LayoutItem("text", prefix="USER: ")


def test_images_are_numbered_through_a_turn_of_any_order():
    number = LayoutItem("number", prefix="No. ", suffix=": ")
    image = (number, LayoutItem("visual", start=0, stop=4))
    made, _, speller = layout(tokenizer(), image=image)
    assert made.mixes
    seen = "No. {}: <image>"
    two = f"USER: {seen.format(0)}{seen.format(1)}Why? ASSISTANT:"
    assert ids(made, speller, "Why?", images=2) == one_call(speller.own, two)
    texts = ["So", None, None, "Why?", None, "x"]
    told, opening = "USER: Do less.\n", "USER: "
    for system, start in ((None, opening), ("less", told)):
        text = f"{start}Sohe\n{seen.format(0)}{seen.format(1)}Why?he\n{seen.format(2)}x ASSISTANT:"
        assert mixed_ids(made, speller, texts, system) == one_call(speller.own, text)


def test_a_question_cannot_write_special_tokens():
    made, _, speller = layout(tokenizer())
    assert ids(made, speller, "<image></s>").count(speller.slot) == 1


@pytest.mark.parametrize(
    ("setup", "form", "line"),
    [
        ({"post": "$A </s>"}, {}, "the tokenizer puts '</s>' behind a prompt"),
        ({"added": [AddedToken("<w>", single_word=True, normalized=False)]}, {"after": "<w>{q}"},
         "the tokenizer cuts a prompt's text otherwise as a whole than in parts: asked"),
        ({"added": [f"<{i}>" for i in range(400)]}, {"after": "{q}<399>"},
         "the prompt has the token '<399>' with id"),
    ],
    ids=["an end", "a single word", "beyond the table"],
)  # fmt: skip
def test_what_a_layout_cannot_say_is_refused(setup, form, line):
    with pytest.raises(ModelError) as error:
        layout(tokenizer(**setup), **form)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_token_beyond_the_table_is_a_word_of_a_question():
    own = tokenizer(added=[f"<{i}>" for i in range(400)])
    made, _, speller = layout(own)
    assert own.convert_tokens_to_ids("<399>") >= WORDS
    assert max(ids(made, speller, "<399>")) < WORDS


def test_words_beyond_the_table_are_refused():
    own = tokenizer()
    with pytest.raises(
        ModelError, match=r"^the tokenizer has the word '.+' with id \d+, the model's"
    ):
        bundle_tokenizer(own, 100)


def test_a_placeholder_that_is_no_token_is_refused():
    with pytest.raises(ModelError, match=r"^'<img>', which stands for an image, is no token"):
        assert Speller(tokenizer(), WORDS, "<img>").slot
