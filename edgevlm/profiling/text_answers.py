"""What only a bundle that generates text (a VLM) has: its question, tokens, prefill and decode."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from edgevlm.bundle.measures import stat_of
from edgevlm.bundle.plan import Plan
from edgevlm.profiling.measurements import Measurements, TimedAnswer
from edgevlm.profiling.recording import TimedCall
from edgevlm.profiling.sections import TextAnswer
from edgevlm.profiling.stages import share_of

NO_EMBEDDING = "the bundle answers with text"


def text_answer(measured: Measurements) -> TextAnswer:
    """The section `text` of a profile."""
    plan, bandwidth = measured.bundle.plan, measured.bandwidth_bytes_per_s
    kv, token_bytes = plan.host.kv, bytes_per_token(plan)
    floor = None if bandwidth is None else round(token_bytes / bandwidth * 1e3, 4)
    between = [ms for answer in measured.session.answers for ms in _token_ms(plan, answer)]
    return TextAnswer(
        question=measured.question,
        token_ms=stat_of(between),
        kv_bytes=kv.bytes,
        kv_bytes_per_token=kv.bytes // kv.tokens,
        token_bytes=token_bytes,
        token_floor_ms=floor,
    )


def ttft_ms(answers: Sequence[TimedAnswer]) -> float:
    """Median time to first token."""
    return round(statistics.median(a.answer.ttft_ms for a in answers), 4)


def decode_tokens_per_s(answers: Sequence[TimedAnswer]) -> float:
    """Median over the answers of the tokens after the first, per second."""
    return round(statistics.median(a.answer.decode_tokens_per_s or 0.0 for a in answers), 4)


def bytes_per_token(plan: Plan[Any]) -> int:
    """Bytes of weights that one decoded token reads."""
    return sum(b.weights_bytes for b in plan.blocks if b.stage in ("decoder", "head"))


def call_shares(plan: Plan[Any], calls: Sequence[TimedCall], prefilled: bool = False) -> list[str]:
    """The time share of each call: `decode` of single prompt rows is prefill.

    Args:
        plan: Of the bundle.
        calls: In any order; the shares are in the same.
        prefilled: Whether the first token came before them.
    """
    logits = [call.start for call in calls if (call.kind, call.function) == ("run", "logits")]
    first = float("-inf") if prefilled else min(logits, default=float("inf"))

    def share(call: TimedCall) -> str:
        single_row = call.kind == "run" and call.function == "decode" and call.start < first
        function = "prefill" if single_row else call.function
        return share_of(plan.kind, plan.block(call.block).stage, function)

    return [share(call) for call in calls]


def _token_ms(plan: Plan[Any], answer: TimedAnswer) -> list[float]:
    """From each end of the head to the next: tokens of which everything is counted."""
    last = plan.stage("head")[-1].name
    ends = [call.end for call in answer.calls if (call.kind, call.block) == ("step", last)]
    return [(after - before) * 1e3 for before, after in pairwise(ends)]
