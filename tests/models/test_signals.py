"""Signals are transformers' own attention, folded as the connector folds patches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgevlm.errors import PlanError
from edgevlm.graphs.signals import method_inputs, observe

SIGNALS = ("cls_attention", "early_cls_attention", "keys")


@pytest.fixture(params=["tiny-smolvlm", "tiny-llava-onevision", "tiny-llava-next"])
def model(request, tiny):
    """Two tiny models without a class token, and one with, which leaves out its last layer."""
    return tiny(request.param)


@pytest.fixture
def pixels(model):
    """Two views."""
    image = model.plan.host.image
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, image.height, image.width, generator=generator)


def tower(model):
    core = model.model.model
    return core.vision_model if hasattr(core, "vision_model") else core.vision_tower


@torch.no_grad()
def test_attention_is_that_of_the_model(model, pixels):
    _, found = method_inputs(observe(model.parts, SIGNALS), SIGNALS, pixels)
    vision = tower(model)
    before = vision.config._attn_implementation
    vision.set_attn_implementation("eager")
    try:
        maps = vision(pixel_values=pixels, output_attentions=True).attentions
    finally:
        vision.set_attn_implementation(before)
    fold = model.parts.encoder.fold
    last = len(model.parts.encoder.layers) - 1
    for name, layer in (("cls_attention", last), ("early_cls_attention", 0)):
        heads = maps[layer].mean(1)  # [P, patches, patches]
        received = heads[:, 0, 1:] if model.parts.encoder.spec.class_token else heads.mean(1)
        folded = [fold(row[None, :, None])[..., 0] for row in received]
        expected = torch.cat(folded, 1)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)
        assert found[name].std() > 0


@torch.no_grad()
def test_keys_are_the_mean_of_the_heads(model, pixels):
    found = method_inputs(observe(model.parts, ("keys",)), ("keys",), pixels)[1]["keys"]
    layer = tower(model).encoder.layers[len(model.parts.encoder.layers) - 1]
    kept = []
    hook = layer.self_attn.k_proj.register_forward_hook(lambda m, i, out: kept.append(out))
    tower(model)(pixel_values=pixels)
    hook.remove()
    heads = layer.self_attn.num_heads
    keys = kept[0].unflatten(-1, (heads, -1)).mean(2)
    keys = keys[:, 1:] if model.parts.encoder.spec.class_token else keys
    expected = torch.cat([model.parts.encoder.fold(k[None]) for k in keys], 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_an_observed_layer_gives_what_the_layer_gives(model, pixels):
    observed = observe(model.parts, SIGNALS)
    with torch.no_grad():
        x = model.parts.encoder.embedding(pixels[:1])
        for index in (0, -1):
            plain = model.parts.encoder.layers[index](x)
            (same,), _ = observed.encoder.layers[index](x)
            assert torch.equal(plain, same)


def test_no_signal_no_change(model):
    assert observe(model.parts, ()).encoder == model.parts.encoder


def test_folding_groups_patches_as_the_pixel_shuffle_does(tiny):
    """A patch's number goes through the model's own shuffle and through the fold."""
    model = tiny("tiny-smolvlm")
    numbers = torch.arange(256.0).reshape(1, 256, 1)
    shuffled = model.model.model.connector.pixel_shuffle(numbers, 2)  # [1, 64, 4]
    torch.testing.assert_close(model.parts.encoder.fold(numbers), shuffled.mean(-1, keepdim=True))


def test_signals_of_an_encoder_without_layers_are_refused(tiny):
    parts = tiny("tiny-llava-next").parts
    bare = replace(parts, encoder=replace(parts.encoder, layers=()))
    assert observe(bare, ()) == bare
    with pytest.raises(PlanError, match=r"^signal 'keys' comes from a layer of the encoder, this"):
        observe(bare, ("keys",))
