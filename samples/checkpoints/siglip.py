"""SigLIP and, under the same model type, SigLIP 2 at one size."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Regex, Tokenizer, normalizers

from checkpoints.shared.embedders import embedder_config, embedder_files
from checkpoints.shared.letters import BLANK
from checkpoints.shared.presets import BASE, SIGLIP_IDS, TINY_VISION, TINY_WORDS, tiny
from checkpoints.shared.siglip import NO_MASK, ROLES, siglip_tokenizer

PRESETS = {
    "siglip2-base-patch16-224": dict(dtype="bfloat16",
        vision=BASE | dict(image_size=224, patch_size=16, hidden_act="gelu_pytorch_tanh"),
        text=BASE | SIGLIP_IDS | dict(vocab_size=256000, max_position_embeddings=64,
            hidden_act="gelu_pytorch_tanh")),
    "tiny-siglip": dict(dtype="float32",
        vision=TINY_VISION | dict(image_size=64, patch_size=8), text=TINY_WORDS | SIGLIP_IDS),
}  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """SigLIP 2's; the tiny one also has SigLIP's lower case without punctuation."""
    if not tiny(preset):
        return siglip_tokenizer(preset)
    marks = normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), "")
    strip = normalizers.Strip(left=True, right=True)
    plain = normalizers.Sequence([normalizers.Lowercase(), marks, strip, BLANK])
    return siglip_tokenizer(preset, plain)


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json."""
    return embedder_config("Siglip", "siglip", preset, preset["text"])


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder."""
    side = preset["vision"]["image_size"]
    own = {"tokenizer_class": "PreTrainedTokenizerFast", **NO_MASK}
    return embedder_files("Siglip", preset, {"size": {"height": side, "width": side}}, own, ROLES)
