"""What transformers says while we call it."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("transformers")

from edgevlm.models.quiet import KERNELS, SLOWER, without_kernel_advice


def test_a_reference_is_not_advised_to_be_quicker():
    """And nothing else is hidden."""
    from transformers.models.lfm2.modeling_lfm2 import causal_conv1d_fn

    said = []
    logger, handler = logging.getLogger(KERNELS), logging.Handler()
    assert causal_conv1d_fn.__globals__["logger"] is logger
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with without_kernel_advice():
            logger.warning("`%s` %s because `x` is not installed.", "f", SLOWER)
            logger.warning("another matter")
        assert said == ["another matter"]
        logger.warning("`f` %s, said outside", SLOWER)
        assert len(said) == 2
    finally:
        logger.removeHandler(handler)
