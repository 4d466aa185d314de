"""Weights are compared with the model by their headers: before a graph exists, before a read."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

from edgevlm.errors import ModelError, PlanError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.weights.loading import paged  # noqa: E402
from edgevlm.models.weights.matching import match  # noqa: E402
from edgevlm.models.weights.sources import FolderWeights  # noqa: E402
from edgevlm.planning.plan import make_plan, plan_with_weights  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

LAYER = "model.text_model.layers.1.mlp.down_proj"


@pytest.fixture
def changed(preset, tmp_path):
    """`changed(edit)`: a copy of a tiny checkpoint whose tensors went through `edit`."""

    def make(edit, name="tiny-smolvlm", **values):
        folder = Path(shutil.copytree(preset(name), tmp_path / name))
        tensors = safetensors.load_file(folder / "model.safetensors")
        tensors = edit(tensors) or tensors
        safetensors.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return make


def planned(model, **options):
    return make_plan(Recipe(model=model, **options), find(model))


def refused(model, make=make_plan, **options) -> str:
    """The line with which `plan` refuses a checkpoint, without its name."""
    with pytest.raises((ModelError, PlanError)) as error:
        make(Recipe(model=model, **options), find(model))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"'{model}'").lstrip(": ")


def added(name, shape=(4, 4), dtype=torch.float32):
    """An edit that adds a tensor."""
    return lambda tensors: tensors | {name: torch.zeros(shape, dtype=dtype)}


def renamed(change):
    """An edit that renames all tensors."""
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{LAYER}.lora_A.weight",
        f"{LAYER}.lora_B.default.weight",
        f"{LAYER}.base_layer.weight",
        f"{LAYER}.lora_magnitude_vector",
        "model.text_model.embed_tokens.lora_embedding_A",
        "model.connector.modules_to_save.default.weight",
        f"{LAYER}.hada_w1_a",
    ],
)
def test_an_adapter_inside_the_weights_is_not_left_out(changed, name):
    text = refused(changed(added(name)))
    assert text == (
        f"its weights hold an adapter that is not merged (tensors: 1, the first is '{name}'); merge"
        " it with PEFT's merge_and_unload() and save the model"
    )


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (added(f"{LAYER}.weight_scale", (64,)), f"{LAYER}.weight_scale"),
        (added(f"{LAYER}.bias", (64,)), f"{LAYER}.bias"),
        (added("model.text_model.norm.bias", (64,)), "model.text_model.norm.bias"),
    ],
)
def test_a_tensor_beside_the_weights_of_a_layer_changes_it(changed, edit, named):
    text = refused(changed(edit))
    owner = named.rpartition(".")[0]
    assert text.startswith(
        f"tensor '{named}' stands beside the weights of '{owner}', and the model"
    )
    assert "take plain weights, or correct config.json" in text


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.float8_e4m3fn])
def test_packed_weights_are_quantized_whatever_the_config_says(changed, dtype):
    def pack(tensors):
        return tensors | {f"{LAYER}.weight": tensors[f"{LAYER}.weight"].to(dtype)}

    text = refused(changed(pack))
    assert text.startswith(f"its weights are quantized: '{LAYER}.weight' is ")
    assert text.endswith("use the checkpoint that it was made from, and --quantize")


@pytest.mark.parametrize(
    "values",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"load_in_8bit": True}},
        {"quantization": {"group_size": 64, "bits": 4}},
        {"compression_config": {"format": "pack-quantized"}},
    ],
)
def test_a_config_of_quantized_weights(changed, values):
    (key,) = values
    assert f"weights are quantized ({key} in config.json" in refused(changed(dict, **values))


def test_an_empty_quantization_config_is_none(changed):
    assert planned(changed(dict, quantization_config=None)).plan.blocks


def test_tensors_that_nothing_uses_are_mentioned_once(changed, caplog):
    model = changed(added("model.extra_head.weight"))
    with caplog.at_level(logging.WARNING):
        first, second = planned(model), planned(model)
    assert first.plan == second.plan
    assert [record.getMessage() for record in caplog.records] == [
        f"'{model}': its weights have tensors that are in no part of the model and are left out (1,"
        " the first is 'model.extra_head.weight')"
    ]


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "base_model.model.", "my.own."])
def test_names_of_a_wrapped_model(changed, wrapper):
    text = refused(changed(renamed(lambda name: wrapper + name)))
    assert text.startswith(f"its tensors have '{wrapper}' in their names, as models saved inside")
    assert text.endswith("save the model inside it, or rename them without it")


def test_a_wrapper_in_the_middle_of_names(changed):
    model = changed(renamed(lambda name: name.replace("layers.", "layers._orig_mod.")))
    assert refused(model).startswith("its tensors have '_orig_mod.' in their names")


def test_missing_weights_take_no_memory(tiny_model):
    """Of a large model where no name fits, they would be all of it, in float32."""
    from edgevlm.models.quiet import quiet
    from edgevlm.models.weights.matching import _loaded

    checkpoint = find(tiny_model)
    with quiet():
        model, report = _loaded(type(checkpoint.empty_model()), checkpoint.config, {})
    held = {name: p.untyped_storage().nbytes() for name, p in model.named_parameters()}
    assert held.keys() <= {*report["missing_keys"]}
    assert set(held.values()) == {4}


def test_missing_weights_are_named_with_what_stands_instead(changed):
    model = changed(renamed(lambda name: name.replace("down_proj", "down")))
    text = refused(model)
    assert text.startswith("lacks 2 weights, the first is 'model.text_model.layers.0.mlp.down_")
    assert text.endswith(
        "; 2 tensors have other names, the first is 'model.text_model.layers.0.mlp.down.weight'"
    )


@pytest.mark.parametrize("name", ["tiny-llava-next", "tiny-llava-onevision"])
def test_weights_that_no_part_uses_may_be_absent(changed, name, preset):
    from edgevlm.graphs.parts import ModelParts

    def drop(tensors):
        return {k: v for k, v in tensors.items() if "post_layernorm" not in k}

    made = planned(changed(drop, name))
    assert made.plan.blocks == planned(str(preset(name))).plan.blocks
    # The names that may be absent are those of weights that no part has, and no others.
    model = find(str(preset(name))).empty_model()
    parts: ModelParts = made.checkpoint.family.parts(model, made.description)
    modules = torch.nn.ModuleList([*parts.encoder.modules, *parts.decoder.layers])
    modules.append(parts.decoder.norm)
    used = {id(p) for p in (*modules.parameters(), *parts.table, parts.head)}
    used.add(id(model.model.image_newline))  # a row of the table
    prefixes = made.checkpoint.family.left_out(model.config, all_layers=False)
    for key, weight in model.named_parameters():
        assert key.startswith(prefixes) is (id(weight) not in used), key


def test_the_last_layer_may_be_absent_unless_a_method_reads_it(changed):
    """LLaVA-NeXT's features are of the second of three layers; prumerge reads the third."""
    from edgevlm.graphs.signals import reads_last_layer

    model = changed(
        lambda tensors: {k: v for k, v in tensors.items() if "encoder.layers.2." not in k},
        "tiny-llava-next",
    )
    assert planned(model, tokens=8, methods=("fastervlm",)).plan.host.visual_tokens == 8
    text = refused(model, tokens=8, methods=("prumerge",))
    assert text.startswith("lacks 16 weights, the first is 'model.vision_tower.encoder.layers.2.")
    assert reads_last_layer(("keys", "flat_keys"))
    assert not reads_last_layer(("keys", "cls_attention", "early_cls_attention"))


def test_a_head_in_the_files_is_used_where_it_differs_from_the_table(changed):
    def add_head(tensors):
        return tensors | {"lm_head.weight": tensors["model.text_model.embed_tokens.weight"] + 1}

    made = planned(changed(add_head))
    assert not any(block.shares for block in made.plan.blocks)
    model = made.checkpoint.load_model()
    assert model.lm_head.weight is not model.model.text_model.embed_tokens.weight


def test_a_plan_compares_samples_of_head_and_table_and_an_export_all(changed):
    """One number of 65,536 differs, away from what a plan reads."""

    def add_head(tensors):
        head = tensors["model.text_model.embed_tokens.weight"].clone()
        head[300, 5] += 1
        return tensors | {"lm_head.weight": head}

    model = changed(add_head)
    assert any(block.shares for block in planned(model).plan.blocks)
    made = plan_with_weights(Recipe(model=model), find(model))
    assert not any(block.shares for block in made.plan.blocks)


def test_a_head_in_the_files_that_is_the_table_stays_tied(changed, tiny_model):
    def add_head(tensors):
        return tensors | {"lm_head.weight": tensors["model.text_model.embed_tokens.weight"].clone()}

    made = planned(changed(add_head))
    assert made.plan.blocks == planned(tiny_model).plan.blocks
    model = made.checkpoint.load_model()
    assert model.lm_head.weight is model.model.text_model.embed_tokens.weight


def test_a_head_tied_in_text_config_alone_is_refused_with_the_line_to_add(changed):
    text = refused(changed(dict, tie_word_embeddings=False))
    assert text.endswith('add "tie_word_embeddings": true at the top of config.json')


def broken(value):
    """An edit that sets one number of a weight."""

    def edit(tensors):
        tensors[f"{LAYER}.weight"][3, 5] = value

    return edit


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_not_finite_is_named(changed, value):
    model = changed(broken(value))
    shown = "nan" if value != value else "inf"
    assert planned(model).plan.blocks  # which reads no weights
    text = refused(model, plan_with_weights)
    assert text.startswith(f"weight '{LAYER}.weight' holds {shown}, as a cast to float16")
    with pytest.raises(ModelError, match="holds"):
        find(model).load_model()


def test_a_number_that_is_not_finite_where_nothing_reads_it(changed):
    model = changed(lambda tensors: tensors | {"model.extra.weight": torch.tensor([float("nan")])})
    assert plan_with_weights(Recipe(model=model), find(model)).plan.blocks


@pytest.mark.parametrize(
    ("target", "scheme"), [("onnx", "fp16"), ("coreml", "fp16"), ("onnx", "decoder=fp16")]
)
def test_a_number_beyond_float16_is_refused_with_its_value(changed, target, scheme):
    pytest.importorskip("coremltools" if target == "coreml" else "onnxscript")
    from edgevlm.quantization.schemes import Schemes

    model = changed(broken(-70000.0))
    text = refused(model, plan_with_weights, target=target, quantize=Schemes.parse(scheme))
    assert text == (
        f"weight '{LAYER}.weight' holds 70,000, and float16, in which scheme 'fp16' stores it,"
        " ends at 65,504; choose a scheme in float32"
    )
    assert plan_with_weights(Recipe(model=model), find(model)).plan.blocks  # float32 has it


def test_files_that_are_not_there(preset, tmp_path):
    folder = Path(shutil.copytree(preset("tiny-smolvlm"), tmp_path / "model"))
    weights = (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert refused(str(folder)) == (
        "has neither model.safetensors nor model.safetensors.index.json, only other.safetensors;"
        " save it with transformers' save_pretrained"
    )
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(str(folder)) == "model-1.safetensors is missing; download it into the folder"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    (folder / "model-1.safetensors").write_bytes(pointer)
    assert "model-1.safetensors is a Git LFS pointer" in refused(str(folder))
    weights.replace(folder / "model-1.safetensors")
    for name in ("config.json", "tokenizer.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(pointer)
        text = refused(str(folder))
        assert f"{name} is a Git LFS pointer, not the file itself; run `git lfs pull`" in text
        (folder / name).write_bytes(kept)


def test_gguf_is_named(preset, tmp_path):
    folder = Path(shutil.copytree(preset("tiny-smolvlm"), tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "model-q4.gguf")
    expected = "'model-q4.gguf' is GGUF, which is not read; use the safetensors checkpoint that it"
    assert refused(str(folder)).startswith(expected)
    with pytest.raises(ModelError, match=r"^'model-q4.gguf' is GGUF"):
        find(str(folder / "model-q4.gguf"))
    with pytest.raises(ModelError, match=r"config.json' is a file, expected the folder of a check"):
        find(str(folder / "config.json"))


def test_an_adapter_beside_or_alone(preset, tmp_path):
    folder = Path(shutil.copytree(preset("tiny-smolvlm"), tmp_path / "model"))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    assert refused(str(folder)).startswith("has an adapter that is not merged into its weights")
    (folder / "model.safetensors").unlink()
    assert refused(str(folder)) == (
        "is an adapter alone of 'owner/base', not a model; merge it with PEFT's"
        " merge_and_unload() and save the model"
    )


class Normed(transformers.PreTrainedModel):
    """A model with a batch norm, whose statistics are saved with its weights."""

    config_class = transformers.PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.norm = torch.nn.BatchNorm1d(4)
        self.post_init()


def test_statistics_of_a_batch_norm_are_those_of_the_file(tmp_path):
    values = {"weight": torch.rand(4), "bias": torch.rand(4), "running_mean": torch.rand(4),
              "running_var": torch.rand(4), "num_batches_tracked": torch.tensor(7)}  # fmt: skip
    named = {f"norm.{name}": value for name, value in values.items()}
    safetensors.save_file(named, tmp_path / "model.safetensors")
    weights = FolderWeights(tmp_path)
    found = match(Normed, transformers.PreTrainedConfig(), weights.headers, ())
    assert found.statistics.keys() == named.keys() - {"norm.weight", "norm.bias"}
    norm = paged(found, weights, tied=False, kept_bytes=1 << 20).norm
    assert torch.equal(norm.running_mean, values["running_mean"])
    assert torch.equal(norm.running_var, values["running_var"])
    assert torch.equal(norm.num_batches_tracked, values["num_batches_tracked"])
    assert torch.equal(norm.weight.read(), values["weight"])
