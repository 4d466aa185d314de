"""What a family's static form has not is refused, with what to change."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("torch")

from edgevlm.errors import PlanError
from edgevlm.recipe import Recipe

MISTRAL, DOCLING, VISION = "tiny-mistral3", "tiny-granite-docling", "tiny-granite4-vision"
GLM = "tiny-glm-ocr"
# Preset; values of config.json, by path; of the image processor; of the recipe; the message.
REFUSED = [
    (MISTRAL, {"vision_feature_layer": -2}, {}, {},
     "vision_feature_layer is -2, and only the last"),
    (MISTRAL, {}, {"size": {"longest_edge": 56}}, {"size": (84, 56)},
     "size 84x56 has a side of more than 56 pixels, the longest that the image processor keeps"),
    (MISTRAL, {}, {}, {"size": (84, 50)},
     "size 84x50 has sides that are no multiples of 28 pixels"),
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
    (GLM, {"text_config.rope_parameters.partial_rotary_factor": 0.5}, {}, {"size": (56, 56)},
     "partial_rotary_factor 0.5 of GLM is not supported, only 1 is"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "numbers", "options", "message"), REFUSED, ids=str)
def test_what_the_static_form_has_not_is_refused(tiny, name, values, numbers, options, message):
    small = {} if name in (DOCLING, VISION) else {"size": (56, 56)}
    checkpoint = tiny(name, **small).planned.checkpoint
    config = copy.deepcopy(checkpoint.config)
    for path, value in values.items():
        *outer, key = path.split(".")
        owner = config
        for step in outer:
            owner = getattr(owner, step)
        if isinstance(owner, dict):
            owner[key] = value
        else:
            setattr(owner, key, value)
    with pytest.raises(PlanError, match=message):
        checkpoint.family.describe(config, checkpoint.processor() | numbers, Recipe(**options))
