"""What checkpoints of the LLaVA families share."""

from __future__ import annotations

from tokenizers import Tokenizer


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
