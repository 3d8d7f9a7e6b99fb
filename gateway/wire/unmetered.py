"""Routes that nothing meters, which the config lets through at a flat cost: their bodies and answers pass as they are, unread."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from gateway.core.meter import Meter
from gateway.core.profiles import Profile
from gateway.core.record import record
from gateway.core.values import Output, Plan
from gateway.wire.dialect import Dialect
from gateway.wire.headers import RequestHeaders, single
from gateway.wire.passed import passed
from gateway.wire.problem import Refused, problem
from gateway.wire.request import Request

NAME: Final = "unmetered"


@record
class UnmeteredRoute:
    """`path` may have parameters: `/v1/files/{id}`."""

    method: str
    path: str
    provider: str
    cost: int  # microcents, of each call; not a bound of anything

    @property
    def name(self) -> str:
        """What stands in the place of a model's name."""
        return f"{self.method} {self.path}"


@dataclass(slots=True, eq=False, kw_only=True)
class UnmeteredRequest(Request):
    """A request that was not read."""

    raw: bytes = field(repr=False)
    sent_type: str  # its Content-Type; "": none

    @property
    def content_type(self) -> str:
        return self.sent_type

    def encode(self, plan: Plan, profile: Profile, takes: frozenset[str] | None = None) -> bytes:
        del plan, profile, takes
        return self.raw

    def sent(self) -> None:
        Request.sent(self)  # a class with slots is made twice, and `super` knows the first
        self.raw = b""


def read(route: UnmeteredRoute, raw: bytes, headers: RequestHeaders) -> UnmeteredRequest:
    """Refused 404 where another protocol is asked for: what passes then is nobody's to see. Refused 400 for two content types."""
    if "Upgrade" in headers:
        raise Refused(problem("route_not_metered", "The gateway passes no upgraded connections on: what they cost is not seen."))
    return UnmeteredRequest(
        dialect=NAME,
        model=route.name,
        parts=(),
        output=Output.NONE,
        body=_NOTHING,
        known=frozenset(),
        not_meant=frozenset(),
        raw=raw,
        sent_type=single(headers, "Content-Type") or "",
    )


def _read_answer(body: bytes, meter: Meter) -> None:
    """What an answer says of usage belongs to no price."""
    del body, meter


_NOTHING: Final[Mapping[str, object]] = {}


def dialect_of(route: UnmeteredRoute) -> Dialect:
    """Every answer is streamed, whatever its type: it may be large."""
    return Dialect(NAME, route.path, partial(read, route), _read_answer, passed, streamed_types=("",))
