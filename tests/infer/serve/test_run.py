"""Addresses: taken before the model is loaded, refused in words."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from lowdim.cli import app
from lowdim.core.errors import LowdimError
from lowdim.infer.serve.run import bound, is_loopback, lacks_ipv4, url


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
    for host in ("203.0.113.7", "no-such-host.invalid", "a..b", "x" * 64):
        with pytest.raises(LowdimError, match=host), bound(host, 0):
            pass


def test_the_url_of_an_address() -> None:
    with bound("127.0.0.1", 0) as sockets:
        assert url(sockets) == f"http://127.0.0.1:{sockets[0].getsockname()[1]}/v1"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
@pytest.mark.parametrize(("host", "lacks"), [("::", True), ("::1", True), ("127.0.0.1", False), ("localhost", False)])
def test_what_ipv4_does_not_reach(host: str, lacks: bool) -> None:
    with bound(host, 0) as sockets:
        assert lacks_ipv4(sockets) is lacks
        address = ("127.0.0.1", sockets[0].getsockname()[1])
        for one in sockets:
            one.listen()
        with socket.socket() as client:
            assert (client.connect_ex(address) != 0) is lacks


@needs_ipv6
@pytest.mark.parametrize(("host", "other"), [("::", "--host 0.0.0.0"), ("::1", "--host 127.0.0.1")])
def test_an_address_of_ipv6_says_what_it_does_not_answer(host: str, other: str) -> None:
    done = CliRunner().invoke(app, ["serve", "no-such-model", "--host", host, "--port", "0"])
    said = " ".join(done.stderr.split())
    assert f"Note: {host} is IPv6 alone: 127.0.0.1" in said
    assert other in said
    assert "IPv6" not in CliRunner().invoke(app, ["serve", "no-such-model", "--port", "0"]).stderr
