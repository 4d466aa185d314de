from __future__ import annotations

import dataclasses
import hashlib
import json
import os

import pytest

from edgevlm import api
from edgevlm.bundle.cache import cache_folder
from edgevlm.bundle.files import Bundle, check_free, writing
from edgevlm.bundle.manifest import read_manifest
from edgevlm.bundle.plan import Plan
from edgevlm.errors import BundleError, EdgeVLMError, ExportError, RuntimeLoadError

WEIGHTS = "blocks/decoder/decoder-0.weights"


def flip(path, at=100):
    """Change one byte; size and modification time stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def accept(bundle_copy, name):
    """Write size and hash of a changed file into the manifest, as who forges a bundle would."""
    path = bundle_copy / "manifest.json"
    document = json.loads(path.read_text("utf-8"))
    entry = next(f for f in document["files"] if f["path"] == name)
    data = (bundle_copy / name).read_bytes()
    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    path.write_text(json.dumps(document), "utf-8")


def test_what_is_no_bundle(tmp_path):
    for path in (tmp_path / "no", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(BundleError) as error:
            Bundle.open(path)
        assert (
            str(error.value)
            == f"no bundle at '{path}': expected a folder written by `edgevlm export`"
        )
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)


def test_a_flipped_byte_is_found_before_the_first_load(bundle_copy):
    flip(bundle_copy / WEIGHTS)
    with pytest.raises(BundleError) as error:
        api.load(bundle_copy)
    assert (
        str(error.value)
        == f"'{WEIGHTS}' was changed: its sha256 is not the manifest's; export again"
    )


def test_a_flipped_byte_is_found_after_a_load(bundle_copy):
    bundle = Bundle.open(bundle_copy)
    bundle.file(WEIGHTS)
    known = json.loads((cache_folder() / "checked.json").read_text())
    assert str((bundle_copy / WEIGHTS).resolve()) in known
    # Size and modification time are as they were; the inode's own time tells.
    flip(bundle_copy / WEIGHTS)
    with pytest.raises(BundleError, match="was changed"):
        bundle.file(WEIGHTS)


def test_a_checked_file_is_not_read_again(bundle_copy, monkeypatch):
    bundle = Bundle.open(bundle_copy)
    bundle.file(WEIGHTS)
    monkeypatch.setattr(
        "edgevlm.bundle.files.sha256", lambda path: pytest.fail(f"{path} is read again")
    )
    assert bundle.file(WEIGHTS) == bundle_copy / WEIGHTS


@pytest.mark.parametrize("text", ["", "[]", '{"a": ', "\udcff"])
def test_a_broken_cache_costs_time_and_nothing_else(bundle_copy, text):
    path = cache_folder() / "checked.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    bundle = Bundle.open(bundle_copy)
    assert bundle.file(WEIGHTS).is_file()
    flip(bundle_copy / WEIGHTS)
    with pytest.raises(BundleError, match="was changed"):
        bundle.file(WEIGHTS)


def test_an_unlisted_name_and_a_removed_file(bundle_copy):
    bundle = Bundle.open(bundle_copy)
    with pytest.raises(BundleError, match=r"manifest\.json does not list 'secret'"):
        bundle.file("secret")
    (bundle_copy / WEIGHTS).unlink()
    with pytest.raises(BundleError) as error:
        bundle.file(WEIGHTS)
    assert str(error.value) == f"'{WEIGHTS}' cannot be read: No such file or directory"


def test_all_files_of_a_block_are_checked(bundle_copy):
    bundle = Bundle.open(bundle_copy)
    for block, name in (("decoder-0", WEIGHTS), ("head-1", "blocks/head/table.bin")):
        bundle.files_of(bundle.plan.block(block))
        flip(bundle_copy / name)
        with pytest.raises(BundleError, match=f"'{name}' was changed"):
            bundle.files_of(bundle.plan.block(block))


@pytest.mark.parametrize("keep", [0, 100])
def test_a_truncated_file(bundle_copy, keep):
    os.truncate(bundle_copy / WEIGHTS, keep)
    with pytest.raises(BundleError, match=rf"'{WEIGHTS}' has {keep} bytes, the manifest has \d+"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("place", ["../../../secret.bin", "/etc/passwd", "link.bin"])
def test_weights_outside_the_bundle_are_refused_by_the_engine(bundle_copy, tmp_path, place):
    onnx = pytest.importorskip("onnx")
    (tmp_path / "secret.bin").write_bytes(bytes(10**6))
    name = "blocks/decoder/decoder-0.decode.onnx"
    (bundle_copy / "blocks/decoder/link.bin").symlink_to(tmp_path / "secret.bin")
    model = onnx.load(bundle_copy / name, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    (bundle_copy / name).write_bytes(model.SerializeToString())
    accept(bundle_copy, name)
    with pytest.raises(RuntimeLoadError) as error:
        api.load(bundle_copy)
    assert "decoder-0.decode does not load:" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\x08\x09", b"garbage" * 100])
def test_an_artifact_that_is_no_graph(bundle_copy, data):
    name = "blocks/vision/vision-0.encode.onnx"
    (bundle_copy / name).write_bytes(data)
    accept(bundle_copy, name)
    with pytest.raises(RuntimeLoadError) as error:
        api.load(bundle_copy)
    assert str(error.value).startswith("vision-0.encode")
    assert "\n" not in str(error.value)


def test_weights_shorter_than_the_graph_says(bundle_copy):
    os.truncate(bundle_copy / WEIGHTS, 64)
    accept(bundle_copy, WEIGHTS)
    with pytest.raises(RuntimeLoadError, match=r"decoder-0\.prefill does not load:"):
        api.load(bundle_copy)


def test_an_artifact_of_another_function(bundle_copy):
    name = "blocks/decoder/decoder-0.decode.onnx"
    data = (bundle_copy / "blocks/decoder/decoder-0.prefill.onnx").read_bytes()
    (bundle_copy / name).write_bytes(data)
    accept(bundle_copy, name)
    with pytest.raises(RuntimeLoadError) as error:
        api.load(bundle_copy)
    assert "decoder-0.decode: 'cos' is ('tensor(float)', 1, " in str(error.value)
    assert "in the artifact, ('tensor(float)', 1, 1, 16) in the manifest" in str(error.value)


# Writing. These exports write a few bytes each; tests/test_export_resume.py has the real one.


@pytest.fixture
def plan(exported):
    """A plan as it is before an export."""
    return dataclasses.replace(exported.bundle.plan, files=())


def fill(writer, bundle):
    """Put the session bundle's files into a writer, as an export would."""
    for entry in bundle.plan.files:
        path = writer.folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((bundle.path / entry.path).read_bytes())
    writer.close(dataclasses.replace(bundle.plan, files=()))


def names(folder):
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_appears_whole(exported, plan, tmp_path, tree):
    out = tmp_path / "b.edgevlm"
    with writing(out, plan, "weights", force=False) as writer:
        fill(writer, exported.bundle)
        writer.finish(plan.blocks[0], plan.blocks[0].functions)
        assert not out.exists()
    assert names(tmp_path) == ["b.edgevlm"]
    expected = tree(exported.bundle.path)
    del expected["measured/parity.json"]
    assert tree(out) == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ExportError("vision-0 differs"), "^vision-0 differs$"),
        (BundleError("broken"), "^broken$"),
        (OSError(28, "No space left on device"), "^'.*/b.edgevlm' was not written: No space left"),
    ],
)
def test_an_error_leaves_nothing_behind(plan, tmp_path, error, message):
    def export():
        with writing(tmp_path / "b.edgevlm", plan, "weights", force=False) as writer:
            writer.put("blocks/x", "text")
            writer.finish(plan.blocks[0], plan.blocks[0].functions)
            raise error

    with pytest.raises(EdgeVLMError, match=message):
        export()
    assert names(tmp_path) == []


def stop(out, plan, weights, blocks):
    """An export that is interrupted after some blocks."""
    with writing(out, plan, weights, force=False) as writer:
        for block in plan.blocks[:blocks]:
            writer.finish(block, block.functions)
        raise KeyboardInterrupt


def test_an_interruption_keeps_finished_blocks_alone(plan, tmp_path):
    out = tmp_path / "b.edgevlm"
    with pytest.raises(KeyboardInterrupt):
        stop(out, plan, "weights", 0)
    assert names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt):
        stop(out, plan, "weights", 2)
    assert names(tmp_path) == [".b.edgevlm.partial"]


def finished(out, plan, weights):
    """How many blocks the next export finds finished."""
    try:
        with writing(out, plan, weights, force=False) as writer:
            found = sum(writer.finished(block) is not None for block in plan.blocks)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return found


@pytest.mark.parametrize("change", ["nothing", "plan", "weights", "version"])
def test_only_the_same_export_goes_on(plan, tmp_path, monkeypatch, change):
    out, weights = tmp_path / "b.edgevlm", "weights"
    with pytest.raises(KeyboardInterrupt):
        stop(out, plan, weights, 2)
    if change == "plan":
        plan = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, tokens=8))
    elif change == "weights":
        weights = "others"
    elif change == "version":
        monkeypatch.setattr("edgevlm.bundle.files.VERSION", "0.0.0")
    assert finished(out, plan, weights) == (2 if change == "nothing" else 0)


@pytest.mark.parametrize("text", ["", "[", "{}", '[{"name": 1}]', "null", "[3]"])
def test_a_record_cut_off_by_a_power_failure_is_not_believed(plan, tmp_path, text):
    out = tmp_path / "b.edgevlm"
    with pytest.raises(KeyboardInterrupt):
        stop(out, plan, "weights", 2)
    (tmp_path / ".b.edgevlm.partial/done/vision-0.json").write_text(text)
    assert finished(out, plan, "weights") == 1


def test_two_exports_to_one_place(exported, plan, tmp_path):
    out = tmp_path / "b.edgevlm"
    with writing(out, plan, "weights", force=False) as writer:
        with pytest.raises(BundleError) as error, writing(out, plan, "weights", force=False):
            pass
        assert str(error.value) == f"another export is writing '{out}'"
        fill(writer, exported.bundle)
    assert Bundle.open(out).plan == exported.bundle.plan


def test_what_appears_during_an_export_is_not_replaced(exported, plan, tmp_path):
    out = tmp_path / "b.edgevlm"

    def export():
        with writing(out, plan, "weights", force=False) as writer:
            fill(writer, exported.bundle)
            out.mkdir()
            (out / "mine").touch()

    with pytest.raises(BundleError, match="exists"):
        export()
    assert names(tmp_path) == ["b.edgevlm"]
    assert names(out) == ["mine"]


def test_a_linked_work_folder_is_refused(plan, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    (tmp_path / ".b.partial").symlink_to("other")
    with pytest.raises(BundleError, match="is a symbolic link; remove it"):
        stop(tmp_path / "b", plan, "weights", 0)
    assert names(tmp_path / "other") == ["mine"]


def test_a_work_folder_that_cannot_be_made(plan, tmp_path):
    with pytest.raises(BundleError, match=r"cannot be made: File name too long; choose another"):
        stop(tmp_path / ("b" * 250), plan, "weights", 0)


def test_an_existing_folder_is_not_replaced(tmp_path, bundle_copy):
    with pytest.raises(BundleError) as error:
        check_free(bundle_copy, force=False)
    expected = f"'{bundle_copy}' exists; choose another output or give --force to replace it"
    assert str(error.value) == expected
    check_free(bundle_copy, force=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(bundle_copy)
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("", "file", "link", "dangling"):
        with pytest.raises(BundleError, match="is not a bundle; --force replaces only bundles"):
            check_free(tmp_path / name, force=True)
        with pytest.raises(BundleError, match="exists"):
            check_free(tmp_path / name, force=False)
    with pytest.raises(BundleError, match=r"cannot be written: the folder '.*/no' does not exist"):
        check_free(tmp_path / "no" / "b.edgevlm", force=True)


def test_force_replaces_a_bundle(exported, plan, tmp_path, bundle_copy):
    (bundle_copy / "measured" / "mine.json").touch()
    with writing(bundle_copy, plan, "weights", force=True) as writer:
        fill(writer, exported.bundle)
        assert Bundle.open(bundle_copy)
    assert names(tmp_path) == [bundle_copy.name]
    assert not (bundle_copy / "measured").exists()


def test_force_goes_on_after_a_kill_between_the_two_renames(exported, plan, tmp_path, bundle_copy):
    old = tmp_path / f".{bundle_copy.name}.old"
    old.mkdir()
    (old / "manifest.json").touch()
    with writing(bundle_copy, plan, "weights", force=True) as writer:
        fill(writer, exported.bundle)
    assert names(tmp_path) == [bundle_copy.name]


def test_a_failed_rename_puts_the_old_bundle_back(
    exported, plan, tmp_path, bundle_copy, monkeypatch
):
    real = type(tmp_path).rename

    def rename(self, target):
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return real(self, target)

    def export():
        with writing(bundle_copy, plan, "weights", force=True) as writer:
            fill(writer, exported.bundle)
            monkeypatch.setattr(type(tmp_path), "rename", rename)

    with pytest.raises(BundleError, match="was not written: Input/output error"):
        export()
    assert names(tmp_path) == [bundle_copy.name]
    assert Bundle.open(bundle_copy).plan == exported.bundle.plan


def test_a_bundle_that_nobody_could_open_is_not_written(exported, plan, tmp_path):
    def export():
        broken: Plan = dataclasses.replace(plan, sites=())
        with writing(tmp_path / "b", plan, "weights", force=False) as writer:
            fill(writer, dataclasses.replace(exported.bundle, plan=dataclasses.replace(
                broken, files=exported.bundle.plan.files
            )))  # fmt: skip

    with pytest.raises(BundleError, match=r"manifest\.json: sites has '\[\]' tokens_out"):
        export()
    assert names(tmp_path) == []


def test_the_manifest_is_canonical_and_complete(exported, tree):
    path = exported.bundle.path
    listed = {entry.path for entry in exported.bundle.plan.files}
    assert set(tree(path)) == {*listed, "manifest.json", "measured/parity.json"}
    assert read_manifest(path) == exported.bundle.plan
    for entry in exported.bundle.plan.files:
        assert hashlib.sha256((path / entry.path).read_bytes()).hexdigest() == entry.sha256
