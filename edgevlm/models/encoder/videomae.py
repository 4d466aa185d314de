"""VideoMAE (arXiv 2203.12602): a clip in, an embedding or the scores of action classes out.

All tokens of all frames see each other, so a clip of the config's frames is one call: memory is
that of a clip, whatever the length of the video that its frames are taken from.
`VideoMAEForVideoClassification` gives the classes of its config; any other checkpoint the mean of
the encoder's tokens as an embedding, without the decoder of its pre-training. Each frame is resized
until its shorter side fits, and its middle is the view, as the published processor does it.

Limits: square frames; `--frames` is the config's `num_frames`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.graphs.embedders import EmbedderParts
from edgevlm.graphs.parts import EncoderParts
from edgevlm.models.family import EmbedderDescription
from edgevlm.models.shared.embedders import check_norms, square_image
from edgevlm.models.shared.encoders.clips import (
    FirstHead,
    MeanHead,
    TubeletEmbedding,
    VideoMAELayer,
    check_frames,
    class_names,
    clip_frames,
    clip_grid,
    clip_image,
)
from edgevlm.models.shared.preprocessing import check_view, fit
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS, WORDS = "encoder", "VideoMAEModel", False
CLASSIFIER = "VideoMAEForVideoClassification"


def auto_class(config: Any) -> str:
    """What builds the model: with its classifier where the checkpoint has one."""
    return CLASSIFIER if _classifies(config) else AUTO_CLASS


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> EmbedderDescription:
    """Numbers of a VideoMAE checkpoint; see `EmbedderDescription`.

    Raises:
        PlanError: If the recipe has other frames, there is no whole grid of square patches, or the
            processor makes other views.
    """
    side, frames = config.image_size, config.num_frames
    grid = clip_grid(frames, config.tubelet_size, side, config.patch_size)
    check_frames(recipe, frames, "num_frames")
    check_norms(config)
    check_view(processor, side, crops=True)
    shape = fit(processor, crops=True)
    image = square_image(side, processor, 2, 0.5, 0.5, shape)
    classes = class_names(config) if _classifies(config) else ()
    return EmbedderDescription(
        image=clip_image(image, frames),
        encoder=replace(
            encoder_spec(config, config.num_hidden_layers, grid.patches), groups=grid.groups
        ),
        size=len(classes) or config.hidden_size,
        text=None,
        scores="softmax",
        classes=classes,
    )


def parts(model: Any, description: EmbedderDescription) -> EmbedderParts:
    """Static modules over the weights of `model`; see `EmbedderParts`."""
    body = model.videomae if description.classes else model
    embeddings, norm = body.embeddings, body.layernorm or nn.Identity()
    encoder = EncoderParts(
        spec=description.encoder,
        embedding=TubeletEmbedding(
            embeddings.patch_embeddings.projection, embeddings.position_embeddings
        ),
        layers=tuple(VideoMAELayer(layer) for layer in body.encoder.layer),
        connector=_head(model, norm, bool(description.classes)),
        fold=nn.Identity(),
    )
    return EmbedderParts(encoder, None)


def reference_image(model: Any, pixel_values: Tensor, description: EmbedderDescription) -> Tensor:
    """The model's own embeddings, or logits, of clips f32 [P, 3 * F, h_px, w_px]: [P, E]."""
    found = model(clip_frames(pixel_values))
    embedding: Tensor = found.logits if description.classes else found.last_hidden_state.mean(1)
    return embedding


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """A frame f32 [1, 3, h_px, w_px] of the model's own processor."""
    return processor([picture], return_tensors="np")["pixel_values"][0]


def _classifies(config: Any) -> bool:
    return CLASSIFIER in (config.architectures or ())


def _head(model: Any, norm: nn.Module, classifies: bool) -> nn.Module:
    """What makes logits or an embedding of the tokens."""
    if not classifies:
        return MeanHead(norm, nn.Identity())
    if model.fc_norm is None:
        return FirstHead(norm, model.classifier)
    return MeanHead(norm, nn.Sequential(model.fc_norm, model.classifier))
