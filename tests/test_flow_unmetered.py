"""A route that nothing meters passes only where the config names it: unread, at its flat cost, under the rules of every call."""

import asyncio
from pathlib import Path

import httpx
import pytest

from gateway.core.scopes import Unit
from gateway.wire.unmetered import UnmeteredRoute, dialect_of
from tests.support.config import Setup, listed, opened_by
from tests.support.flow import TENANT, Client, World, world
from tests.support.gateway import gateway_here
from tests.support.loopback import LOOPBACK
from tests.support.provider import Behaviour, FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

FILES = UnmeteredRoute("POST", "/v1/files", "test", 0)
PAID = UnmeteredRoute("POST", "/v1/batches", "test", USD // 100)
ROUTES = [
    {"route": "POST /v1/files", "provider": "test"},
    {"route": "GET /v1/files/{id}", "provider": "test"},
    {"route": "GET /v1/files/{id}/content", "provider": "test", "cost": "$0.01"},
    {"route": "DELETE /v1/files/{id}", "provider": "test"},
    {"route": "GET /v1/realtime", "provider": "test"},
]


def setup(folder: Path, provider: FaultProvider, **more: object) -> Setup:
    return Setup(folder, provider.base_url, extra={"unmetered_routes": ROUTES, **more})


async def passed_on(here: World, route: UnmeteredRoute, body: bytes = b"", run: str = "r1", **headers: str) -> Client:
    client = Client()
    await here.flow.pass_on(route, here.inbound(body, run, dialect=dialect_of(route), **headers), client)
    return client


# -- what passes ------------------------------------------------------------------------------------------------------------------


async def test_body_answer_and_path_pass_as_they_are(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"id": "file-1", "object":  "file"}', headers=(("X-Extra", "1"),)))
    provider.next(Behaviour(body=b"\x00\xff" * 50_000, content_type="application/octet-stream"))
    async with gateway_here(setup(tmp_path, provider)) as url, httpx.AsyncClient(base_url=url, **LOOPBACK) as client:
        key = {"Authorization": "Bearer sk-caller", "X-Run-Id": "r1"}
        multipart = {**key, "Content-Type": 'multipart/form-data; boundary="b"'}
        sent = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\x01\r\n--b--\r\n'
        made = await client.post("/v1/files?x=%2F", content=sent, headers=multipart)
        assert (made.status_code, made.content, made.headers["X-Extra"]) == (200, b'{"id": "file-1", "object":  "file"}', "1")
        assert made.headers["X-Budget-Decision"] == "allow"
        got = await client.get("/run/r1/v1/files/file-1/content", headers=key)
        assert (got.content, got.headers["content-type"]) == (b"\x00\xff" * 50_000, "application/octet-stream")
        run = (await client.get("/budget/runs/r1", headers=key)).json()
    first, second = provider.requests
    assert (first.request_line, first.body) == ("POST /v1/files?x=%2F HTTP/1.1", sent)
    assert first.header("content-type") == 'multipart/form-data; boundary="b"'
    assert first.header("authorization") == "Bearer sk-caller"
    assert first.header("x-run-id") is None
    assert (second.request_line, second.body) == ("GET /v1/files/file-1/content HTTP/1.1", b"")
    assert second.header("content-type") is None
    assert (run["committed_usd"], run["reserved_usd"]) == ("0.01", "0.00")


async def test_a_caller_the_gateway_does_not_know_passes_nowhere(tmp_path: Path, provider: FaultProvider) -> None:
    own = opened_by(listed("ci", "pk-ci"))
    closed = Setup(tmp_path, provider.base_url, provider=own["provider"], extra={**own["extra"], "unmetered_routes": ROUTES})
    async with gateway_here(closed) as url, httpx.AsyncClient(base_url=url, **LOOPBACK) as client:
        assert (await client.post("/v1/files", headers={"Authorization": "Bearer pk-no"})).status_code == 401
        assert (await client.get("/v1/files/f1")).status_code == 401
        passed = await client.get("/v1/files/f1", headers={"Authorization": "Bearer pk-ci"})
        assert passed.status_code == 400  # the provider's own, which reads no such route
    assert [request.header("authorization") for request in provider.requests] == [None]


async def test_head_is_served_by_get_here_too(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(status=200, body=b"", headers=(("X-Extra", "1"),)))
    async with gateway_here(setup(tmp_path, provider)) as url, httpx.AsyncClient(base_url=url, **LOOPBACK) as client:
        got = await client.head("/v1/files/f1", headers={"Authorization": "Bearer sk-caller"})
    assert (got.status_code, got.content, got.headers["X-Extra"]) == (200, b"", "1")
    assert provider.requests[0].request_line == "HEAD /v1/files/f1 HTTP/1.1"


async def test_no_upgraded_connection_passes(tmp_path: Path, provider: FaultProvider) -> None:
    async with gateway_here(setup(tmp_path, provider)) as url, httpx.AsyncClient(base_url=url, **LOOPBACK) as client:
        asking = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "eA=="}
        refused = await client.get("/v1/realtime", headers={"Authorization": "Bearer sk-caller", **asking})
        assert (refused.status_code, refused.json()["code"]) == (404, "route_not_metered")
    assert provider.requests == []


# -- what it costs ----------------------------------------------------------------------------------------------------------------


async def test_a_call_costs_what_the_config_says_whatever_its_answer_is(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"usage": {"prompt_tokens": 1000000, "completion_tokens": 5, "total_tokens": 1000005}}'))
    async with world(tmp_path, provider.base_url) as here:
        assert (await passed_on(here, PAID)).status == 200
        view, record = await here.run(), await here.record()
        assert (view.committed, view.reserved) == (USD // 100, 0)
        assert (record.selected_model, record.provider) == ("POST /v1/batches", "test")


async def test_a_call_that_was_not_billed_is_given_back(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(status=400))
    async with world(tmp_path, provider.base_url) as here:
        assert (await passed_on(here, PAID)).status == 400
        view = await here.run()
        assert (view.committed, view.reserved) == (0, 0)


async def test_a_ceiling_without_room_for_the_flat_cost_refuses(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(budget("run-ceiling", "run", limit=USD // 200))) as here:
        refused = await passed_on(here, PAID)
        assert (refused.status, refused.json["code"]) == (402, "call_exceeds_limit")
        assert (await passed_on(here, FILES)).status == 400  # costs nothing, and so fits; the provider knows no such route
    assert [request.target for request in provider.requests] == ["/v1/files"]


async def test_budgets_of_calls_count_it(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(*[Behaviour(body=b"{}")] * 3)
    async with world(tmp_path, provider.base_url, policy(budget("few", "run", limit=2, unit=Unit.CALLS))) as here:
        assert [(await passed_on(here, FILES)).status for _ in range(3)] == [200, 200, 402]


async def test_a_stopped_run_passes_nothing_and_a_live_answer_is_cut(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(silent=True))
        client = Client()
        call = asyncio.create_task(here.flow.pass_on(PAID, here.inbound(b"", "r1"), client))
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.requests) == 1)
        await here.ledger.stop(TENANT, "r1", "test", "")
        here.flow.run_stopped(TENANT, "r1")
        await call
        assert (client.status, client.json["code"]) == (402, "run_stopped")
        assert (await passed_on(here, FILES)).json["code"] == "run_stopped"
        assert (await here.run()).committed == USD // 100  # it may have been billed


async def test_an_answer_that_breaks_off_is_no_whole_answer_for_the_client(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b"x" * 1000, content_type="audio/mpeg", cut_at_byte=500))
    async with world(tmp_path, provider.base_url) as here:
        got = await passed_on(here, PAID)
        assert (got.body, got.whole, got.aborted) == (b"x" * 500, False, True)
        assert (await here.run()).committed == USD // 100


@pytest.mark.parametrize("header", ["X-Run-Limit", "X-Parent-Run-Id", "X-Budget-Downgrade"])
async def test_what_is_said_to_the_gateway_counts_here_too(tmp_path: Path, provider: FaultProvider, header: str) -> None:
    async with world(tmp_path, provider.base_url) as here:
        assert (await passed_on(here, PAID, **{header: "not one"})).status == 400
    assert provider.requests == []
