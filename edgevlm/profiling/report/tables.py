"""The tables of a profile's page: blocks, operators, energy, recipe, what was not measured."""

from __future__ import annotations

from collections import defaultdict

from edgevlm.bundle.measures import Operator, Stat
from edgevlm.profiling.document import Profile
from edgevlm.profiling.report.charts import bar
from edgevlm.profiling.report.html import Html, facts, rows, tag
from edgevlm.profiling.stages import share_of
from edgevlm.units import megabytes, milliseconds

TOP = 20  # operators in the table


def median_text(stat: Stat | None) -> str:
    """The median in ms, or `-`."""
    return "-" if stat is None else milliseconds(stat.median)


def p90_text(stat: Stat | None) -> str:
    """The 90th percentile in ms, or `-`."""
    return "-" if stat is None else milliseconds(stat.p90)


def missing_by_reason(profile: Profile) -> dict[str, list[str]]:
    """Names of what was not measured, for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in profile.not_measured.items():
        names.setdefault(reason, []).append(name)
    return names


def blocks_table(profile: Profile) -> list[Html]:
    """Each function with its times and memory."""
    per_answer = [block.answer_ms.median if block.answer_ms else 0.0 for block in profile.blocks]
    most = max(per_answer, default=0.0) or 1.0
    head = [("block", "name"), ("per answer, ms", "bars"), ("", "n"), ("calls", "n"),
            ("run ms", "n"), ("p90", "n hide"), ("load ms", "n hide"), ("evict ms", "n hide"),
            ("resident MB", "n hide"), ("weights MB", "n hide")]  # fmt: skip
    lines: list[list[str]] = []
    for block, ms in zip(profile.blocks, per_answer, strict=True):
        size = block.resident_bytes
        lines.append([
            f"{block.name} {block.function}",
            bar(ms / most, share_of(profile.kind, block.stage, block.function)),
            milliseconds(ms), f"{block.calls:,}", median_text(block.run_ms),
            p90_text(block.run_ms), median_text(block.load_ms), median_text(block.evict_ms),
            "-" if size is None else megabytes(size, unit=""),
            megabytes(block.weights_bytes, unit=""),
        ])  # fmt: skip
    when = "each alone, after the answers" if profile.opening else "within the answers"
    note = f"The functions of a block share its weights. Loads were measured {when}."
    return [tag("h2", "Blocks"), tag("p", note, class_="soft small"), rows(head, lines)]


def operators_table(profile: Profile) -> list[Html]:
    """Where operators run, and those that take most of an answer."""
    title = tag("h2", "Operators")
    if profile.placement is None or profile.fallback is None:
        return [title, tag("p", f"Not measured: {profile.not_measured['placement']}.")]
    where = ", ".join(f"{count:,} on {name}" for name, count in profile.placement.items())
    pairs = [
        ("placement", where),
        ("fallback, not on the engine's device", f"{profile.fallback:,}"),
    ]
    if profile.operators is None:
        return [title, facts([*pairs, ("times", profile.not_measured["operators"])])]
    pairs.append(("most time", _by_type(profile.operators)))
    slowest = sorted(profile.operators, key=lambda o: -o.calls * o.run_ms.median)[:TOP]
    lines = [
        [f"{o.operator}", o.module or o.name, f"{o.block} {o.function}", o.device,
         milliseconds(o.run_ms.median), f"{o.calls:,}", milliseconds(o.calls * o.run_ms.median)]
        for o in slowest
    ]  # fmt: skip
    head = [("operator", ""), ("module", "name"), ("function", "hide"), ("on", "hide"),
            ("ms", "n hide"), ("calls", "n hide"), ("per answer, ms", "n")]  # fmt: skip
    note = f"The {len(lines)} of {len(profile.operators):,} operators that take most of an answer,"
    note += " from a separate run under the engine's profiler, whose overhead is included."
    return [title, facts(pairs), tag("p", note, class_="soft small"), rows(head, lines)]


def _by_type(operators: tuple[Operator, ...]) -> str:
    """Milliseconds per answer of the six types of operators that take most."""
    totals: dict[str, float] = defaultdict(float)
    for operator in operators:
        totals[operator.operator] += operator.calls * operator.run_ms.median
    best = sorted(totals.items(), key=lambda item: -item[1])[:6]
    return ", ".join(f"{name} {milliseconds(ms)} ms" for name, ms in best)


def energy_facts(profile: Profile) -> list[Html]:
    """Energy, temperature, frequency, slow-downs."""
    joules, now, why = profile.energy_joules, profile.conditions, profile.not_measured
    energy = f"not measured: {why.get('energy_joules', '')}"
    if joules is not None:
        energy = f"{joules:.3f} J per answer, other work of the processor included"
    hot = f"not measured: {why.get('temperature_c', '')}"
    if now.temperature_before_c is not None and now.temperature_after_c is not None:
        hot = f"{now.temperature_before_c:.1f} °C before, {now.temperature_after_c:.1f} °C after"
    clock = f"not measured: {why.get('conditions.frequency_after_mhz', '')}"
    if now.frequency_before_mhz is not None and now.frequency_after_mhz is not None:
        clock = f"{now.frequency_before_mhz:,.0f} MHz before, {now.frequency_after_mhz:,.0f} after"
    slowed = f"not known: {why.get('conditions.throttled', '')}"
    if now.throttled is not None:
        slowed = "yes" if now.throttled else "no"
    pairs = [("energy", energy), ("temperature", hot), ("frequency", clock),
             ("slowed down for heat", slowed)]  # fmt: skip
    return [tag("h2", "Energy and heat"), facts(pairs)]


def recipe_facts(profile: Profile) -> list[Html]:
    """The recipe, the floor of a token, and the reasons of all nulls."""
    recipe = profile.recipe
    pairs = [
        ("model", recipe.model), ("target", recipe.target), ("scheme", str(recipe.quantize)),
        ("methods", ", ".join(map(str, recipe.methods)) or "the default"),
        *([("floor of a token", token_floor_text(profile))] if profile.text else []),
        ("edgevlm", profile.edgevlm_version),
    ]  # fmt: skip
    missing = [(", ".join(names), reason) for reason, names in missing_by_reason(profile).items()]
    return [
        tag("h2", "Recipe"),
        facts(pairs),
        tag("h2", "Not measured"),
        facts(missing),
        tag("p", "The page contains the complete profile, as JSON in the element “profile”.",
            class_="soft small"),
    ]  # fmt: skip


def token_floor_text(profile: Profile) -> str:
    """Time to read the weights of one token, beside the measured time; of a text answer."""
    text, bandwidth = profile.text, profile.card.bandwidth_bytes_per_s
    assert text is not None
    if text.token_floor_ms is None or bandwidth is None:
        return f"not known: {profile.not_measured.get('text.token_floor_ms', '')}"
    return (
        f"{milliseconds(text.token_floor_ms)} ms to read {megabytes(text.token_bytes)} at"
        f" {bandwidth / 1e9:.1f} GB/s; {median_text(text.token_ms)} ms measured"
    )
