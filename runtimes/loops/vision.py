"""Pictures and clips to visual tokens: decode one at a time, encode, reduce.

With a memory budget a picture is decoded where no block needs to be, and is gone before one runs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from PIL import Image

from edgevlm.bundle.files import Bundle
from edgevlm.errors import InputError
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.contract import Loop
from edgevlm.runtimes.loops.decoder import DecoderLoop
from edgevlm.runtimes.loops.images.asked import asked_picker
from edgevlm.runtimes.loops.images.picking import Picker
from edgevlm.runtimes.loops.images.pictures import Picture
from edgevlm.runtimes.loops.images.sources import Source
from edgevlm.runtimes.loops.spelling import Visual

CACHED_IMAGES = 4  # images whose visual tokens are cached
CACHED_BYTES = 2 * 10**6  # of them with a memory budget


class VisionLoop(DecoderLoop):
    """A loop that encodes images and clips.

    Attributes:
        decoding_s: Time of this turn that went into decoding files.
        vision_ms: Time in the image encoder.
        reduce_ms: Time in `reduce`.
        picker: What picks the frames of a video; None for what the bundle says.
    """

    picker: Picker | None = None

    def __init__(self, bundle: Bundle, blocks: Blocks) -> None:
        images.prepare(clips=bundle.plan.host.image.frames > 1)
        super().__init__(bundle, blocks)
        self._known: dict[bytes, Visual] = {}  # by hash of the pixels
        self.start_turn()

    def start_turn(self) -> None:
        """Set the times of a turn to 0."""
        self.vision_ms = self.reduce_ms = self.decoding_s = 0.0

    def forget(self) -> None:
        """Forget the conversation, the images and the cache, for measurements."""
        super().forget()
        self._known.clear()

    def pick_by(self, scorer: Loop | None, question: str) -> None:
        """Pick the frames of a video by a question, with a bundle of embeddings; None as before.

        Raises:
            InputError: If the bundle compares no pictures with texts.
        """
        self.picker = asked_picker(scorer, question, self.plan.host.image.frames)

    def see(
        self, pictures: Iterable[Picture], times: Sequence[float] = (), duration: float = 0.0
    ) -> Visual:
        """Encode and reduce one image, or the frames of one clip; the last few are cached."""
        image = self.plan.host.image
        pixels = images.views(pictures, image)
        self.blocks.settle()
        key = hashlib.sha256(pixels.data).digest()
        if key not in self._known:
            self._known[key] = self._encode(pixels)
        visual = self._known[key] = self._known.pop(key)  # least recently used is evicted first
        if len(self._known) > self._cached_images:
            self._known.pop(next(iter(self._known)))
        if not times:
            times = [float(i) for i in range(image.frames)]
            duration = float(image.frames)
        return replace(visual, times=tuple(times), duration=duration)

    @property
    def _cached_images(self) -> int:
        """How many visual tokens are kept: with a budget no more than their room in it."""
        host = self.plan.host
        size = 4 * host.visual_tokens * host.embedding.columns * (1 + len(host.levels))
        return CACHED_IMAGES if self.blocks.keeps_all else min(CACHED_IMAGES, CACHED_BYTES // size)

    def visuals(
        self, pictures: Sequence[Picture], video: Source | None = None
    ) -> Callable[[], Sequence[Visual]]:
        """A function that decodes and encodes images or a video, one picture in memory at a time.

        Decoding is outside of the measured time.

        Raises:
            InputError: If there is a video and the bundle has no frames, or other than its number
                of pictures, or more pictures than the model's template has a place for; the
                function, if one cannot be read or takes more than the budget.
        """
        frames = self.plan.host.image.frames
        if frames == 1 and len(pictures) > 1 and self.plan.host.layout.one_image:
            raise InputError(
                f"the model's chat template takes one image, got {len(pictures)}; ask about one"
            )
        if video is not None:
            if frames == 1:
                raise InputError("the bundle takes still images; export it with --frames for video")
            return lambda: [self._see_clip(video)]
        if pictures and frames > 1:
            if len(pictures) != frames:
                raise InputError(
                    f"the bundle takes {frames} frames per clip, got {len(pictures)}; or give"
                    " --video FILE"
                )
            return lambda: [self.see(self._decoded(pictures))]
        return lambda: [self.see(self._decoded([picture])) for picture in pictures]

    def see_view(self, pictures: Iterable[Picture], previous: Array | None) -> tuple[Visual, Array]:
        """Encode one view of a stream, and choose its tokens beside the view before.

        Args:
            pictures: As many frames as a view has.
            previous: Features of the view before; None for the first.

        Returns:
            Its tokens, whose positions count within it, and its features [N, C].
        """
        image, arrays = self.plan.host.image, self.arrays.stream
        pixels = images.views(pictures, replace(image, frames=image.depth))
        started = time.perf_counter()
        self.blocks.expect("encode", 1)
        self._encode_view(pixels[0])
        for name, values in self.arrays.view.items():
            if name in arrays:  # signals that no method reads are not
                arrays[name][:] = values
        features = arrays["features"][0].copy()
        self.vision_ms += (time.perf_counter() - started) * 1e3
        if "previous" in arrays:
            arrays["previous"][0] = 0.0 if previous is None else previous
        self.blocks.expect("stream", 1)
        self.reduce_ms += _timed(lambda: self.blocks.run("reduce-1", "stream"))
        outputs = {name: arrays[name] for name in ("visual_tokens", "kept_positions")}
        return Visual.of(outputs), features

    def room(self) -> images.Room:
        """Memory for decoding a picture."""
        image, shortage = self.plan.host.image, self.blocks.shortage
        return images.Room(
            None if self.blocks.keeps_all else shortage,
            image.width * image.columns,
            image.height * image.rows,
        )

    def _decoded(self, pictures: Sequence[Picture]) -> Iterator[Image.Image]:
        for picture in pictures:
            started = time.perf_counter()
            decoded = [images.load(picture, self.room())]
            self.decoding_s += time.perf_counter() - started
            yield decoded.pop()  # no reference stays here

    def _see_clip(self, video: Source) -> Visual:
        image, shrinking_s = self.plan.host.image, 0.0

        def shrink(frame: Image.Image) -> Image.Image:
            nonlocal shrinking_s
            begun = time.perf_counter()
            view = images.shrink(frame, image)
            shrinking_s += time.perf_counter() - begun
            return view

        started = time.perf_counter()
        clip, times, duration = images.load_clip(
            video, image.frames, shrink, self.room(), self.picker or images.picker_of(image)
        )
        self.decoding_s += time.perf_counter() - started - shrinking_s
        return self.see(clip, times, duration)

    def _encode(self, pixels: Array) -> Visual:
        image = self.plan.host.image
        all_views, reduced = self.arrays.all_views, self.arrays.reduced
        count = all_views["features"].shape[1] // image.views
        started = time.perf_counter()
        self.blocks.expect("encode", len(pixels))
        for index, view in enumerate(pixels):
            self._encode_view(view)
            for name, features in all_views.items():
                features[:, index * count : (index + 1) * count] = self.arrays.view[name]
        self.vision_ms += (time.perf_counter() - started) * 1e3
        self.blocks.expect("reduce", 1)
        self.reduce_ms += _timed(lambda: self.blocks.run("reduce-0", "reduce"))
        return Visual.of(reduced)

    def _encode_view(self, view: Array) -> None:
        self.arrays.pixels[0] = view
        for block in self.plan.stage("vision"):
            self.blocks.run(block.name, "encode")


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e3
