"""An RTSP server through a relay on the loopback address, which lets no redirect through.

    server <--TCP or TLS--> relay <--TCP--> FFmpeg

FFmpeg follows a server's redirect (status 3xx with `Location`) to any address, and no option of it
forbids that. So it connects to a relay that goes to the given server alone. A message of the server
is read by a narrow grammar and written anew, so that FFmpeg reads the message that was checked:
packets of the stream as they are, answers without `Location`; a redirect, or what is no RTSP, ends
the connection. In requests the relay's address becomes the server's, also in what a digest signs.

Sources: RFC 2326 (RTSP 1.0), sections 6, 7, 10.12 and 11.3; RFC 2617 (digest), section 3.2.2.
Limits: RTSP over TCP, packets interleaved; certificates are not checked, as FFmpeg does not.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

from edgevlm.errors import InputError
from edgevlm.libraries import first_line

PORTS = {"rtsp": 554, "rtsps": 322}
LOOPBACK = "127.0.0.1"
MOST_LINE, MOST_LINES, MOST_BODY = 2048, 100, 2**20  # of a message: bytes, lines, bytes
LEAST_PACKET = 8  # bytes: FFmpeg reads what is shorter as text

_STATUS = re.compile(rb"RTSP/1\.[01] ([1-9]\d\d)( [ -~]*)?")
_REQUEST = re.compile(rb"[A-Z_]+ [!-~]+ RTSP/1\.[01]")
_HEADER = re.compile(rb"([A-Za-z][A-Za-z0-9-]*)[ \t]*:[ \t]*([\t -~\x80-\xff]*)")
_DIGEST = re.compile(r'(\w+)="?([^",]*)"?')


class RefusedError(Exception):
    """What a server sent, and is not passed on; the text follows the address's name."""


@contextmanager
def relayed(address: str, name: str, open_s: float, read_s: float) -> Iterator[str]:
    """What FFmpeg is to open in place of an address; see `Relay`.

    Raises:
        InputError: At the end, if the server sent what is not passed on, or nothing in time.
    """
    relay = Relay(address, name, open_s, read_s)
    try:
        yield relay.address
    except Exception as cause:
        if relay.refused:
            raise InputError(f"{name} {relay.refused}") from cause
        raise
    finally:
        relay.close()
    if relay.refused:
        raise InputError(f"{name} {relay.refused}")


class Relay:
    """Goes to the server of one address, for one connection.

    Args:
        address: `rtsp://` or `rtsps://`, with a user's name and password where the server asks.
        name: Of the address, for errors.
        open_s: Seconds that connecting may take.
        read_s: Seconds that the server may say nothing.

    Attributes:
        address: What FFmpeg is to open.
        refused: Why the connection was ended, to follow the name; empty if it was not.

    Raises:
        InputError: If the address has no host or a wrong port, or the server cannot be reached.
    """

    def __init__(self, address: str, name: str, open_s: float, read_s: float) -> None:
        self.refused = ""
        split = _split(address, name)
        host, port = str(split.hostname), split.port or PORTS[split.scheme]
        shown = f"[{host}]" if ":" in host else host
        self._read_s = read_s
        self._user, self._password = (
            unquote(part or "") for part in (split.username, split.password)
        )
        try:
            self._server = socket.create_connection((host, port), open_s)
            if split.scheme == "rtsps":
                self._server = _context().wrap_socket(self._server, server_hostname=host)
        except TimeoutError as cause:
            raise InputError(f"{name} did not answer within {open_s:g} s") from cause
        except (OSError, UnicodeError) as cause:
            reason = getattr(cause, "strerror", None) or first_line(cause)
            raise InputError(f"{name} cannot be reached: {reason}") from cause
        self._server.settimeout(read_s)
        self._listener = socket.create_server((LOOPBACK, 0), backlog=1)
        self._listener.settimeout(open_s)
        own = f"{LOOPBACK}:{self._listener.getsockname()[1]}"
        self._own, self._of_server = f"rtsp://{own}", f"{split.scheme}://{shown}:{port}"
        user = split.netloc.rpartition("@")[0]
        target = split._replace(scheme="rtsp", netloc=f"{user}@{own}" if user else own)
        self.address, self._client = target.geturl(), socket.socket()
        threading.Thread(target=self._work, name="rtsp", daemon=True).start()

    def close(self) -> None:
        """End both connections."""
        for end in (self._listener, self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _work(self) -> None:
        """Pass on what the server says, and in a further thread what it is asked."""
        try:
            self._client, _ = self._listener.accept()
            self._listener.close()
            threading.Thread(target=self._ask, name="rtsp-requests", daemon=True).start()
            with self._server.makefile("rb") as file:
                for message in answers(file):
                    self._client.sendall(message)
        except RefusedError as cause:
            self.refused = str(cause)
        except TimeoutError:
            self.refused = f"said nothing for {self._read_s:g} s"
        except (OSError, ValueError):  # an end that was closed
            pass
        finally:
            self.close()

    def _ask(self) -> None:
        try:
            with self._client.makefile("rb") as file:
                for message in _messages(file):
                    self._server.sendall(message if message[:1] == b"$" else self._asked(message))
        except (RefusedError, OSError, ValueError):
            pass
        finally:
            self.close()

    def _asked(self, message: bytes) -> bytes:
        """A request with the server's address in place of the relay's."""
        head, end, body = message.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").replace(self._own, self._of_server).split("\r\n")
        method = lines[0].partition(" ")[0]
        for index, line in enumerate(lines):
            if line.startswith("Authorization: Digest ") and self._own.encode() in head:
                lines[index] = digest(line, method, self._user, self._password)
        return "\r\n".join(lines).encode("latin-1") + end + body


def answers(file: BinaryIO) -> Iterator[bytes]:
    """What a server sends, message by message, each as it may be passed on.

    Raises:
        RefusedError: At a redirect, and at what is no RTSP.
    """
    for message in _messages(file):
        if message[:1] == b"$":
            if len(message) >= 4 + LEAST_PACKET:
                yield message
            continue
        status = _STATUS.match(message)
        if status and status[1].startswith(b"3"):
            raise RefusedError(
                f"answers {status[1].decode()}, a redirect, which is not followed; give the address"
                " that it names, if you trust it"
            )
        yield message


def digest(line: str, method: str, user: str, password: str) -> str:
    """An `Authorization: Digest` line whose response is that to the `uri` that it has now."""
    said = dict(_DIGEST.findall(line.partition("Digest ")[2]))
    first = _md5(f"{user}:{said.get('realm', '')}:{password}")
    if said.get("algorithm", "").lower() == "md5-sess":
        first = _md5(f"{first}:{said.get('nonce', '')}:{said.get('cnonce', '')}")
    asked = [said.get(key, "") for key in ("nonce", "nc", "cnonce", "qop")]
    if not said.get("qop"):
        asked = asked[:1]
    response = _md5(":".join([first, *asked, _md5(f"{method}:{said.get('uri', '')}")]))
    return re.sub(r'response="[^"]*"', f'response="{response}"', line)


def _messages(file: BinaryIO) -> Iterator[bytes]:
    """Packets (`$`, channel, length, bytes) and messages, written anew, until the end.

    Raises:
        RefusedError: At what is neither.
    """
    while first := file.read(1):
        if first == b"$":
            head = file.read(3)
            yield first + head + _whole(file, int.from_bytes(head[1:], "big"))
        elif first not in b"\r\n":
            yield _message(file, first)


def _message(file: BinaryIO, first: bytes) -> bytes:
    lines = [_line(file, first)]
    if not (_STATUS.fullmatch(lines[0]) or _REQUEST.fullmatch(lines[0])):
        raise RefusedError("sends what is no RTSP")
    lengths = list[bytes]()
    while line := _line(file):
        header = _HEADER.fullmatch(line)
        if header is None or len(lines) > MOST_LINES:
            raise RefusedError("sends a header that is no RTSP, or too long")
        name = header[1].lower()
        lengths += [header[2].strip()] * (name == b"content-length")
        if name not in (b"location", b"content-length"):
            lines.append(header[1] + b": " + header[2])
    if len(lengths) > 1 or not all(re.fullmatch(rb"\d{1,7}", length) for length in lengths):
        raise RefusedError("sends a length that is no number")
    body = _whole(file, int(lengths[0]) if lengths else 0)
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def _line(file: BinaryIO, begun: bytes = b"") -> bytes:
    line = begun + file.readline(MOST_LINE)
    if not line.endswith(b"\n"):
        raise RefusedError(f"ends within a message, or has a line of more than {MOST_LINE} bytes")
    return line[:-1].removesuffix(b"\r")


def _whole(file: BinaryIO, size: int) -> bytes:
    if size > MOST_BODY:
        raise RefusedError(f"sends a message of {size} bytes, expected {MOST_BODY} at most")
    data = file.read(size)
    if len(data) < size:
        raise RefusedError("ends within a message")
    return data


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _split(address: str, name: str) -> SplitResult:
    try:
        split = urlsplit(address)
        if split.hostname and (split.port is None or split.port):
            return split
    except ValueError as cause:
        raise InputError(f"{name} is no address: {first_line(cause)}") from cause
    raise InputError(f"{name} names no host and port, expected rtsp://HOST[:PORT]/PATH")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
