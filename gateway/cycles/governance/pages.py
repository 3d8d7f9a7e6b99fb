"""What the pages of the admin plane share: a request as they read it, and an answer as they write it, an error's included."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import orjson

from gateway.cycles import faults
from gateway.cycles.answering import PREFIX, Page, new_trace
from gateway.cycles.faults import JSON, Fault
from gateway.cycles.governance.reading import Query
from gateway.cycles.tracing import HEADER, trace_of
from gateway.identity import Principal
from gateway.ledger.contract import Impossible, LedgerLost, LedgerUnavailable
from gateway.registry import Deed
from gateway.wire.exchange import Inbound, Reply
from gateway.wire.problem import Refused

Json: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: what came in, the path's parameters, and by which ids it is known."""

    inbound: Inbound
    path: Mapping[str, str]
    query: Query
    trace_id: str

    def deed(self, principal: Principal, operation: str, at_ms: int, why: str | None = None) -> Deed:
        """What is told of the change that it makes."""
        return Deed(at_ms, principal.key, operation, why or "", (self.inbound.request_id, self.trace_id))


Handler: TypeAlias = Callable[[Asked], Awaitable[tuple[int, Json]]]  # the status and the body
Paged: TypeAlias = tuple[str, str, Page]  # the method and the path of a page


def page(method: str, path: str, handler: Handler) -> Paged:
    """`path` without the plane's prefix."""

    async def answer(inbound: Inbound, params: Mapping[str, str]) -> Reply:
        trace_id = trace_of(inbound.headers, new_trace)
        told = ((HEADER, trace_id), ("Cache-Control", "no-store"))
        try:
            status, body = await handler(Asked(inbound, params, Query.read(inbound.query), trace_id))
        except Fault as fault:
            found = fault
        except Refused as refused:
            found = faults.of_problem(refused.problem)
        except Impossible as error:
            found = Fault("INVALID_REQUEST", f"the amount is too large: {error}")
        except LedgerUnavailable:
            found = faults.away("the ledger does not answer; try again in a moment")
        except LedgerLost:
            found = faults.away("the ledger is not what this gateway saw before: see `penstock ledger adopt`")
        else:
            return Reply(status, orjson.dumps(body), (JSON, *told))
        return faults.reply(found, inbound.request_id, trace_id, trace_in_body=True, headers=told)

    return method, PREFIX + path, answer
