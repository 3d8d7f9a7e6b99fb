"""Every answer of the Cycles plane that is an error: the protocol's codes, each with its status, and the body that clients read. Pure."""

from collections.abc import Mapping
from typing import Final

import orjson

from gateway.wire.exchange import Headers, Reply
from gateway.wire.problem import Problem

STATUSES: Final[Mapping[str, int]] = {
    "INVALID_REQUEST": 400,
    "UNIT_MISMATCH": 400,
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "BUDGET_EXCEEDED": 409,
    "BUDGET_FROZEN": 409,
    "BUDGET_CLOSED": 409,
    "OVERDRAFT_LIMIT_EXCEEDED": 409,
    "DEBT_OUTSTANDING": 409,
    "IDEMPOTENCY_MISMATCH": 409,
    "RESERVATION_FINALIZED": 409,
    "MAX_EXTENSIONS_EXCEEDED": 409,
    "TENANT_CLOSED": 409,
    "RESERVATION_EXPIRED": 410,
    "LIMIT_EXCEEDED": 429,
    "INTERNAL_ERROR": 500,
}
AWAY: Final = 503  # an INTERNAL_ERROR that passes: clients try again
AGAIN_IN_S: Final = 1
JSON: Final = ("Content-Type", "application/json")


class Fault(Exception):
    """The request is answered with this error. `status`: where it is not the code's own; `retry_after`: seconds."""

    def __init__(
        self,
        code: str,
        message: str,
        details: Mapping[str, object] | None = None,
        status: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = details
        self.status = status
        self.retry_after = retry_after

    @property
    def http_status(self) -> int:
        return self.status or STATUSES[self.code]


def invalid(member: str, expected: str) -> Fault:
    """`member`: its path in the body, or the parameter's or header's name."""
    return Fault("INVALID_REQUEST", f"{member}: expected {expected}", {"field": member})


def away(message: str) -> Fault:
    """The ledger does not serve: nothing is known to have happened, and the same request will do no harm."""
    return Fault("INTERNAL_ERROR", message, status=AWAY, retry_after=AGAIN_IN_S)


def of_problem(problem: Problem) -> Fault:
    """What this gateway refuses in its own words, in the protocol's."""
    code = _CODES.get(problem.code) or _BY_STATUS.get(problem.status)
    if code is None:
        code = "INVALID_REQUEST" if problem.status < 500 else "INTERNAL_ERROR"
    details = None if problem.param is None else {"field": problem.param}
    own = STATUSES[code] == problem.status or code in _CODES.values()
    return Fault(code, problem.detail, details, None if own else problem.status, problem.retry_after)


_CODES: Final = {
    "scope_frozen": "BUDGET_FROZEN",
    "run_paused": "BUDGET_FROZEN",
    "run_stopped": "BUDGET_CLOSED",
    "too_many_runs": "LIMIT_EXCEEDED",
}
_BY_STATUS: Final = {
    401: "UNAUTHORIZED",
    402: "BUDGET_EXCEEDED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    429: "LIMIT_EXCEEDED",
}


def reply(fault: Fault, request_id: str, trace_id: str, *, trace_in_body: bool, headers: Headers = ()) -> Reply:
    body: dict[str, object] = {"error": fault.code, "message": fault.message, "request_id": request_id}
    if trace_in_body:
        body["trace_id"] = trace_id
    if fault.details is not None:
        body["details"] = fault.details
    told = [JSON, *headers]
    if fault.code == "LIMIT_EXCEEDED" or fault.retry_after is not None:
        told.append(("Retry-After", str(AGAIN_IN_S if fault.retry_after is None else fault.retry_after)))
    return Reply(fault.http_status, orjson.dumps(body), told)
