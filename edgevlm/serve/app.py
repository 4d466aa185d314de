"""The routes: OpenAI's chat completions and models, `/healthz`, Prometheus's `/metrics`.

The event loop reads requests and writes answers; `worker` runs the model in its own thread, and
tells it pieces of text through a queue of each request.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from edgevlm.serve.generation import Result
from edgevlm.serve.limits import Limits, Refused
from edgevlm.serve.metrics import TEXT_FORMAT, Metrics
from edgevlm.serve.requests import Completion, parse
from edgevlm.serve.worker import Job, Worker

_log = logging.getLogger(__name__)
LEFT = 499  # status in the log and the metrics of a client that left
Told = asyncio.Queue[str | Result | Refused]


class Server:
    """The answers of one server."""

    def __init__(
        self, worker: Worker, limits: Limits, metrics: Metrics, key: str | None, addresses: bool
    ) -> None:
        self.worker, self.limits, self.metrics = worker, limits, metrics
        self._key, self._addresses = key, addresses
        self._began = int(time.time())

    @property
    def app(self) -> Starlette:
        """The ASGI application."""

        @asynccontextmanager
        async def life(_: Starlette) -> AsyncIterator[None]:
            yield
            self.worker.stop()

        routes = [
            Route("/v1/chat/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/healthz", self.health),
            Route("/metrics", self.measured),
        ]
        return Starlette(routes=routes, lifespan=life)

    async def health(self, _: Request) -> Response:
        """Whether the server is there; needs no key."""
        return JSONResponse({"status": "ok", "queued": self.worker.queued})

    async def measured(self, request: Request) -> Response:
        """Figures for Prometheus."""
        try:
            self._check_key(request)
        except Refused as cause:
            return self._refusal(cause, request)
        return PlainTextResponse(self.metrics.text(self.worker.queued), media_type=TEXT_FORMAT)

    async def models(self, request: Request) -> Response:
        """The names of the bundles."""
        try:
            self._check_key(request)
        except Refused as cause:
            return self._refusal(cause, request)
        known = [
            {"id": name, "object": "model", "created": self._began, "owned_by": "edgevlm"}
            for name in self.worker.paths
        ]
        return JSONResponse({"object": "list", "data": known})

    async def completions(self, request: Request) -> Response:
        """One answer, whole or streamed."""
        told = Told()
        loop = asyncio.get_running_loop()
        try:
            self._check_key(request)
            self.worker.check_room()
            async with asyncio.timeout(self.limits.deadline_s):
                body = await self._body(request)
            asked = await asyncio.to_thread(parse, body, self.limits, self._addresses)
            if asked.model not in self.worker.paths:
                known = ", ".join(self.worker.paths)
                raise Refused(
                    404, f"no model '{asked.model[:80]}'; here: {known}", "model_not_found"
                )

            def tell(what: str | Result | Refused) -> None:
                with suppress(RuntimeError):  # the event loop has ended
                    loop.call_soon_threadsafe(told.put_nowait, what)

            job = Job(asked, tell, time.monotonic() + self.limits.deadline_s)
            self.worker.submit(job)
        except Refused as cause:
            return self._refusal(cause, request)
        except TimeoutError:
            return self._refusal(Refused(408, "the request did not come in time"), request)
        except ClientDisconnect:
            return self._gone()
        if not asked.stream:
            return await self._whole(request, job, told)
        first = await self._next(request, job, told)
        if first is None:
            return self._gone()
        if isinstance(first, Refused):  # nothing is sent yet, so the status can say it
            return self._refusal(first, request)
        return StreamingResponse(self._events(job, told, first), media_type="text/event-stream")

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self._key and not hmac.compare_digest(given.encode(), self._key.encode()):
            raise Refused(401, "the API key is missing or wrong", "invalid_api_key")

    async def _body(self, request: Request) -> bytes:
        """The body, unless it says that it is too large, or is.

        Only JSON is taken: another type is what a page of another site may send unasked.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "the Content-Type must be application/json")
        most, body = self.limits.body_bytes, bytearray()
        large = Refused(413, f"the request has more than {most:,} bytes", "request_too_large")
        length = request.headers.get("content-length", "0")
        if len(length) > 18 or not length.isdecimal() or int(length) > most:
            raise large
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise large
        return bytes(body)

    async def _next(self, request: Request, job: Job, told: Told) -> str | Result | Refused | None:
        """What the worker tells next; None where the client left."""
        waits = asyncio.ensure_future(told.get())
        left = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((waits, left), return_when=asyncio.FIRST_COMPLETED)
            if waits.done():
                return waits.result()
            self.worker.leave(job)
            return None
        except asyncio.CancelledError:
            self.worker.leave(job)
            raise
        finally:
            waits.cancel()
            left.cancel()

    async def _whole(self, request: Request, job: Job, told: Told) -> Response:
        text = ""
        while isinstance(piece := await self._next(request, job, told), str):
            text += piece
        if piece is None:
            return self._gone()
        if isinstance(piece, Refused):
            return self._refusal(piece, request)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0, "message": message, "logprobs": None, "finish_reason": piece.finish,
        }  # fmt: skip
        self._count(200)
        document = self._head(job.asked, "chat.completion")
        return JSONResponse(document | {"choices": [choice], "usage": _usage(piece)})

    async def _events(self, job: Job, told: Told, first: str | Result) -> AsyncIterator[bytes]:
        """Server-sent events, a chunk each; the client leaves by closing this."""
        head, status = self._head(job.asked, "chat.completion.chunk"), LEFT
        unused = {"usage": None} if job.asked.usage else {}

        def chunk(delta: Mapping[str, str], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return _event(head | {"choices": [choice]} | unused)

        try:
            yield chunk({"role": "assistant", "content": ""})
            piece: str | Result | Refused = first
            while isinstance(piece, str):
                yield chunk({"content": piece})
                piece = await told.get()
            if isinstance(piece, Refused):
                status = piece.status
                _log.warning("%d in a stream: %s", status, piece.message)
                yield _event(piece.document)
                return
            yield chunk({}, piece.finish)
            if job.asked.usage:
                yield _event(head | {"choices": [], "usage": _usage(piece)})
            yield b"data: [DONE]\n\n"
            status = 200
        finally:
            self.worker.leave(job)
            self._count(status)

    def _head(self, asked: Completion, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind,
            "created": int(time.time()), "model": asked.model,
        }  # fmt: skip

    def _gone(self) -> Response:
        self._count(LEFT)
        return Response(status_code=LEFT)  # nobody reads it

    def _refusal(self, cause: Refused, request: Request) -> Response:
        self._count(cause.status)
        line = " ".join(cause.message.split())
        _log.warning("%d %s: %s", cause.status, request.url.path, line)
        headers = dict(cause.headers)
        if cause.status in (401, 408, 413, 415, 429):  # the body is not read
            headers["Connection"] = "close"
        return JSONResponse(cause.document, cause.status, headers)

    def _count(self, status: int) -> None:
        with self.metrics.lock:
            self.metrics.answers[status] += 1


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def _usage(result: Result) -> dict[str, Any]:
    """Tokens; `visual_tokens` is ours, the others are OpenAI's."""
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "total_tokens": result.prompt_tokens + result.completion_tokens,
        "prompt_tokens_details": {"visual_tokens": result.visual_tokens},
    }
