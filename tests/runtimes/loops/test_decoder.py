"""Rows through the decoder of exported tiny bundles: chunks, the cache, what a token takes."""

from __future__ import annotations

import gc
import os
import statistics
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.runtimes.loops.sequence import PromptRows


@settings(max_examples=12, deadline=None)
@given(length=st.integers(1, 70))
def test_prefill_in_chunks_equals_one_token_at_a_time(shared, length):
    rows = np.array(shared.table[np.arange(length) * 7 % 1000])
    positions = np.arange(length, dtype=np.int32)
    shared.reset()
    shared.prefill(PromptRows(rows, positions))
    chunked = shared.logits().copy()
    shared.reset()
    for i in range(length):
        shared.step("decode", rows[i : i + 1], positions[i : i + 1])
    np.testing.assert_allclose(shared.logits(), chunked, atol=1e-4 * np.abs(chunked).max())


def test_prefill_to_the_last_row_of_the_context(loop):
    rows = np.array(loop.table[np.arange(512) % 1000])
    loop.prefill(
        PromptRows(rows[:500], np.arange(500, dtype=np.int32))
    )  # 12 rows are no whole chunk
    loop.prefill(PromptRows(rows[500:], np.arange(500, 512, dtype=np.int32)))
    whole = loop.logits().copy()
    loop.reset()
    loop.prefill(PromptRows(rows, np.arange(512, dtype=np.int32)))
    np.testing.assert_allclose(loop.logits(), whole, atol=1e-4 * np.abs(whole).max())


def test_a_token_costs_the_same_in_a_longer_context(loop_of, loop):
    long = loop_of(chunk=64, context=8192)
    rows = np.array(loop.table[:128])
    row, ratios = rows[:1], []

    def step_ms(one):
        one.reset()
        one.prefill(PromptRows(rows, np.arange(128, dtype=np.int32)))
        times = []
        for i in range(60):
            started = time.perf_counter()
            one.step("decode", row, np.asarray([128 + i], np.int32))
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1e3

    for _ in range(6):  # another process may disturb one try
        ratios.append(step_ms(long) / step_ms(loop))
        if ratios[-1] < 1.5:
            return
    pytest.fail(f"a decode step with 16 times the context takes {ratios} times as long")


def test_tokens_allocate_nothing_that_stays(loop):
    loop.prefill(PromptRows(np.array(loop.table[:32]), np.arange(32, dtype=np.int32)))
    loop._step_token(5)
    one_cache = loop.arrays.cache[0].nbytes
    tracemalloc.start()
    try:
        for _ in range(10):
            loop._step_token(5)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(200):
            loop._step_token(5)
            loop.logits()
        gc.collect()  # ONNX Runtime's own calls leave some for the collector
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 16_384
    assert peak - before < one_cache / 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_tokens_do_not_grow_the_process(loop):
    def resident_bytes():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    loop.prefill(PromptRows(np.array(loop.table[:32]), np.arange(32, dtype=np.int32)))
    for _ in range(50):
        loop._step_token(5)
    before = resident_bytes()
    for _ in range(200):
        loop._step_token(5)
    assert resident_bytes() - before < 2_000_000
