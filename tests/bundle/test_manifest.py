"""A manifest is hostile until it is read: each refusal is one line with file and field."""

# ruff: noqa: E501 -- an edit and its message stand in one line of the table

from __future__ import annotations

import copy
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevlm.bundle import manifest
from edgevlm.bundle.files import Bundle
from edgevlm.errors import BundleError


def refused(path) -> str:
    """The one line with which the bundle at `path` is refused."""
    with pytest.raises(BundleError) as error:
        Bundle.open(path)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def put(keys, value):
    """An edit that sets the value at `keys`, such as `host.states.layers` or `files.0.path`."""

    def edit(document):
        *outer, last = [int(k) if k.isdigit() else k for k in keys.split(".")]
        for key in outer:
            document = document[key]
        document[last] = value

    return edit


def at(document, block, function="prefill"):
    """The function of a block in a manifest."""
    made = next(b for b in document["blocks"] if b["name"] == block)
    return next(f for f in made["functions"] if f["name"] == function)


def state(document):
    """The first kind of state of a manifest."""
    return document["host"]["states"]["kinds"][0]


def without(document, stage):
    document["blocks"] = [b for b in document["blocks"] if b["stage"] != stage]


def rename(document, block, side, old, new):
    tensor = next(t for t in at(document, block)[side] if t["name"] == old)
    tensor["name"] = new


def reshape(document, block, name, shape):
    for function in ("prefill", "decode"):
        for tensor in at(document, block, function)["inputs"]:
            if tensor["name"] == name:
                tensor["shape"] = shape


def keep_17(document):
    document["host"]["visual_tokens"] = document["sites"][0]["tokens_out"] = 17


def eight_more(document):
    """Tokens leave at layer 0 behind which no layer has their rows."""
    document["host"]["states"]["tokens"] += 8
    document["host"]["entering"] = [16, 8, 8]


GRID = [[0], [*range(8)], [*range(8)]]


def axes(**item):
    """An edit: positions of three axes, and places of the visual tokens."""

    def change(document):
        document["host"]["ropes"][0].update(sections=[2, 3, 3], interleaved=True)
        document["host"]["layout"]["image"][1].update({"places": GRID, "span": 8} | item)

    return change


HUGE = 10**30
EDITS = {
    # The document itself.
    "unknown key": (put("host.states.layer", 2), "manifest.json.host.states has an unknown key 'layer'; did you mean 'layers'?"),
    "lacks a key": (lambda d: d["host"].pop("ropes"), "manifest.json.host lacks the key 'ropes'"),
    "wrong type": (put("host.chunk", "64"), "manifest.json.host.chunk must be an integer, got '64'"),
    "newer version": (put("format_version", 9), "format_version is 9, this edgevlm reads 8; export the model again"),
    "version of another type": (put("format_version", True), "format_version is True"),
    "recipe's own rule": (put("recipe.tokens", 0), "manifest.json.recipe: tokens must be at least 1, got 0"),
    "kind": (put("kind", "video-diffusion"), "kind is 'video-diffusion', known: diffusion, encoder, vlm"),
    # Files.
    "absolute path": (put("files.0.path", "/etc/passwd"), "files[0].path '/etc/passwd' leaves the bundle"),
    "parent": (put("files.0.path", "../../etc/passwd"), "files[0].path '../../etc/passwd' leaves the bundle"),
    "parent inside": (put("files.0.path", "blocks/../../x"), "'blocks/../../x' leaves the bundle"),
    "dot": (put("files.0.path", "./tokenizer.json"), "'./tokenizer.json' leaves the bundle"),
    "empty path": (put("files.0.path", ""), "files[0].path '' leaves the bundle"),
    "backslash": (put("files.0.path", "..\\secret"), "leaves the bundle"),
    "drive letter": (put("files.0.path", "C:/secret"), "'C:/secret' leaves the bundle"),
    "zero byte": (put("files.0.path", "a\0b"), "control characters"),
    "escape sequence": (put("files.0.path", "\x1b[31m"), "control characters, got '\\x1b[31m'"),
    "long name": (put("files.0.path", "x" * 5000), "cannot be read: File name too long"),
    "listed twice": (lambda d: d["files"].append(d["files"][0]), "is listed twice"),
    "missing file": (put("files.0.path", "blocks/no.onnx"), "'blocks/no.onnx' is missing from the bundle"),
    "a folder": (put("files.0.path", "blocks"), "'blocks' is missing from the bundle"),
    "wrong size": (put("files.0.bytes", 5), "bytes, the manifest has 5"),
    "unlisted file": (lambda d: d["files"].clear(), "is used but not listed in files"),
    # Numbers of the host.
    "no layers": (put("host.states.layers", []), "host.states.layers has 0 layers"),
    "unknown state": (put("host.states.layers", [0, 1]), "host.states.layers is '[0, 1]' for 1 kinds"),
    "unused states": (lambda d: d["host"]["states"]["kinds"].extend([dict(state(d), dtype="f16")] * 5000), "host.states has 5001 kinds, of which layers have 1, expected all"),
    "a state twice": (lambda d: (d["host"]["states"]["kinds"].append(state(d)), put("host.states.layers", [0, 1])(d)), "host.states.kinds has a kind twice"),
    "unused tables": (lambda d: d["host"]["ropes"].extend(d["host"]["ropes"] * 5000), "host.ropes has 5001 tables, of which layers have 1"),
    "a site twice": (lambda d: d["sites"].extend([dict(d["sites"][0], site="vision")] * 5000), "sites has 5001 entries, expected each site once"),
    "a stop token twice": (lambda d: d["host"]["stop_ids"].extend([5] * 5000), "host.stop_ids is '["),
    "a stop token that is no word": (put("host.stop_ids", [10**6]), "host.stop_ids is '[1000000]', expected words, each once"),
    "negative": (put("host.states.kinds.0.shapes", [[1, -2, 8, 8]] * 2), "host.states.kinds[0].shapes is '[[1, -2, 8, 8], [1, -2, 8, 8]]', expected a few"),
    "no array": (put("host.states.kinds.0.shapes", []), "host.states.kinds[0].shapes is '[]', expected a few"),
    "keys alone": (put("host.states.kinds.0.shapes", [[1, 2, 8, 8]]), "host.states.kinds[0].shapes is '[[1, 2, 8, 8]]', expected keys and values"),
    "other values": (put("host.states.kinds.0.shapes", [[1, 2, 8, 8], [1, 2, 8, 4]]), "host.states.kinds[0].shapes is '[[1, 2, 8, 8], [1, 2, 8, 4]]', expected keys and values"),
    "many rows": (put("host.states.kinds.0.shapes", [[1, 2, 10**6, 8]] * 2), "expected keys and values [1, heads, rows, head size], at most"),
    "few rows": (put("host.states.kinds.0.shapes", [[1, 2, 8, 16]] * 2), "host.states has layers of fewer than"),
    "kind of state": (put("host.states.kinds.0.kind", "ring"), "host.states.kinds[0].kind is 'ring', known: rows, recurrent"),
    "dtype of state": (put("host.states.kinds.0.dtype", "i32"), "host.states.kinds[0].dtype is 'i32', known: f32, f16"),
    "source": (put("host.states.kinds.0.source", 0), "host.states: layer 0 has the source 0, expected its like"),
    "huge cache": (put("host.states.tokens", HUGE), "host.states.tokens is 1000"),
    "large cache": (lambda d: (put("host.states.tokens", 2**31)(d), put("host.states.kinds.0.shapes", [[1, 2, 2**31, 16]] * 2)(d)), "host.states needs"),
    "huge table": (put("host.embedding.rows", HUGE), "host.embedding.rows is 1000"),
    "other table": (put("host.embedding.rows", 1025), "host.embedding needs 262400 bytes"),
    "no pixels": (put("host.image.height", 0), "host.image.height is 0"),
    "many views": (put("host.image.rows", 2**20), "host.layout.image has 64 places, expected 67108928"),
    "zero std": (put("host.image.std", [0.5, 0, 0.5]), "host.image.std is [0.5, 0.0, 0.5], expected 1e-06 to 1e+06"),
    "resample": (put("host.image.resample", "magic"), "host.image.resample is 'magic', known: nearest"),
    "positions": (put("host.positions", "random"), "host.positions is 'random', known: contiguous"),
    "carried": (put("host.carried", "all"), "host.carried is 'all', expected prompt, vision or nothing"),
    "carried by none": (put("host.carried", "prompt"), "host.carried is a state of rows that leave, none do"),
    "KV form": (put("host.states.form", "ring"), "host.states.form is 'ring', known: shared_buffer, states"),
    "table scale": (put("host.embedding.scale", 0), "host.embedding.scale is 0.0, expected more than 0"),
    "table dtype": (put("host.embedding.dtype", "bf16"), "host.embedding.dtype is 'bf16', known: f32"),
    "chunk": (put("host.chunk", 10**6), "host.chunk 1000000 is more than states.tokens"),
    "vocabulary": (put("host.vocabulary", 5000), "host.vocabulary is more than embedding.rows"),
    "frequencies": (put("host.ropes.0.inverse_frequencies", [1.0] * 9), "host.ropes[0] has 9 frequencies"),
    "large float": (put("host.ropes.0.scaling", 10**400), "host.ropes[0].scaling must be a finite number"),
    "sections": (put("host.ropes.0.sections", [2, 3, 4]), "host.ropes[0].sections is '[2, 3, 4]', expected two or more that make the 8 frequencies"),
    "one section": (put("host.ropes.0.sections", [8]), "host.ropes[0].sections is '[8]'"),
    "interleaved": (put("host.ropes.0.interleaved", True), "host.ropes[0] is interleaved, expected sections too"),
    "positions of axes": (axes(), "host.positions is 'contiguous', expected 'original' where a position has 3 axes"),
    "no table": (put("host.ropes", []), "host.ropes is empty, expected a table at least"),
    "table outside": (put("host.layer_ropes", [0, 1]), "host.layer_ropes is '[0, 1]' for 2 layers and 1 tables"),
    "tables of other axes": (lambda d: d["host"]["ropes"].append(d["host"]["ropes"][0] | {"sections": [4, 4]}), "host.ropes[1] has 2 axes, and host.ropes[0] 1"),
    "first position": (put("host.first_position", -1), "host.first_position is -1, expected 0 to 2^20"),
    "far position": (put("host.first_position", 2**20 + 1), "host.first_position is 1048577, expected 0 to 2^20"),
    "no stream": (put("host.residual_streams", 0), "host.residual_streams is 0, expected 1 to 16"),
    "many streams": (put("host.residual_streams", 17), "host.residual_streams is 17, expected 1 to 16"),
    "streams of one block": (put("host.residual_streams", 4), "hidden"),
    "mask": (put("host.mask", "none"), "host.mask is 'none', known: causal, pictures, prefix"),
    "mask of a picture": (lambda d: (put("host.mask", "pictures")(d), put("host.chunk", 8)(d)), "host.mask is 'pictures', and a picture does not fit host.chunk rows"),
    # The sequence.
    "places without axes": (put("host.layout.image.1.places", GRID), "host.layout.image[1].places is of '[1, 8, 8]', expected 1 axes of 64 tokens"),
    "no places": (axes(places=[]), "host.layout.image[1].places is of '[]', expected 3 axes of 64 tokens"),
    "other places": (axes(places=[*GRID[:2], [*range(9)]]), "host.layout.image[1].places is of '[1, 8, 9]', expected 3 axes of 64"),
    "far place": (axes(places=[*GRID[:2], [*range(7), 2**20 + 1]]), "host.layout.image[1].places has one outside of -1 to 2^20"),
    "span": (axes(span=-1), "host.layout.image[1].span is -1, expected 0 to 2^20"),
    "span of a word": (put("host.layout.image.0.span", 1), "host.layout.image[0] has a span or joins, and no places"),
    "rate": (axes(per_second=-1.0), "host.layout.image[1].per_second is -1, expected 0 to 1024"),
    "rate without axes": (put("host.layout.image.1.per_second", 2.0), "host.layout.image[1] has a span or joins, and no places"),
    "views of more frames": (put("host.image.depth", 2), "host.image has views of 2 frames, and a picture or clip has 1"),
    "views of no frames": (put("host.image.depth", 0), "host.image.depth is 0, expected 1 to 2^31"),
    "joins": (axes(joins=[-1]), "host.layout.image[1].joins has an id outside the table"),
    "no site": (put("sites", []), "sites has '[]' tokens_out at site 'tokens', host.visual_tokens is 16"),
    "no tokens": (put("sites.0.tokens_out", 0), "sites has '[0]' tokens_out"),
    "id outside": (put("host.layout.prompt.0.ids", [1024]), "host.layout.prompt[0] has an id outside the embedding table"),
    "negative id": (put("host.layout.image.0.ids", [-1]), "host.layout.image[0] has an id outside the embedding table"),
    "image in image": (put("host.layout.image.0.kind", "image"), "host.layout.image[0].kind is 'image', known here: ids, visual"),
    "unknown part": (put("host.layout.turn.0.kind", "audio"), "host.layout.turn[0].kind is 'audio'"),
    "negative range": (put("host.layout.image.1.start", -1), "host.layout.image[1] has the range -1:64"),
    "late frame": (put("host.layout.image.0", {"kind": "timestamp", "ids": [], "start": 3, "stop": 0, "places": [], "span": 0, "joins": [], "per_second": 0.0, "prefix": "", "suffix": "", "trim": "", "strip": "", "blank": False, "after": ""}), "host.layout.image[0].start is 3 of 1 frames"),
    "late seconds": (put("host.layout.image.0", {"kind": "seconds", "ids": [], "start": 0, "stop": 2, "places": [], "span": 0, "joins": [], "per_second": 0.0, "prefix": "", "suffix": "", "trim": "", "strip": "", "blank": False, "after": ""}), "host.layout.image[0] has the range 0:2 of 1 frames"),
    "question in a system text": (put("host.layout.prompt_system.1.kind", "user_text"), "host.layout.prompt_system[1].kind is 'user_text', known here: ids, system_text, text"),
    "no system text": (put("host.layout.text_system.2.kind", "text"), "host.layout.text_system has 0 items 'system_text', expected one"),
    "one opening": (put("host.layout.text_system", []), "host.layout has prompt_system or text_system without the other, or without text"),
    "picture in a joint": (put("host.layout.image_end.0.kind", "image"), "host.layout.image_end[0].kind is 'image', known here: ids, text"),
    "mixtures of pictures alone": (lambda d: (put("host.layout.text", [])(d), put("host.layout.prompt_system", [])(d), put("host.layout.text_system", [])(d)), "host.layout.mixes needs text, and a prompt with the picture before the question"),
    # Shapes.
    "negative shape": (lambda d: reshape(d, "decoder-0", "hidden", [1, -1, 64]), "decoder-0.prefill.hidden has the shape '[1, -1, 64]'"),
    "huge shape": (lambda d: reshape(d, "decoder-0", "hidden", [HUGE]), "decoder-0.prefill.hidden has the shape"),
    "large shape": (lambda d: reshape(d, "decoder-0", "hidden", [2**16, 2**16]), "decoder-0.prefill.hidden has the shape"),
    "many dimensions": (lambda d: reshape(d, "decoder-0", "hidden", [1] * 10**5), "decoder-0.prefill.hidden has the shape"),
    "dtype": (lambda d: at(d, "decoder-0")["inputs"][0].update(dtype="f64"), "has the dtype 'f64'"),
    "weights": (put("blocks.0.weights_bytes", -1), "vision-0.weights_bytes is -1"),
    "work": (put("blocks.0.functions.0.flops", -1), "vision-0.encode.flops is -1, expected 0 to 10^24"),
    "rising tokens": (put("host.encoder.tokens", [4, 5, 5]), "host.encoder.tokens is '[4, 5, 5]', expected a list that never rises"),
    "unknown signal": (put("host.encoder.signals", [{"name": "loudness", "part": 1, "width": 0}]), "host.encoder.signals has 'loudness' of part 1"),
    "no connector": (put("host.encoder.tokens", []), "host.encoder.tokens is '[]'"),
    "rows leave": (put("host.entering", [16, 8, 4]), "host.entering is '[16, 8, 4]' for 2 layers"),
    "rows of no layer": (eight_more, "host.states.tokens is 584, and layer 0 has 576 rows"),
    # How stages, blocks and functions fit.
    "no reduce": (lambda d: without(d, "reduce"), "the stage 'reduce' has no block"),
    "no decoder": (lambda d: without(d, "decoder"), "the stage 'decoder' has no block"),
    "unknown stage": (put("blocks.0.stage", "audio"), "block 'vision-0'.stage is 'audio', known: vision"),
    "one name twice": (put("blocks.1.name", "vision-0"), "block 'vision-0' must be named 'vision-1'"),
    "order": (lambda d: d["blocks"].reverse(), "must be named"),
    "layers": (put("host.states.layers", [0, 0, 0]), "host.layer_ropes is '[0, 0]' for 3 layers and 1 tables"),
    "short decoder": (lambda d: (put("host.states.layers", [0, 0, 0])(d), put("host.layer_ropes", [0, 0, 0])(d)), "decoder-1.span ends at 2, expected 3"),
    "overlap": (lambda d: d["blocks"][6].update(span=[0, 1]), "decoder-1.span is '[0, 1]', expected to begin at 1"),
    "empty block": (lambda d: d["blocks"][6].update(span=[1, 1]), "decoder-1.span is '[1, 1]'"),
    "many layers": (lambda d: d["blocks"][6].update(span=[1, 2**31]), "decoder-1.span ends at 2147483648"),
    "head rows": (put("blocks.9.span", [683, 1000]), "head-2.span"),
    "no decode": (lambda d: d["blocks"][5]["functions"].pop(), "decoder-0 must have the functions ('prefill', 'decode')"),
    "another function": (put("blocks.4.functions.0.name", "select"), "reduce-0 must have the functions ('reduce',)"),
    "unknown input": (lambda d: rename(d, "decoder-0", "inputs", "cos", "angle"), "decoder-0.prefill has an unknown input 'angle'"),
    "unknown output": (lambda d: rename(d, "decoder-1", "outputs", "hidden_out", "out"), "decoder-1.prefill has an unknown output 'out'"),
    "missing input": (lambda d: at(d, "decoder-0")["inputs"].pop(0), "decoder-0.prefill lacks the input 'hidden'"),
    "input twice": (lambda d: at(d, "decoder-0")["inputs"].append(at(d, "decoder-0")["inputs"][0]), "decoder-0.prefill has two inputs of the same name"),
    "no outputs": (lambda d: at(d, "vision-0", "encode")["outputs"].clear(), "vision-0.encode lacks the output 'hidden_out'"),
    "output missing": (lambda d: at(d, "decoder-0")["outputs"].pop(), "decoder-0.prefill lacks the output 'present_value_0'"),
    "other rows": (lambda d: reshape(d, "decoder-0", "hidden", [1, 3, 64]), "decoder-0.prefill.hidden must be f32"),
    "other cache": (lambda d: reshape(d, "decoder-0", "past_key_0", [1, 2, 8, 16]), "decoder-0.prefill.past_key_0 must be f32 [1, 2, "),
    "kept tokens": (keep_17, "reduce-0.reduce.visual_tokens must be f32 [1, 17, 64], got f32 [1, 16, 64]"),
    "a cache less": (lambda d: at(d, "decoder-0")["caches"].pop(), "decoder-0.prefill.caches differ from those of its layers"),
    "caches crossed": (lambda d: at(d, "decoder-0")["caches"][0].update(output="present_value_0"), "decoder-0.prefill.caches differ from"),
    "unchained": (lambda d: at(d, "decoder-0")["chained"].clear(), "decoder-0.prefill.chained does not match the next block"),
    "shared weights": (put("blocks.0.shares", "embedding"), "vision-0.shares is 'embedding'"),
    "views": (put("host.image.columns", 2), "host.layout.image has 64 places, expected 192"),
    "escape": (put("source.model", "\x1b[2J"), "source.model must be text without control characters, got '\\x1b[2J'"),
    "no picture": (lambda d: d["host"]["layout"]["prompt"].remove(d["host"]["layout"]["prompt"][1]), "host.layout.prompt has 0 items 'image', expected one"),
    "two questions": (lambda d: d["host"]["layout"]["text"].extend(d["host"]["layout"]["text"]), "host.layout.text has 2 items 'user_text', expected one"),
    "places twice": (lambda d: d["host"]["layout"]["image"].extend(d["host"]["layout"]["image"]), "host.layout.image has the place 0, expected 64"),
    "many ids": (lambda d: d["host"]["layout"]["prompt"].__getitem__(0).update(ids=[1] * 9999), "tokens of "),
    "pixels": (put("host.image.width", 64), "vision-0.encode.pixel_values must be f32 [1, 3, 128, 64]"),
    "vision chain": (put("blocks.1.functions.0.inputs.0.shape", [1, 255, 64]), "vision-1.encode.hidden must be f32 [1, 256, 64]"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_manifest_is_refused_with_its_field(edited, name):
    edit, message = EDITS[name]
    text = refused(edited(edit))
    assert message in text
    assert text.isprintable()


def test_the_session_bundle_has_the_blocks_that_the_edits_count_on(exported):
    names = [block.name for block in exported.bundle.plan.blocks]
    assert names == [
        "vision-0", "vision-1", "vision-2", "vision-3", "reduce-0", "decoder-0", "decoder-1",
        "head-0", "head-1", "head-2",
    ]  # fmt: skip


def replaced(bundle_copy, old, new):
    """The copy with one piece of its manifest's text replaced."""
    path = bundle_copy / "manifest.json"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    return bundle_copy


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have(bundle_copy, number):
    path = replaced(bundle_copy, '"scaling": 1.0', f'"scaling": {number}')
    assert refused(path) == f"manifest.json is not valid JSON: {number} is not a JSON number"


def test_a_float_beyond_floats(bundle_copy):
    path = replaced(bundle_copy, '"scaling": 1.0', '"scaling": 1e999')
    assert refused(path) == "manifest.json.host.ropes[0].scaling must be a finite number, got inf"


def test_an_integer_of_many_digits(bundle_copy):
    path = replaced(bundle_copy, '"chunk": ', '"chunk": ' + "9" * 5000)
    assert "manifest.json is not valid JSON: Exceeds the limit" in refused(path)


def test_a_repeated_key(bundle_copy):
    path = replaced(bundle_copy, '"kind": "vlm"', '"kind": "vlm", "kind": "vlm"')
    expected = "manifest.json is not valid JSON: the key 'kind' appears twice in one object"
    assert refused(path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "manifest.json is not valid JSON: Expecting value"),
        ("[]", "format_version is None, this edgevlm reads 8"),
        ("{}", "format_version is None, this edgevlm reads 8"),
        ('{"format_version": 8}', "manifest.json: kind is None, known: diffusion, encoder, vlm"),
        ("[" * 10**6, "manifest.json is not valid JSON: maximum recursion depth"),
        ('{"a":' * 10**5, "manifest.json is not valid JSON: maximum recursion depth"),
        ('{"format_version": ' + "[" * 900 + "]" * 900 + "}", "format_version is a list"),
        ('{"\\ud800": 1}', "format_version is None"),
    ],
    ids=["empty", "list", "object", "one key", "deep", "deep objects", "nested", "surrogate"],
)
def test_other_documents(bundle_copy, text, message):
    (bundle_copy / "manifest.json").write_text(text)
    assert message in refused(bundle_copy)


def test_a_manifest_that_is_no_text(bundle_copy):
    (bundle_copy / "manifest.json").write_bytes(b"\xff\xfe{}")
    assert "manifest.json is not valid JSON: 'utf-8' codec can't decode" in refused(bundle_copy)


def test_a_large_manifest_is_not_read(bundle_copy):
    with (bundle_copy / "manifest.json").open("r+b") as file:
        file.truncate(40_000_000)
    limit = manifest.MANIFEST_LIMIT_BYTES
    assert refused(bundle_copy) == f"manifest.json is too large, expected at most {limit} bytes"


def test_links_are_refused(bundle_copy, tmp_path):
    weights = bundle_copy / "blocks" / "vision" / "vision-0.weights"
    outside = weights.rename(tmp_path / "outside.weights")
    weights.symlink_to(outside)
    assert "'blocks/vision/vision-0.weights' is behind a symbolic link" in refused(bundle_copy)

    weights.unlink()
    outside.rename(weights)
    Bundle.open(bundle_copy)
    folder = weights.parent.rename(tmp_path / "outside")
    weights.parent.symlink_to(folder, target_is_directory=True)
    text = refused(bundle_copy)
    assert "files[" in text
    assert "is behind a symbolic link" in text


def test_a_linked_manifest_is_refused(bundle_copy, tmp_path):
    path = bundle_copy / "manifest.json"
    path.rename(tmp_path / "manifest.json")
    path.symlink_to(tmp_path / "manifest.json")
    assert (
        refused(bundle_copy)
        == "manifest.json is a symbolic link; copy the file itself into the bundle"
    )


def test_a_pipe_is_no_file(bundle_copy):
    path = bundle_copy / "tokenizer.json"
    path.unlink()
    os.mkfifo(path)
    assert refused(bundle_copy) == "'tokenizer.json' is missing from the bundle"


def places(document, path=()):
    """Paths of all values in a document."""
    items = enumerate(document) if isinstance(document, list) else document.items()
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


JUNK = [
    None, True, -1, 0, 1, 2, 3, 7, 64, 2**31, 10**30, 1.5, -0.0, "", "x", "../x", "image", "f32",
    "reduce", [], [0], [[]], {}, {"name": 1},
]  # fmt: skip


@pytest.fixture(scope="module")
def document(exported):
    return json.loads((exported.bundle.path / "manifest.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def scratch(exported, tmp_path_factory):
    """Another folder with the bundle's files, whose manifest a test overwrites."""
    folder = tmp_path_factory.mktemp("scratch")
    os.symlink(exported.bundle.path, folder / "whole")
    for path in exported.bundle.path.rglob("*"):
        target = folder / "b" / path.relative_to(exported.bundle.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.name != "manifest.json":
            os.link(path, target)
    return folder / "b"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_changes_give_a_bundle_error_or_nothing(document, scratch, data):
    changed = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(places(changed), key=str)))
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        action = data.draw(st.sampled_from(["set", "remove", "repeat", "rename"]))
        if action == "remove":
            del holder[path[-1]]
        elif action == "repeat" and isinstance(holder, list):
            holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
        elif action == "rename" and isinstance(holder, dict):
            holder[f"{path[-1]}_"] = holder.pop(path[-1])
        else:
            holder[path[-1]] = copy.deepcopy(data.draw(st.sampled_from(JUNK)))
    (scratch / "manifest.json").write_text(json.dumps(changed), "utf-8")
    try:
        plan = Bundle.open(scratch).plan
    except BundleError as error:
        assert len(str(error)) < 400  # noqa: PT017 -- both ends are right
    else:
        assert plan.weights_bytes >= plan.host.embedding.bytes > 0
        assert plan.host.prompt_tokens > 0
