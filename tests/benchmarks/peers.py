"""edgevlm beside what else can be installed, from the same weights.

    python tests/benchmarks/peers.py --model SMOLVLM_256M --work FOLDER

Each file in `peer/` is a peer, edgevlm among them, in one or more precisions, and says there what
it does. A peer whose packages are missing gets an environment in FOLDER; one that cannot be
installed, converted or run is named with the reason. Everything gets the same tile, the same token
ids and the same number of threads, in a process each, of which one at a time runs (the others are
stopped). In rounds over all of them, in another order each time:

    vision        one tile of 512 x 512 px, 1,024 patches, to 64 features
    prefill N     N tokens into an empty cache, and one row of scores
    ttft          vision and the prefill of 96 rows, in the same round
    decode        a token after the 352 rows: the mean of 32

A ratio is the median over rounds of theirs / edgevlm's in the same precision: above 1, edgevlm is
faster. A floor (`_floors`) is measured in the same rounds. Outputs are compared with PyTorch's. At
the end each form starts afresh, for the time to its first token and for its memory. Linux only.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _environments import Skipped, environment
from _floors import Floors
from _measure import PAUSE_S, finish, machine, parser, say
from _peer_tables import REFERENCE, cold_table, parity_table, speed_tables, verdicts
from _running import Form, Running, Start, cold_start
from peer._given import DECODED, PROMPTS, Given
from PIL import Image

from edgevlm.parity.verify import PHOTOS

WARMUPS = 2
OUTPUTS = ("vision", *(f"prefill-{rows}" for rows in PROMPTS), "decode")


@dataclass
class Measured:
    """All that is known of one form."""

    form: Form
    sees: bool = False
    open_ms: float = 0.0
    times: dict[str, list[float]] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    parity: dict[str, dict[str, float]] = field(default_factory=dict)


def main() -> None:
    """Make environments and files, measure, print."""
    made = parser(__doc__)
    known = sorted(p.stem for p in Path(__file__).with_name("peer").glob("[!_]*.py"))
    made.add_argument("--peers", nargs="+", choices=known, default=known)
    made.add_argument("--starts", type=int, default=3, help="fresh processes of each form")
    made.set_defaults(repeats=20)
    options = made.parse_args()
    given = Given(str(Path(options.model).resolve()), options.work.resolve(), options.threads)
    where = machine(options.threads) | {"dtype": "as named"}
    _write_photo(given)
    skipped: dict[str, str] = {}
    forms = list(_forms(_with_reference(options.peers, given), given, skipped))
    measured, floors, versions = _measure(forms, given, options, skipped)
    where["versions"] |= versions
    for item in measured:
        item.parity = _parity(item.form, given)
    say("cold starts")
    _cold(measured, given, options.starts, skipped)
    speed_tables(measured, floors, where)
    parity_table(measured)
    cold_table(measured)
    goals = verdicts(measured)
    for name, reason in skipped.items():
        print(f"skipped: {name}: {reason}")
    document = {"where": where, "measured": measured, "goals": goals, "skipped": skipped}
    rates = {**floors.rates, "bytes": floors.bytes_per_s}
    finish(options.json, document | {"rates_per_s": rates})


def _with_reference(names: Sequence[str], given: Given) -> list[str]:
    """PyTorch is one of them, unless an earlier run left what it gives."""
    there = all(
        (given.work / "outputs" / f"{REFERENCE}-fp32" / f"{n}.npy").exists() for n in OUTPUTS
    )
    return list(names) if there or REFERENCE in names else [REFERENCE, *names]


def _forms(names: Sequence[str], given: Given, skipped: dict[str, str]) -> Iterator[Form]:
    """Forms that can be measured, with their files made."""
    for name in names:
        peer = importlib.import_module(f"peer.{name}")
        try:
            python = environment(name, peer, given.work)
        except Skipped as reason:
            skipped[name] = str(reason)
            continue
        for variant, precision in peer.VARIANTS.items():
            form = Form(name, variant, precision, peer.SAYS[variant], str(python))
            say(f"prepare {form.name}")
            log = given.folder("logs") / f"prepare-{name}-{variant}.txt"
            with log.open("w") as out:
                done = subprocess.run(form.command(given, "prepare"), stdout=out, stderr=out)
            if done.returncode:
                lines = log.read_text(errors="replace").strip().splitlines()
                skipped[form.name] = f"cannot be prepared: {(lines or ['?'])[-1][:200]}"
                continue
            yield form


def _measure(
    forms: Sequence[Form],
    given: Given,
    options: argparse.Namespace,
    skipped: dict[str, str],
) -> tuple[list[Measured], Floors, dict[str, str]]:
    """Rounds over all forms, the floors' products among them."""
    running: dict[str, tuple[Measured, Running]] = {}
    versions: dict[str, str] = {}
    for form in forms:
        say(f"open {form.name}")
        try:
            process = Running(form, given)
            opened = process.open()
        except Skipped as reason:
            skipped[form.name] = f"does not open: {reason}"
            continue
        versions |= opened["versions"]
        running[form.name] = (Measured(form, opened["sees"], opened["open_ms"]), process)
    floors = Floors(given)
    try:
        for index in range(WARMUPS + options.repeats):
            floors.measure()
            _round(index, running, given, skipped)
            say(f"  round {index + 1} of {WARMUPS + options.repeats}")
    finally:
        for _, process in running.values():
            process.end()
    measured = [item for item, _ in running.values()]
    for item in measured:
        if item.sees:
            pairs = zip(item.times["vision"], item.times[f"prefill {PROMPTS[0]}"], strict=True)
            item.times["ttft"] = [a + b for a, b in pairs]
    return measured, floors, versions


def _round(
    index: int, running: dict[str, tuple[Measured, Running]], given: Given, skipped: dict[str, str]
) -> None:
    """Every form does every work, all forms one work after another; each round begins elsewhere."""
    names = list(running)
    turn = index % max(1, len(names))
    for work in ("vision", *(f"prefill {rows}" for rows in PROMPTS)):
        for name in names[turn:] + names[:turn]:
            if name in running:
                _turn(name, work, index, running, given, skipped)


def _turn(
    name: str,
    work: str,
    index: int,
    running: dict[str, tuple[Measured, Running]],
    given: Given,
    skipped: dict[str, str],
) -> None:
    """One form does one work; after the longer prompt it decodes. Warm-ups save what came out."""
    item, process = running[name]
    if work == "vision" and not item.sees:
        return
    time.sleep(PAUSE_S)
    kind, _, rows = work.partition(" ")
    asked: list[tuple[str, dict[str, Any]]] = [(work, {"do": kind, "rows": int(rows or 0)})]
    if rows == str(max(PROMPTS)):
        asked.append(("decode", {"do": "decode"}))
    try:
        for what, question in asked:
            if index == 0:
                question["save"] = str(_output(item.form, given, what))
            ms = process.ask(**question)["ms"] / (DECODED if what == "decode" else 1)
            if index >= WARMUPS:
                item.times.setdefault(what, []).append(ms)
    except Skipped as reason:
        skipped[name] = f"stopped at {work}: {reason}"
        process.end()
        del running[name]


def _output(form: Form, given: Given, work: str) -> Path:
    folder = given.folder("outputs") / f"{form.peer}-{form.variant}"
    folder.mkdir(exist_ok=True)
    return folder / f"{work.replace(' ', '-')}.npy"


def _parity(form: Form, given: Given) -> dict[str, dict[str, float]]:
    """Features, scores after both prompts, and scores of 32 tokens against PyTorch's."""
    found = {}
    for name in OUTPUTS:
        ours = _output(form, given, name)
        exact = given.folder("outputs") / f"{REFERENCE}-fp32" / ours.name
        if not ours.exists() or not exact.exists():
            continue
        wanted = np.load(exact)
        got = np.load(ours).reshape(wanted.shape)
        largest, wrong = float(np.abs(wanted).max()), got - wanted
        rmse = max(float(np.sqrt(np.square(wrong, dtype=np.float64).mean())), 1e-30)
        found[name] = {
            "relative": float(np.abs(wrong).max()) / largest,
            "psnr_db": float(20 * np.log10(largest / rmse)),
            "equal_best": float((got.argmax(-1) == wanted.argmax(-1)).sum()),
            "rows": float(wanted.size // wanted.shape[-1]),
        }
    return found


def _cold(measured: Sequence[Measured], given: Given, starts: int, skipped: dict[str, str]) -> None:
    """Fresh processes in turn; the last of each is sampled for its memory, and not timed."""
    for index in range(starts + 1):
        for item in measured:
            try:
                item.starts.append(cold_start(item.form, given, sample=index == starts))
            except Skipped as reason:
                skipped[f"{item.form.name}, cold"] = str(reason)


def _write_photo(given: Given) -> None:
    path = given.work / "photo.npy"
    if not path.exists():
        given.work.mkdir(parents=True, exist_ok=True)
        side = given.config["vision_config"]["image_size"]
        picture = Image.open(PHOTOS[0]).convert("RGB").resize((side, side))
        np.save(path, np.asarray(picture))


if __name__ == "__main__":
    main()
