"""The answer of the text loop to one question."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.units import megabytes


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
