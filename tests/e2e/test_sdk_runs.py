"""An agent's runs through the real `openai` SDK, by headers alone: trees, pauses, raises, and what it does when it is told to wait."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import openai
import pytest

from gateway.demo.replies import Script
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.load import chat, microcents, until
from tests.support.loopback import LOOPBACK
from tests.support.provider import Behaviour, FaultProvider
from tests.support.valkey import Server

if TYPE_CHECKING:
    from _pytest.fixtures import FixtureRequest

# A call of 10 tokens may cost some $0.00013.
PATIENT: Final = {"match": {"team": "patient"}, "limit": "$0.0002", "on_exhausted": "pause", "wait_for_raise": "60s"}
BURN: Final = {"name": "burn-rate", "scope": "feature", "missing": "skip", "window": "rolling 2s", "limit": "$0.0003"}


@pytest.fixture(scope="module", params=["sqlite", "valkey"])
def gateway(folder: Path, shared_provider: FaultProvider, request: "FixtureRequest") -> Iterator[GatewayProcess]:
    rules = policy(run_ceiling("$1", overrides=[PATIENT]), BURN)
    here = folder / request.param
    with Server(here / "valkey") as server:
        ledger = server.url if request.param == "valkey" else None
        with GatewayProcess(Setup(here, shared_provider.base_url, policy=rules, ledger=ledger)) as running:
            yield running
            assert running.troubles == []


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    shared_provider.default = Behaviour(script=Script(tokens=10))
    return shared_provider


def agent(gateway: GatewayProcess, run: str, parent: str | None = None, key: str = CALLER_KEY, **headers: str) -> openai.OpenAI:
    sent = {"X-Run-Id": run} | ({} if parent is None else {"X-Parent-Run-Id": parent})
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return gateway.client(key=key, **sent)


def call(client: openai.OpenAI, cap: int = 10) -> Any:
    return client.chat.completions.create(**chat(max_tokens=cap))


def refused(client: openai.OpenAI, status: int, code: str) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as raised:
        call(client)
    assert (raised.value.status_code, raised.value.response.json()["code"]) == (status, code)
    return raised.value


def spend_all(clients: Sequence[openai.OpenAI]) -> openai.APIStatusError:
    """Calls by turns until one is refused."""
    for client in itertools.islice(itertools.cycle(clients), 30):
        try:
            call(client)
        except openai.APIStatusError as refusal:
            return refusal
    raise AssertionError("nobody is refused")


def posts(gateway: GatewayProcess, provider: FaultProvider, run: str, status: int, at_least: int = 1) -> int:
    """How often the SDK came and was answered so, as the gateway's log has it: a line is written after its answer."""

    def seen() -> int:
        lines = [line for line in gateway.log.splitlines() if f'"run":"{run}"' in line]
        return sum(f'"status":{status},' in line for line in lines)

    provider.wait_for(lambda: seen() >= at_least)
    return seen()


def act(gateway: GatewayProcess, run: str, verb: str) -> None:
    url, headers = f"{gateway.url}/budget/runs/{run}/{verb}", {"Authorization": f"Bearer {CALLER_KEY}"}
    assert httpx.post(url, headers=headers, **LOOPBACK).status_code == 200


# -- trees ------------------------------------------------------------------------------------------------------------------------


def test_children_draw_on_their_parents_ceiling_also_where_they_no_longer_name_it(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    child, grandchild = f"{run}.c", f"{run}.g"
    call(agent(gateway, run, X_Run_Limit="$0.0005"))
    call(agent(gateway, child, run))
    call(agent(gateway, grandchild, child))
    clients = [agent(gateway, name) for name in (grandchild, child, run)]
    spend_all(clients)
    for client, name in zip(clients, (grandchild, child, run), strict=True):
        refusal = refused(client, 402, "run_ceiling_reached")
        assert f"/budget/runs/{run} with" in str(refusal)  # whose limit it is
        assert refusal.response.json()["budget"]["limit_usd"] == "0.0005"
        assert refusal.response.headers["X-Run-Id"] == name
    assert posts(gateway, provider, grandchild, 402) <= 2
    names = (run, child, grandchild)
    assert sum(microcents(gateway.run(name)["committed_usd"]) for name in names) == provider.bill.microcents <= 50_000


def test_a_pause_of_the_parent_holds_up_its_children_until_it_is_resumed(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    child = f"{run}.c"
    call(agent(gateway, child, run))
    act(gateway, run, "pause")
    refusal = refused(agent(gateway, child), 402, "run_paused")
    assert f"Run {run}, from which run {child} comes," in str(refusal)
    assert posts(gateway, provider, child, 402) == 1
    refused(agent(gateway, run), 402, "run_paused")
    act(gateway, run, "resume")
    call(agent(gateway, child))
    call(agent(gateway, run))
    assert len(provider.calls) == 3


def test_a_stop_of_the_parent_stops_its_children_for_good(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    child = f"{run}.c"
    call(agent(gateway, child, run))
    act(gateway, run, "stop")
    refused(agent(gateway, child), 402, "run_stopped")
    refused(agent(gateway, f"{run}.late", run), 402, "run_stopped")
    assert posts(gateway, provider, child, 402) == 1
    assert len(provider.calls) == 1


def test_a_run_keeps_its_place_and_takes_no_strangers(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    call(agent(gateway, f"{run}.c", run))
    refused(agent(gateway, f"{run}.c", f"{run}.another"), 400, "run_id_invalid")
    refused(agent(gateway, run, f"{run}.c"), 400, "run_id_invalid")
    refused(agent(gateway, f"{run}.theirs", run, key="sk-somebody-else"), 403, "run_owned_by_another")
    assert posts(gateway, provider, run, 400) == posts(gateway, provider, f"{run}.c", 400) == 1
    assert len(provider.calls) == 1


# -- waiting ----------------------------------------------------------------------------------------------------------------------


async def test_a_call_that_waits_for_a_raise_goes_through_after_it(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    client = agent(gateway, run, X_Team_Id="patient")
    call(client)
    waiting = asyncio.ensure_future(asyncio.to_thread(call, client))
    await until(lambda: gateway.run(run)["state"] == "paused", 10)
    assert not waiting.done()
    raised = await asyncio.to_thread(gateway.admin, "PUT", f"/budget/runs/{run}", {"limit": "$0.01"})
    assert (raised.status_code, raised.json()["state"]) == (200, "active")
    answer = await asyncio.wait_for(waiting, 20)
    assert answer.usage.completion_tokens == 10
    told = gateway.run(run)
    assert (microcents(told["committed_usd"]), told["calls"]) == (provider.bill.microcents, 2)
    assert posts(gateway, provider, run, 200, at_least=2) == 2


def test_who_spends_too_fast_is_told_to_wait_and_the_sdk_does(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    client = agent(gateway, run, X_Feature=run)
    answers = [client.chat.completions.with_raw_response.create(**chat(max_tokens=10)) for _ in range(3)]
    retries = [answer.retries_taken for answer in answers]
    assert retries[:2] == [0, 0]
    assert retries[2] >= 1
    assert posts(gateway, provider, run, 429) == retries[2]
    assert len(provider.calls) == gateway.run(run)["calls"] == 3


def test_who_does_not_want_to_wait_is_told_how_long_it_would_take(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    client = agent(gateway, run, X_Feature=run).with_options(max_retries=0)
    refusal = spend_all([client])
    assert isinstance(refusal, openai.RateLimitError)
    headers = refusal.response.headers
    assert refusal.response.json()["code"] == "rate_of_spend"
    assert 1 <= int(headers["retry-after"]) <= 3
    assert "x-should-retry" not in headers
    assert "wait" in str(refusal)
