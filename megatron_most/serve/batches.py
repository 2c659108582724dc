"""Answers for many at once: jobs wait in a bounded queue, one thread lets the model answer several together.

A job whose listener has gone away is dropped where it stands, in the queue or between two tokens; the others of its
batch do not notice. What goes wrong with one prompt was found before it came here; what goes wrong with the model fails
the batch, and the next one is tried.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from megatron_most.generate import Prompt, Settings
from megatron_most.runtime import get_logger
from megatron_most.serve.partner import Partner

_log = get_logger(__name__)


@dataclass(eq=False)
class Job:
    """One answer that is wanted. The callbacks are called from the model's thread; they must not wait."""

    prompt: Prompt
    settings: Settings
    on_token: Callable[[int, int], None]
    """(id, tag)"""
    on_end: Callable[[str | Exception], None]
    """Why it stopped, or the error; called once, unless it was cancelled."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    _said: int = 0
    _has_ended: bool = False

    def take(self, id: int, tag: int, eos_id: int) -> None:
        """A token has come. One that is the last ends the answer now: others of the batch may go on for long."""
        self._said += 1
        self.on_token(id, tag)
        if id == eos_id:
            self.end("eos")
        elif self._said == self.settings.max_new_tokens:
            self.end("length")

    def end(self, why: str | Exception) -> None:
        if not self._has_ended and not self.cancelled.is_set():
            self._has_ended = True
            self.on_end(why)


class Busy(Exception):
    """The queue is full."""


class Batches:
    """`with Batches(partner) as batches: batches.add(job)`."""

    def __init__(self, partner: Partner, *, rows: int = 8, waiting: int = 128) -> None:
        self._partner, self._rows, self._waiting = partner, rows, waiting
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._running = 0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def __enter__(self) -> Batches:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        self._thread.join(timeout=10)

    @property
    def load(self) -> tuple[int, int]:
        """(answers under way, jobs that wait)."""
        with self._changed:
            return self._running, len(self._queue)

    def add(self, job: Job) -> None:
        """Busy where too many wait already."""
        with self._changed:
            # A listener who has gone leaves a place free at once.
            self._queue = deque(job for job in self._queue if not job.cancelled.is_set())
            if len(self._queue) >= self._waiting or self._closed:
                raise Busy
            self._queue.append(job)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                jobs: list[Job] = []
                while self._queue and len(jobs) < self._rows:
                    job = self._queue.popleft()
                    if not job.cancelled.is_set():
                        jobs.append(job)
                self._running = len(jobs)
            if jobs:
                self._answer(jobs)
            with self._changed:
                self._running = 0

    def _answer(self, jobs: list[Job]) -> None:
        eos_id = self._partner.tokens.eos_id
        try:
            answers = self._partner.answer(
                [job.prompt for job in jobs],
                [job.settings for job in jobs],
                lambda row, id, tag: jobs[row].take(id, tag, eos_id),
                lambda row: self._closed or jobs[row].cancelled.is_set(),
            )
        except Exception as error:
            _log.exception("a batch of %d answers failed", len(jobs))
            for job in jobs:
                job.end(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.end(answer.stopped)
