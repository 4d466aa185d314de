"""Rows of a prompt that see each other: their groups, masks, and calls that take them whole."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.decoder import DecoderLoop
from edgevlm.runtimes.loops.sequence import PromptRows, _groups, call_rows, causal_mask

NONE = -1
# Two words, a picture, two words, a picture, a word.
VISUAL = np.array([0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0], bool)
GROUPS = np.array([NONE, NONE, 0, 0, 0, NONE, NONE, 1, 1, 1, NONE], np.int32)


def plan(mask, chunk=4, tokens=24, check=0):
    host = {"mask": mask, "chunk": chunk, "check": check, "entering": ()}
    return SimpleNamespace(host=SimpleNamespace(**host, states=SimpleNamespace(tokens=tokens)))


def calls(groups, **host):
    """The calls of a prompt by a loop."""
    loop = SimpleNamespace(plan=plan("pictures", **host), blocks=SimpleNamespace(keeps_all=True))
    return DecoderLoop._calls(loop, 0, len(groups), groups)


@pytest.mark.parametrize(
    ("mask", "groups"),
    [("causal", None), ("pictures", GROUPS), ("prefix", np.zeros(len(GROUPS)))],
)
def test_groups_of_a_prompt(mask, groups):
    made = _groups(plan(mask), VISUAL)
    np.testing.assert_array_equal(made, groups)


def test_a_mask_shows_later_rows_of_the_same_group():
    part = GROUPS[2:8]  # a picture, two words, and the begin of another
    mask = causal_mask(2, 8, 12, part)[0, 0] == 0
    expected = np.arange(12)[None] <= np.arange(2, 10)[:, None]
    expected[:3, 2:5] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("first", "most", "rows"),
    [(0, 4, 2), (0, 5, 5), (0, 8, 7), (0, 11, 11), (2, 3, 3), (2, 2, 0), (5, 4, 2), (7, 3, 3)],
)
def test_a_call_ends_at_the_border_of_a_group(first, most, rows):
    assert call_rows(GROUPS, first, most) == rows
    assert call_rows(None, first, most) == most


def test_pictures_go_whole_and_words_before_them_as_they_fit():
    assert calls(GROUPS) == [("prefill", n) for n in (2, 4, 4, 1)]
    assert calls(GROUPS, chunk=8, tokens=32) == [("prefill", 7), ("prefill", 4)]
    # Of 64 rows a call is not worth two words, whatever comes next.
    assert calls(GROUPS, chunk=64, tokens=128) == [("prefill", 11)]
    assert calls(GROUPS[5:], chunk=64, tokens=128) == [("prefill", 6)]
    assert calls(GROUPS[10:], chunk=64, tokens=128) == [("decode", 1)]


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (
            {"chunk": 2},
            "^3 tokens of the prompt see each other, and a call takes 2 rows, fr",
        ),
        (
            {"tokens": 9},
            "^3 tokens .* a call takes 4 rows, from row 6 of the 9 of the",
        ),
    ],
)
def test_a_picture_that_no_call_takes_is_refused(host, message):
    with pytest.raises(InputError, match=message):
        calls(GROUPS, **host)


def test_what_follows_a_prefix_keeps_its_groups():
    rows, positions = np.zeros((11, 4), np.float32), np.arange(11)[:, None]
    visual = tuple(np.flatnonzero(VISUAL))
    left = PromptRows(rows, positions, 11, visual, ids=(0,) * 11, groups=GROUPS).after(5)
    assert left.visual == (2, 3, 4)
    np.testing.assert_array_equal(left.groups, GROUPS[5:])
