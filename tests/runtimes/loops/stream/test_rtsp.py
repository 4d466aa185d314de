"""An RTSP server on this machine, one that sends FFmpeg on to another, and what a relay lets by."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import socketserver
import struct
import threading

import pytest

pytest.importorskip("av")

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.stream import rtsp
from edgevlm.runtimes.loops.stream.rtsp import RefusedError, answers

SDP = (
    b"v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=x\r\nt=0 0\r\n"
    b"m=video 0 RTP/AVP 33\r\na=control:track1\r\n"
)
ONE_BY_ONE = [((second,), (second,)) for second in range(6)]
TS, PACKETS = 188, 7  # bytes of a packet of MPEG-TS, and so many of them in one of RTP
CHALLENGE = 'WWW-Authenticate: Digest realm="r", nonce="n"\r\n'


@pytest.fixture
def serve():
    """`serve(body, moved=method, to=address, password=…)`: an address, and what was asked."""
    servers = []

    def begin(body=b"", moved="", to="", password=""):
        asked = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                while line := self.rfile.readline().decode():
                    rows = iter(self.rfile.readline, b"\r\n")
                    headers = dict(row.decode().strip().split(": ", 1) for row in rows)
                    method, url, _ = line.split()
                    asked.append((method, url))
                    self.answer(method, url, headers)

            def answer(self, method, url, headers):
                status, more, content = "200 OK", "", b""
                if method == moved:
                    status, more = "302 Moved", f"Location: {to}\r\n"
                elif password and not proven(method, url, headers.get("Authorization", "")):
                    status, more = "401 Unauthorized", CHALLENGE
                elif method == "DESCRIBE":
                    more, content = "Content-Type: application/sdp\r\n", SDP
                elif method == "SETUP":
                    more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
                head = f"RTSP/1.0 {status}\r\nCSeq: {headers['CSeq']}\r\n{more}"
                length = f"Content-Length: {len(content)}\r\n" if content else ""
                self.wfile.write(f"{head}{length}\r\n".encode() + content)
                if method == "PLAY":
                    self.play()

            def play(self):
                step = TS * PACKETS
                for number, at in enumerate(range(0, len(body), step)):
                    data = struct.pack(">BBHII", 0x80, 33, number, number * 900, 7)
                    data += body[at : at + step]
                    self.wfile.write(b"$\0" + struct.pack(">H", len(data)) + data)
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_WR)

        def proven(method, url, said):
            def md5(text):
                return hashlib.md5(text.encode()).hexdigest()

            response = md5(f"{md5(f'u:r:{password}')}:n:{md5(f'{method}:{url}')}")
            return f'response="{response}"' in said and f'uri="{url}"' in said

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"rtsp://127.0.0.1:{server.server_address[1]}/live", asked

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_frames_of_a_server_which_sees_its_own_address(coded, serve, frames_of):
    address, asked = serve(coded)
    assert frames_of(address) == ONE_BY_ONE
    assert [method for method, _ in asked[:4]] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
    assert all(url.startswith(address) for _, url in asked)


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "SETUP"])
def test_a_redirect_is_not_followed(coded, serve, method, frames_of):
    other, reached = serve(coded)
    address, _ = serve(coded, moved=method, to=other)
    said = rf"^'{re.escape(address)}' answers 302, a redirect, which is not followed"
    with pytest.raises(InputError, match=said):
        frames_of(address)
    assert not reached


def test_a_server_with_a_password_gets_a_digest_of_its_own_address(coded, serve, frames_of):
    address, _ = serve(coded, password="p w")
    assert frames_of(address.replace("//", "//u:p%20w@")) == ONE_BY_ONE
    with pytest.raises(InputError, match=rf"^'{re.escape(address)}' cannot be read as a video"):
        frames_of(address.replace("//", "//u:secret@"))


def test_a_server_that_is_not_there_or_says_nothing(monkeypatch, frames_of):
    with pytest.raises(InputError, match=r"cannot be reached: Connection refused"):
        frames_of("rtsp://127.0.0.1:1/x")
    with pytest.raises(InputError, match=r"names no host and port, expected rtsp://HOST"):
        frames_of("rtsp:///x")
    monkeypatch.setattr("edgevlm.runtimes.loops.stream.source.READ_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(InputError, match=r"said nothing for 0\.3 s|sent no frame for 0\.3 s"):
            frames_of(address)


OK = b"RTSP/1.0 200 OK\r\n"


def passed(data):
    return b"".join(answers(io.BytesIO(data)))


def test_what_is_passed_on_is_what_was_read():
    whole = OK + b"CSeq: 1\r\n\r\n" + b"$\0\0\x08" + b"12345678"
    assert passed(whole) == whole
    assert passed(OK + b"Location: rtsp://x/\r\nCSeq: 1\r\n\r\n") == OK + b"CSeq: 1\r\n\r\n"
    hidden = b"\nRTSP/1"  # FFmpeg would read a short packet's bytes as text
    assert passed(b"$\0\0\x07" + hidden + whole) == whole
    inside = b"RTSP/1.0 302 x\r\nLocation: rtsp://x/\r\n\r\n"
    body = OK + b"Content-Length: %d\r\n\r\n" % len(inside) + inside
    assert passed(body) == body


@pytest.mark.parametrize(
    "data",
    [
        b"RTSP/1.0 302 x\r\n\r\n", b"RTSP/1.0\t302 x\r\n\r\n", b"RTSP/1.00 302 x\r\n\r\n",
        b"RTSP/1.0  302 x\r\n\r\n", b"RTSP/1.0 0302 x\r\n\r\n", b"HTTP/1.1 302 x\r\n\r\n",
        OK + b"$\0\0\0\r\n\r\n", OK + b"A: b\rC: d\r\n\r\n", OK + b"A: \0\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", OK + b"A" * 4096,
        OK + b"Content-Length: -1\r\n\r\n", OK + b"Content-Length: 9999999\r\n\r\n",
        OK + b"A: b\r\n" * 200 + b"\r\n", OK + b"Content-Length: 5\r\n\r\nxx", OK + b"A: b",
    ],
)  # fmt: skip
def test_what_ffmpeg_might_read_otherwise_ends_the_connection(data):
    with pytest.raises(RefusedError):
        passed(data)


def test_a_digest_with_a_count_is_that_of_rfc_2617():
    line = (
        'Authorization: Digest username="Mufasa", realm="testrealm@host.com",'
        ' nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", uri="/dir/index.html", qop="auth",'
        ' nc="00000001", cnonce="0a4f113b", response="x"'
    )
    answer = rtsp.digest(line, "GET", "Mufasa", "Circle Of Life")
    assert 'response="6629fae49393a05397450978507c4ef1"' in answer
