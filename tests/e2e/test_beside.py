"""What is spent beside the proxy shares the ceilings of the calls that pass through it: in every process, and once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.load import chat
from tests.support.loopback import LOOPBACK
from tests.support.provider import FaultProvider


@pytest.fixture(scope="module")
def gateway(folder: Path, shared_provider: FaultProvider) -> Iterator[GatewayProcess]:
    """Two workers, and a ledger between them."""
    with GatewayProcess(Setup(folder, shared_provider.base_url, policy=policy(run_ceiling("$1"))), workers=2) as running:
        yield running
        assert running.troubles == []


def post(gateway: GatewayProcess, path: str, body: object = None, key: str = CALLER_KEY) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(gateway.url + path, json=body, headers=headers, **LOOPBACK, timeout=30)


def event(gateway: GatewayProcess, run: str, cost: str, key: str, **more: Any) -> httpx.Response:
    return post(
        gateway,
        "/budget/events",
        {"run_id": run, "cost_usd": cost, "name": "web_search", "idempotency_key": f"{run}.{key}", **more},
    )


def test_a_debit_leaves_less_for_the_runs_calls(gateway: GatewayProcess, run: str) -> None:
    told = event(gateway, run, "0.9999999", "k1")
    assert (told.status_code, told.headers["X-Budget-Remaining-USD"]) == (200, "0.0000001")
    with pytest.raises(openai.APIStatusError) as raised:
        gateway.client(run).chat.completions.create(**chat(max_tokens=100))
    assert raised.value.response.json()["code"] == "run_ceiling_reached"
    refused = event(gateway, run, "0.5", "k2")
    assert (refused.status_code, refused.json()["code"]) == (402, "run_ceiling_reached")
    assert refused.headers["content-type"] == "application/problem+json"
    assert (refused.headers["X-Budget-Decision"], refused.headers["X-Run-Id"]) == ("block", run)
    assert event(gateway, run, "0.5", "k3", record_always=True).status_code == 200
    assert gateway.run(run)["committed_usd"] == "1.4999999"


async def test_of_many_holds_at_once_in_two_processes_exactly_those_that_fit_are_taken(gateway: GatewayProcess, run: str) -> None:
    headers = {"Authorization": f"Bearer {CALLER_KEY}"}

    async def reserve(number: int) -> httpx.Response:
        # Connections of their own: both processes have some.
        async with httpx.AsyncClient(**LOOPBACK, timeout=30) as client:
            body = {"run_id": run, "estimate_usd": "0.10", "idempotency_key": f"{run}.{number % 20}"}
            return await client.post(f"{gateway.url}/budget/reservations", json=body, headers=headers)

    answers = await asyncio.gather(*(reserve(number) for number in range(40)))  # each key twice
    taken = {each.json()["reservation_id"] for each in answers if each.status_code == 201}
    assert len(taken) == 10
    assert {each.json()["code"] for each in answers if each.status_code != 201} == {"run_ceiling_reached"}
    assert gateway.run(run)["reserved_usd"] == "1.00"
    for number, hold in enumerate(sorted(taken)):
        if number % 2:
            assert post(gateway, f"/budget/reservations/{hold}/commit", {"cost_usd": "0.03"}).json()["state"] == "committed"
        else:
            assert post(gateway, f"/budget/reservations/{hold}/release").json()["state"] == "released"
    shown = gateway.run(run)
    assert (shown["committed_usd"], shown["reserved_usd"], shown["calls"]) == ("0.15", "0.00", 5)


def test_a_hold_and_its_key_outlive_the_gateway(gateway: GatewayProcess, run: str) -> None:
    body = {"run_id": run, "estimate_usd": "0.40", "idempotency_key": f"{run}.k1"}
    first = post(gateway, "/budget/reservations", body).json()
    gateway.restart()
    assert post(gateway, "/budget/reservations", body).json() == {**first, "replayed": True}
    hold = f"/budget/reservations/{first['reservation_id']}"
    assert post(gateway, f"{hold}/commit", {"cost_usd": "0.25"}, key="sk-another").status_code == 404
    assert post(gateway, f"{hold}/commit", {"cost_usd": "0.25"}).json()["charged_usd"] == "0.25"
    assert post(gateway, f"{hold}/commit", {"cost_usd": "0.26"}).status_code == 409
    assert gateway.run(run)["committed_usd"] == "0.25"


def test_a_callers_own_call_is_no_reservation_that_it_could_give_back(gateway: GatewayProcess, run: str) -> None:
    answer = gateway.client(run).chat.completions.with_raw_response.create(**chat(max_tokens=5))
    hold = answer.headers["X-Budget-Reservation-Id"]
    assert post(gateway, f"/budget/reservations/{hold}/release").status_code == 404
