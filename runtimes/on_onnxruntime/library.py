"""ONNX Runtime, imported with its telemetry off.

From 1.29 on, ONNX Runtime on Linux writes a device id and a database of events into the cache
folder (`Microsoft/DeveloperTools/.onnxruntime`) when it is imported, and sends the events later. It
reads ORT_DISABLE_TELEMETRY once, at import; outside of build services nothing else turns it off.
"""

from __future__ import annotations

import os
from typing import Any

from edgevlm.libraries import require


def import_onnxruntime() -> Any:
    """The module `onnxruntime`; a value that the user gave ORT_DISABLE_TELEMETRY is kept.

    Raises:
        RuntimeLoadError: If ONNX Runtime is not installed or does not load.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("engine 'onnxruntime'", "onnxruntime", "onnxruntime", "onnxruntime")
