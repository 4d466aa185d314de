"""A device with a POSIX shell (over ssh, over adb): copy a bundle by its hashes, run, fetch.

Every step is one short script for `sh` that runs in our folder and touches nothing outside it.

 1. `connected` keeps one shell open for the visit. It holds a lock (flock, which the system
    releases when that shell ends), so that two visits do not disturb each other's measurements.
 2. `put` compares the sha256 of the remote files with the local ones. A file that differs is
    removed, the manifest first: a folder that has one is a complete bundle. A missing file is sent
    to `partial/SHA256`, hashed there, and renamed; the manifest comes last. A partial file stays
    when the link is cut, and the next run continues at its end.
 3. `measure` writes `runs/ID`, starts the runner there, and prints its lines. The runner's stdin
    stays open until it ends; when the link is cut stdin closes, and the runner ends itself.

Names sent by a device are used only if they are known names or clean paths within the folder; its
texts are bounded, and printed as one line.
"""

from __future__ import annotations

import re
import secrets
import shlex
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgevlm.bundle.cache import sha256
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import MANIFEST
from edgevlm.devices.shared import contract as t
from edgevlm.devices.shared.contract import Job, Step, one_line
from edgevlm.devices.shared.process import errors_of, last_line, meter, running
from edgevlm.errors import DeviceError
from edgevlm.profiling.document import Profile

SMALL = t.LOG_BYTES
AGAIN = "run the same command again: what was copied stays"
# macOS has no sha256sum.
SHA = 'S=sha256sum; command -v $S >/dev/null 2>&1 || S="shasum -a 256"'
# Output of a login shell before this line is ignored.
BEGIN = "edgevlm-begin"
# Messages of the device's programs: no room, no permission.
FULL, DENIED = (
    ("No space left", "Disk quota exceeded", "File too large"),
    ("Permission denied", "Read-only file system", "Not a directory", "Operation not permitted"),
)


@dataclass(frozen=True)
class File:
    """A file for the device: its path in the folder there, its path here, its size and sha256."""

    path: str
    source: Path
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str, source: Path) -> File:
        """A file that is hashed now."""
        return cls(path, source, source.stat().st_size, sha256(source))


class Shell(ABC):
    """One visit to a device; a transport defines how a script is run there and what errors mean.

    Attributes:
        name: As `--device` names it.
        folder: A shell word for our folder there; its expansion is `root` once connected.
        resumes: Whether `send` can continue in the middle of a file.
    """

    resumes = True

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.folder, self.root = name, folder, ""

    @abstractmethod
    def argv(self, script: str) -> list[str]:
        """The local command that runs a script on the device."""

    @abstractmethod
    def link_failure(self, code: int, errors: str) -> str | None:
        """One line if the link failed, None if the script did."""

    def send(self, file: File, skip: int, then: str, sent: Callable[[int], None]) -> str:
        """Complete `partial/SHA256` of a file and run a script; returns its output.

        `cat` continues at the end of the file; a transport with a quicker way overrides this.

        Args:
            file: The file.
            skip: Bytes of the partial file.
            then: The script.
            sent: Called with each number of bytes as they go.
        """
        into = f"cat {'>>' if skip else '>'} {shlex.quote(self._partial(file))}"
        argv = self.argv(self._in_root(f"{into} && {{ {then}; }}"))
        with running(argv, stdin=subprocess.PIPE) as (process, errors):
            assert process.stdin is not None and process.stdout is not None
            # The other end may have closed; its own message is read below.
            with suppress(BrokenPipeError), file.source.open("rb") as data, process.stdin as pipe:
                data.seek(skip)
                while chunk := data.read(2**18):
                    pipe.write(chunk)
                    pipe.flush()
                    sent(len(chunk))
            out = process.stdout.read(SMALL)
            self._check(process.wait(), errors_of(errors))
            return out.decode("utf-8", "replace")

    @contextmanager
    def connected(self, progress: Step) -> Iterator[None]:
        """Open the folder and hold its lock until the body ends.

        Raises:
            DeviceError: If it cannot be reached, or another command is running there.
        """
        progress(f"connect to {self.name}")
        script = (
            f"export LC_ALL=C; umask 077; mkdir -p {self.folder} && cd {self.folder}"
            " && mkdir -p bundles partial runs || exit 1;"
            " if command -v flock >/dev/null 2>&1; then exec 9>lock;"
            ' e=$(flock -n 9 2>&1) || [ -n "$e" ] || { echo edgevlm-busy; exit 0; }; fi;'
            ' echo "edgevlm-root:$PWD"; exec cat >/dev/null'
        )
        with running(self.argv(script), stdin=subprocess.PIPE) as (process, errors):
            assert process.stdin is not None and process.stdout is not None
            self.root = ""
            while not self.root and (line := process.stdout.readline(4096)):
                text = line.decode("utf-8", "replace").strip()
                if text == "edgevlm-busy":
                    raise DeviceError(
                        f"{self.name} is busy: another edgevlm uses it; wait, then try again"
                    )
                if text.startswith("edgevlm-root:/"):
                    self.root = text.removeprefix("edgevlm-root:")
            if not self.root:
                self._check(process.wait() or 1, errors_of(errors))
            try:
                self.sh("rm -rf runs && mkdir runs")  # of a visit that was cut off
                yield
            finally:
                with suppress(BrokenPipeError):
                    process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)

    def sh(self, script: str, limit: int = SMALL) -> str:
        """The output of a script, which starts in our folder.

        Raises:
            DeviceError: If it fails, or prints more than `limit` bytes.
        """
        return self.read(script, limit).decode("utf-8", "replace")

    def read(self, script: str, limit: int) -> bytes:
        """The output of a script, as bytes."""
        with running(self.argv(self._in_root(script))) as (process, errors):
            assert process.stdout is not None
            out = process.stdout.read(limit + 1)
            if len(out) > limit:
                raise DeviceError(
                    f"{self.name} sent more than {limit} bytes, the most that is accepted"
                )
            self._check(process.wait(), errors_of(errors))
            return out.partition(f"{BEGIN}\n".encode())[2]

    def stream(self, script: str, progress: Step) -> tuple[int, str]:
        """Run a script and report each line of its output; returns its exit code and errors.

        Raises:
            DeviceError: If the link fails.
        """
        argv = self.argv(self._in_root(script))
        with running(argv, stdin=subprocess.PIPE) as (process, errors):
            assert process.stdout is not None
            while line := process.stdout.readline(4096):
                text = one_line(line.decode("utf-8", "replace"))
                if text and text != BEGIN:
                    progress(f"{self.name}: {text}")
            code, messages = process.wait(), errors_of(errors)
            if failure := self.failure(code, messages):
                raise DeviceError(failure)
            return code, messages

    def put_bundle(self, bundle: Bundle, progress: Step) -> None:
        """Copy the files of a bundle that differ."""
        files = [File(f.path, bundle.file(f.path), f.bytes, f.sha256) for f in bundle.plan.files]
        manifest = File.of(MANIFEST, bundle.path / MANIFEST)
        self.put(f"bundles/{t.folder_of(bundle)}", [*files, manifest], progress)

    def put(self, folder: str, files: Sequence[File], progress: Step) -> None:
        """Make a folder hold exactly these files; the last file marks the folder as complete.

        Raises:
            DeviceError: If the link is cut, the disk is full, or a file arrives damaged.
        """
        progress(f"{self.name}: compare {folder}")
        remote, partial = self._list_remote(folder)
        expected = {file.path: file.sha256 for file in files}
        missing = [f for f in files if remote.get(f.path) != f.sha256]
        others = [path for path, digest in remote.items() if expected.get(path) != digest]
        if not missing and not others:
            return
        mark = files[-1]
        self._remove(
            folder, [mark.path, *others]
        )  # the manifest first: an incomplete bundle never looks complete
        missing = [*(f for f in missing if f is not mark), mark]
        begun = {f: partial.get(f.sha256, 0) if self.resumes else 0 for f in missing}
        begun = {f: size if size <= f.bytes else 0 for f, size in begun.items()}
        need = sum(f.bytes - size for f, size in begun.items())
        free = self._free_bytes()
        if free is not None and need > free:
            raise DeviceError(
                f"{self.name} has {free / 1e6:,.1f} MB free for '{self.root}', {folder} needs"
                f" {need / 1e6:,.1f} MB more; free some space, and {AGAIN}"
            )
        sent = meter(f"{self.name}: copy {folder}", need, progress)
        for file in missing:
            self._put(folder, file, begun[file], sent)
        kept = sum(f.bytes for f in files) - need
        progress(
            f"{self.name}: copied {need / 1e6:,.1f} MB, {kept / 1e6:,.1f} MB were there already"
        )

    def measure(self, job: Job, bundle: Bundle, start: Callable[[str], str]) -> Profile:
        """One run: request in, profile out; the run's folder is removed afterwards.

        Args:
            job: What to measure.
            bundle: The bundle, which is on the device already.
            start: Runs `runs/ID` on the device to its end; returns how it ended.

        Raises:
            DeviceError: If the run fails there, or its answer is not its profile.
        """
        run = f"runs/{secrets.token_hex(6)}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                request = Path(folder) / t.REQUEST
                request.write_text(t.request_text(job, bundle), "utf-8")
                self._put(run, File.of(t.PICTURE, job.image), 0, lambda _: None)
                self._put(run, File.of(t.REQUEST, request), 0, lambda _: None)
            ended = start(run)
            kind, _, contents = self.read(
                f"cd {run}; if [ -f {t.ERROR} ]; then echo error; head -c {SMALL} {t.ERROR};"
                f" elif [ -f {t.PROFILE} ]; then echo profile; cat {t.PROFILE}; fi",
                t.PROFILE_BYTES,
            ).partition(b"\n")
            if kind == b"profile":
                return t.received(contents, job, bundle, self.name)
            text = one_line(contents.decode("utf-8", "replace"))
            raise DeviceError(f"{self.name}: {text if kind == b'error' else ended}")
        finally:
            with suppress(DeviceError):  # if the link is cut, the next visit removes it
                log = self.log(run) if job.log else b""
                self.sh(f"rm -rf {run}")
                t.keep_log(job, log)

    def log(self, run: str) -> bytes:
        """The log of a run."""
        path = f"{run}/{t.LOG}"
        return self.read(f"[ ! -f {path} ] || head -c {SMALL - 100} {path}", SMALL)

    def failure(self, code: int, errors: str) -> str | None:
        """One line if a command failed because of the link or the disk; None otherwise."""
        if line := self.link_failure(code, errors):
            return line
        last = last_line(errors)
        if any(reason in last for reason in FULL):
            return (
                f"{self.name} has no space left in '{self.root}' ({last}); free some, and {AGAIN}"
            )
        if any(reason in last for reason in DENIED):
            return f"{self.name}: its folder for edgevlm cannot be written: {last}"
        return None

    def _put(self, folder: str, file: File, skip: int, sent: Callable[[int], None]) -> None:
        """Copy one file through `partial/`; again from 0 if the partial file was another's."""
        part, path = shlex.quote(self._partial(file)), PurePosixPath(folder) / file.path
        # A cut link ends `cat` too: a file that is too short may continue, any other is damaged.
        then = (
            f"{SHA}; case $($S {part}) in {file.sha256}*) mkdir -p {_quoted(path.parent)}"
            f" && mv {part} {_quoted(path)} && echo edgevlm-arrived;;"
            f" *) [ $(wc -c < {part}) -lt {file.bytes} ] || rm -f {part};; esac"
        )
        for begun in dict.fromkeys((skip, 0)):
            if "edgevlm-arrived" in self.send(file, begun, then, sent):
                return
        raise DeviceError(
            f"{self.name}: '{file.path}' arrived damaged; check the disk of the device"
        )

    def _list_remote(self, folder: str) -> tuple[dict[str, str], dict[str, int]]:
        """sha256 of each file of a folder, and the size of each partial file by its sha256."""
        out = self.sh(
            f"{SHA}; mkdir -p {folder}; (cd {folder} && find . -type f -exec $S {{}} +);"
            " find partial -type f -exec wc -c {} +"
        )
        digests = dict[str, str]()
        for digest, path in re.findall(r"^([0-9a-f]{64})  \./(.+)$", out, re.M):
            if ".." not in PurePosixPath(path).parts:
                digests[path] = digest
        sizes = re.findall(r"^ *(\d{1,15}) partial/([0-9a-f]{64})$", out, re.M)
        return digests, {name: int(size) for size, name in sizes}

    def _remove(self, folder: str, paths: Sequence[str]) -> None:
        """Remove files of a folder of ours, in this order."""
        for start in range(0, len(paths), 100):  # the length of a command has a limit
            names = " ".join(_quoted(PurePosixPath(folder) / p) for p in paths[start : start + 100])
            self.sh(f"rm -f {names}")

    def _free_bytes(self) -> int | None:
        """Free bytes for our folder; None if the output of `df` cannot be read."""
        words = self.sh("df -Pk . | tail -n 1").split()
        numbers = [int(word) for word in words if word.isdecimal() and len(word) < 16]
        return numbers[2] * 1024 if len(numbers) >= 3 else None

    def _partial(self, file: File) -> str:
        return f"{self.root}/partial/{file.sha256}"

    def _in_root(self, script: str) -> str:
        # No `exec`: ssh reports no exit code of a command that a signal ends, so the shell stays.
        root = shlex.quote(self.root)
        return f"echo {BEGIN}; export LC_ALL=C; umask 077; cd {root} || exit 1; {script}; exit $?"

    def _check(self, code: int, errors: str) -> None:
        if code:
            message = last_line(errors) or f"a command there ended with exit code {code}"
            raise DeviceError(self.failure(code, errors) or f"{self.name}: {message}")


def _quoted(path: PurePosixPath) -> str:
    """A path in our folder as one shell word that no program mistakes for an option."""
    return shlex.quote(f"./{path}")
