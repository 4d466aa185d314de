"""Graphs that ONNX Runtime optimized once, with packed matrices in a memory-mapped file.

    artifact -> optimized and packed by ONNX Runtime, once -> graph + matrices in the cache folder

A session packs matrices into its own memory, once for each function of a block. Written by ONNX
Runtime to a file they are mapped instead: the system may drop and read their pages again, and
functions with equal matrices share them. Packing depends on the processor and on the release, so
both are part of the folder's name.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from edgevlm.bundle.cache import sha256
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.functions import Block
from edgevlm.libraries import processor_lines, processor_name
from edgevlm.runtimes.built import build_once, is_built
from edgevlm.runtimes.on_onnxruntime.library import import_onnxruntime

# Smaller weights stay inside the graph.
LEAST_BYTES = 1024
KIND = "onnxruntime"  # folder of the cache
_PROCESSOR_FIELDS = ("model name", "flags", "Features")  # of /proc/cpuinfo


def prepacked_graphs(bundle: Bundle, block: Block, options: Callable[[], Any]) -> Path:
    """Folder with the graph `FUNCTION/BLOCK.onnx` of each function, built at first use.

    Args:
        bundle: The bundle; the hashes of its files are checked.
        block: The block.
        options: Returns new settings of a session.

    Raises:
        BundleError: If a file of the block was changed.
        OSError: If the cache folder cannot be written.
    """
    files = bundle.files_of(block)

    def make(work: Path) -> Path:
        folder = work / "made"
        for name, path in files.items():
            _write(path, folder / name, block.name, options())
        _share(folder, block.name)
        return folder

    return build_once(KIND, _contents(bundle, block), make)


def is_prepacked(bundle: Bundle, block: Block) -> bool:
    """Whether `prepacked_graphs` has nothing to build."""
    return is_built(KIND, _contents(bundle, block))


def _contents(bundle: Bundle, block: Block) -> str:
    """Text that identifies what is built: the release, the processor, and the block's files."""
    inside = {f.file for f in block.functions} | {e.path for e in bundle.weights_of(block)}
    hashes = [f"{f.path} {f.sha256}" for f in bundle.plan.files if f.path in inside]
    return "\n".join((import_onnxruntime().__version__, processor(), *sorted(hashes)))


def _write(artifact: Path, folder: Path, name: str, options: Any) -> None:
    """Have ONNX Runtime write the optimized graph of an artifact."""
    ort = import_onnxruntime()

    folder.mkdir(parents=True)
    for key, value in (
        ("save_external_prepacked_constant_initializers", "1"),
        ("optimized_model_external_initializers_file_name", f"{name}.matrices"),
        ("optimized_model_external_initializers_min_size_in_bytes", str(LEAST_BYTES)),
    ):
        options.add_session_config_entry(f"session.{key}", value)
    options.optimized_model_filepath = str(folder / f"{name}.onnx")
    ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])


def _share(folder: Path, name: str) -> None:
    """Link equal matrix files of functions to one file."""
    first: dict[str, Path] = {}
    for file in sorted(folder.glob(f"*/{name}.matrices")):
        original = first.setdefault(sha256(file), file)
        if original is not file:
            file.unlink()
            os.link(original, file)


@cache
def processor() -> str:
    """Text that identifies a kind of processor, as far as packing depends on it."""
    lines = sorted(x for x in {*processor_lines()} if x.startswith(_PROCESSOR_FIELDS))
    lines = lines or [processor_name()]
    return f"{platform.system()} {platform.machine()} {lines}"
