"""Tables in files: rows are read, and the file is closed with the table."""

from __future__ import annotations

import numpy as np

from edgevlm.runtimes.loops.tables import Rows


def test_a_table_closes_its_file(tmp_path):
    path = tmp_path / "table.bin"
    path.write_bytes(np.arange(6, dtype=np.float32).tobytes())
    rows = Rows(path, np.float32, (3, 2))
    file = rows._file
    assert rows[1].tolist() == [2, 3]
    assert not file.closed
    del rows
    assert file.closed
