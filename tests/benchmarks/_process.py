"""One peer in a process of its own, in its own environment; `peers.py` starts it and asks.

    python _process.py NAME VARIANT prepare|serve --model CHECKPOINT --work FOLDER --threads N

`serve` answers each line of stdin by a line of stdout, both JSON:

    {"do": "vision"}                 one tile to features
    {"do": "prefill", "rows": 96}    into an empty cache, one row of scores, the best token
    {"do": "decode"}                 32 given tokens after the last prefill, each with its scores
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from peer._given import DECODED, PROMPTS, Array, Given, Peer

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Prepare, or open and answer until stdin ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("variant")
    parser.add_argument("action", choices=("prepare", "serve"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # peers on ONNX Runtime import it
    out = _keep_stdout()
    given = Given(asked.model, asked.work, asked.threads)
    module = importlib.import_module(f"peer.{asked.name}")
    if asked.action == "prepare":
        module.prepare(given, asked.variant)
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a stopped process sees no end
    started = time.perf_counter()
    peer = module.open(given, asked.variant)
    opened = (time.perf_counter() - started) * 1e3
    _answer(out, {"open_ms": opened, "versions": peer.versions, "sees": hasattr(peer, "see")})
    serve(peer, given, out)


def serve(peer: Peer, given: Given, out: TextIO) -> None:
    """Answer until stdin ends."""
    actions: dict[str, Callable[[dict[str, Any]], Array]] = {
        "vision": lambda _: peer.see(),
        "prefill": lambda asked: _prefill(peer, given.ids[: asked["rows"]]),
        "decode": lambda _: _decode(peer, given.ids[max(PROMPTS) : max(PROMPTS) + DECODED]),
    }
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        made = actions[asked["do"]](asked)
        spent = (time.perf_counter() - started) * 1e3
        if "save" in asked:
            np.save(asked["save"], made)
        _answer(out, {"ms": spent, "checksum": float(np.abs(made).mean())})


def _prefill(peer: Peer, ids: Array) -> Array:
    scores = peer.prefill(ids)
    scores.argmax()  # the first token is there when it is chosen
    return scores


def _decode(peer: Peer, ids: Array) -> Array:
    """Scores [32, V]; the next token is the given one, whatever the best is."""
    made = []
    for token in ids.tolist():
        made.append(peer.step(token).copy())
        made[-1].argmax()
    return np.stack(made)


def _keep_stdout() -> TextIO:
    """The real stdout; whatever else is printed, also by libraries, goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def _answer(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
