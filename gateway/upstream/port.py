"""The provider's side of one call: opens it, hands over what arrives, and says honestly what is known when it fails.

Two failures matter to money. `NotSent`: the connection was never made, so nothing can be billed. `Unknown`: the request was (or may have
been) written, then nothing more is certain. Whoever calls releases the hold for the first and leaves it to its lease for the second;
everything that a client can raise is one of the two.

`Upstream` and `Answer` are the port; the clients behind it stand beside this file.
"""

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from multidict import CIMultiDictProxy

from gateway.core.record import record


class NotSent(Exception):
    """The connection was never made: provably not billed. Release the hold, or try again under it."""


class Unknown(Exception):
    """The request was written, or may have been, and the answer is missing or incomplete: nobody can say what was billed."""


class TooLarge(Exception):
    """The answer is longer than the caller was ready to hold. Its connection is closed."""


@record
class Endpoint:
    """How one provider is reached.

    `keepalive_s` is short on purpose. A POST written to a connection that the server is just closing is ambiguous (`Unknown`: its hold is
    charged), while a fresh connection costs a round trip or two. Common servers close idle connections after 5 s (uvicorn, Node, llama.cpp),
    so an idle connection is kept for less than that.
    """

    connect_timeout_s: float = 10.0  # name look-up, TCP and TLS together
    idle_timeout_s: float = 600.0  # silence between two reads: a model may think for minutes before its first byte
    keepalive_s: float = 4.0
    max_connections: int = 0  # 0: as many as there are calls
    proxy: str | None = None  # an HTTP proxy's URL; the environment's is never used


@record
class UpstreamRequest:
    """A request as it should be sent. The client adds Host, Content-Length and Accept-Encoding, and ignores these among `headers`."""

    url: str  # percent-encoded already; sent as it is
    method: str
    headers: list[tuple[str, str]]
    body: bytes


class Answer(Protocol):
    """A provider's answer whose head has arrived. Either `read` is used, or `chunks` and `pour`; then `release` or `close`, each idempotent."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """Without Content-Encoding and Content-Length where the body was decoded."""

    async def read(self, limit: int) -> bytes:
        """The whole body. TooLarge past `limit` bytes (decoded); Unknown when it breaks off."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, never empty pieces. Unknown when it breaks off, after all that had arrived. A cancelled wait loses nothing:
        the iterator can be asked again."""

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """Hands the body's pieces to `take` as they arrive, never empty ones; where the client can, in the connection's own callback, so
        that no task wakes for a piece. True: the body has ended. False: `take` said so, and what follows waits, as does the provider,
        until somebody asks again. Unknown when it breaks off, after all that had arrived; what `take` raises comes out here. A cancelled
        wait loses nothing."""

    def close(self) -> None:
        """Closes the connection: the provider sees that nobody reads on."""

    def release(self) -> None:
        """Done with it: the connection is kept if the body was read to its end, else closed."""


class Upstream(Protocol):
    async def open(self, request: UpstreamRequest) -> Answer:
        """Sends the request and waits for the answer's head, of any status; a redirect is an answer too. NotSent, Unknown. Cancelled, it
        closes the connection."""

    async def close(self) -> None:
        """Closes every connection."""
