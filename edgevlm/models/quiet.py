"""transformers without its progress bars and advice, which would mix with our lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from edgevlm.libraries import silent


@contextmanager
def quiet() -> Iterator[None]:
    """Call transformers inside the body; torchao, beneath it, is silent too."""
    bars = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    # Imported here because it configures logging at import.
    from transformers.utils import logging as hf_logging

    active = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with silent():
            yield
    finally:
        if active:
            hf_logging.enable_progress_bar()
        if bars is not None:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = bars
