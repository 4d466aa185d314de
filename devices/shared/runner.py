"""The program that runs on a remote computer: a folder in, a profile out.

    python -P -m edgevlm.devices.shared.runner RUN                       measure RUN/request.json
    python -P -m edgevlm.devices.shared.runner --check TARGET [ENGINE]   print whether it runs here

`RUN` is `runs/ID` of the contract in docs/devices.md, and the bundle lies in `../../bundles`. Steps
go to stdout, a line each, and to log.txt with everything that engines write. The run ends when
stdin does, because nothing would then fetch the profile.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from edgevlm.errors import EdgeVLMError


def main(arguments: list[str]) -> int:
    """Run one of the two commands; the exit code."""
    if arguments[:1] == ["--check"]:
        return check(*arguments[1:])
    folder = Path(arguments[0])
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)  # engines write to the descriptor itself
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    return run(folder)


def check(target: str, engine: str = "") -> int:
    """Print `fits` if this Python can run bundles of `target`, else why not; the exit code."""
    try:
        from edgevlm import api  # noqa: F401  (numpy, Pillow, tokenizers)
        from edgevlm.profiling import measure as profiling  # noqa: F401  (numpy, Pillow, tokenizers)
        from edgevlm.registry import engine_for
        from edgevlm.runtimes.engine import find_engine

        runs = find_engine(engine or engine_for(target)).targets
    except (EdgeVLMError, ImportError) as cause:
        print(" ".join(str(cause).split()))
        return 1
    print("fits" if target in runs else f"engine '{engine}' does not run '{target}'")
    return 0


def run(folder: Path) -> int:
    """Measure the folder's request; writes profile.json or error.txt."""
    from edgevlm.bundle.writing import write_text
    from edgevlm.devices.shared import contract as t
    from edgevlm.profiling.document import write_profile
    from edgevlm.profiling.measure import profile
    from edgevlm.profiling.measurements import ProfileRequest
    from edgevlm.runtimes.loading import load_loop
    from edgevlm.version import VERSION

    started = time.perf_counter()

    def say(step: str) -> None:
        print(step, flush=True)
        print(f"[{time.perf_counter() - started:6.1f} s] {step}", file=sys.stderr, flush=True)

    print(f"edgevlm {VERSION}, Python {sys.version.split()[0]}", file=sys.stderr, flush=True)
    try:
        run_request = t.read_request(folder / t.REQUEST)
        bundle = folder.resolve().parents[1] / "bundles" / run_request.bundle
        say("open the bundle")
        loop = load_loop(
            bundle, run_request.engine, run_request.threads, run_request.memory_bytes, say
        )
        request = ProfileRequest(
            folder / t.PICTURE,
            run_request.prompt,
            run_request.runs,
            run_request.tokens_generated,
            run_request.minutes,
        )
        write_profile(profile(loop, request, say), folder / t.PROFILE)
        return 0
    except EdgeVLMError as cause:
        error = str(cause)
    except MemoryError:
        error = "there is not enough memory for this"
    except Exception as cause:  # a defect of edgevlm; no terminal shows the traceback
        traceback.print_exc()
        error = f"{type(cause).__name__}: {cause} (a defect; its traceback is in log.txt)"
    write_text(folder / t.ERROR, t.one_line(error) + "\n")
    return 1


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
