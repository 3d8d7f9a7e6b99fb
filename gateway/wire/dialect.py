"""What a dialect is: how its requests are read, its answers metered, its streams relayed and ended, its refusals written.

One file each beside this one, listed in `dialects`. Nothing else in the gateway knows a dialect's fields.
"""

from collections.abc import Callable
from typing import Protocol

from gateway.core.meter import Meter
from gateway.core.record import record
from gateway.wire.headers import RequestHeaders
from gateway.wire.problem import Problem, Shape
from gateway.wire.request import Request


class Stream(Protocol):
    """A streamed answer on its way to the client. What `feed` and `finish` return is, in all, the bytes that came, without what the
    client did not ask for.

    The event that ends the stream, and whatever follows it, is kept back until `finish`: a client that has it may start its next call,
    which should see this one settled.
    """

    @property
    def done(self) -> bool:
        """The last event has come: there is no need to wait for the end of the connection."""

    @property
    def finished(self) -> bool:
        """All output was seen; the usage, and the last event, may still come."""

    @property
    def cut(self) -> bool:
        """At the end of the stream: the provider broke off."""

    @property
    def error_seen(self) -> bool:
        """The provider sent an error of its own."""

    def feed(self, data: bytes) -> bytes:
        """What may be relayed now."""

    def finish(self) -> bytes:
        """The provider's stream has ended, or nothing more of it is wanted: what is still to be relayed."""

    def length_ending(self, problem: Problem) -> bytes:
        """Ends the stream from our side as one whose output was cut for its length, and says why."""

    def error_ending(self, problem: Problem) -> bytes:
        """Ends a stream that has failed. Nothing where the provider has sent an error of its own."""


@record
class Dialect:
    """`read`: a body and its headers → a Request, or Refused. `read_answer`: meters a whole answer. `stream`: relays and meters one."""

    name: str
    path: str  # "/v1/chat/completions"
    read: Callable[[bytes, RequestHeaders], Request]
    read_answer: Callable[[bytes, Meter], None]
    stream: Callable[[Meter, Request], Stream]
    shape: Shape = Shape.OPENAI  # of refusals
    streamed_types: tuple[str, ...] = ("text/event-stream",)  # how the Content-Type of a streamed answer begins
    refused_in_stream: Callable[[Problem], bytes] | None = (
        None  # a whole stream that says no more than why; None: there is no such
    )
