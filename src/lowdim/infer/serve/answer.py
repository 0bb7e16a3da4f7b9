"""The response to one generation request: whole or as a stream of events, cut when its client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lowdim.infer.serve.errors import NO_RETRY, ApiError
from lowdim.infer.serve.gate import OUTCOME
from lowdim.infer.serve.job import Job
from lowdim.infer.serve.mailbox import Mailbox
from lowdim.infer.serve.replies import Choice, Reply
from lowdim.infer.serve.scheduler import Scheduler

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_LAST_WORD = 1.0  # seconds that a client has to take the error which ends its stream


class _LeftError(Exception):
    """The client is gone."""


class Answer(Response):
    """Run a request's jobs and send what they make.

    Nothing is sent before the first news, so that an error until then has its own status. The jobs are
    cancelled however this ends: answered, timed out, failed, or its client gone.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        jobs: Sequence[Job],
        mailbox: Mailbox,
        reply: Reply,
        prompt: int,
        stream: bool,
        seconds: float,
    ) -> None:
        super().__init__()
        self._scheduler, self._jobs, self._mailbox = scheduler, jobs, mailbox
        self._reply, self._prompt, self._is_stream, self._seconds = reply, prompt, stream, seconds
        self._choices = [Choice() for _ in jobs]
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response.

        Raises:
            ApiError: it failed before anything was sent.
        """
        self._scheduler.submit(self._jobs)
        watch = asyncio.create_task(self._watch(receive))
        try:
            await self._answer(scope, receive, send)
        except _LeftError:
            scope[OUTCOME] = "cancelled"
        finally:
            self._scheduler.cancel(self._jobs)
            watch.cancel()
            await asyncio.wait([watch])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await (self._stream(send) if self._is_stream else self._collect())
        except TimeoutError:
            scope[OUTCOME] = "timed_out"
            message = f"The answer took longer than {self._seconds:g} seconds, the limit of this server."
            await self._break(scope, send, ApiError(504, message, code="timeout", headers=NO_RETRY))
        except ApiError as error:
            await self._break(scope, send, error)
        else:
            if not self._is_stream:
                await JSONResponse(self._reply.whole(self._prompt, self._choices))(scope, receive, send)

    async def _break(self, scope: Scope, send: Send, error: ApiError) -> None:
        """Tell the client of an error: as the response, or as the last event of a stream that has begun."""
        if not self._started:
            raise error
        scope.setdefault(OUTCOME, "unavailable" if error.status == 503 else "failed")
        try:
            async with asyncio.timeout(_LAST_WORD):
                await self._event(send, error.body())
                await self._end(send)
        except TimeoutError:
            pass  # it has stopped reading: uvicorn closes a connection whose response is not complete

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._mailbox.fail(_LeftError())

    async def _collect(self) -> None:
        while any(choice.finish is None for choice in self._choices):
            for update in await self._mailbox.take():
                choice = self._choices[update.index]
                choice.text += update.text
                choice.tokens += update.tokens
                choice.finish = update.finish

    async def _stream(self, send: Send) -> None:
        while any(choice.finish is None for choice in self._choices):
            updates = await self._mailbox.take()
            if not self._started:
                await self._begin(send)
            for update in updates:
                choice = self._choices[update.index]
                choice.tokens += update.tokens
                choice.finish = update.finish
                if update.text or update.finish:
                    piece = self._reply.form.delta(update.index, update.text, update.finish)
                    await self._event(send, self._reply.piece(piece))
        if self._reply.with_usage:
            await self._event(send, self._reply.counts(self._prompt, self._choices))
        await self._event(send, None)
        await self._end(send)

    async def _begin(self, send: Send) -> None:
        self._started = True
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        for index in range(len(self._choices)):
            opening = self._reply.form.opening(index)
            if opening is not None:
                await self._event(send, self._reply.piece(opening))

    async def _event(self, send: Send, data: dict[str, Any] | None) -> None:
        text = "[DONE]" if data is None else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})

    async def _end(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
