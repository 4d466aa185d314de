"""Idefics3 (arXiv 2408.12637): the same shape as SmolVLM, under its older name."""

from edgevlm.models.vlm.smolvlm import describe, pieces, processor_views, reference_features

__all__ = ["describe", "pieces", "processor_views", "reference_features"]
