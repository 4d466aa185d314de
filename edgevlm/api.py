"""The Python API: four functions and the loaded model. Heavy libraries are imported when needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import Plan
from edgevlm.errors import InputError
from edgevlm.libraries import require_torch
from edgevlm.profiling.machine.sensors import metered
from edgevlm.recipe import Recipe
from edgevlm.runtimes import values
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.loops import drafts
from edgevlm.runtimes.loops.answers import Answer, Embedded, Generated
from edgevlm.runtimes.loops.contract import Loop, VideoRequest
from edgevlm.runtimes.loops.encoder import EncoderLoop
from edgevlm.runtimes.loops.images.pictures import Picture
from edgevlm.runtimes.loops.images.sources import Source
from edgevlm.runtimes.loops.sampling import Sampling
from edgevlm.runtimes.loops.stream import LiveStream, Stream, StreamRequest
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.loops.video.loop import DiffusionLoop
from edgevlm.runtimes.questions import prompt_parts

if TYPE_CHECKING:
    from edgevlm.parity.verification import Verification
    from edgevlm.planning.sites.method_cost import MethodCost
    from edgevlm.profiling.document import Profile


def export(recipe: Recipe, out: str | Path, force: bool = False) -> Bundle:
    """Make a verified bundle; see `edgevlm.pipeline.export`."""
    values.instance("recipe", recipe, Recipe)
    out = values.path("out", out)
    require_torch()
    from edgevlm import pipeline

    return pipeline.export(recipe, out, force).bundle


def plan(recipe: Recipe) -> Plan[Any]:
    """The recipe in numbers, before any graph exists; see `edgevlm.planning.plan.make_plan`."""
    values.instance("recipe", recipe, Recipe)
    require_torch()
    from edgevlm.models.find import find
    from edgevlm.planning.plan import make_plan

    return make_plan(recipe, find(recipe.model, recipe.revision)).plan


def plan_with_cost(recipe: Recipe) -> tuple[Plan[Any], MethodCost | None, tuple[str, ...]]:
    """The plan, what its method of site `tokens` costs, and notes for whoever reads it.

    See `planning.sites.method_cost` and `planning.plan.Planned`.
    """
    values.instance("recipe", recipe, Recipe)
    require_torch()
    from edgevlm.models.find import find
    from edgevlm.planning.plan import make_plan
    from edgevlm.planning.sites.method_cost import method_cost

    planned = make_plan(recipe, find(recipe.model, recipe.revision))
    return planned.plan, method_cost(planned), planned.notes


def verify(path: str | Path, model: str | None = None) -> Verification:
    """Parity of a bundle with PyTorch; see `edgevlm.parity.verify.verify`."""
    path = values.path("the bundle", path)
    model = None if model is None else values.text("model", model)
    require_torch()
    from edgevlm.parity.verify import verify as check

    return check(path, model)


def load(
    path: str | Path,
    engine: str | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
) -> Model:
    """Open a bundle and load its blocks. Needs no torch.

    Args:
        path: The bundle.
        engine: Name of an engine; None takes the one of the highest rank for the bundle's target.
        threads: Threads of the engine; None takes all cores.
        memory: Most bytes that this process may take, or a text such as `300MB`; blocks are loaded
            while others run. None keeps every block in memory.

    Raises:
        BundleError: If the bundle is damaged.
        InputError: If an argument has another type, or is out of range.
        PlanError: If `memory` is too little; the message says how much would do.
        RuntimeLoadError: If no engine can run it.
    """
    return Model(load_loop(path, engine, threads, memory))


class Model:
    """A bundle in memory, and one conversation.

    Calls of several threads wait for each other, so each answer is that of its own call; `chat`
    goes on with the conversation of the last `generate`, whichever thread began it.

    A bundle that answers questions has `generate` and `chat`, one that gives embeddings `embed` and
    `classify`, one that makes videos `generate_video`; the others refuse in one line.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop, self._lock, self._owner = loop, threading.Lock(), 0

    @property
    def plan(self) -> Plan[Any]:
        """The bundle's manifest."""
        return self._loop.plan

    def generate(
        self,
        image: Picture | Sequence[Picture] | None,
        prompt: str | Sequence[str | Picture],
        *,
        video: Source | None = None,
        system: str | None = None,
        max_new_tokens: int = 64,
        sampling: Sampling = Sampling(),
        on_text: Callable[[str], None] = lambda _: None,
        draft: str | None = None,
    ) -> Answer:
        """Answer one question about one or several pictures, or a clip, in a new conversation.

        Args:
            image: A picture, a list of several, or None; for a bundle with frames, the frames of
                one clip. A picture is a path, a file's bytes, an open file, an array [h, w] or
                [h, w, channels], or a Pillow image; it is shown upright and over white.
            prompt: The question, which follows the pictures; or, with `image` None, a list of
                texts and pictures in any order that the model's chat template has a place for. A
                text of it is never a path, and an empty one is left out.
            video: A video instead of pictures: a path, a file's bytes or an open file.
            system: A system prompt, which is in front of the conversation.
            max_new_tokens: Most tokens to generate.
            sampling: Greedy by default.
            on_text: Called with each new piece of text.
            draft: `lookup` or `skip=N`: tokens are guessed and checked together, see
                `runtimes.drafts`; for bundles with a `check` function. The answer is the same.

        Raises:
            InputError: If a picture cannot be read, the prompt does not fit the context, the
                model's chat template has no place for the system prompt or for texts between
                pictures, or an argument has another type or is out of range.
        """
        with self._alone():
            loop, (parts, pictures) = self._asked(), prompt_parts(image, prompt, video)
            loop.reset()
            seen, drafted = loop.visuals(pictures, video), self._draft(draft)
            return loop.ask(parts, seen, max_new_tokens, sampling, on_text, drafted, system)

    def chat(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        sampling: Sampling = Sampling(),
        on_text: Callable[[str], None] = lambda _: None,
        draft: str | None = None,
    ) -> Answer:
        """A further turn of the conversation that `generate` began, which is one text.

        Raises:
            InputError: If the text does not fit the context, or an argument has another type or is
                out of range.
        """
        with self._alone():
            loop, given = self._asked(), cast("object", prompt)
            if isinstance(given, list | tuple):
                raise InputError(
                    f"the prompt of chat must be one text, got {type(given).__name__}; a list of"
                    " texts and pictures begins a conversation, as the prompt of generate"
                )
            return loop.ask(prompt, tuple, max_new_tokens, sampling, on_text, self._draft(draft))

    def stream(
        self,
        source: Source | Iterable[Picture],
        prompt: str | None = None,
        *,
        ask_every: float | None = None,
        fps: float = 1.0,
        pace: bool = False,
        system: str | None = None,
        max_new_tokens: int = 64,
        sampling: Sampling = Sampling(),
        on_text: Callable[[str], None] = lambda _: None,
    ) -> LiveStream:
        """Go through frames one by one, of a bundle that was exported with `stream`.

        Args:
            source: A video as in `generate`, `/dev/video0`, an `rtsp://` or `http://` address, `-`
                for stdin, or pictures one by one.
            prompt: A question, asked at the end, or every `ask_every` seconds; more may be asked
                by `ask` of what is returned.
            ask_every: See `prompt`.
            fps: Frames a second of the stream's time; pictures come at that rate.
            pace: Whether a file goes by its clock.
            system: A system prompt.
            max_new_tokens: Most tokens of an answer.
            sampling: Greedy by default.
            on_text: Called with each new piece of an answer.

        Returns:
            What gives the events of `runtimes.loops.stream.events`, one by one, in a new
            conversation; other calls of the model wait until they end.

        Raises:
            InputError: If the bundle takes no streams, or an argument has another type or is out of
                range; while events are read, if the source gives no frame.
        """
        request = StreamRequest(
            source, prompt, ask_every, fps, pace, system=system, max_new_tokens=max_new_tokens,
            sampling=sampling, on_text=on_text, sensors=metered,
        )  # fmt: skip
        return LiveStream(Stream(self._asked(), request), self._alone)

    def embed(
        self, image: Picture | Sequence[Picture] | None = None, *, video: Source | None = None
    ) -> Embedded:
        """The embedding of one picture or clip, of a bundle that gives embeddings.

        Raises:
            InputError: As `classify`.
        """
        return self.classify(image, (), video=video)

    def classify(
        self,
        image: Picture | Sequence[Picture] | None = None,
        labels: Sequence[str] = (),
        *,
        video: Source | None = None,
    ) -> Embedded:
        """The embedding of one picture or clip, and the score of each label, of such a bundle.

        Args:
            image: A picture; for a bundle with frames, the frames of one clip.
            labels: Texts. A classifier takes none: it has the score of each of its own classes.
            video: A video instead of pictures, for a bundle with frames.

        Raises:
            InputError: If the picture cannot be read, the bundle answers questions, or it has no
                text encoder.
        """
        if not isinstance(self._loop, EncoderLoop):
            raise InputError(f"no embedding here: {self._loop.usage}")
        with self._alone():
            return self._loop.classify(image, labels, video)

    def generate_video(self, prompt: str, **options: Any) -> tuple[Array, Generated]:
        """A video of a text, of a bundle that makes videos.

        Args:
            prompt: What it shows.
            **options: Fields of `runtimes.loops.contract.VideoRequest`: `negative`, `seed`,
                `guidance`, `rules`, `output`, `force`, `resume`, `on_step`.

        Returns:
            Frames u8 [F, h_px, w_px, 3], and figures.

        Raises:
            InputError: If an argument is of no use, or the bundle makes no videos.
        """
        if not isinstance(self._loop, DiffusionLoop):
            raise InputError(f"no video here: {self._loop.usage}")
        with self._alone():
            return self._loop.generate(VideoRequest.of(prompt, options))

    def profile(
        self,
        image: str | Path | None = None,
        prompt: str | None = None,
        *,
        runs: int = 10,
        tokens_generated: int = 16,
        minutes: float = 0.0,
        progress: Callable[[str], None] = lambda _: None,
    ) -> Profile:
        """Measure this bundle on this machine; ends the conversation.

        Args:
            image: A picture, for a clip each of its frames; one of ours if None.
            prompt: The question; one of ours if None.
            runs: Timed answers.
            tokens_generated: Tokens of each answer, at least 2.
            minutes: Further answers without a pause.
            progress: Called with each step as it begins.

        Raises:
            InputError: If the picture cannot be read or the answer does not fit the context.
        """
        from edgevlm.profiling.measure import profile
        from edgevlm.profiling.measurements import ProfileRequest

        values.function("progress", progress)
        path = None if image is None else values.path("image", image)
        request = ProfileRequest(path, prompt, runs, tokens_generated, minutes)
        with self._alone():
            return profile(self._loop, request, progress)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for the calls of other threads.

        Raises:
            InputError: If this thread is inside a call already, as in `on_text`.
        """
        if self._owner == threading.get_ident():
            raise InputError("the model is answering; ask it again after the answer, or load two")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = 0

    def _asked(self) -> TextLoop:
        """The loop, if it answers questions.

        Raises:
            InputError: If the bundle gives something else.
        """
        if not isinstance(self._loop, TextLoop):
            raise InputError(f"no answer here: {self._loop.usage}")
        return self._loop

    def _draft(self, text: str | None) -> drafts.Draft | None:
        return None if text is None else drafts.parse(text, self.plan)
