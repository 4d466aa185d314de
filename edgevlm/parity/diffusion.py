"""The driver of kind `diffusion`: each stage beside the pipeline's own modules.

    tokens       ids of prompts of odd shapes, by our path and by the checkpoint's own tokenizer
    text         embeddings of prompts, beside the pipeline's
    denoiser     velocities at the first and the last step, beside the denoiser's own forward
    vae          frames of latents, as many as show every function, beside the decoder's own
    sensitivity  how far the velocity is for another text: the check of the rest

Each call of a block is compared with the same block in PyTorch too, on the engine's own inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgevlm.models.own_processors import load_tokenizer
from edgevlm.parity import checks
from edgevlm.parity.calls import BlockCalls
from edgevlm.parity.compare import Array, difference
from edgevlm.parity.verification import Verification
from edgevlm.runtimes.loops.tables import Words
from edgevlm.runtimes.loops.video.loop import cleaned
from edgevlm.runtimes.loops.video.noise import noise

# Upper case, punctuation, entities, other scripts, nothing at all, more than there is room for.
PROMPTS = (
    "a red circle moves left", "", "A Cat &amp; a dog, 2 metres apart!", "  blanks\n and lines ",
    "naïve café, 東京", "a very long text " * 200,
)  # fmt: skip
COMPARED = 2  # whose blocks run; ids are compared of all
LATENT_FRAMES = 3  # that are decoded: the first, one after it, one after that


@dataclass(frozen=True)
class DiffusionVerification(Verification):
    """The end-to-end measures of a diffusion model.

    Attributes:
        text_rel_error: Of the embeddings of two prompts.
        velocity_rel_error: Of the velocities at the first and the last step.
        frames_psnr_db: Of the frames of a few latents; None where nothing differs.
        token_ids_equal: Share of the prompts of which all ids are the checkpoint's.
        text_sensitivity: Relative change of the velocity with another text.
    """

    text_rel_error: float
    velocity_rel_error: float
    frames_psnr_db: float | None
    token_ids_equal: float
    text_sensitivity: float

    @property
    def summary(self) -> str:
        """The end-to-end measures, one line."""
        frames = "" if self.frames_psnr_db is None else f", frames {self.frames_psnr_db:.0f} dB"
        return (
            f"text_rel_error {self.text_rel_error:.1e}, velocity_rel_error"
            f" {self.velocity_rel_error:.1e}{frames}, token_ids_equal {self.token_ids_equal:.2f},"
            f" text_sensitivity {self.text_sensitivity:.2f}"
        )

    @property
    def agreement(self) -> str:
        """How near the bundle is to PyTorch, in a few words."""
        if self.exact:
            return f"agrees with PyTorch (velocities {self.velocity_rel_error:.0e})"
        worst, error = self.worst_block, self.velocity_rel_error
        return f"rounded: worst block {worst}, velocities {error:.0e} from PyTorch's"


def verify(calls: BlockCalls, model: Any, photos: Sequence[Path]) -> DiffusionVerification:
    """Compare a bundle with its pipeline, on prompts and on noise."""
    equal, texts, text_error = _texts(calls, model)
    velocity_error, velocity_psnr, sensitivity = _velocities(calls, model, texts)
    frames_error, frames_psnr = _frames(calls, model)
    functions, asked = calls.results()
    asked.append(checks.token_ids_check(equal))
    measured = {
        "text": text_error,
        "denoiser": (velocity_error, velocity_psnr),
        "vae": (frames_error, frames_psnr),
    }
    for stage, found in measured.items():
        threshold = calls.thresholds[stage]
        if threshold.exact or threshold.end_to_end:
            asked.append(checks.embedding_check(stage, threshold, *found))
    asked.append(checks.text_sensitivity_check(sensitivity))
    return DiffusionVerification(
        engine=calls.engine.name,
        thresholds=calls.thresholds,
        blocks=tuple(functions),
        checks=tuple(asked),
        largest_float16=calls.largest_float16(),
        text_rel_error=text_error[0],
        velocity_rel_error=velocity_error,
        frames_psnr_db=frames_psnr,
        token_ids_equal=equal,
        text_sensitivity=sensitivity,
    )


def _texts(
    calls: BlockCalls, model: Any
) -> tuple[float, list[Array], tuple[float, float | None]]:
    """Share of the prompts with equal ids, embeddings of two by the engine, and their error."""
    host, checkpoint = calls.plan.host.text, calls.planned.checkpoint
    words = Words(calls.bundle, calls.bundle.plan.host.text)
    ids = [words.ids(cleaned(prompt)) for prompt in PROMPTS]
    own = load_tokenizer(checkpoint)(
        [cleaned(prompt) for prompt in PROMPTS],
        padding="max_length", truncation=True, max_length=host.tokens,
    )["input_ids"]  # fmt: skip
    equal = sum(a == [*map(int, b)] for a, b in zip(ids, own, strict=True)) / len(PROMPTS)
    compared = ids[:COMPARED]
    masks = [np.arange(host.tokens) <= words.end(each) for each in compared]
    inputs = [
        {"hidden": np.asarray(words.table[each])[None], "mask": mask.astype(np.float32)[None]}
        for each, mask in zip(compared, masks, strict=True)
    ]
    actual = [each["text"] for each in _run(calls, "text", [("encode", i) for i in inputs])]
    family = checkpoint.family
    mask = torch.from_numpy(np.stack(masks)).long()
    expected = family.reference_text(model, torch.tensor(compared), mask).numpy()
    return equal, actual, difference(np.concatenate(actual), expected)


def _velocities(
    calls: BlockCalls, model: Any, texts: Sequence[Array]
) -> tuple[float, float | None, float]:
    """Error of the velocities at the first and the last step, and how much the text changes."""
    host, family = calls.plan.host, calls.planned.checkpoint.family
    latents, times = noise((1, *host.denoiser.latents), 0), host.schedule.timesteps
    asked = [(times[0], texts[0]), (times[-1], texts[0]), (times[0], texts[1])]
    inputs = [
        {"latents": latents, "timestep": np.asarray([time], np.float32), "text": text}
        for time, text in asked
    ]
    actual = [each["velocity"] for each in _run(calls, "denoiser", [("step", i) for i in inputs])]
    expected = [
        family.reference_velocity(model, *(torch.from_numpy(each[name]) for name in each)).numpy()
        for each in inputs
    ]
    error, psnr = difference(np.concatenate(actual), np.concatenate(expected))
    return error, psnr, difference(expected[2], expected[0])[0]


def _frames(calls: BlockCalls, model: Any) -> tuple[float, float | None]:
    """Error of the frames of a tile of a few latent frames."""
    host, family = calls.plan.host, calls.planned.checkpoint.family
    channels, frames = host.denoiser.latents[:2]
    latents = noise((1, channels, min(frames, LATENT_FRAMES), *host.vae.tile), 1)
    asked = [("next" if i else "first", {"latents": latents[:, :, i : i + 1]})
             for i in range(latents.shape[2])]  # fmt: skip
    given = _run(calls, "vae", asked, kept=True)
    actual = np.concatenate([each["pixels"] for each in given], axis=2)
    expected = family.reference_frames(model, torch.from_numpy(latents)).numpy()
    return difference(actual, expected)


def _run(
    calls: BlockCalls,
    stage: str,
    asked: Sequence[tuple[str, dict[str, Array]]],
    kept: bool = False,
) -> list[Mapping[str, Array]]:
    """What the stage gives of each call; each block makes all its calls while it is open.

    Args:
        calls: The blocks.
        stage: The stage.
        asked: Function and inputs of each call.
        kept: Whether a call takes the caches that the one before it gave.
    """
    asked = [(name, dict(values)) for name, values in asked]
    given: list[dict[str, Array]] = [{} for _ in asked]
    for block in calls.plan.stage(stage):
        caches: dict[str, Array] = {}
        with calls.open(block) as opened:
            for (name, values), results in zip(asked, given, strict=True):
                function = block.function(name)
                actual = opened.run(function, values | caches)
                expected = opened.expected(function, values | caches)
                opened.compare(function, actual, expected)
                values |= {to: actual[name] for name, to in function.links.items()}
                results |= actual
                if kept:
                    ends = {n: a for n, a in actual.items() if n.startswith("cache_")}
                    caches = {name.removesuffix("_out"): array for name, array in ends.items()}
    return [*given]
