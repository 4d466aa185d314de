"""A profile as one page that needs no network: drawings first, then tables, the document inside."""

from __future__ import annotations

from edgevlm.bundle.documents import to_document
from edgevlm.profiling.document import Profile
from edgevlm.profiling.report.charts import bar, curve, lanes, split
from edgevlm.profiling.report.html import Html, data, facts, legend, page, tag, tile
from edgevlm.profiling.report.tables import (
    blocks_table,
    energy_facts,
    operators_table,
    recipe_facts,
)
from edgevlm.profiling.stages import time_shares
from edgevlm.units import megabytes, milliseconds


def report(profile: Profile) -> str:
    """The page."""
    return page(
        f"edgevlm profile: {profile.bundle}",
        *_head(profile),
        *(tag("p", tag("b", "Note: "), words, class_="note") for words in profile.warnings),
        *_answer(profile),
        *_memory(profile),
        *_funnel(profile),
        *_sustained(profile),
        *blocks_table(profile),
        *operators_table(profile),
        *energy_facts(profile),
        *recipe_facts(profile),
        data("profile", to_document(profile)),
    )


def threads_text(profile: Profile) -> str:
    """`1 thread`, `2 threads`."""
    count = profile.threads
    return "threads unknown" if count is None else f"{count} thread{'s' * (count != 1)}"


def _head(profile: Profile) -> list[Html]:
    machine, budget = profile.machine, profile.budget_bytes
    where = f"{machine.processor}, {machine.cores} cores, {machine.system} {machine.architecture}"
    peak = "peak memory of the process" + (f", budget {megabytes(budget)}" if budget else "")
    tiles = [
        *_answer_tiles(profile),
        tile(megabytes(profile.peak_rss_bytes), peak),
        tile(megabytes(profile.card.weights_bytes), "weights in the bundle"),
    ]
    if profile.text is not None:
        asked = profile.text.question
        other = asked.prompt_tokens - asked.visual_tokens
        tiles.append(tile(f"{asked.visual_tokens:,}", f"visual tokens and {other:,} text tokens"))
    return [
        tag("h1", profile.bundle),
        tag("p", f"{profile.engine_version}, {threads_text(profile)}; {where};"
            f" device {profile.device}",
            class_="soft small"),
        tag("p", f"{_question(profile)} after {profile.warm_ups} warm-up answers.",
            class_="soft small"),
        tag("div", *tiles, class_="tiles"),
    ]  # fmt: skip


def _question(profile: Profile) -> str:
    if profile.text is not None:
        asked = profile.text.question
        return (
            f"“{asked.prompt}” about {asked.image}: {profile.runs} timed answers of"
            f" {asked.tokens_generated} tokens"
        )
    if (video := profile.video) is not None:
        spec = video.question
        return (
            f"Video of “{spec.prompt}” ({spec.frames} frames of {spec.width}x{spec.height},"
            f" {spec.steps_run} of {spec.steps} steps in full): {profile.runs} timed answers"
        )
    section = profile.embedding
    assert section is not None
    return (
        f"Embedding of the {section.question.modality} “{section.question.source}”"
        f" ({section.dimensions:,} dimensions): {profile.runs} timed answers"
    )


def _answer_tiles(profile: Profile) -> list[Html]:
    """The figures of the type of answer."""
    if profile.ttft_ms is not None and profile.decode_tokens_per_s is not None:
        return [
            tile(milliseconds(profile.ttft_ms) + " ms", "time to first token"),
            tile(f"{profile.decode_tokens_per_s:,.1f} /s", "tokens after the first"),
        ]
    if (video := profile.video) is not None:
        return [
            tile(f"{video.denoise_ms.median / 1e3:,.1f} s", "denoising"),
            tile(f"{video.frames_ms.median / 1e3:,.1f} s", "frames of the latents"),
        ]
    assert profile.embedding is not None
    return [tile(milliseconds(profile.embedding.encode_ms.median) + " ms", "one encode")]


def _answer(profile: Profile) -> list[Html]:
    shares = [s for s in time_shares(profile.kind) if profile.stages[s.name].median]
    medians = [(share.name, profile.stages[share.name].median) for share in shares]
    labels = [(s.name, f"{s.label} {milliseconds(profile.stages[s.name].median)}") for s in shares]
    total = profile.end_to_end_ms
    return [
        tag("h2", "Time of an answer by stage"),
        tag("p", f"Medians of {total.n} answers in ms; an answer takes"
            f" {milliseconds(total.median)} (90 % within {milliseconds(total.p90)}).",
            class_="soft small"),
        split(medians),
        legend(labels),
        tag("h2", "One answer"),
        tag("p", f"The median timed answer, {milliseconds(profile.answer.ms)} ms. Loads have the"
            " colour of their stage.", class_="soft small"),
        lanes(profile.kind, profile.answer, profile.budget_bytes),
    ]  # fmt: skip


def _memory(profile: Profile) -> list[Html]:
    budget, footprint = profile.budget_bytes, profile.peak_footprint_bytes
    private = "not measured: " + profile.not_measured.get("peak_footprint_bytes", "")
    if footprint is not None:
        private = f"{megabytes(footprint)}, the figure mobile systems use to kill apps"
    pairs = [
        ("peak resident", f"{megabytes(profile.peak_rss_bytes)}, the whole process"),
        ("peak private", private),
        ("budget", f"{megabytes(budget)}, the dashed line" if budget else "none"),
    ]
    if (text := profile.text) is not None:
        per_token = f"{text.kv_bytes_per_token:,} bytes per token"
        pairs.append(("KV cache", f"{megabytes(text.kv_bytes)}, {per_token}"))
    parts = [tag("h2", "Memory"), facts(pairs)]
    if profile.opening is not None:
        parts += [
            tag("p", "Opening the bundle: each function is loaded and run once. Loads have the"
                " colour of their stage.", class_="soft small"),
            lanes(profile.kind, profile.opening, None),
        ]  # fmt: skip
    return parts


def _funnel(profile: Profile) -> list[Html]:
    """Tokens before and after each method; nothing where no method works."""
    if not profile.sites:
        return []
    most = max(site.tokens_in for site in profile.sites) or 1
    rows: list[Html] = []
    for site in profile.sites:
        rows += [
            tag("span", f"into {site.site}"),
            tag("span", bar(site.tokens_in / most), tag("em", f"{site.tokens_in:,}")),
            tag("span", f"out, by {site.method}"),
            tag("span", bar(site.tokens_out / most, "decode"), tag("em", f"{site.tokens_out:,}")),
        ]
    if profile.text is not None:
        asked = profile.text.question
        rows += [
            tag("span", "in the prompt"),
            tag("span", bar(asked.prompt_tokens / most, "prefill"),
                tag("em", f"{asked.prompt_tokens:,}, of which {asked.visual_tokens:,} are visual")),
        ]  # fmt: skip
    return [tag("h2", "Tokens"), tag("div", *rows, class_="funnel")]


def _sustained(profile: Profile) -> list[Html]:
    samples = profile.sustained
    if not samples:
        return []
    first, last = samples[0], samples[-1]
    seconds = tag("div", tag("span", "0"), tag("b", f"{last.seconds:,.0f} s"), class_="axis")
    series: list[tuple[str, list[tuple[float, float | None]]]] = [
        ("answer, ms", [(s.seconds, s.answer_ms) for s in samples]),
        ("tokens/s", [(s.seconds, s.decode_tokens_per_s) for s in samples]),
        ("first token, ms", [(s.seconds, s.ttft_ms) for s in samples]),
        ("°C", [(s.seconds, s.temperature_c) for s in samples]),
    ]
    drawn: list[Html] = []
    for name, values in series:
        points = [(x, y) for x, y in values if y is not None]
        if points:
            top = milliseconds(max(y for _, y in points))
            drawn += [tag("span", name, tag("br"), f"to {top}"), curve(points, name)]
    reason = profile.not_measured.get("sustained.temperature_c")
    return [
        tag("h2", "Sustained"),
        tag("p", f"{len(samples):,} answers without a pause in {last.seconds:,.0f} s, axes from"
            f" zero: {milliseconds(first.answer_ms)} ms at first, {milliseconds(last.answer_ms)} ms"
            " at the end." + (f" No temperature: {reason}." if reason else ""),
            class_="soft small"),
        tag("div", *drawn, tag("span"), seconds, class_="lanes"),
    ]  # fmt: skip
