"""Variations of checkpoints, each through the product and through transformers.

    PYTHONPATH=.:samples python tests/variations.py              all, printed as a table
    PYTHONPATH=.:samples python tests/variations.py NAME ...     some
    PYTHONPATH=.:samples python tests/variations.py --write      all, into docs/reliability.md

Each is a tiny checkpoint of samples/make_checkpoint.py with one thing changed, as published,
trained or converted checkpoints have it. What counts: the plan of an export refuses it in one
line, or the bundle gives transformers' own greedy tokens for a picture. A bundle with another
answer, a refusal after the plan or a traceback is a fault, and the exit code is 1. Takes some ten
minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import make_checkpoint
import torch
import transformers
from checkpoints.shared.weights import write_weights
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

import edgevlm
from edgevlm.errors import EdgeVLMError
from edgevlm.models.find import find
from edgevlm.pipeline import export
from edgevlm.planning.plan import plan_with_weights
from edgevlm.quantization.schemes import Schemes
from edgevlm.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
QUESTION, STEPS = "What is in this picture, and why?", 12
BEGIN, END = "<!-- variations: begin -->", "<!-- variations: end -->"
Document = dict[str, Any]
SMOL, ONE, NEXT, IDE = "tiny-smolvlm", "tiny-llava-onevision", "tiny-llava-next", "tiny-idefics3"
DOWN = "model.text_model.layers.0.mlp.down_proj.weight"


@dataclass(frozen=True)
class Variation:
    """One change of a checkpoint.

    Attributes:
        name: What it is, for the table.
        preset: Of samples/make_checkpoint.py.
        config: Values for config.json before weights are drawn; a dict of a part goes into it.
        late: The same, after they are drawn.
        tensors: Changes the weights.
        files: Changes the other files: values for JSON files by their names, or a function.
        preset_values: The same for the preset.
        recipe: Options of the export.
    """

    name: str
    preset: str
    config: Document = field(default_factory=dict)
    late: Document = field(default_factory=dict)
    tensors: Callable[[Document], Document] = dict
    files: dict[str, Document] = field(default_factory=dict)
    preset_values: Document = field(default_factory=dict)
    recipe: Document = field(default_factory=dict)


def scaled(name: str, factor: float) -> Callable[[Document], Document]:
    """Multiplies a weight."""
    return lambda tensors: tensors | {name: tensors[name] * factor}


def with_number(value: float) -> Callable[[Document], Document]:
    """Sets one number of a weight."""

    def change(tensors: Document) -> Document:
        tensors[DOWN][1, 2] = value
        return tensors

    return change


def renamed(change: Callable[[str], str]) -> Callable[[Document], Document]:
    """Changes the names of all weights."""
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def added(name: str, shape: tuple[int, ...]) -> Callable[[Document], Document]:
    """Adds a tensor of random numbers."""
    return lambda t: t | {name: torch.randn(shape, generator=torch.Generator().manual_seed(1))}


def without(part: str) -> Callable[[Document], Document]:
    """Leaves weights out."""
    return lambda tensors: {k: v for k, v in tensors.items() if part not in k}


def uneven(part: str) -> Callable[[Document], Document]:
    """Adds random numbers to weights of norms, which are all one."""

    def change(tensors: Document) -> Document:
        seed = torch.Generator().manual_seed(1)
        for name in sorted(name for name in tensors if f"{part}.weight" in name):
            tensors[name] += 0.3 * torch.randn(tensors[name].shape, generator=seed)
        return tensors

    return change


def gemma(tensors: Document) -> Document:
    """Norms of the language model as Gemma's, to which 1 is added, and words as loud as before."""
    made = uneven("layernorm")(tensors)
    for name in made:
        inside = ".layers." in name and "layernorm.weight" in name
        if inside or name.endswith("model.norm.weight"):
            made[name] -= 1
        if "embed_tokens" in name:
            made[name] /= 8
    return made


def text(**values: Any) -> Document:
    """Values of text_config."""
    return {"text_config": values}


PRE, PROC = "preprocessor_config.json", "processor_config.json"
SLIDING = {"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 0}
VARIATIONS = (
    Variation("SmolVLM as it is", SMOL),
    Variation("LLaVA-OneVision as it is", ONE),
    Variation("LLaVA-NeXT as it is", NEXT),
    Variation("Mistral, window beyond the context", NEXT, text(
        model_type="mistral", sliding_window=4096, max_position_embeddings=32768)),
    Variation("Mistral, window of 300", NEXT, text(model_type="mistral", sliding_window=300)),
    Variation("Mistral, no window", NEXT, text(model_type="mistral", sliding_window=None)),
    Variation("Qwen2, window of 300 that is off", ONE, text(sliding_window=300)),
    Variation("Qwen2, window of 300 that no layer has", ONE, text(
        **SLIDING | {"max_window_layers": 2})),
    Variation("Qwen2, window of 300 in a layer", ONE, text(**SLIDING | {"max_window_layers": 1})),
    Variation("Llama with a key sliding_window", SMOL, text(sliding_window=64)),
    Variation("SmolVLM over Mistral", SMOL, text(model_type="mistral", sliding_window=None)),
    Variation("LLaVA-OneVision over Llama", ONE, text(model_type="llama")),
    Variation("Gemma under SmolVLM", SMOL, text(
        model_type="gemma", head_dim=24, hidden_act="gelu_pytorch_tanh"), tensors=gemma),
    Variation("Gemma under LLaVA-NeXT", NEXT, text(
        model_type="gemma", hidden_act="gelu_pytorch_tanh"), tensors=gemma),
    Variation("Gemma, attention to both sides", SMOL, text(
        model_type="gemma", use_bidirectional_attention=True)),
    Variation("Gemma 2 under SmolVLM", SMOL, text(model_type="gemma2"), tensors=gemma),
    Variation("Granite under Idefics3", IDE, text(model_type="granite",
        embedding_multiplier=1.5, attention_multiplier=0.3, residual_multiplier=0.8,
        logits_scaling=8.0)),
    Variation("SmolLM3 under SmolVLM", SMOL, text(model_type="smollm3", no_rope_layers=[1, 0]),
        recipe={"block_size_bytes": 60_000}),
    Variation("SmolLM3, positions in no layer", SMOL, text(
        model_type="smollm3", no_rope_layers=[0, 0]), recipe={"block_size_bytes": 60_000}),
    Variation("SmolLM3, window of 30 in a layer", SMOL, text(model_type="smollm3",
        no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=30)),
    Variation("Granite under LLaVA-NeXT", NEXT, text(model_type="granite",
        embedding_multiplier=1.5, attention_multiplier=0.3, residual_multiplier=0.8)),
    Variation("Qwen3 under LLaVA-OneVision", ONE, text(model_type="qwen3", head_dim=24),
        tensors=uneven("_norm")),
    Variation("Qwen3, window of 300 in a layer", ONE, text(
        model_type="qwen3", **SLIDING | {"max_window_layers": 1})),
    Variation("biases in attention", SMOL, text(attention_bias=True)),
    Variation("heads of 20 numbers", SMOL, text(head_dim=20, num_key_value_heads=1)),
    Variation("heads of 24 numbers", SMOL, text(head_dim=24, num_key_value_heads=1)),
    Variation("rope of kind linear", SMOL, text(
        rope_scaling={"rope_type": "linear", "factor": 2.0})),
    Variation("rope of kind dynamic", SMOL, text(
        rope_scaling={"rope_type": "dynamic", "factor": 2.0})),
    Variation("25 patches a side", SMOL, preset_values={"scale_factor": 5, "vision": {
        "image_size": 100, "patch_size": 4}}),
    Variation("40 patches a side", SMOL, preset_values={"scale_factor": 4, "vision": {
        "image_size": 160, "patch_size": 4}}),
    Variation("views smaller than the encoder's", SMOL, files={
        PRE: {"max_image_size": {"longest_edge": 96}, "size": {"longest_edge": 96}},
        PROC: {"image_seq_len": 36}}),
    Variation("do_normalize false", SMOL, files={PRE: {"do_normalize": False}}),
    Variation("rescale_factor 1/127.5", ONE, files={PRE: {"rescale_factor": 1 / 127.5}}),
    Variation("do_rescale false", NEXT, files={PRE: {"do_rescale": False}}),
    Variation("do_resize false", NEXT, files={PRE: {"do_resize": False}}),
    Variation("size of other views", ONE, files={PRE: {"size": {"height": 48, "width": 48}}}),
    Variation("vision_feature_layer [-1]", ONE, {"vision_feature_layer": [-1]}),
    Variation("vision_feature_layer [-1, -2]", ONE, {"vision_feature_layer": [-1, -2]}),
    Variation("vision_feature_layer -9", ONE, {"vision_feature_layer": -9}),
    Variation("vision_aspect_ratio anyres", ONE, {"vision_aspect_ratio": "anyres"}),
    Variation("CLIP under LLaVA-OneVision", ONE, {"vision_config": {
        "model_type": "clip_vision_model"}}),
    Variation("auto_map of a native model", SMOL, late={"auto_map": {"AutoConfig": "code.Config"}}),
    Variation("another head in the files of a tied config", SMOL,
        tensors=added("lm_head.weight", (1024, 64))),
    Variation("the table as head in the files", SMOL, tensors=lambda t: t | {
        "lm_head.weight": t["model.text_model.embed_tokens.weight"].clone()}),
    Variation("tied in text_config alone", SMOL, late={"tie_word_embeddings": False}),
    Variation("CLIP's last norm absent", NEXT, tensors=without("post_layernorm")),
    Variation("a layer's weight absent", SMOL, tensors=without("layers.1.mlp.up_proj")),
    Variation("a tensor of no module", SMOL, tensors=added("model.extra.weight", (4, 4))),
    Variation("a LoRA inside the weights", SMOL, tensors=added(
        DOWN.replace("weight", "lora_A.weight"), (8, 192))),
    Variation("an adapter beside the weights", SMOL, files={"adapter_config.json": {"r": 8}}),
    Variation("a scale beside a weight", SMOL, tensors=added(
        DOWN.replace("weight", "weight_scale"), (64,))),
    Variation("int8 weights without a config", SMOL, tensors=lambda t: t | {
        DOWN: t[DOWN].to(torch.int8)}),
    Variation("quantization_config of bitsandbytes", SMOL, late={"quantization_config": {
        "quant_method": "bitsandbytes", "load_in_4bit": True}}),
    Variation("quantization of MLX", SMOL, late={"quantization": {"bits": 4, "group_size": 64}}),
    Variation("names with _orig_mod.", SMOL, tensors=renamed(lambda name: f"_orig_mod.{name}")),
    Variation("names with module.", ONE, tensors=renamed(lambda name: f"module.{name}")),
    Variation("weights of another width", SMOL, late=text(intermediate_size=128)),
    Variation("an infinite weight", SMOL, tensors=with_number(float("inf"))),
    Variation("a weight that is no number", SMOL, tensors=with_number(float("nan"))),
    Variation("70,000 as a weight, scheme fp16", SMOL, tensors=with_number(7e4), recipe={
        "quantize": Schemes("fp16")}),
    Variation("70,000 as a weight, float32", SMOL, tensors=with_number(7e4)),
    Variation("weights in float16", SMOL, tensors=lambda t: {k: v.half() for k, v in t.items()}),
    Variation("weights in bfloat16", ONE, tensors=lambda t: {
        k: v.bfloat16() for k, v in t.items()}),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of a variation: `equal`, `refused`, or a fault, with its line."""

    kind: str
    line: str = ""


def merged(document: Document, values: Document) -> Document:
    """A document with other values; a dict goes into the part of its name."""
    made = dict(document)
    for key, value in values.items():
        inside = isinstance(value, dict) and isinstance(made.get(key), dict)
        made[key] = merged(made[key], value) if inside else value
    return made


def make(variation: Variation, folder: Path) -> None:
    """Write the checkpoint."""
    family = make_checkpoint.PRESETS[variation.preset]
    preset = merged(family.PRESETS[variation.preset], variation.preset_values)
    tokenizer = family.tokenizer(preset)
    config = merged(family.config(preset, tokenizer), variation.config)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = folder / "model.safetensors"
    write_weights(weights, config, family, tokenizer, 0)
    save_file(variation.tensors(load_file(weights)), weights, {"format": "pt"})
    documents = {"config.json": merged(config, variation.late)}
    documents |= family.files(preset, config)
    for name, values in variation.files.items():
        documents[name] = merged(documents.get(name, {}), values)
    for name, document in documents.items():
        make_checkpoint.write_file(folder / name, document)


def outcome(variation: Variation, folder: Path) -> Outcome:
    """Plan, export, and compare the answers."""
    model = str(folder / "model")
    # LLaVA's processors cut tiles from every picture.
    tiles = (2, 2) if "llava" in variation.preset else (1, 1)
    try:
        make(variation, Path(model))
        recipe = replace(Recipe(model=model, tiles=tiles), **variation.recipe)
        planned = plan_with_weights(recipe, find(model))
    except EdgeVLMError as refusal:
        return Outcome("refused", str(refusal).replace(f"'{model}'", "MODEL"))
    except Exception as error:
        return Outcome("TRACEBACK", f"plan: {error!r}")
    try:
        export(recipe, folder / "bundle")
        size = planned.plan.host.image
        photo = Image.open(ROOT / "edgevlm" / "photos" / "flower.jpg").convert("RGB")
        photo = photo.resize((tiles[1] * size.width, tiles[0] * size.height))
        answer = edgevlm.load(folder / "bundle").generate(photo, QUESTION, max_new_tokens=STEPS)
        wanted = theirs(Path(model), photo, tiles != (1, 1))
    except EdgeVLMError as refusal:
        return Outcome("LATE", str(refusal).replace(f"'{model}'", "MODEL"))
    except Exception as error:
        return Outcome("TRACEBACK", repr(error))
    ours = list(answer.token_ids)
    return Outcome("equal") if ours == wanted else Outcome("DIFFERENT", f"{ours} for {wanted}")


@torch.no_grad()
def theirs(folder: Path, photo: Image.Image, tiled: bool) -> list[int]:
    """transformers' own greedy tokens: its processor, its model, its cache."""
    config = transformers.AutoConfig.from_pretrained(folder)
    original = getattr(transformers, PROCESSOR_MAPPING_NAMES[config.model_type])

    class Processor(original):  # type: ignore[misc, valid-type]
        """Takes a stand-in for the video processor, which needs torchvision."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

    Processor.__name__ = original.__name__
    parts = json.loads((folder / PROC).read_text())
    del parts["processor_class"]
    parts["image_processor"] = transformers.AutoImageProcessor.from_pretrained(
        folder, backend="pil"
    )
    parts["tokenizer"] = transformers.AutoTokenizer.from_pretrained(folder)
    parts["chat_template"] = (folder / "chat_template.jinja").read_text()
    if config.model_type not in ("idefics3", "llava_next"):  # these have no clips
        parts["video_processor"] = SimpleNamespace(num_frames=None, fps=None)
    processor = Processor(**parts)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    options: Document = {}
    if not config.model_type.startswith("llava"):
        options["images_kwargs"] = {"do_image_splitting": tiled}
    chat = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[photo], return_tensors="pt", **options)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    tokens = model.eval().generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    return [int(i) for i in tokens[0, inputs["input_ids"].shape[1] :]]


def table(outcomes: dict[str, Outcome]) -> str:
    """Rows for the docs."""
    rows = [f"| {name} | {o.kind} | {o.line} |" for name, o in outcomes.items()]
    counts = {kind: sum(o.kind == kind for o in outcomes.values()) for kind in ("equal", "refused")}
    head = (
        f"{len(outcomes)} variations: {counts['equal']} give transformers' tokens,"
        f" {counts['refused']} are refused before a graph exists,"
        f" {len(outcomes) - sum(counts.values())} else."
    )
    return "\n".join([head, "", "| checkpoint | result | line |", "|---|---|---|", *rows])


def main() -> None:
    """Run, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="variations whose names contain one of these")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    outcomes = {}
    for variation in VARIATIONS:
        if arguments.names and not any(name in variation.name for name in arguments.names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            outcomes[variation.name] = outcome(variation, Path(folder))
        made = outcomes[variation.name]
        print(f"{variation.name}: {made.kind} {made.line}", file=sys.stderr, flush=True)
    rows = table(outcomes)
    if arguments.write:
        path = ROOT / "docs" / "reliability.md"
        before, _, rest = path.read_text("utf-8").partition(BEGIN)
        path.write_text(f"{before}{BEGIN}\n{rows}\n{END}{rest.partition(END)[2]}", "utf-8")
    else:
        print(rows)
    sys.exit(any(o.kind not in ("equal", "refused") for o in outcomes.values()))


if __name__ == "__main__":
    main()
