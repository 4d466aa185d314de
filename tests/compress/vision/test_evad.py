"""EVAD: blocks against recorded ones of the original, plans, and VideoMAE with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from edgevlm.compress.vision.evad import Method  # noqa: E402
from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.graphs.merging import LeavingLayer  # noqa: E402
from edgevlm.graphs.signals import encode  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.shared.encoders.clips import VideoMAELayer  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

VECTORS = Path(__file__).resolve().parents[3].parent / "shared" / "vectors" / "systems"


class Noted(Method):
    """The method, with what it chose last."""

    found: Tensor

    def choose(self, received: Tensor, key: int, kept: int) -> Tensor:
        """As the method does."""
        self.found = super().choose(received, key, kept)
        return self.found


def own_layers(case: dict[str, Any], weights: dict[str, Tensor]) -> list[Any]:
    """transformers' layers with the recorded weights."""
    from transformers.models.videomae.modeling_videomae import VideoMAELayer as Own

    config = transformers.VideoMAEConfig(
        hidden_size=int(case["param_dim"]),
        num_attention_heads=int(case["param_heads"]),
        intermediate_size=int(case["param_dim"] * case["param_mlp_ratio"]),
        layer_norm_eps=1e-6,
    )
    config._attn_implementation = "eager"
    layers = []
    for index in range(len(case["param_keep_rates"])):
        mark = f"w{case['param_weights']}.{index}."
        given = {k[len(mark) :]: v.float() for k, v in weights.items() if k.startswith(mark)}
        query, key, value = given["attn.qkv.weight"].chunk(3)
        names = {
            "attention.attention.query.weight": query,
            "attention.attention.key.weight": key,
            "attention.attention.value.weight": value,
            "attention.attention.query.bias": given["attn.q_bias"],
            "attention.attention.value.bias": given["attn.v_bias"],
        }
        for new, old in (
            ("attention.output.dense", "attn.proj"), ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"), ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
        ):  # fmt: skip
            names |= {f"{new}.{kind}": given[f"{old}.{kind}"] for kind in ("weight", "bias")}
        layer = Own(config)
        layer.load_state_dict(names)
        layers.append(layer.eval())
    return layers


@pytest.mark.parametrize("index", [0, 1])
def test_blocks_are_the_originals(index: int) -> None:
    """Tokens that stay after each block, and what the last one gives."""
    if not VECTORS.is_dir():
        pytest.skip("the recorded vectors are not here")
    from safetensors.torch import load_file

    recorded = np.load(VECTORS / "evad.npz")
    mark = f"case{index}_"
    case = {k[len(mark) :]: recorded[k] for k in recorded.files if k.startswith(mark)}
    rates = [round(float(rate), 6) for rate in case["param_keep_rates"]]
    key = int(case["param_grid_h"] * case["param_grid_w"])
    x = torch.from_numpy(case["in_tokens"])
    chosen = "+".join(str(i) for i, rate in enumerate(rates) if rate < 1)
    method = Method(keep=min(rates), layers=chosen, enhanced=float(case["param_enhanced_weight"]))
    counts = (x.shape[1], *method.plan_clip(x.shape[1], len(rates), int(case["param_frames"])))
    ids = torch.arange(x.shape[1] - key)
    for block, own in enumerate(own_layers(case, load_file(VECTORS / "evad.safetensors"))):
        layer, pair = VideoMAELayer(own), counts[block : block + 2]
        if pair[1] < pair[0]:
            noted = Noted(keep=method.keep, enhanced=method.enhanced)
            with torch.no_grad():
                x = LeavingLayer(layer, noted, pair, 0, key)(x)
            ids = ids[noted.found[key:] - key]
        else:
            with torch.no_grad():
                x = layer(x)
        assert sorted(ids.tolist()) == sorted(case[f"out_kept_after_block_{block}"][0].tolist())
    by_score = case["out_kept"][0]
    order = [*range(key), *(key + ids.tolist().index(number) for number in by_score)]
    expected = torch.from_numpy(case["out_tokens"])
    assert (x[:, order] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_plans() -> None:
    """Its configs' layers by default; what cannot be is one line."""
    assert Method().plan_clip(1568, 12, 8) == (*[1568] * 3, *[1098] * 3, *[769] * 3, *[539] * 3)
    assert Method(keep=0.5, layers="0+2").plan_clip(64, 4, 4) == (32, 32, 16, 16)
    with pytest.raises(PlanError, match="evad: got layer 9, the encoder has 0 to 3"):
        Method(layers="2+9").plan_clip(64, 4, 4)
    with pytest.raises(PlanError, match="leaves 8 tokens of 64, and the key frame has 16"):
        Method(keep=0.125, layers=1).plan_clip(64, 4, 4)
    for wrong in ({"keep": 1.0}, {"enhanced": 0.0}, {"layers": "3,6"}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must"):
            Method(**wrong)


def test_videomae_with_it_is_transformers_driven_so(preset: Any) -> None:
    """The middle group of frames moves in front; the head sees what stayed."""
    options = "keep=0.8,layers=1+2+3,enhanced=4"
    recipe = Recipe(str(preset("tiny-videomae")), frames=8, methods=(f"evad:{options}",))
    planned: Any = make_plan(recipe, find(recipe.model))
    assert planned.plan.host.encoder.tokens == (64, 64, 52, 42, 34)
    model = planned.checkpoint.load_model()
    image, own, heads = planned.plan.host.image, model.videomae, 4
    torch.manual_seed(0)
    pixels = torch.randn(1, image.channels, image.height, image.width)
    with torch.no_grad():
        x = own.embeddings(pixels.unflatten(1, (-1, 3)), None)
        x = torch.cat((x[:, 32:48], x[:, :32], x[:, 48:]), 1)
        for index, layer in enumerate(own.encoder.layer):
            inside, h = layer.attention.attention, layer.layernorm_before(x)
            query, key, value = (
                part(h).view(1, x.shape[1], heads, -1).transpose(1, 2)
                for part in (inside.query, inside.key, inside.value)
            )
            weights = (query @ key.transpose(2, 3) * inside.scaling).softmax(-1)
            x = x + layer.attention.output.dense(
                (weights @ value).transpose(1, 2).reshape(1, x.shape[1], -1)
            )
            if index in (1, 2, 3):
                scores = weights.mean(1)[0]
                scores[:16] *= 4
                kept = math.ceil(0.8 * x.shape[1]) - 16
                best = scores.mean(0)[16:].topk(kept).indices + 16
                x = torch.cat((x[:, :16], x[:, best]), 1)
            x = layer.output(layer.intermediate(layer.layernorm_after(x)), x)
        expected = model.classifier(model.fc_norm(x.mean(1)))
        ours = encode(planned.parts(model).encoder.modules, pixels)[0][0]
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_an_encoder_of_pictures_has_no_key_frame(preset: Any) -> None:
    """CLIP sees frames alone, whatever their number."""
    recipe = Recipe(str(preset("tiny-clip")), frames=4, methods=("evad",))
    with pytest.raises(PlanError, match="evad keeps the key frame of a clip that an encoder att"):
        make_plan(recipe, find(recipe.model))
