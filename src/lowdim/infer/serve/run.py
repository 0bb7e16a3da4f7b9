"""The server process: sockets, signals, and an end in good order."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from lowdim.core.errors import LowdimError
from lowdim.infer.serve.app import build_app
from lowdim.infer.serve.keys import Keys
from lowdim.infer.serve.service import Service

_STALLED = 120  # seconds after which the system drops a client that takes nothing of what it was sent
_LINGER = 5  # seconds that connections have to close once every answer has ended


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Take an address, before the model is loaded; connections are accepted once the server has started.

    Args:
        host: name or address; a name with several addresses takes them all.
        port: 0 is any free one.

    Raises:
        LowdimError: the address is taken, not ours, or unknown.
    """
    sockets: list[socket.socket] = []
    try:
        try:
            _bind(sockets, host, port)
        except (OSError, UnicodeError) as error:  # a name that no address can be asked of is the latter
            reason = error.strerror if isinstance(error, OSError) else "that is no name of a host"
            raise LowdimError(f"cannot listen on {host} port {port}: {reason}. Choose another.") from error
        yield sockets
    finally:
        for one in sockets:
            one.close()


def _bind(sockets: list[socket.socket], host: str, port: int) -> None:
    kind = socket.SOCK_STREAM
    for family, _, proto, _, address in socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE):
        one = socket.socket(family, kind, proto)
        sockets.append(one)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED * 1000)
        one.bind((address[0], sockets[0].getsockname()[1] or port, *address[2:]))


def is_loopback(sockets: list[socket.socket]) -> bool:
    """Return whether an address can be reached from this machine alone."""
    return all(ipaddress.ip_address(one.getsockname()[0].partition("%")[0]).is_loopback for one in sockets)


def lacks_ipv4(sockets: list[socket.socket]) -> bool:
    """Return whether clients that ask an IPv4 address, such as 127.0.0.1, get no answer."""
    return all(one.family == socket.AF_INET6 for one in sockets)


def url(sockets: list[socket.socket]) -> str:
    """Return where clients find the server."""
    host, port = sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


class Server(uvicorn.Server):
    """A server that ends in order: no new requests, time for the running ones, then a proper end for the rest.

    Attributes:
        loop: the event loop, once started.
        signals: those that the process was sent.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, service: Service, keys: Keys, sockets: list[socket.socket], started: Callable[[], None]) -> None:
        app = build_app(service, keys, local_only=is_loopback(sockets))
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_LINGER,
            )
        )
        self._service, self._sockets, self._on_start = service, sockets, started
        self._ending: asyncio.Task[None] | None = None
        self.signals: list[int] = []

    def serve_forever(self) -> None:
        """Serve until told to stop.

        Raises:
            KeyboardInterrupt: it was Ctrl-C that told so.
        """
        asyncio.run(self.serve(self._sockets))
        if signal.SIGINT in self.signals:
            raise KeyboardInterrupt

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the model's thread and listen."""
        await super().startup(sockets)
        self._on_start()

    def end(self) -> None:
        """Begin to stop; a second call waits for nobody. May be called from any thread."""
        self.loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        if self._ending is None:
            self._ending = self.loop.create_task(self._end())
        else:
            self._service.scheduler.cut()

    async def _end(self) -> None:
        scheduler = self._service.scheduler
        scheduler.drain()
        try:
            async with asyncio.timeout(self._service.limits.grace):
                while scheduler.open:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            scheduler.cut()
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Have SIGINT and SIGTERM end the server in order; in the main thread, the only one that hears them."""
        self.loop = asyncio.get_running_loop()

        def hear(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)
            self.end()

        try:
            before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
