"""Rows of an embedding table, as the host reads them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgevlm.bundle.host import Embedding, LayerTable
from edgevlm.bundle.packed import PACKINGS, pack
from edgevlm.runtimes.loops.tables import load_table, load_tables

TABLE = np.arange(-32, 32, dtype=np.float32).reshape(4, 16)


@pytest.mark.parametrize("dtype", ["f32", "w8g64"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_row_is_multiplied_after_it_is_read(tmp_path, dtype, scale):
    path = tmp_path / "table.bin"
    packed = (TABLE,) if dtype == "f32" else pack(TABLE, PACKINGS[dtype])
    path.write_bytes(b"".join(np.ascontiguousarray(part).tobytes() for part in packed))
    bundle = SimpleNamespace(file=lambda name: tmp_path / name)
    table = load_table(bundle, Embedding(4, 16, dtype, "table.bin", scale))
    assert table.shape == (4, 16)
    rows = table[[2, 0]]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, scale * TABLE[[2, 0]], atol=scale * 0.13)
    np.testing.assert_allclose(table[3], scale * TABLE[3], atol=scale * 0.13)


def test_rows_of_a_second_table_stand_behind_those_of_the_first(tmp_path):
    """A word beyond the second table has its row of visual tokens; both may be packed."""
    second = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
    (tmp_path / "table.bin").write_bytes(TABLE.tobytes())
    packed = pack(second, PACKINGS["w8g64"])
    (tmp_path / "second.bin").write_bytes(b"".join(part.tobytes() for part in packed))
    host = SimpleNamespace(
        embedding=Embedding(4, 16, "f32", "table.bin"),
        per_layer=LayerTable(Embedding(3, 64, "w8g64", "second.bin", 2.0), visual_row=1),
    )
    bundle = SimpleNamespace(plan=SimpleNamespace(host=host), file=lambda name: tmp_path / name)
    table = load_tables(bundle)
    assert table.shape == (4, 80)
    for rows in ([3, 0, 2], slice(0, 4), 2, np.array([[1, 3]])):
        chosen = np.arange(4)[rows]
        found = table[rows]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[..., :16], TABLE[chosen])
        behind = 2 * second[np.where(chosen < 3, chosen, 1)]
        np.testing.assert_allclose(found[..., 16:], behind, atol=2.0)
