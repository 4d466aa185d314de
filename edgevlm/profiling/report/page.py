"""A profile as one page that needs no network: pictures first, then tables, the document inside."""

from __future__ import annotations

from collections import defaultdict

from edgevlm.bundle.documents import to_document
from edgevlm.profiling.document import PARTS, Profile, Stat
from edgevlm.profiling.report.charts import bar, curve, lanes, split
from edgevlm.profiling.report.html import Html, data, legend, page, rows, tag, tile
from edgevlm.units import megabytes

TOP = 20
MEANING = {
    "picture": "picture to pixels",
    "vision": "vision",
    "reduce": "reduce",
    "prefill": "prefill",
    "head": "head",
    "decode": "decode",
    "evict": "evict",
    "wait": "wait for loads",
    "host": "between blocks",
}


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
        *_blocks(profile),
        *_operators(profile),
        *_energy(profile),
        *_rest(profile),
        data("profile", to_document(profile)),
    )


def milliseconds(value: float) -> str:
    """`0.031`, `4.20`, `37.1`, `1,512` ms without the unit."""
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 1000 else 0
    return f"{value:,.{digits}f}"


def missing_by_reason(profile: Profile) -> dict[str, list[str]]:
    """Names of what was not measured, for each reason."""
    found: dict[str, list[str]] = {}
    for name, reason in profile.not_measured.items():
        found.setdefault(reason, []).append(name)
    return found


def threads_text(profile: Profile) -> str:
    """`1 thread`, `2 threads`."""
    count = profile.threads
    return "threads unknown" if count is None else f"{count} thread{'s' * (count != 1)}"


def _head(profile: Profile) -> list[Html]:
    machine, asked = profile.machine, profile.question
    text = asked.prompt_tokens - asked.visual_tokens
    where = f"{machine.processor}, {machine.cores} cores, {machine.system} {machine.architecture}"
    tiles = [
        tile(milliseconds(profile.ttft_ms) + " ms", "to the first token"),
        tile(f"{profile.decode_tokens_per_s:,.1f} /s", "tokens after the first"),
        tile(
            megabytes(profile.peak_rss_bytes) + " MB",
            "peak memory of the process"
            + (f", {megabytes(profile.budget_bytes)} MB allowed" if profile.budget_bytes else ""),
        ),
        tile(megabytes(profile.card.weights_bytes) + " MB", "weights in the bundle"),
        tile(f"{asked.visual_tokens:,}", f"visual tokens, and {text:,} of text"),
    ]
    return [
        tag("h1", profile.bundle),
        tag("p", f"{profile.engine_version}, {threads_text(profile)}; {where};"
            f" device {profile.device}",
            class_="soft small"),
        tag("p", f"“{asked.prompt}” about {asked.image}: {profile.runs} timed answers of"
            f" {asked.tokens_generated} tokens after {profile.warm_ups} to warm up.",
            class_="soft small"),
        tag("div", *tiles, class_="tiles"),
    ]  # fmt: skip


def _answer(profile: Profile) -> list[Html]:
    shown = [(name, profile.stages[name].median) for name in PARTS if profile.stages[name].median]
    words = [(name, f"{MEANING[name]} {milliseconds(value)}") for name, value in shown]
    whole = profile.end_to_end_ms
    return [
        tag("h2", "Where an answer's time goes"),
        tag("p", f"Medians of {whole.n} answers, in ms; all of it takes"
            f" {milliseconds(whole.median)} (nine of ten within {milliseconds(whole.p90)}).",
            class_="soft small"),
        split(shown),
        legend(words),
        tag("h2", "One answer"),
        tag("p", f"The timed answer in the middle, {milliseconds(profile.answer.ms)} ms. A load in"
            " the colour of the stage that it is for.", class_="soft small"),
        lanes(profile.answer, profile.budget_bytes),
    ]  # fmt: skip


def _memory(profile: Profile) -> list[Html]:
    budget, footprint = profile.budget_bytes, profile.peak_footprint_bytes
    facts = [
        ("peak resident", f"{megabytes(profile.peak_rss_bytes)} MB, the whole process"),
        ("peak private", f"{megabytes(footprint)} MB, what no system can drop" if footprint else
         f"not measured: {profile.not_measured['peak_footprint_bytes']}"),
        ("budget", f"{megabytes(budget)} MB, the broken line" if budget else "none was given"),
        ("cache of keys and values", f"{megabytes(profile.card.kv_bytes)} MB,"
         f" {profile.card.kv_bytes_per_token:,} bytes a token"),
    ]  # fmt: skip
    parts = [tag("h2", "Memory"), _facts(facts)]
    if profile.opening is not None:
        parts += [
            tag("p", "Opening the bundle: each function is loaded and run once. Loads in the colour"
                " of their stage.", class_="soft small"),
            lanes(profile.opening, None),
        ]  # fmt: skip
    return parts


def _funnel(profile: Profile) -> list[Html]:
    most = max(site.tokens_in for site in profile.sites) or 1
    lines: list[Html] = []
    for site in profile.sites:
        lines += [
            tag("span", f"into {site.site}"),
            tag("span", bar(site.tokens_in / most), tag("em", f"{site.tokens_in:,}")),
            tag("span", f"out, by {site.method}"),
            tag("span", bar(site.tokens_out / most, "decode"), tag("em", f"{site.tokens_out:,}")),
        ]
    asked = profile.question
    lines += [
        tag("span", "in the prompt"),
        tag("span", bar(asked.prompt_tokens / most, "prefill"),
            tag("em", f"{asked.prompt_tokens:,}, of which {asked.visual_tokens:,} are visual")),
    ]  # fmt: skip
    return [tag("h2", "Tokens"), tag("div", *lines, class_="funnel")]


def _sustained(profile: Profile) -> list[Html]:
    found = profile.sustained
    if not found:
        return []
    first, last = found[0], found[-1]
    seconds = tag("div", tag("span", "0"), tag("b", f"{last.seconds:,.0f} s"), class_="axis")
    series = [
        ("tokens/s", [(s.seconds, s.decode_tokens_per_s) for s in found]),
        ("first token, ms", [(s.seconds, s.ttft_ms) for s in found]),
        ("°C", [(s.seconds, s.temperature_c) for s in found if s.temperature_c is not None]),
    ]
    drawn: list[Html] = []
    for name, points in series:
        if points:
            top = milliseconds(max(y for _, y in points))
            drawn += [tag("span", name, tag("br"), f"to {top}"), curve(points, name)]
    reason = profile.not_measured.get("sustained.temperature_c")
    return [
        tag("h2", "Without a pause"),
        tag("p", f"{len(found):,} answers in {last.seconds:,.0f} s, from zero up:"
            f" {first.decode_tokens_per_s:,.1f} tokens/s at first, {last.decode_tokens_per_s:,.1f}"
            f" at last; {milliseconds(first.ttft_ms)} ms to the first token, then"
            f" {milliseconds(last.ttft_ms)}."
            + (f" No temperature: {reason}." if reason else ""), class_="soft small"),
        tag("div", *drawn, tag("span"), seconds, class_="lanes"),
    ]  # fmt: skip


def _blocks(profile: Profile) -> list[Html]:
    took = [block.answer_ms.median if block.answer_ms else 0.0 for block in profile.blocks]
    most = max(took, default=0.0) or 1.0
    head = [("block", "name"), ("an answer, ms", "bars"), ("", "n"), ("calls", "n"),
            ("run ms", "n"), ("p90", "n hide"), ("load ms", "n hide"), ("evict ms", "n hide"),
            ("MB in memory", "n hide"), ("MB of weights", "n hide")]  # fmt: skip
    lines: list[list[str]] = []
    for block, ms in zip(profile.blocks, took, strict=True):
        size = block.resident_bytes
        lines.append([
            f"{block.name} {block.function}",
            bar(ms / most, block.function if block.function in MEANING else block.stage),
            milliseconds(ms), f"{block.calls:,}", _median(block.run_ms), _p90(block.run_ms),
            _median(block.load_ms), _median(block.evict_ms),
            "-" if size is None else megabytes(size), megabytes(block.weights_bytes),
        ])  # fmt: skip
    note = "Weights are shared by the functions of a block. Loads were measured "
    note += "each alone, after the answers." if profile.opening else "while others ran."
    return [tag("h2", "Blocks"), tag("p", note, class_="soft small"), rows(head, lines)]


def _operators(profile: Profile) -> list[Html]:
    title = tag("h2", "Operators")
    if profile.placement is None or profile.fallback is None:
        return [title, tag("p", f"Not measured: {profile.not_measured['placement']}.")]
    where = ", ".join(f"{count:,} on {name}" for name, count in profile.placement.items())
    away = profile.fallback
    facts = [("where they run", where), ("not where they should", f"{away:,}")]
    if profile.operators is None:
        return [title, _facts([*facts, ("times", profile.not_measured["operators"])])]
    ordered = sorted(profile.operators, key=lambda o: -o.calls * o.run_ms.median)[:TOP]
    lines = [
        [f"{o.operator}", o.module or o.name, f"{o.block} {o.function}", o.device,
         milliseconds(o.run_ms.median), f"{o.calls:,}", milliseconds(o.calls * o.run_ms.median)]
        for o in ordered
    ]  # fmt: skip
    kinds: dict[str, float] = defaultdict(float)
    for operator in profile.operators:
        kinds[operator.operator] += operator.calls * operator.run_ms.median
    best = sorted(kinds.items(), key=lambda item: -item[1])[:6]
    facts.append(("most time", ", ".join(f"{k} {milliseconds(v)} ms" for k, v in best)))
    head = [("operator", ""), ("module", "name"), ("function", "hide"), ("on", "hide"),
            ("ms", "n hide"), ("calls", "n hide"), ("an answer, ms", "n")]  # fmt: skip
    shown = f"The {len(lines)} that take most of one answer, of {len(profile.operators):,}; from a"
    shown += " run of its own under the engine's profiler, which takes time itself."
    return [title, _facts(facts), tag("p", shown, class_="soft small"), rows(head, lines)]


def _energy(profile: Profile) -> list[Html]:
    found, now, why = profile.energy_joules, profile.conditions, profile.not_measured
    energy = f"not measured: {why.get('energy_joules', '')}"
    if found is not None:
        energy = f"{found:.3f} J for an answer, all that the processor did in that time"
    hot = f"not measured: {why.get('temperature_c', '')}"
    if now.temperature_before_c is not None and now.temperature_after_c is not None:
        hot = f"{now.temperature_before_c:.1f} °C before, {now.temperature_after_c:.1f} °C after"
    clock = f"not measured: {why.get('conditions.frequency_after_mhz', '')}"
    if now.frequency_before_mhz is not None and now.frequency_after_mhz is not None:
        clock = f"{now.frequency_before_mhz:,.0f} MHz before, {now.frequency_after_mhz:,.0f} after"
    slowed = f"not known: {why.get('conditions.throttled', '')}"
    if now.throttled is not None:
        slowed = "yes" if now.throttled else "no"
    facts = [("energy", energy), ("temperature", hot), ("frequency", clock),
             ("slowed down for heat", slowed)]  # fmt: skip
    return [tag("h2", "Energy and heat"), _facts(facts)]


def _rest(profile: Profile) -> list[Html]:
    card, recipe = profile.card, profile.recipe
    floor = why = ""
    if card.token_floor_ms is not None and card.bandwidth_bytes_per_s is not None:
        floor = (
            f"{milliseconds(card.token_floor_ms)} ms at least to read {megabytes(card.token_bytes)}"
        )
        floor += f" MB at {card.bandwidth_bytes_per_s / 1e9:.1f} GB/s; {_median(profile.token_ms)}"
        floor += " ms measured"
    else:
        why = f"not measured: {profile.not_measured['card.token_floor_ms']}"
    facts = [
        ("model", recipe.model), ("target", recipe.target), ("scheme", str(recipe.quantize)),
        ("methods", ", ".join(map(str, recipe.methods)) or "the default"),
        ("a token", floor or why), ("edgevlm", profile.edgevlm_version),
    ]  # fmt: skip
    missing = [(", ".join(names), reason) for reason, names in missing_by_reason(profile).items()]
    return [
        tag("h2", "Recipe and floor"),
        _facts(facts),
        tag("h2", "Not measured"),
        _facts(missing),
        tag("p", "The whole profile is inside this page, as JSON in the element “profile”.",
            class_="soft small"),
    ]  # fmt: skip


def _facts(pairs: list[tuple[str, str]]) -> Html:
    return tag("dl", *(item for k, v in pairs for item in (tag("dt", k), tag("dd", v))))


def _median(found: Stat | None) -> str:
    return "-" if found is None else milliseconds(found.median)


def _p90(found: Stat | None) -> str:
    return "-" if found is None else milliseconds(found.p90)
