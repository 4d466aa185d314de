"""Memory bandwidth, measured in a separate process: its arrays do not count in the caller's memory.

Each thread computes the dot product of a 128 MiB array with itself, which reads it once; no cache
holds it. The best of a few rounds counts: other work on the machine can only slow it down.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np

from edgevlm.libraries import python_command

ARRAY_BYTES, MOST_THREADS, ROUNDS = 128 * 2**20, 8, 5


def read_bytes_per_s(threads: int) -> float | None:
    """Bytes per second that so many threads read together; None if the measurement fails."""
    command = python_command(__name__, str(min(threads, MOST_THREADS)))
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
            timeout=60, env=os.environ | one,
        )  # fmt: skip
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def main() -> None:
    """The child process, with the number of threads: bytes per second on stdout."""
    arrays = [np.ones(ARRAY_BYTES // 4, np.float32) for _ in range(int(sys.argv[1]))]
    took = []
    for _ in range(ROUNDS):
        readers = [threading.Thread(target=np.dot, args=(array, array)) for array in arrays]
        started = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        took.append(time.perf_counter() - started)
    print(len(arrays) * ARRAY_BYTES / min(took))
