"""The checkpoint's own tokenizer, processor and stop tokens reach the plan, wherever they stand."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from edgevlm.errors import EdgeVLMError, ModelError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.processor import (  # noqa: E402
    bundle_tokenizer,
    chat_template,
    load_processor,
    load_tokenizer,
    processor_class,
    stop_ids,
)
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.loops.spelling import Slot, Visual, spell  # noqa: E402

QUESTION = "What is in this picture?"
PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


@pytest.fixture
def folder(preset, tmp_path):
    """A copy of the tiny SmolVLM, to be changed."""
    return shutil.copytree(preset("tiny-smolvlm"), tmp_path / "model")


def edit(path, **values):
    document = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(document | values))


def same_ids(folder, question=QUESTION):
    """The plan, whose ids of a prompt must be those of the checkpoint's own processor."""
    made = make_plan(Recipe(model=str(folder)), find(str(folder)))
    speller, layout = made.speller, made.plan.host.layout
    own = load_processor(made.checkpoint, speller.own)
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    text = own.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        chat_template=chat_template(own),  # transformers' processor does not ask its tokenizer
    )
    text = text.replace(
        "<image>", "<fake_token_around_image><global-img><image><fake_token_around_image>"
    )
    spelled = spell(layout.prompt, layout, speller.bundled, question, [Visual(None, None)])
    ids = [i for part in spelled for i in ([speller.slot] if isinstance(part, Slot) else part)]
    assert ids == own.tokenizer(text)["input_ids"]
    return made


def test_tokens_added_beside_the_file(folder):
    edit(
        folder / "tokenizer_config.json",
        added_tokens_decoder={"1024": {"content": "<|bot|>", "special": True, **PLAIN}},
    )
    edit(folder / "added_tokens.json", **{"<|bot|>": 1024})
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", text_config=config["text_config"] | {"vocab_size": 1025})
    weights = load_file(folder / "model.safetensors")
    table = weights["model.text_model.embed_tokens.weight"]
    weights["model.text_model.embed_tokens.weight"] = torch.cat((table, table[:1]))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("'Assistant:'", "'<|bot|>Assistant:'"))
    made = same_ids(folder)
    assert 1024 in made.plan.host.layout.prompt[-1].ids
    assert json.loads(made.tokenizer_json)["added_tokens"][-1]["content"] == "<|bot|>"


@pytest.mark.parametrize("setting", ["padding", "truncation"])
def test_padding_and_truncation_saved_in_the_file(folder, setting):
    values = {
        "padding": {"strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None,
                    "pad_id": 2, "pad_type_id": 0, "pad_token": "<|im_end|>"},
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
                       "stride": 0},
    }  # fmt: skip
    edit(folder / "tokenizer.json", **{setting: values[setting]})
    made = same_ids(folder)
    assert json.loads(made.tokenizer_json)[setting] is None


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json", "several files"])
def test_a_template_from_any_of_its_places(folder, file):
    path = folder / "chat_template.jinja"
    text = path.read_text().replace("Assistant:", "Bot:")
    path.unlink()
    if file == "several files":
        path.write_text(text)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    elif file == "chat_template.json":
        edit(folder / file, chat_template=text)
    else:
        named = [{"name": "default", "template": text}, {"name": "tool_use", "template": "x"}]
        edit(folder / file, chat_template=named)
    made = same_ids(folder)
    assert made.speller.own.decode(made.plan.host.layout.text[-1].ids).endswith("Bot:")


def test_special_tokens_that_a_template_names(folder):
    path = folder / "chat_template.jinja"
    start = "{{ bos_token }}{{ unk_token }}"
    path.write_text(start + path.read_text().removeprefix("<|im_start|>"))
    made = same_ids(folder)
    assert made.plan.host.layout.prompt[0].ids[:2] == (1, 0)


def test_a_question_that_the_template_trims(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("part.text if", "part.text | trim if"))
    same_ids(folder, "  What is it?\n ")


@pytest.mark.parametrize(
    ("top", "text", "generation", "expected"),
    [
        (5, 9, None, (5,)),
        ([7, 5], None, None, (5, 7)),
        (None, 9, None, (9,)),
        (5, 9, {"eos_token_id": [3, 4]}, (3, 4)),
        (5, 9, {"do_sample": False}, ()),
    ],
    ids=["top", "a list", "text config", "generation config", "a generation config without"],
)
def test_stop_tokens_are_those_of_the_models_generation_config(
    folder, top, text, generation, expected
):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].pop("eos_token_id", None)
    config["text_config"] |= {} if text is None else {"eos_token_id": text}
    edit(folder / "config.json", text_config=config["text_config"])
    if top is not None:
        edit(folder / "config.json", eos_token_id=top)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        edit(folder / "generation_config.json", **generation)
    own = transformers.AutoModelForImageTextToText.from_pretrained(folder).generation_config
    found = own.eos_token_id
    assert stop_ids(find(str(folder)), 1024) == expected
    assert expected == tuple(sorted(found if isinstance(found, list) else [found] if found else []))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b'{"eos_token_id": ["</s>"]}', ": eos_token_id must be a number, got ['</s>']"),
        (b'{"eos_token_id": true}', ": eos_token_id must be a number, got True"),
        (b'{"eos_token_id": -1}', ": eos_token_id must be a number, got -1"),
        (b'{"eos_token_id": 1024}', ": eos_token_id is 1024, expected less than the 1024 words"),
        (b'{"max_new_tokens": -1}', ": "),
        (b"[]", " of the checkpoint must be a JSON object"),
        (b"[" * 10**5, " of the checkpoint is not valid JSON: maximum recursion"),
        (b"", " of the checkpoint is not valid JSON: Expecting value"),
        (b"\xff\xfe", " of the checkpoint is not valid JSON: 'utf-8' codec"),
        (b"version https://git-lfs.github.com/spec/v1", " is a Git LFS pointer, not the file"),
    ],
    ids=["words", "true", "negative", "outside", "invalid", "list", "deep", "empty", "no text",
         "pointer"],
)  # fmt: skip
def test_a_generation_config_that_says_nothing_of_use_is_refused(folder, text, line):
    (folder / "generation_config.json").write_bytes(text)
    with pytest.raises(ModelError) as error:
        stop_ids(find(str(folder)), 1024)
    assert f"generation_config.json{line}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "values", "line"),
    [
        ("tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens makes"),
        ("preprocessor_config.json", {"image_processor_type": "None"}, "the processor cannot be"),
        ("tokenizer.json", {"model": {"type": "No"}}, "the tokenizer cannot be loaded: "),
        ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length is 'x', expected a"),
        ("preprocessor_config.json", {"rescale_factor": 10**400}, "the image processor's rescale"),
    ],
)  # fmt: skip
def test_what_transformers_cannot_load_is_refused(folder, name, values, line):
    edit(folder / name, **values)
    with pytest.raises(ModelError) as error:
        make_plan(Recipe(model=str(folder)), find(str(folder)))
    assert str(error.value).startswith(f"'{folder}': {line}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [None, {"longest_edge": 0}, {"longest_edge": 10**400}])
def test_what_the_processor_refuses_only_with_a_picture(folder, size):
    edit(folder / "preprocessor_config.json", size=size)
    with pytest.raises(
        ModelError, match=r"^the checkpoint's own processor refuses a picture: "
    ) as error:
        make_plan(Recipe(model=str(folder)), find(str(folder)))
    assert str(error.value).endswith("; correct preprocessor_config.json")


@pytest.mark.parametrize(
    ("theta", "line"),
    [(0, "text_config: rope_theta is 0, expected a number above 0"), (-1.0, "rope_theta is -1.0, "),
     (10**400, f"rope_theta is 1{56 * '0'}..., expected a number above 0")],
)  # fmt: skip
def test_a_rotary_base_that_has_no_frequencies(folder, theta, line):
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", text_config=config["text_config"] | {"rope_theta": theta})
    with pytest.raises(EdgeVLMError) as error:
        make_plan(Recipe(model=str(folder)), find(str(folder)))
    assert line in str(error.value)


def test_ids_with_gaps_are_refused(folder):
    own = load_tokenizer(find(str(folder)))
    own.convert_tokens_to_ids = lambda word: -1
    with pytest.raises(ModelError, match=r"tokenizer.json can only say \d+: ids of added tokens"):
        bundle_tokenizer(own, 1024)


def test_settings_that_a_bundle_does_not_apply_are_said(folder, caplog):
    stop_ids(find(str(folder)), 1024)
    assert caplog.messages == []
    settings = {"eos_token_id": 1, "repetition_penalty": 1.1, "num_beams": 1, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert stop_ids(find(str(folder)), 1024) == (1,)
    assert caplog.messages == [
        f"'{folder}': generation_config.json has repetition_penalty 1.1, which transformers"
        " applies and a bundle does not"
    ]


def test_a_processor_that_needs_one_function_of_torchvisions_form_gets_that_on_pil(monkeypatch):
    pytest.importorskip("PIL")
    module = "transformers.models.pixtral.image_processing_pixtral"
    before = sys.modules.get(module)
    checkpoint = SimpleNamespace(document=lambda file: {}, model_type="mistral3")
    assert issubclass(processor_class(checkpoint), transformers.ProcessorMixin)
    assert sys.modules.get(module) is before
    absent = "transformers.models.absent.processing_absent"
    dummy = SimpleNamespace(is_dummy=True, __module__=absent)
    monkeypatch.setattr(sys.modules["transformers"], "PixtralProcessor", dummy)
    with pytest.raises(ImportError, match=r"^PixtralProcessor of transformers needs torchvision;"):
        processor_class(checkpoint)
