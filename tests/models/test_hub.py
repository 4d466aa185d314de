"""Checkpoints on a hub: planned by headers, fetched when needed, refused by the hub's own errors.

A hub on this machine is asked. Its library reads the hub's address once, so it is imported anew.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("huggingface_hub")

from edgevlm.errors import EdgeVLMError
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe

_SPEC = importlib.util.spec_from_file_location(
    "local_hub", Path(__file__).with_name("local_hub.py")
)
_HUB = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_HUB)
serve = _HUB.serve
NOWHERE = "http://127.0.0.1:9"
SHARDED = ("shards", "bare", "whole", "cut", "locked")  # repositories of several weight files


class Said(logging.Handler):
    """Log lines as a list has them."""

    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def emit(self, record):
        self.lines.append(f"said: {record.getMessage()}")


@contextmanager
def hub_library(**environment):
    """huggingface_hub as a process with these variables has it."""

    def imported():
        return [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in imported():
            patch.delitem(sys.modules, name)
        try:
            yield
        finally:
            for name in imported():
                del sys.modules[name]


def answer(model, revision, load):
    """Lines of a model that is found, planned, and perhaps loaded."""
    lines = []
    said, log = Said(lines), logging.getLogger("edgevlm")
    log.addHandler(said)
    try:
        checkpoint = find(model, revision)
        made = make_plan(Recipe(model=model), checkpoint)
        plan = made.plan
        words = (plan.weights_bytes, getattr(plan.host, "scale", None), *made.notes)
        lines.append(f"planned: {' '.join(map(str, words))}")
        if load:
            loaded = checkpoint.load_model()
            lines.append(f"loaded: {sum(p.numel() for p in loaded.parameters())}")
            lines.append(f"remote: {find(model, revision).remote}")
    except EdgeVLMError as error:
        lines.append(f"refused: {error}")
    finally:
        log.removeHandler(said)
    return lines


def ask(address, cache, questions, offline=False):
    """Lines about each (model, revision, whether to load), by the first two."""
    variables = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline))}
    with hub_library(**variables):
        return {
            (model, revision): answer(model, revision, load) for model, revision, load in questions
        }


def reads(requests, repository, name):
    """What was read of a file of a repository: its ranges, or `whole`."""
    reads = [r.split() for r in requests if r.startswith(f"GET /{repository}/")]
    return [(parts[2:] or ["whole"])[0] for parts in reads if parts[1].endswith(name)]


@pytest.fixture(scope="module")
def shards(preset, tmp_path_factory):
    """A checkpoint of several weight files."""
    folder = Path(shutil.copytree(preset("tiny-smolvlm"), tmp_path_factory.mktemp("s") / "model"))
    model = find(str(folder)).load_model()
    model.save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def hub(preset, shards, tmp_path_factory):
    """A hub that was asked: its address and requests, what was said, what is in the cache."""
    home = tmp_path_factory.mktemp("hub")
    tiny, clip = preset("tiny-smolvlm"), preset("tiny-clip")
    quantized, gguf = (Path(shutil.copytree(tiny, home / name)) for name in ("quantized", "gguf"))
    config = json.loads((tiny / "config.json").read_text()) | {"quantization_config": {"bits": 4}}
    (quantized / "config.json").write_text(json.dumps(config))
    (quantized / "model.gguf").write_bytes(b"GGUF")
    (gguf / "model.safetensors").rename(gguf / "model.gguf")
    folders = {"owner/name": tiny, "owner/planned": tiny, "owner/clip": clip}
    folders |= {f"owner/{name}": shards for name in SHARDED}
    folders |= {"owner/quantized": quantized, "owner/gguf": gguf}
    planned = [str(tiny), "owner/planned", str(clip), "owner/clip", str(shards)]
    planned += [f"owner/{name}" for name in SHARDED]
    refused = ("quantized", "gguf", "gated", "gone", "na me")
    questions = [(name, None, False) for name in planned]
    questions += [("owner/name", None, True), ("owner/name", "nope", False)]
    questions += [(f"owner/{name}", None, True) for name in refused]
    with serve(folders) as (address, requests):
        said = ask(address, home / "cache", questions)
    return SimpleNamespace(address=address, requests=requests, said=said, cache=home / "cache")


@pytest.fixture(scope="module")
def offline(hub):
    """What is said later without a connection, of what is in the cache and of what is not."""
    questions = [("owner/name", None, False), ("owner/name", "nope", False)]
    return ask(NOWHERE, hub.cache, [*questions, ("owner/shards", None, True)], offline=True)


@pytest.mark.parametrize(
    ("name", "repository"), [("tiny-smolvlm", "owner/planned"), ("tiny-clip", "owner/clip")]
)
def test_a_plan_reads_headers(preset, hub, name, repository):
    local, remote = hub.said[str(preset(name)), None], hub.said[repository, None]
    assert local[-1].startswith("planned: ")
    assert local[-1] == remote[-1]  # a likeness's factor too
    ranges = reads(hub.requests, repository, "model.safetensors")
    assert ranges
    assert "whole" not in ranges
    assert set(reads(hub.requests, repository, "config.json")) == {"whole"}


def test_an_export_fetches_the_weights(preset, hub, offline):
    lines = hub.said["owner/name", None]
    assert reads(hub.requests, "owner/name", "model.safetensors").count("whole") == 1
    size = f"{(preset('tiny-smolvlm') / 'model.safetensors').stat().st_size / 1e6:,.1f} MB"
    assert lines[:1] == [
        f"said: 'owner/name': planned by the headers of 1 file of weights, {size}, not fetched yet"
    ]
    assert f"said: 'owner/name': fetching 1 file of weights, {size}" in lines
    assert lines[-1] == "remote: None"  # what is in the cache is a folder
    planned = [line for line in lines if line.startswith("planned:")]
    assert offline["owner/name", None] == planned


def test_no_weights_come_for_a_plan_whatever_the_server_can_do(shards, hub, offline):
    files = sorted(path.name for path in shards.glob("*.safetensors"))
    assert len(files) > 2
    (local,), (said, ranged) = hub.said[str(shards), None], hub.said["owner/shards", None]
    bare, whole, cut, locked = (hub.said[f"owner/{n}", None][-1] for n in SHARDED[1:])
    total = sum((shards / name).stat().st_size for name in files) / 1e6
    assert said == (
        f"said: 'owner/shards': planned by the headers of {len(files)} files of weights,"
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
    gated = f"refused: 'owner/locked' is gated: accept its terms at {hub.address}/"
    assert locked.startswith(gated)
    for name in files:
        (span,) = reads(hub.requests, "owner/shards", name)
        start, stop = map(int, span.removeprefix("bytes=").split("-"))
        assert stop - start < 100_000
    # Offline, the config that is in the cache is enough for a plan, and for nothing else.
    planned, refused = offline["owner/shards", None]
    assert planned == (
        f"{local} no weights in the cache of the hub: bytes are those of the config's shapes in"
        " float32"
    )
    assert refused == (
        "refused: 'owner/shards': its weights are not in the cache of the hub, and HF_HUB_OFFLINE"
        " is set; unset it"
    )


def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(hub, offline, tmp_path):
    address = hub.address
    assert hub.said["owner/gated", None] == [
        f"refused: 'owner/gated' is gated: accept its terms at {address}/owner/gated and log in"
        " with `hf auth login`, or set HF_TOKEN"
    ]
    assert hub.said["owner/gone", None] == [
        "refused: no model 'owner/gone': no folder here has this name, and neither has a"
        " repository that the hub shows you; correct the name, or log in with `hf auth login` if"
        " it is private"
    ]
    expected = f"'owner/name' has no revision 'nope' on the hub; see {address}/owner/name/commits"
    assert hub.said["owner/name", "nope"] == [f"refused: {expected}"]
    (invalid,) = hub.said["owner/na me", None]
    assert invalid.startswith("refused: 'owner/na me' is neither a folder nor a hub id: ")
    unreached = ask(NOWHERE, tmp_path, [("owner/name", "nope", False)])
    for said in (offline, unreached):
        (line,) = said["owner/name", "nope"]
        assert "is not complete in the cache of the hub, which cannot be reached (" in line
        assert line.endswith("); connect once, or give a folder")


def test_what_no_export_can_use_is_refused_before_weights_come(hub):
    (line,) = hub.said["owner/quantized", None]
    assert line.startswith("refused: 'owner/quantized': its weights are quantized")
    (line,) = hub.said["owner/gguf", None]
    assert line.startswith("refused: 'owner/gguf': 'model.gguf' is GGUF, which is not read")
    for repository in ("owner/quantized", "owner/gguf"):
        assert reads(hub.requests, repository, "config.json")
        assert not reads(hub.requests, repository, "model.safetensors")
