"""Layers of each language model with random weights, norms too, against transformers' own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevlm.graphs.pruning import Look  # noqa: E402
from edgevlm.models.shared.anyres import newline_row  # noqa: E402
from edgevlm.models.shared.llama import decoder_parts, decoder_spec  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.runtimes.loops.sequence import (  # noqa: E402
    causal_mask,
    rotary_tables,
    text_positions,
)

LIMIT = 1e-5
LENGTH, CALLS = 24, [(0, 8), (8, 8), (16, 5), (21, 1), (22, 1), (23, 1)]
SIZES = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
    "intermediate_size": 96, "vocab_size": 64, "head_dim": 24, "pad_token_id": 0,
}  # fmt: skip
# What each is asked for beside SIZES: heads of another size than hidden / heads throughout.
MODELS = {
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "llama": {},
    "qwen2": {"head_dim": 16},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 10, "sliding_window": 7},
    "gemma3_text": {
        "query_pre_attn_scalar": 10,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "mistral": {"sliding_window": 7},
    "granite": {
        "embedding_multiplier": 12,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.22,
    },
}


@pytest.fixture(params=MODELS)
def decoder(request):
    """transformers' text model with seeded weights, and our layers over it."""
    values = SIZES | MODELS[request.param]
    config = transformers.AutoConfig.for_model(request.param, **values)
    config._attn_implementation = "eager"  # gives its attention
    model = transformers.AutoModel.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        std = 0.5 if weight.dim() == 1 else 1.5 / weight.shape[1] ** 0.5
        weight.data = std * torch.randn(weight.shape, generator=generator) + (weight.dim() == 1)
    return decoder_parts(model, decoder_spec(config))


def tables(spec, layer, first, count):
    """cos and sin [1, n, D] of positions for a layer."""
    plan = SimpleNamespace(host=SimpleNamespace(rope=spec.rope, ropes=spec.ropes))
    positions = text_positions(plan, first, count)
    made = rotary_tables(plan, positions, spec.layers[layer].table)
    return [torch.from_numpy(table)[None] for table in made]


@torch.no_grad()
def test_layers_in_chunks_and_single_tokens_equal_the_model(decoder):
    hidden = torch.randn(1, LENGTH, 64, generator=torch.Generator().manual_seed(1))
    caches = [
        [torch.zeros(1, cache.heads, LENGTH, cache.head_size) for _ in range(2)]
        for cache in decoder.spec.caches
    ]
    outputs = []
    for first, count in CALLS:
        mask = torch.from_numpy(causal_mask(first, count, LENGTH))
        x, at = hidden[:, first : first + count], torch.tensor([first], dtype=torch.int32)
        for index, (layer, past) in enumerate(zip(decoder.layers, caches, strict=True)):
            turned = tables(decoder.spec, index, first, count)
            x, past[0], past[1] = layer(x, *turned, mask, at, *past)
        outputs.append(decoder.norm(x))
    whole = decoder.language_model(inputs_embeds=hidden).last_hidden_state
    assert difference(torch.cat(outputs, 1), whole)[0] < LIMIT


def test_words_are_scaled_and_the_newline_of_llava_is_not():
    config = transformers.AutoConfig.for_model("gemma", **SIZES)
    spec = decoder_spec(config)
    assert spec.table_scale == 8  # the root of 64
    newline = torch.arange(64.0)
    row = newline_row(SimpleNamespace(image_newline=newline), spec)
    assert torch.equal(row * spec.table_scale, newline[None])


@torch.no_grad()
def test_a_method_inside_sees_the_attention_of_the_model(decoder):
    rows = torch.randn(1, LENGTH, 64, generator=torch.Generator().manual_seed(1))
    states = decoder.language_model(
        inputs_embeds=rows, output_attentions=True, output_hidden_states=True
    )
    hidden = (rows, *states.hidden_states[1:])  # each layer's input
    visual, every = torch.arange(3, 9), torch.arange(LENGTH)
    for index, (layer, x) in enumerate(zip(decoder.layers, hidden, strict=False)):
        expected, turned = states.attentions[index], tables(decoder.spec, index, 0, LENGTH)
        if layer.numbers.window:  # such a model takes no method inside
            continue
        look = Look(layer, x, *turned, visual, every[-1:])
        assert difference(look.attention(every), expected[0])[0] < LIMIT
