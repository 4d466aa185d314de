"""VideoMAE with its classifier."""

# ruff: noqa: C408

from __future__ import annotations

from checkpoints.shared.clips import clip_processor
from checkpoints.shared.presets import BASE, TINY_VISION

SIZES = dict(image_size=224, patch_size=16, num_frames=16, tubelet_size=2, use_mean_pooling=True,
    hidden_act="gelu", layer_norm_eps=1e-12)  # fmt: skip
PRESETS = {
    "videomae-base": dict(dtype="float32", vision=BASE | SIZES, classes=400),
    "tiny-videomae": dict(dtype="float32", classes=5, vision=TINY_VISION | SIZES | dict(
        image_size=32, patch_size=8, num_frames=8, num_hidden_layers=4, layer_norm_eps=1e-6)),
}  # fmt: skip
GAINS = {"query": 1.4, "key": 1.4, "value": 1.5, "intermediate": 1.5, "dense": 1.2,
         "projection": 3.0, "classifier": 2.0}  # fmt: skip


def tokenizer(preset: dict) -> None:
    """There are no words."""


def config(preset: dict, tokenizer: None) -> dict:
    """config.json."""
    names = {str(index): f"action {index}" for index in range(preset["classes"])}
    return {
        "model_type": "videomae",
        "dtype": preset["dtype"],
        "architectures": ["VideoMAEForVideoClassification"],
        "id2label": names,
        "label2id": {name: int(index) for index, name in names.items()},
        **preset["vision"],
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder."""
    side = preset["vision"]["image_size"]
    processor = clip_processor("VideoMAEImageProcessor", side, side)
    return {"preprocessor_config.json": processor}
