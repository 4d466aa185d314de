"""What an image processor says, as the numbers of an `ImageSpec`; what they cannot say is refused.

A processor computes (value · rescale_factor - mean) / std of pixels of 0 to 255, and each of the
two steps can be off; a bundle computes (value / 255 - mean) / std. The first is the second with
other means and deviations.
"""

from __future__ import annotations

from typing import Any

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.models.family import three

Numbers = tuple[float, float, float]
# Keys of a size, of which each image processor has one.
SIZED = (
    "size", "max_image_size", "min_pixels", "max_pixels", "max_image_tokens",
    "max_soft_tokens", "max_num_patches", "tile_size", "scale_resolution",
)  # fmt: skip


def normalization(processor: dict[str, Any], mean: Any, std: Any) -> tuple[Numbers, Numbers]:
    """Mean and deviation of pixels of 0 to 1.

    Args:
        processor: The image processor's numbers.
        mean: The family's own, where the processor names none.
        std: The same.
    """
    means = three(processor.get("image_mean", mean))
    deviations = three(processor.get("image_std", std))
    if not processor.get("do_normalize", True):
        means, deviations = three(0), three(1)
    factor = 255 * (processor.get("rescale_factor", 1 / 255) if _rescales(processor) else 1)
    if abs(factor - 1) < 1e-6:  # 1 / 255 in fewer digits, as published files have it
        return means, deviations
    return three([m / factor for m in means]), three([s / factor for s in deviations])


def check_resized(processor: dict[str, Any]) -> None:
    """Refuse a processor that leaves a picture's size as it is.

    Raises:
        PlanError: Saying what to change.
    """
    if not processor.get("do_resize", True):
        raise PlanError(
            "the image processor has do_resize false, and a bundle resizes every picture to the"
            " encoder's views; set do_resize true in preprocessor_config.json"
        )


def check_view(processor: dict[str, Any], side: int, crops: bool = False) -> None:
    """Refuse a processor whose views are not those of the encoder.

    Args:
        processor: The image processor's numbers.
        side: Pixels of the encoder's views, each way.
        crops: Whether the family's processor crops where it is not told.

    Raises:
        PlanError: Naming the key, its value and what to change.
    """
    check_resized(processor)
    crops = bool(processor.get("do_center_crop", crops))
    keys = ("size", "crop_size") if crops else ("size",)
    for key in keys:
        value = processor.get(key)
        if value is not None and sides(value) - {side}:
            raise PlanError(
                f"the image processor's {key} is {value}, and the encoder reads views of {side}"
                f" pixels alone; set {key} to {side} in preprocessor_config.json"
            )


def check_crop(processor: dict[str, Any], side: int) -> None:
    """Refuse a processor that takes another middle, or none; whatever the size of the rest.

    Args:
        processor: The video processor's numbers.
        side: Pixels of the encoder's views, each way.

    Raises:
        PlanError: Naming the key, its value and what to change.
    """
    check_resized(processor)
    value = processor.get("crop_size", side)
    if not processor.get("do_center_crop", True) or sides(value) - {side}:
        raise PlanError(
            f"the video processor's crop_size is {value}, and the encoder reads views of {side}"
            f" pixels alone; set crop_size to {side}, and do_center_crop true"
        )


def sides(value: Any) -> set[Any]:
    """The pixels that a size of a processor names, whatever its form."""
    return set(value.values()) if isinstance(value, dict) else {value}


def fit(processor: dict[str, Any], crops: bool) -> str:
    """How a picture of another shape becomes square, for `ImageSpec.fit`.

    Args:
        processor: The image processor's numbers, which have passed `check_view`.
        crops: Whether the family's processor does so by the shorter side, where none is named.

    Raises:
        PlanError: If the picture keeps its shape.
    """
    size = processor.get("size")
    by_shorter = "shortest_edge" in size if isinstance(size, dict) else crops
    if by_shorter and not processor.get("do_center_crop", crops):
        raise PlanError(
            "the image processor resizes a picture by its shortest_edge and crops nothing, and a"
            " static graph has one size; set do_center_crop true in preprocessor_config.json"
        )
    return "crop" if by_shorter else "stretch"


def _rescales(processor: dict[str, Any]) -> bool:
    return bool(processor.get("do_rescale", True))


def defaults(processor: dict[str, Any], image: ImageSpec) -> tuple[str, ...]:
    """What a reader of a plan must know where the checkpoint's image processor leaves numbers out.

    Args:
        processor: The image processor's numbers.
        image: Preprocessing, with the family's numbers in their place.
    """
    names = ("image_mean", "image_std") if processor.get("do_normalize", True) else ()
    missing = [name for name in names if processor.get(name) is None]
    sized = any(processor.get(name) is not None for name in SIZED)
    if sized and not missing:
        return ()
    numbers = f"mean {_spelled(image.mean)} and deviation {_spelled(image.std)}"
    taken = [numbers] * bool(missing) + [f"views of {image.width}x{image.height}"] * (not sized)
    lacks = ", ".join([*missing, *["size"] * (not sized)])
    return (f"the image processor's config has no {lacks}; taken are {' and '.join(taken)}",)


def _spelled(numbers: Numbers) -> str:
    shown = numbers[:1] if len({*numbers}) == 1 else numbers
    return ", ".join(f"{number:.4g}" for number in shown)
