"""Find a checkpoint and read it: safetensors and JSON only, no pickle, no code from the checkpoint.

The weights are read once, tensor by tensor, into the model that transformers builds without memory
(meta device); nothing holds a second copy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText

from edgevlm.errors import ModelError, unknown_name
from edgevlm.libraries import first_line, silent
from edgevlm.registry import FAMILIES

EMBEDDED = "embedded"
# The most that a config may say.
SIZES = {
    "head_dim": 2**16, "hidden_size": 2**20, "image_size": 2**16, "intermediate_size": 2**20,
    "max_position_embeddings": 2**24, "num_attention_heads": 2**12, "num_hidden_layers": 2**10,
    "num_key_value_heads": 2**12, "patch_size": 2**16, "scale_factor": 2**10, "vocab_size": 2**24,
}  # fmt: skip
WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that was found to be readable; no weight is loaded yet."""

    model: str
    revision: str | None
    folder: Path
    config: Any
    family: ModuleType

    @property
    def config_hash(self) -> str:
        """sha256 of config.json."""
        return hashlib.sha256((self.folder / "config.json").read_bytes()).hexdigest()

    @property
    def contents(self) -> str:
        """A line that changes when a weight file does: names, sizes and times."""
        files = sorted(self.folder.glob("*.safetensors"))
        states = [(path, path.stat()) for path in files]
        return " ".join(f"{p.name}:{s.st_size}:{s.st_mtime_ns}" for p, s in states)

    def document(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, or an empty one."""
        path = self.folder / name
        return _read_json(path) if path.is_file() else {}

    def processor(self) -> dict[str, Any]:
        """The image processor's numbers, wherever this checkpoint's version keeps them.

        Raises:
            ModelError: If one of them has no meaning.
        """
        nested = self.document("processor_config.json").get("image_processor")
        found = (
            nested
            if nested and isinstance(nested, dict)
            else (self.document("preprocessor_config.json"))
        )
        _check_processor(found, f"'{self.model}': the image processor's")
        return found

    def chat_template(self) -> str | None:
        """The chat template, from any of the three places where checkpoints keep it."""
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text("utf-8")
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            template = self.document(name).get("chat_template")
            if isinstance(template, str):
                return template
        return None

    def _weight_files(self) -> list[Path]:
        """The one file of weights, or the ones that the index names."""
        whole = self.folder / "model.safetensors"
        if whole.is_file():
            return [whole]
        places = self.document("model.safetensors.index.json").get("weight_map")
        names = set(places.values()) if isinstance(places, dict) else set()
        if not names or any(Path(str(name)).name != name for name in names):
            raise ModelError(
                "expected model.safetensors, or model.safetensors.index.json with the names of"
                " files beside it"
            )
        return [self.folder / name for name in sorted(names)]

    def empty_model(self) -> Any:
        """The model without memory for weights, for counting.

        Raises:
            ModelError: If the config describes no model.
        """
        try:
            with _quiet(), torch.device("meta"):
                model = AutoModelForImageTextToText.from_config(self.config, dtype=torch.float32)
        except Exception as cause:  # sizes that do not go together raise anything
            line = first_line(cause)
            raise ModelError(f"'{self.model}': config.json makes no model: {line}") from cause
        return model.eval()

    def load_model(self) -> Any:
        """The model with float32 weights.

        Each tensor is read when it is its turn: of a mapped file, all pages would stay in memory
        until the last one is.

        Raises:
            ModelError: If a weight file is damaged, or weights are missing.
        """
        kind = type(self.empty_model())
        with _quiet():
            try:
                tensors: dict[str, Any] = {}
                for path in self._weight_files():
                    file: Any = safe_open(path, "pt", backend="pread")
                    tensors |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                model, report = kind.from_pretrained(
                    None,
                    config=self.config,
                    state_dict=tensors,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
            except Exception as cause:
                line = first_line(cause)
                raise ModelError(f"'{self.model}' cannot be loaded: {line}") from cause
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelError(
                f"'{self.model}' lacks {len(missing)} weights, the first is '{missing[0]}'"
            )
        return model.eval().requires_grad_(False)


def find(model: str, revision: str | None = None) -> Checkpoint:
    """Resolve `embedded`, a folder or a hub id to a checkpoint folder and check it.

    Raises:
        ModelError: If it is not there, not readable, unsafe or of an unknown family.
    """
    folder = _folder(model, revision)
    if not (folder / "config.json").is_file():
        raise ModelError(f"'{model}' has no config.json; expected a Hugging Face checkpoint folder")
    document = _read_json(folder / "config.json")
    name = str(document.get("model_type"))
    if name not in FAMILIES.names():
        raise ModelError(f"'{model}': {unknown_name('model family', name, FAMILIES.names())}")
    if "auto_map" in document:
        raise ModelError(
            f"'{model}' wants to run its own code (auto_map); only plain checkpoints are read"
        )
    _check_sizes(document, f"'{model}': config.json")
    if not list(folder.glob("*.safetensors")):
        other = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt*")
        )
        found = f", only {other[0]}" if other else ""
        raise ModelError(
            f"'{model}' has no *.safetensors file{found}; convert it with"
            " transformers' save_pretrained (pickles are not read)"
        )
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"'{model}' has no tokenizer.json; save a fast tokenizer into the folder")
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as cause:
        raise ModelError(f"'{model}': config.json is not valid: {first_line(cause)}") from cause
    return Checkpoint(model, revision, folder, config, FAMILIES.load(name))


def _folder(model: str, revision: str | None) -> Path:
    if model == EMBEDDED:
        return Path(__file__).resolve().parent.parent / "embedded"
    path = Path(os.path.expanduser(model))  # an unknown ~user stays as it is
    if path.is_dir():
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or model.endswith("/"):
        raise ModelError(
            f"no model '{model}': expected a folder, a hub id like OWNER/NAME, or '{EMBEDDED}'"
        )
    # Imported here: a local folder needs no network code.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=WANTED))
    except Exception as cause:
        raise ModelError(
            f"'{model}' is no folder and cannot be downloaded: {first_line(cause)}"
        ) from cause


def _check_sizes(document: dict[str, Any], where: str) -> None:
    """Refuse sizes that no model has, before anything is built from them."""
    for key, value in document.items():
        if isinstance(value, dict):
            _check_sizes(value, f"{where}: {key}")
        elif key in SIZES and isinstance(value, int) and not 1 <= value <= SIZES[key]:
            raise ModelError(f"{where}: {key} is {value}, expected 1 to {SIZES[key]}")


def _check_processor(document: dict[str, Any], where: str) -> None:
    """Refuse a mean, deviation or filter that pixels cannot be normalized with."""
    for key in ("image_mean", "image_std"):
        value = document.get(key, 0.5)
        values = value if isinstance(value, list) else [value] * 3
        good = len(values) == 3 and all(type(v) in (int, float) for v in values)
        if not good or (key == "image_std" and min(values) <= 0):
            raise ModelError(f"{where} {key} is {value!r}, expected a number or three")
    value = document.get("resample", 1)
    if type(value) is not int or not 0 <= value <= 5:
        raise ModelError(f"{where} resample is {value!r}, expected 0 to 5")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as cause:
        raise ModelError(f"{path.name} of the checkpoint is not valid JSON: {cause}") from cause
    if not isinstance(document, dict):
        raise ModelError(f"{path.name} of the checkpoint must be a JSON object")
    return document


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' progress bars and advice, and torchao's beneath it, would mix with ours."""
    bars = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    # Imported here because it configures logging at import.
    from transformers.utils import logging as hf_logging

    active = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with silent():
            yield
    finally:
        if active:
            hf_logging.enable_progress_bar()
        if bars is not None:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = bars
