"""Answers of the loops: to a question, and the embedding of an image or clip."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.units import megabytes

SHOWN = 4  # numbers of an embedding in a line
BEST = 5  # classes in a line each


@dataclass(frozen=True)
class Answer:
    """One answer with its measurements; times in ms, `ttft_ms` from the decoded image on.

    `stopped` is why it ended: `stop` by a stop token, `length` by the most tokens asked for,
    `context` because the context is full.
    """

    text: str
    token_ids: tuple[int, ...]
    stopped: str
    visual_tokens: int
    prompt_tokens: int
    load_ms: float
    vision_ms: float
    reduce_ms: float
    prefill_ms: float
    ttft_ms: float
    decode_tokens_per_s: float | None
    peak_rss_bytes: int
    engine: str
    loads: int
    checks: int
    drafted: int
    accepted: int

    @property
    def shown(self) -> str:
        """Empty, as the text was streamed."""
        return ""

    @property
    def summary(self) -> str:
        """The figures, one line."""
        speed, other = self.decode_tokens_per_s, self.prompt_tokens - self.visual_tokens
        return (
            f"{self.visual_tokens} visual + {other} other tokens;"
            f" first token {self.ttft_ms:.0f} ms (vision {self.vision_ms:.0f}, reduce"
            f" {self.reduce_ms:.1f}, prefill {self.prefill_ms:.0f});"
            + (f" {speed:.1f} tokens/s;" if speed else "")
            + (f" {self.accepted} of {self.drafted} guesses right;" if self.drafted else "")
            + f" {self.loads} loads; peak {megabytes(self.peak_rss_bytes)}; {self.engine}"
            + self._cut
        )

    @property
    def _cut(self) -> str:
        """What cut the answer off; empty if it ended by itself."""
        if self.stopped == "length":
            return f"; cut off after {len(self.token_ids)} tokens (--max-new-tokens)"
        return "; cut off, as the context is full (export --context)" * (self.stopped == "context")


@dataclass(frozen=True)
class Label:
    """A text with its score: its share among all texts (softmax), or alone (sigmoid)."""

    label: str
    score: float


@dataclass(frozen=True)
class Embedded:
    """The embedding of one image or clip, and the score of each label; times in ms.

    `image` is the file as it was named, None for a picture that is none, and for a clip; `video`
    is a clip's. A classifier gives no embedding, and the score of each class, best first. `text_ms`
    is the time of the labels that were not cached.
    """

    image: str | None
    video: str | None
    embedding: tuple[float, ...]
    labels: tuple[Label, ...]
    load_ms: float
    vision_ms: float
    text_ms: float
    peak_rss_bytes: int
    engine: str
    loads: int

    @property
    def nearest(self) -> Label | None:
        """The label of the highest score."""
        return max(self.labels, key=lambda label: label.score, default=None)

    @property
    def shown(self) -> str:
        """The nearest label and all scores; without labels, size and beginning of the embedding."""
        if self.nearest is not None:
            listed = self.labels if self.embedding else self.labels[:BEST]
            names = [line(label.label) for label in listed]
            width = max(map(len, names))
            pairs = zip(names, listed, strict=True)
            each = (f"  {name:{width}}  {label.score:.4f}" for name, label in pairs)
            return "\n".join([line(self.nearest.label), *each])
        first = ", ".join(f"{number:.4f}" for number in self.embedding[:SHOWN])
        return f"{len(self.embedding)} numbers: {first}, …"

    @property
    def summary(self) -> str:
        """The figures, one line."""
        return (
            f"{'image' if self.image is not None else 'vision'} {self.vision_ms:.1f} ms;"
            + (f" texts {self.text_ms:.1f} ms;" if self.labels and self.embedding else "")
            + f" {self.loads} loads; peak {megabytes(self.peak_rss_bytes)}; {self.engine}"
        )


@dataclass(frozen=True)
class Generated:
    """One video with its measurements; times in ms.

    `output` is the file or folder that it was written to; None where it was not. `steps_run` are
    calls of the whole denoiser, for one text or for two under guidance; `steps_skipped` those
    without its layers, `steps_forecast` steps without a call, `leapt` steps that a leap spared.
    """

    output: str | None
    frames: int
    height: int
    width: int
    fps: float
    steps_run: int
    steps_skipped: int
    steps_forecast: int
    leapt: int
    load_ms: float
    text_ms: float
    denoise_ms: float
    vae_ms: float
    peak_rss_bytes: int
    engine: str
    loads: int

    @property
    def shown(self) -> str:
        """Where the video is."""
        return self.output or f"{self.frames} frames of {self.width}x{self.height}"

    @property
    def summary(self) -> str:
        """The figures, one line."""
        return (
            f"{self.frames} frames of {self.width}x{self.height}; text {self.text_ms:.0f} ms;"
            f" {self.steps_run} of {self._steps} steps{self._spared} in"
            f" {self.denoise_ms / 1e3:.1f} s; frames"
            f" {self.vae_ms / 1e3:.1f} s; {self.loads} loads; peak"
            f" {megabytes(self.peak_rss_bytes)}; {self.engine}"
        )

    @property
    def _steps(self) -> int:
        """Steps of the schedule that this run had left."""
        return self.steps_run + self.steps_skipped + self.steps_forecast + self.leapt

    @property
    def _spared(self) -> str:
        """Steps that were not run in full; empty where all were."""
        counts = {
            "skipped": self.steps_skipped, "forecast": self.steps_forecast, "leapt": self.leapt,
        }  # fmt: skip
        spared = ", ".join(f"{count} {how}" for how, count in counts.items() if count)
        return f" ({spared})" * bool(spared)


def line(text: str) -> str:
    """A text on one line, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)
