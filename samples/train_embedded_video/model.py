"""The parts of the embedded text-to-video model: diffusers' Wan, small."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from edgevlm.evaluation.videos import shapes

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
LATENT, TEXT, WIDTH, HEADS, LAYERS = 8, 96, 192, 4, 6
WEIGHTS = "diffusion_pytorch_model.safetensors"
SHIFT = 3.0  # as Wan 2.1 ships for small frames


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the prompts; every other word is unknown. Ends each text as T5's does."""
    texts = [p.text for held in (False, True) for p in shapes.prompts(held_out=held)]
    texts += [f"the on a {ground} background" for ground in shapes.GROUNDS]
    words = [PAD, END, UNKNOWN, *sorted({word for text in texts for word in text.split()})]
    ids = {word: index for index, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="right",
        model_max_length=512,
    )


def build_encoder(words: int) -> UMT5EncoderModel:
    """Text encoder: two layers of UMT5."""
    config = UMT5Config(
        vocab_size=words,
        d_model=TEXT,
        d_kv=24,
        d_ff=2 * TEXT,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    return UMT5EncoderModel(config)


def build_transformer() -> WanTransformer3DModel:
    """Denoiser: a token is 2x2 latents, so a clip of 64x64 pixels and 21 frames has 6x4x4."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=LATENT,
        out_channels=LATENT,
        text_dim=TEXT,
        freq_dim=128,
        ffn_dim=4 * WIDTH,
        num_layers=LAYERS,
        rope_max_seq_len=64,
    )


def build_vae(mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    """Autoencoder: 8x8 pixels and 4 frames (1 at the start) become one latent."""
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=LATENT,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=mean or [0.0] * LATENT,
        latents_std=std or [1.0] * LATENT,
    )


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps along the flow."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def pipeline(encoder: nn.Module, transformer: nn.Module, vae: nn.Module) -> WanPipeline:
    """All parts as diffusers runs them."""
    made = WanPipeline(build_tokenizer(), encoder, vae, scheduler(), transformer)
    made.set_progress_bar_config(disable=True)
    return made


def write(made: WanPipeline, folder: Path) -> None:
    """The folder that `WanPipeline.from_pretrained` loads; float16, the text encoder float32."""
    made.save_pretrained(folder, safe_serialization=True)
    for part in ("transformer", "vae"):
        path = folder / part / WEIGHTS
        small = {name: value.half() for name, value in load_file(path).items()}
        save_file(small, path, metadata={"format": "pt"})


def load(folder: Path) -> WanPipeline:
    """`WanPipeline.from_pretrained` in float32, which asks for accelerate; this does not."""
    parts = []
    for kind, name in ((WanTransformer3DModel, "transformer"), (AutoencoderKLWan, "vae")):
        part = kind.from_config(kind.load_config(folder / name))
        part.load_state_dict(load_file(folder / name / WEIGHTS))
        parts.append(part.eval())
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    return pipeline(encoder, *parts)


def save(content: dict, path: Path) -> None:
    """Keep a state, complete or not at all."""
    part = path.with_suffix(".new")
    torch.save(content, part)
    os.replace(part, path)
