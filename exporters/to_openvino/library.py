"""OpenVINO as an export uses it, imported without its telemetry.

`import openvino` reports the import to Google Analytics, unless the user has declined or
`openvino_telemetry` is not there: then a stub takes its place (openvino/tools/ovc). So it is
hidden meanwhile, as in runtimes/on_openvino/library.py: exporters and engines share no code.
"""

from __future__ import annotations

import sys

from edgevlm.libraries import muted, silent

_TELEMETRY = "openvino_telemetry"
_before = sys.modules.get(_TELEMETRY)
sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # its import fails
try:
    with muted(), silent():
        import openvino
        from openvino._offline_transformations import apply_moc_transformations
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
finally:
    del sys.modules[_TELEMETRY]
    if _before is not None:
        sys.modules[_TELEMETRY] = _before

__all__ = ["FrontEndManager", "TorchFXPythonDecoder", "apply_moc_transformations", "openvino"]
