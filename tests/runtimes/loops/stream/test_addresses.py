"""Sources that are coded video: a file, stdin, and an address on this machine."""

from __future__ import annotations

import io
import json
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import pytest

pytest.importorskip("av")

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.stream import source
from edgevlm.runtimes.loops.stream.ring import Ring

SECONDS = 6


@pytest.fixture
def serve():
    """`serve(body, status, headers)`: the address of a server, and what it was asked."""
    servers = []

    def begin(body, status=200, headers=None):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}", asked

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


ONE_BY_ONE = [((second,), (second,)) for second in range(SECONDS)]


def test_a_file_and_its_bytes(coded, tmp_path, frames_of):
    path = tmp_path / "clip.ts"
    path.write_bytes(coded)
    assert frames_of(path) == frames_of(coded) == frames_of(io.BytesIO(coded)) == ONE_BY_ONE


def test_frames_that_are_a_view_together(coded, frames_of):
    assert frames_of(coded, depth=2) == [((0, 1), (0, 1)), ((2, 3), (2, 3)), ((4, 5), (4, 5))]


def test_an_address_and_nothing_else(coded, serve, frames_of):
    address, asked = serve(coded)
    assert frames_of(f"{address}/live") == ONE_BY_ONE
    other, reached = serve(coded)
    moved, _ = serve(b"", 302, {"Location": f"{other}/x"})
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{other}/x.ts\n#EXT-X-ENDLIST\n"
    listed, _ = serve(playlist.encode(), 200, {"Content-Type": "application/vnd.apple.mpegurl"})
    for address in (f"{moved}/a", f"{listed}/a.m3u8"):
        with pytest.raises(InputError, match=r"cannot be read as a video"):
            frames_of(address)
    assert not reached
    assert asked


def test_a_server_that_sends_a_byte_at_a_time_ends(coded, frames_of, monkeypatch):
    monkeypatch.setattr(source, "OPEN_S", 0.4)
    monkeypatch.setattr(source, "READ_S", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for at in range(600):
                    connection.sendall(coded[at : at + 1])
                    if over.wait(0.05):
                        break

        thread, over = threading.Thread(target=drip), threading.Event()
        thread.start()
        began, address = time.monotonic(), f"http://127.0.0.1:{server.getsockname()[1]}/x"
        with pytest.raises(InputError, match=r"did not answer within 0\.4 s|no frame for 0\.4 s"):
            frames_of(address)
        over.set()
        thread.join(10)
        assert time.monotonic() - began < 10


def test_a_paced_file_takes_its_time(coded, monkeypatch):
    slept, now = [], [0.0]
    monkeypatch.setattr(source.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(source.time, "sleep", slept.append)
    ring = Ring(100, drops=False)
    source.start(coded, ring, 1.0, True, 1, lambda picture: picture).join(10)
    assert [round(seconds) for seconds in slept] == [1, 2, 3, 4, 5]


def test_stdin_ends_with_the_pipe(coded):
    code = (
        "from edgevlm.runtimes.loops.stream import source; from edgevlm.runtimes.loops.stream.ring"
        " import Ring; ring = Ring(100, True); source.start('-', ring, 1.0, False, 1, lambda p: p)"
        "\nwhile not ring.ended:\n frames = ring.take(1)\n if frames:"
        "  print(round(frames.seconds[0]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=coded, capture_output=True, timeout=60)
    assert [int(line) for line in done.stdout.split()] == list(range(SECONDS)), done.stderr
    broken = subprocess.run(
        [sys.executable, "-c", code + "\nassert ring.error, 'none'; print(ring.error)"],
        input=b"no video" * 100, capture_output=True, timeout=60, text=False,
    )  # fmt: skip
    assert b"the video on stdin cannot be read as a video" in broken.stdout
    assert json.dumps(broken.stdout.decode())
