"""What checkpoints of the LLaVA families share."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.presets import CLIP_MEAN, CLIP_STD, LLAMA_TEXT, TINY_TEXT, TINY_VISION
from checkpoints.shared.words import LLAMA_SPECIAL, llama_tokenizer

# CLIP and Llama, tiny.
TINY = dict(dtype="float32",
    vision=TINY_VISION | dict(num_hidden_layers=3, image_size=56, patch_size=7,
        hidden_act="quick_gelu"),
    text=LLAMA_TEXT | TINY_TEXT)  # fmt: skip


def published(name: str) -> str:
    """The name of a tensor in their files, which keep an older layout of their modules."""
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.")
    return name.replace("language_model.", "language_model.model.")


def image_and_projector(tokenizer: Tokenizer) -> dict:
    """Constants of config.json that all of them have."""
    return {
        "image_token_index": tokenizer.token_to_id("<image>"),
        "projector_hidden_act": "gelu",
    }


def pinpoints(grids: list[tuple[int, int]], size: int) -> list[list[int]]:
    """Grids of tiles (rows, columns) as config.json has them: [height, width] in pixels."""
    return [[rows * size, columns * size] for rows, columns in grids]


def llama(preset: dict) -> Tokenizer:
    """Llama's tokenizer."""
    return llama_tokenizer(preset)


def clip_config(name: str, family: str, preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json over CLIP, without what the family says of its feature layers."""
    vision = {"model_type": "clip_vision_model", **preset["vision"]}
    config = vlm_config(name, family, preset, dict(preset["text"]), vision)
    return config | image_and_projector(tokenizer)


def clip_files(
    preset: dict, config: dict, chat: str, name: str = "Llava", image: dict | None = None
) -> dict[str, dict | str]:
    """The other files of a LLaVA over CLIP and Llama.

    Args:
        preset: The sizes.
        config: config.json.
        chat: The chat template.
        name: Of its processor.
        image: What its image processor has beside CLIP's sizes and means; None is LLaVA 1.5's.
    """
    text, vision = config["text_config"], preset["vision"]
    size = vision["image_size"]
    if image is None:
        image = image_processor("CLIP", "Llava") | {"do_pad": False, "do_center_crop": True}
    image = image | {
        "resample": 3,  # BICUBIC
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    processor = {
        "image_token": "<image>",
        "vision_feature_select_strategy": "default",
        "patch_size": vision["patch_size"],
        "num_additional_image_tokens": 1,
    }
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    special |= {"pad_token": "<pad>", "unk_token": "<unk>"}
    generation, extra = generation_ids(text), LLAMA_SPECIAL[3:]
    return vlm_files(name, text, image, processor, special, extra, generation, chat)
