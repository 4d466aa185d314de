"""V-JEPA 2 (arXiv 2506.09985): a clip in, an embedding or the scores of action classes out.

All tokens of all frames see each other, so a clip of `--frames` is one call: memory is that of a
clip, whatever the length of the video that its frames are taken from. A checkpoint of
`VJEPA2ForVideoClassification` gives the classes of its config by its attentive pooler, one of
`VJEPA2Model` the mean of the encoder's tokens as an embedding; neither has the predictor of the
training. A frame is resized until its shorter side has 256/224 of a view's, and its middle is the
view, as the published processor does it, which needs torchvision; without it `verify` does not
compare with it.

Limits: `--frames` is the config's `frames_per_clip`. Tokens do not merge between layers, since
queries and keys turn by their places.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.graphs.embedders import EmbedderParts
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.parts import EncoderParts
from edgevlm.models.family import EmbedderDescription
from edgevlm.models.shared.embedders import check_norms, square_image
from edgevlm.models.shared.encoders.clips import (
    ClipGrid,
    MeanHead,
    TubeletEmbedding,
    check_frames,
    class_names,
    clip_frames,
    clip_grid,
    clip_image,
)
from edgevlm.models.shared.encoders.vjepa2 import (
    UNMERGEABLE,
    AfterNorm,
    ClipTables,
    PoolerHead,
    VJEPA2Layer,
)
from edgevlm.models.shared.preprocessing import check_crop
from edgevlm.models.shared.towers import IMAGENET_MEAN, IMAGENET_STD, encoder_spec
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS, WORDS = "encoder", "VJEPA2Model", False
CLASSIFIER = "VJEPA2ForVideoClassification"


def auto_class(config: Any) -> str:
    """What builds the model: with its classifier where the checkpoint has one."""
    return CLASSIFIER if _classifies(config) else AUTO_CLASS


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> EmbedderDescription:
    """Numbers of a V-JEPA 2 checkpoint; see `EmbedderDescription`.

    Raises:
        PlanError: If the recipe has other frames, there is no whole grid of square patches, or the
            processor makes other views.
    """
    side, frames, grid = config.crop_size, config.frames_per_clip, _grid(config)
    check_frames(recipe, frames, "frames_per_clip")
    check_norms(config)
    numbers = processor.get("video_processor", processor)
    check_crop(numbers, side)
    image = square_image(side, numbers, 2, IMAGENET_MEAN, IMAGENET_STD, "crop")
    classes = class_names(config) if _classifies(config) else ()
    layers = config.num_hidden_layers + (config.num_pooler_layers if classes else 0)
    return EmbedderDescription(
        image=replace(clip_image(image, frames), shorter=int(side * 256 / 224)),
        encoder=replace(encoder_spec(config, layers, grid.patches), unmergeable=UNMERGEABLE),
        size=len(classes) or config.hidden_size,
        text=None,
        scores="softmax",
        classes=classes,
    )


def parts(model: Any, description: EmbedderDescription) -> EmbedderParts:
    """Static modules over the weights of `model`; see `EmbedderParts`."""
    body, spec = (model.vjepa2 if description.classes else model).encoder, description.encoder
    layers, norm = [VJEPA2Layer(layer) for layer in body.layer], body.layernorm
    pooled: list[nn.Module] = []
    if description.classes:
        pooled = [EncoderLayer(layer) for layer in model.pooler.self_attention_layers]
        pooled[:1] = [AfterNorm(norm, layer) for layer in pooled[:1]]
        norm = nn.Identity() if pooled else norm
        head: nn.Module = PoolerHead(norm, model.pooler, model.classifier)
    else:
        head = MeanHead(norm, nn.Identity())
    encoder = EncoderParts(
        spec=spec,
        embedding=TubeletEmbedding(body.embeddings.patch_embeddings.proj),
        layers=(*layers, *pooled),
        connector=head,
        fold=nn.Identity(),
        grid=ClipTables(_grid(model.config), spec.head_size),
    )
    return EmbedderParts(encoder, None)


def left_out(config: Any, all_layers: bool) -> tuple[str, ...]:
    """Weights of the model that no bundle uses: those of its predictor."""
    return ("vjepa2.predictor.", "predictor.")


def reference_image(model: Any, pixel_values: Tensor, description: EmbedderDescription) -> Tensor:
    """The model's own embeddings, or logits, of clips f32 [P, 3 * F, h_px, w_px]: [P, E]."""
    frames = clip_frames(pixel_values)
    embedding: Tensor = (
        model(frames).logits if description.classes else model.get_vision_features(frames).mean(1)
    )
    return embedding


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """A frame f32 [1, 3, h_px, w_px] of the model's own video processor."""
    return processor([[picture]], return_tensors="np")["pixel_values_videos"][0]


def _classifies(config: Any) -> bool:
    return CLASSIFIER in (config.architectures or ())


def _grid(config: Any) -> ClipGrid:
    frames, side = config.frames_per_clip, config.crop_size
    return clip_grid(frames, config.tubelet_size, side, config.patch_size)
