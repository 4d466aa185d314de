"""ONNX Runtime does nothing but compute: it is imported with its telemetry off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[3]
# ONNX Runtime is silent by itself where one of these is set.
BUILD_SERVICES = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "BUILDKITE")
OURS = {
    "engine": "from edgevlm.runtimes import engine; engine.find_engine('onnxruntime').summary()",
    "library": "from edgevlm.runtimes.on_onnxruntime import library; library.import_onnxruntime()",
}
ASKED = "import os; print(os.environ.get('ORT_DISABLE_TELEMETRY'))"


def imported(code: str, home: Path, **settings: str) -> str:
    """Stdout of a process whose home and cache folder are `home`."""
    hidden = {*BUILD_SERVICES, "ORT_DISABLE_TELEMETRY"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), **settings}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=home
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("code", OURS.values(), ids=OURS)
def test_import_writes_nothing(code, tmp_path):
    asked = imported(f"{code}; {ASKED}", tmp_path)
    assert list(tmp_path.rglob("*")) == []
    assert asked == "1"


def test_a_choice_of_the_user_is_kept(tmp_path):
    code = f"{OURS['engine']}; {ASKED}"
    assert imported(code, tmp_path, ORT_DISABLE_TELEMETRY="0") == "0"
