"""What is odd around a command: ends at random times, full disks, folders that cannot be written.

Each group takes the bundle, a folder for its own files and a source of chance, and gives outcomes.
Disks that are full or cannot be written, and a machine without a network, are namespaces of Linux
(`unshare`), which take no rights.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from asking import ROOT, Outcome, ask, outcome_of, question, start

# A shell that mounts something, then becomes the command.
MOUNT = ("unshare", "-rm", "sh", "-c", 'mount {} && exec "$@"', "sh")
NO_NETWORK = ("unshare", "-rn")
TEMPLATES = (
    "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ messages[0].__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('true') }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 10**10**8 }}",
    "{{ raise_exception('no pictures \x1b[2J') }}",
    "{{ messages[7].content }}",
    "{% for m in messages %}{{ m.content }",
    "{{ unknown(1) }}",
    "{{ messages | tojson | length / 0 }}",
    "",
    "x" * 10**7,
    "\x00",
)


def killed(bundle: Path, folder: Path, chance: random.Random) -> Iterator[Outcome]:
    """A first answer stopped by kill -9 at a random time; the next one is asked."""
    expected = ask(bundle, folder / "calm").line
    for number in range(10):
        cache = folder / f"kill{number}"
        with start(question(bundle), cache) as process:
            time.sleep(chance.uniform(0.2, 2.5))
            process.kill()
            process.communicate()
        yield _as_expected(ask(bundle, cache), expected)


def full_disk(bundle: Path, folder: Path, chance: random.Random) -> Iterator[Outcome]:
    """Caches, and places for a bundle, of a few kilobytes to some megabytes."""
    expected = ask(bundle, folder / "calm").line
    for kilobytes in (4, 64, *(int(2 ** chance.uniform(7, 15)) for _ in range(10))):
        disk = folder / f"disk{kilobytes}"
        disk.mkdir()
        around = _mounting(f"-t tmpfs -o size={kilobytes}k none '{disk}'")
        outcome = outcome_of(start(question(bundle), disk, around))
        yield _as_expected(outcome, expected)
        if kilobytes < 20_000:  # less than the bundle
            command = ["export", "embedded", "-o", str(disk / "b")]
            made = outcome_of(start(command, folder / "calm", around))
            yield made if made.kind == "refused" else Outcome("not refused", made.line, 0)


def read_only(bundle: Path, folder: Path, chance: random.Random) -> Iterator[Outcome]:
    """The cache, the bundle, the temporary folder or the place of a new bundle are read-only."""
    expected = ask(bundle, folder / "calm").line
    place = folder / "place"
    place.mkdir()
    nothing = "-t tmpfs -o ro none"
    same = f"--bind '{bundle}' '{bundle}' && mount -o remount,ro,bind '{bundle}'"
    for around, cache in (
        (f"{nothing} '{place}'", place),
        (same, folder / "new"),
        (same, folder / "calm"),
        (f"{nothing} /var/tmp && mount {nothing} '{place}'", place),
    ):
        yield _as_expected(outcome_of(start(question(bundle), cache, _mounting(around))), expected)
    for command in (
        ["export", "embedded", "-o", str(place / "b")],
        ["profile", str(bundle), "--runs", "1", "-o", str(place / "p.json")],
        ["cache", "--clear"],
    ):
        around = _mounting(f"{nothing} '{place}'")
        yield outcome_of(start(command, place, around))


def at_once(bundle: Path, folder: Path, chance: random.Random) -> Iterator[Outcome]:
    """Three first answers at once over one new cache, and two exports to one place."""
    expected = ask(bundle, folder / "calm").line
    for number in range(4):
        cache = folder / f"shared{number}"
        for process in [start(question(bundle), cache) for _ in range(3)]:
            yield _as_expected(outcome_of(process), expected)
    command = ["export", "embedded", "-o", str(folder / "both"), "--force"]
    for process in [start(command, folder / "calm") for _ in range(3)]:
        yield outcome_of(process)


def no_network(bundle: Path, folder: Path, chance: random.Random) -> Iterator[Outcome]:
    """Commands on a machine without a network: those that need none, and one that does."""
    for command in (
        question(bundle),
        ["verify", str(bundle)],
        ["profile", str(bundle), "--runs", "1"],
        ["export", "embedded", "-o", str(folder / "offline")],
        ["plan", "embedded"],
        ["plan", "owner/name"],
        ["export", "owner/name", "-o", str(folder / "none")],
    ):
        yield outcome_of(start(command, folder / "calm", NO_NETWORK))


def templates(bundle: Path, folder: Path, chance: random.Random) -> Iterator[Outcome]:
    """Chat templates that never end, fill memory, or reach for what is not theirs."""
    model = folder / "model"
    sample = [sys.executable, str(ROOT / "samples" / "make_checkpoint.py"), "--like"]
    subprocess.run([*sample, "tiny-smolvlm", str(model)], check=True, stderr=subprocess.DEVNULL)
    (model / "chat_template.jinja").unlink()
    for text in TEMPLATES:
        for name, content in (
            ("chat_template.jinja", text),
            ("chat_template.json", json.dumps({"chat_template": text})),
        ):
            (model / name).write_text(content, "utf-8")
            yield outcome_of(start(["plan", str(model)], folder / "calm"), 2 * 10**9)
            (model / name).unlink()
    shutil.rmtree(model)


def _mounting(what: str) -> tuple[str, ...]:
    return tuple(part.format(what) for part in MOUNT)


def _as_expected(outcome: Outcome, expected: str) -> Outcome:
    if outcome.kind == "answered" and outcome.line != expected:
        return Outcome("another answer", outcome.line, 0)
    return outcome


SURROUNDINGS = {
    "killed at a random time": killed,
    "a full disk": full_disk,
    "folders that cannot be written": read_only,
    "several processes at once": at_once,
    "no network": no_network,
    "chat templates of a checkpoint": templates,
}
