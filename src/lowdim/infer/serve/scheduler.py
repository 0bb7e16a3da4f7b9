"""Continuous batching: one thread owns the model and gives every open sequence its next token, turn by turn."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from lowdim.infer.decode.backend import Backend
from lowdim.infer.serve.errors import ApiError, internal_error
from lowdim.infer.serve.job import Job
from lowdim.infer.serve.limits import Limits
from lowdim.infer.serve.mailbox import Update
from lowdim.infer.serve.metrics import Metrics

_log = logging.getLogger("lowdim.serve")

RUNNING, DRAINING, STOPPED, FAILED = "ok", "shutting down", "stopped", "failed"


class Scheduler:
    """Run many sequences on one backend.

    A turn admits waiting jobs in order while slots are free and the cache has memory for all that they may hold,
    reads one chunk of the oldest unread prompt, gives every job whose prompt is read one more token, and sends the
    news to the event loop in one call. So a long prompt holds up running answers by one chunk at a time. Jobs that
    were cancelled lose their slot at the next turn.
    """

    def __init__(self, backend: Backend, limits: Limits, metrics: Metrics) -> None:
        self._backend, self._limits, self._metrics = backend, limits, metrics
        self._slots = min(limits.concurrent, backend.slots)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="lowdim-engine", daemon=True)
        self._changed = threading.Condition()
        self._arrived: deque[Job] = deque()  # shared, under _changed, as are _open, _cut and state
        self._open = 0
        self._cut: ApiError | None = None
        self.state = RUNNING
        self._waiting: deque[Job] = deque()  # the engine thread's own from here on
        self._active: list[Job] = []
        self._news: list[tuple[Job, Update | Exception]] = []
        metrics.watch(lambda: len(self._active), lambda: len(self._waiting) + len(self._arrived))

    # ---------------------------------------------------------------- called by the event loop

    def start(self) -> None:
        """Start the thread; news goes to the event loop that is running now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one request, all or none.

        Raises:
            ApiError: the queue is full, or the server takes no more requests.
        """
        with self._changed:
            self.check_running()
            if self._open + len(jobs) > self._slots + self._limits.queue:
                raise ApiError(
                    429,
                    f"All {self._slots} slots are taken and the queue is full. Try again later.",
                    code="queue_full",
                    headers={"Retry-After": "2"},
                )
            self._open += len(jobs)
            self._arrived.extend(jobs)
            self._changed.notify()

    def check_running(self) -> None:
        """Refuse where no more requests are taken."""
        if self.state != RUNNING:
            raise _unavailable(self.state)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Have the engine drop jobs at its next turn; those that have ended are left alone."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify()

    @property
    def open(self) -> int:
        """Sequences that run or wait."""
        return self._open

    def drain(self) -> None:
        """Take no more jobs."""
        with self._changed:
            self.state = DRAINING if self.state == RUNNING else self.state

    def cut(self) -> None:
        """End every job at the next turn with an error that tells its client to go elsewhere."""
        self.drain()
        with self._changed:
            self._cut = _unavailable(DRAINING)
            self._changed.notify()

    def stop(self, seconds: float = 30.0) -> None:
        """End every job and the thread, and wait for it."""
        with self._changed:
            self._cut = self._cut or _unavailable(DRAINING)
            self.state = self.state if self.state == FAILED else STOPPED
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        if self._thread.is_alive():
            _log.error("the engine did not stop within %s seconds", seconds)

    # ---------------------------------------------------------------- the engine's thread

    def _run(self) -> None:
        try:
            while self._wait():
                self._turn()
        except Exception:
            _log.exception("the engine failed; restart the server")
            self._fail()

    def _wait(self) -> bool:
        """Sleep until there is work; return False when there will be no more."""
        with self._changed:
            while not (self._arrived or self._waiting or self._active):
                if self.state == STOPPED:
                    return False
                self._changed.wait()
            self._waiting.extend(self._arrived)
            self._arrived.clear()
        return True

    def _turn(self) -> None:
        self._sweep()
        self._admit()
        self._read()
        self._step()
        self._tell()

    def _sweep(self) -> None:
        """Drop what was cancelled; when the server is stopping, everything."""
        for job in [*self._waiting, *self._active]:
            if job.cancelled or self._cut is not None:
                self._retire(job, None if job.cancelled else self._cut)

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._slots and self._has_room(self._waiting[0]):
            self._waiting[0].slot = self._backend.open()
            self._active.append(self._waiting.popleft())

    def _has_room(self, job: Job) -> bool:
        most = self._limits.cache_memory
        return most is None or sum(one.memory for one in self._active) + job.memory <= most

    def _read(self) -> None:
        """Read one chunk of the oldest prompt that is not read yet."""
        job = next((job for job in self._active if not job.is_read), None)
        if job is None:
            return
        chunk = job.ids[job.read : job.read + self._limits.chunk]
        try:
            logits = self._backend.prefill(job.slot, chunk)
        except Exception:
            _log.exception("a prompt of %d tokens could not be read", len(job.ids))
            self._retire(job, internal_error())
            return
        job.read += len(chunk)
        self._metrics.prompt_tokens.inc(len(chunk))
        if job.is_read:
            self._extend(job, logits)

    def _step(self) -> None:
        """Give every sequence whose prompt is read one more token."""
        ready = [job for job in self._active if job.is_read]
        if not ready:
            return
        logits = self._backend.step([job.slot for job in ready], [job.last for job in ready])
        for job, row in zip(ready, logits, strict=True):
            self._extend(job, row)

    def _extend(self, job: Job, logits: np.ndarray) -> None:
        """Draw a token; a mistake here is this job's alone."""
        try:
            update = job.extend(logits, self._backend.eos_ids)
        except Exception:
            _log.exception("a token could not be drawn")
            self._retire(job, internal_error())
            return
        self._metrics.generated_tokens.inc()
        now = time.perf_counter()
        (self._metrics.first_token if job.count == 1 else self._metrics.per_token).observe(now - job.since)
        job.since = now
        if update.finish is None:
            self._news.append((job, update))
        else:
            self._retire(job, update)

    def _retire(self, job: Job, news: Update | Exception | None) -> None:
        """Take a job out, free its slot and tell its client why."""
        if job in self._active:
            self._active.remove(job)
            self._backend.close(job.slot)
        else:
            self._waiting.remove(job)
        if news is not None:
            self._news.append((job, news))
        with self._changed:
            self._open -= 1

    def _tell(self) -> None:
        news, self._news = self._news, []
        if not news or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(_deliver, news)
        except RuntimeError:  # the loop has closed: nobody is left to hear it
            return

    def _fail(self) -> None:
        """Fail every job; none comes after them."""
        with self._changed:
            self.state = FAILED
            lost = [*self._waiting, *self._active, *self._arrived]
            self._open = 0
            self._arrived.clear()
        self._waiting.clear()
        self._active.clear()
        self._news += [(job, internal_error()) for job in lost]
        self._tell()


def _deliver(news: list[tuple[Job, Update | Exception]]) -> None:
    for job, item in news:
        if isinstance(item, Update):
            job.mailbox.put(item)
        else:
            job.mailbox.fail(item)


def _unavailable(state: str) -> ApiError:
    return ApiError(503, f"The server takes no requests: {state}.", code="unavailable")
