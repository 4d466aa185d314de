"""Rows of an embedding table, as the host reads them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgevlm.bundle.host import Embedding
from edgevlm.bundle.packed import PACKINGS, pack
from edgevlm.runtimes.loops.tables import load_table

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
