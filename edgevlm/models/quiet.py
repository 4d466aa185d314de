"""transformers without its progress bars and advice, which would mix with our lines."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from edgevlm.libraries import silent

KERNELS = "transformers.integrations.hub_kernels"  # the logger of what follows
SLOWER = "is falling back to its reference PyTorch implementation"


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


@contextmanager
def without_kernel_advice() -> Iterator[None]:
    """Run a model of transformers inside the body, of which its reference is what is asked for.

    Of recurrent layers it advises packages for a GPU, once for each of their functions.
    """
    logger = logging.getLogger(KERNELS)
    logger.addFilter(_other_than_advice)
    try:
        yield
    finally:
        logger.removeFilter(_other_than_advice)


def _other_than_advice(record: logging.LogRecord) -> bool:
    return SLOWER not in record.getMessage()
