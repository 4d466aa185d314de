"""The visual exit as a plan."""

from __future__ import annotations

from edgevlm.compress.decoder.exit import Method


def test_plans() -> None:
    """Visual tokens that each of eight layers sees."""
    assert Method().plan(64, 8) == (*[64] * 7, 0)
