"""A profile's timelines as a Chrome trace, which Perfetto (ui.perfetto.dev) and Chrome open.

The format is JSON of events with `ph`: `X` has a start and a duration in microseconds, `C` is a
counter, `M` names a lane. One process for the opening, if there is one, and one for the answer.
Source: "Trace Event Format", the Chrome developers' document.
"""

from __future__ import annotations

import json
from typing import Any

from edgevlm.profiling.document import Profile
from edgevlm.profiling.sections import Timeline

LANES = {"run": 1, "load": 2, "evict": 3}


def chrome_trace(profile: Profile) -> str:
    """The trace as JSON text."""
    events: list[dict[str, Any]] = []
    for process, (name, timeline) in enumerate(
        (("opening", profile.opening), ("one answer", profile.answer)), 1
    ):
        if timeline is not None:
            events += _events(process, f"{name} of {profile.bundle}", timeline)
    document = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "engine": profile.engine_version,
            "bundle": profile.bundle,
            "schema_version": profile.schema_version,
        },
    }
    return json.dumps(document, ensure_ascii=False) + "\n"


def _events(process: int, name: str, timeline: Timeline) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
    ]
    for kind, lane in LANES.items():
        lane_name = {"name": f"{kind}s" if kind != "evict" else "evictions"}
        events.append(
            {"ph": "M", "name": "thread_name", "pid": process, "tid": lane, "args": lane_name}
        )
    for event in timeline.events:
        events.append(
            {
                "ph": "X",
                "name": f"{event.block}.{event.function}" if event.function else event.block,
                "cat": f"{event.kind},{event.stage}",
                "ts": round(event.start_ms * 1e3, 1),
                "dur": round(event.ms * 1e3, 1),
                "pid": process,
                "tid": LANES[event.kind],
                "args": {"kind": event.kind, "stage": event.stage},
            }
        )
    for sample in timeline.memory:
        size = {"rss_bytes": sample.rss_bytes}
        at = round(sample.ms * 1e3, 1)
        events.append(
            {"ph": "C", "name": "memory", "ts": at, "pid": process, "tid": 0, "args": size}
        )
    return events
