"""Checkpoints on a hub: planned by headers, fetched when needed, refused by the hub's own errors.

A process of its own asks a hub on this machine, as the library reads the hub's address once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("huggingface_hub")

_SPEC = importlib.util.spec_from_file_location(
    "local_hub", Path(__file__).with_name("local_hub.py")
)
_HUB = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_HUB)
serve = _HUB.serve
ROOT = Path(__file__).resolve().parents[2]
ASK = """
import json, logging, sys
from edgevlm.errors import EdgeVLMError
from edgevlm.models.checkpoint import find
from edgevlm.recipe import Recipe
logging.basicConfig(stream=sys.stdout, format="said: %(message)s")
for model, revision, load in json.loads(sys.argv[1]):
    try:
        checkpoint = find(model, revision)
        from edgevlm.planning.plan import make_plan  # heavy, and a refusal needs none
        made = make_plan(Recipe(model=model), checkpoint)
        plan = made.plan
        print("planned:", plan.weights_bytes, getattr(plan.host, "scale", None), *made.notes)
        if load:
            print("loaded:", sum(p.numel() for p in checkpoint.load_model().parameters()))
            again = find(model, revision)
            print("remote:", again.remote)
    except EdgeVLMError as error:
        print("refused:", error)
"""


def ask(address, cache, *questions, offline=False):
    """Lines of a process that finds, plans and loads: (model, revision, whether to load)."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(cache)}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": str(int(offline))}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(questions)],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def reads(requests, name):
    """What was read of a file: its ranges, or `whole`."""
    reads = [r.split() for r in requests if r.startswith("GET") and r.split()[1].endswith(name)]
    return [(parts[2:] or ["whole"])[0] for parts in reads]


@pytest.mark.parametrize(
    "name", [pytest.param("tiny-smolvlm", marks=pytest.mark.slow), "tiny-clip"]
)
def test_a_plan_reads_headers(preset, tmp_path, name):
    folder = preset(name)
    with serve(folder) as (address, requests):
        questions = (str(folder), None, False), ("owner/name", None, False)
        local, remote = ask(address, tmp_path, *questions)[0::2]
        assert local == remote  # the plan is that of the folder, a likeness's factor too
        ranges = reads(requests, "model.safetensors")
        assert ranges
        assert "whole" not in ranges
        assert set(reads(requests, "config.json")) == {"whole"}


def test_an_export_fetches_the_weights(preset, tmp_path):
    folder = preset("tiny-smolvlm")
    with serve(folder) as (address, requests):
        lines = ask(address, tmp_path, ("owner/name", None, True))
        assert reads(requests, "model.safetensors").count("whole") == 1
    size = f"{(folder / 'model.safetensors').stat().st_size / 1e6:,.1f} MB"
    assert lines[:1] == [
        f"said: 'owner/name': planned by the headers of 1 file of weights, {size}, not fetched yet"
    ]
    assert f"said: 'owner/name': fetching 1 file of weights, {size}" in lines
    assert lines[-1] == "remote: None"  # what is in the cache is a folder
    planned = [line for line in lines if line.startswith("planned:")]
    again = ask("http://127.0.0.1:9", tmp_path, ("owner/name", None, False), offline=True)
    assert again == planned


@pytest.fixture(scope="module")
def shards(preset, tmp_path_factory):
    """A checkpoint of several weight files."""
    from edgevlm.models.checkpoint import find

    folder = Path(shutil.copytree(preset("tiny-smolvlm"), tmp_path_factory.mktemp("s") / "model"))
    model = find(str(folder)).load_model()
    model.save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder


def test_no_weights_come_for_a_plan_whatever_the_server_can_do(shards, tmp_path):
    files = sorted(path.name for path in shards.glob("*.safetensors"))
    assert len(files) > 2
    names = "name", "bare", "whole", "cut", "locked"
    with serve(shards) as (address, requests):
        questions = [(str(shards), None, False), *((f"owner/{n}", None, False) for n in names)]
        local, said, ranged, bare, whole, cut, locked = ask(address, tmp_path, *questions)
        asked = list(requests)
    total = sum((shards / name).stat().st_size for name in files) / 1e6
    assert said == (
        f"said: 'owner/name': planned by the headers of {len(files)} files of weights,"
        f" {total:.1f} MB, not fetched yet"
    )
    assert ranged == local
    assert bare == f"{local} no weights: bytes are those of the config's shapes in float32"
    assert whole == (
        "refused: 'owner/whole': its server sends no parts of files, so a plan would have to"
        f" download {len(files)} files of weights, {total:.1f} MB; `edgevlm export` downloads them,"
        " and `hf download owner/whole` does, and a plan reads them from the cache"
    )
    assert cut.startswith(f"refused: 'owner/cut': {files[0]} is damaged or not complete: its head")
    assert locked.startswith(f"refused: 'owner/locked' is gated: accept its terms at {address}/own")
    for name in files:
        (span,) = reads([r for r in asked if "owner/name" in r], name)
        start, stop = map(int, span.removeprefix("bytes=").split("-"))
        assert stop - start < 100_000
    # Offline, the config that is in the cache is enough for a plan, and for nothing else.
    question = ("owner/name", None, True)
    planned, refused = ask("http://127.0.0.1:9", tmp_path, question, offline=True)
    assert planned == (
        f"{local} no weights in the cache of the hub: bytes are those of the config's shapes in"
        " float32"
    )
    assert refused == (
        "refused: 'owner/name': its weights are not in the cache of the hub, and HF_HUB_OFFLINE is"
        " set; unset it"
    )


def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(preset, tmp_path):
    questions = [
        ("owner/gated", None, False), ("owner/gone", None, False), ("owner/name", "nope", False),
        ("owner/na me", None, False),
    ]  # fmt: skip
    with serve(preset("tiny-smolvlm")) as (address, _):
        gated, gone, revision, invalid = ask(address, tmp_path, *questions)
    assert gated == (
        f"refused: 'owner/gated' is gated: accept its terms at {address}/owner/gated and log in"
        " with `hf auth login`, or set HF_TOKEN"
    )
    assert gone == (
        "refused: no model 'owner/gone': no folder here has this name, and neither has a"
        " repository that the hub shows you; correct the name, or log in with `hf auth login` if"
        " it is private"
    )
    expected = f"'owner/name' has no revision 'nope' on the hub; see {address}/owner/name/commits"
    assert revision == f"refused: {expected}"
    assert invalid.startswith("refused: 'owner/na me' is neither a folder nor a hub id: ")
    for offline in (False, True):
        (line,) = ask("http://127.0.0.1:9", tmp_path, questions[2], offline=offline)
        assert "is not complete in the cache of the hub, which cannot be reached (" in line
        assert line.endswith("); connect once, or give a folder")


def test_what_no_export_can_use_is_refused_before_weights_come(preset, tmp_path):
    folder = Path(shutil.copytree(preset("tiny-smolvlm"), tmp_path / "model"))
    config = folder / "config.json"
    plain = config.read_text()
    (folder / "model.gguf").write_bytes(b"GGUF")
    config.write_text(json.dumps(json.loads(plain) | {"quantization_config": {"bits": 4}}))
    with serve(folder) as (address, requests):
        (line,) = ask(address, tmp_path / "quantized", ("owner/name", None, True))
        assert line.startswith("refused: 'owner/name': its weights are quantized")
        config.write_text(plain)
        (folder / "model.safetensors").unlink()
        (line,) = ask(address, tmp_path / "gguf", ("owner/name", None, True))
        assert line.startswith("refused: 'owner/name': 'model.gguf' is GGUF, which is not read")
        assert not reads(requests, "model.safetensors")
