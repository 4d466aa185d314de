"""What happens to each type that transformers maps to image-text-to-text, from its default config.

A type without a family file goes the way of `edgevlm/models/generic`, as far as it can without a
checkpoint: its language model, its image processor, and a trace of its encoder at full size, all on
the meta device. A type that comes so far is not refused for its kind; whether it exports is known
only where a tiny checkpoint was (`TRIED`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from edgevlm.errors import EdgeVLMError, PlanError
from edgevlm.libraries import silent
from edgevlm.models.generic.encoder import traced
from edgevlm.models.shared.llama import DECODERS, decoder_spec
from edgevlm.models.weights.loading import built, cut
from edgevlm.registry import FAMILIES

# Types without a family file of which tests export a tiny checkpoint.
TRIED = ("deepseek_vl", "janus", "vipllava")
NO_CONFIG = "transformers makes no default config of it"


@dataclass(frozen=True)
class Outcome:
    """A type, what becomes of it (`family`, `generic`, `refused`, `not tried`), and the reason."""

    model_type: str
    result: str
    reason: str = ""


def outcomes() -> list[Outcome]:
    """Each type, in transformers' order."""
    return [_outcome(name) for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES]


def _outcome(name: str) -> Outcome:
    if name in FAMILIES.names():
        return Outcome(name, "family")
    if name in TRIED:
        return Outcome(name, "generic", "a tiny checkpoint is exported by tests")
    try:
        with silent():
            config = AutoConfig.for_model(name)
    except Exception as cause:  # a library that is missing, a config without defaults
        lacks = isinstance(cause, ImportError)
        why = "its default config needs a library that is not here" if lacks else NO_CONFIG
        return Outcome(name, "not tried", why)
    for part, check in CHECKS.items():
        try:
            with silent(), torch.no_grad():
                check(config)
        except EdgeVLMError as cause:
            return Outcome(name, "refused", str(cause))
        except Exception:  # transformers' own code raises anything
            return Outcome(name, "refused", f"its default config makes no {part}")
    return Outcome(name, "not tried", "nothing in its default config speaks against it")


def _language_model(config: Any) -> None:
    """Refuse a decoder that is none of those here, or is another than its type says."""
    text = config.get_text_config()
    if text.model_type not in DECODERS:
        raise PlanError(f"language model '{text.model_type}' is none of those here")
    decoder_spec(text)


def _processor(config: Any) -> None:
    """Refuse one that needs torchvision."""
    known = IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type, {})
    if "pil" not in known:
        raise PlanError("its image processor has no form on Pillow, only one on torchvision")


def _encoder(config: Any) -> None:
    """Refuse one without a fixed view, or one that cannot be traced."""
    size = getattr(config.vision_config, "image_size", None)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if height is None:
        raise PlanError("vision_config has no image_size, so that views have no fixed one")
    empty = built("AutoModelForImageTextToText", cut(config, 1)).eval()
    traced(empty, height, width)


CHECKS = {"language model": _language_model, "image processor": _processor, "encoder": _encoder}
