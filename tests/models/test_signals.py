"""Signals are transformers' own attention, folded as the connector folds patches."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from edgevlm.errors import PlanError
from edgevlm.graphs.merging import merge
from edgevlm.graphs.signals import OF_LAST_LAYER, Beyond, encode, method_inputs, observe
from edgevlm.registry import METHODS

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


def own_projections(vision, pixels):
    """Queries and keys [P, n, H*D] of the tower's last layer, as transformers computes them."""
    attention, kept = vision.encoder.layers[-1].self_attn, {}
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda module, inputs, output, name=name: kept.update({name: output})
        )
        for name in ("q_proj", "k_proj")
    ]
    vision(pixel_values=pixels)
    for hook in hooks:
        hook.remove()
    return kept["q_proj"], kept["k_proj"]


def check_last_layer(model, pixels):
    """Logits, attention as of one head, and keys of the last layer; features as without them."""
    parts = model.parts
    features, found = method_inputs(observe(parts, OF_LAST_LAYER), OF_LAST_LAYER, pixels)
    assert torch.equal(features, method_inputs(parts, (), pixels)[0])
    vision, spec = tower(model), parts.encoder.spec
    query, key = own_projections(vision, pixels)
    first = slice(1) if spec.class_token else slice(None)
    by_head = [x.unflatten(-1, (spec.heads, -1)).transpose(1, 2) for x in (query, key)]
    logits = by_head[0][:, :, first] @ by_head[1].transpose(2, 3) * spec.head_size**-0.5
    flat = (query[:, first] @ key.transpose(1, 2) * key.shape[-1] ** -0.5).softmax(-1)
    expected = {
        "cls_logits": logits.mean((1, 2)).unsqueeze(-1),
        "last_cls_attention": logits.softmax(-1).mean((1, 2)).unsqueeze(-1),
        "flat_cls_attention": flat.mean(1).unsqueeze(-1),
        "flat_keys": key,
    }
    for name, views in expected.items():
        views = views[:, 1:] if spec.class_token else views
        wanted = torch.cat([parts.encoder.fold(view[None]) for view in views], 1)
        wanted = wanted.reshape(found[name].shape)
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6)
        assert found[name].std() > 0


@torch.no_grad()
def test_signals_of_the_last_layer_are_those_of_the_model(model, pixels):
    """It is one later than the features in LLaVA-NeXT, and the same in the others."""
    assert len(model.parts.encoder.after) == model.parts.encoder.spec.class_token
    check_last_layer(model, pixels)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_layers_between_the_features_and_the_last_one_run(tiny, preset, tmp_path, layer):
    """Of three layers, where features are of the first, or of the embedding."""
    path = shutil.copytree(preset("tiny-llava-next"), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"vision_feature_layer": layer}))
    check_last_layer(tiny(str(path)), torch.randn(2, 3, 56, 56))


@torch.no_grad()
def test_merged_tokens_have_the_last_layers_signals_of_their_token(tiny):
    """Patches of one token have its logits and keys, and share its attention."""
    parts = tiny("tiny-llava-next").parts
    encoder = parts.encoder
    method = METHODS.load("tome", "vision").Method(r=8)
    counts = (197, *(count + 1 for count in method.plan(196, 2)))
    merged = replace(parts, encoder=merge(encoder, method, counts))
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    state, _ = encode(merged.encoder.modules[:-1], pixels)
    hidden, size, origin = state
    assert hidden.shape[1] == counts[-1] < 197
    (features,), signals = encode(observe(merged, OF_LAST_LAYER).encoder.modules, pixels)
    assert torch.equal(features, merged.encoder.connector(*state))
    logits, attention, flat, keys = signals
    layer = encoder.after[0].layer
    h = layer.layer_norm1(hidden)
    query, key = layer.self_attn.q_proj(h), layer.self_attn.k_proj(h)
    scores = query[:, :1] @ key.transpose(1, 2) * key.shape[-1] ** -0.5
    weights = (scores + size.log().transpose(1, 2)).softmax(-1)[0, 0] / size[0, :, 0]
    heads = [x.unflatten(-1, (encoder.spec.heads, -1)).transpose(1, 2) for x in (query, key)]
    each = heads[0][:, :, :1] @ heads[1].transpose(2, 3) * encoder.spec.head_size**-0.5
    own, patches = each.mean(1), origin[0, 1:]
    weighed = (each + size.log().transpose(1, 2)).softmax(-1).mean(1)[0, 0] / size[0, :, 0]
    torch.testing.assert_close(attention[0], weighed[patches])
    torch.testing.assert_close(keys[0], key[0, patches])
    torch.testing.assert_close(logits[0], own[0, 0, patches])
    torch.testing.assert_close(flat[0], weights[patches])


def test_of_the_last_layer_only_what_gives_queries_and_keys_is_held(tiny):
    parts = observe(tiny("tiny-llava-next").parts, ("cls_logits",))
    connector, layer = parts.encoder.connector, parts.encoder.after[0].layer
    assert isinstance(connector, Beyond)
    names = ("layer_norm1", "self_attn.q_proj", "self_attn.k_proj")
    expected = {id(p) for name in names for p in layer.get_submodule(name).parameters()}
    expected |= {id(p) for p in tiny("tiny-llava-next").parts.encoder.connector.parameters()}
    assert {id(p) for p in connector.parameters()} == expected


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


@torch.no_grad()
def test_a_level_has_all_patches_where_tokens_merge(tiny):
    """Granite Docling's features of earlier layers, each folded from a full grid."""
    made = tiny("tiny-granite-docling", methods=("tome@vision:patches=200,by=1",))
    parts, image = made.planned.parts(made.model), made.plan.host.image
    pixels = torch.randn(1, 3, image.height, image.width)
    whole = made.planned.own_levels(made.model, pixels)
    _, found = method_inputs(parts, tuple(whole), pixels)
    shapes = {name: tuple(level.shape) for name, level in found.items()}
    assert shapes == {name: tuple(level.shape) for name, level in whole.items()}
    assert not torch.equal(found["level_0"], whole["level_0"])  # it merges after the first layer
