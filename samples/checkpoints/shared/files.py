"""The small files of a checkpoint of a language model that sees."""

from __future__ import annotations


def vlm_config(name: str, family: str, preset: dict, text: dict, vision: dict) -> dict:
    """config.json of class NAMEForConditionalGeneration, without the family's constants."""
    return {
        "model_type": family,
        "dtype": preset["dtype"],
        "architectures": [f"{name}ForConditionalGeneration"],
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": text,
        "vision_config": vision,
    }


def image_processor(kind: str, name: str) -> dict:
    """preprocessor_config.json of class KINDImageProcessor: a picture resized, 0.5 and 0.5."""
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_processor_type": f"{kind}ImageProcessor",
        "processor_class": f"{name}Processor",
    }


def vlm_files(
    name: str,
    text: dict,
    image: dict,
    processor: dict,
    special: dict,
    extra: list[str],
    generation: dict,
    chat: str,
) -> dict[str, dict | str]:
    """The files beside config.json and the tokenizer.

    Args:
        name: The first part of the classes' names.
        text: The text config.
        image: preprocessor_config.json.
        processor: Numbers of the processor.
        special: Special tokens by their role.
        extra: Further special tokens.
        generation: generation_config.json.
        chat: The chat template.
    """
    own = {"processor_class": f"{name}Processor"}
    tokens = {"additional_special_tokens": extra, **special}
    return {
        "preprocessor_config.json": image,
        "processor_config.json": own | processor,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": text["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            **own,
            **tokens,
        },
        "special_tokens_map.json": tokens,
        "generation_config.json": generation,
        "chat_template.jinja": chat,
    }


def generation_ids(text: dict) -> dict:
    """generation_config.json with the ids of the text config."""
    return {f"{role}_token_id": text[f"{role}_token_id"] for role in ("bos", "eos", "pad")}
