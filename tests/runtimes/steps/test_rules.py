"""What rules say of themselves, what is refused, and the gate before layers."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.errors import RecipeError
from edgevlm.recipe import MethodChoice
from edgevlm.registry import RULES
from edgevlm.runtimes.steps.rules import BlocksRule
from edgevlm.runtimes.steps.run import Gate, make_rules

SCHEDULE = Schedule("euler", (9.0,) * 10, (1.0,) * 10 + (0.0,), (1.0,) * 10)


@pytest.mark.parametrize("name", RULES.names())
def test_a_rule_says_where_it_is_from_and_refuses_options_of_no_use(name):
    module = RULES.load(name)
    assert all(getattr(module, text) for text in ("SUMMARY", "SOURCE", "DIFFERS"))
    first = fields(module.Rule)[0].name
    with pytest.raises(RecipeError, match=f"^rule '{name}': "):
        make_rules([MethodChoice.parse(f"{name}:{first}=-5")], SCHEDULE)
    with pytest.raises(RecipeError, match=f"unknown option of rule '{name}' 'x'"):
        make_rules([MethodChoice.parse(f"{name}:x=1")], SCHEDULE)


def test_the_first_block_decides_by_the_last_computed_step():
    rule = RULES.load("first-block").Rule(threshold=0.1)
    rule.begin(SCHEDULE)
    values = [1.0, 1.05, 1.11, 1.15, 1.3]  # 1.05 and 1.15 are within a tenth of 1 and of 1.11
    runs = [rule.runs(i, 0, np.full(3, x, np.float32)) for i, x in enumerate(values)]
    assert runs == [True, False, True, False, True]
    assert rule.runs(0, 1, np.ones(3, np.float32))  # the other text decides for itself


def test_a_gate_runs_the_layers_until_it_knows_what_they_add():
    class Never(BlocksRule):
        def begin(self, schedule):
            pass

        def runs(self, index, branch, signal):
            return False

    gate, signal = Gate(Never()), np.ones(2, np.float32)
    assert gate.runs(0, signal)
    gate.ran(0, np.float32([1, 2]), np.float32([5, 5]))
    assert not gate.runs(0, signal)
    assert gate.skip(0, np.float32([0, 1])).tolist() == [4, 4]
