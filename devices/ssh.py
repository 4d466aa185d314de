"""`ssh:[USER@]HOST[:PORT]`: a computer with a POSIX shell and Python 3.11, such as a Jetson.

OpenSSH's own client connects, so that hosts, keys, agents and jump hosts are those of the user's
`~/.ssh/config`, and host keys are checked as configured there. Nothing is asked interactively
(BatchMode): a connection that needs an answer is refused with the command that asks for it.

One connection serves a visit: the first command is a master (ControlMaster) that lives as long as
its stdin, which is ours, and the others use it. Once it has ended they must not connect again
without the lock, so their ProxyCommand is `false`: only a new connection would run it.

Files are copied by `cat >>`, which continues at the end of an interrupted copy; sftp can do that
too, but reports no progress in batches. The remote program is this package itself: a zip of its
sources is unpacked into a folder named by its hash, so both ends have the same version. It runs in
the first of these Pythons with the libraries that the bundle needs (torch is not one):
`venv-TARGET` in our folder (`venv-ENGINE` with --engine), which may be a link to your own
environment, then `python3`, `python3.14` … `python3.11`. If none has them, pip installs them into a
new `venv-TARGET`.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import shlex
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import edgevlm
from edgevlm.devices.shared import contract as t
from edgevlm.devices.shared.contract import Job, Reachable, Step, one_line
from edgevlm.devices.shared.shell import AGAIN, File, Shell
from edgevlm.errors import DeviceError
from edgevlm.libraries import program
from edgevlm.profiling.document import Profile
from edgevlm.registry import engine_for
from edgevlm.version import VERSION

PYTHONS = ("python3", "python3.14", "python3.13", "python3.12", "python3.11")
# After three keep-alive messages without an answer the link is cut.
ALIVE_S = 10
OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=15", f"ServerAliveInterval={ALIVE_S}", "ServerAliveCountMax=3",
    "ClearAllForwardings=yes", "PermitLocalCommand=no", "RemoteCommand=none", "ControlPersist=no",
)  # fmt: skip
CONFIG = Path.home() / ".ssh" / "config"


def profile(address: str, job: Job, progress: Step) -> Profile:
    """Measure on a computer by ssh.

    Raises:
        DeviceError: If the host cannot be reached, has no suitable Python, or the run fails.
    """
    job.without_runner("ssh")
    host = SshHost(address)
    bundle = t.opened(job)
    with tempfile.TemporaryDirectory(prefix="edgevlm-") as folder:
        host.control = Path(folder) / "s"
        with host.connected(progress):
            target = bundle.plan.recipe.target
            environment = t.safe_name(f"venv-{job.engine or target}")
            progress(f"{host.name}: find a Python that can run the bundle")
            pythons = host.pythons(environment)
            package = host.put_package(pythons[0], Path(folder), progress)
            python = host.fitting(pythons, package, target, job.engine)
            if not python:
                engine = job.engine or engine_for(target)
                python = host.make_environment(pythons[0], environment, engine, progress)
            host.put_bundle(bundle, progress)

            def start(run: str) -> str:
                code, errors = host.stream(f"{host.runner(python, package)} {run}", progress)
                why = ", which is often too little memory" if code in (137, 139) else ""
                return f"the remote run ended with exit code {code}{why}; {one_line(errors[-200:])}"

            return host.measure(job, bundle, start)


def reachable() -> list[Reachable]:
    """The client and the hosts of the user's configuration; no host is contacted."""
    if program("ssh") is None:
        return [Reachable("ssh", "not installed", "install OpenSSH's client (openssh-client)")]
    hosts = _named_hosts(CONFIG)
    configured = [Reachable(f"ssh:{host}", "not contacted", "of ~/.ssh/config") for host in hosts]
    note = "any host that 'ssh USER@HOST' reaches without a question"
    return [Reachable("ssh:USER@HOST[:PORT]", "ready", note), *configured]


class SshHost(Shell):
    """One host."""

    def __init__(self, address: str) -> None:
        user, at, rest = address.rpartition("@")
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:]+)(?::(\d{1,5}))?", rest)
        words = (user, match[1].strip("[]")) if match else ()
        odd = any(re.search(r"[^\w.%:@\\-]", word) or word.startswith("-") for word in words)
        if not match or odd or (at and not user):
            raise DeviceError(
                f"'ssh:{address}' is not a host; expected ssh:USER@HOST or ssh:USER@HOST:PORT;"
                " HOST may be a name of ~/.ssh/config"
            )
        ssh = program("ssh")
        if ssh is None:
            raise DeviceError("'ssh' is not installed; install OpenSSH's client (openssh-client)")
        self.ssh = ssh
        self.destination, self.port = f"{user}{at}{match[1].strip('[]')}", match[2]
        self.control = Path()
        folder = '"${XDG_CACHE_HOME:-$HOME/.cache}/edgevlm/remote"'
        super().__init__(f"ssh:{address}", folder)

    def argv(self, script: str) -> list[str]:
        """`ssh … HOST exec sh -c SCRIPT`, whatever the login shell is."""
        # The master is the first, and it has answered with the folder's path before any other.
        more = ("ControlMaster=no", "ProxyCommand=false") if self.root else ("ControlMaster=yes",)
        options = [word for option in (*OPTIONS, *more) for word in ("-o", option)]
        port = ["-p", self.port] if self.port else []
        control = ["-T", "-o", f"ControlPath={self.control}"]
        command = f"exec sh -c {shlex.quote(script)}"
        return [self.ssh, *options, *control, *port, "--", self.destination, command]

    def link_failure(self, code: int, errors: str) -> str | None:
        """What ssh reports and what to do about it; ssh's own failures have exit code 255."""
        if code != 255:
            return None
        if self.root:
            return f"the link to {self.name} was cut; {AGAIN}"
        host = self.destination.rpartition("@")[2]
        by_hand = f"ssh {f'-p {self.port} ' if self.port else ''}{self.destination}"
        known = f"'[{host}]:{self.port}'" if self.port not in (None, "22") else host
        causes = {
            "HOST IDENTIFICATION HAS CHANGED": (
                "its host key is not the one that is known: another machine may pretend to be it;"
                f" if you know why it changed, run: ssh-keygen -R {known}; {by_hand}"
            ),
            "Host key verification failed": (
                f"its host key is not known; connect once by hand and compare it: {by_hand}"
            ),
            "Permission denied (": (
                f"no key of yours is accepted; check that this works without a password: {by_hand}"
            ),
            "Could not resolve": "no such host; check ~/.ssh/config and the spelling",
            "Connection refused": "nothing listens there; is sshd running, and the port right?",
            "timed out": "no answer; is it on, and in the same network?",
            "No route to host": "no route; is it on, and in the same network?",
        }
        for words, cause in causes.items():
            if words in errors:
                return f"{self.name}: {cause}"
        lines = [line for line in errors.splitlines() if line.strip()]
        return f"{self.name}: {one_line(lines[-1]) if lines else 'ssh failed without a message'}"

    def pythons(self, environment: str) -> list[str]:
        """Paths of the remote Pythons from 3.11 on, the most likely one first.

        Raises:
            DeviceError: If there is none.
        """
        names = " ".join([f"{environment}/bin/python", *PYTHONS])
        out = self.sh(
            f"for p in {names}; do p=$(command -v $p) || continue;"
            " \"$p\" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null;"
            ' echo "$?|$p"; done; true'
        )
        candidates = re.findall(r"^(\d+)\|(.+)$", out, re.M)
        if not candidates:
            raise DeviceError(f"{self.name} has no Python; install Python 3.11 or newer there")
        usable = list(dict.fromkeys(path for old, path in candidates if old == "0"))
        if not usable:
            raise DeviceError(
                f"{self.name} has only a Python older than 3.11 ({one_line(candidates[0][1])});"
                " install Python 3.11 or newer there"
            )
        return usable

    def put_package(self, python: str, folder: Path, progress: Step) -> str:
        """Send this package's sources and unpack them; returns the folder to import them from."""
        archive = folder / "edgevlm.zip"
        archive.write_bytes(sources())
        file = File.of("edgevlm.zip", archive)
        name = f"package/{file.sha256[:16]}"
        if self.sh(f"[ -d {name} ] && echo exists || true").strip() != "exists":
            progress(f"{self.name}: send edgevlm {VERSION}, {file.bytes / 1e6:.1f} MB")
            self.sh("rm -rf package .package && mkdir .package")
            self._put(".package", file, 0, lambda _: None)
            self.sh(
                f"{shlex.quote(python)} -I -m zipfile -e .package/edgevlm.zip .{name}"
                " && rm .package/edgevlm.zip && mv .package package"
            )
        return name

    def fitting(self, pythons: Sequence[str], package: str, target: str, engine: str | None) -> str:
        """The first Python that has the libraries of the bundle; empty if none has."""
        for python in pythons:
            words = " ".join(map(shlex.quote, (target, *([engine] if engine else []))))
            check = f"{self.runner(python, package)} --check {words} 2>/dev/null | tail -n 1"
            if self.sh(check).strip() == "fits":
                return python
        return ""

    def make_environment(self, python: str, folder: str, engine: str, progress: Step) -> str:
        """Create an environment with what an engine needs; returns its Python.

        Raises:
            DeviceError: If pip or venv fails, such as without a network; says what to do.
        """
        needs = requirements(engine)
        words = " ".join(map(shlex.quote, needs))
        progress(f"{self.name}: make {self.root}/{folder}, once: {', '.join(needs)}")
        code, errors = self.stream(
            f"export XDG_CACHE_HOME={shlex.quote(self.root)}/cache;"
            f" [ ! -L {folder} ] || {{ echo 'it is a link of yours' >&2; exit 1; }};"
            f" rm -rf .{folder} && {shlex.quote(python)} -I -m venv .{folder} >&2"
            f" && .{folder}/bin/python -I -m pip install --disable-pip-version-check {words}"
            f" && rm -rf {folder} && mv .{folder} {folder}",
            progress,
        )
        if code:
            self.sh(f"rm -rf .{folder}")
            lines = [line for line in errors.splitlines() if line.startswith(("ERROR", "Error"))]
            why = one_line((lines or errors.splitlines() or ["pip ended without a word"])[-1])
            if "ensurepip" in errors:
                why = "its Python cannot create environments; install the package python3-venv"
            raise DeviceError(
                f"{self.name} has no Python with {', '.join(needs)}, and they could not be"
                f" installed: {why}; install them there, or link your environment to"
                f" {self.root}/{folder}"
            )
        return f"{self.root}/{folder}/bin/python"

    def runner(self, python: str, package: str) -> str:
        """The remote command of `devices.shared.runner`, with all its caches in our folder."""
        root = shlex.quote(self.root)
        return (
            f"env PYTHONPATH={root}/{package} XDG_CACHE_HOME={root}/cache PYTHONUNBUFFERED=1"
            f" {shlex.quote(python)} -P -m edgevlm.devices.shared.runner"
        )


def sources() -> bytes:
    """This package's own files as a zip, the same bytes every time; no models, no images."""
    packed, home = io.BytesIO(), Path(edgevlm.__file__).parent
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder, inside, names in os.walk(home, followlinks=True):
            inside.sort()
            for name in sorted(names):
                if name.endswith((".py", ".json", ".toml")):
                    path = Path(folder) / name
                    entry = zipfile.ZipInfo(f"edgevlm/{path.relative_to(home).as_posix()}")
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, path.read_bytes())
    return packed.getvalue()


def requirements(extra: str) -> list[str]:
    """Requirements of the core and of an extra: of a checkout, or of the installed package.

    Raises:
        DeviceError: If this edgevlm is neither a checkout nor installed.
    """
    project = Path(edgevlm.__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text("utf-8"))["project"]
        core, extras = table["dependencies"], table["optional-dependencies"]
        dependencies = [*core, *extras.get(extra, ())]
    else:
        try:
            lines = [line.partition(";") for line in importlib.metadata.requires("edgevlm") or ()]
        except importlib.metadata.PackageNotFoundError as cause:
            raise DeviceError(
                "edgevlm is not installed; pip install it, then run the same command again"
            ) from cause
        dependencies = [
            name.strip()
            for name, _, mark in lines
            if "extra" not in mark or re.search(rf"""extra == ['"]{extra}['"]""", mark)
        ]
    return [name for name in dependencies if not name.startswith("edgevlm")]


def _named_hosts(config: Path) -> list[str]:
    """Hosts named in a client's configuration; patterns are left out."""
    try:
        lines = config.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    hosts = [host for line in words if line[:1] and line[0].lower() == "host" for host in line[1:]]
    return [host for host in dict.fromkeys(hosts) if not re.search(r"[*?!\"]", host)]
