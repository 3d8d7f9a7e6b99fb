"""The short scripts: what is usual takes nothing else, what is not is done by the long ones, and nobody can tell from the books who it was."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.core.scopes import Amounts, Caller, Unit
from gateway.core.values import Charge, Decision, Ending, Hold, RunTerms
from gateway.core.windows import rolling
from gateway.ledger.contract import SetLimit, Settled
from gateway.ledger.redis.ledger import RedisLedger
from gateway.ledger.redis.servers import servers
from gateway.ledger.redis.shapes import Shape
from gateway.ledger.witness import Witness
from gateway.store_url import parse
from tests.ledger.asking import balance, hold, settle, spend
from tests.ledger.builders import (
    ACTUALS,
    ADVISORY,
    LEASE_MS,
    START_MS,
    TENANT,
    account,
    caller,
    charge,
    day_of,
    decision,
    own_run_charge,
    plan,
    settlement,
    share_of,
)
from tests.support.valkey import Server, redis_6_2, valkey

CLOCK = "return tonumber(redis.call('GET', 'clock'))"
CHILD = caller("child", parent="r1")
ALL = account()


@pytest.fixture(params=["valkey", pytest.param("redis 6.2", marks=pytest.mark.deep)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    binary = valkey() if request.param == "valkey" else redis_6_2()
    if binary is None:
        pytest.skip("no Redis 6.2 for this Python")
    with Server(tmp_path / "server", binary=binary) as running:
        running.command("SET", "clock", START_MS)
        yield running


async def opened(server: Server, witness: Path) -> RedisLedger:
    ledger = RedisLedger(servers(parse(server.url), 20_000), Witness(witness), CLOCK)
    await ledger.start()
    return ledger


@pytest.fixture
async def ledger(server: Server, tmp_path: Path) -> AsyncIterator[RedisLedger]:
    running = await opened(server, tmp_path / "witness")
    yield running
    await running.close()


async def scripts_of(server: Server, step: Awaitable[Any]) -> tuple[int, int]:
    """How many scripts a step takes, and how many of them are short: those that write all at once."""
    server.command("CONFIG", "RESETSTAT")
    await step
    told = server.command("INFO", "commandstats").decode()
    counts = {
        line.partition(":")[0]: int(line.partition("calls=")[2].partition(",")[0])
        for line in told.splitlines()
        if "calls=" in line
    }
    return counts.get("cmdstat_evalsha", 0), counts.get("cmdstat_mset", 0)


# -- what is usual --------------------------------------------------------------------------------------------------------------------

USUAL: Mapping[str, Any] = {
    "four accounts": {
        "charges": [
            own_run_charge(alerts=(900_000,)),
            charge(account("day", window=day_of(START_MS))),
            charge(),
            charge(account("calls", Unit.CALLS)),
        ]
    },
    "no limit": {"charges": [charge(limit=None)]},
    "a limit of the run's own": {"charges": [own_run_charge(limit=None)], "run_limit": 50},
    "what is settled counts": {"charges": [charge(rule=ACTUALS, limit=20)]},
    "advisory": {"charges": [charge(rule=ADVISORY)]},
    "a margin": {"charges": [charge(limit=13, margin=9)]},
    "a part for cheaper plans": {"charges": [charge(share_ppm=500_000)]},
    "a share of another": {"charges": [share_of(ALL, 300_000, account("agent", agent="a1")), charge()]},
    "a slice": {"charges": [charge(sliced=True)], "first": Amounts(3, 2)},
    "budgets that it takes nothing of": {"charges": [charge(), charge(account("credits", Unit.CREDITS), 0)]},
    "a lease that lapses": {"charges": [charge()], "lapses": True},
    "a child": {"charges": [own_run_charge("child"), own_run_charge()], "of": CHILD},
    "no run id": {"charges": [charge()], "of": caller(issued=True)},
    "few runs at once": {"charges": [charge()], "terms": RunTerms(max_active=1)},
    "the same over and over": {"charges": [charge()], "terms": RunTerms(same_request=9, within_calls=9), "fingerprint": "same"},
}


def usual(charges: Sequence[Charge], of: Caller | None = None, first: Amounts | None = None, **more: Any) -> Decision:
    return decision(plan(*charges, first=first), of=of, **more)


@pytest.mark.parametrize("name", USUAL)
async def test_a_call_as_usual_takes_two_short_scripts(server: Server, ledger: RedisLedger, name: str) -> None:
    shape = USUAL[name]
    await spend(ledger, usual(**shape), 1)
    assert await scripts_of(server, spend(ledger, usual(**shape), 1)) == (2, 2)


async def test_what_fires_an_alert_is_told_by_the_long_script_once(server: Server, ledger: RedisLedger) -> None:
    charges = [charge(alerts=(400_000, 800_000))]
    await spend(ledger, usual(charges), 1)
    fired = []
    for cost in (30, 10, 10, 40):
        held = await hold(ledger, usual(charges))
        settled = await settle(ledger, held, cost)
        fired.append([each.threshold_ppm for each in settled.alerts])
    assert fired == [[], [400_000], [], [800_000]]
    assert await scripts_of(server, ledger.reserve(usual([charge(limit=None)]), LEASE_MS)) == (1, 1)


async def test_a_run_that_was_refused_is_asked_for_by_the_long_script_alone_until_it_holds(
    server: Server, ledger: RedisLedger
) -> None:
    charges = (charge(limit=12),)
    held = await hold(ledger, usual(charges))
    asked = usual(charges)
    tight = [usual(charges) for _ in range(3)]
    for each in tight:  # of one shape
        object.__setattr__(each, "ladder", asked.ladder)
    assert await scripts_of(server, ledger.reserve(tight[0], LEASE_MS)) == (2, 0)
    assert await scripts_of(server, ledger.reserve(tight[1], LEASE_MS)) == (1, 0)
    await ledger.release(TENANT, held.id, Ending.NOT_SENT)
    assert isinstance(await ledger.reserve(tight[2], LEASE_MS), Hold)
    await ledger.release(TENANT, tight[2].hold_id, Ending.NOT_SENT)
    assert await scripts_of(server, ledger.reserve(asked, LEASE_MS)) == (1, 1)


# -- what can happen between ------------------------------------------------------------------------------------------------------------


async def test_a_commit_that_takes_the_long_script_is_done_though_nobody_waits(server: Server, ledger: RedisLedger) -> None:
    charges = [charge(alerts=(100_000,))]
    await spend(ledger, usual(charges), 1)
    held = await hold(ledger, usual(charges))
    server.freeze()

    async def wait() -> None:
        await ledger.commit(TENANT, held.id, settlement(20))

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    server.thaw()
    found = await balance(ledger, ALL)
    while found.reserved:
        await asyncio.sleep(0.01)
        found = await balance(ledger, ALL)
    assert found.committed == 21


async def test_a_reserve_that_takes_the_long_script_holds_nothing_once_its_waiter_is_gone(
    server: Server, ledger: RedisLedger
) -> None:
    await spend(ledger, usual([charge()]), 1)
    asked = usual([charge(), charge(account("new"))])
    server.freeze()

    async def wait() -> None:
        await ledger.reserve(asked, LEASE_MS)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    server.thaw()
    assert (await ledger.release(TENANT, asked.hold_id, Ending.NOT_SENT)).charged == Amounts(0, 0, 0)
    assert await ledger.holds(TENANT, None, 10) == []
    assert (await balance(ledger, ALL)).reserved == 0


async def test_a_server_that_forgot_the_scripts_is_told_them_again(server: Server, ledger: RedisLedger) -> None:
    await spend(ledger, usual([charge()]), 1)
    held = await hold(ledger, usual([charge()]))
    server.command("SCRIPT", "FLUSH")
    assert (await settle(ledger, held, 2)).charged.usd == 2
    server.command("SCRIPT", "FLUSH")
    assert isinstance(await ledger.reserve(usual([charge()]), LEASE_MS), Hold)


async def test_another_gateways_hold_is_committed_by_the_long_script(server: Server, ledger: RedisLedger, tmp_path: Path) -> None:
    other = await opened(server, tmp_path / "other")
    held = await hold(ledger, usual([charge()]))
    assert (await settle(other, held, 3)).changed
    again = await settle(ledger, held, 9)
    assert (again.changed, again.charged.usd) == (False, 3)
    await other.close()


async def test_amounts_are_exact_to_the_last_that_can_be_counted(server: Server, ledger: RedisLedger) -> None:
    most = 2**53
    charges = [charge(limit=None)]
    await spend(ledger, usual(charges), 1)
    held = await ledger.reserve(decision(plan(*charges, usd=most - 3)), LEASE_MS)
    assert isinstance(held, Hold)
    assert (held.balances[0].reserved, held.balances[0].committed) == (most - 3, 1)
    settled = await settle(ledger, held, most - 2)
    assert settled.balances[0].committed == most - 1
    assert (await balance(ledger, ALL)).committed == most - 1


# -- the same books ---------------------------------------------------------------------------------------------------------------------


def stored(server: Server) -> dict[bytes, Any]:
    """Everything of the tenant, but for its epoch."""
    found: dict[bytes, Any] = {}
    for key in server.command("KEYS", f"penstock:{{{TENANT}}}:*"):
        kind = server.command("TYPE", key)
        if kind == b"string":
            text = server.command("GET", key)
            found[key] = text[:40] if key.endswith(b"}:meta") else text
        elif kind == b"hash":
            pairs = server.command("HGETALL", key)
            found[key] = dict(zip(pairs[::2], pairs[1::2], strict=True))
        elif kind == b"zset":
            found[key] = server.command("ZRANGE", key, 0, -1, "WITHSCORES")
        else:
            found[key] = server.command("LRANGE", key, 0, -1) if kind == b"list" else sorted(server.command("SMEMBERS", key))
    return found


async def a_history(ledger: RedisLedger, server: Server, seed: int) -> list[object]:
    """Many calls of three runs, some of which do not fit, end otherwise, or are asked for twice. What was answered."""
    random = Random(seed)
    told: list[object] = []
    held: list[Hold] = []
    now_ms = START_MS
    who = [caller(), caller("r2", team="red"), CHILD, caller(issued=True)]
    for number in range(60):
        now_ms += random.choice((0, 1, 400, 2_000))
        server.command("SET", "clock", now_ms)
        act = random.random()
        if act < 0.5 or not held:
            of = random.choice(who)
            more = random.choice(((), (), (), (2, 0), (0, 1)))
            charges = [
                charge(account("credits", Unit.CREDITS), random.choice((9, 30)), alerts=(500_000,)),
                own_run_charge(of.run, random.choice((None, 60)), alerts=(250_000, 500_000)),
                charge(ALL, random.choice((120, 200)), share_ppm=random.choice((1_000_000, 900_000)), alerts=(500_000, 990_000)),
                charge(account("steps", Unit.CALLS), random.choice((15, 40)), sliced=number % 3 == 0),
            ]
            if number % 7 == 0:
                charges.append(charge(account("hour", window=rolling(3_600_000)), 90))
            if of is CHILD:
                charges.append(own_run_charge("r1", 80))
            asked = decision(
                plan(
                    *charges,
                    usd=random.randrange(12),
                    credits=more[0] if more else 0,
                    risk_points=more[1] if more else 0,
                    first=Amounts(2, 1, 1, *more) if number % 3 == 0 else None,
                ),
                plan(*charges, usd=1, model="small"),
                of=of,
                lapses=random.random() < 0.3,
                decision_id=f"bdg_{seed:03}{number:03}",
                run_limit=random.choice((None, None, None, 50)),
                fingerprint=random.choice(("", "a", "b")),
                terms=random.choice(
                    (RunTerms(), RunTerms(max_active=2, idle_ms=2_000), RunTerms(same_request=3, within_calls=4))
                ),
            )
            answer = await ledger.reserve(asked, random.choice((0, LEASE_MS)))
            if isinstance(answer, Hold):
                held.append(answer)
            told.append((type(answer).__name__, getattr(answer, "balances", None), getattr(answer, "lease_until_ms", None)))
        elif act < 0.9:
            each = held.pop(random.randrange(len(held))) if act < 0.85 else random.choice(held)
            cost = settlement(random.randrange(14), random.randrange(4), credits=random.choice((0, 0, 3)))
            told += [await ledger.commit(TENANT, each.id, cost) for _ in range(random.choice((1, 1, 2)))]
        elif act < 0.94:
            told.append(await ledger.release(TENANT, held.pop().id, Ending.NOT_SENT))
        elif act < 0.97:
            told.append(await ledger.expire())
        else:
            change = SetLimit(random.randrange(90), random.random() < 0.5, "op")
            told.append((await ledger.set_limit(TENANT, "r1", "k1", change)) is None)
    return told


@pytest.mark.parametrize("seed", range(8))
async def test_the_short_scripts_answer_and_leave_behind_what_the_long_ones_would(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    books = []
    for long_only in (False, True):
        if long_only:
            monkeypatch.setattr(Shape, "plain_of", lambda *_: None)
        server.command("FLUSHALL")
        server.command("SET", "clock", START_MS)
        server.command("CONFIG", "RESETSTAT")
        ledger = await opened(server, tmp_path / f"witness-{long_only}")
        told = await a_history(ledger, server, seed)
        await ledger.close()
        assert (b"cmdstat_mset" in server.command("INFO", "commandstats")) is not long_only
        books.append((told, {key: value for key, value in stored(server).items() if b":acts" not in key}))
    assert books[0][0] == books[1][0]
    assert books[0][1] == books[1][1]
    assert any(isinstance(each, Settled) for each in books[0][0])
