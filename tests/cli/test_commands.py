"""Each command's result: text for a person, one JSON document with agreed keys for a machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace

import pytest

from edgevlm.cli.shared.plan_text import block_rows
from edgevlm.registry import ENGINES, FAMILIES, METHODS, TARGETS
from edgevlm.units import megabytes

PLAN = {
    "stages", "blocks", "visual_tokens", "kv_bytes", "minimum_budget_bytes", "predicted",
    "not_measured",
}  # fmt: skip
RUN = {
    "text", "token_ids", "visual_tokens", "prompt_tokens", "load_ms", "vision_ms", "reduce_ms",
    "prefill_ms", "ttft_ms", "decode_tokens_per_s", "peak_rss_bytes", "engine", "loads",
}  # fmt: skip
VERIFY = {"ok", "logits_rel_error", "tokens_equal", "image_sensitivity", "blocks"}
INSPECT = {"format_version", "kind", "target", "files", "blocks", "placement"}


def document(done):
    """The JSON document on the last line of stdout."""
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_plan(run):
    pytest.importorskip("torch")
    done = run("plan", "--tokens", "16", "--json")
    plan = document(done)
    assert set(plan) >= PLAN
    assert plan["stages"] == ["vision", "reduce", "decoder", "head"]
    for block in plan["blocks"]:
        assert set(block) == {"name", "stage", "functions", "weights_bytes", "flops"}
    assert plan["visual_tokens"] == 16
    assert plan["method_cost"].keys() == {"nodes", "bytes", "ms"}
    assert set(plan["not_measured"]) == {k for k in PLAN if k in plan and plan[k] is None}
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_plan_as_text(run, tiny_model):
    done = run("plan", tiny_model, "--tokens", "16")
    assert "visual tokens: 1 view, 64 -> 16 by divprune at site tokens" in done.stdout
    assert done.stderr == ""


def test_equal_blocks_are_one_row_of_a_plan_and_all_have_a_total(exported):
    plan = exported.bundle.plan
    one, head = plan.block("decoder-0"), plan.stage("head")[0]
    decoder = [replace(one, name=f"decoder-{index}") for index in range(100)]
    decoder[3] = replace(decoder[3], weights_bytes=one.weights_bytes + 1)
    rows = block_rows(replace(plan, blocks=(*decoder, head)))
    expected = ["decoder-0 to 2 (3 equal)", "decoder-3", "decoder-4 to 99 (96 equal)"]
    assert [row[0] for row in rows[:-2:2]] == expected
    assert [row[1] for row in rows[:-2]] == ["prefill", "decode"] * 3
    assert rows[0][2] == rows[4][2] == megabytes(one.weights_bytes)  # of one of them
    (name, _, size, _, work) = rows[-1]
    assert name == "total, with tables"
    assert size == megabytes(replace(plan, blocks=(*decoder, head)).weights_bytes)
    flops = {f.name: 100 * f.flops / 1e9 for f in one.functions}
    logits = head.functions[0].flops / 1e9
    assert work == (
        f"GFLOP: decoder prefill {flops['prefill']:.2f}, decoder decode {flops['decode']:.2f},"
        f" head logits {logits:.2f}"
    )


def test_inspect(run, exported):
    done = run("inspect", exported.bundle.path, "--json")
    found = document(done)
    assert set(found) >= INSPECT
    assert (found["format_version"], found["kind"], found["target"]) == (8, "vlm", "onnx")
    assert {"path", "bytes", "sha256"} == set(found["files"][0])
    assert found["placement"] is None
    assert "placement" in found["not_measured"]
    assert done.stderr == ""
    assert "16 visual tokens" in run("inspect", exported.bundle.path).stdout


def test_inspect_runs_pictures_where_an_engine_has_a_use_for_them(run, exported):
    done = run("inspect", exported.bundle.path, "--image", "x.png")
    assert done.exit_code == 1
    assert done.stderr == "edgevlm: no engine of target 'onnx' inspects with images; drop --image\n"


def test_inspect_finds_one_changed_byte(run, bundle_copy):
    path = bundle_copy / "tokenizer.json"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    done = run("inspect", bundle_copy)
    assert done.exit_code == 1
    expected = (
        "edgevlm: 'tokenizer.json' was changed: its sha256 is not the manifest's; export again\n"
    )
    assert done.stderr == expected


@pytest.mark.parametrize(
    ("name", "plug_ins", "keys"),
    [("models", FAMILIES, {"name", "summary"}),
     ("methods", METHODS, {"name", "site", "source", "compared", "options"}),
     ("targets", TARGETS, {"name", "schemes"}), ("engines", ENGINES, {"name", "available"})],
)  # fmt: skip
def test_lists(run, name, plug_ins, keys):
    if name != "engines":
        pytest.importorskip("torch")
    rows = document(run(name, "--json"))
    assert list(dict.fromkeys(row["name"] for row in rows)) == plug_ins.names()
    assert all(keys <= set(row) for row in rows)
    text = run(name).stdout
    assert all(row["name"] in text for row in rows)


def test_methods_begin_with_what_a_method_is(run):
    """What is claimed, before any name; a method of two sites has a comparison at each."""
    pytest.importorskip("torch")
    from edgevlm.compress.shared.contract import COMPARISONS

    text, rows = run("methods").stdout, document(run("methods", "--json"))
    assert text.startswith("A method here is a way to have fewer visual tokens, most often a ")
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("method "))
    assert " compared by " in lines[head]
    legend = {line.split("  ")[1] for line in lines[:head] if line.startswith("  ")}
    assert legend == set(COMPARISONS)
    assert [(row["name"], row["site"]) for row in rows] == [
        (name, site) for name in METHODS.names() for site in METHODS.sites_of(name)
    ]
    assert {row["compared"] for row in rows} <= legend
    (zipped,) = [line for line in lines[head:] if line.startswith("visionzip ")]
    assert "end to end" in zipped
    assert "after the projector (original: before it)" in zipped


def test_a_method_by_name_has_its_options(run):
    """As its class has them; a method of two sites has those of each."""
    pytest.importorskip("torch")
    (row,) = document(run("methods", "divprune", "--json"))
    own, *common = row["options"]
    assert (own["name"], own["default"], own["needed"]) == ("groups", 1, False)
    assert own["meaning"].startswith("G, groups that choose side by side")
    assert [option["name"] for option in common] == ["positions", "merge", "calibrate"]
    text = run("methods", "vflowopt").stdout
    before, inside = text.split("vflowopt@decoder: ")
    assert "\n  alpha (0.0): Weight of the patches' entropy" in before
    assert "`edgevlm calibrate vflowopt@tokens` finds some on pictures" in before
    assert "\n  layers: " in inside
    assert "positions" not in inside
    assert "\n  merges (needed): Merges in each layer" in run("methods", "dymu").stdout
    failed = run("methods", "divprun")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("edgevlm: unknown method 'divprun'; did you mean 'divprune'?")


@pytest.fixture
def photo():
    from pathlib import Path

    return Path(__file__).resolve().parents[2] / "edgevlm" / "photos" / "flower.jpg"


def test_run(run, exported, photo):
    asked = ("run", exported.bundle.path, "--image", photo, "--prompt", "What is this?")
    done = run(*asked, "--max-new-tokens", "4", "--json")
    answer = document(done)
    assert set(answer) >= RUN
    assert len(answer["token_ids"]) <= 4
    assert answer["visual_tokens"] == 16
    assert answer["engine"] == "onnxruntime"
    assert done.stdout.count("\n") == 1
    plain = run(*asked, "--max-new-tokens", "4")
    assert plain.stdout == answer["text"] + "\n"
    assert plain.stderr.startswith("16 visual + ")


def test_schedules_are_saved_in_the_bundle(run, bundle_copy):
    asked = ("plan", bundle_copy, "--memory", "2GB")
    done = run(*asked, "--save", "--json")
    file = bundle_copy / "measured" / "schedule-onnxruntime-2GB.json"
    assert json.loads(file.read_text("utf-8")) == document(done)
    assert f"wrote {file}" in done.stderr
    assert set(document(done)["schedules"]) == {"encode", "reduce", "prefill", "decode"}
    assert run("inspect", bundle_copy).exit_code == 0
    assert "--save needs --memory" in run("plan", "--save").stderr


def test_a_draft_needs_its_function(run, exported):
    for draft, message in (("lookup", "export it with --speculate 8"), ("x", "a draft is lookup")):
        done = run("run", exported.bundle.path, "--prompt", "?", "--draft", draft)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith("edgevlm: ")
        assert message in done.stderr.splitlines()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_signal_lowers_the_budget(exported, command):
    """Python sends it to itself between two questions of a chat."""
    signalled = """
import os, signal
class Questions:
    asked = 0
    def readline(self, most):
        Questions.asked += 1
        if Questions.asked == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return "What is this?" if Questions.asked < 3 else ""
sys.stdin = Questions()
"""
    asked = ("run", exported.bundle.path, "--memory", "2GB", "--chat", "--max-new-tokens", "4")
    done = command(*asked, "--json", before=signalled)
    assert done.code == 0, done.err
    first, second = [json.loads(line) for line in done.out.splitlines()]
    blocks = sum(len(b.functions) for b in exported.bundle.plan.blocks if b.stage != "vision")
    assert first["loads"] < blocks  # without a picture, each once
    assert second["loads"] >= first["loads"] + 2 * 4  # at least the two blocks, for each token


def test_run_without_a_picture(run, exported):
    answer = document(run("run", exported.bundle.path, "--prompt", "Hello", "--json"))
    assert answer["visual_tokens"] == 0


def test_a_chat_reads_questions_from_stdin(run, exported, photo):
    done = run(
        "run", exported.bundle.path, "--image", photo, "--chat", "--json", "--max-new-tokens", "3",
        stdin="What is this?\nAnd this?\n",
    )  # fmt: skip
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["visual_tokens"] == 16
    assert second["visual_tokens"] == 0
    assert run("run", exported.bundle.path, "--chat", stdin="").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image", "no.jpg"), "no image at 'no.jpg'"),
        (("--image", ".."), "'..' is a folder, expected an image"),
        (("--image", __file__), "is not an image that can be read"),
        (("--video", "clip.mp4"), "the bundle takes still images; export it with --frames"),
        (("--engine", "onnxruntim"), "unknown engine 'onnxruntim'; did you mean 'onnxruntime'?"),
        (("--engine", ""), "unknown engine ''; known: "),
        (("--draft", ""), "a draft is lookup or skip=N with N blocks to skip, got ''"),
        (("--prompt", "word " * 2000), "tokens, the context of"),
        (("--prompt", "\udcff"), "the question is not valid UTF-8"),
    ],
)
def test_a_wrong_input_is_one_line(run, exported, options, message):
    done = run("run", exported.bundle.path, "--prompt", "?", *options)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("edgevlm: ")
    assert message in done.stderr
    assert done.stdout == ""


def test_a_wrong_line_of_a_chat_is_said_and_the_next_one_answered(run, exported, photo):
    done = run(
        "run", exported.bundle.path, "--image", photo, "--chat", "--json", "--max-new-tokens", "3",
        stdin=f"{{image}} {{image}}?\nWhat is this?\n{'word ' * 2000}\nAnd this?\n",
    )  # fmt: skip
    first, second, third, fourth = [json.loads(line) for line in done.stdout.splitlines()]
    assert first == {"error": "the prompt has {image} 2 times, and images are 1; give as many, or"
                              " leave {image} out of the prompt"}  # fmt: skip
    assert second["visual_tokens"] == 16  # the picture waits for a question
    assert third["error"].startswith("the turn has more than ")
    assert fourth["token_ids"]
    errors = [line for line in done.stderr.splitlines() if "edgevlm: " in line]
    assert [line.partition("edgevlm: ")[2] for line in errors] == [first["error"], third["error"]]
    assert done.exit_code == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--image", "no.jpg"), "no image at 'no.jpg'"), (("--system", " "), "the system prompt is")],
)
def test_what_no_line_can_mend_ends_a_chat(run, exported, options, message):
    done = run("run", exported.bundle.path, *options, "--chat", stdin="What?\nAnd?\n")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count(message) == 1
    assert done.stderr.count("\n") == 1


def test_a_question_that_is_no_text(exported, command):
    # Bytes of stdin that are no UTF-8.
    stdin = r"b'\xff\nWhat?\n'"
    done = command(
        "run", exported.bundle.path, "--chat", "--max-new-tokens", "1",
        before=f"import io\nsys.stdin = io.TextIOWrapper(io.BytesIO({stdin}), 'utf-8')",
    )  # fmt: skip
    assert done.code == 1
    wrong, answered, end = done.err.splitlines()
    assert wrong == "> edgevlm: the prompt is not valid UTF-8"
    assert answered.startswith("> 0 visual + ")
    assert end == "> "


def test_a_question_without_an_end_is_not_read_whole(exported, command):
    endless = "import sys\nsys.stdin = open('/dev/zero', encoding='utf-8')"
    done = command("run", exported.bundle.path, "--chat", before=endless)
    assert done.code == 1
    assert done.err == (
        "> edgevlm: the question on stdin has more than 1,000,000 letters in a line\n"
    )


def test_the_embedded_model_is_exported_once_into_the_cache(
    run, exported, photo, tmp_path, monkeypatch
):
    """What is exported is another bundle here, as an export takes long."""
    from edgevlm import pipeline
    from edgevlm.cli.shared import default_bundle

    asked_for = []

    def export(recipe, path, progress):
        asked_for.append(recipe)
        shutil.copytree(exported.bundle.path, path)

    monkeypatch.setattr(pipeline, "export", export)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = ("run", "--image", photo, "--prompt", "What is this?", "--max-new-tokens", "4")
    first, again = (run(*asked, "--json") for _ in range(2))
    answer = document(first)
    assert asked_for == [default_bundle.RECIPE]
    assert answer["token_ids"]
    assert document(again)["token_ids"] == answer["token_ids"]
    path = default_bundle.default_bundle()
    assert path.parent == tmp_path / "edgevlm"
    assert f"exporting the embedded model, once, to {path}" in first.stderr
    assert "export" not in again.stderr


def test_verify(run, exported):
    done = run("verify", exported.bundle.path, "--json")
    result = document(done)
    assert set(result) >= VERIFY
    assert result["ok"]
    assert result["tokens_equal"] == 1.0
    functions = [(b["name"], b["function"]) for b in result["blocks"]]
    expected = [(b.name, f.name) for b in exported.bundle.plan.blocks for f in b.functions]
    assert functions == expected
    assert all(set(b) >= {"rel_error", "psnr_db", "ok"} for b in result["blocks"])
    assert done.stdout.count("\n") == 1


def test_verify_names_the_block_that_differs(run, bundle_copy):
    name = "blocks/decoder/decoder-1.weights"
    path = bundle_copy / name
    data = bytearray(path.read_bytes())
    data[1003] ^= 0x40  # the exponent of one number
    path.write_bytes(data)
    manifest = bundle_copy / "manifest.json"
    text = manifest.read_text("utf-8")
    entry = next(f for f in json.loads(text)["files"] if f["path"] == name)
    forged = text.replace(entry["sha256"], hashlib.sha256(data).hexdigest())
    manifest.write_text(forged, "utf-8")
    done = run("verify", bundle_copy)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("edgevlm: decoder-1.")
    assert "differs from PyTorch: rel_error" in done.stderr.splitlines()[-1]
    assert "DIFFERS" in done.stdout


def test_verify_against_another_checkpoint(run, tiny_model, exported, tmp_path):
    source = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"note": 1}))
    done = run("verify", exported.bundle.path, "--model", source)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(f"edgevlm: '{source}' is not the checkpoint of")
