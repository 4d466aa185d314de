"""Common parts of all transports: the request, its folder on a device, the profile returned.

A transport is a file of `devices/`, found by its name:

    profile(address, job, progress)   measure a bundle there; `address` is what follows `NAME:`
    reachable()                       devices that can be reached now, or what to do

The contract with the runner on a device is a set of files in one folder (docs/devices.md):

    bundles/NAME/…          an unchanged bundle; complete once it has its manifest.json
    runs/ID/request.json    a `RunRequest`; the image is the file `picture` beside it
    runs/ID/profile.json    the answer, renamed when complete; or error.txt, one line; and log.txt

A device's answer is untrusted: it is bounded, read strictly and compared with the request.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgevlm.bundle.documents import DocumentError, dumps, load_json, read
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.writing import write_text
from edgevlm.errors import DeviceError, InputError, RecipeError, unknown_name
from edgevlm.profiling.answers import answers_of
from edgevlm.profiling.document import LIMIT_BYTES, Profile, parse_profile
from edgevlm.profiling.measurements import ProfileRequest
from edgevlm.registry import ENGINES
from edgevlm.runtimes.loops import images

FORMAT_VERSION = 1
REQUEST, PICTURE = "request.json", "picture"
PROFILE, ERROR, LOG = "profile.json", "error.txt", "log.txt"
PROFILE_BYTES, LOG_BYTES = LIMIT_BYTES, 4 * 10**6
# Longest line that is printed of a device's messages.
LINE = 300
Step = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What to measure, and how.

    Attributes:
        bundle: The bundle here.
        request: Image, question, number of answers.
        engine: Name of an engine; None takes the first on the device that runs the target.
        threads: Threads of the engine; None takes all cores.
        memory_bytes: Most memory of the process there; None sets no budget.
        runner: The program or app to put on a phone, which then runs the bundle.
        log: Local file for the device's log.
    """

    bundle: Path
    request: ProfileRequest
    engine: str | None = None
    threads: int | None = None
    memory_bytes: int | None = None
    runner: Path | None = None
    log: Path | None = None

    @property
    def image(self) -> Path:
        """The image of the question."""
        return self.request.picture

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
        prompt: The question about the file `picture`, or the text to encode; null is a question of
            the runner's, or encodes the picture.
        runs: Timed answers.
        tokens_generated: Tokens of each answer; stop tokens do not end it.
        minutes: Then answers without a pause.
        engine: Name of the engine; null leaves the choice to what runs there.
        threads: Threads of the engine; null takes all cores.
        memory_bytes: Most memory of the process; null sets no budget.
    """

    format_version: int
    bundle: str
    prompt: str | None
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
                f"format_version is {self.format_version}, expected {FORMAT_VERSION}; install the"
                " same edgevlm at both ends"
            )
        if self.bundle != safe_name(self.bundle):
            raise DeviceError("bundle must be the name of a folder in 'bundles'")


@dataclass(frozen=True)
class Reachable:
    """One line of `edgevlm devices`.

    Attributes:
        device: A value of `--device`, or the name of the transport if it has none.
        state: `ready`, or the transport's own word for the state that prevents it.
        note: A description, or what to do.
    """

    device: str
    state: str
    note: str


def opened(job: Job) -> Bundle:
    """The opened bundle, after all checks that need no device.

    Raises:
        BundleError: If it is damaged.
        InputError: If the image cannot be read.
        RecipeError: If there is no such engine.
    """
    if job.engine is not None and job.engine not in ENGINES.names():
        raise RecipeError(unknown_name("engine", job.engine, ENGINES.names()))
    images.load(job.image)
    return Bundle.open(job.bundle)


def safe_name(name: str) -> str:
    """A file name that needs no quoting on any system."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100].lstrip(".-") or "bundle"


def request_text(job: Job, bundle: Bundle) -> str:
    """The text of `request.json`."""
    request = job.request
    return dumps(
        RunRequest(
            FORMAT_VERSION, folder_of(bundle), request.prompt, request.runs,
            request.tokens_generated, request.minutes, job.engine, job.threads, job.memory_bytes,
        )
    )  # fmt: skip


def read_request(path: Path) -> RunRequest:
    """Read `request.json` on the device.

    Raises:
        DeviceError: If it is not a request; one line that names the field.
    """
    try:
        return read(RunRequest, load_json(path, LIMIT_BYTES), path.name)
    except (OSError, ValueError, RecursionError) as cause:
        text = str(cause) if isinstance(cause, DocumentError) else f"{path.name}: {cause}"
        raise DeviceError(text) from cause


def folder_of(bundle: Bundle) -> str:
    """Name of the bundle's folder on a device."""
    return safe_name(Path(os.path.abspath(bundle.path)).name)


def received(text: bytes, job: Job, bundle: Bundle, device: str) -> Profile:
    """The profile that a device sent, completed with the names that only this side knows.

    Raises:
        DeviceError: If it is not a profile, or is one of another request.
    """
    try:
        profile = parse_profile(text.decode("utf-8"), PROFILE)
    except (InputError, UnicodeDecodeError) as cause:
        raise DeviceError(f"{device} sent no profile: {one_line(str(cause))}") from cause
    for name, (got, expected) in _compared(profile, job, bundle).items():
        if got != expected:
            raise DeviceError(f"{device} sent another profile: its {name} differs from the request")
    name = Path(os.path.abspath(bundle.path)).name
    here: Profile = answers_of(profile.kind).named(profile, job.image.name)
    return replace(here, device=device, bundle=name)


def _compared(profile: Profile, job: Job, bundle: Bundle) -> dict[str, tuple[object, object]]:
    """Value in the profile and value in the request, by the name of the field."""
    request, plan = job.request, bundle.plan
    return {
        "recipe": (profile.recipe, plan.recipe),
        "kind": (profile.kind, plan.kind),
        **answers_of(plan.kind).compared(profile, request),
        "runs": (profile.runs, request.runs),
        "engine": (profile.engine, profile.engine if job.engine is None else job.engine),
        "budget_bytes": (profile.budget_bytes, job.memory_bytes),
        "blocks": (
            [(b.name, b.function) for b in profile.blocks],
            [(b.name, f.name) for b in plan.blocks for f in b.functions],
        ),
    }


def keep_log(job: Job, log: bytes) -> None:
    """Write the device's log to the file of `--log`.

    Raises:
        InputError: If it cannot be written.
    """
    if job.log is not None:
        write_text(job.log, log.decode("utf-8", "replace"))


def one_line(text: str) -> str:
    """A device's message as one line without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LINE else line[: LINE - 3] + "..."
