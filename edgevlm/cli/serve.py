"""`edgevlm serve`: bundles behind OpenAI's chat completions."""

from __future__ import annotations

import json as documents
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from edgevlm.bundle.files import Bundle
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.default_bundle import default_bundle
from edgevlm.cli.shared.output import answer, complain, say
from edgevlm.libraries import require
from edgevlm.runtimes.loading import loop_class
from edgevlm.runtimes.loops.text import TextLoop


def main(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(metavar="BUNDLE", help="Bundles; default: the embedded model."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen at; others reach no loopback.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 takes a free one.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="EDGEVLM_API_KEY",
            show_envvar=True,
            help="Key that requests must have; other users see an option, not the variable.",
        ),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures of public http(s) addresses.")
    ] = False,
    queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Requests that wait or run; more get 429.")
    ] = 16,
    deadline: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Longest time of a request.")
    ] = 120.0,
    max_body: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Largest request.")] = 32
    * 10**6,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most tokens where a request does not say.")
    ] = 512,
    engine: o.Engine = None,
    threads: o.Threads = None,
    memory: o.Memory = None,
    json: o.Json = False,
) -> None:
    """Answer OpenAI's chat completions over HTTP, one request after the other.

    One bundle is in memory at a time; a request names the one that it asks.
    """
    server, limited, measured, working = _parts()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    paths = _named([Path(each) for each in bundles] if bundles else [default_bundle()])
    limits = limited(queue=queue, deadline_s=deadline, body_bytes=max_body,
                     most_tokens=max_new_tokens)  # fmt: skip
    metrics = measured()
    worker = working(paths, limits, metrics, engine, threads, memory)
    worker.start()
    if host not in ("127.0.0.1", "::1", "localhost") and not api_key:
        complain("other machines can reach this server, and it has no --api-key")
    _listen(server(worker, limits, metrics, api_key, allow_urls).app, host, port, list(paths), json)


def _parts() -> tuple[Any, Any, Any, Any]:
    """The classes of the server, imported once its libraries are known to be there."""
    for module in ("starlette", "uvicorn"):
        require("edgevlm serve", module, module, "serve")
    from edgevlm.serve.app import Server
    from edgevlm.serve.limits import Limits
    from edgevlm.serve.metrics import Metrics
    from edgevlm.serve.worker import Worker

    return Server, Limits, Metrics, Worker


def _named(paths: list[Path]) -> dict[str, Path]:
    """Bundles by name.

    Raises:
        typer.BadParameter: If two have one name, or one answers no questions.
    """
    found: dict[str, Path] = {}
    for path in paths:
        name, kind = path.resolve().stem, Bundle.open(path).plan.kind
        if loop_class(kind) is not TextLoop:
            raise typer.BadParameter(f"'{path}' is of kind {kind}, which answers no questions")
        if name in found:
            raise typer.BadParameter(f"two bundles have the name '{name}'; rename one")
        found[name] = path
    return found


def _listen(app: Any, host: str, port: int, models: list[str], as_json: bool) -> None:
    """Listen until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        app, host, port, log_level="warning", access_log=False, timeout_graceful_shutdown=1,
        server_header=False,
    )  # fmt: skip
    try:
        socket = config.bind_socket()
    except SystemExit as cause:  # uvicorn has said why
        raise typer.Exit(1) from cause
    shown, taken = (f"[{host}]" if ":" in host else host), socket.getsockname()[1]
    address = f"http://{shown}:{taken}/v1"
    say(f"listening at {address}; Ctrl-C ends it")
    body = documents.dumps({"model": models[0], "messages": [{"role": "user", "content": "Hello"}]})
    if as_json:  # for who started it with --port 0
        answer({"address": address, "models": models}, "", as_json)
    say(f"models: {', '.join(models)}")
    say(f"try: curl {address}/chat/completions -H 'Content-Type: application/json' -d '{body}'")
    try:
        uvicorn.Server(config).run(sockets=[socket])
    except KeyboardInterrupt:
        say("stopped")
