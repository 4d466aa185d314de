"""Find a checkpoint and read it: safetensors and JSON only, no pickle, no code from the checkpoint.

The weights are read once, tensor by tensor, into the model that transformers builds without memory
(meta device); nothing holds a second copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig

from edgevlm.errors import ModelError, unknown_name
from edgevlm.libraries import first_line, silent
from edgevlm.models.documents import check_processor, check_sizes, read_json
from edgevlm.recipe import Recipe
from edgevlm.registry import FAMILIES

EMBEDDED = "embedded"
# Keys of tokens that stand for images; a family reads them beside the processor's numbers.
IMAGE_TOKENS = ("image_token", "video_token", "fake_image_token", "global_image_token")
WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that can be read; no weight is loaded yet."""

    model: str
    revision: str | None
    folder: Path
    config: Any
    family: ModuleType

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture, which is the family's."""
        return str(self.config.model_type)

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
        return read_json(path) if path.is_file() else {}

    def processor(self) -> dict[str, Any]:
        """The image processor's numbers, wherever this checkpoint's version keeps them.

        Raises:
            ModelError: If one of them has no meaning.
        """
        numbers = self.document("processor_config.json").get("image_processor")
        if not numbers or not isinstance(numbers, dict):
            numbers = self.document("preprocessor_config.json")
        check_processor(numbers, f"'{self.model}': the image processor's")
        return numbers

    def image_tokens(self) -> dict[str, str]:
        """Tokens that stand for images, where this checkpoint names its own, by their keys.

        The tokenizer's come first, as in transformers' processors.
        """
        special = self.document("tokenizer_config.json")
        more = special.get("extra_special_tokens")
        named: dict[str, str] = {}
        for source in (self.document("processor_config.json"), more, special):
            for key, value in source.items() if isinstance(source, dict) else ():
                token = value.get("content") if isinstance(value, dict) else value
                if key in IMAGE_TOKENS and isinstance(token, str) and token:
                    named[key] = token
        return named

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

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of tokenizer.json.

        Raises:
            ModelError: If the file holds none.
        """
        try:
            return Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception as cause:  # the library raises Exception itself
            raise ModelError(f"'{self.model}': tokenizer.json is not valid: {cause}") from cause

    def describe(self, recipe: Recipe) -> Any:
        """The family's description of this checkpoint for a recipe.

        Raises:
            ModelError: If the config lacks what the family reads.
            PlanError: If the family has no static form for what the recipe or the config asks.
        """
        try:
            with _quiet():  # a family imports its classes from transformers
                numbers = self.processor() | self.image_tokens()
                return self.family.describe(self.config, numbers, recipe)
        except (AttributeError, TypeError, KeyError, ZeroDivisionError) as cause:
            raise ModelError(
                f"'{self.model}': config.json does not match its family: {cause}"
            ) from cause

    def number(self, name: str) -> float:
        """A weight that is one number, of which the rest of the file is not read.

        Raises:
            ModelError: If there is none of this name, or it is no number.
        """
        try:
            for path in self._weight_files():
                file: Any = safe_open(path, "pt", backend="pread")
                if name in file.keys():  # noqa: SIM118
                    return float(file.get_tensor(name).float().item())
        except Exception as cause:
            line = first_line(cause)
            raise ModelError(f"'{self.model}': '{name}' cannot be read: {line}") from cause
        raise ModelError(f"'{self.model}' lacks the weight '{name}'")

    @property
    def _auto_class(self) -> Any:
        """The class of transformers that builds models of this family's kind."""
        return getattr(transformers, self.family.AUTO_CLASS)

    def _weight_files(self) -> list[Path]:
        """The one file of weights, or the ones that the index names."""
        single = self.folder / "model.safetensors"
        if single.is_file():
            return [single]
        file_of = self.document("model.safetensors.index.json").get("weight_map")
        names = set(file_of.values()) if isinstance(file_of, dict) else set()
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
                model = self._auto_class.from_config(self.config, dtype=torch.float32)
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
    document = read_json(folder / "config.json")
    name = str(document.get("model_type"))
    if name not in FAMILIES.names():
        raise ModelError(f"'{model}': {unknown_name('model family', name, FAMILIES.names())}")
    if "auto_map" in document:
        raise ModelError(
            f"'{model}' needs remote code (auto_map), which is not run; use a plain checkpoint"
        )
    check_sizes(document, f"'{model}': config.json")
    if not list(folder.glob("*.safetensors")):
        pickles = [*sorted(folder.glob("*.bin")), *sorted(folder.glob("*.pt*"))]
        only = f", only {pickles[0].name}" if pickles else ""
        raise ModelError(
            f"'{model}' has no *.safetensors file{only}; convert it with"
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
            f"'{model}' is not a folder and cannot be downloaded: {first_line(cause)}"
        ) from cause


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
