"""Figures as people read them."""

from __future__ import annotations


def milliseconds(value: float) -> str:
    """`0.031`, `4.20`, `37.1`, `1,512`: milliseconds without the unit."""
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 1000 else 0
    return f"{value:,.{digits}f}"


def megabytes(size: float, unit: str = " MB") -> str:
    """Bytes as MB (10^6)."""
    return f"{size / 1e6:,.1f}{unit}"
