"""Wan 2.1 (arXiv 2503.20314): a text in, a video out.

UMT5 reads the text, a transformer over packed latents gives the velocity, a causal video decoder
makes frames, one latent frame after the other. The pipeline's own class in diffusers says how many
steps, how much guidance and what size, unless a recipe does.

Limits: text to video; one denoiser (Wan 2.2's pair and its timesteps by token are refused).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgevlm.bundle.kinds.diffusion import DenoiserShape
from edgevlm.errors import ModelError, PlanError
from edgevlm.graphs.denoising.parts import DiffusionParts
from edgevlm.models.family import TextSpec
from edgevlm.models.shared.diffusion.description import (
    DiffusionDescription,
    asked_frames,
    asked_size,
    tiled,
)
from edgevlm.models.shared.diffusion.t5 import encoder_layers
from edgevlm.models.shared.diffusion.wan_denoiser import (
    WanEmbeddings,
    WanHead,
    WanLayer,
)
from edgevlm.models.shared.diffusion.wan_vae import decoder_parts
from edgevlm.recipe import Recipe

KIND, PIPELINE = "diffusion", "WanPipeline"
# Class of each component, and the prefixes of weights that no bundle uses.
COMPONENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "text_encoder": ("transformers.UMT5EncoderModel", ()),
    "transformer": ("diffusers.WanTransformer3DModel", ()),
    "vae": ("diffusers.AutoencoderKLWan", ("encoder.", "quant_conv.")),
}
TEXT_TOKENS = 512  # max_sequence_length of the pipeline's call


def check(index: dict[str, Any]) -> None:
    """Refuse pipelines of another course.

    Raises:
        ModelError: Naming the key of model_index.json.
    """
    second = index.get("transformer_2")
    if index.get("boundary_ratio") is not None or (second and second != [None, None]):
        raise ModelError("it has two denoisers (Wan 2.2, transformer_2), of which there is no form")
    if index.get("expand_timesteps"):
        raise ModelError("it has a timestep for each token (Wan 2.2, expand_timesteps)")


def describe(
    configs: dict[str, dict[str, Any]], defaults: dict[str, Any], recipe: Recipe
) -> DiffusionDescription:
    """Numbers of a Wan pipeline; see `DiffusionDescription`.

    Raises:
        PlanError: If the size or the number of frames does not divide, or a component has a part
            without a static form.
    """
    text, denoiser, vae = (configs[name] for name in COMPONENTS)
    if denoiser.get("image_dim") or denoiser.get("added_kv_proj_dim"):
        raise PlanError("the denoiser takes a picture too (image to video); it has no form here")
    if vae.get("is_residual") or vae.get("patch_size"):
        raise PlanError("the video decoder is that of Wan 2.2, of which there is no static form")
    for name in ("latents_mean", "latents_std"):
        if len(vae[name]) != vae["z_dim"]:
            raise PlanError(f"vae/config.json: {name} has {len(vae[name])} numbers, expected z_dim")
    temporal = 2 ** sum(bool(each) for each in vae["temperal_downsample"])
    spatial = 2 ** (len(vae["dim_mult"]) - 1)
    patch = tuple(denoiser["patch_size"])
    frames = asked_frames(recipe, defaults, temporal)
    height, width = asked_size(recipe, defaults, spatial * patch[1], spatial * patch[2])
    latents = (vae["z_dim"], (frames - 1) // temporal + 1, height // spatial, width // spatial)
    if max(latents[1] // patch[0], latents[2], latents[3]) > denoiser["rope_max_seq_len"]:
        raise PlanError(
            f"latents of {latents[1]}x{latents[2]}x{latents[3]} have more places on an axis than"
            f" the denoiser's {denoiser['rope_max_seq_len']} (rope_max_seq_len); smaller --size"
        )
    if latents[1] % patch[0]:
        raise PlanError(f"{latents[1]} latent frames are no multiple of {patch[0]}; other --frames")
    tokens = latents[1] * latents[2] * latents[3] // (patch[0] * patch[1] * patch[2])
    return DiffusionDescription(
        text=TextSpec(
            tokens=TEXT_TOKENS,
            layers=text["num_layers"],
            width=text["d_model"],
            vocabulary=text["vocab_size"],
            pad_id=text.get("pad_token_id", 0),
            reads_end=False,
        ),
        denoiser=DenoiserShape(
            latents=latents,
            tokens=tokens,
            width=denoiser["num_attention_heads"] * denoiser["attention_head_dim"],
            layers=denoiser["num_layers"],
            head_size=denoiser["attention_head_dim"],
        ),
        tile=tiled(latents[2:]),
        scale=spatial,
        frames=frames,
        height=height,
        width=width,
        fps=float(defaults.get("fps", 16)),
        steps=recipe.steps or int(defaults["num_inference_steps"]),
        guidance=recipe.guidance or float(defaults["guidance_scale"]),
    )


def complete(model: Any) -> None:
    """Put the tables back that an empty module has no numbers of."""
    rope, config = model.transformer.rope, model.transformer.config
    with torch.device("cpu"):
        model.transformer.rope = type(rope)(
            config.attention_head_dim, tuple(config.patch_size), config.rope_max_seq_len
        )


def parts(model: Any, description: DiffusionDescription) -> DiffusionParts:
    """Static modules over the weights of `model`; see `DiffusionParts`."""
    denoiser, shape = model.transformer, description.denoiser
    begin, end = WanEmbeddings(denoiser, shape.latents), WanHead(denoiser, shape.latents)
    return DiffusionParts(
        text=tuple(encoder_layers(model.text_encoder, description.text.tokens)),
        table=model.text_encoder.shared.weight,
        denoiser=(begin, *map(WanLayer, denoiser.blocks), end),
        vae=tuple(decoder_parts(model.vae)),
    )


def reference_text(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The pipeline's own embeddings of ids [n, S], rows of padding zero: [n, S, Ct]."""
    hidden: Tensor = model.text_encoder(ids, mask).last_hidden_state
    return hidden * mask.unsqueeze(-1)


def reference_velocity(model: Any, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    """The denoiser's own velocity [1, C, F, h, w]."""
    velocity: Tensor = model.transformer(latents, timestep, text, return_dict=False)[0]
    return velocity


def reference_frames(model: Any, latents: Tensor) -> Tensor:
    """The video decoder's own frames of latents, from -1 to 1: [1, 3, F, h_px, w_px]."""
    config = model.vae.config
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    frames: Tensor = model.vae.decode(latents * std + mean, return_dict=False)[0]
    return frames
