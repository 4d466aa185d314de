"""Graphs that ONNX Runtime has optimized once, with its packed matrices in a file that is mapped.

    artifact -> optimized and packed by ONNX Runtime, once -> graph + matrices in the cache folder

A session packs matrices into memory of its own, once for each function of a block. Written by
ONNX Runtime itself they are mapped instead: pages of a file, which the system may drop and read
again, and which functions share whose matrices are equal. What is packed depends on the processor
and on the release, so both are in the name of the folder.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from edgevlm.bundle.cache import build_once
from edgevlm.bundle.files import Bundle, sha256
from edgevlm.bundle.functions import Block
from edgevlm.libraries import processor_lines
from edgevlm.runtimes.on_onnxruntime.library import import_onnxruntime

# Smaller weights stay inside the graph.
LEAST_BYTES = 1024
_PROCESSOR_FIELDS = ("model name", "flags", "Features")  # lines of Linux about the processor


def prepacked_graphs(bundle: Bundle, block: Block, options: Callable[[], Any]) -> Path:
    """Folder with the graph `FUNCTION/BLOCK.onnx` of each function, written if it is not there.

    Args:
        bundle: The bundle; its files are checked.
        block: The block.
        options: Makes settings of a session.

    Raises:
        BundleError: If a file of the block was changed.
        OSError: If the cache folder cannot be written.
    """
    ort = import_onnxruntime()

    files = bundle.files_of(block)
    inside = {path.relative_to(bundle.path).as_posix() for path in files.values()}
    inside |= {entry.path for entry in bundle.weights_of(block)}
    hashes = [f"{f.path} {f.sha256}" for f in bundle.plan.files if f.path in inside]

    def make(work: Path) -> Path:
        folder = work / "made"
        for name, path in files.items():
            _write(path, folder / name, block.name, options())
        _share(folder, block.name)
        return folder

    contents = "\n".join((ort.__version__, processor(), *sorted(hashes)))
    return build_once("onnxruntime", contents, make)


def _write(artifact: Path, folder: Path, name: str, options: Any) -> None:
    """Have ONNX Runtime write what it makes of an artifact."""
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
    """Functions whose matrices are equal get one file."""
    first: dict[str, Path] = {}
    for file in sorted(folder.glob(f"*/{name}.matrices")):
        original = first.setdefault(sha256(file), file)
        if original is not file:
            file.unlink()
            os.link(original, file)


@cache
def processor() -> str:
    """What tells processors apart for which matrices are packed."""
    lines = sorted(x for x in {*processor_lines()} if x.startswith(_PROCESSOR_FIELDS))
    lines = lines or [platform.processor()]
    return f"{platform.system()} {platform.machine()} {lines}"
