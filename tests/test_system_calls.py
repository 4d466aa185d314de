"""Commands open no connection, write in their own folders alone, and libraries say nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

ROOT = Path(__file__).resolve().parents[1]
CALLS = (
    "socket,connect,sendto,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat"
)
# Named semaphores of Python's multiprocessing, which tqdm makes and removes at once, and files of
# the process itself in /proc.
HARMLESS = ("/dev/null", "/dev/tty", "/dev/shm/sem.", "/proc/self/", "/proc/pressure/")
# Services where libraries are silent by themselves.
HIDDEN = {"CI", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"}


EACH = """
import json, sys
from edgevlm.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["edgevlm", *arguments]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, arguments
"""


def traced(tmp_path, *commands):
    """Calls of commands, with a home and a current folder of their own, and of children; stderr.

    They run in one process, which is most of their time.
    """
    for name in ("home", "here", "tmp"):
        (tmp_path / name).mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in HIDDEN}
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"),
                    "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    trace = tmp_path / "trace"
    # By a filter in the kernel, other calls than these do not stop the command.
    words = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-e", f"trace={CALLS}", "-e",
             "signal=none", "-o", trace, sys.executable, "-P", "-c", EACH]  # fmt: skip
    done = subprocess.run([*words, json.dumps(commands)], capture_output=True, text=True,
                          cwd=tmp_path / "here", env=environment, timeout=300)  # fmt: skip
    if "ptrace" in done.stderr and "Operation not permitted" in done.stderr:
        pytest.skip("this system lets no process be traced")
    assert done.returncode == 0, done.stderr
    return trace.read_text("utf-8", "replace").splitlines(), done.stderr.splitlines()


def outside(lines, tmp_path):
    """Calls that reach the network, or write outside the three folders."""
    own = (str(tmp_path / "home/.cache/edgevlm"), str(tmp_path / "here"), str(tmp_path / "tmp"))
    found = []
    for line in lines:
        call, _, rest = re.sub(r"^\d+ +", "", line).partition("(")
        if call in ("socket", "connect", "sendto"):
            if not rest.startswith("AF_UNIX") and "AF_UNIX" not in rest and "<UNIX" not in rest:
                found.append(line)
        elif call in ("open", "openat") and not re.search("O_WRONLY|O_RDWR|O_CREAT", rest):
            continue
        elif " = -1 " not in rest:
            paths = re.findall(r'(?:AT_FDCWD<([^>]*)>|\d+<([^>]*)>)?,? ?"([^"]*)"', rest)
            full = [os.path.normpath(os.path.join(a or b or own[1], c)) for a, b, c in paths]
            parents = {str(p) for o in own[:1] for p in Path(o).parents}
            inside = all(p.startswith((*own, *HARMLESS)) or p in parents for p in full)
            if not inside:
                found.append(line)
    return found


COMMANDS = {
    "a bundle": [
        ("run", "{bundle}", "--prompt", "What?", "--image", "{photo}", "--memory", "1GB",
         "--max-new-tokens", "2"),
        ("profile", "{bundle}", "--runs", "1", "--tokens-generated", "2", "-o", "p.json"),
        ("evaluate", "{bundle}", "--limit", "2"),
    ],
    "export": [("export", "{model}", "--tokens", "16", "-o", "b.edgevlm")],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_keeps_to_itself(exported, tiny_model, tmp_path, name):
    photo = ROOT / "edgevlm" / "photos" / "hand.jpg"
    values = {"bundle": exported.bundle.path, "photo": photo, "model": tiny_model}
    asked = [[word.format(**values) for word in command] for command in COMMANDS[name]]
    lines, said = traced(tmp_path, *asked)
    assert any("openat" in line for line in lines)
    assert outside(lines, tmp_path) == []
    assert {path.name for path in (tmp_path / "home").rglob("*")} >= {"edgevlm"}
    foreign = re.compile(r"warning|deprecat|site-packages|\.py:\d|\x1b", re.IGNORECASE)
    assert not [line for line in said if foreign.search(line)]
    assert name != "export" or all(line.startswith("[") for line in said)  # steps with their time


def test_what_would_be_found(tmp_path):
    lines = [
        '1 socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3',
        f'1 openat(AT_FDCWD<{tmp_path}/here>, "../home/.bashrc", O_WRONLY|O_CREAT, 0666) = 3',
        f'1 mkdir("{tmp_path}/home/.cache/Microsoft", 0777) = 0',
        '1 connect(3, {sa_family=AF_INET6, sin6_port=htons(53)}, 28) = 0',
    ]  # fmt: skip
    good = [
        '1 socket(AF_UNIX, SOCK_STREAM, 0) = 3',
        f'1 openat(AT_FDCWD<{tmp_path}/here>, "p.json", O_WRONLY|O_CREAT, 0666) = 3',
        f'1 mkdir("{tmp_path}/home/.cache", 0777) = 0',
        '1 openat(AT_FDCWD</x>, "/etc/hosts", O_RDONLY) = 3',
        '1 openat(AT_FDCWD</x>, "/etc/hosts", O_RDWR) = -1 EACCES (Permission denied)',
    ]  # fmt: skip
    assert outside([*lines, *good], tmp_path) == lines
