"""What transformers says while we call it."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("transformers")

from edgevlm.models.quiet import KERNELS, without_kernel_advice


def test_a_reference_is_not_advised_to_be_quicker(caplog):
    """And nothing else is hidden."""
    from transformers.models.lfm2.modeling_lfm2 import causal_conv1d_fn

    assert causal_conv1d_fn.__globals__["logger"].name == KERNELS
    logger, advice = logging.getLogger(KERNELS), "`f` is falling back to its reference PyTorch"
    logger.addHandler(caplog.handler)
    try:
        with without_kernel_advice():
            logger.warning("%s implementation because `x` is not installed.", advice)
            logger.warning("another matter")
        assert [record.getMessage() for record in caplog.records] == ["another matter"]
        logger.warning("%s implementation, said outside", advice)
        assert len(caplog.records) == 2
    finally:
        logger.removeHandler(caplog.handler)
