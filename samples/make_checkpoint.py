"""Write a Hugging Face checkpoint folder with seeded random weights, to try every command offline.

    python samples/make_checkpoint.py --like smolvlm-256m OUT [--seed 0] [--force]

The folder has the published architecture at its true size (or a tiny one of the same family), a
tokenizer trained on the spot on the text of Python's standard library, and the family's image
processor and chat template. It answers nonsense, at the speed of the real one. SigLIP, SigLIP 2 and
CLIP have no chat template: they give embeddings of images and of texts. VideoMAE has no tokenizer
either: it gives scores of classes of clips.

`checkpoints/` beside this file has a file a family. Limits: same bytes for the same seed, Python
(its texts train the tokenizer) and numpy generator; but the words of CLIP's and SigLIP's tokenizers
may have other ids each time, for their training has no fixed order.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import checkpoints
from checkpoints.shared.weights import write_weights

FAMILIES = {
    info.name: import_module(f"checkpoints.{info.name}")
    for info in iter_modules(checkpoints.__path__)
    if not info.ispkg
}
# The family of each preset.
PRESETS: dict[str, ModuleType] = {
    name: family for family in FAMILIES.values() for name in family.PRESETS
}


def make_checkpoint(like: str, out: Path, seed: int = 0, force: bool = False) -> Path:
    """Write the checkpoint folder `out` of the preset `like`, complete or not at all.

    Raises:
        FileExistsError: `out` exists and `force` is not set.
    """
    if out.exists() and not force:
        raise FileExistsError(f"'{out}' exists: choose another folder, or add --force")
    family = PRESETS[like]
    preset = family.PRESETS[like]
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer = family.tokenizer(preset)
    config = family.config(preset, tokenizer)
    if tokenizer is not None:
        tokenizer.save(str(partial / "tokenizer.json"))
    for name, content in {"config.json": config, **family.files(preset, config)}.items():
        write_file(partial / name, content)
    weights, constants = partial / "model.safetensors", preset.get("constants")
    write_weights(weights, config, family, tokenizer, seed, constants)
    if out.exists():
        shutil.rmtree(out)
    return partial.rename(out)


def write_file(path: Path, content: dict | str) -> None:
    """Write a text, or indented JSON with sorted keys."""
    if not isinstance(content, str):
        content = json.dumps(content, indent=2, sort_keys=True) + "\n"
    path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--like", required=True, choices=PRESETS, help="which model to imitate")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="other seed, other weights (default 0)")
    parser.add_argument("--force", action="store_true", help="replace the folder if it exists")
    arguments = parser.parse_args()
    try:
        print(make_checkpoint(**vars(arguments)))
    except FileExistsError as error:
        sys.exit(str(error))
    except ImportError as error:  # an encoder of timm, which needs the torchvision made for torch
        shutil.rmtree(arguments.out.with_name(arguments.out.name + ".partial"))
        sys.exit(f"--like {arguments.like}: {' '.join(str(error).split())}")
