"""OpenVINO, imported without its telemetry.

`import openvino` reports the import to Google Analytics, unless the user has declined or
`openvino_telemetry` is not there: then a stub takes its place (openvino/tools/ovc). It stays hidden
while OpenVINO is imported, and so nothing is sent, and no file is written.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from edgevlm.libraries import muted, require

TELEMETRY = "openvino_telemetry"


@cache
def import_openvino() -> Any:
    """The module `openvino`.

    Raises:
        RuntimeLoadError: If OpenVINO is not installed or does not load.
    """
    before = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # its import fails
    try:
        with muted():
            return require("engine 'openvino'", "openvino", "openvino", "openvino")
    finally:
        del sys.modules[TELEMETRY]
        if before is not None:
            sys.modules[TELEMETRY] = before
