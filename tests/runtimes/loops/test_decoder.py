"""Rows through the decoder of exported tiny bundles: chunks, the cache, what a token takes."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.runtimes.loops.sequence import text_rows


@settings(max_examples=12, deadline=None)
@given(length=st.integers(1, 70))
def test_prefill_in_chunks_equals_one_token_at_a_time(shared, length):
    rows = np.array(shared.table[np.arange(length) * 7 % 1000])
    shared.reset()
    shared.prefill(text_rows(shared.plan, rows))
    chunked = shared.logits().copy()
    shared.reset()
    for i in range(length):
        shared.step("decode", rows[i : i + 1])
    np.testing.assert_allclose(shared.logits(), chunked, atol=1e-4 * np.abs(chunked).max())


def test_prefill_to_the_last_row_of_the_context(loop):
    rows = np.array(loop.table[np.arange(512) % 1000])
    loop.prefill(text_rows(loop.plan, rows[:500]))  # 12 rows are no whole chunk
    loop.prefill(text_rows(loop.plan, rows[500:], 500))
    whole = loop.logits().copy()
    loop.reset()
    loop.prefill(text_rows(loop.plan, rows))
    np.testing.assert_allclose(loop.logits(), whole, atol=1e-4 * np.abs(whole).max())


def test_a_token_moves_the_same_bytes_in_a_longer_context(loop_of, loop):
    """What a step is given, but for the cache, has no side of the context's length."""
    sizes = {}
    for name, one in (("short", loop), ("long", loop_of(chunk=64, context=2048))):
        step = one.arrays.steps["decode"]
        given = {key: array for key, array in step.items() if not key.startswith("past")}
        assert given
        sizes[name] = {key: array.nbytes for key, array in given.items()}
        # A token runs the blocks of the decoder and the head, each once, and nothing else.
        runs = []
        run, one.blocks.run = one.blocks.run, lambda *key, runs=runs: runs.append(key)
        try:
            one.reset()
            one._step_token(5)
            one.logits()
        finally:
            one.blocks.run = run
        decoder = [(block.name, "decode") for block in one.plan.stage("decoder")]
        assert runs == decoder + [(block.name, "logits") for block in one.plan.stage("head")]
    assert sizes["short"] == sizes["long"]


def test_the_cache_is_written_in_place(loop_of):
    """A step's graph has no operator that copies the cache: its cost is the rows it attends to."""
    onnx = pytest.importorskip("onnx")
    bundle = loop_of(chunk=64, context=2048).bundle
    for block in bundle.plan.stage("decoder"):
        graph = onnx.load(bundle.files_of(block)["decode"], load_external_data=False).graph
        readers = {
            name: [node.op_type for node in graph.node if name in node.input]
            for name in (value.name for value in graph.input)
            if name.startswith("past_")
        }
        assert len(readers) == 2 * (block.span[1] - block.span[0])
        assert all(kinds == ["GroupQueryAttention"] for kinds in readers.values()), readers


def test_tokens_allocate_nothing_that_stays(loop):
    loop.prefill(text_rows(loop.plan, np.array(loop.table[:32])))
    loop._step_token(5)
    one_cache = loop.arrays.states[0].nbytes
    gc.collect()
    gc.freeze()  # so that collecting between tokens is quick
    tracemalloc.start()
    try:
        for _ in range(10):
            loop._step_token(5)
        gc.collect()
        grown, peaks = list[int](), list[int]()
        for _ in range(3):  # other threads of the process allocate now and then
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(70):
                loop._step_token(5)
                loop.logits()
                gc.collect()  # ONNX Runtime's own calls leave some for the collector
            after, peak = tracemalloc.get_traced_memory()
            grown, peaks = [*grown, after - before], [*peaks, peak - before]
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert min(grown) < 5_734  # 82 bytes a token
    assert min(peaks) < one_cache / 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_tokens_do_not_grow_the_process(loop):
    def resident_bytes():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    loop.prefill(text_rows(loop.plan, np.array(loop.table[:32])))
    for _ in range(50):
        loop._step_token(5)
    before = resident_bytes()
    for _ in range(200):
        loop._step_token(5)
    assert resident_bytes() - before < 2_000_000
