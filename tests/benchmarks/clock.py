"""What the profiler's clock costs: answers with and without it, in turn, in one process.

    python tests/benchmarks/clock.py BUNDLE [--answers 200]

The bundle may be `embedded`. With the clock each answer is recorded as by `edgevlm profile`: its
loads, runs and evictions are noted, and memory is read at most every 10 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import time

import numpy as np

from edgevlm.cli.shared.default_bundle import default_bundle
from edgevlm.parity.verify import PHOTOS
from edgevlm.profiling.recording import recording
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.loops import images

WARM_UPS = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    path = default_bundle() if asked.bundle == "embedded" else asked.bundle
    loop, picture = load_loop(path, None, asked.threads), images.load(PHOTOS[0])
    times: dict[bool, list[float]] = {False: [], True: []}
    for index in range(2 * (WARM_UPS + asked.answers)):
        # A B B A: neither always follows the other.
        clocked = index % 4 in (1, 2)
        with recording(loop) if clocked else contextlib.nullcontext():
            loop.forget()
            started = time.perf_counter()
            loop.ask("What is it?", lambda: [loop.see([picture])], asked.tokens)
            took = (time.perf_counter() - started) * 1e3
        if index >= 2 * WARM_UPS:
            times[clocked].append(took)
    plain, clocked_ms = (np.asarray(times[which]) for which in (False, True))
    ratio = np.median(clocked_ms) / np.median(plain)
    pairs = np.median(clocked_ms / plain)
    for name, found in (("without", plain), ("with", clocked_ms)):
        shown = f"{np.median(found):.2f} / {np.percentile(found, 90):.2f}"
        print(f"{name} the clock: {shown} ms an answer, median / p90, n {len(found)}")
    print(f"with / without: {ratio:.4f} of medians, {pairs:.4f} the median of pairs")


if __name__ == "__main__":
    main()
