"""V-JEPA 2 with its attentive pooler and classifier."""

# ruff: noqa: C408

from __future__ import annotations

from checkpoints.shared.clips import clip_processor

SIZES = dict(patch_size=16, crop_size=256, frames_per_clip=16, tubelet_size=2, hidden_size=1024,
    num_attention_heads=16, num_hidden_layers=24, mlp_ratio=4.0, layer_norm_eps=1e-6,
    hidden_act="gelu", num_pooler_layers=3, pred_hidden_size=384, pred_num_attention_heads=12,
    pred_num_hidden_layers=12)  # fmt: skip
PRESETS = {
    "vjepa2-vitl-fpc16-256": dict(dtype="float32", vision=SIZES, classes=174),
    "tiny-vjepa2": dict(dtype="float32", classes=5, vision=SIZES | dict(patch_size=8, crop_size=32,
        frames_per_clip=8, hidden_size=64, num_attention_heads=4, num_hidden_layers=2,
        mlp_ratio=2.0, num_pooler_layers=2, pred_hidden_size=32, pred_num_attention_heads=4,
        pred_num_hidden_layers=1)),
}  # fmt: skip
GAINS = {"patch_embeddings": 3.0, "query": 1.4, "key": 1.4, "value": 1.5, "proj": 1.5,
         "predictor_embeddings": 1.0, "classifier": 2.0}  # fmt: skip
STDS = {"query_tokens": 1.0, "mask_tokens": 0.5}


def tokenizer(preset: dict) -> None:
    """There are no words."""


def config(preset: dict, tokenizer: None) -> dict:
    """config.json."""
    names = {str(index): f"motion {index}" for index in range(preset["classes"])}
    return {
        "model_type": "vjepa2",
        "dtype": preset["dtype"],
        "architectures": ["VJEPA2ForVideoClassification"],
        "id2label": names,
        "label2id": {name: int(index) for index, name in names.items()},
        **preset["vision"],
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder."""
    side = preset["vision"]["crop_size"]
    numbers = clip_processor("VJEPA2VideoProcessor", side, int(side * 256 / 224))
    numbers["video_processor_type"] = numbers.pop("image_processor_type")
    return {"video_preprocessor_config.json": numbers}
