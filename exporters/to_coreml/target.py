"""Core ML: one `.mlpackage` per block, with a Core ML function for each function of the block.

    traced function -> cache rows become states -> coremltools -> compressed -> functions joined

The functions of a block share their weights in one file. Keys and values are states (KV form
`states`), named like the caches; Core ML keeps them in float16. Inputs and outputs stay float32,
and states of recurrent layers and of layers that others read are among these.

Source: coremltools 9.0 (iOS 18 programs); `operators` has the translations that it lacks.
"""

from __future__ import annotations

import gc
import json
import logging
import re
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from tqdm import tqdm

from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.plan import Requires
from edgevlm.errors import ExportError, RuntimeLoadError
from edgevlm.exporters.contract import SharedMatrix, Target, TargetOptions
from edgevlm.exporters.repeats import without_repeats
from edgevlm.graphs.trace import DTYPES, with_weights
from edgevlm.libraries import first_line, silent

with silent():
    import coremltools as ct
    from coremltools.proto import Model_pb2

    if ct.__version__.split(".")[0] != "9":  # translations use private functions of this version
        raise RuntimeLoadError(f"target 'coreml' needs coremltools 9, got {ct.__version__}")

    from edgevlm.exporters.to_coreml.operators import translations

# Integer weights with a scale for each output channel, or for each 32 inputs of a channel.
COMPRESSED: dict[str, dict[str, Any]] = {
    "w8a16": {"dtype": "int8", "granularity": "per_channel"},
    "w4g32a16": {"dtype": "int4", "granularity": "per_block", "block_size": 32},
}
# Operators whose constants are weights; those of others are masks, tables of positions and norms.
ROUNDED = ("linear", "conv")
SMALLEST = 2048  # elements; smaller weights are not quantized
# Weights as indices into a palette of 2^bits values for each matrix. For smaller matrices
# coremltools would need scikit-learn to find the palette.
PALETTES, SMALLEST_PALETTE = {"p6": 6, "p4": 4}, 10_000
# Tables that the host reads by rows: with as many bits as the weights, or the next that there are.
TABLES = {"fp16": "f16", "w8a16": "w8g64", "w4g32a16": "w4g32", "p6": "w8g64", "p4": "w4g32"}

# Shown by Xcode beside each input, output and state, by their names without what counts them.
_COUNTED = re.compile(r"^(past|present)_|(_\d+)+$", re.ASCII)
MEANINGS = {
    "pixel_values": "one view: RGB, channels first, (value / 255 - mean) / std",
    "features": "features of the views, in the width of the language model",
    "visual_tokens": "the visual tokens that are kept or merged",
    "kept_positions": "index of each among all visual tokens, ascending",
    "log_sizes": "logarithm of the number of tokens merged into each",
    "level": "features of a depth of the encoder before its last",
    "kept_level": "the same of the visual tokens that are kept",
    "added_level": "the same at the rows of visual tokens, 0 elsewhere: added behind a layer",
    "hidden": "embeddings of text and visual tokens, or the output of the block before",
    "cos": "rotary cosines of the rows' positions, both halves equal",
    "sin": "rotary sines of the rows' positions, both halves equal",
    "mask": "0 where a token may attend, -1e4 elsewhere",
    "bias": "added to the attention scores of each row of the cache",
    "position": "row of the cache where the first new row goes",
    "visual_rows": "rows of the visual tokens",
    "last": "the prompt's last row",
    "carried": "a number for each row, which the first block made for the choices in the others",
    "visual_signal": "what the encoder says of each visual token, for choices in the decoder",
    "count": "how many rows of the call belong to the sequence; the others fill it up",
    "pruned": "1 after a prompt with a picture, else 0",
    "logits": "scores of the vocabulary",
    "embedding": "the embedding, as long as the model gives it",
    "end": "which token the embedding is read at",
    "key": "keys of a layer",
    "value": "values of a layer",
    "recurrent": "what a recurrent layer keeps of the tokens before",
    "embeds": "rows of the embedding table and visual tokens, as they entered the first layer",
    "per_layer": "what a layer gets of the rows of the second table",
}


@dataclass(frozen=True)
class Lowered:
    """The traced functions of one signature; every block converts them with its own weights."""

    programs: Mapping[str, ExportedProgram]
    scheme: str


def table_format(scheme: str) -> str:
    """Format of the host's tables under a scheme, for `Embedding.dtype`."""
    return TABLES.get(scheme, "f32")


def matrix_bytes(rows: int, columns: int, scheme: str, stage: str) -> int:
    """Bytes of a linear layer's matrix under a scheme."""
    count = rows * columns
    palette = PALETTES.get(scheme)
    if palette and count >= SMALLEST_PALETTE:
        return count * palette // 8 + (2 << palette)
    if scheme == "w8a16" and count >= SMALLEST:
        return count + 2 * rows
    if scheme == "w4g32a16" and count >= SMALLEST:
        return count // 2 + count // 16
    return count * number_bytes(scheme)


def number_bytes(scheme: str) -> int:
    """Bytes of any other weight under a scheme."""
    return 4 if scheme == "none" else 2


def lower(programs: Mapping[str, ExportedProgram], block: Block, options: TargetOptions) -> Lowered:
    """Keep the traced functions of one signature."""
    return Lowered(programs, options.scheme)


def write(
    lowered: Lowered,
    block: Block,
    tensors: Mapping[str, Tensor],
    folder: Path,
    shared: SharedMatrix | None,
) -> tuple[Function, ...]:
    """Write the block's package into `folder`; return its functions with their file.

    Args:
        lowered: Traces of the block's signature.
        block: The block.
        tensors: Its weights by traced name.
        folder: An existing folder.
        shared: Not used: a package holds all its weights.

    Raises:
        ExportError: If coremltools cannot convert a function.
    """
    package = folder / f"{block.name}.mlpackage"
    joined = ct.utils.MultiFunctionDescriptor()
    with tempfile.TemporaryDirectory() as work, _quiet(), translations():
        for function in block.functions:
            where = f"{block.name}.{function.name}"
            part = str(Path(work) / f"{function.name}.mlpackage")
            program, scheme = lowered.programs[function.name], lowered.scheme
            try:
                _convert(program, function, block, tensors, scheme).save(part)
            except (NotImplementedError, ValueError, RuntimeError) as cause:
                line = first_line(cause)
                raise ExportError(f"{where} does not convert to Core ML: {line}") from cause
            joined.add_function(part, src_function_name="main", target_function_name=function.name)
        joined.default_function_name = block.functions[0].name
        shutil.rmtree(package, ignore_errors=True)
        ct.utils.save_multifunction(joined, str(package))
    _name_parts(package, block)
    _describe(package, block, lowered.scheme)
    gc.collect()  # programs contain reference cycles that hold the block's weights
    for path in package.rglob("*"):  # coremltools makes some files readable by their owner alone
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tuple(replace(function, file=package.name) for function in block.functions)


class Stateful(nn.Module):
    """A traced function with its caches as buffers, which it writes."""

    def __init__(self, inner: nn.Module, function: Function) -> None:
        super().__init__()
        self.inner = inner
        self.inputs = [tensor.name for tensor in function.inputs]
        self.outputs = [tensor.name for tensor in function.outputs]
        self.states = [cache for cache in function.caches if cache.name]
        for cache, tensor in function.cached():
            if cache.name:
                self.register_buffer(cache.name, torch.zeros(tensor.shape))

    def forward(self, **given: Tensor) -> tuple[Tensor, ...]:
        """Run the function, and store its cache outputs in the buffers."""
        states = {cache.output: getattr(self, cache.name) for cache in self.states}
        given |= {cache.input: states[cache.output] for cache in self.states}
        outputs = self.inner(*(given[name] for name in self.inputs))
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        by_name = dict(zip(self.outputs, outputs, strict=True))
        for name, state in states.items():
            state.copy_(by_name.pop(name))
        # An output that is also an input would lose its name.
        return tuple(out.clone() for out in by_name.values())


def _convert(
    program: ExportedProgram,
    function: Function,
    block: Block,
    tensors: Mapping[str, Tensor],
    scheme: str,
) -> Any:
    module = Stateful(with_weights(program, tensors), function)
    inputs = {t.name: torch.zeros(t.shape, dtype=DTYPES[t.dtype]) for t in function.passed_in}
    with torch.no_grad(), without_repeats():
        retraced = torch.export.export(module, (), inputs, strict=False).run_decompositions({})
    outputs = [tensor.name for tensor in function.passed_out]
    exact = scheme == "none"
    model = ct.convert(
        retraced,
        outputs=[ct.TensorType(name=name) for name in outputs],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32 if exact else ct.precision.FLOAT16,
        skip_model_load=True,
    )
    return _compress(model, scheme)


def _compress(model: Any, scheme: str) -> Any:
    """The converted function with low-bit weights."""
    optimize = ct.optimize.coreml
    if scheme in COMPRESSED:
        how = optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", weight_threshold=SMALLEST, **COMPRESSED[scheme]
        )
        config = optimize.OptimizationConfig(op_type_configs=dict.fromkeys(ROUNDED, how))
        return optimize.linear_quantize_weights(model, config)
    if scheme in PALETTES:
        how = optimize.OpPalettizerConfig(
            mode="kmeans", nbits=PALETTES[scheme], weight_threshold=SMALLEST_PALETTE
        )
        config = optimize.OptimizationConfig(op_type_configs=dict.fromkeys(ROUNDED, how))
        return optimize.palettize_weights(model, config)
    return model


def _name_parts(package: Path, block: Block) -> None:
    """Derive identifiers from the block's name, so that the same recipe gives the same bytes."""
    path = package / "Manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    items = manifest["itemInfoEntries"]
    new = {
        old: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{block.name}/{item['path']}"))
        for old, item in items.items()
    }
    manifest["itemInfoEntries"] = {new[old]: item for old, item in items.items()}
    manifest["rootModelIdentifier"] = new[manifest["rootModelIdentifier"]]
    path.write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", "utf-8")


def _describe(package: Path, block: Block, scheme: str) -> None:
    """Describe the package and its inputs, outputs and states in its metadata."""
    path = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model = Model_pb2.Model.FromString(path.read_bytes())
    about = model.description.metadata
    names = ", ".join(function.name for function in block.functions)
    about.shortDescription = f"{block.name} of an edgevlm bundle: {names}"
    about.userDefined.clear()
    for key, value in (("block", block.name), ("stage", block.stage), ("scheme", scheme)):
        about.userDefined[f"edgevlm.{key}"] = value
    for function in model.description.functions:
        onward = block.function(function.name).links
        for feature in (*function.input, *function.output):
            feature.shortDescription = _meaning(onward.get(feature.name, feature.name))
        for feature in function.state:
            feature.shortDescription = _meaning(feature.name)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _meaning(name: str) -> str:
    """What an input, output or state is; names of several of a kind are counted."""
    return MEANINGS.get(_COUNTED.sub("", name), "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence coremltools' messages about its passes, which a user cannot act on."""
    logger, bars = logging.getLogger("coremltools"), tqdm.__init__
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        tqdm.__init__ = partialmethod(bars, disable=True)
        try:
            yield
        finally:
            logger.setLevel(level)
            tqdm.__init__ = bars


TARGET = Target(
    summary="Core ML packages for iOS 18 and macOS 15: states, shared weights, 4 to 32 bits",
    schemes=("none", "fp16", *COMPRESSED, *PALETTES),
    requires=Requires((("ios", "18.0"), ("macos", "15.0"))),
    weight_suffixes=("/weight.bin",),
    lower=lower,
    write=write,
    kv_form="states",
    kv_dtype="f16",
    table_format=table_format,
    matrix_bytes=matrix_bytes,
    number_bytes=number_bytes,
    half_arithmetic=("fp16", *COMPRESSED, *PALETTES),
)
