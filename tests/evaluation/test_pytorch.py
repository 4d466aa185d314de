"""Rows of a table of several matrices, as a lookup in one matrix gives them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevlm.evaluation.pytorch import TableRows  # noqa: E402

WORDS, EXTRA = torch.arange(12.0).reshape(6, 2), -torch.arange(4.0).reshape(2, 2)


def table(scale, second=None, numbers=None):
    decoder = SimpleNamespace(spec=SimpleNamespace(table_scale=scale, per_layer=numbers))
    return TableRows(SimpleNamespace(table=(WORDS, EXTRA), decoder=decoder, layer_table=second))


@pytest.mark.parametrize("ids", [3, [5, 6, 0], [[1, 7], [2, 1]]])
def test_rows_of_a_second_table_stand_behind(ids):
    """Rows that it has not are that of visual tokens."""
    second = torch.arange(9.0).reshape(3, 3)
    found = table(2.0, second, SimpleNamespace(scale=4.0, visual_row=1))[ids]
    first, ids = table(2.0)[ids], np.asarray(ids)
    np.testing.assert_array_equal(found[..., :2], first)
    known = np.where(ids < 3, ids, 1)
    np.testing.assert_array_equal(found[..., 2:], 4 * second.numpy()[known])


@pytest.mark.parametrize("ids", [3, 7, [5, 6, 0], [[1, 7], [7, 1]], [], np.array([6], np.int32)])
def test_rows_are_those_of_one_matrix(ids):
    rows = table(3.0)
    whole = 3 * torch.cat((WORDS, EXTRA)).numpy()
    assert rows.shape == whole.shape == (8, 2)
    found = rows[ids]
    np.testing.assert_array_equal(found, whole[np.asarray(ids, int)])
    assert found.dtype == np.float32


@pytest.mark.parametrize("ids", [8, -1, [0, 9]])
def test_a_row_outside_the_table_is_refused(ids):
    with pytest.raises(IndexError, match=r"^rows -?\d to -?\d of a table of 8$"):
        table(1.0)[ids]
