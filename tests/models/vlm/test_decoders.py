"""Language models of all families: which are computed, and how far back their tokens see."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.models.shared.llama import DECODERS, decoder_spec  # noqa: E402
from edgevlm.models.vlm import mistral3  # noqa: E402
from edgevlm.planning.calls import context_tokens  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

SIZES = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 4096,
}  # fmt: skip
SLIDING = {"use_sliding_window": True, "sliding_window": 300}


def text_config(kind, **values):
    """transformers' config of a language model."""
    return transformers.AutoConfig.for_model(kind, **SIZES, **values)


@pytest.mark.parametrize(
    ("kind", "values", "kept", "seen"),
    [
        ("llama", {}, None, [0, 0]),
        ("llama", {"sliding_window": 64}, 64, [0, 0]),  # its masks do not read it, its cache does
        ("llama", {"sliding_window": 64, "layer_types": ["full_attention"] * 2}, None, [0, 0]),
        ("llama", {"attention_chunk_size": 128}, 128, [0, 0]),
        ("mistral", {"sliding_window": 64}, None, [64, 64]),
        ("mistral", {"sliding_window": None}, None, [0, 0]),
        ("mistral", {}, None, [4096, 4096]),  # transformers' default
        ("qwen2", SLIDING | {"max_window_layers": 0}, None, [300, 300]),
        ("qwen2", SLIDING | {"max_window_layers": 1}, None, [0, 300]),
        ("qwen2", SLIDING | {"max_window_layers": 2}, None, [0, 0]),  # no layer has it
        ("qwen2", {"use_sliding_window": False, "sliding_window": 300}, None, [0, 0]),
        ("smollm3", {"sliding_window": 300}, None, [0, 0]),
        ("smollm3", SLIDING | {"no_rope_layers": [1, 1]}, None, [0, 0]),
        ("smollm3", SLIDING | {"no_rope_layers": [1, 0]}, None, [0, 300]),
        ("qwen3", {"sliding_window": 300}, None, [0, 0]),  # off by default
        ("qwen3", SLIDING | {"max_window_layers": 1}, None, [0, 300]),
        (
            "qwen2",
            SLIDING | {"layer_types": ["full_attention", "sliding_attention"]},
            None,
            [0, 300],
        ),
        ("gemma2", {"sliding_window": 64}, None, [64, 0]),
        ("gemma3_text", {"sliding_window": 64, "sliding_window_pattern": 2}, None, [64, 0]),
    ],
)
def test_the_window_is_that_of_the_layers(kind, values, kept, seen):
    spec = decoder_spec(text_config(kind, **values))
    assert spec.window == kept
    assert [layer.window for layer in spec.layers] == seen


def decoder(window):
    """Numbers of a decoder of 4096 positions."""
    return decoder_spec(text_config("llama", sliding_window=window))


@pytest.mark.parametrize("window", [None, 4096, 1024])
def test_a_window_that_hides_no_row_of_the_context_changes_nothing(window):
    assert context_tokens(Recipe(context=1024), 80, 64, decoder(window), False) == 1024


def test_a_context_beyond_the_window_is_refused_with_what_fits():
    with pytest.raises(PlanError) as error:
        context_tokens(Recipe(context=301), 80, 64, decoder(300), False)
    assert str(error.value) == (
        "context 301 is more than the model's sliding window of 300 tokens, beyond which it hides"
        " earlier ones; give --context 300 or less"
    )


@pytest.mark.parametrize(("single_call", "tokens"), [(False, 256), (True, 300)])
def test_the_default_context_ends_where_the_window_does(single_call, tokens):
    assert context_tokens(Recipe(), 80, 64, decoder(300), single_call) == tokens


def test_a_prompt_longer_than_the_window_says_so():
    with pytest.raises(PlanError, match="take 400 tokens, more than fit the model's slid"):
        context_tokens(Recipe(), 400, 64, decoder(300), False)


@pytest.mark.parametrize("kind", ["granitemoe", "olmo2", "phi3"])
def test_other_layers_are_refused_by_name(kind):
    with pytest.raises(PlanError) as error:
        decoder_spec(SimpleNamespace(model_type=kind))
    expected = f"language model '{kind}' is not supported, {', '.join(DECODERS)} are; choose a"
    assert str(error.value).startswith(expected)


def test_the_readme_lists_the_language_models():
    page = (Path(__file__).resolve().parents[3] / "README.md").read_text("utf-8")
    sentence = page.partition("Language models:")[2].partition("\n")[0]
    assert re.findall("`(.*?)`", sentence) == list(DECODERS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_key_value_heads": 3}, "4 attention heads do not divide by 3 key and value heads"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers has 1 numbers for"),
        (
            {"model_type": "gemma", "use_bidirectional_attention": True},
            "use_bidirectional_attention is not supported",
        ),
        ({"head_dim": 15}, "rotary tables of 16 of 15 numbers of a head are not supported"),
    ],
)
def test_numbers_that_do_not_go_together(values, message):
    text = text_config("llama")
    for key, value in values.items():
        setattr(text, key, value)
    with pytest.raises(PlanError, match=message):
        decoder_spec(text)


def test_a_context_beyond_the_positions_at_which_ministral_3_scales_queries_is_refused():
    """From its original length on it multiplies queries by more than 1; a layer here does not."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "llama_4_scaling_beta": 0.1}
    yarn["original_max_position_embeddings"] = 1024
    decoder = decoder_spec(text_config("ministral3", rope_parameters=yarn))
    assert context_tokens(Recipe(context=1024), 80, 64, decoder, False) == 1024
    with pytest.raises(PlanError, match="1024 positions, beyond which it multiplies queries"):
        context_tokens(Recipe(context=1025), 80, 64, decoder, False)
    named = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=4096))
    (note,) = mistral3.notes(named, SimpleNamespace(decoder=decoder))
    assert note == (
        "the context has at most 1,024 of the 4,096 tokens of config.json: beyond them the model"
        " multiplies queries by a factor of their position"
    )
    plain = decoder_spec(text_config("ministral3"))
    assert mistral3.notes(named, SimpleNamespace(decoder=plain)) == ()
