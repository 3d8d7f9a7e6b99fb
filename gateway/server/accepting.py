"""Takes connections off a listening socket, many in one turn of the event loop.

uvloop takes one a turn. While a turn lasts 20 ms that is 50 connections a second: the others wait in the kernel, where nobody sees how many
they are, until their clients give up. Taken at once, they are served, or told that there is no room.
"""

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable
from typing import Final

BACKLOG: Final = 2048
A_TURN: Final = 64  # connections; the rest waits for the next turn, so that those who are served get theirs
AGAIN_S: Final = 0.25  # after the process or the system ran out of what a connection needs

_FOR_NOW: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def bound(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host, bound and not yet listening. OSError if one can't be had."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    sockets = [socket.socket(fileno=os.dup(each.fileno())) for each in server.sockets]
    server.close()
    return sockets


def allow_files(number: int) -> None:
    """Lets this process have so many files and sockets open, as far as its hard limit goes. The soft one is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Acceptor:
    """Makes a connection, by `factory`, of everyone who connects to `listening`, which is its own from now on."""

    def __init__(
        self,
        listening: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        report: Callable[[str, BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._factory = factory
        self._report = report
        self._opening: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Who has not been taken yet is turned away by the kernel."""
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()

    def _accept(self) -> None:
        for _ in range(A_TURN):
            try:
                accepted, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another worker took it, or it has gone
            except OSError as failure:
                if failure.errno not in _FOR_NOW:
                    raise
                self._report("no connection can be accepted", failure)
                self._loop.remove_reader(self._listening)
                self._again = self._loop.call_later(AGAIN_S, self._loop.add_reader, self._listening, self._accept)
                return
            task = self._loop.create_task(self._open(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, accepted: socket.socket) -> None:
        try:
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._factory, accepted)
        except OSError:
            accepted.close()  # it has gone already
