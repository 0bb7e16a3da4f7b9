"""Addresses: taken before the model is loaded, refused in words."""

from __future__ import annotations

import pytest

from lowdim.core.errors import LowdimError
from lowdim.infer.serve.run import bound, is_loopback, url


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_who_can_reach_an_address(host: str, local: bool) -> None:
    with bound(host, 0) as sockets:
        assert is_loopback(sockets) is local
        assert len({one.getsockname()[1] for one in sockets}) == 1
    assert [one.fileno() for one in sockets] == [-1] * len(sockets)


def test_an_address_that_is_taken_or_not_ours_is_refused() -> None:
    with bound("127.0.0.1", 0) as sockets:
        sockets[0].listen()
        port = sockets[0].getsockname()[1]
        with pytest.raises(LowdimError, match=f"127.0.0.1 port {port}.*in use"), bound("127.0.0.1", port):
            pass
    for host in ("203.0.113.7", "no-such-host.invalid"):
        with pytest.raises(LowdimError, match=host), bound(host, 0):
            pass


def test_the_url_of_an_address() -> None:
    with bound("127.0.0.1", 0) as sockets:
        assert url(sockets) == f"http://127.0.0.1:{sockets[0].getsockname()[1]}/v1"
