"""One HTTP exchange as the flow sees it: what came in, and where the answer goes. The server adapts HTTP to these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from multidict import CIMultiDictProxy

from gateway.core.record import record

Headers = Sequence[tuple[str, str]]


class ClientGone(Exception):
    """The client's connection is closed: nothing more can be written to it."""


@dataclass(slots=True, eq=False)
class Inbound:
    """A request, its body read (within the limit) and inflated, but not parsed. Whoever has parsed a large one lets go of it here: the
    exchange may last for minutes."""

    method: str
    path: str  # the dialect's path, raw, without `/run/RUN_ID`: "/v1/chat/completions"
    query: str  # raw, without "?"
    path_run: str | None  # RUN_ID of `/run/RUN_ID/…`, raw and unchecked
    headers: CIMultiDictProxy[str]
    body: bytes
    request_id: str
    parameters: Mapping[str, str] = field(default_factory=dict)  # of a model route such as /v1/responses/{id}


@record
class Reply:
    """A whole answer of a route that does not stream: the budget API, operations, errors."""

    status: int
    body: bytes
    headers: Headers = ()


class Outlet(Protocol):
    """Where the answer goes. Every method raises ClientGone once the connection is closed."""

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer at once."""

    async def start(self, status: int, headers: Headers) -> None:
        """Opens a streamed answer."""

    async def write(self, data: bytes) -> None:
        """Returns when the client's side has room again (back-pressure)."""

    def put(self, data: bytes) -> bool:
        """`write` without the wait. False: the client has yet to take what was written, and `room` is due before more."""

    @property
    def waiting(self) -> int:
        """Bytes that were written, and that the client has yet to take."""

    async def room(self) -> None:
        """Returns when the client's side has room again."""

    async def finish(self, last: bytes = b"") -> None:
        """Ends the stream cleanly, with these as its last bytes."""

    def abort(self) -> None:
        """Closes the connection so that the client can't take the stream for complete."""

    def drop(self) -> None:
        """The same at once, with what the client has yet to take."""

    @property
    def started(self) -> bool:
        """Whether any byte of the answer has been handed over."""

    def on_gone(self, told: Callable[[], None]) -> None:
        """Calls back once, as soon as the client's connection is lost; at once if it is lost already."""
