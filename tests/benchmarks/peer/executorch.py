"""ExecuTorch with XNNPACK, exported as transformers' integration does it.

The text part is `TorchExportableModuleWithStaticCache`: the cache is a buffer of the program, its
length fixed at 384 tokens, the rows of a call dynamic, so one program prefills and decodes. Its
last row alone goes through the head. Encoder and connector are a second program, of static shape.
8 and 4 bits are torchao's `Int8DynamicActivationIntxWeightConfig`, 4 bits in groups of 32; the
encoder of the 4-bit form has 8. Embedding rows stay in float32.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from peer._given import DECODED, PROMPTS, Array, Given, once, text_checkpoint
from peer._modules import vision

PACKAGES: tuple[str, ...] = ()
CHECK = "executorch, torchao"
SETTINGS: dict[str, str] = {}
VARIANTS = {"fp32": "fp32", "8da8w": "int8", "8da4w": "int4"}
SAYS = {
    "fp32": "XNNPACK, float32, static cache",
    "8da8w": "XNNPACK, int8 weights, rows rounded as they come",
    "8da4w": "XNNPACK, int4 weights in groups of 32, encoder int8",
}
CONTEXT = max(PROMPTS) + DECODED


def prepare(given: Given, variant: str) -> None:
    """Export both programs, which takes minutes."""
    once(_vision_folder(given, variant), lambda path: _export_vision(given, path))
    once(_text_folder(given, variant), lambda path: _export_text(given, path, variant))


def open(given: Given, variant: str) -> Programs:
    """Both programs."""
    return Programs(given, _vision_folder(given, variant), _text_folder(given, variant))


def _vision_folder(given: Given, variant: str) -> Path:
    kind = "fp32" if variant == "fp32" else "8da8w"
    return given.folder("executorch") / f"vision-{kind}"


def _text_folder(given: Given, variant: str) -> Path:
    return given.folder("executorch") / f"text-{variant}"


class Programs:
    """Two programs; the cache is inside the one of the text."""

    def __init__(self, given: Given, *folders: Path) -> None:
        from importlib.metadata import version

        import torch
        from executorch.extension.pybindings import portable_lib

        self.versions = {"executorch": version("executorch")}
        self._torch = torch
        portable_lib._unsafe_reset_threadpool(given.threads)
        self._vision, self._text = (
            portable_lib._load_for_executorch(str(folder / "program.pte")) for folder in folders
        )
        self._pixels, self._length = torch.from_numpy(given.pixels), 0

    def see(self) -> Array:
        """Features [64, C]."""
        made: Array = self._vision.forward((self._pixels,))[0].numpy()[0]
        return made

    def prefill(self, ids: Array) -> Array:
        """Scores [V]."""
        self._length = 0
        return self._run(ids)

    def step(self, token: int) -> Array:
        """Scores [V]."""
        return self._run([token])

    def _run(self, ids: Any) -> Array:
        given = self._torch.as_tensor(ids)[None]
        places = self._torch.arange(self._length, self._length + len(ids))
        self._length += len(ids)
        made: Array = self._text.forward((given, places))[0].numpy()[0, -1]
        return made


def _export_vision(given: Given, path: Path) -> None:
    import torch

    encoder = vision(given).requires_grad_(False)
    _round(encoder, path.name.removeprefix("vision-"))
    with torch.no_grad():
        _write(torch.export.export(encoder, (torch.from_numpy(given.pixels),)), path)


def _export_text(given: Given, path: Path, variant: str) -> None:
    import torch
    from transformers import LlamaForCausalLM
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    text = LlamaForCausalLM.from_pretrained(text_checkpoint(given), dtype=torch.float32).eval()
    _round(text.requires_grad_(False), variant)
    text.generation_config.use_cache = True
    text.generation_config.cache_implementation = "static"
    text.forward = partial(text.forward, logits_to_keep=1)
    module = TorchExportableModuleWithStaticCache(text, 1, CONTEXT).eval()
    rows = torch.export.Dim("rows", max=CONTEXT - 1)
    example = {"input_ids": torch.arange(500, 508)[None], "cache_position": torch.arange(8)}
    shapes = {"input_ids": {1: rows}, "cache_position": {0: rows}}
    with torch.no_grad():  # strict: the cache is found to be the module's buffers
        _write(torch.export.export(module, (), example, dynamic_shapes=shapes, strict=True), path)


def _round(module: Any, variant: str) -> None:
    """Linear layers, in place."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    if variant == "8da8w":
        quantize_(module, Int8DynamicActivationIntxWeightConfig(torch.int8, PerAxis(0)))
    elif variant == "8da4w":
        quantize_(module, Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(32)))  # type: ignore[attr-defined]


def _write(program: Any, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    with (path / "program.pte").open("wb") as out:
        edge.to_executorch().write_to_file(out)
