"""Processes with a budget, as `edgevlm run --memory` makes them: it holds, faults are one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from edgevlm.errors import BundleError, EdgeVLMError, PlanError

ASK = """
import json, sys
import numpy as np
from edgevlm import api
from edgevlm.runtimes.loading import load_loop
from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes.residency.memory import forget_peak
forget_peak()
path, picture, memory, lower = sys.argv[1:]
loop = load_loop(path, None, 1, None if memory == "all" else int(memory))
scores, run = [], loop.logits
def logits():
    scores.append(run().copy())
    if lower != "no" and len(scores) == 1:
        loop.blocks.set_budget(loop.blocks.minimum_budget_bytes)
    return scores[-1]
loop.logits = logits
model = api.Model(loop)
first = model.generate(picture, "What is this?", max_new_tokens=8)
loop.forget()
answer = model.generate(picture, "How many are there?", max_new_tokens=8)
least = getattr(loop.blocks, "minimum_budget_bytes", 0)
print(json.dumps({
    "ids": [first.token_ids, answer.token_ids], "peak": answer.peak_rss_bytes,
    "loads": answer.loads, "least": least, "scores": np.stack(scores).astype(float).tolist(),
}))
"""


def ask(path, picture, memory, cache, lower="no"):
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(path), str(picture), str(memory), lower],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "p.png"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


CASES = [("onnx", "none"), ("onnx", "w8a8"), ("executorch", "none"), ("executorch", "w8a8")]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    ("target", "scheme"),
    [pytest.param(*c, marks=() if c == CASES[0] else pytest.mark.slow) for c in CASES],
)
def test_a_process_keeps_to_its_budget(monkeypatch, target, scheme, picture, tmp_path):
    pytest.importorskip("torch")
    for module in (
        "onnxruntime",
        "onnxscript",
        *(["executorch"] if target == "executorch" else []),
    ):
        pytest.importorskip(module)
    from edgevlm import pipeline
    from edgevlm.recipe import Recipe

    monkeypatch.setattr(pipeline, "runs_here", lambda recipe: False)  # answers are compared below
    recipe = Recipe(
        tokens=24, target=target, quantize=scheme, block_size_bytes=3_000_000, layers=3
    )  # fmt: skip
    path = pipeline.export(recipe, tmp_path / "e.edgevlm").bundle.path
    whole = ask(path, picture, "all", tmp_path)
    roomy = ask(path, picture, 10**9, tmp_path)
    assert roomy["ids"] == whole["ids"]
    assert roomy["loads"] == sum(map(len, _plan(path).passes.values()))  # each once
    between = (roomy["least"] + roomy["peak"]) // 2
    for memory in (roomy["least"] + 10**6, max(between, roomy["least"] + 3 * 10**6)):
        found = ask(path, picture, memory, tmp_path)
        assert found["ids"] == whole["ids"]
        assert found["peak"] <= memory
        assert found["loads"] > roomy["loads"]
        assert _apart(found, whole) <= 1e-4
    lowered = ask(path, picture, 10**9, tmp_path, lower="lower")
    assert lowered["ids"] == whole["ids"]
    assert roomy["loads"] < lowered["loads"]


def _plan(path):
    from edgevlm.bundle.files import Bundle

    return Bundle.open(path).plan


def _apart(found, whole):
    a, b = np.array(found["scores"]), np.array(whole["scores"])
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A cache in which blocks are measured once."""
    return tmp_path_factory.mktemp("measured")


@pytest.fixture
def loop(bundle_copy, measured, monkeypatch):
    """A tiny bundle with room for one block at a time; its files may be damaged."""
    from edgevlm.runtimes.loading import load_loop

    monkeypatch.setenv("XDG_CACHE_HOME", str(measured))
    with pytest.raises(PlanError) as refused:
        load_loop(bundle_copy, memory=1)
    least = int(re.search(r"smallest budget is (\d+) MB", str(refused.value))[1])
    # The exception keeps what was opened, so this takes more of the process.
    made = load_loop(bundle_copy, memory=(least + 30) * 10**6)
    made.blocks.budget_bytes = made.blocks.minimum_budget_bytes
    made.blocks.set_budget(made.blocks.budget_bytes)
    yield made
    made.blocks.close()


def run_once(loop):
    for name, keys in loop.plan.passes.items():
        loop.blocks.expect(name, 1)
        for key in keys:
            loop.blocks.run(*key)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_file_that_changes_or_vanishes_is_one_line(loop, bundle_copy):
    run_once(loop)
    weights = bundle_copy / "blocks/decoder/decoder-1.weights"
    kept = weights.with_suffix(".kept")
    shutil.copy(weights, kept)
    weights.unlink()
    with pytest.raises(BundleError, match=r"^'blocks/decoder/decoder-1.weights' cannot be read: "):
        run_once(loop)
    kept.replace(weights)
    run_once(loop)  # the same bytes again
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # who has the old file mapped keeps it
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"^'blocks/decoder/decoder-1.weights' was changed: "):
        run_once(loop)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("passes", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_hundreds_of_passes_take_no_more_memory(loop, passes):
    from edgevlm.runtimes.residency.memory import resident_bytes, return_freed

    sizes = []
    for _ in range(40):
        for _ in range(passes // 40):
            run_once(loop)
        return_freed()
        sizes.append(resident_bytes())
    assert max(sizes[-5:]) <= max(sizes[5:10]) + 2 * 10**6


# Says when a function is reached, and stops there.
HOLD = """
import importlib, time
def hold(*arguments):
    print("reached", file=sys.stderr, flush=True)
    time.sleep(600)
setattr(importlib.import_module("edgevlm.{0}"), "{1}", hold)
"""
WITH_BUDGET = ("--memory", "1GB")
STEPS = {
    ("bundle.cache", "keep"): (),  # packed matrices have no name yet
    ("runtimes.residency.measure", "keep"): WITH_BUDGET,  # measured, and not yet written down
    ("runtimes.loops.text", "chooser"): WITH_BUDGET,  # before the first token
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_who_is_killed_leaves_nothing_that_the_next_one_reads(exported, start, command, tmp_path):
    cache = f"import os\nos.environ['XDG_CACHE_HOME'] = {str(tmp_path)!r}"
    from edgevlm import api

    asked = ("run", exported.bundle.path, "--prompt", "What?", "--json", "--max-new-tokens", "4")
    wanted = api.load(exported.bundle.path).generate(None, "What?", max_new_tokens=4).token_ids
    for step, memory in STEPS.items():
        process = start(*asked, *memory, before=cache + HOLD.format(*step))
        assert any(line.strip() == "reached" for line in process.stderr)
        assert process.poll() is None  # it waits there
        process.kill()
        process.communicate()
    done = command(*asked, "--memory", "1GB", before=cache)
    assert done.code == 0, done.err
    assert json.loads(done.out)["token_ids"] == list(wanted)


def test_no_room_for_prepared_graphs_is_no_fault(bundle_copy, tmp_path, monkeypatch, picture):
    from edgevlm import api

    wanted = api.load(bundle_copy).generate(picture, "What?", max_new_tokens=4).token_ids
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert api.load(bundle_copy).generate(picture, "What?", max_new_tokens=4).token_ids == wanted


def test_engines_without_budgets_say_so(exported, monkeypatch):
    from edgevlm.runtimes.loading import load_loop
    from edgevlm.runtimes.on_onnxruntime.engine import Engine

    monkeypatch.setattr(Engine, "budgets", False)
    with pytest.raises(
        EdgeVLMError, match=r"^engine 'onnxruntime' does not support memory budgets; leave out"
    ):
        load_loop(exported.bundle.path, memory="300MB")


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_what_the_process_took_since_it_was_opened_is_counted(loop):
    run_once(loop)
    loop.blocks.settle()  # nothing was taken
    held = np.ones(80 * 10**6, np.uint8)
    assert loop.blocks.shortage(10**6) > 30 * 10**6
    with pytest.raises(PlanError, match="are taken before any block; the smallest budget"):
        loop.blocks.settle()
    del held
    loop.blocks.settle()
    run_once(loop)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_blocks_make_room_for_a_picture_and_come_back(loop):
    run_once(loop)
    assert loop.blocks.shortage(1) == 0
    loads = loop.blocks.loads
    loop.blocks.shortage(10**12)
    assert not loop.blocks._cursor.in_memory
    run_once(loop)
    assert loop.blocks.loads > loads
