"""Pictures of a request: data URIs, and addresses where the server was started with them.

An address is resolved once, must be public, and is connected to as it was checked; redirects are
refused, since they could lead inside.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import ipaddress
import socket
import ssl
import time
import warnings
from urllib.parse import urlsplit

from PIL import Image

from edgevlm.runtimes.loops.images.pictures import FORMATS
from edgevlm.serve.limits import Limits, wrong

PIECE = 2**16


def picture(url: str, limits: Limits, addresses: bool) -> bytes:
    """The bytes of a picture.

    Raises:
        Refused: If it is no data URI, not to be fetched, or too large.
    """
    if url[:5].lower() == "data:":
        found = _data(url)
    elif url[:8].lower().startswith(("http://", "https://")):
        if not addresses:
            raise wrong("addresses are not fetched here; send a data URI, or serve --allow-urls")
        found = fetch(url, limits)
    else:
        raise wrong("image_url must be a data URI: data:image/jpeg;base64,…")
    _check_side(found, limits.side)
    return found


def _data(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise wrong("the data URI is not base64; expected data:image/jpeg;base64,…")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as cause:
        raise wrong("the data URI of a picture is damaged: it is not base64") from cause


def _check_side(data: bytes, most: int) -> None:
    """Refuse a picture by its header; what has none is refused where it is decoded."""
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            formats = [kind for kind in FORMATS if kind in Image.OPEN]
            with Image.open(io.BytesIO(data), formats=formats) as found:
                width, height = found.size
    except Image.DecompressionBombError as cause:
        raise wrong(f"the picture has too many pixels; expected at most {most} a side") from cause
    except Exception:  # decoders raise anything
        return
    if max(width, height) > most:
        raise wrong(f"the picture is {width}x{height}; expected at most {most} pixels a side")


def public(host: str, port: int) -> str:
    """The address of a host.

    Raises:
        Refused: If there is none, or one of them is not public.
    """
    try:
        found = {
            str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        }
    except (OSError, UnicodeError) as cause:
        raise wrong(f"no host '{host[:80]}'") from cause
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        inner = getattr(address, "ipv4_mapped", None) or address
        if not inner.is_global or inner.is_multicast:
            raise wrong(f"'{host[:80]}' is not a public address; send the picture as a data URI")
    return min(found, key=lambda text: (":" in text, text))


def fetch(url: str, limits: Limits) -> bytes:
    """A picture of the web.

    Raises:
        Refused: If it is not public, not there, too large, or slow.
    """
    ends = time.monotonic() + limits.fetch_s
    try:
        parts = urlsplit(url)
        secure, host = parts.scheme.lower() == "https", parts.hostname or ""
        port = parts.port or (443 if secure else 80)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = http.client.HTTPConnection(host, port, timeout=limits.fetch_s)
        plain = socket.create_connection((public(host, port), port), limits.fetch_s)
        with plain:
            if secure:
                plain = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
            connection.sock = plain
            connection.request(
                "GET", path, headers={"User-Agent": "edgevlm", "Connection": "close"}
            )
            return _body(connection.getresponse(), limits.picture_bytes, ends)
    except (OSError, ValueError, http.client.HTTPException) as cause:
        reason = str(cause) or type(cause).__name__
        raise wrong(f"the picture's address cannot be read: {reason[:200]}") from cause


def _body(response: http.client.HTTPResponse, most: int, ends: float) -> bytes:
    if 300 <= response.status < 400:
        raise wrong("the picture's address redirects; give the address that it redirects to")
    if response.status != 200:
        raise wrong(f"the picture's address answers {response.status}")
    found = bytearray()
    while piece := response.read1(PIECE):
        found += piece
        if len(found) > most:
            raise wrong(f"the picture at that address has over {most:,} bytes")
        if time.monotonic() > ends:
            raise wrong("the picture's address is slow; send the picture as a data URI")
    return bytes(found)
