"""T5's and UMT5's encoders beside transformers' own."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevlm.bundle.functions import Block, Function, Tensor  # noqa: E402
from edgevlm.graphs.trace import trace  # noqa: E402
from edgevlm.models.shared.diffusion.t5 import encoder_layers  # noqa: E402

FAMILIES = {
    "t5": ("T5", {"feed_forward_proj": "gated-gelu"}),
    "t5-relu": ("T5", {"feed_forward_proj": "relu"}),
    "umt5": ("UMT5", {"feed_forward_proj": "gated-gelu"}),
}


@pytest.fixture(params=FAMILIES)
def encoder(request: pytest.FixtureRequest) -> Any:
    """A tiny encoder whose tables of positions differ between layers, buckets and heads."""
    name, options = FAMILIES[request.param]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=50, d_model=24, d_kv=6, d_ff=40, num_layers=3, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}EncoderModel")(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            scale = 1.0 if "relative" in key else 0.5 / weight.shape[-1] ** 0.5
            weight.add_(scale * torch.randn_like(weight))
    return model


def encoded(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    hidden = model.shared(ids)
    for layer in encoder_layers(model, ids.shape[1]):
        hidden = layer(hidden, mask.float())
    return hidden


@pytest.mark.parametrize("words", [1, 7, 29, 30])
def test_a_text_is_encoded_as_transformers_does(encoder: Any, words: int) -> None:
    """30 tokens are farther apart than the last bucket begins; padding is cut off and zeroed."""
    ids = torch.randint(1, 50, (1, 30))
    mask = (torch.arange(30) < words).long()[None]
    with torch.no_grad():
        expected = encoder(ids, mask).last_hidden_state * mask.unsqueeze(-1)
        actual = encoded(encoder, ids, mask)
        alone = encoder(ids[:, :words], mask[:, :words]).last_hidden_state
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual[:, :words], alone, atol=1e-5, rtol=1e-5)
    assert not actual[:, words:].any()


def test_the_bias_of_positions_is_the_encoders_own(encoder: Any) -> None:
    for index, layer in enumerate(encoder_layers(encoder, 30)):
        own = encoder.encoder.block[index].layer[0].SelfAttention
        if not own.has_relative_attention_bias:  # T5 has the first layer's in all
            own = encoder.encoder.block[0].layer[0].SelfAttention
        torch.testing.assert_close(layer.bias(30), own.compute_bias(30, 30), atol=0, rtol=0)


def test_a_layer_holds_no_matrix_of_all_pairs_of_tokens(encoder: Any) -> None:
    tokens = 512
    layer = encoder_layers(encoder, tokens)[0]
    assert max(buffer.numel() for buffer in layer.buffers()) == 2 * tokens


def test_a_layer_is_traced(encoder: Any) -> None:
    hidden, mask = Tensor("hidden", "f32", (1, 30, 24)), Tensor("mask", "f32", (1, 30))
    function = Function("encode", (hidden, mask), (hidden,), 0)
    block = Block("text-0", "text", (0, 1), 0, (function,))
    trace(encoder_layers(encoder, 30)[-1], function, block)
