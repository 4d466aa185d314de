"""Write a folder of a diffusers pipeline with seeded random weights, to try every command offline.

    python samples/make_pipeline.py --like wan2.1-1.3b OUT [--seed 0] [--layers N] [--text-layers N]

`tiny-wan` is for tests. `wan2.1-1.3b` has the published widths of Wan 2.1 T2V 1.3B in bfloat16;
with `--layers` and `--text-layers` the first layers of denoiser and text encoder alone. Its
videos are noise, at the speed of the real ones. The tokenizer is one of words, trained on nothing.

Numbers of a tensor are drawn from normal(0, 1 / sqrt(fan in)), millions at a time; norms are 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "a the red blue green yellow white black circle square triangle moves left right up down"
CHUNK = 1 << 22  # numbers drawn at a time
SHORT = {"float32": "F32", "bfloat16": "BF16"}
VAE = {
    "z_dim": 16, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True],
    "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "tiny-wan": {
        "dtype": "float32",
        "text_encoder": {
            "vocab_size": 32, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        },
        "transformer": {
            "num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4,
            "out_channels": 4, "text_dim": 32, "freq_dim": 32, "ffn_dim": 64, "num_layers": 3,
            "rope_max_seq_len": 64,
        },
        "vae": {
            **VAE, "base_dim": 8, "z_dim": 4, "num_res_blocks": 1,
            "latents_mean": [0.1, 0.2, -0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5],
        },
    },
    "wan2.1-1.3b": {
        "dtype": "bfloat16",
        "text_encoder": {
            "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
            "num_heads": 64,
        },
        "transformer": {
            "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960,
            "num_layers": 30,
        },
        "vae": VAE,
    },
}  # fmt: skip
SCHEDULERS = {
    "unipc": ("UniPCMultistepScheduler", {
        "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0,
    }),
    "euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}  # fmt: skip


def make_pipeline(
    like: str,
    out: Path,
    seed: int = 0,
    scheduler: str = "unipc",
    layers: int | None = None,
    text_layers: int | None = None,
) -> Path:
    """Write the folder of a preset, complete or not at all.

    Raises:
        FileExistsError: If something is there.
    """
    if out.exists():
        raise FileExistsError(f"'{out}' exists: choose another folder")
    preset, partial = PRESETS[like], out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    text = {"model_type": "umt5", "is_encoder_decoder": False, **preset["text_encoder"]}
    denoiser = {**preset["transformer"]}
    text["num_layers"] = text_layers or text["num_layers"]
    denoiser["num_layers"] = layers or denoiser["num_layers"]
    with torch.device("meta"):
        parts = {
            "text_encoder": transformers.UMT5EncoderModel(transformers.UMT5Config(**text)),
            "transformer": diffusers.WanTransformer3DModel(**denoiser),
            "vae": diffusers.AutoencoderKLWan(**preset["vae"]),
        }
    for name, module in parts.items():
        (partial / name).mkdir(parents=True)
        module.config.save_pretrained(partial / name) if name == "text_encoder" else (
            module.save_config(partial / name)
        )
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        write_weights(partial / name / f"{stem}.safetensors", module, preset["dtype"], seed)
    kind, options = SCHEDULERS[scheduler]
    getattr(diffusers, kind)(**options).save_pretrained(partial / "scheduler")
    write_tokenizer(partial / "tokenizer")
    index = {
        "_class_name": "WanPipeline", "boundary_ratio": None, "expand_timesteps": False,
        "scheduler": ["diffusers", kind], "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"], "transformer_2": [None, None],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }  # fmt: skip
    (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    partial.rename(out)
    return out


def write_weights(path: Path, module: torch.nn.Module, dtype: str, seed: int) -> None:
    """Write the weights of an empty module, each drawn by a generator of its own name."""
    kind = getattr(torch, dtype)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * kind.itemsize
        header[name] = {"dtype": SHORT[dtype], "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in shapes.items():
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
            for start in range(0, math.prod(shape), CHUNK):
                count = min(CHUNK, math.prod(shape) - start)
                numbers = generator.standard_normal(count, np.float32) * _deviation(name, shape)
                numbers += np.float32("norm" in name and not name.endswith("bias"))
                file.write(torch.from_numpy(numbers).to(kind).view(torch.uint8).numpy().data)


def _deviation(name: str, shape: tuple[int, ...]) -> np.float32:
    if "norm" in name or name.endswith("bias") or "gamma" in name:
        return np.float32(0.05)
    if "shared" in name or "relative_attention_bias" in name:
        return np.float32(1)
    return np.float32(1 / math.sqrt(math.prod(shape[1:]) or 1))


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of a few words, with T5's special tokens."""
    words = ["<pad>", "</s>", "<unk>", *WORDS.split()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--like", choices=sorted(PRESETS), required=True)
    parser.add_argument("--scheduler", choices=sorted(SCHEDULERS), default="unipc")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--text-layers", type=int)
    asked = parser.parse_args()
    try:
        make_pipeline(
            asked.like, asked.out, asked.seed, asked.scheduler, asked.layers, asked.text_layers
        )
    except FileExistsError as cause:
        sys.exit(str(cause))


if __name__ == "__main__":
    main()
