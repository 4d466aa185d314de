"""Parts of the checkpoint as PyTorch modules, for peers that trace them."""

from __future__ import annotations

from typing import Any

from peer._given import Given


def vision(given: Given) -> Any:
    """Pixels [1, 3, 512, 512] -> features [1, 64, C]: encoder and connector, nothing padded."""
    import torch
    from transformers import AutoModelForImageTextToText

    whole = AutoModelForImageTextToText.from_pretrained(given.model, dtype=torch.float32).model

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.connector = whole.vision_model, whole.connector

        def forward(self, pixels: torch.Tensor) -> Any:
            side = pixels.shape[-1] // whole.config.vision_config.patch_size
            mask = torch.ones(1, side, side, dtype=torch.bool)
            seen = self.encoder(pixel_values=pixels, patch_attention_mask=mask)
            return self.connector(seen.last_hidden_state)

    return Vision().eval()
