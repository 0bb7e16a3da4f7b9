"""What stands before every route: who may enter, how much they may bring, and what became of them."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lowdim.infer.serve.errors import ApiError
from lowdim.infer.serve.keys import Keys
from lowdim.infer.serve.metrics import Metrics

OUTCOME = "lowdim.outcome"
GENERATION = ("/v1/chat/completions", "/v1/completions")
_DRAIN_BYTES, _DRAIN_SECONDS = 64 * 2**20, 5.0


class Gate:
    """Check the key, the host, the kind and the size of a request's body; count outcomes.

    The body is read here, up to the limit, and handed on in one piece: an endless body without a length costs
    no more memory than the limit.

    Args:
        app: what is behind the gate.
        keys: keys of which one is asked for, if there are any; ``/health`` is always open.
        local_only: answer to names of this machine alone. Without a key this keeps a web page whose name was
            pointed at this machine from reading answers.
        body: most bytes of a body.
        seconds: most time that a body may take to arrive.
        metrics: where outcomes are counted.
    """

    def __init__(self, app: ASGIApp, keys: Keys, local_only: bool, body: int, seconds: float, metrics: Metrics) -> None:
        self._app, self._keys, self._local_only = app, keys, local_only
        self._body, self._seconds, self._metrics = body, seconds, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._enter(scope, receive, watched)
        except BaseException:
            status = 500 if status == 499 else status
            raise
        finally:
            if scope["path"] in GENERATION:
                outcome = scope.get(OUTCOME) or _outcome(status)
                self._metrics.requests.labels(scope["path"], outcome).inc()

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, incoming = Headers(scope=scope), _Incoming(receive)
        try:
            self._check(scope, headers)
            body = await self._read(headers, incoming)
        except ApiError as error:
            if "100-continue" not in headers.get("expect", "").lower():
                await incoming.discard()
            await error.response()(scope, receive, send)
            return
        except _VanishedError:
            scope[OUTCOME] = "cancelled"
            return
        await self._app(scope, _replay(body, receive), send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if scope["path"] == "/health":
            return
        if self._local_only and not _is_local(headers.get("host", "")):
            raise ApiError(
                403,
                "This server has no API key and answers to localhost alone. Start it with --api-key-file to "
                "serve under other names.",
                code="host_not_allowed",
            )
        if self._keys and not self._keys.accepts(headers.get("authorization")):
            raise ApiError(
                401,
                "Incorrect or missing API key. Send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            raise ApiError(400, "Send the body as JSON, with 'Content-Type: application/json'.")

    async def _read(self, headers: Headers, incoming: _Incoming) -> bytes:
        """Return the body."""
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._body:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while not incoming.ended:
                    body += await incoming.part()
                    if len(body) > self._body:
                        raise self._too_large()
        except TimeoutError:
            raise ApiError(408, "The body did not arrive in time.", headers={"Connection": "close"}) from None
        return bytes(body)

    def _too_large(self) -> ApiError:
        message = f"The body has more than {self._body} bytes, the limit of this server."
        return ApiError(413, message, code="request_too_large", headers={"Connection": "close"})


class _VanishedError(Exception):
    """The client left before its request was complete."""


class _Incoming:
    """A body on its way in."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.ended = receive, False

    async def part(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.ended = True
            raise _VanishedError
        self.ended = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    async def discard(self) -> None:
        """Read what a refused client is still sending, within bounds: one that is cut off loses the answer too."""
        left = _DRAIN_BYTES
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while left > 0 and not self.ended:
                    left -= len(await self.part())
        except (TimeoutError, _VanishedError):
            return


def _is_local(host: str) -> bool:
    """Tell whether a Host header names this machine: by an address of its own, or the one name that is always so.

    Example:
        >>> [_is_local(host) for host in ("localhost:8000", "127.0.1.1:8000", "[::1]", "evil.example:80", "")]
        [True, True, True, False, False]
    """
    name, colon, port = host.rpartition(":")
    name = (name if colon and port.isdigit() else host).lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _outcome(status: int) -> str:
    named = {401: "unauthorized", 413: "too_large", 429: "overloaded", 499: "cancelled", 503: "unavailable"}
    if status in named:
        return named[status]
    return "completed" if status < 400 else "refused" if status < 500 else "failed"


def _replay(body: bytes, receive: Receive) -> Callable[[], Any]:
    """Return a ``receive`` that gives the body once and then waits for the client to leave."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
