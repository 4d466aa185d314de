"""A phone as `adb` sees one: the transport protocol over TCP, with a folder for its storage.

Speaks what the real adb needs: CNXN, AUTH, OPEN, OKAY, WRTE, CLSE; the services `shell,v2` (scripts
run for real, in `sh`), `sync` (STAT, SEND) and `exec:cmd package install`. Paths of a phone are
replaced by those of the folder. The programs that only a phone has lie in `bin/`.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import struct
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

MOST = 256 * 1024
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class Phone:
    """In state `device`, `unauthorized` or `offline`; unplugged after `push_limit` bytes."""

    def __init__(
        self, folder: Path, state="device", features="shell_v2,cmd", push_limit=None
    ) -> None:
        self.folder, self.state, self.features = folder, state, features
        self.pushed, self.push_limit, self.connection = 0, push_limit, None
        self.installs = b"Success\n"
        for name in ("bin", "data/local/tmp", "sdcard"):
            (folder / name).mkdir(parents=True)
        self.script("logcat", 'echo "11-22 10:00:00.000  1  1 I edgevlm: $*"')
        self.script("pm", f"[ ! -f {folder}/app ] || echo package:/data/app/base.apk")
        self.server = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def storage(self):
        return self.folder / "data" / "local" / "tmp"

    def script(self, name, text):
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def unplug(self):
        """Gone, with all that runs for adb; nobody can plug it in again."""
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)  # or the next one is still accepted
        self.server.close()
        if self.connection is not None:
            self.connection.close()

    def here(self, text):
        for name in ("/data/local/tmp", "/sdcard/"):
            text = text.replace(name, f"{self.folder}{name}")
        # A path that we gave is not replaced again.
        return text.replace(f"{self.folder}{self.folder}", str(self.folder))

    def _accept(self):
        while True:
            try:
                end, _ = self.server.accept()
            except OSError:
                return
            self.connection = Connection(self, end)
            threading.Thread(target=self.connection.serve, daemon=True).start()


class Connection:
    """One adb server."""

    def __init__(self, phone, end) -> None:
        self.phone, self.end, self.lock = phone, end, threading.Lock()
        self.streams, self.last = {}, 0

    def serve(self):
        try:
            while True:
                kind, first, second, size = struct.unpack("<4sIII8x", self.take(24))
                self.got(kind, first, second, self.take(size))
        except (OSError, EOFError):
            self.close()

    def take(self, size):
        data = b""
        while len(data) < size:
            piece = self.end.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def write(self, kind, first=0, second=0, data=b""):
        magic = struct.unpack("<I", kind)[0] ^ 0xFFFFFFFF
        head = struct.pack(
            "<4sIIIII", kind, first, second, len(data), sum(data) & 0xFFFFFFFF, magic
        )
        with self.lock:
            self.end.sendall(head + data)

    def got(self, kind, first, second, data):
        if kind in (b"CNXN", b"AUTH"):
            if self.phone.state == "device":
                text = f"device::ro.product.model=Scripted;features={self.phone.features}"
                self.write(b"CNXN", 0x01000001, MOST, text.encode())
            elif self.phone.state == "unauthorized" and first != 3:  # the key: it asks its user
                self.write(b"AUTH", 1, 0, bytes(20))
        elif kind == b"OPEN":
            self.last += 1
            stream = Stream(self, self.last, first)
            self.streams[self.last] = stream
            stream.open(data.rstrip(b"\0").decode())
        elif kind == b"WRTE" and second in self.streams:
            self.streams[second].inbox.put(data)
            self.write(b"OKAY", second, first)
        elif kind == b"OKAY" and second in self.streams:
            self.streams[second].ready.release()
        elif kind == b"CLSE" and second in self.streams:
            self.streams.pop(second).inbox.put(None)

    def close(self):
        with suppress(OSError):
            self.end.shutdown(socket.SHUT_RDWR)
        self.end.close()
        for stream in list(self.streams.values()):
            stream.inbox.put(None)


class Stream:
    """One service."""

    def __init__(self, connection, here, there) -> None:
        self.connection, self.ids = connection, (here, there)
        self.inbox, self.rest, self.ready = queue.Queue(), b"", threading.Semaphore(0)
        self.writing = threading.Lock()

    def open(self, service):
        name = service.partition(":")[0].partition(",")[0]
        text = service.partition(":")[2]
        serve = {"shell": self.shell, "sync": self.sync, "exec": self.install}.get(name)
        if serve is None:
            self.connection.write(b"CLSE", 0, self.ids[1])
            return
        self.connection.write(b"OKAY", *self.ids)
        threading.Thread(target=self.run, args=(serve, text), daemon=True).start()

    def run(self, serve, text):
        try:
            serve(text)
            self.connection.write(b"CLSE", *self.ids)
        except (OSError, EOFError):
            pass

    def put(self, data):
        with self.writing:
            self.connection.write(b"WRTE", *self.ids, data)
            self.ready.acquire(timeout=10)

    def take(self, size):
        while len(self.rest) < size:
            piece = self.inbox.get()
            if piece is None:
                raise EOFError
            self.rest += piece
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def shell(self, text):
        phone = self.connection.phone
        process = subprocess.Popen(
            ["sh", "-c", phone.here(text)], cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
            env={"PATH": f"{phone.folder}/bin:/usr/bin:/bin", "HOME": "/"},
        )  # fmt: skip

        def carry(pipe, kind):
            while data := os.read(pipe.fileno(), 4096):
                self.put(struct.pack("<BI", kind, len(data)) + data)

        def feed():
            try:
                while True:
                    kind, size = struct.unpack("<BI", self.take(5))
                    data = self.take(size)
                    if kind == STDIN:
                        process.stdin.write(data)
                        process.stdin.flush()
                    elif kind == CLOSE_STDIN:
                        process.stdin.close()
            except EOFError:  # adb has gone: so does what it started
                process.stdin.close()
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGHUP)
            except OSError:
                pass

        threads = [
            threading.Thread(target=carry, args=pair, daemon=True)
            for pair in ((process.stdout, STDOUT), (process.stderr, STDERR))
        ]
        threading.Thread(target=feed, daemon=True).start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.put(struct.pack("<BIB", EXIT, 1, process.wait() & 0xFF))

    def sync(self, _):
        phone = self.connection.phone
        while True:
            kind, size = struct.unpack("<4sI", self.take(8))
            text = "" if kind == b"QUIT" else self.take(size).decode()
            if kind == b"QUIT":
                return
            if kind == b"STAT":
                path = Path(phone.here(text))
                state = path.stat() if path.exists() else None
                numbers = (
                    (state.st_mode, state.st_size, int(state.st_mtime)) if state else (0, 0, 0)
                )
                self.put(struct.pack("<4sIII", b"STAT", *numbers))
            elif kind == b"SEND":
                self.receive(Path(phone.here(text.rpartition(",")[0])))

    def receive(self, path):
        phone, failure = self.connection.phone, b""
        try:
            file = path.open("wb")
        except OSError as cause:
            failure, file = cause.strerror.encode(), None
        while True:
            kind, size = struct.unpack("<4sI", self.take(8))
            if kind == b"DONE":
                break
            data = self.take(size)
            phone.pushed += len(data)
            try:
                if file and not failure:
                    file.write(data)
                    file.flush()
            except OSError as cause:
                failure = cause.strerror.encode()
            if phone.push_limit is not None and phone.pushed > phone.push_limit:
                phone.unplug()
                raise EOFError
        if file:
            file.close()
        self.put(struct.pack("<4sI", b"FAIL" if failure else b"OKAY", len(failure)) + failure)

    def install(self, text):
        phone, size = self.connection.phone, int(text.split()[-1].strip("'"))
        self.take(size)
        if phone.installs.startswith(b"Success"):
            (phone.folder / "app").touch()
        self.put(phone.installs)
