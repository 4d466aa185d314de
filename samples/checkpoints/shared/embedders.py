"""The small files of a checkpoint that gives embeddings of images and of texts."""

from __future__ import annotations


def embedder_config(name: str, family: str, preset: dict, text: dict) -> dict:
    """config.json of class NAMEModel."""
    return {
        "model_type": family,
        "dtype": preset["dtype"],
        "architectures": [f"{name}Model"],
        "text_config": {"model_type": f"{family}_text_model", **text},
        "vision_config": {"model_type": f"{family}_vision_model", **preset["vision"]},
    }


def embedder_files(
    name: str, preset: dict, image: dict, tokenizer: dict, special: dict
) -> dict[str, dict | str]:
    """The other files of such a folder: image processor and tokenizer, as published.

    Args:
        name: The first part of the classes' names.
        preset: The preset.
        image: Numbers of the image processor.
        tokenizer: What tokenizer_config.json has beside what all have.
        special: Special tokens by their role.
    """
    own = {"processor_class": f"{name}Processor"}
    processor = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,  # BILINEAR
        "image_processor_type": f"{name}ImageProcessor",
    }
    return {
        "preprocessor_config.json": processor | own | image,
        "tokenizer_config.json": {
            "model_max_length": preset["text"]["max_position_embeddings"],
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
            **own,
            **tokenizer,
            **special,
        },
        "special_tokens_map.json": special,
    }
