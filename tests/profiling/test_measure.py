"""A profile: what is measured of a tiny bundle, and the document that holds it."""

from __future__ import annotations

import copy
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")


import edgevlm
from edgevlm.bundle.documents import to_document
from edgevlm.bundle.measures import stat
from edgevlm.errors import InputError
from edgevlm.profiling import schema as profile_schema
from edgevlm.profiling.document import Profile, parse_profile, read_profile, write_profile
from edgevlm.profiling.measurements import ProfileRequest
from edgevlm.profiling.report.chrome_trace import chrome_trace
from edgevlm.profiling.report.comparison import compare, comparison_page
from edgevlm.profiling.report.page import report
from edgevlm.profiling.stages import time_shares
from edgevlm.runtimes.on_onnxruntime.engine import Engine

KEYS = {
    "schema_version", "device", "engine", "threads", "recipe", "blocks", "ttft_ms",
    "decode_tokens_per_s", "peak_rss_bytes", "budget_bytes", "energy_joules", "temperature_c",
    "not_measured",
}  # fmt: skip
BLOCK = {"name", "function", "weights_bytes", "load_ms", "compile_ms", "run_ms", "evict_ms"}
TOKENS = 4
SHARES = [share.name for share in time_shares("vlm")]
RUN_SHARES = [share.name for share in time_shares("vlm") if share.stage]


def measured(path, memory=None, runs=4, **options) -> Profile:
    model = edgevlm.load(path, threads=1, memory=memory)
    return model.profile(runs=runs, tokens_generated=TOKENS, **options)


@pytest.fixture(scope="module")
def profile(exported):
    return measured(exported.bundle.path)


@pytest.fixture
def slowed(monkeypatch):
    """Make one function of one block take some milliseconds more, or all of them."""

    def slow(seconds, *only):
        run = Engine.run

        def slower(self, block, function):
            run(self, block, function)
            if not only or (block, function) == only:
                time.sleep(seconds)

        monkeypatch.setattr(Engine, "run", slower)

    return slow


def test_it_has_the_agreed_keys(profile, exported):
    document = to_document(profile)
    plan = exported.bundle.plan
    assert set(document) >= KEYS
    assert (document["schema_version"], document["kind"]) == (3, "vlm")
    assert (document["device"], document["engine"], document["threads"]) == (
        "local", "onnxruntime", 1
    )  # fmt: skip
    assert [(b["name"], b["function"]) for b in document["blocks"]] == [
        (b.name, f.name) for b in plan.blocks for f in b.functions
    ]
    for block in document["blocks"]:
        assert set(block) >= BLOCK
        assert block["compile_ms"]["n"] == 1
        assert block["compile_ms"]["median"] > 0
        for name in ("load_ms", "run_ms", "evict_ms"):
            assert set(block[name]) == {"n", "median", "p90"}
            assert 0 < block[name]["median"] <= block[name]["p90"]
    assert profile.recipe == plan.recipe
    assert profile.text.question.visual_tokens == plan.host.visual_tokens == 16
    assert profile.sites == plan.sites
    assert profile.peak_footprint_bytes < profile.peak_rss_bytes


def test_calls_are_those_of_an_answer(profile):
    calls = {(b.name, b.function): b.calls for b in profile.blocks}
    assert all(calls[b.name, b.function] == TOKENS for b in profile.blocks if b.stage == "head")
    decode = {b.calls for b in profile.blocks if b.function == "decode"}
    # The last token goes into the cache too; single rows of the prompt may come on top.
    assert len(decode) == 1
    assert decode.pop() >= TOKENS
    for block in profile.blocks:
        assert block.run_ms.n == block.calls * profile.runs
        assert block.answer_ms.n == profile.runs


def test_an_answers_time_is_all_told(profile):
    events = [e for e in profile.answer.events if e.kind == "run"]
    assert len(events) == sum(b.calls for b in profile.blocks)
    assert all(a.start_ms + a.ms <= b.start_ms + 1e-3 for a, b in pairwise(events))
    ran = sum(event.ms for event in events)
    assert 0 < ran < profile.answer.ms


def test_the_parts_of_an_answer_are_all_of_it(exported):
    found = measured(exported.bundle.path, runs=1)  # medians of one answer are that answer
    assert set(found.stages) == set(SHARES)
    parts = sum(found.stages[name].median for name in SHARES)
    assert parts == pytest.approx(found.end_to_end_ms.median, rel=1e-3)
    assert found.blocks_ms == pytest.approx(
        sum(found.stages[n].median for n in RUN_SHARES), rel=1e-3
    )


def test_block_times_sum_to_an_answer(exported, slowed):
    # On its own a tiny model spends as much between blocks; with 8 ms a run it is like a large one.
    slowed(0.008)
    found = measured(exported.bundle.path)
    assert found.blocks_ms == pytest.approx(found.end_to_end_ms.median, rel=0.1)
    stages = sum(found.stages[name].median for name in RUN_SHARES)
    assert stages == pytest.approx(found.end_to_end_ms.median, rel=0.1)


def test_a_slowed_block_stands_out(exported, profile, slowed):
    slowed(0.02, "decoder-1", "decode")
    found = measured(exported.bundle.path)
    by = {(b.name, b.function): b for b in found.blocks}
    assert by["decoder-1", "decode"].run_ms.median > 20
    slowest = max(found.blocks, key=lambda b: b.answer_ms.median)
    assert (slowest.name, slowest.function) == ("decoder-1", "decode")
    compared = compare(profile, found, ("A", "B"))
    assert "decoder-1.decode" in compared.slower
    row = next(row for row in compared.blocks if row.name == "decoder-1.decode")
    assert row.slower
    assert row.ratio > 5
    page = comparison_page(compared)
    assert "Slower by more than a fifth: </b>" in page
    assert "decoder-1.decode" in page
    back = compare(found, profile, ("B", "A"))
    assert "decoder-1.decode" not in back.slower


def test_a_comparison_says_what_is_not_the_same(profile):
    same = compare(profile, profile, ("a", "a"))
    assert same.note == "same kind, machine, engine, threads, recipe, device, budget and question"
    assert {row.ratio for row in same.blocks} == {1.0}
    document = to_document(profile)
    document["threads"], document["budget_bytes"] = 7, 10**9
    document["not_measured"].pop("budget_bytes")
    other = parse_profile(json.dumps(document))
    assert compare(profile, other, ("a", "b")).note == "not the same: threads, budget"


def test_a_budget_shows_loads_in_the_answer(exported):
    model = edgevlm.load(exported.bundle.path, threads=1, memory="4GB")
    least = model._loop.blocks.minimum_budget_bytes
    del model
    found = measured(exported.bundle.path, memory=least + 30_000_000)
    assert found.budget_bytes == least + 30_000_000
    assert found.opening is None
    assert "opening" in found.not_measured
    assert all(block.load_ms.n >= 1 for block in found.blocks)
    assert all(block.resident_bytes is not None for block in found.blocks)


def test_the_model_answers_after_it_was_profiled(exported):
    model = edgevlm.load(exported.bundle.path, threads=1)
    photo = Path(edgevlm.__file__).parent / "photos" / "flower.jpg"
    before = model.generate(photo, "What is this?", max_new_tokens=6)
    engine = model._loop.blocks.engine
    model.profile(runs=1, tokens_generated=2)
    assert model._loop.blocks.engine is engine
    assert model._loop.plan == exported.bundle.plan
    assert model.generate(photo, "What is this?", max_new_tokens=6).token_ids == before.token_ids


def test_minutes_without_a_pause(exported):
    found = measured(exported.bundle.path, minutes=0.02, runs=1)
    assert found.sustained
    seconds = [sample.seconds for sample in found.sustained]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0.9 * 1.2  # the last answer ends a little before the minutes do
    assert min(sample.decode_tokens_per_s for sample in found.sustained) > 0


def test_operators_have_a_place_and_a_module(profile):
    assert profile.fallback == 0
    assert profile.placement == {"cpu": len(profile.operators)}
    functions = {(b.name, b.function) for b in profile.blocks}
    assert {(o.block, o.function) for o in profile.operators} == functions
    pytest.importorskip("onnx")
    modules = {o.module for o in profile.operators}
    assert any(module.endswith("mlp.up_proj") for module in modules)
    assert any(module.endswith("self_attn") for module in modules)


def test_it_goes_through_a_file(profile, tmp_path):
    write_profile(profile, tmp_path / "p.json")
    assert read_profile(tmp_path / "p.json") == profile
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def _unknown(document):
    document["bloks"] = []


def _unknown_inside(document):
    document["blocks"][0]["run"] = 1


def _lacks(document):
    del document["ttft_ms"]


def _version(document):
    document["schema_version"] = 1


def _no_reason(document):
    del document["not_measured"]["budget_bytes"]


def _reason_for_nothing(document):
    document["not_measured"]["ttft_ms"] = "no"


def _wrong_type(document):
    document["peak_rss_bytes"] = "many"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_unknown, "p.json has an unknown key 'bloks'; did you mean 'blocks'?"),
        (_unknown_inside, "p.json.blocks[0] has an unknown key 'run'"),
        (_lacks, "p.json lacks the key 'ttft_ms'"),
        (
            _version,
            "'p.json': schema_version is 1, this edgevlm reads 3; measure again with 'edgevlm"
            " profile'",
        ),
        (_no_reason, "'budget_bytes' is null without a reason in not_measured"),
        (_reason_for_nothing, "'ttft_ms' has a reason in not_measured and a value"),
        (_wrong_type, "p.json.peak_rss_bytes must be an integer, got 'many'"),
    ],
)
def test_a_wrong_document_is_refused_in_one_line(profile, tmp_path, change, message):
    document = copy.deepcopy(to_document(profile))
    change(document)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(InputError) as error:
        read_profile(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def embedding(profile):
    """The document of an encoder that takes the same time for a vector."""
    document = copy.deepcopy(to_document(profile))
    time_ms, why = document["end_to_end_ms"], "an encoder generates no text"
    question = {"modality": "image", "source": "scene.png"}
    encoded = {"question": question, "dimensions": 768, "encode_ms": time_ms}
    reasons = document["not_measured"]
    del reasons["embedding"]
    stages = {share.name: time_ms for share in time_shares("encoder")}
    text_only = dict.fromkeys(("text", "ttft_ms", "decode_tokens_per_s"))
    for block in document["blocks"]:
        block["stage"] = "vision"
    return document | text_only | {
        "kind": "encoder", "stages": stages, "embedding": encoded, "sites": [],
        "not_measured": reasons | dict.fromkeys(text_only, why),
    }  # fmt: skip


def test_an_embedding_has_a_profile_too(profile):
    encoder = parse_profile(json.dumps(embedding(profile)))
    assert encoder.question == encoder.embedding.question
    page = report(encoder)
    assert "768 dimensions" in page
    assert "time to first token" not in page
    compared = compare(profile, encoder, ("a", "b"))
    assert compared.note == "not the same: kind, question"
    totals = {row.name: (row.a, row.b) for row in compared.totals}
    assert totals["encode_ms"] == (None, encoder.embedding.encode_ms.median)
    assert totals["ttft_ms"] == (profile.ttft_ms, None)
    stages = {row.name: (row.a, row.b) for row in compared.stages}
    assert stages["text"][0] is stages["prefill"][1] is None
    assert "one encode" in page
    assert comparison_page(compared).count(">prefill<") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ttft_ms": 3.0}, "ttft_ms must have a value if text has one, and be null otherwise"),
        ({"embedding": None}, "one of text, embedding, video must have a value"),
        ({"kind": "painter"}, "kind is 'painter', this edgevlm reads profiles of"),
        ({"kind": "vlm"}, "stages has or lacks 'decode', known: "),
    ],
)
def test_a_profile_has_one_answer_and_the_stages_of_its_kind(profile, change, message):
    with pytest.raises(InputError, match=message):
        parse_profile(json.dumps(embedding(profile) | change))


@pytest.mark.parametrize("text", ["", "[]", "{", "nul\0", '{"schema_version": true}'])
def test_what_is_no_profile_is_refused(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"^'p\.json'"):
        read_profile(path)


def test_the_published_schema_is_the_dataclasses(profile):
    published = Path(edgevlm.__file__).parent / "profiling" / "profile.schema.json"
    assert published.read_text("utf-8") == profile_schema.text()
    schema = json.loads(published.read_text("utf-8"))
    assert set(schema["required"]) == set(to_document(profile)) == set(schema["properties"])
    for kind in (schema, *schema["$defs"].values()):
        assert kind["additionalProperties"] is False
    assert schema["properties"]["fallback"]["description"].startswith("How many of them do not")


def test_the_document_fits_the_schema(profile):
    jsonschema = pytest.importorskip("jsonschema")
    document = to_document(profile)
    jsonschema.validate(document, profile_schema.schema())
    _unknown(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, profile_schema.schema())


def test_the_trace_is_one_that_perfetto_opens(profile):
    trace = json.loads(chrome_trace(profile))
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    runs = [e for e in events if e["ph"] == "X" and e["pid"] == 2]
    assert len(runs) == len(profile.answer.events)
    for event in runs:
        assert {"name", "cat", "ts", "dur", "pid", "tid", "args"} <= set(event)
        assert event["ts"] >= 0
        assert event["ts"] + event["dur"] <= profile.answer.ms * 1e3 + 1
    assert {"load", "run"} <= {e["args"]["kind"] for e in events if e["ph"] == "X"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"runs": 0}, "runs must be at least 1"), ({"tokens_generated": 1}, "must be at least 2"),
     ({"minutes": -1.0}, "minutes must be from 0 to")],
)  # fmt: skip
def test_a_request_that_measures_nothing_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        ProfileRequest(**options)


def test_more_tokens_than_the_context_has_room_for(exported):
    model = edgevlm.load(exported.bundle.path, threads=1)
    with pytest.raises(InputError, match="the context has room for"):
        model.profile(runs=1, tokens_generated=exported.bundle.plan.host.states.tokens)


def test_stat():
    assert stat([]) is None
    found = stat([1.0, 2.0, 3.0, 4.0, 11.0])
    assert (found.n, found.median, found.p90) == (5, 3.0, 8.2)
