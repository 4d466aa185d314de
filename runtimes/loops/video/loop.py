"""The diffusion loop: a text -> embeddings -> noise, denoised step by step -> frames of a video.

text -> tokens, cut or filled up to S -> rows of the table -> `text` blocks -> [1, S, Ct]
latents, timestep, text -> `denoiser` blocks -> velocity; under guidance of both texts
velocity -> sampler and rules of `runtimes/steps` -> latents of the next step
latents -> `vae` blocks, one latent frame of a tile after the other -> frames u8 [F, h_px, w_px, 3]
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from edgevlm.bundle.files import Bundle
from edgevlm.errors import InputError
from edgevlm.recipe import MethodChoice
from edgevlm.runtimes import values
from edgevlm.runtimes.arrays import Array, finite
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.loops.answers import Generated
from edgevlm.runtimes.loops.contract import RunRequest, VideoRequest
from edgevlm.runtimes.loops.tables import Words
from edgevlm.runtimes.loops.video.arrays import bind
from edgevlm.runtimes.loops.video.denoiser import DenoiserCalls
from edgevlm.runtimes.loops.video.files import check_output, write_video
from edgevlm.runtimes.loops.video.noise import noise
from edgevlm.runtimes.loops.video.resume import check_state, identity, load, save, state_path
from edgevlm.runtimes.loops.video.tiles import Tiling
from edgevlm.runtimes.residency.memory import peak_rss_bytes, return_freed
from edgevlm.runtimes.steps.rules import BlocksRule, Rule
from edgevlm.runtimes.steps.run import (
    COMPUTED,
    FORECAST,
    SKIPPED,
    Step,
    Steps,
    make_rules,
)
from edgevlm.units import TimeLeft

CACHED_TEXTS = 16  # texts whose embeddings are kept in memory


class DiffusionLoop:
    """Videos by one bundle. Not safe for two threads."""

    takes: ClassVar[tuple[str, ...]] = (
        "prompt", "negative", "output", "force", "guidance", "rule", "leap", "resume", "seed",
    )  # fmt: skip
    needs: ClassVar[tuple[str, ...]] = ("output",)
    usage: ClassVar[str] = (
        "the bundle makes a video of a text; it takes both --prompt TEXT and -o FILE.mp4"
    )

    def __init__(self, bundle: Bundle, blocks: Blocks) -> None:
        self.bundle, self.blocks, self.plan = bundle, blocks, bundle.plan
        self._words = Words(bundle, self.plan.host.text)
        return_freed()  # memory of parsing, which new arrays would reuse and count twice
        started = time.perf_counter()
        self.arrays = bind(self.plan, blocks)
        self._denoiser = DenoiserCalls(self, self.plan.stage("denoiser"), self.arrays)
        blocks.open()
        self.load_ms = (time.perf_counter() - started) * 1e3
        self._known: dict[str, Array] = {}  # embeddings of texts

    def forget(self) -> None:
        """Forget the texts."""
        self._known.clear()

    def answers(self, request: RunRequest) -> Iterator[Generated]:
        """The video of each prompt, written to the request's output; see `contract.Loop`."""
        asked = request.video_request
        for prompt in request.questions:
            asked = replace(asked, prompt=prompt, seed=request.sampling.seed)
            yield self.generate(asked)[1]

    def generate(self, asked: VideoRequest) -> tuple[Array, Generated]:
        """`video`, written where the request says.

        Raises:
            InputError: If an argument is of no use, or the video cannot be written.
            RecipeError: If its rules are none, or do not go together.
        """
        if asked.output is not None:
            check_output(asked.output, asked.force)
            check_state(asked.output, asked.resume or asked.force)
        frames, made = self.video(asked)
        if asked.output is None:
            return frames, made
        write_video(asked.output, frames, self.plan.host.fps)
        state_path(asked.output).unlink(missing_ok=True)
        return frames, replace(made, output=str(asked.output))

    def video(self, asked: VideoRequest) -> tuple[Array, Generated]:
        """The video of a text, frames u8 [F, h_px, w_px, 3], and its figures.

        Raises:
            InputError: If an argument is of no use.
        """
        host = self.plan.host
        prompt = values.text("prompt", asked.prompt)
        negative = values.text("negative", asked.negative)
        scale = host.guidance if asked.guidance is None else asked.guidance
        if negative and scale <= 1:
            raise InputError("a negative text has no effect without guidance; leave it out")
        choices = self.plan.recipe.step_rules if asked.rules is None else asked.rules
        rules = make_rules(choices, host.schedule)
        self._check_rules(rules)
        steps = Steps(host.schedule, scale, rules)
        self.blocks.settle()
        started = time.perf_counter()
        self._denoiser.texts = [self.embed(prompt), *([self.embed(negative)] if scale > 1 else [])]
        encoded = time.perf_counter()
        begun = noise((1, *host.denoiser.latents), asked.seed)
        latents, each = self._denoised(asked, steps, begun, scale, choices)
        denoised = time.perf_counter()
        asked.on_step("frames")
        frames = self.frames(latents)
        ended = time.perf_counter()
        return frames, Generated(
            output=None,
            frames=len(frames),
            height=host.height,
            width=host.width,
            fps=host.fps,
            steps_run=sum(step.how == COMPUTED for step in each),
            steps_skipped=sum(step.how == SKIPPED for step in each),
            steps_forecast=sum(step.how == FORECAST for step in each),
            leapt=host.schedule.steps - 1 - each[-1].index if each and each[-1].leaps else 0,
            load_ms=self.load_ms,
            text_ms=(encoded - started) * 1e3,
            denoise_ms=(denoised - encoded) * 1e3,
            vae_ms=(ended - denoised) * 1e3,
            peak_rss_bytes=peak_rss_bytes(),
            engine=self.blocks.engine.name,
            loads=self.blocks.loads,
        )

    def _denoised(
        self,
        asked: VideoRequest,
        steps: Steps,
        latents: Array,
        guidance: float,
        choices: Sequence[MethodChoice],
    ) -> tuple[Array, list[Step]]:
        """The latents of the video, and the steps that were run for them.

        Where there is an output, the state after each step is kept beside it.
        """
        host, path = self.plan.host, asked.output and state_path(asked.output)
        of = identity({
            "bundle": [(entry.path, entry.sha256) for entry in self.plan.files],
            "prompt": asked.prompt, "negative": asked.negative, "seed": asked.seed,
            "guidance": guidance, "rules": [*map(str, choices)],
        })  # fmt: skip
        if asked.resume and path is None:
            raise InputError("resume goes on beside an output; give output too")
        if asked.resume and path is not None:
            done, arrays = load(path, of, latents.shape)
            latents = arrays.pop("latents")
            steps.restore(done, arrays)
        self.blocks.expect("denoiser", None if choices else host.schedule.steps - steps.done)
        each, left = list[Step](), TimeLeft(["step"] * host.schedule.steps)

        def begin() -> None:
            if not steps.over:
                rest = left.begin(steps.done)
                asked.on_step(f"step {steps.done + 1} of {host.schedule.steps}{rest}")

        begin()
        for step in steps.run(latents, self._denoiser):
            each.append(step)
            latents = step.latents
            if path is not None:
                save(path, of, steps.done, {"latents": latents, **steps.state()})
            begin()
        return latents, each

    def _check_rules(self, rules: Sequence[Rule]) -> None:
        """Refuse a rule that skips layers of a bundle that has no border for it.

        Raises:
            InputError: If no block is left to skip.
        """
        layers = len(self.plan.stage("denoiser")) - 2
        for rule in rules:
            if isinstance(rule, BlocksRule) and layers <= rule.first:
                raise InputError(
                    f"the denoiser has {layers} block{'s' * (layers != 1)} of layers, and a rule"
                    f" that skips them runs {rule.first}; export with a smaller --block-size"
                )

    def embed(self, text: str) -> Array:
        """Embeddings of a text f32 [1, S, Ct]; those of the last few texts are kept."""
        if text not in self._known:
            ids = self._words.ids(cleaned(text))
            length = self._words.end(ids) + 1
            self.arrays.hidden[0] = self._words.table[ids]
            self.arrays.mask[0] = np.arange(len(ids)) < length
            self.blocks.expect("text", 1)
            for block in self.plan.stage("text"):
                self.blocks.run(block.name, "encode")
            self._known[text] = finite("text", self.arrays.text).copy()
        found = self._known[text] = self._known.pop(text)  # the least recently used goes first
        if len(self._known) > CACHED_TEXTS:
            self._known.pop(next(iter(self._known)))
        return found

    def frames(self, latents: Array) -> Array:
        """Frames u8 [F, h_px, w_px, 3] of latents f32 [1, C, F, h, w]."""
        host, vae = self.plan.host, self.plan.host.vae
        _, _, height, width = host.denoiser.latents
        video = np.empty((host.frames, host.height, host.width, 3), np.uint8)
        tiling = Tiling((height, width), vae.tile, vae.stride, vae.scale)
        for tile in tiling:
            decoded = self._decoded(tile.cut(latents, vae.tile))
            rows, columns, pixels = tiling.blend(tile, decoded)
            colours = np.clip((pixels + 1) * 127.5, 0, 255).round().astype(np.uint8)
            video[:, rows, columns] = colours.transpose(1, 2, 3, 0)
        return video

    def _decoded(self, latents: Array) -> Array:
        """Frames f32 [3, F, h_px, w_px] of a tile, one latent frame after another."""
        stage, count = self.plan.stage("vae"), latents.shape[2]
        if count > 1:
            self.blocks.expect("next", count - 1)
        shown = []
        for index in range(count):
            function = "next" if index else "first"
            self.arrays.latents[function][...] = latents[:, :, index : index + 1]
            for given, taken in self.arrays.caches if index else ():
                taken[...] = given
            for block in stage:
                self.blocks.run(block.name, function)
            shown.append(finite("vae", self.arrays.pixels[function])[0].copy())
        return np.concatenate(shown, axis=1)


def cleaned(text: str) -> str:
    """A text as Wan's pipeline reads it: entities of HTML resolved, white space single."""
    return " ".join(html.unescape(html.unescape(text)).split())


# The contract of a loop's module, see `runtimes.loading`.
open_loop, bind_arrays = DiffusionLoop, bind
