"""Scores by hand, properties of the intervals, and groups."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.evaluation.scores import Score, ScoredAnswer, group_scores, right, score, task_scores


def marks(*scenes, task="shape", kind="image"):
    """ScoredAnswers of scenes, each a text like `110`: two right answers and a wrong one."""
    return [
        ScoredAnswer(f"scene {i}", task, kind, letter == "1")
        for i, scene in enumerate(scenes)
        for letter in scene
    ]


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("Red", "red", True), (" red.\n", "RED", True), ("red", "red.", True),
        ("red .", "red", True),
        ("red..", "red", False), (".red", "red", False), ("reds", "red", False), ("", "red", False),
        ("3.5", "35", False), ("a  b", "a b", False), (".", "", True),
    ],
)  # fmt: skip
def test_what_counts_as_right(answer, expected, same):
    assert right(answer, expected) is same


def test_two_scenes_by_hand():
    # Draws of two scenes: {0, 0} 1/4, {0, 1} 1/2, {1, 1} 1/4, with shares 0, 1 of 4 and 1.
    found = score(marks("000", "1"))
    assert found == Score(accuracy=0.25, low=0.0, high=1.0, n=4)


def test_an_interval_by_the_exact_distribution():
    # 20 scenes of one question, 12 right: the number right is binomial(20, 0.6), whose quantiles
    # at 2.5 % and 97.5 % are 8 and 16 (P(X <= 7) = 0.021, P(X <= 8) = 0.057; P(X <= 15) = 0.949,
    # P(X <= 16) = 0.984).
    found = score(marks(*["1"] * 12, *["0"] * 8))
    assert (found.low, found.accuracy, found.high) == (0.4, 0.6, 0.8)


def test_questions_of_a_scene_are_not_independent():
    together, apart = score(marks(*["1" * 10, "0" * 10] * 10)), score(marks(*["1", "0"] * 100))
    assert together.n == apart.n
    assert together.high - together.low > 2.5 * (apart.high - apart.low)


scenes = st.lists(st.text("01", min_size=1, max_size=6), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(scenes)
def test_an_interval_holds_its_accuracy(given):
    found = score(marks(*given))
    good, count = "".join(given).count("1"), len("".join(given))
    assert found.accuracy == good / count
    assert 0 <= found.low <= found.accuracy <= found.high <= 1
    assert found.n == count


@pytest.mark.parametrize("scene", ["1", "0", "110", "0001"])
def test_equal_scenes_have_no_width(scene):
    found = score(marks(*[scene] * 7))
    assert found.low == found.accuracy == found.high == scene.count("1") / len(scene)


def test_more_scenes_are_narrower():
    widths = []
    for times in (2, 8, 32, 128):
        found = score(marks(*["110", "0", "1"] * times))
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 3 * widths[2]
    assert widths[1] / widths[3] == pytest.approx(4, rel=0.2)  # as 1 / sqrt(scenes)


def test_the_seed_and_nothing_else_changes_an_interval():
    a = marks("1100", "01", "1", "0", "10", "111", "0001")
    assert score(a, 1) == score(a, 1)
    assert score(a, 1) != score(a, 2)
    more = a + marks("0", "0", "1", task="other")
    assert task_scores(more)["shape"] == score(a)


def test_groups_by_hand():
    found = [
        *marks("1", "0", task="read"), *marks("1", "1", task="shape"),
        *marks("0", task="count", kind="clip"), *marks("1", task="order", kind="clip"),
        *marks("000", task="multi_turn"),
    ]  # fmt: skip
    groups = group_scores(found)
    assert {name: (s.accuracy, s.n) for name, s in groups.items()} == {
        "image": (0.75, 4), "clip": (0.5, 2), "detail": (1 / 3, 3), "multi_turn": (0.0, 3),
    }  # fmt: skip
    assert "clip" not in group_scores(marks("1"))
