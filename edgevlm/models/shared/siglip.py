"""What families of a SigLIP encoder with one view share: preprocessing, the encoder's parts."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.parts import EncoderParts, EncoderSpec
from edgevlm.models.shared.embedders import pooled_view, square_image
from edgevlm.models.shared.preprocessing import check_view
from edgevlm.models.shared.towers import TOWERS, known_tower
from edgevlm.models.shared.views import check_one_view
from edgevlm.recipe import Recipe


def one_view(
    config: Any, processor: dict[str, Any], recipe: Recipe, resample: int
) -> tuple[ImageSpec, int]:
    """The picture as one view, and the patches along a side of it.

    Args:
        config: transformers' config.
        processor: The image processor's numbers.
        recipe: What is asked for.
        resample: The family's filter, where the processor names none.

    Raises:
        PlanError: For a clip, tiles, or another encoder.
    """
    vision = config.vision_config
    check_one_view(recipe, config.model_type)
    tower = known_tower(vision, "siglip_vision_model")
    check_view(processor, vision.image_size)
    image = square_image(vision.image_size, processor, resample, tower.mean, tower.std)
    return image, vision.image_size // vision.patch_size


def siglip_parts(
    spec: EncoderSpec, tower: Any, projector: nn.Module, fold: nn.Module
) -> EncoderParts:
    """All layers of the encoder, and its last norm before the projector."""
    return EncoderParts(
        spec=spec,
        embedding=TOWERS["siglip_vision_model"].embedding(tower),
        layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
        connector=nn.Sequential(tower.post_layernorm, projector),
        fold=fold,
    )


def left_out(config: Any, all_layers: bool) -> tuple[str, ...]:
    """Weights of the tower that no token needs: its head."""
    return ("model.vision_tower.head.",)


def reference_features(model: Any, pixel_values: Tensor, description: Any) -> Tensor:
    """The model's own encoder: f32 [P, 3, h_px, w_px] -> [1, P*N, C]."""
    features = model.model.get_image_features(pixel_values, return_dict=True).pooler_output
    return features.reshape(1, -1, features.shape[-1])


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """Options of the model's own processor: it has one view anyway."""
    return {}


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor."""
    return pooled_view(processor, picture)
