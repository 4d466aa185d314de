"""What is found in a checkpoint folder is read with suspicion; each refusal is one line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

import edgevlm
from edgevlm.errors import ModelError
from edgevlm.recipe import Recipe

pytest.importorskip("torch")
find = pytest.importorskip("edgevlm.models.find").find
EMBEDDED = Path(edgevlm.__path__[0]) / "embedded"


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of a tiny checkpoint, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def refused(action, *arguments) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(ModelError) as error:
        action(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def config(folder, change=(), **values):
    """Write values into config.json."""
    path = folder / "config.json"
    document = json.loads(path.read_text())
    for part, key, value in change:
        document[part][key] = value
    path.write_text(json.dumps(document | values))


def test_the_embedded_checkpoint_and_a_copy_of_it_are_found(tmp_path):
    copy = shutil.copytree(EMBEDDED, tmp_path / "copy")
    found = [find("embedded"), find(str(copy))]
    assert [f.folder for f in found] == [EMBEDDED, copy]
    assert found[0].config_hash == found[1].config_hash
    assert found[0].family is found[1].family
    assert found[1].processor() == found[0].processor()


def test_a_checkpoint_is_read_by_its_family(folder):
    found = find(str(folder))
    assert found.family.__name__ == "edgevlm.models.vlm.smolvlm"
    assert found.processor()["resample"] == 1


@pytest.mark.parametrize("name", ["", "~no-such-user/x", "/no/such/folder", "a/b/c", "./x", "a/"])
def test_a_model_that_is_nowhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = refused(find, name)
    if name:
        expected = "expected a folder, a hub id like OWNER/NAME, or 'embedded'"
        assert text == f"no model '{name}': {expected}"
    else:
        assert text == "'' has no config.json; expected a Hugging Face checkpoint folder"


def test_a_hub_id_that_cannot_be_downloaded(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def download(*_, **__):
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(hub, "snapshot_download", download)
    expected = "'owner/name' is not a folder and cannot be downloaded: no network"
    assert refused(find, "owner/name") == expected


def test_an_unknown_family_comes_with_the_nearest(folder):
    config(folder, model_type="smolvln")
    text = refused(find, str(folder))
    assert "unknown model family 'smolvln'; did you mean 'smolvlm'? known: clip," in text


@pytest.mark.parametrize("value", [None, 3, ["smolvlm"], {"a": 1}, "_family", "x" * 10**5])
def test_a_family_that_is_no_name(folder, value):
    config(folder, model_type=value)
    assert "unknown model family '" in refused(find, str(folder))


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_checkpoint_without_safetensors(folder, other):
    (folder / "model.safetensors").unlink()
    expected = "convert it with transformers' save_pretrained (pickles are not read)"
    (folder / other).write_bytes(b"\x80\x04.")
    text = refused(find, str(folder))
    assert text == f"'{folder}' has no model.safetensors, only {other}; {expected}"


def test_config_and_tokenizer_alone_are_planned_and_nothing_else(folder, tiny_model):
    from edgevlm.planning.plan import make_plan, plan_with_weights

    (folder / "model.safetensors").unlink()
    found, recipe = find(str(folder)), Recipe(quantize="fp16,head=none")
    made = make_plan(recipe, found)
    expected = make_plan(recipe, find(tiny_model))
    assert made.plan.blocks == expected.plan.blocks
    assert made.plan.host == expected.plan.host
    assert expected.notes == ()
    assert made.notes == ("no weights: bytes are those of the config's shapes in fp16,head=none",)
    assert make_plan(Recipe(), found).notes[0].endswith("config's shapes in float32")
    expected = f"'{folder}' has no weights, which a plan does without and nothing else; put model."
    for use in (found.load_model, lambda: plan_with_weights(recipe, found)):
        assert refused(use).startswith(expected)


def test_code_of_the_checkpoint_is_not_run(folder):
    config(folder, auto_map={"AutoConfig": "code.Config"}, model_type="smolvlm_9")
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    text = refused(find, str(folder))
    assert "unknown model family 'smolvlm_9'" in text
    assert text.endswith("(it brings code of its own, auto_map, which is not run)")


def test_a_native_model_that_names_its_old_code_is_read_without_it(folder, tiny_model):
    names = {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"}
    config(folder, auto_map=names)
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    found, plain = find(str(folder)), find(tiny_model)
    assert found.describe(Recipe()) == plain.describe(Recipe())
    assert found.load_model().state_dict().keys() == plain.load_model().state_dict().keys()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert f"'{folder}' has no {name}" in refused(find, str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "config.json of the checkpoint is not valid JSON: Expecting value"),
        (b"{", "config.json of the checkpoint is not valid JSON"),
        (b"[" * 10**6, "config.json of the checkpoint is not valid JSON: maximum recursion"),
        (b"\xff\xfe", "config.json of the checkpoint is not valid JSON: 'utf-8' codec"),
        (b"[1]", "config.json of the checkpoint must be a JSON object"),
    ],
    ids=["empty", "cut", "deep", "no text", "list"],
)
def test_a_config_that_is_no_object(folder, text, message):
    (folder / "config.json").write_bytes(text)
    assert message in refused(find, str(folder))


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("text_config", "num_hidden_layers", 10**9, "text_config: num_hidden_layers is 1000000000"),
        ("text_config", "vocab_size", -1, "vocab_size is -1, expected 1 to 16777216"),
        ("vision_config", "patch_size", 0, "vision_config: patch_size is 0, expected 1 to 65536"),
        ("vision_config", "depth", 10**12, "depth is 1000000000000, expected 1 to 1024"),
        ("vision_config", "depth", 0, "vision_config: depth is 0, expected 1 to 1024"),
        ("vision_config", "num_heads", -1, "vision_config: num_heads is -1, expected 1 to 4096"),
        ("vision_config", "image_size", 10**12, "image_size is 1000000000000"),
        ("text_config", "hidden_size", "many", "text_config: hidden_size is 'many', expected 1 to"),
        ("text_config", "head_dim", 2.5, "text_config: head_dim is 2.5, expected 1 to 65536"),
        ("vision_config", "patch_size", [14, 0], "patch_size is [14, 0], expected 1 to 65536"),
        ("text_config", "rope_theta", math.nan, "rope_theta is nan, expected a number above 0"),
        ("text_config", "rope_parameters", {"factor": -4.0}, "rope_parameters: factor is -4.0, e"),
        ("text_config", "rope_parameters", {"beta_fast": 0}, "rope_parameters: beta_fast is 0, e"),
        ("text_config", "global_head_dim", 2**31, "global_head_dim is 2147483648, expected 1 to"),
        ("text_config", "partial_rotary_factor", 2**24, "is 16777216, expected a number above"),
        ("text_config", "rms_norm_eps", math.inf, "rms_norm_eps is inf, expected a finite number"),
        ("text_config", "bos_token_id", 10**60, "bos_token_id is 1000000000"),
    ],
)
def test_absurd_sizes_are_refused_before_a_model_is_built(folder, part, key, value, message):
    config(folder, [(part, key, value)])
    assert message in refused(find, str(folder))


def test_a_config_of_the_wrong_type(folder):
    config(folder, [("text_config", "attention_bias", "many")])
    text = refused(find, str(folder))
    assert f"'{folder}': config.json is not valid: " in text


def test_sizes_that_do_not_go_together(folder):
    config(folder, [("vision_config", "num_attention_heads", 7)])
    found = find(str(folder))
    assert f"'{folder}': config.json makes no model: " in refused(found.empty_model)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_mean", [0.5, 0.5], "image_mean is [0.5, 0.5], expected a number or three"),
        ("image_mean", None, "image_mean is None, expected a number or three"),
        ("image_std", 0, "image_std is 0, expected 1e-06 to 1e+06, of pixels of 0 to 1"),
        ("image_std", ["a", 1, 1], "image_std is ['a', 1, 1], expected a number or three"),
        ("resample", 9, "resample is 9, expected 0 to 5"),
        ("resample", [], "resample is [], expected 0 to 5"),
        ("merge_size", 0, "merge_size is 0, expected 1 to 2147483648"),
        ("scale_resolution", 2**31, "scale_resolution is 2147483648, expected 1 to 16384"),
        ("max_slice_nums", "x", "max_slice_nums is 'x', expected 1 to 2147483648"),
        ("max_pixels", math.nan, "max_pixels is nan, expected 1 to 2147483648"),
        ("patch_size", {"height": 14, "width": -1}, "patch_size is {'height': 14, 'width': -1}, e"),
    ],
)
def test_a_processor_that_cannot_work(folder, key, value, message):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    text = refused(find(str(folder)).processor)
    assert text.startswith(f"'{folder}': the image processor's {message}")


def damaged(folder, data):
    """How loading fails when the weight file has these bytes."""
    (folder / "model.safetensors").write_bytes(data)
    return refused(find(str(folder)).load_model)


def test_a_damaged_weight_file(folder):
    data = (folder / "model.safetensors").read_bytes()
    for bad in (b"", data[:100], data[:-8], b"\xff" * 64, b"\x80\x04." * 99):
        text = damaged(folder, bad)
        assert text.startswith(f"'{folder}': model.safetensors is damaged or not complete: ")
        assert text.endswith("; download it again")


def test_missing_weights_are_named(folder):
    safetensors = pytest.importorskip("safetensors.torch")
    weights = safetensors.load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layers.1.mlp.down_proj" in name)
    del weights[lost]
    safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    text = refused(find(str(folder)).load_model)
    assert f"'{folder}' lacks 1 weight, the first is '" in text
    assert "layers.1.mlp.down_proj" in text


def test_weights_in_several_files_are_one_checkpoint(folder):
    torch = pytest.importorskip("torch")
    found = find(str(folder))
    model = found.load_model()
    model.save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    again = found.load_model().state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("places", "named"),
    [
        *((places, "no file") for places in (None, [], {})),
        *(({"a": name}, repr(name)) for name in ("../w.safetensors", 3, "", "..", "config.json")),
        ({"a": ["x"]}, "a list"),
        ({"a": "x" * 5000 + ".safetensors"}, repr("x" * 60)[:57] + "..."),
    ],
)
def test_an_index_of_weights_that_leads_nowhere(folder, places, named):
    (folder / "model.safetensors").rename(folder / "w.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    text = refused(find(str(folder)).load_model)
    assert text == (
        f"'{folder}': weight_map of model.safetensors.index.json names {named}, expected names of"
        " .safetensors files beside it; download the index again"
    )


def test_weights_of_another_shape(folder):
    config(folder, [("text_config", "intermediate_size", 100)])
    text = refused(find(str(folder)).empty_model)
    assert text.startswith(f"'{folder}': weight 'model.text_model.layers.0.mlp.down_proj.weight'")
    assert "is [64, 192] in the file and [64, 100] by config.json" in text


def test_loading_is_quiet_and_exact(folder, capfd):
    model = find(str(folder)).load_model()
    assert all(p.dtype.is_floating_point and p.dtype.itemsize == 4 for p in model.parameters())
    assert not any(p.requires_grad for p in model.parameters())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"shape": [2, -1]}, "shape [2, -1], bytes 0 to 8"),
        (
            {"shape": [0, 10**30], "data_offsets": [0, 0]},
            "shape [0, 10000000000",
        ),
        ({"shape": [1] * 99}, "shape [1, 1, 1"),
        ({"data_offsets": [0, 2**70]}, "shape [2], bytes 0 to 1180591620717411303424"),
        ({"data_offsets": [0]}, "not enough values to unpack"),
        ({"shape": None}, "NoneType"),
        ({"shape": [3]}, "tensor 'a' has 8 bytes at "),
        ({"data_offsets": [4, 8], "shape": [1]}, "tensor 'a' has 4 bytes at "),
    ],
)
def test_a_header_that_lies(folder, entry, said):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry
    header = json.dumps({"a": entry}).encode()
    text = damaged(folder, len(header).to_bytes(8, "little") + header + bytes(8))
    assert text.startswith(f"'{folder}': model.safetensors is damaged or not complete: ")
    assert said in text


@pytest.mark.parametrize("header", [b"[]", b"33", b"\xff\xff", b"[" * 10**5, b"{" * 10, b"null"])
def test_a_header_that_is_none(folder, header):
    text = damaged(folder, len(header).to_bytes(8, "little") + header)
    assert "model.safetensors is damaged or not complete: its header is not valid (" in text
