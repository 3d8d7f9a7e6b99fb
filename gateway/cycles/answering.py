"""Every answer of either plane: the protocol's headers, and whatever went wrong as an error in its words.

A page is a plain function of what came in, so that whatever serves HTTP can serve it.
"""

import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import orjson
from multidict import CIMultiDictProxy

from gateway.cycles import faults
from gateway.cycles.faults import JSON, Fault
from gateway.cycles.tracing import HEADER, trace_of
from gateway.ledger.contract import Impossible, LedgerLost, LedgerUnavailable
from gateway.wire.exchange import Headers, Inbound, Reply
from gateway.wire.problem import Problem, Refused

Page: TypeAlias = Callable[[Inbound, Mapping[str, str]], Awaitable[Reply]]
# What it appends to the list goes with the answer as a header, also where it fails from there on. Returns the body: a value that is JSON.
Work: TypeAlias = Callable[[Inbound, Mapping[str, str], list[tuple[str, str]]], Awaitable[object]]

PREFIX: Final = "/cycles"
# Nothing here limits how often is asked: the reference server says so in the same way.
_chance: Final = random.Random(secrets.randbits(256))  # noqa: S311 - ids of traces, no secrets
_COMMON: Final = (("Cache-Control", "no-store"), ("X-RateLimit-Remaining", "-1"), ("X-RateLimit-Reset", "0"))


def new_trace() -> str:
    """No system call each, as it need not be a secret."""
    return f"{_chance.getrandbits(128):032x}"


@dataclass(frozen=True, slots=True)
class Answering:
    """`trace_in_body`: errors carry `trace_id` in the body, as the specification has it; the released Python client then loses the error's
    request id and details, so by default it stands in the header alone."""

    trace_in_body: bool

    def page(self, work: Work, status: int = 200) -> Page:
        return partial(self._answer, work, status)

    async def _answer(self, work: Work, status: int, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        trace = trace_of(inbound.headers, new_trace)
        told = [JSON, *_COMMON, (HEADER, trace)]
        try:
            return Reply(status, orjson.dumps(await work(inbound, params, told)), told)
        except Fault as failure:
            fault = failure
        except Refused as refused:
            fault = faults.of_problem(refused.problem)
        except LedgerUnavailable:
            fault = faults.away("the ledger does not answer; try again in a moment")
        except LedgerLost:
            fault = faults.away("the ledger is not what this gateway saw before; see `penstock ledger adopt`")
        except Impossible as failure:
            fault = Fault("INVALID_REQUEST", f"the amount is too large: {failure}")
        return faults.reply(fault, inbound.request_id, trace, trace_in_body=self.trace_in_body, headers=told[1:])

    def refusal(
        self, path: str, problem: Problem, asked: CIMultiDictProxy[str], request_id: str, headers: Headers
    ) -> Reply | None:
        """What the edge refuses before any page is asked, where the path is of this plane. None: it is not."""
        if path != PREFIX and not path.startswith(f"{PREFIX}/"):
            return None
        trace = trace_of(asked, new_trace)
        more = (*_COMMON, (HEADER, trace), *headers)
        return faults.reply(faults.of_problem(problem), request_id, trace, trace_in_body=self.trace_in_body, headers=more)
