"""Connections are taken many at a turn, and again after the process was out of descriptors."""

import asyncio
import errno
import resource
import socket
from contextlib import closing
from typing import Any

import pytest

from gateway.server import accepting
from gateway.server.accepting import A_TURN, Acceptor, bound


class Counted(asyncio.Protocol):
    made = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Counted.made += 1
        transport.close()


async def taken(clients: int) -> None:
    async with asyncio.timeout(5):
        while Counted.made < clients:  # noqa: ASYNC110 - nobody is told of a connection but its protocol
            await asyncio.sleep(0)


async def test_whoever_connects_is_taken_and_nobody_after_the_end() -> None:
    reports: list[Any] = []
    Counted.made = 0
    (listening,) = await bound("127.0.0.1", 0)
    address = listening.getsockname()
    acceptor = Acceptor(listening, Counted, lambda *what: reports.append(what))
    clients = []
    for _ in range(2 * A_TURN):
        client = socket.socket()
        client.setblocking(False)
        assert client.connect_ex(address) in (0, errno.EINPROGRESS)
        clients.append(client)
    await taken(len(clients))
    acceptor.close()
    assert reports == []
    for client in clients:
        client.close()
    with closing(socket.socket()) as late, pytest.raises(ConnectionRefusedError):
        late.connect(address)


async def test_an_address_that_is_taken_is_an_error() -> None:
    (first,) = await bound("127.0.0.1", 0)
    first.listen()
    with closing(first), pytest.raises(OSError, match="address"):
        await bound("127.0.0.1", first.getsockname()[1])


def test_as_many_files_are_allowed_as_are_wanted_and_never_fewer_or_more_than_may_be() -> None:
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        for wanted, allowed in ((600, 600), (100, 600), (hard + 1, hard)):
            accepting.allow_files(wanted)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


class Short:
    """A listening socket whose process has run out of descriptors, once."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listening, name)

    def accept(self) -> Any:
        if self.refused == 0:
            self.refused += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listening.accept()


async def test_out_of_descriptors_it_says_so_and_goes_on_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "AGAIN_S", 0.01)
    reports: list[Any] = []
    Counted.made = 0
    (listening,) = await bound("127.0.0.1", 0)
    acceptor = Acceptor(Short(listening), Counted, lambda *what: reports.append(what))  # type: ignore[arg-type]
    _, writer = await asyncio.open_connection(*listening.getsockname())
    await taken(1)
    assert [what for what, _ in reports] == ["no connection can be accepted"]
    acceptor.close()
    writer.close()
