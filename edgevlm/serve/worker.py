"""One thread that runs models, one in memory at a time, and the bounded queue in front of it."""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.libraries import first_line
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.residency.memory import return_freed
from edgevlm.serve.generation import Ended, Result, complete
from edgevlm.serve.limits import Limits, Refused
from edgevlm.serve.metrics import Metrics
from edgevlm.serve.requests import Completion

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """A request in the queue.

    Attributes:
        asked: The request.
        tell: Called in the worker's thread: with a text for each piece, then once with the result
            or with why there is none.
        ends: When its deadline is, of `time.monotonic`.
    """

    asked: Completion
    tell: Callable[[str | Result | Refused], None]
    ends: float
    started: float = field(default_factory=time.monotonic)
    left: bool = False  # the client
    first_s: float | None = None


class Worker:
    """The queue and its thread."""

    def __init__(
        self,
        paths: Mapping[str, Path],
        limits: Limits,
        metrics: Metrics,
        engine: str | None = None,
        threads: int | None = None,
        memory: str | None = None,
    ) -> None:
        self.paths, self.limits, self.metrics = paths, limits, metrics
        self._options = (engine, threads, memory)
        self._name = ""
        self._loop: TextLoop | None = None
        self._waiting = queue.SimpleQueue[Job]()
        self._jobs, self._lock = set[Job](), threading.Lock()

    def start(self) -> None:
        """Load the first model, so that a damaged one is seen at once, and begin to answer."""
        self._model(next(iter(self.paths)))
        threading.Thread(target=self._run, name="edgevlm-model", daemon=True).start()

    @property
    def queued(self) -> int:
        """Requests that wait or run."""
        return len(self._jobs)

    def check_room(self) -> None:
        """Refuse where the queue is full.

        Raises:
            Refused: With status 429.
        """
        if self.queued >= self.limits.queue:
            raise Refused(
                429, f"{self.limits.queue} requests wait already; try again later",
                "rate_limit_exceeded", {"Retry-After": "1"},
            )  # fmt: skip

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            Refused: If it is full.
        """
        with self._lock:
            self.check_room()
            self._jobs.add(job)
        self._waiting.put(job)

    def leave(self, job: Job) -> None:
        """Its client has left: what waits is free at once, what runs before its next token."""
        job.left = True
        with self._lock:
            self._jobs.discard(job)

    def stop(self) -> None:
        """All clients leave."""
        for job in [*self._jobs]:
            self.leave(job)

    def _run(self) -> None:
        while True:
            job = self._waiting.get()
            try:
                told: Result | Refused | None = self._answer(job)
            except Ended:
                told = None
            except Refused as cause:
                told = cause
            except InputError as cause:
                told = Refused(400, str(cause))
            except EdgeVLMError as cause:
                told = Refused(500, str(cause))
            except MemoryError:
                told = Refused(503, "there is not enough memory for this request")
            except Exception as cause:  # a defect of ours ends one answer, not the server
                _log.exception("an answer failed")
                told = Refused(500, f"the answer failed: {first_line(cause)}")
            with self._lock:
                self._jobs.discard(job)
            if told is not None:
                job.tell(told)

    def _answer(self, job: Job) -> Result:
        def check() -> None:
            if job.left:
                raise Ended
            if time.monotonic() > job.ends:
                seconds = self.limits.deadline_s
                raise Refused(504, f"the answer takes longer than {seconds:g} s", "timeout")

        def send(text: str) -> None:
            if job.first_s is None:
                job.first_s = time.monotonic() - job.started
            job.tell(text)

        check()
        result = complete(self._model(job.asked.model), job.asked, send, check)
        with self.metrics.lock:
            self.metrics.tokens["prompt"] += result.prompt_tokens
            self.metrics.tokens["visual"] += result.visual_tokens
            self.metrics.tokens["completion"] += result.completion_tokens
            if job.first_s is not None:
                self.metrics.first_token_s.add(job.first_s)
            if result.tokens_per_s is not None:
                self.metrics.tokens_per_s.add(result.tokens_per_s)
        return result

    def _model(self, name: str) -> TextLoop:
        """The model of a name; another one leaves the memory first."""
        if self._loop is None or name != self._name:
            self._name, self._loop = "", None
            gc.collect()
            return_freed()
            loop = load_loop(self.paths[name], *self._options)
            if not isinstance(loop, TextLoop):
                raise InputError(f"'{name}' answers no questions: {loop.usage}")
            self._name, self._loop = name, loop
        return self._loop
