"""The protocol's headers on every answer, and what the edge itself refuses, in the protocol's words."""

import orjson
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.cycles.answering import Answering
from gateway.cycles.tracing import trace_of
from gateway.wire.problem import problem
from tests.cycles.world import World, reservation

A, B = "a" * 32, "b" * 32
SPAN = "1" * 16
MADE = "c" * 32


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


@pytest.mark.parametrize(
    ("told", "trace"),
    [
        ([("traceparent", f"00-{A}-{SPAN}-01")], A),
        ([("traceparent", f"00-{A}-{SPAN}-01"), ("X-Cycles-Trace-Id", B)], A),
        ([("X-Cycles-Trace-Id", B)], B),
        ([("traceparent", f"01-{A}-{SPAN}-01"), ("X-Cycles-Trace-Id", B)], B),
        ([("traceparent", f"00-{'0' * 32}-{SPAN}-01"), ("X-Cycles-Trace-Id", B)], B),
        ([("traceparent", f"00-{A}-{'0' * 16}-01"), ("X-Cycles-Trace-Id", B)], B),
        ([("traceparent", f"00-{A.upper()}-{SPAN}-01")], MADE),
        ([("traceparent", "nonsense"), ("X-Cycles-Trace-Id", "nonsense")], MADE),
        ([("X-Cycles-Trace-Id", "0" * 32)], MADE),
        ([("X-Cycles-Trace-Id", A), ("X-Cycles-Trace-Id", B)], MADE),
        ([], MADE),
    ],
)
def test_a_trace_is_taken_over_or_made_and_never_refused(told: list[tuple[str, str]], trace: str) -> None:
    made = iter(["0" * 32, MADE])  # all zeros is no trace id
    assert trace_of(headers(*told), lambda: next(made)) == trace


async def test_every_answer_says_its_trace_tenant_and_that_there_is_no_rate_limit(world: World) -> None:
    asked = {"X-Cycles-API-Key": world.secret, "X-Cycles-Trace-Id": A}
    for body in (reservation(), reservation(10**9), {}):
        told = dict((await world.reply("POST", "/v1/reservations", body, asked)).headers)
        assert (told["X-Cycles-Trace-Id"], told["X-Cycles-Tenant"]) == (A, "acme")
        assert (told["X-RateLimit-Remaining"], told["X-RateLimit-Reset"]) == ("-1", "0")
    told = dict((await world.reply("POST", "/v1/reservations", {}, {})).headers)
    assert "X-Cycles-Tenant" not in told
    assert len(told["X-Cycles-Trace-Id"]) == 32


async def test_an_error_carries_its_trace_in_the_body_where_the_config_says_so(world: World) -> None:
    strict = World(world.ledger, world.clock, trace_in_body=True)
    reply = await strict.reply("POST", "/v1/decide", {}, {"X-Cycles-Trace-Id": A})
    assert orjson.loads(reply.body)["trace_id"] == A


async def test_what_is_left_is_told_in_a_header(world: World) -> None:
    reply = await world.reply("POST", "/v1/reservations", reservation(400))
    assert dict(reply.headers)["X-Budget-Remaining-USD"] == "0.000006"


async def test_health_needs_no_key(world: World) -> None:
    for path in ("/actuator/health", "/actuator/health/readiness"):
        found = world.routes.find("GET", "/cycles" + path)
        reply = await found.page(_inbound(path), {})  # type: ignore[union-attr]
        assert (reply.status, orjson.loads(reply.body)) == (200, {"status": "UP"})


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("not_found", 404, "NOT_FOUND"),
        ("method_not_allowed", 405, "INVALID_REQUEST"),
        ("request_too_large", 413, "INVALID_REQUEST"),
        ("host_not_allowed", 403, "FORBIDDEN"),
        ("overloaded", 503, "INTERNAL_ERROR"),
        ("internal_error", 500, "INTERNAL_ERROR"),
    ],
)
def test_what_the_edge_refuses_is_said_in_the_protocols_words(code: str, status: int, error: str) -> None:
    answering = Answering(False)
    reply = answering.refusal("/cycles/v1/decide", problem(code, "no"), headers(), "req_9", [("Allow", "POST")])
    assert reply is not None
    assert (reply.status, orjson.loads(reply.body)) == (status, {"error": error, "message": "no", "request_id": "req_9"})
    assert {"X-Cycles-Trace-Id", "Allow"} <= {name for name, _ in reply.headers}
    assert answering.refusal("/v1/chat/completions", problem(code, "no"), headers(), "req_9", ()) is None


def _inbound(path: str):  # type: ignore[no-untyped-def]
    from gateway.wire.exchange import Inbound

    return Inbound("GET", "/cycles" + path, "", None, headers(), b"", "req_1")
