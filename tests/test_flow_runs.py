"""Runs and their trees on the path of a call: who is barred and told what, what a child draws on, what ends it while it lives."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.policy import Policy, RunOwner, RunsPolicy, Source
from gateway.core.scopes import Unit
from gateway.core.values import Decision, RunTerms
from gateway.core.windows import WindowKind
from gateway.ledger.contract import LedgerUnavailable
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.settings import StaticKey
from gateway.wire.responses import DIALECT as RESPONSES
from tests.support.flow import TENANT, Broken, Client, World, chat, world
from tests.support.provider import Behaviour, FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

RUN = budget("run-ceiling", "run")


def with_terms(**terms: Any) -> Policy:
    return policy(RUN, runs=RunsPolicy(terms=RunTerms(**terms)))


# -- barred -----------------------------------------------------------------------------------------------------------------------


async def stopped(here: World) -> Client:
    await here.ask(chat())
    await here.ledger.stop(TENANT, "r1", "admin", "enough")
    return await here.ask(chat())


async def below_a_stopped_run(here: World) -> Client:
    await here.ask(chat(), run="root")
    await here.ledger.stop(TENANT, "root", "admin", "enough")
    return await here.ask(chat(), X_Parent_Run_Id="root")


async def paused(here: World) -> Client:
    await here.ask(chat())
    await here.ledger.pause(TENANT, "r1", "admin", "a look")
    return await here.ask(chat())


async def frozen(here: World) -> Client:
    await here.ledger.freeze(TENANT, (("agent", "a1"),), "admin", "runs wild")
    return await here.ask(chat(), X_Agent_Id="a1")


async def looping(here: World) -> Client:
    for _ in range(3):
        assert (await here.ask(chat("the same"))).status == 200
        assert (await here.ask(chat(f"another {here.asked}"))).status == 200
    return await here.ask(chat("the same", stream=True, user="u1"))


async def one_run_too_many(here: World) -> Client:
    for run in ("one", "two"):
        assert (await here.ask(chat(), run=run)).status == 200
    return await here.ask(chat())


async def its_own_parent(here: World) -> Client:
    return await here.ask(chat(), X_Parent_Run_Id="r1")


async def another_parent(here: World) -> Client:
    assert (await here.ask(chat(), X_Parent_Run_Id="one")).status == 200
    return await here.ask(chat(), X_Parent_Run_Id="two")


async def a_foreign_parent(here: World) -> Client:
    assert (await here.ask(chat(), run="theirs", Authorization="Bearer another")).status == 200
    return await here.ask(chat(), X_Parent_Run_Id="theirs")


async def too_deep(here: World) -> Client:
    for depth in range(8):
        assert (await here.ask(chat(), run=f"d{depth + 1}", X_Parent_Run_Id=f"d{depth}")).status == 200
    return await here.ask(chat(), X_Parent_Run_Id="d8")


async def untagged_with_a_parent(here: World) -> Client:
    return await here.ask(chat(), run=None, X_Parent_Run_Id="root")


async def a_parent_that_is_no_run_id(here: World) -> Client:
    return await here.ask(chat(), X_Parent_Run_Id="no run")


LIMITS = {"max_active": 2}
LOOPS = {"same_request": 3, "within_calls": 10}
BARRED: list[tuple[Callable[[World], Awaitable[Client]], dict[str, int], int, str, str]] = [
    (stopped, {}, 402, "run_stopped", "Run r1 was stopped"),
    (below_a_stopped_run, {}, 402, "run_stopped", "Run root, from which run r1 comes, was stopped"),
    (paused, {}, 402, "run_paused", "/budget/runs/r1/resume"),
    (frozen, {}, 402, "scope_frozen", "agent=a1"),
    (looping, LOOPS, 402, "loop_detected", "repeat_limit"),
    (one_run_too_many, LIMITS, 429, "too_many_runs", "max_active_per_key"),
    (its_own_parent, {}, 400, "run_id_invalid", "r1"),
    (another_parent, {}, 400, "run_id_invalid", "parent"),
    (a_foreign_parent, {}, 403, "run_owned_by_another", "theirs"),
    (too_deep, {}, 400, "run_id_invalid", "8"),
    (untagged_with_a_parent, {}, 400, "run_id_required", "X-Run-Id"),
    (a_parent_that_is_no_run_id, {}, 400, "run_id_invalid", "run id"),
]


@pytest.mark.parametrize(("what", "terms", "status", "code", "said"), BARRED, ids=[each[0].__name__ for each in BARRED])
async def test_who_is_barred_is_told_which_run_why_and_the_way_out(
    what: Callable[[World], Awaitable[Client]],
    terms: dict[str, int],
    status: int,
    code: str,
    said: str,
    tmp_path: Path,
    provider: FaultProvider,
) -> None:
    async with world(tmp_path, provider.base_url, with_terms(**terms)) as here:
        got = await what(here)
        assert (got.status, got.json["code"]) == (status, code)
        assert said in got.json["error"]["message"]
        assert got.json["error"]["message"] == got.json["detail"]
        assert got.json["error"]["code"] == ("budget_exceeded" if status == 402 else code)
        assert got.headers["x-should-retry"] == "false"
        assert "retry-after" not in got.headers
        assert got.headers["X-Budget-Decision"] == "block"
        assert here.told.calls[-1].code == code
        view = await here.ledger.run(TENANT, "r1")
        assert view is None or view.reserved == 0


async def test_where_nobody_compares_requests_none_is_made_comparable(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        await here.ask(chat())
        assert "fingerprint" not in (await here.record()).inputs


async def test_calls_that_were_given_back_are_no_loop(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, with_terms(**LOOPS)) as here:
        for _ in range(5):
            provider.next(Behaviour(status=400))
            assert (await here.ask(chat("the same"))).status == 400


# -- trees ------------------------------------------------------------------------------------------------------------------------


async def test_a_childs_calls_draw_on_its_ancestors_also_where_it_no_longer_names_them(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, policy(RUN)) as here:
        await here.ask(chat(), run="child", X_Parent_Run_Id="root")
        await here.ask(chat(), run="grandchild", X_Parent_Run_Id="child")
        for _ in range(2):
            assert (await here.ask(chat(), run="grandchild")).status == 200
        await here.ask(chat(), run="root")
        root, child, grandchild = [await here.run(run) for run in ("root", "child", "grandchild")]
        assert grandchild.ancestry == ("child", "root")
        one = provider.bill.microcents // 5
        drawn = {
            view.run: {balance.account.key: balance.committed for balance in view.accounts} for view in (root, child, grandchild)
        }
        key = "run-ceiling|run={}|lifetime|usd".format
        assert drawn["root"] == {key("root"): 5 * one}
        assert drawn["grandchild"] == {key("grandchild"): 3 * one, key("child"): 4 * one, key("root"): 5 * one}


async def test_a_child_meets_its_parents_ceiling_and_is_told_whose_it_was(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(budget("run-ceiling", "run", limit=USD // 1000))) as here:
        for number in range(10):
            got = await here.ask(chat(), run=f"child-{number}", X_Parent_Run_Id="root")
            if got.status != 200:
                break
        assert (got.status, got.json["code"], got.json["budget"]["scope"]) == (402, "run_ceiling_reached", "run")
        assert "run root" in got.json["detail"]
        assert "/budget/runs/root " in got.json["detail"]


def counting(reserves: list[object]) -> Callable[[SqliteLedger], Any]:
    def wrap(real: SqliteLedger) -> Any:
        def reserve(decision: Any, lease_ms: int) -> Any:
            reserves.append(decision)
            return real.reserve(decision, lease_ms)

        return Broken(real, {"reserve": reserve})

    return wrap


async def test_where_a_runs_place_is_known_here_each_call_asks_the_ledger_once(tmp_path: Path, provider: FaultProvider) -> None:
    reserves: list[object] = []
    async with world(tmp_path, provider.base_url, ledger=counting(reserves)) as here:
        for run, parent in (("child", "root"), ("grandchild", "child")):
            await here.ask(chat(), run=run, X_Parent_Run_Id=parent)
        for _ in range(2):
            await here.ask(chat(), run="grandchild")
        assert len(reserves) == 4
        here.flow._kin._known.clear()  # another process
        for _ in range(2):
            await here.ask(chat(), run="grandchild")
        assert len(reserves) == 7, "one more question, once"


# -- live calls -------------------------------------------------------------------------------------------------------------------


async def _stop(here: World) -> object:
    return await here.ledger.stop(TENANT, "root", "admin", "enough")


async def _freeze(here: World) -> object:
    return await here.ledger.freeze(TENANT, (("agent", "a1"),), "admin", "enough")


ACTS = [
    (_stop, lambda here: here.flow.run_stopped(TENANT, "root"), "run_stopped"),
    (_freeze, lambda here: here.flow.scope_frozen(TENANT, (("agent", "a1"),)), "scope_frozen"),
]


@pytest.mark.parametrize("elsewhere", [True, False], ids=["elsewhere", "here"])
@pytest.mark.parametrize(("act", "told", "ending"), ACTS, ids=["stop", "freeze"])
async def test_a_stop_of_an_ancestor_or_a_freeze_ends_live_calls_that_it_concerns_and_no_other(
    act: Callable[[World], Awaitable[object]],
    told: Callable[[World], None],
    ending: str,
    elsewhere: bool,
    tmp_path: Path,
    provider: FaultProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.watching._WATCH_S", 0.02)
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(stall_after_events=4), Behaviour(stall_after_events=4))
        ends, goes_on = Client(), Client()
        ending_call = asyncio.create_task(here.ask(chat(stream=True), "child", ends, X_Parent_Run_Id="root", X_Agent_Id="a1"))
        other = asyncio.create_task(here.ask(chat(stream=True), "r2", goes_on, X_Agent_Id="a2"))
        watching = asyncio.create_task(here.flow.watch()) if elsewhere else None
        await asyncio.to_thread(provider.wait_for, lambda: bool(ends.text and goes_on.text))
        await act(here)
        if not elsewhere:
            told(here)
        await asyncio.wait_for(ending_call, 2)
        assert [error["code"] for error in ends.errors] == ["budget_exceeded"]
        assert (await here.record("child")).ending == ending
        assert (await here.run("child")).reserved == 0
        assert not other.done()
        here.flow.shut_down()
        await other
        if watching is not None:
            watching.cancel()


async def test_three_keys_share_a_run_whose_ceiling_fits_ten_calls(tmp_path: Path, provider: FaultProvider) -> None:
    reserves: list[str] = []

    def wrap(real: SqliteLedger) -> Any:
        def reserve(decision: Decision, lease_ms: int) -> Any:
            reserves.append(decision.call.caller.owner)
            return real.reserve(decision, lease_ms)

        return Broken(real, {"reserve": reserve})

    keys = tuple(StaticKey(name, sha256(name.encode()).hexdigest(), TENANT) for name in ("one", "two", "three"))
    ten_calls = policy(budget("steps", "run", limit=10, unit=Unit.CALLS), runs=RunsPolicy(owner=RunOwner.TENANT))
    own_key = {"accepts_caller_keys": False}
    async with world(tmp_path, provider.base_url, ten_calls, ledger=wrap, provider=own_key, auth="keys", keys=keys) as here:
        asked = [here.ask(chat(), Authorization=f"Bearer {keys[number % 3].name}") for number in range(30)]
        statuses = [client.status for client in await asyncio.gather(*asked)]
        assert (statuses.count(200), statuses.count(402)) == (10, 20)
        view = await here.run()
        assert (view.calls, view.reserved) == (10, 0)
        reserves.clear()
        # Whose run it is has been learnt: one question each.
        for key in keys:
            await here.ask(chat(), Authorization=f"Bearer {key.name}")
        assert reserves == [view.owner] * 3
        child = [await here.ask(chat(), "child", Authorization=f"Bearer {key.name}", X_Parent_Run_Id="r1") for key in keys]
        assert [client.json["code"] for client in child] == ["run_ceiling_reached"] * 3


@pytest.mark.parametrize("silent", [False, True], ids=["fails", "never answers"])
async def test_a_tenant_whose_slot_is_away_keeps_no_other_tenants_stop_from_being_noticed(
    silent: bool, tmp_path: Path, provider: FaultProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.watching._WATCH_S", 0.02)
    asked = asyncio.Event()

    def wrap(real: SqliteLedger) -> Any:
        async def halted(tenant: str, callers: Any) -> Any:
            if tenant == "away":
                asked.set()
                if silent:
                    await asyncio.Event().wait()
                raise LedgerUnavailable("the shard is away")
            return await real.halted(tenant, callers)

        return Broken(real, {"halted": halted})

    keys = tuple(StaticKey(name, sha256(name.encode()).hexdigest(), name) for name in ("away", TENANT))
    own_key = {"accepts_caller_keys": False}
    async with world(tmp_path, provider.base_url, ledger=wrap, provider=own_key, auth="keys", keys=keys) as here:
        provider.next(Behaviour(stall_after_events=4), Behaviour(stall_after_events=4))
        first, other = Client(), Client()
        aways = asyncio.create_task(here.ask(chat(stream=True), "r1", first, Authorization="Bearer away"))
        await asyncio.to_thread(provider.wait_for, lambda: bool(first.text))
        ours = asyncio.create_task(here.ask(chat(stream=True), "r1", other, Authorization=f"Bearer {TENANT}"))
        await asyncio.to_thread(provider.wait_for, lambda: bool(other.text))
        watching = asyncio.create_task(here.flow.watch())
        await asyncio.wait_for(asked.wait(), 2)
        await here.ledger.stop(TENANT, "r1", "admin", "enough")
        await asyncio.wait_for(ours, 2)
        assert [error["code"] for error in other.errors] == ["budget_exceeded"]
        assert not aways.done()
        here.flow.shut_down()
        await aways
        watching.cancel()


async def test_a_pause_lets_live_calls_finish(tmp_path: Path, provider: FaultProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.watching._WATCH_S", 0.01)
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(pace_s=0.02))
        asking, client = here.asking(chat(stream=True))
        watching = asyncio.create_task(here.flow.watch())
        await asyncio.to_thread(provider.wait_for, lambda: bool(client.text))
        await here.ledger.pause(TENANT, "r1", "admin", "a look")
        await asking
        assert client.whole
        assert client.errors == []
        assert (await here.record()).ending == "completed"
        watching.cancel()


# -- velocity ---------------------------------------------------------------------------------------------------------------------

BURN = budget("burn-rate", "run", limit=3, unit=Unit.CALLS, window=WindowKind.ROLLING, span_ms=60_000)


async def test_who_spends_too_fast_is_told_how_long_to_wait_and_that_it_may(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(RUN, BURN)) as here:
        for _ in range(3):
            assert (await here.ask(chat())).status == 200
            here.clock.now_ms += 5_000
        got = await here.ask(chat())
        assert (got.status, got.json["code"], got.json["retryable"]) == (429, "rate_of_spend", True)
        assert "x-should-retry" not in got.headers
        wait_s = int(got.headers["retry-after"])
        assert 40 <= wait_s <= 60
        assert f"wait {wait_s} s" in got.json["detail"]
        here.clock.now_ms += wait_s * 1000
        assert (await here.ask(chat())).status == 200


async def test_a_burst_that_fills_a_rolling_minute_at_once_may_wait_a_minute_and_then_what_is_left_of_its_bucket(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, policy(RUN, BURN)) as here:
        for _ in range(3):
            assert (await here.ask(chat())).status == 200
        waits = []
        while (got := await here.ask(chat())).status != 200:
            assert (got.status, got.json["code"]) == (429, "rate_of_spend")
            waits.append(int(got.headers["retry-after"]))
            here.clock.now_ms += waits[-1] * 1000
        assert waits[0] == 60
        assert waits[1:] in ([], [1], [2])


async def test_where_a_minute_does_not_help_nobody_is_told_to_wait(tmp_path: Path, provider: FaultProvider) -> None:
    hourly = replace(BURN, span_ms=3_600_000)
    async with world(tmp_path, provider.base_url, policy(RUN, hourly)) as here:
        for _ in range(3):
            assert (await here.ask(chat())).status == 200
        got = await here.ask(chat())
        assert (got.status, got.json["code"]) == (402, "run_ceiling_reached")
        assert "retry-after" not in got.headers
        assert got.headers["x-should-retry"] == "false"


async def test_a_call_above_the_whole_limit_of_a_short_window_never_fits(tmp_path: Path, provider: FaultProvider) -> None:
    small = budget("burn-rate", "run", limit=10, window=WindowKind.ROLLING, span_ms=60_000)
    async with world(tmp_path, provider.base_url, policy(RUN, small)) as here:
        got = await here.ask(chat())
        assert (got.status, got.json["code"]) == (402, "call_exceeds_limit")
        assert "retry-after" not in got.headers


async def test_a_wait_that_another_account_would_not_share_is_no_way_out(tmp_path: Path, provider: FaultProvider) -> None:
    steps = budget("steps", "run", limit=3, unit=Unit.CALLS)
    async with world(tmp_path, provider.base_url, policy(BURN, steps)) as here:
        for _ in range(3):
            assert (await here.ask(chat())).status == 200
        got = await here.ask(chat())
        assert got.status == 402
        assert "retry-after" not in got.headers


# -- sessions ---------------------------------------------------------------------------------------------------------------------


async def test_the_calls_of_a_conversation_meet_one_ceiling_and_another_conversation_does_not(
    tmp_path: Path, provider: FaultProvider
) -> None:
    rules = policy(budget("steps", "run", unit=Unit.CALLS, limit=2), runs=RunsPolicy(id_from=(Source("conversation"),)))
    hello, more = [{"role": "user", "content": "mend the mill"}], [{"role": "assistant", "content": "done"}]
    async with world(tmp_path, provider.base_url, rules) as here:
        talk = [chat(messages=messages) for messages in (hello, hello + more + hello, hello + more + hello + more + hello)]
        said = [await here.ask(body, run=None) for body in talk]
        assert [each.status for each in said] == [200, 200, 402]
        [run] = {each.headers["X-Run-Id"] for each in said}
        assert (await here.run(run)).calls == 2
        assert (await here.ask(chat("mend the wheel"), run=None)).status == 200


# -- clients that would try again -------------------------------------------------------------------------------------------------


async def test_a_client_that_would_try_again_is_refused_in_its_own_way_with_the_budgets_headers(
    tmp_path: Path, provider: FaultProvider
) -> None:
    asked = orjson.dumps({"model": "big-model", "input": "tell me about rivers", "max_output_tokens": 20, "stream": True})
    async with world(tmp_path, provider.base_url, policy(budget("run-ceiling", "run", limit=1))) as here:
        codex = await here.ask(asked, dialect=RESPONSES, User_Agent="codex_exec/0.169.0")
        assert (codex.status, codex.events[0]["type"]) == (200, "response.failed")
        assert "the whole limit of $0.00000001" in codex.events[0]["response"]["error"]["message"]
        sdk = await here.ask(asked, dialect=RESPONSES, User_Agent="OpenAI/Python 2.54.0")
        assert (sdk.status, sdk.json["code"]) == (402, "call_exceeds_limit")
        for said in (codex, sdk):
            assert said.headers["X-Budget-Decision"] == "block"
            assert said.headers["X-Budget-Blocking-Scope"] == "run"
            assert said.headers["X-Run-Id"] == "r1"
        assert [(event.code, event.status) for event in here.told.calls] == [
            ("call_exceeds_limit", 200),
            ("call_exceeds_limit", 402),
        ]


async def test_a_call_that_a_stop_ends_before_its_answer_is_told_so_in_the_clients_own_way(
    tmp_path: Path, provider: FaultProvider
) -> None:
    provider.default = Behaviour(silent=True)
    async with world(tmp_path, provider.base_url, policy(RUN)) as here:
        client = Client()
        call = asyncio.create_task(here.ask(chat(stream=True), client=client, User_Agent="codex_exec/0.169.0"))
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
        here.flow.run_stopped(TENANT, "r1")
        await call
        assert (client.status, client.json["code"]) == (400, "run_stopped")
