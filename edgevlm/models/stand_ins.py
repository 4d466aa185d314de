"""What takes the place of parts of transformers' processors that need libraries beyond ours.

transformers' video processors need torchvision. No pixel of theirs is used, so that a stand-in
takes their place: it gives the frames of its attribute `clip` as they are, and the processor writes
its own text around them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Videos(SimpleNamespace):
    """What stands in for a video processor: numbers that a processor asks for, and a `clip`."""

    def __call__(self, videos: Any, **kwargs: Any) -> Any:
        return self.clip


def videos(numbers: dict[str, Any]) -> Videos:
    """A stand-in for the video processor of these numbers."""
    known = {"merge_size": 2, "temporal_patch_size": 2}  # of the Qwen-VL line
    own = known | {name: numbers[name] for name in known if name in numbers}
    # MiniCPM-V's processor reads the last two.
    return Videos(**own, num_frames=None, fps=None, slice_mode=False, downsample_mode="16x")


def with_stand_ins(original: Any) -> Any:
    """The class of a processor that takes stand-ins for its parts."""

    class Processor(original):  # type: ignore[misc]
        def __repr__(self) -> str:  # that of the original asks every part to describe itself
            return str(original.__name__)

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

    # Its name is what transformers looks up defaults by.
    Processor.__name__ = original.__name__
    return Processor
