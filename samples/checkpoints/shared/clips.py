"""The processor of a checkpoint that reads clips."""

from __future__ import annotations

from checkpoints.shared.presets import IMAGENET_MEAN, IMAGENET_STD


def clip_processor(name: str, side: int, shortest: int) -> dict:
    """Its numbers.

    Args:
        name: Its class.
        side: Pixels of a view, each way.
        shortest: Pixels of a frame's shorter side, before its middle is taken.
    """
    return {
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 2,  # BILINEAR
        "size": {"shortest_edge": shortest},
        "crop_size": {"height": side, "width": side},
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "image_processor_type": name,
    }
