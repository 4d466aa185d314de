"""What all transports share: what is asked, the folder it becomes on a device, what comes back.

A transport is a file of this folder, found by its name:

    profile(address, job, progress)   measure a bundle there; `address` is what follows `NAME:`
    reachable()                       what can be reached now, and what to do where nothing can

The contract with what runs on a device is files alone, in one folder of ours (docs/devices.md):

    bundles/NAME/…          a bundle as it is here; whole once its manifest.json is there
    runs/ID/request.json    a `RunRequest`, with the picture in the file `picture` beside it
    runs/ID/profile.json    the answer, put there by a rename; or error.txt, one line; and log.txt

What a device sends is hostile input: it is bounded, read strictly and compared with what was asked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgevlm.bundle.documents import DocumentError, dumps, read
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.writing import write_text
from edgevlm.errors import DeviceError, InputError, RecipeError, unknown_name
from edgevlm.profiling.document import LIMIT_BYTES, Profile, parse_profile
from edgevlm.profiling.measure import PHOTO, ProfileRequest
from edgevlm.profiling.sections import TextAnswer
from edgevlm.registry import ENGINES
from edgevlm.runtimes.loops import images

FORMAT_VERSION = 1
REQUEST, PICTURE = "request.json", "picture"
PROFILE, ERROR, LOG = "profile.json", "error.txt", "log.txt"
PROFILE_BYTES, LOG_BYTES = LIMIT_BYTES, 4 * 10**6
# Longest line that is shown of what a device says.
LINE = 300
Step = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What to measure, and with what.

    Attributes:
        bundle: The bundle here.
        request: Picture, question, number of answers.
        engine: Name of an engine; None takes the first on the device that runs the target.
        threads: Threads of the engine; None takes all cores.
        memory_bytes: Most memory of the process there; None sets no budget.
        runner: The program or app to put on a phone, which then runs the bundle.
        log: File here for what the device wrote on the way.
    """

    bundle: Path
    request: ProfileRequest
    engine: str | None = None
    threads: int | None = None
    memory_bytes: int | None = None
    runner: Path | None = None
    log: Path | None = None

    @property
    def picture(self) -> Path:
        """The picture that is asked about."""
        return self.request.image or PHOTO

    def without_runner(self, name: str) -> None:
        """Refuse `--runner` where nothing can be put on the device.

        Raises:
            DeviceError: If there is one.
        """
        if self.runner is not None:
            raise DeviceError(f"--runner is for phones: device '{name}' takes none; leave it out")


@dataclass(frozen=True)
class RunRequest:
    """`request.json`.

    Attributes:
        format_version: Of this document.
        bundle: Folder in `bundles/`.
        prompt: The question about the file `picture`.
        runs: Timed answers.
        tokens_generated: Tokens of each answer, whatever the model says in them.
        minutes: Then answers without a pause.
        engine: Name of the engine; null leaves the choice to what runs there.
        threads: Threads of the engine; null takes all cores.
        memory_bytes: Most memory of the process; null sets no budget.
    """

    format_version: int
    bundle: str
    prompt: str
    runs: int
    tokens_generated: int
    minutes: float
    engine: str | None
    threads: int | None
    memory_bytes: int | None

    def __post_init__(self) -> None:
        """Refuse another version, and a bundle that is not in `bundles/`."""
        if self.format_version != FORMAT_VERSION:
            raise DeviceError(
                f"format_version is {self.format_version}, expected {FORMAT_VERSION}; both ends"
                " need the same edgevlm"
            )
        if self.bundle != safe_name(self.bundle):
            raise DeviceError("bundle must be the name of a folder in 'bundles'")


@dataclass(frozen=True)
class Reachable:
    """One line of `edgevlm devices`.

    Attributes:
        device: What `--device` takes, or the name of the transport where there is none.
        state: `ready`, or in the transport's own word why it is not.
        note: What it is, or what to do.
    """

    device: str
    state: str
    note: str


def opened(job: Job) -> Bundle:
    """The bundle, once all that can be refused here has been.

    Raises:
        BundleError: If it is damaged.
        InputError: If the picture cannot be read.
        RecipeError: If there is no such engine.
    """
    if job.engine is not None and job.engine not in ENGINES.names():
        raise RecipeError(unknown_name("engine", job.engine, ENGINES.names()))
    images.load(job.picture)
    return Bundle.open(job.bundle)


def safe_name(name: str) -> str:
    """A file name that every system and shell takes as it is."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100].lstrip(".-") or "bundle"


def request_text(job: Job, bundle: Bundle) -> str:
    """The text of `request.json`."""
    asked = job.request
    return dumps(
        RunRequest(
            FORMAT_VERSION, folder_of(bundle), asked.prompt, asked.runs, asked.tokens_generated,
            asked.minutes, job.engine, job.threads, job.memory_bytes,
        )
    )  # fmt: skip


def read_request(path: Path) -> RunRequest:
    """Read `request.json` on the device.

    Raises:
        DeviceError: If it is none; one line that names the field.
    """
    try:
        return read(RunRequest, json.loads(path.read_text("utf-8")), path.name)
    except (OSError, ValueError, RecursionError) as cause:
        text = str(cause) if isinstance(cause, DocumentError) else f"{path.name}: {cause}"
        raise DeviceError(text) from cause


def folder_of(bundle: Bundle) -> str:
    """Name of the bundle's folder on a device."""
    return safe_name(Path(os.path.abspath(bundle.path)).name)


def received(text: bytes, job: Job, bundle: Bundle, device: str) -> Profile:
    """The profile that a device sent, with the names that only this side knows.

    Raises:
        DeviceError: If it is no profile, or not of what was asked.
    """
    try:
        profile = parse_profile(text.decode("utf-8"), PROFILE)
    except (InputError, UnicodeDecodeError) as cause:
        raise DeviceError(f"{device} sent no profile: {one_line(str(cause))}") from cause
    if profile.text is None:
        raise DeviceError(f"{device} sent a profile without 'text', and a question was asked")
    for name, (got, expected) in _compared(profile, profile.text, job, bundle).items():
        if got != expected:
            raise DeviceError(f"{device} sent another profile: its {name} is not what was asked")
    question = replace(profile.text.question, image=job.picture.name)
    return replace(
        profile,
        device=device,
        bundle=Path(os.path.abspath(bundle.path)).name,
        text=replace(profile.text, question=question),
    )


def _compared(
    profile: Profile, text: TextAnswer, job: Job, bundle: Bundle
) -> dict[str, tuple[object, object]]:
    """What a profile says and what was asked, by the name of the field."""
    asked, plan, question = job.request, bundle.plan, text.question
    return {
        "recipe": (profile.recipe, plan.recipe),
        "text.question.prompt": (question.prompt, asked.prompt),
        "text.question.tokens_generated": (question.tokens_generated, asked.tokens_generated),
        "runs": (profile.runs, asked.runs),
        "engine": (profile.engine, profile.engine if job.engine is None else job.engine),
        "budget_bytes": (profile.budget_bytes, job.memory_bytes),
        "blocks": (
            [(b.name, b.function) for b in profile.blocks],
            [(b.name, f.name) for b in plan.blocks for f in b.functions],
        ),
    }


def keep_log(job: Job, log: bytes) -> None:
    """Write what the device logged where `--log` says.

    Raises:
        InputError: If it cannot be written.
    """
    if job.log is not None:
        write_text(job.log, log.decode("utf-8", "replace"))


def one_line(text: str) -> str:
    """What a device says, as one line that steers no terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LINE else line[: LINE - 3] + "..."
