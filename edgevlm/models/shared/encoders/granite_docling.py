"""The encoder of Granite Docling: SigLIP, whose patches become tokens by one of two routes.

The coarse route makes 4x4 patches a token, the fine one 2x2. Each has a projection, positions and a
merger for each level; two norms and a matrix are common. Levels are features of further layers.

Source: transformers' `models/granite_docling/modeling_granite_docling.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.layers import EncoderLayer, PatchEmbedding
from edgevlm.graphs.parts import EncoderParts
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.levels import level_layers
from edgevlm.models.shared.folds import MeanFold, folded


def encoder_parts(model: Any, description: Description) -> EncoderParts:
    """Static modules over the weights of `model`."""
    tower, vision = model.model.vision_model, model.config.vision_config
    fine = is_fine(vision, description)
    path = tower.connector.fine if fine else tower.connector.coarse
    read = levels_of(vision, len(description.decoder.layers))
    embeddings = tower.embeddings
    return EncoderParts(
        spec=description.encoder,
        embedding=PatchEmbedding(embeddings.patch_embedding, embeddings.position_embedding),
        layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
        connector=Connector(tower.post_layernorm, tower.connector, path),
        fold=MeanFold(path.scale_factor),
        levels=tuple(
            (layer, Merger(merger, path.scale_factor))
            for layer, merger in zip(read, path.deepstack_mergers, strict=False)
        ),
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [P, 3, h_px, w_px] -> [1, P*N, C]."""
    return _own(model, pixel_values, description).pooler_output[0][None]


def reference_levels(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The same for the levels before the last: [L, P*N, C]."""
    return torch.stack(
        [level[0] for level in _own(model, pixel_values, description).deepstack_features]
    )


def is_fine(vision: Any, description: Description) -> bool:
    """Whether a view has more tokens than the coarse route gives."""
    coarse = vision.image_size // vision.patch_size // vision.scale_factor
    return description.view_tokens > coarse**2


def levels_of(vision: Any, decoder_layers: int) -> tuple[int, ...]:
    """Layers whose output is a level, as many as the decoder takes."""
    return level_layers(vision.deepstack_visual_indexes, vision.num_hidden_layers, decoder_layers)


class Connector(nn.Module):
    """Two norms, fold, projection, positions and a matrix: [1, patches, D] -> [1, N, C]."""

    positions: Tensor

    def __init__(self, norm: nn.Module, connector: Any, path: Any) -> None:
        super().__init__()
        self.scale = path.scale_factor
        self.before = nn.Sequential(norm, connector.ln_in)
        self.projection = path.projection
        self.after = nn.Sequential(connector.ln_mid, nn.GELU(), connector.mlp_fc2, connector.ln_out)
        own = path.pos_embed
        with torch.device("cpu"):
            table = own.build(own.embed_dim, own.grid_size)
        self.register_buffer("positions", table, persistent=False)

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"scale={self.scale}"

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.projection(folded(self.before(x), self.scale)) + self.positions
        features: Tensor = self.after(tokens)
        return features


class Merger(nn.Module):
    """Fold, norm and two matrices of a level: [1, patches, D] -> [1, N, C]."""

    def __init__(self, merger: Any, scale: int) -> None:
        super().__init__()
        self.merger, self.scale = merger, scale

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"scale={self.scale}"

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.merger(folded(x, self.scale))
        return features


def _own(model: Any, pixel_values: Tensor, description: Description) -> Any:
    tiles = torch.ones(1, len(pixel_values), dtype=torch.bool)
    fine = is_fine(model.config.vision_config, description)
    route = {"tile_fine_mask": torch.ones(1, dtype=torch.bool)} if fine else {}
    return model.model.get_image_features(pixel_values[None], tiles, return_dict=True, **route)
