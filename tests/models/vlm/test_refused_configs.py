"""What a family's static form has not is refused, with what to change."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

from edgevlm.errors import ModelError, PlanError
from edgevlm.recipe import Recipe

MISTRAL, DOCLING, VISION = "tiny-mistral3", "tiny-granite-docling", "tiny-granite4-vision"
GLM, GEMMA, INTERN, QWEN = "tiny-glm-ocr", "tiny-gemma3", "tiny-internvl", "tiny-qwen2-5-vl"
LFM2 = "tiny-lfm2-vl"
SECTIONS = "text_config.rope_parameters.mrope_section"
# Preset; values of config.json, by path; of the image processor; of the recipe; the message.
REFUSED = [
    (MISTRAL, {"vision_feature_layer": -2}, {}, {},
     "vision_feature_layer is -2, and only the last"),
    (MISTRAL, {}, {"size": {"longest_edge": 56}}, {"size": (84, 56)},
     "size 84x56 has a side of more than 56 pixels, the longest that the image processor keeps"),
    (MISTRAL, {}, {}, {"size": (84, 50)},
     "size 84x50 has sides that are no multiples of 28 pixels; give such as 84x56$"),
    (MISTRAL, {}, {}, {"tiles": (2, 2)}, "this family cuts no tiles; leave out --tiles"),
    (MISTRAL, {}, {}, {"frames": 2}, "clips of this family are not supported: got 2 frames"),
    (DOCLING, {}, {}, {"tiles": (7, 5)},
     "tiles 7x5 are more than the model takes, 32 in all and 16"),
    (DOCLING, {}, {}, {"tiles": (1, 17)}, "tiles 1x17 are more than the model takes, 32 in all"),
    (DOCLING, {"vision_config.scale_factor": 3}, {}, {}, "16 patches a side do not divide by the"),
    (DOCLING, {"vision_config.deepstack_visual_indexes": [9]}, {}, {},
     r"deepstack_visual_indexes is \[9\], expected at most 8 of the encoder's 4 layers"),
    (DOCLING, {"text_config.logits_scaling": 0}, {}, {}, "logits_scaling is 0, expected another"),
    (VISION, {}, {}, {"tiles": (3, 3)}, "tiles 3x3 is not a grid of the model, expected one of"),
    (VISION, {"downsample_rate": "half"}, {}, {},
     "downsample_rate is 'half', expected such as '4/8'"),
    (VISION, {"downsample_rate": "1/4"}, {}, {},
     "downsample_rate 1/4 does not make half of 8 patc"),
    (VISION, {"deepstack_layer_map": [(-2, 2), (-1, 3)]}, {}, {},
     r"name the layers \[1, 2, 3, 3, 4, 5\] of the language model, expected 0 and at most 8"),
    (VISION, {"deepstack_layer_map": [(-1, 2), (-2, 0)]}, {}, {},
     "the projector for layer 0 of the"),
    (VISION, {"spatial_target_layers": [-1, 3, 4, 5]}, {}, {},
     r"spatial_target_layers \[-1, 3, 4, 5\], expected layers of the language model from 0 on"),
    (VISION, {"deepstack_layer_map": [(-1, 0), (-2, -3)]}, {}, {},
     r"deepstack_layer_map is \[\(-1, 0\), \(-2, -3\)\] and spatial_target_layers"),
    (VISION, {"vision_config.num_attention_heads": 3}, {}, {},
     "num_attention_heads 3 of the encoder does not divide hidden_size"),
    (INTERN, {"vision_feature_layer": 0}, {}, {}, "vision_feature_layer is 0, expected one layer"),
    (INTERN, {"vision_feature_layer": [-1]}, {}, {},
     r"vision_feature_layer is \[-1\], expected one"),
    (INTERN, {"downsample_ratio": -0.5}, {}, {}, "downsample_ratio is -0.5, expected 1 over a"),
    (INTERN, {"downsample_ratio": math.nan}, {}, {}, "downsample_ratio is nan, expected 1 over a"),
    (GEMMA, {"text_config.sliding_window": 0}, {}, {}, "sliding_window is 0, expected 1 at least"),
    (GEMMA, {"text_config.sliding_window": -3}, {}, {}, "sliding_window is -3, expected 1 at"),
    (GEMMA, {"text_config.sliding_window": None}, {}, {}, "sliding_window is not in config.json"),
    (QWEN, {"vision_config.num_heads": 3}, {}, {}, "num_heads 3 of vision_config does not divide"),
    (QWEN, {"vision_config.window_size": 90}, {}, {"size": (448, 448)},
     "size 448x448 has sides that are no multiples of 84 pixels; give such as 420x420$"),
    (VISION, {"image_grid_pinpoints": [[64]]}, {}, {},
     r"image_grid_pinpoints is \[\[64\]\], expected a list of heights and widths, such as"),
    (QWEN, {SECTIONS: [4, 4]}, {}, {},
     r"mrope_section \[4, 4\] does not make the 8 frequencies of a head, expected 3 whole numbers"),
    (QWEN, {SECTIONS: [2.0, 3.0, 3.0]}, {}, {}, r"mrope_section \[2.0, 3.0, 3.0\] does not make"),
    (QWEN, {SECTIONS: []}, {}, {}, r"mrope_section \[\] does not make"),
    (QWEN, {SECTIONS: 8}, {}, {}, "mrope_section 8 does not make"),
    (MISTRAL, {"text_config.rope_parameters.mscale_all_dim": math.nan}, {}, {},
     "mscale_all_dim of rope_parameters is nan, expected a finite number"),
    (GLM, {"text_config.rope_parameters.partial_rotary_factor": 0.5}, {}, {"size": (56, 56)},
     "partial_rotary_factor 0.5 of GLM is not supported, only 1 is"),
    (DOCLING, {"vision_config.use_fine_route": False}, {"fine_route": True}, {},
     "the image processor has fine_route true, and use_fine_route of config.json is false; set"),
    (LFM2, {}, {"use_thumbnail": False}, {"tiles": (2, 2)}, "tiles 2x2: .* use_thumbnail false"),
    (LFM2, {}, {"max_image_tokens": 60}, {"tiles": (2, 2)},
     "tiles 2x2: .* tiles of 64x64 pixels and a thumbnail of 56x56, got a size of 56x56; leave"),
    ("tiny-minicpm-v-4-7", {}, {"slice_mode": False}, {"tiles": (2, 2)},
     "the image processor has slice_mode false, and writes no slices"),
    ("tiny-minicpm-v-4-7", {"newline_id": None}, {}, {}, "config.json says newline_id None, exp"),
]  # fmt: skip


# Preset; values of config.json that arithmetic fails over; what fails.
MISFITS = [
    (GEMMA, {"mm_tokens_per_image": -4}, "; look at mm_tokens_per_image -4"),
    (GEMMA, {"text_config.query_pre_attn_scalar": -1},
     "math domain error; look at text_config.query_pre_attn_scalar -1"),
    (GEMMA, {"vision_config.patch_size": 0}, "; look at vision_config.patch_size 0"),
    (MISTRAL, {"text_config.rope_parameters.rope_theta": 0},
     "; look at text_config.rope_parameters.rope_theta 0"),
    (MISTRAL, {"text_config.rope_parameters.original_max_position_embeddings": -1},
     "; look at text_config.rope_parameters.original_max_position_embeddings -1"),
    (VISION, {"downsample_rate": "-2/-4"}, "Fraction"),
]  # fmt: skip


def small(name: str) -> dict[str, tuple[int, int]]:
    """Options of the recipe under which a preset is planned."""
    sizes = {MISTRAL: (56, 56), GLM: (56, 56), QWEN: (112, 168)}
    return {"size": sizes[name]} if name in sizes else {}


def edited(own: Any, values: dict[str, Any]) -> Any:
    """A copy of a config with other values, by path."""
    config = copy.deepcopy(own)
    for path, value in values.items():
        *outer, key = path.split(".")
        owner = config
        for step in outer:
            owner = getattr(owner, step)
        if isinstance(owner, dict):
            owner[key] = value
        else:
            setattr(owner, key, value)
    return config


@pytest.mark.parametrize(("name", "values", "numbers", "options", "message"), REFUSED, ids=str)
def test_what_the_static_form_has_not_is_refused(tiny, name, values, numbers, options, message):
    checkpoint = tiny(name, **small(name)).planned.checkpoint
    config, recipe = edited(checkpoint.config, values), Recipe(**small(name) | options)
    with pytest.raises(PlanError, match=message):
        checkpoint.family.describe(config, checkpoint.processor() | numbers, recipe)


@pytest.mark.parametrize(("name", "values", "message"), MISFITS, ids=str)
def test_arithmetic_that_fails_over_a_config_is_one_line(tiny, name, values, message):
    checkpoint = tiny(name, **small(name)).planned.checkpoint
    other = replace(checkpoint, config=edited(checkpoint.config, values))
    with pytest.raises(ModelError) as error:
        other.describe(Recipe(**small(name)))
    start = f"'{checkpoint.model}': config.json does not match its family: "
    assert str(error.value).startswith(start)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_arithmetic_that_fails_while_parts_are_made_is_one_line(tiny, monkeypatch):
    made = tiny(GEMMA)
    config = edited(made.planned.checkpoint.config, {"vision_config.patch_size": 0})
    checkpoint = replace(made.planned.checkpoint, config=config)

    def parts(model, description):
        return 5 % config.vision_config.patch_size

    monkeypatch.setattr(checkpoint.family, "parts", parts)
    with pytest.raises(ModelError) as error:
        checkpoint.parts(made.model, made.planned.description)
    assert str(error.value).startswith(f"'{checkpoint.model}': config.json does not match its fam")
    assert str(error.value).endswith("; look at vision_config.patch_size 0")
