"""Parts of the checkpoint as PyTorch modules, for peers that trace them."""

from __future__ import annotations

from typing import Any

from peer._given import Given


def vision(given: Given) -> Any:
    """Pixels [1, 3, 512, 512] -> features [1, 64, C]: encoder and connector, nothing padded."""
    import torch
    from transformers import AutoModelForImageTextToText

    whole = AutoModelForImageTextToText.from_pretrained(given.model, dtype=torch.float32).model

    tower = whole.vision_model

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Nothing is padded, so patch i has position i: the search for it (`bucketize`) has no
            # kernel in ExecuTorch's runtime for Python.
            self.patches = tower.embeddings.patch_embedding
            self.positions = tower.embeddings.position_embedding.weight
            self.layers, self.norm = tower.encoder, tower.post_layernorm
            self.connector = whole.connector

        def forward(self, pixels: torch.Tensor) -> Any:
            rows = self.patches(pixels).flatten(2).transpose(1, 2) + self.positions
            hidden = self.layers(inputs_embeds=rows, attention_mask=None).last_hidden_state
            return self.connector(self.norm(hidden))

    return Vision().eval()
