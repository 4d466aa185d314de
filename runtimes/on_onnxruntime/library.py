"""ONNX Runtime, imported with its telemetry and its log off.

From 1.29 on, ONNX Runtime on Linux writes a device id and a database of events into the cache
folder (`Microsoft/DeveloperTools/.onnxruntime`) when it is imported, and sends the events later. It
reads ORT_DISABLE_TELEMETRY once, at import; outside of build services nothing else turns it off.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from edgevlm.libraries import muted, require

LOG_FATAL = 4  # errors are raised too, so that its own lines would say them twice


@cache
def import_onnxruntime() -> Any:
    """The module `onnxruntime`, silent; a value that the user gave ORT_DISABLE_TELEMETRY is kept.

    Raises:
        RuntimeLoadError: If ONNX Runtime is not installed or does not load.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with muted():  # it looks for devices, and complains about those that it cannot read
        module = require("engine 'onnxruntime'", "onnxruntime", "onnxruntime", "onnxruntime")
    module.set_default_logger_severity(LOG_FATAL)
    return module
