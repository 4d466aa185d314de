"""A hub on this machine: serves checkpoint folders as huggingface.co does, or refuses them.

    with serve({"owner/name": folder}) as (endpoint, requests): ...

`owner/gated` asks for a login, `owner/locked` for weights alone, `owner/gone` is not shown;
`owner/bare` has no weights, `owner/cut` has weight files whose headers are damaged, and
`owner/whole` is on a server that sends whole files alone. `requests` lists "METHOD path" of each
request, with its range.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for some folders, by the names of their repositories."""

    folders: dict[str, Path]
    requests: list[str]

    def log_message(self, *_: Any) -> None:
        """No lines."""

    @property
    def name(self) -> str:
        """The repository that is asked for."""
        found = re.search(r"owner/[^/?]+", self.path)
        return found[0] if found else ""

    @property
    def folder(self) -> Path:
        """Its folder; of one that is refused, any."""
        return self.folders.get(self.name, next(iter(self.folders.values())))

    @property
    def files(self) -> list[Path]:
        """The files that the repository has."""
        bare = "owner/bare" in self.path
        paths = sorted(self.folder.iterdir())
        return [p for p in paths if not (bare and p.name.startswith("model"))]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        span = self.headers.get("Range", "")
        self.requests.append(f"{self.command} {self.path} {span}".strip())
        if "owner/gone" in self.path:
            self._refuse(401, "RepoNotFound")
        elif re.search(r"owner/gated/resolve/|owner/locked/.*\.safetensors(\?|$)", self.path):
            self._refuse(401, "GatedRepo")
        elif "/nope" in self.path:
            self._refuse(404, "RevisionNotFound")
        elif "/tree/" in self.path:
            self._json([
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": self._tag(p)}
                for p in self.files
            ])  # fmt: skip
        elif self.path.startswith("/api/"):
            files = [{"rfilename": path.name} for path in self.files]
            self._json({"id": self.name, "sha": COMMIT, "siblings": files, "private": False,
                        "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        else:
            self._file(self.folder / self.path.partition("?")[0].rpartition("/")[2], span)

    def _file(self, path: Path, span: str) -> None:
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        size, match = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", span)
        if "owner/whole" in self.path:
            match = None
        start, stop = (int(match[1]), int(match[2] or size) + 1) if match else (0, size)
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        if "owner/cut" in self.path and path.suffix == ".safetensors" and not start:
            data = data[:8] + b"[" + data[9:]
        if match:
            self._send(206, data, {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}, path)
        else:
            self._send(200, data, {}, path)

    def _tag(self, path: Path) -> str:
        return hashlib.sha1(path.name.encode()).hexdigest()

    def _json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "Access is restricted"})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], path: Path | None = None
    ) -> None:
        self.send_response(status)
        if path:
            headers |= {"ETag": f'"{self._tag(path)}"', "X-Repo-Commit": COMMIT}
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):  # who sees a whole file coming leaves
                self.wfile.write(body)


@contextmanager
def serve(folders: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the requests that it has answered."""
    requests: list[str] = []
    handler = type("Handler", (Handler,), {"folders": folders, "requests": requests})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
