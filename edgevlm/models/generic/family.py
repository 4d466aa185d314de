"""A model type without a family file: transformers' own encoder traced as it is, a known decoder.

The checkpoint's processor tells the view and the text of a picture, a trace of `get_image_features`
the visual tokens, `shared.llama` the decoder. No model is known here. Where visual tokens go, their
positions and who sees whom are taken to be as in LLaVA; when a bundle is verified the model's own
forward of a picture and a question is compared with that (`reference_logits`).

Limits: one picture, one view of one size; the encoder is one block, so methods that read or change
its layers are refused; visual tokens are a row, for no config says in which grid they stand.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.family import Description
from edgevlm.models.generic.encoder import Features, features_shape, over, traced
from edgevlm.models.generic.refusal import explained
from edgevlm.models.generic.view import one_view
from edgevlm.models.processor import load_processor, load_tokenizer
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.towers import whole_spec
from edgevlm.models.shared.views import check_one_view
from edgevlm.models.weights.loading import built
from edgevlm.models.weights.sources import NoWeights
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
WHOLE = "the generic path takes the encoder as one piece"


@dataclass(frozen=True)
class Traced(Description):
    """A description with what was found out on the way to it.

    Attributes:
        encoder_trace: Of `get_image_features` for the view, without weights.
        exact: Whether our view is that of the processor whatever a picture's shape.
    """

    encoder_trace: Any = field(default=None, compare=False, repr=False)
    exact: bool = True


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Traced:
    """Numbers of a checkpoint of any type; see `Description`.

    Raises:
        PlanError: For tiles or a clip, or naming what the generic path cannot take.
    """
    check_one_view(recipe, shown(config.model_type))
    with explained(config, KIND):
        decoder, own = decoder_spec(config.get_text_config()), _processor(config)
        image, exact = one_view(own)
        empty = built(AUTO_CLASS, config).eval()
        trace = traced(empty, image.height, image.width)
        tokens, width = features_shape(trace)
        if width != decoder.width:
            raise PlanError(
                f"its encoder gives {width} channels, its language model reads {decoder.width}"
            )
        mark = str(own.tokenizer.convert_ids_to_tokens(config.image_token_id))
        items = _items(own, image, mark, tokens)
    return Traced(
        image=image,
        view_tokens=tokens,
        shape=VisualShape(((1, tokens),), width),
        encoder=whole_spec(tokens, width, WHOLE),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=own.image_token,
        visual_token=mark if mark != own.image_token else "",
        encoder_trace=trace,
        exact=exact,
    )


def parts(model: Any, description: Traced) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`.

    Raises:
        PlanError: If its language model or its head is not as transformers has them.
    """
    spec = description.encoder
    with explained(model.config, KIND):
        encoder = over(description.encoder_trace, model)
        head, language_model = model.get_output_embeddings(), model.get_decoder()
        if head.bias is not None:
            raise PlanError("its output head has a bias")
        return ModelParts(
            encoder=EncoderParts(spec, encoder, (), nn.Identity(), nn.Identity()),
            pack=nn.Identity(),
            decoder=decoder_parts(language_model, description.decoder),
            table=(language_model.get_input_embeddings().weight,),
            head=head.weight,
        )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [1, 3, h_px, w_px] -> [1, N, C]."""
    return Features(model)(pixel_values)


def reference_logits(
    model: Any, pixel_values: Tensor, ids: Tensor, description: Description
) -> Tensor:
    """The model's own forward: a view f32 [1, 3, h_px, w_px], ids i64 [1, S] -> scores [S, V].

    Raises:
        PlanError: If it does not run on these two alone.
    """
    mask = torch.ones_like(ids)
    with explained(model.config, KIND):
        scores: Tensor = model(input_ids=ids, pixel_values=pixel_values, attention_mask=mask).logits
    return scores[0]


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """None: its processor makes one view of every picture, or the type is refused."""
    return {}


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor."""
    return np.asarray(processor(picture, return_tensors="np")["pixel_values"])


def shown(model_type: str) -> str:
    """What a plan and a manifest call the family."""
    return f"{model_type}, by the generic path"


def notes(config: Any, description: Traced) -> tuple[str, ...]:
    """What a reader of a plan must know."""
    first = (
        f"generic path: '{config.model_type}' has no family file; its encoder is one block, and the"
        " verification of an export says whether the rest is as in transformers"
    )
    image = description.image
    if description.exact:
        return (first,)
    return first, (
        f"a picture is stretched to {image.width}x{image.height} pixels; of one that is not square"
        " the checkpoint's own processor makes something else"
    )


def _processor(config: Any) -> Any:
    """The checkpoint's own processor.

    Raises:
        PlanError: If no token stands for a picture in its texts.
    """
    folder, this = Path(config.name_or_path), sys.modules[__name__]
    checkpoint = Checkpoint(folder.name, None, folder, config, this, NoWeights("", ""))
    own = load_processor(checkpoint, load_tokenizer(checkpoint))
    if getattr(own, "image_token", None) is None:
        raise PlanError(f"{type(own).__name__} has no image_token")
    return own


def _items(own: Any, image: ImageSpec, mark: str, tokens: int) -> tuple[str | LayoutItem, ...]:
    """What a processor writes for a picture: visual tokens `mark`, and text beside them.

    Raises:
        PlanError: If there are not as many as the encoder gives.
    """
    picture = Image.new("RGB", (image.width, image.height))
    made = own(text=own.image_token, images=[picture], return_text_replacement_offsets=True)
    texts = made["text_replacement_offsets"][0][0]["replacement"].split(mark)
    if len(texts) - 1 != tokens:
        raise PlanError(
            f"its processor writes {len(texts) - 1} tokens '{mark}' for a picture, its encoder"
            f" gives {tokens}"
        )
    items: list[str | LayoutItem] = [texts[0]] if texts[0] else []
    for index, text in enumerate(texts[1:]):
        if items and isinstance(items[-1], LayoutItem):
            items[-1] = replace(items[-1], stop=index + 1)
        else:
            items.append(LayoutItem("visual", start=index, stop=index + 1))
        items += [text] if text else []
    return tuple(items)
