"""The tables that an export writes for the host, some rows at a time."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevlm import pipeline  # noqa: E402
from edgevlm.bundle.host import Embedding  # noqa: E402
from edgevlm.bundle.packed import PACKINGS, pack  # noqa: E402


@pytest.mark.parametrize("dtype", ["f32", *PACKINGS])
def test_a_table_written_in_parts_has_all_numbers_and_then_all_scales(monkeypatch, tmp_path, dtype):
    matrices = (torch.randn(7, 64), torch.randn(2, 64))
    # Two rows at a time, and a marker's rows behind.
    monkeypatch.setattr(pipeline, "TABLE_BYTES", 2 * 4 * 64)
    table = Embedding(9, 64, dtype)
    pipeline._write_table(table, matrices, tmp_path / "table.bin")
    whole = torch.cat(matrices).numpy()
    parts = (whole,) if dtype == "f32" else pack(whole, PACKINGS[dtype])
    expected = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
    assert (tmp_path / "table.bin").read_bytes() == expected
    assert len(expected) == table.bytes
