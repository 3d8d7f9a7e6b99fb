"""A run that waits for a raise, and calls that go out though the ledger is away: each only where its budgets say so."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.policy import Budget
from gateway.core.values import Ending, Mode
from gateway.ledger.contract import Debiting, LedgerLost, LedgerUnavailable, OutcomeUnknown, SetLimit
from gateway.ledger.journal import JournalFull
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.wire.chat import DIALECT as CHAT
from tests.support.flow import TENANT, Broken, Client, Steps, World, chat, world
from tests.support.provider import Behaviour, FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

WAIT_MS = 60_000


def pausing(wait_ms: int = WAIT_MS, limit: int = 20_000) -> Budget:
    ceiling = budget("run-ceiling", "run", limit=limit)
    return replace(ceiling, terms=replace(ceiling.terms, pause=True, wait_for_raise_ms=wait_ms))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.flow._LOOK_S", 0.01)


async def waiting(here: World) -> None:
    for _ in range(500):
        if here.flow._waiting:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits")


async def raised(here: World, limit: int = USD) -> None:
    await here.ledger.set_limit(TENANT, "r1", "", SetLimit(limit, by_admin=True, who="admin"))


# -- waiting for a raise ----------------------------------------------------------------------------------------------------------


async def test_a_paused_run_is_told_so_with_the_account_that_blocked_it(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(pausing(wait_ms=0))) as here:
        got = await here.ask(chat())
        assert (got.status, got.json["code"], got.json["error"]["code"]) == (402, "run_paused", "budget_exceeded")
        assert (got.json["budget"]["name"], got.json["budget"]["limit_usd"]) == ("run-ceiling", "0.0002")
        assert "PUT /budget/runs/r1" in got.json["detail"]
        assert "/budget/runs/r1/resume" in got.json["detail"]
        again = await here.ask(chat())
        assert (again.status, again.json["code"]) == (402, "run_paused")
        await raised(here)
        assert (await here.ask(chat())).status == 200


async def test_a_call_that_waits_is_served_after_the_raise(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(pausing())) as here:
        asking = [here.asking(chat())[0] for _ in range(3)]  # the first pauses the run, the others find it paused
        await waiting(here)
        assert provider.requests == []
        await raised(here)
        assert [(await each).status for each in asking] == [200, 200, 200]
        assert here.flow._waiting == set()
        view = await here.run()
        assert (view.committed, view.reserved) == (provider.bill.microcents, 0)


async def test_a_call_that_waits_goes_on_when_somebody_resumes_the_run(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(pausing(limit=USD))) as here:
        await here.ask(chat())
        await here.ledger.pause(TENANT, "r1", "admin", "a look")
        asking, client = here.asking(chat())
        await waiting(here)
        await here.ledger.resume(TENANT, "r1", "admin", "all is well")
        await asking
        assert client.status == 200


async def test_a_raise_that_is_not_enough_is_waited_on_from(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(pausing())) as here:
        asking, client = here.asking(chat())
        await waiting(here)
        await raised(here, 20_001)
        await asyncio.sleep(0.1)
        assert not asking.done()
        await raised(here)
        await asking
        assert client.status == 200


async def test_a_call_waits_no_longer_than_its_budget_says(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(pausing(wait_ms=30))) as here:
        got = await here.ask(chat())
        assert (got.status, got.json["code"]) == (402, "run_paused")
        assert here.told.calls[-1].code == "run_paused"


ENDS: dict[str, tuple[Callable[[World, Client], Any], int, str]] = {
    "its client leaves": (lambda _, client: client.leave(), 0, "run_paused"),
    "the gateway is about to stop": (lambda here, _: here.flow.wait_no_more(), 402, "run_paused"),
    "the gateway stops": (lambda here, _: here.flow.shut_down(), 402, "run_paused"),
    "its run is stopped": (lambda here, _: here.ledger.stop(TENANT, "r1", "admin", "enough"), 402, "run_stopped"),
    "it is frozen": (lambda here, _: here.ledger.freeze(TENANT, (("run", "r1"),), "admin", "a look"), 402, "run_paused"),
}


@pytest.mark.parametrize("what", ENDS)
async def test_a_wait_ends_when(what: str, tmp_path: Path, provider: FaultProvider) -> None:
    act, status, code = ENDS[what]
    async with world(tmp_path, provider.base_url, policy(pausing())) as here:
        asking, client = here.asking(chat())
        await waiting(here)
        done = act(here, client)
        if done is not None:
            await done
        await asyncio.wait_for(asking, 5)
        assert client.status == status
        assert [event.code for event in here.told.calls] == [code]
        assert (here.flow._waiting, provider.requests) == (set(), [])


async def test_a_wait_ends_when_a_run_that_its_own_comes_from_is_stopped(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(pausing(limit=USD))) as here:
        await here.ask(chat(), run="root")
        await here.ask(chat(), X_Parent_Run_Id="root")
        await here.ledger.pause(TENANT, "r1", "admin", "a look")
        asking, client = here.asking(chat())
        await waiting(here)
        await here.ledger.stop(TENANT, "root", "admin", "enough")
        await asyncio.wait_for(asking, 5)
        assert client.status == 402


async def test_no_more_calls_wait_than_there_are_places(
    tmp_path: Path, provider: FaultProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.flow._WAITS_AT_MOST", 1)
    async with world(tmp_path, provider.base_url, policy(pausing())) as here:
        one, client = here.asking(chat())
        await waiting(here)
        assert (await here.ask(chat())).json["code"] == "run_paused"
        client.leave()
        await one
        other, client = here.asking(chat())
        await waiting(here)
        client.leave()
        await other


@pytest.mark.parametrize("early", [True, False])
async def test_a_wait_may_be_cancelled_at_any_await(early: bool, tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(pausing(wait_ms=100))) as here:
        for at in range(1, 80):
            run = f"r-{at}"
            steps = Steps(here.flow.serve(CHAT, here.inbound(chat(), run), Client()), at, early)

            async def call(steps: Steps = steps) -> None:
                await steps

            task = asyncio.create_task(call())
            steps.act = task.cancel
            await asyncio.wait({task}, timeout=10)
            await here.quiet()
            view = await here.ledger.run(TENANT, run)
            assert view is None or (view.reserved, view.committed) == (0, 0)
            assert here.flow._waiting == set()
            if not steps.reached:
                break
        else:
            raise AssertionError("the call never ends")
        assert here.flow._waits._free == 1_000


# -- the ledger is away -------------------------------------------------------------------------------------------------------------


def allowing(**more: Any) -> Budget:
    ceiling = budget("run-ceiling", "run", **more)
    return replace(ceiling, terms=replace(ceiling.terms, outage_allow=True))


def away(failure: Exception, debits: list[Any] | None = None) -> Callable[[SqliteLedger], Any]:
    """No reserve gets through; debits do."""

    def wrap(real: SqliteLedger) -> Any:
        def reserve(*_: object) -> Any:
            raise failure

        def debit(decision: Any, settlement: Any, how: Debiting) -> Any:
            if debits is not None:
                debits.append((decision, settlement, how))
            return real.debit(decision, settlement, how)

        return Broken(real, {"reserve": reserve, "debit": debit})

    return wrap


@pytest.mark.parametrize("failure", [LedgerUnavailable("away"), OutcomeUnknown("the connection broke")])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_that_every_budget_lets_through_is_debited_once(
    stream: bool, failure: Exception, tmp_path: Path, provider: FaultProvider
) -> None:
    debits: list[Any] = []
    rules = policy(allowing(), allowing(mode=Mode.ADVISORY_ESTIMATE))
    rules = replace(rules, budgets=(rules.budgets[0], replace(rules.budgets[1], name="watched", scope=())))
    async with world(tmp_path, provider.base_url, rules, ledger=away(failure, debits)) as here:
        got = await here.ask(chat(stream=stream))
        assert (got.status, got.headers["X-Budget-Decision"], got.whole) == (200, "allow", True)
        view = await here.run()
        assert (view.committed, view.reserved, view.calls) == (provider.bill.microcents, 0, 1)
        assert [how for _, _, how in debits] == [Debiting.REPLAY]
        assert [name for name, _ in here.told.warnings] == ["let_through"]
        assert [(event.held, event.charged) for event in here.told.calls] == [(None, provider.bill.microcents)]
        record = await here.record()
        assert (record.state, record.ending) == ("committed", "completed")
        here.metrics.flush()
        assert b"penstock_let_through_total 1.0" in here.metrics.exposition()


@pytest.mark.parametrize("given_back", ["before the call ends", "after it"])
async def test_a_call_let_through_is_charged_though_its_reserve_had_happened_and_is_given_back(
    given_back: str, tmp_path: Path, provider: FaultProvider
) -> None:
    held: list[str] = []

    def wrap(real: SqliteLedger) -> Any:
        async def reserve(decision: Any, lease_ms: int) -> Any:
            held.append((await real.reserve(decision, lease_ms)).id)
            if given_back == "before the call ends":
                await real.release(TENANT, held[0], Ending.NOT_SENT)
            raise OutcomeUnknown("the connection broke")

        return Broken(real, {"reserve": reserve})

    async with world(tmp_path, provider.base_url, policy(allowing()), ledger=wrap) as here:
        assert (await here.ask(chat())).status == 200
        await here.quiet()
        await here.ledger.release(TENANT, held[0], Ending.NOT_SENT)
        view = await here.run()
        assert (view.committed, view.reserved, view.calls) == (provider.bill.microcents, 0, 1)


BLOCKED: dict[str, tuple[Exception, tuple[Budget, ...], str]] = {
    "one budget blocks": (LedgerUnavailable("away"), (allowing(), budget("month")), "ledger_unavailable"),
    "the ledger is lost": (LedgerLost("older"), (allowing(),), "ledger_lost"),
    "nothing would remember it": (JournalFull("full"), (allowing(),), "ledger_unavailable"),
}


@pytest.mark.parametrize("what", BLOCKED)
async def test_a_call_is_refused_where(what: str, tmp_path: Path, provider: FaultProvider) -> None:
    failure, budgets, code = BLOCKED[what]
    async with world(tmp_path, provider.base_url, policy(*budgets), ledger=away(failure)) as here:
        got = await here.ask(chat())
        assert (got.status, got.json["code"], provider.requests) == (503, code, [])


ENDINGS: dict[str, tuple[Behaviour, int, int, str]] = {
    "the provider's own refusal costs nothing": (Behaviour(status=400), 400, 0, "provider_refused"),
    "what nobody knows costs the worst case": (Behaviour(status=502), 502, 1, "unknown"),
}


@pytest.mark.parametrize("what", ENDINGS)
async def test_of_a_call_without_a_hold(what: str, tmp_path: Path, provider: FaultProvider) -> None:
    behaviour, status, calls, ending = ENDINGS[what]
    debits: list[Any] = []
    async with world(tmp_path, provider.base_url, policy(allowing()), ledger=away(LedgerUnavailable("away"), debits)) as here:
        provider.next(behaviour)
        got = await here.ask(chat())
        await here.quiet()
        assert (got.status, len(debits), here.told.calls[-1].ending) == (status, calls, ending)
        for decision, settlement, _ in debits:
            assert settlement.cost == decision.ladder[0].cost_max


async def test_a_client_that_leaves_a_call_without_a_hold_is_charged_what_it_got(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(allowing()), ledger=away(LedgerUnavailable("away"))) as here:
        provider.next(Behaviour(pace_s=0.01))
        asking, client = here.asking(chat(stream=True))
        await asyncio.to_thread(provider.wait_for, lambda: bool(client.text))
        client.leave()
        await asking
        view = await here.run()
        assert 0 < view.committed == provider.bill.microcents
