"""From noise to latents: schedule, sampler and rules over a denoiser.

For each step: guidance or not; a velocity that is forecast, or one call of the denoiser for each
text, in which a rule may skip its layers; the sampler's step, or the leap that ends the run. What
`Steps.state` gives after a step is all that a later run needs to go on from there, with the same
result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.errors import InputError, RecipeError, unknown_name
from edgevlm.libraries import first_line
from edgevlm.recipe import MethodChoice
from edgevlm.registry import RULES, SAMPLERS
from edgevlm.runtimes.steps.rules import (
    BlocksRule,
    Floats,
    GuidanceRule,
    LeapRule,
    Rule,
    VelocityRule,
)

COMPUTED, FORECAST, SKIPPED = "computed", "forecast", "skipped"


class Denoiser(Protocol):
    """What gives velocities f32 [1, C, F, h, w]."""

    def velocities(
        self, latents: Floats, timestep: float, texts: int, gate: Gate | None
    ) -> list[Floats]:
        """The velocity for the text, and for the negative one where `texts` is 2.

        Args:
            latents: Of this step.
            timestep: Of this step.
            texts: How many texts are run.
            gate: Decides whether the layers run; None runs them.
        """


@dataclass(frozen=True)
class Step:
    """One step that is over.

    Attributes:
        index: Which.
        how: `computed`; `forecast`, without a call; `skipped`, a call without its layers.
        texts: Texts that were run.
        leaps: Whether it went to the end of the schedule.
        latents: After it.
    """

    index: int
    how: str
    texts: int
    leaps: bool
    latents: Floats


class Gate:
    """Whether the layers run at one step; remembers what they add to the hidden state."""

    def __init__(self, rule: BlocksRule) -> None:
        self.rule, self.first = rule, rule.first
        self.index, self.skipped = 0, False
        self._added: dict[int, Floats] = {}

    def runs(self, branch: int, signal: Floats) -> bool:
        """Whether the layers run for a text; see `BlocksRule.runs`."""
        runs = self.rule.runs(self.index, branch, signal) or branch not in self._added
        self.skipped = self.skipped or not runs
        return runs

    def ran(self, branch: int, entering: Floats, leaving: Floats) -> None:
        """The layers ran: what they took and gave."""
        self._added[branch] = leaving - entering

    def skip(self, branch: int, entering: Floats) -> Floats:
        """What the layers would give."""
        return entering + self._added[branch]

    def state(self) -> dict[str, Floats]:
        """What the layers added, and what the rule remembers."""
        added = {f"layers_{branch}": array for branch, array in self._added.items()}
        return added | {f"rule_{name}": array for name, array in self.rule.state().items()}

    def restore(self, state: dict[str, Floats]) -> None:
        """Go on with what `state` gave."""
        self._added = {int(n[7:]): a for n, a in state.items() if n.startswith("layers_")}
        self.rule.restore({n[5:]: a for n, a in state.items() if n.startswith("rule_")})


class Steps:
    """One run of a schedule.

    Args:
        schedule: The steps.
        guidance: Factor of classifier-free guidance; 1 is none.
        rules: Rules of different roles.
    """

    def __init__(self, schedule: Schedule, guidance: float, rules: Sequence[Rule] = ()) -> None:
        self.schedule, self.guidance = schedule, guidance
        self.sampler: Any = SAMPLERS.load(schedule.sampler).Sampler(schedule)
        self._rules = {rule.role: rule for rule in rules}
        for rule in rules:
            rule.begin(schedule)
        blocks = self._rules.get("blocks")
        self.gate = Gate(blocks) if isinstance(blocks, BlocksRule) else None
        self.done, self._over, self._restored = 0, False, False

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self._over or self.done == self.schedule.steps

    def run(self, latents: Floats, denoiser: Denoiser) -> Iterator[Step]:
        """The steps that are left, from these latents on."""
        for index in range(self.done, self.schedule.steps):
            if self._over:
                return
            try:
                step = self._step(index, latents, denoiser)
            except ValueError as cause:  # arrays that do not go together
                if not self._restored:
                    raise
                raise _damaged(cause) from cause
            latents, self.done, self._over = step.latents, index + 1, step.leaps
            yield step

    def state(self) -> dict[str, Floats]:
        """What later steps read of those that are done, by name."""
        over = {"over": np.full(1, self._over, np.float32)}
        parts = {"sampler": self.sampler.state(), **self._states()}
        for part, arrays in parts.items():
            over |= {f"{part}.{name}": array for name, array in arrays.items()}
        return over

    def restore(self, done: int, state: dict[str, Floats]) -> None:
        """Go on after so many steps with what `state` gave.

        Raises:
            InputError: If it is not the state of such a run.
        """
        try:
            self._restore(done, state)
        except (KeyError, ValueError, IndexError, TypeError) as cause:
            raise _damaged(cause) from cause

    def _restore(self, done: int, state: dict[str, Floats]) -> None:
        self._restored = True
        if not 0 <= done <= self.schedule.steps:
            raise ValueError(f"{done} of {self.schedule.steps} steps")
        self.done, self._over = done, bool(state["over"][0])
        of: dict[str, dict[str, Floats]] = {}
        for name, array in state.items():
            part, _, own = name.partition(".")
            of.setdefault(part, {})[own] = array
        self.sampler.restore(done, of.get("sampler", {}))
        for part in self._states():
            holder = self.gate if part == "blocks" and self.gate else self._rules[part]
            holder.restore(of.get(part, {}))

    def _states(self) -> dict[str, dict[str, Floats]]:
        return {
            role: self.gate.state() if role == "blocks" and self.gate else rule.state()
            for role, rule in self._rules.items()
        }

    def _step(self, index: int, latents: Floats, denoiser: Denoiser) -> Step:
        guide, forecast = self._rules.get("guidance"), self._rules.get("velocity")
        guided = self.guidance > 1
        if isinstance(guide, GuidanceRule):
            guided = guided and guide.guides(index)
        how, texts = COMPUTED, 2 if guided else 1
        if isinstance(forecast, VelocityRule) and not forecast.computes(index):
            velocity, how, texts = forecast.forecast(index), FORECAST, 0
        else:
            velocity = self._velocity(index, latents, denoiser, texts)
            how = SKIPPED if self.gate is not None and self.gate.skipped else COMPUTED
            if isinstance(forecast, VelocityRule):
                forecast.computed(index, velocity)
        leap = self._rules.get("leap")
        if isinstance(leap, LeapRule) and leap.leaps(index, velocity):
            return Step(index, how, texts, True, self.sampler.leap(index, velocity, latents))
        return Step(index, how, texts, False, self.sampler.step(index, velocity, latents))

    def _velocity(self, index: int, latents: Floats, denoiser: Denoiser, texts: int) -> Floats:
        if self.gate is not None:
            self.gate.index, self.gate.skipped = index, False
        timestep = self.schedule.timesteps[index]
        each = denoiser.velocities(latents, timestep, texts, self.gate)
        if texts == 1:
            return each[0]
        return each[1] + np.float32(self.guidance) * (each[0] - each[1])


def _damaged(cause: Exception) -> InputError:
    return InputError(f"the saved steps are damaged ({first_line(cause)}); leave out --resume")


def make_rules(choices: Sequence[MethodChoice], schedule: Schedule) -> tuple[Rule, ...]:
    """The rules that are asked for, for a schedule.

    Raises:
        RecipeError: For an unknown rule or option, a value of no use, or rules that do not go
            together.
    """
    rules = [_made(choice, schedule) for choice in choices]
    for at, (choice, rule) in enumerate(zip(choices, rules, strict=True)):
        for other, earlier in zip(choices[:at], rules, strict=False):
            if reason := _apart(earlier, rule):
                raise RecipeError(f"rules '{other.name}' and '{choice.name}' exclude each other:"
                                  f" {reason}")  # fmt: skip
    return tuple(rules)


def _made(choice: MethodChoice, schedule: Schedule) -> Rule:
    kind, of = RULES.load(choice.name).Rule, choice.name.replace("_", "-")
    known = {each.name: each for each in fields(kind)}
    values: dict[str, Any] = {}
    for name, value in choice.options:
        name = name or next(iter(known))
        if name not in known:
            raise RecipeError(unknown_name(f"option of rule '{of}'", name, [*known]))
        whole = isinstance(known[name].default, int)
        if isinstance(value, str) or (whole and not isinstance(value, int)):
            shown, wanted = str(value)[:60], "a whole number" if whole else "a number"
            raise RecipeError(f"rule '{of}': {name} is {shown}, expected {wanted}")
        values[name] = value if whole else float(value)
    try:
        rule: Rule = kind(**values)
        rule.begin(schedule)
    except ValueError as cause:
        raise RecipeError(f"rule '{of}': {cause}") from cause
    return rule


def _apart(first: Rule, second: Rule) -> str:
    """Why two rules do not go together; empty where they do."""
    roles = {first.role, second.role}
    if len(roles) == 1:
        return f"both are of role '{first.role}'"
    if roles == {"velocity", "blocks"}:
        return "both spare the layers' work"
    waits = any(rule.role == "leap" and rule.reads for rule in (first, second))
    if waits and roles & {"velocity", "blocks"}:
        return "a leap that waits until velocities settle would take forecasts for settled"
    return ""
