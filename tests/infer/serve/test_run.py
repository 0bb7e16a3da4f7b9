"""Addresses: taken before the model is loaded, refused in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from lowdim.core.errors import LowdimError
from lowdim.infer.serve.run import bind, is_loopback, url


@contextlib.contextmanager
def bound(host: str) -> Iterator[list[object]]:
    sockets = bind(host, 0)
    try:
        yield sockets  # type: ignore[misc]
    finally:
        for one in sockets:
            one.close()


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_who_can_reach_an_address(host: str, local: bool) -> None:
    with bound(host) as sockets:
        assert is_loopback(sockets) is local  # type: ignore[arg-type]
        assert len({one.getsockname()[1] for one in sockets}) == 1  # type: ignore[attr-defined]


def test_an_address_that_is_taken_or_not_ours_is_refused() -> None:
    with bound("127.0.0.1") as sockets:
        sockets[0].listen()  # type: ignore[attr-defined]
        port = sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        with pytest.raises(LowdimError, match=f"127.0.0.1 port {port}.*in use"):
            bind("127.0.0.1", port)
    for host in ("203.0.113.7", "no-such-host.invalid"):
        with pytest.raises(LowdimError, match=host):
            bind(host, 0)


def test_the_url_of_both_families() -> None:
    with bound("127.0.0.1") as sockets:
        assert url(sockets).startswith("http://127.0.0.1:")  # type: ignore[arg-type]
