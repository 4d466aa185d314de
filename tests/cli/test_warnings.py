"""What libraries say to a user: nothing, for they are called as they want to be."""

from __future__ import annotations

from pathlib import Path

import pytest

for library in ("onnx_ir", "onnxscript", "onnxruntime", "torch"):
    pytest.importorskip(library)

PHOTO = Path(__file__).parents[2] / "edgevlm" / "photos" / "hand.jpg"


def test_no_library_warns(command, tiny_model, tmp_path):
    bundle = tmp_path / "tiny.edgevlm"
    export = command("export", tiny_model, "--tokens", "16", "-o", bundle)
    run = command("run", bundle, "--image", PHOTO, "--prompt", "What is this?")
    for done in (export, run):
        assert done.code == 0, done.err
        said = [line for line in done.err.splitlines() if not line.startswith("[")]
        assert len(said) <= 1, done.err  # steps begin with their time; `run` ends with figures
