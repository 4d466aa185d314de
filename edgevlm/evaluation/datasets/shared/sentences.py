"""Sentences about an image as questions; NLVR asks them, and the embedded model trains on them."""

from __future__ import annotations

PROMPT = "{sentence} True or false?"  # the sentence ends in one full stop


def true_or_false(sentence: str) -> str:
    """The question whether a sentence is true; the sentence gets exactly one full stop."""
    return PROMPT.format(sentence=sentence.strip().rstrip(". ") + ".")
