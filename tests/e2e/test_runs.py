"""A run under its owner's and the operator's hand: limits before and during, stops that hold in every process and after a restart."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
import yaml

from gateway.demo.replies import Script
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.load import caller, chat, microcents, until
from tests.support.loopback import LOOPBACK
from tests.support.provider import Behaviour, FaultProvider

STREAMS = 8  # connections: enough that both workers have some


@pytest.fixture(scope="module")
def gateway(folder: Path, shared_provider: FaultProvider) -> Iterator[GatewayProcess]:
    """Two workers: what one is told, the other has to know."""
    with GatewayProcess(Setup(folder, shared_provider.base_url, policy=policy(run_ceiling("$1"))), workers=2) as running:
        yield running
        assert running.troubles == []


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    shared_provider.default = Behaviour()
    return shared_provider


def put_limit(gateway: GatewayProcess, run: str, limit: str, key: str = CALLER_KEY) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.put(f"{gateway.url}/budget/runs/{run}", json={"limit": limit}, headers=headers, **LOOPBACK)


def stop(gateway: GatewayProcess, run: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {CALLER_KEY}"}
    return httpx.post(f"{gateway.url}/budget/runs/{run}/stop", json={"reason": "enough"}, headers=headers, **LOOPBACK)


def call(gateway: GatewayProcess, run: str, **fields: Any) -> Any:
    return gateway.client(run).chat.completions.create(**chat(**fields))


# -- stopping ---------------------------------------------------------------------------------------------------------------------


async def test_a_stop_ends_the_runs_live_calls_in_every_process_within_two_seconds(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=3_000), pace_s=0.02)  # a minute
    async with caller(gateway.url) as send:
        bystander = asyncio.ensure_future(send(chat("another run", max_tokens=60, stream=True), f"{run}.other"))
        live = [
            asyncio.ensure_future(send(chat(str(number), max_tokens=3_000, stream=number % 4 > 0), run))
            for number in range(STREAMS)
        ]
        await until(lambda: len(provider.calls) == STREAMS + 1, 10)
        await asyncio.sleep(0.3)
        told = await asyncio.to_thread(stop, gateway, run)
        began = time.monotonic()
        seen = await asyncio.gather(*live)
        assert time.monotonic() - began < 2
        assert (await bystander).finished
    assert told.json()["state"] == "stopped"
    for number, each in enumerate(seen):
        if number % 4 == 0:  # still waiting for its JSON
            assert (each.status, each.code) == (402, "run_stopped")
        else:
            assert b"[DONE]" not in each.body
            last = orjson.loads(each.body.rstrip().rpartition(b"data: ")[2])
            assert last["error"]["code"] == "budget_exceeded"
            assert run in last["error"]["message"]
    await until(lambda: gateway.run(run)["reserved_usd"] == "0.00", 5)
    assert microcents(gateway.run(run)["committed_usd"]) > 0
    await until(lambda: len(provider.left) == STREAMS, 5)  # the provider is not kept writing for nobody


async def test_a_stopped_run_takes_no_calls_in_any_process_nor_after_a_restart(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    call(gateway, run, max_tokens=5)
    assert stop(gateway, run).status_code == 200
    assert stop(gateway, run).json()["state"] == "stopped"  # twice is once

    async def refused(times: int) -> None:
        async with caller(gateway.url) as send:
            seen = await asyncio.gather(*(send(chat(max_tokens=5), run) for _ in range(times)))
        assert {(each.status, each.code) for each in seen} == {(402, "run_stopped")}
        assert {each.headers["X-Budget-Decision"] for each in seen} == {"block"}

    await refused(STREAMS)
    await asyncio.to_thread(gateway.restart)
    await refused(STREAMS)
    assert gateway.run(run)["state"] == "stopped"
    with pytest.raises(openai.APIStatusError, match="was stopped") as raised:
        call(gateway, run)
    assert (raised.value.status_code, raised.value.code) == (402, "budget_exceeded")
    assert len(provider.calls) == 1


def test_only_a_run_that_is_there_can_be_stopped(gateway: GatewayProcess, run: str) -> None:
    answer = stop(gateway, run)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# -- pausing and freezing ---------------------------------------------------------------------------------------------------------


def act(gateway: GatewayProcess, run: str, verb: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {CALLER_KEY}"}
    return httpx.post(f"{gateway.url}/budget/runs/{run}/{verb}", headers=headers, **LOOPBACK)


async def test_a_pause_lets_live_calls_finish_and_keeps_new_ones_out_of_every_process_until_it_is_resumed(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=50), pace_s=0.02)
    async with caller(gateway.url) as send:
        live = asyncio.ensure_future(send(chat(max_tokens=50, stream=True), run))
        await until(lambda: len(provider.calls) == 1, 10)
        told = await asyncio.to_thread(act, gateway, run, "pause")
        assert (told.status_code, told.json()["state"]) == (200, "paused")
        seen = await asyncio.gather(*(send(chat(max_tokens=5), run) for _ in range(STREAMS)))
        assert {(each.status, each.code) for each in seen} == {(402, "run_paused")}
        assert (await live).finished
        assert (await asyncio.to_thread(act, gateway, run, "resume")).json()["state"] == "active"
        provider.default = Behaviour()
        assert (await send(chat(max_tokens=5), run)).status == 200


async def test_a_freeze_ends_the_scopes_live_calls_in_every_process_and_nobody_elses(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=3_000), pace_s=0.02)
    team = {"X-Team-Id": run}
    async with caller(gateway.url) as send:
        bystander = asyncio.ensure_future(send(chat("another team", max_tokens=60, stream=True), f"{run}.other"))
        live = [
            asyncio.ensure_future(send(chat(str(number), max_tokens=3_000, stream=True), f"{run}.{number}", **team))
            for number in range(STREAMS)
        ]
        await until(lambda: len(provider.calls) == STREAMS + 1, 10)
        await asyncio.sleep(0.3)
        frozen = await asyncio.to_thread(gateway.admin, "POST", "/admin/freeze", {"scope": {"team": run}, "reason": "a leak"})
        assert frozen.json() == {"scope": {"team": run}, "frozen": True, "changed": True}
        began = time.monotonic()
        seen = await asyncio.gather(*live)
        assert time.monotonic() - began < 2
        assert all(b"[DONE]" not in each.body for each in seen)
        assert (await bystander).finished
        provider.default = Behaviour()
        again = await asyncio.gather(*(send(chat(max_tokens=5), f"{run}.new{number}", **team) for number in range(STREAMS)))
        assert {(each.status, each.code) for each in again} == {(402, "scope_frozen")}
        assert (await asyncio.to_thread(gateway.admin, "POST", "/admin/thaw", {"scope": {"team": run}})).json()["changed"]
        assert (await send(chat(max_tokens=5), f"{run}.0", **team)).status == 200
    acts = gateway.admin("GET", "/admin/acts?limit=2").json()["acts"]
    assert [(each["act"], each["who"], each["reason"]) for each in acts] == [("thaw", "admin", ""), ("freeze", "admin", "a leak")]


# -- limits -----------------------------------------------------------------------------------------------------------------------


def test_a_limit_set_before_the_first_call_holds(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    told = put_limit(gateway, run, "$0.0001")
    assert (told.status_code, told.json()["limit_usd"], told.json()["calls"]) == (200, "0.0001", 0)
    with pytest.raises(openai.APIStatusError, match=r"limit of \$0\.0001"):
        call(gateway, run)
    assert provider.calls == []


def test_a_caller_only_tightens_and_the_operator_may_raise_above_the_policy(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    loosened = put_limit(gateway, run, "$2")  # the policy says $1
    assert (loosened.status_code, loosened.json()["code"]) == (403, "admin_required")
    assert put_limit(gateway, run, "$0.0001").status_code == 200
    assert put_limit(gateway, run, "$0.5").status_code == 403
    assert put_limit(gateway, run, "$0.0001", key="sk-another").status_code == 404
    assert gateway.admin("PUT", f"/budget/runs/{run}", {"limit": "$30"}).json()["limit_usd"] == "30.00"
    answer = gateway.client(run).chat.completions.with_raw_response.create(**chat(max_tokens=5))
    assert microcents(answer.headers["X-Budget-Remaining-USD"]) > 29 * 10**8
    assert put_limit(gateway, run, "$0.0001").status_code == 200  # and may be tightened again
    with pytest.raises(openai.APIStatusError):
        call(gateway, run)
    assert len(provider.calls) == 1


@pytest.mark.parametrize("limit", ["lots", "-1", "", 5, None, "$99999999999", {"usd": 1}])
def test_a_limit_that_is_no_money_is_refused(gateway: GatewayProcess, run: str, limit: Any) -> None:
    answer = put_limit(gateway, run, limit)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert gateway.admin("GET", f"/budget/runs/{run}").status_code == 404


def test_runs_are_listed_page_by_page_newest_first(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    names = [f"{run}.{number}" for number in range(3)]
    for name in names:
        call(gateway, name, max_tokens=5)
    first = gateway.get("/budget/runs?limit=2")
    assert [listed["run_id"] for listed in first["runs"]] == names[:0:-1]
    second = gateway.get(f"/budget/runs?limit=2&before={first['next']}")
    assert second["runs"][0]["run_id"] == names[0]


# -- workers ----------------------------------------------------------------------------------------------------------------------


def test_sighup_reloads_the_policy_in_every_worker(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    before = gateway.get("/readyz")["policy_version"]
    (gateway.setup.folder / "policy.yaml").write_text(yaml.safe_dump(policy(run_ceiling("$0.77"))))
    gateway.send_signal(signal.SIGHUP)

    def versions() -> set[str]:
        return {gateway.get("/readyz")["policy_version"] for _ in range(10)}  # each on a connection of its own

    provider.wait_for(lambda: before not in versions(), 10)
    assert len(versions()) == 1
    call(gateway, run, max_tokens=5)
    assert gateway.run(run)["limit_usd"] == "0.77"


def test_a_worker_that_is_killed_is_replaced_and_its_runs_go_on(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    call(gateway, run, max_tokens=5)
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children")
    if not children.exists():
        pytest.skip("needs /proc")
    victim = int(children.read_text().split()[0])
    os.kill(victim, signal.SIGKILL)
    provider.wait_for(lambda: len(children.read_text().split()) == 2 and str(victim) not in children.read_text().split(), 10)
    for _ in range(5):
        call(gateway, run, max_tokens=5)
    assert gateway.run(run)["calls"] == 6
