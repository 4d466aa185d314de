"""OpenVINO, imported without its telemetry.

`import openvino` reports the import to Google Analytics, unless the user has declined or
`openvino_telemetry` is not there: then a stub takes its place (openvino/tools/ovc). It stays hidden
while OpenVINO is imported, and so nothing is sent, and no file is written.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from edgevlm.libraries import hidden, muted, require


@cache
def import_openvino() -> Any:
    """The module `openvino`.

    Raises:
        RuntimeLoadError: If OpenVINO is not installed or does not load.
    """
    with hidden("openvino_telemetry"), muted():
        return require("engine 'openvino'", "openvino", "openvino", "openvino")
