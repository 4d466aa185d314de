"""Idefics3 (arXiv 2408.12637): SigLIP encoder, pixel shuffle, Llama decoder.

SmolVLM has the same architecture, which `edgevlm/models/shared/idefics.py` has.
"""

from edgevlm.models.shared.idefics import (
    describe,
    parts,
    processor_options,
    processor_views,
    reference_features,
)

__all__ = [
    "AUTO_CLASS",
    "KIND",
    "describe",
    "parts",
    "processor_options",
    "processor_views",
    "reference_features",
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
