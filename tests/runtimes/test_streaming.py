"""Schedules carried out: the budget holds, runs find their blocks, faults end in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.errors import BundleError, EdgeVLMError, PlanError
from edgevlm.runtimes import measuring, on_null
from edgevlm.runtimes.costs import Cost, Costs, passes
from edgevlm.runtimes.streaming import Streamed

SHAPE = {"vision": 3, "decoder": 5, "head": 2}
FUNCTIONS = {"vision": ("encode",), "reduce": ("reduce",), "decoder": ("prefill", "decode")}


def plan_of(shape=SHAPE):
    """As much of a plan as passes need."""
    stages = {s: [SimpleNamespace(name=f"{s}-{i}") for i in range(n)] for s, n in shape.items()}
    stages["reduce"] = [SimpleNamespace(name="reduce-0")]
    return SimpleNamespace(stage=lambda name: stages[name], host=SimpleNamespace(check=4))


PLAN = plan_of()
KEYS = [key for keys in passes(PLAN).values() for key in keys]


def costs_of(sizes, load=1.0, run=1.0):
    made = [
        Cost(*key, "own", size, load, run, run, 0.0) for key, size in zip(KEYS, sizes, strict=True)
    ]
    return Costs(tuple(made), 0, {})


def streamed(costs, room, engine):
    """The executor over the null engine, with nothing else in the process to count."""
    made = Streamed(PLAN, engine, costs, room)
    made.start()
    return made


def run_pass(blocks, name, times=1):
    blocks.begin(name, times)
    for _ in range(times):
        for key in passes(PLAN)[name]:
            blocks.run(*key)


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, 40), min_size=len(KEYS), max_size=len(KEYS)),
    order=st.lists(st.sampled_from(tuple(passes(PLAN))), max_size=8),
)
def test_no_order_of_passes_breaks_the_budget(data, sizes, order):
    costs, least = costs_of(sizes), max(sizes)
    room = data.draw(st.integers(least, sum(sizes) + 1), label="room")
    engine = on_null.Engine(costs, speed=0)
    blocks, expected = streamed(costs, room, engine), []
    for name in order:
        times = data.draw(st.integers(1, 3), label=name)
        if data.draw(st.booleans(), label="lower"):
            room = data.draw(st.integers(least, room), label="lowered")
            blocks.set_budget(room)
            engine.most_bytes = 0 if not expected else engine.bytes
            blocks.run(*expected[-1]) if expected else None  # it evicts at the next block
            engine.runs, engine.most_bytes = engine.runs[: len(expected)], engine.bytes
        run_pass(blocks, name, times)
        expected += list(passes(PLAN)[name]) * times
        assert engine.most_bytes <= room
    assert engine.runs == expected
    blocks.close()
    assert blocks.loads >= len(set(expected))


def test_parts_of_passes_and_jumps_run_too():
    costs = costs_of([10] * len(KEYS))
    engine = on_null.Engine(costs, speed=0)
    blocks = streamed(costs, 25, engine)
    wanted = [
        ("head-0", "logits"),
        ("decoder-3", "decode"),
        ("decoder-1", "prefill"),
        ("vision-2", "encode"),
    ]
    wanted += [("vision-2", "encode"), ("decoder-4", "decode"), ("head-0", "logits")]
    for key in wanted:
        blocks.run(*key)
    assert engine.runs == wanted
    assert engine.most_bytes <= 25


def test_a_pass_takes_the_time_that_was_predicted():
    import time

    costs = costs_of([10] * len(KEYS), load=10.0, run=20.0)
    engine = on_null.Engine(costs)
    blocks = streamed(costs, 30, engine)
    run_pass(blocks, "prefill")
    blocks.begin("prefill", 6)
    run_pass(blocks, "prefill")
    started = time.perf_counter()
    for _ in range(4):
        for key in passes(PLAN)["prefill"]:
            blocks.run(*key)
    took = (time.perf_counter() - started) * 1e3 / 4
    predicted = blocks.schedules["prefill"].pass_ms
    assert predicted == pytest.approx(100)  # every load behind a run
    assert took == pytest.approx(predicted, rel=0.15)


def test_a_form_is_measured_in_passes_that_keep_a_third_of_it():
    costs = costs_of([10] * len(KEYS), load=8.0, run=4.0)
    engine, keys = on_null.Engine(costs), passes(PLAN)["prefill"]
    found = measuring._costs(engine, keys, "own")
    assert [(c.block, c.function) for c in found] == list(keys)
    for cost in found:
        assert 8.0 <= cost.load_ms < 12.0
        assert 4.0 <= cost.first_ms < 7.0
        assert 4.0 <= cost.run_ms < 7.0
    passes_run = 3 * (1 + measuring.REPEATS) + 1 + measuring.STREAMED
    assert engine.runs == passes_run * list(keys)  # in its order, every time
    assert 10 * 2 < engine.most_bytes <= 10 * (2 + 1)  # five functions: two of them, and one more
    assert not engine.there


def test_no_pass_follows_and_nothing_is_loaded_for_one():
    costs = costs_of([10] * len(KEYS))
    blocks = streamed(costs, 20, on_null.Engine(costs, speed=0))
    run_pass(blocks, "encode", 2)
    blocks._stop_loading()
    assert blocks.loads == 6


def test_what_a_load_raises_comes_out_of_the_run_and_the_next_one_tries_again():
    costs = costs_of([10] * len(KEYS))
    engine = on_null.Engine(costs, speed=0)
    blocks, load, broken = streamed(costs, 20, engine), engine.load, [True]

    def failing(block, function=None, form="own"):
        if block == "decoder-2" and broken:
            broken.pop()
            raise BundleError("gone")
        load(block, function, form)

    engine.load = failing
    with pytest.raises(BundleError, match=r"^gone$"):
        run_pass(blocks, "prefill")
    run_pass(blocks, "prefill")
    assert engine.runs[-5:] == list(passes(PLAN)["prefill"])


def test_a_budget_that_is_too_small_is_refused_with_one_that_would_do():
    costs = costs_of([10_000_000] * len(KEYS))
    blocks = streamed(costs, 30_000_000, on_null.Engine(costs, speed=0))
    with pytest.raises(
        PlanError, match=r"^a budget of 9 MB is too small: 0 MB are taken before any"
    ):
        blocks.set_budget(9_000_000)
    run_pass(blocks, "prefill")  # the old one goes on


def test_the_faster_form_is_kept_and_the_sooner_one_streams():
    key = ("head-0", "logits")
    forms = [
        Cost(*key, "packed", 10, 30.0, 2.0, 1.0, 0.0),
        Cost(*key, "mapped", 10, 1.0, 4.0, 3.0, 0.0),
    ]
    costs = Costs((*forms, Cost(*key, "large", 20, 1.0, 1.5, 0.5, 0.0)), 0, {})
    assert costs.streamed(key).form == "large"
    costs = Costs(tuple(forms), 0, {})
    assert (costs.streamed(key).form, costs.kept(key).form) == ("mapped", "packed")
    assert [costs.kept(key, times).form for times in (1, 5, 50)] == ["mapped", "mapped", "packed"]


# The real thing: processes with a budget, as `edgevlm run --memory` makes them.

ASK = """
import json, sys
import numpy as np
from edgevlm import api
from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes.memory import forget_peak
forget_peak()
path, picture, memory, lower = sys.argv[1:]
loop = api.load_loop(path, None, 1, None if memory == "all" else int(memory))
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
def test_a_process_keeps_to_its_budget(target, scheme, picture, tmp_path):
    pytest.importorskip("torch")
    for module in (
        "onnxruntime",
        "onnxscript",
        *(["executorch"] if target == "executorch" else []),
    ):
        pytest.importorskip(module)
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    recipe = Recipe(tokens=24, target=target, quantize=scheme, block_size_bytes=3_000_000)
    path = export(recipe, tmp_path / "e.edgevlm").bundle.path
    whole = ask(path, picture, "all", tmp_path)
    roomy = ask(path, picture, 10**9, tmp_path)
    assert roomy["ids"] == whole["ids"]
    assert roomy["loads"] == sum(map(len, passes(_plan(path)).values()))  # each once
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
    from edgevlm.bundle import Bundle

    return Bundle.open(path).plan


def _apart(found, whole):
    a, b = np.array(found["scores"]), np.array(whole["scores"])
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.fixture
def loop(bundle_copy, tmp_path, monkeypatch):
    """A tiny bundle with room for one block at a time; its files may be damaged."""
    from edgevlm import api

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(PlanError) as refused:
        api.load_loop(bundle_copy, memory=1)
    least = int(re.search(r"smallest budget is (\d+) MB", str(refused.value))[1])
    # The exception keeps what was opened, so this takes more of the process.
    made = api.load_loop(bundle_copy, memory=(least + 30) * 10**6)
    made.blocks.budget_bytes = made.blocks.minimum_budget_bytes
    made.blocks.set_budget(made.blocks.budget_bytes)
    yield made
    made.blocks.close()


def run_once(loop):
    for name, keys in passes(loop.plan).items():
        loop.blocks.begin(name, 1)
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
    from edgevlm.runtimes.memory import resident_bytes, return_freed

    sizes = []
    for _ in range(40):
        for _ in range(passes // 40):
            run_once(loop)
        return_freed()
        sizes.append(resident_bytes())
    assert max(sizes[-5:]) <= max(sizes[5:10]) + 2 * 10**6


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_who_is_killed_leaves_nothing_that_the_next_one_reads(exported, start, command, tmp_path):
    """In the middle of measuring, of packing matrices, or of an answer."""
    cache = f"import os\nos.environ['XDG_CACHE_HOME'] = {str(tmp_path)!r}"
    asked = ("run", exported.bundle.path, "--prompt", "What?", "--json", "--max-new-tokens", "4")
    wanted = json.loads(command(*asked).out)["token_ids"]
    for seconds in (1.5, 3.5):
        process = start(*asked, "--memory", "1GB", before=cache)
        time.sleep(seconds)
        process.kill()
        process.communicate()
    done = command(*asked, "--memory", "1GB", before=cache)
    assert done.code == 0, done.err
    assert json.loads(done.out)["token_ids"] == wanted


def test_no_room_for_prepared_graphs_is_no_fault(bundle_copy, tmp_path, monkeypatch, picture):
    from edgevlm import api

    wanted = api.load(bundle_copy).generate(picture, "What?", max_new_tokens=4).token_ids
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert api.load(bundle_copy).generate(picture, "What?", max_new_tokens=4).token_ids == wanted


def test_engines_without_budgets_say_so(exported, monkeypatch):
    from edgevlm import api
    from edgevlm.runtimes.on_onnxruntime import Engine

    monkeypatch.setattr(Engine, "budgets", False)
    with pytest.raises(EdgeVLMError, match=r"^engine 'onnxruntime' keeps to no budget; leave out"):
        api.load_loop(exported.bundle.path, memory="300MB")
