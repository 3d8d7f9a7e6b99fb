"""Each Lua script on its own, on a real server: what it is sent, what it answers, what it leaves behind."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from gateway.core.scopes import Account, Amounts, Unit
from gateway.core.values import Ending, RunTerms
from gateway.core.windows import rolling
from gateway.ledger.contract import Debiting, Keep, SetLimit
from gateway.ledger.redis import scripts
from gateway.ledger.redis.keys import TenantKeys
from gateway.ledger.redis.ledger import RedisLedger
from gateway.ledger.redis.lines import Lines
from gateway.ledger.redis.scripts import text_of
from gateway.ledger.redis.servers import servers
from gateway.ledger.redis.shapes import AGAIN, DONE, LOST, UNKNOWN
from gateway.ledger.witness import Witness
from gateway.store_url import parse
from tests.ledger.builders import LEASE_MS, START_MS, TENANT, account, caller, charge, decision, own_run_charge, plan, settlement
from tests.support.valkey import Server, redis_6_2, valkey

FOLDER = Path(scripts.__file__).parent / "lua"
NAMES = sorted(path.stem for path in FOLDER.glob("*.lua"))
WHOLE = [name for name in NAMES if name not in ("common", "lines", "meta")]
KEYS = TenantKeys(TENANT)
Run = Callable[..., Any]


@pytest.fixture(params=["valkey", pytest.param("redis 6.2", marks=pytest.mark.deep)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    binary = valkey() if request.param == "valkey" else redis_6_2()
    if binary is None:
        pytest.skip("no Redis 6.2 for this Python")
    with Server(tmp_path / "server", binary=binary) as running:
        running.command("HSET", KEYS.meta, "epoch", "e", "sequence", 7)
        yield running


@pytest.fixture
def run(server: Server) -> Run:
    """Runs a script at START_MS, with the right epoch and sequence."""

    def evaluate(name: str, keys: Sequence[str], *args: Any, now_ms: int = START_MS) -> Any:
        text = text_of(name, f"return {now_ms}")
        return server.command("EVAL", text, len(keys) + 1, KEYS.meta, *keys, "e", 7, *args)

    return evaluate


def lua(server: Server, body: str, *args: Any) -> Any:
    """Runs Lua that has all of common.lua and lines.lua."""
    text = text_of("balances", f"return {START_MS}")
    return server.command("EVAL", text[: text.index("-- Accounts as they stand")] + body, 1, KEYS.meta, "e", 7, *args)


# -- all of them ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_script_opens_with_its_contract(name: str) -> None:
    first = (FOLDER / f"{name}.lua").read_text().split("\nlocal ")[0]
    assert first.startswith("-- ")
    if name not in ("common", "lines"):
        for word in ("KEYS", "ARGV", "Reply"):
            assert re.search(rf"-- +{word}", first), word


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(("epoch", "sequence"), [("other", 7), ("e", 8)])
def test_a_store_that_is_another_or_behind_changes_nothing(server: Server, name: str, epoch: str, sequence: int) -> None:
    before = server.command("DBSIZE")
    # Whatever else it would be sent, it does not look at.
    reply = server.command("EVAL", text_of(name), 3, KEYS.meta, "a", "b", epoch, sequence, *["x"] * 12)
    assert reply == [LOST, b"e", 7]
    assert server.command("DBSIZE") == before
    server.command("DEL", KEYS.meta)
    assert server.command("EVAL", text_of(name), 3, KEYS.meta, "a", "b", epoch, sequence, *["x"] * 12) == [LOST, b"", 0]


def test_the_tests_clock_stands_in_every_script_that_has_one() -> None:
    for name in WHOLE:
        assert "local time = call('TIME')" in text_of(name)
        assert "local time = call('TIME')" not in text_of(name, "return 1")


@pytest.mark.parametrize("up", [False, True])
def test_a_part_of_an_amount_is_exact_although_the_product_is_not(server: Server, up: bool) -> None:
    random = Random(7)
    amounts = [0, 1, 999_999, 10**6, 5 * 10**15, 2**52 + 1, *[random.randrange(2**52) for _ in range(200)]]
    ppm = [1, 333_333, 999_999, 10**6, *[random.randrange(10**6) for _ in range(20)]]
    pairs = [(amount, each) for amount in amounts for each in ppm]
    body = f"""local told = {{}}
    for at = 3, #ARGV, 2 do told[#told + 1] = int(part(tonumber(ARGV[at]), tonumber(ARGV[at + 1]), {str(up).lower()})) end
    return told"""
    found = []
    for start in range(0, len(pairs), 1_000):
        found += lua(server, body, *[number for pair in pairs[start : start + 1_000] for number in pair])
    expected = [-(-amount * each // 10**6) if up else amount * each // 10**6 for amount, each in pairs]
    assert [int(each) for each in found] == expected


@pytest.mark.parametrize("amount", [10**14, 49 * 10**14, 2**53 - 1, 2**53])
def test_a_number_that_goes_to_a_command_is_written_in_full(server: Server, amount: int) -> None:
    lua(server, "call('HSET', KEYS[1], 'x', tonumber(ARGV[3]), 'y', int(tonumber(ARGV[3])))", amount)
    assert server.command("HMGET", KEYS.meta, "x", "y") == [str(amount).encode()] * 2


_UNDECLARED = """local declared = {}
for _, key in ipairs(KEYS) do
  declared[key] = true
end
local function call(command, key, ...)
  if command ~= 'TIME' and not declared[key] then
    error('not in KEYS: ' .. command .. ' ' .. tostring(key))
  end
  if key == nil then
    return redis.call(command)
  end
  return redis.call(command, key, ...)
end
"""


async def test_no_script_touches_a_key_that_it_was_not_given(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(name: str, now: str | None = None) -> str:
        text = text_of(name, now)
        assert name == "meta" or text.count("local call = redis.call\n") == 1
        return text.replace("local call = redis.call\n", _UNDECLARED)

    monkeypatch.setattr(scripts, "text_of", watched)
    server.command("FLUSHALL")
    ledger = RedisLedger(servers(parse(server.url), 20_000), Witness(tmp_path / "witness"))
    await ledger.start()
    await a_life(ledger)
    await ledger.close()


async def a_life(ledger: RedisLedger) -> None:
    """A little of all that a ledger does."""
    child = replace(caller("child", team="research"), parent="r1", ancestry=("r1",))
    hour = account("hour", window=rolling(3_600_000))
    charges = (own_run_charge(alerts=(100_000,)), charge(hour), charge(account("all"), 1_000))
    terms = RunTerms(max_active=5, same_request=5, within_calls=5)
    decided = []
    for number in range(6):
        each = decision(plan(*charges), of=child if number % 2 else caller(issued=number == 4))
        decided.append(replace(each, call=replace(each.call, fingerprint="same"), terms=terms))
    held = [await ledger.reserve(each, LEASE_MS if number else 0) for number, each in enumerate(decided)]
    await ledger.reserve(decision(plan(charge(account("all"), 1))), LEASE_MS)
    await ledger.commit(TENANT, decided[1].hold_id, settlement(4))
    await ledger.release(TENANT, decided[2].hold_id, Ending.NOT_SENT)
    await ledger.release(TENANT, "rsv_unknown", Ending.NOT_SENT)
    await ledger.extend(TENANT, decided[3].hold_id, LEASE_MS, Amounts(1, 1, 0))
    assert len(await ledger.expire()) == 1
    await ledger.settle(TENANT, decided[0].hold_id, 3, "op", "")
    for how in Debiting:
        await ledger.debit(decision(plan(*charges), of=child), settlement(2), how)
    await ledger.set_limit(TENANT, "r1", "k1", SetLimit(90, True, "op"))
    await ledger.pause(TENANT, "r1", "op", "")
    await ledger.reserve(decision(of=child), LEASE_MS)
    await ledger.resume(TENANT, "r1", "op", "")
    await ledger.freeze(TENANT, (("team", "research"),), "op", "")
    await ledger.reserve(decision(of=child), LEASE_MS)
    await ledger.thaw(TENANT, (("team", "research"),), "op", "")
    await ledger.stop(TENANT, "child", "op", "")
    for key in (hour.key, account("all").key):
        await ledger.adjust(TENANT, key, 1, f"act-{key}", "op", "")
        await ledger.set_account_limit(TENANT, key, 500, "op", "")
        await ledger.reset(TENANT, key, "op", "")
    assert [row async for row in ledger.dump()]
    keep = Keep(0, 0, 0)
    for each in await ledger.aged(keep, 100):
        assert await ledger.retire(TENANT, [each.decision_id], keep) == 1
    assert await ledger.sweep(keep, 1_000) > 2
    assert len(held) == 6


# -- one by one -----------------------------------------------------------------------------------------------------------------------


def test_meta_makes_a_tenant_once(server: Server) -> None:
    meta = TenantKeys("new").meta
    assert server.command("EVAL", text_of("meta"), 1, meta, "") == [b"", 0]
    assert server.command("EXISTS", meta) == 0
    assert server.command("EVAL", text_of("meta"), 1, meta, "one") == [b"one", 0]
    assert server.command("EVAL", text_of("meta"), 1, meta, "two") == [b"one", 0]


def test_due_tells_the_oldest_first_and_passes_by_what_it_is_told_to(server: Server, run: Run) -> None:
    server.command("ZADD", KEYS.leases, START_MS + 1, "later", START_MS, "now", START_MS - 5, "b", START_MS - 5, "a")
    assert run("due", [KEYS.leases], 10, 0, 1, 0) == [
        *(DONE, 7, START_MS, [b"a", str(START_MS - 5).encode(), b"b", str(START_MS - 5).encode(), b"now", str(START_MS).encode()])
    ]
    assert run("due", [KEYS.leases], 1, 5, 1, 1)[3][0] == b"b"
    assert run("due", [KEYS.leases], 10, 6, 1, 0)[3] == []


def settle_keys(of: Account, day: int = START_MS // 86_400_000) -> list[str]:
    return [
        *(KEYS.call("t"), KEYS.leases, KEYS.open, KEYS.ended, KEYS.tombstones, KEYS.days, KEYS.spend(day), KEYS.recent("r1")),
        *(KEYS.acts, KEYS.acts_order, KEYS.run("r1"), KEYS.account(of.key)),
    ]


@pytest.fixture
def held(server: Server) -> Account:
    """A live hold of 10 microcents, by hand."""
    of = account()
    lines = Lines((charge(of),))
    group = orjson.dumps(["k1", "r1", {}, "big", "lab"])
    fields = ("s", 1, "l", START_MS + 5, "t", START_MS, "h", "10 5 1", "g", group, "n", lines.text, "m", lines.names, "d", "[]")
    server.commands(
        ("HSET", KEYS.call("t"), *fields),
        ("HSET", KEYS.account(of.key), "c", 0, "r", 10, "u", 0, "a", 0, "e", 2**53),
        ("HSET", KEYS.run("r1"), "o", "k1", "r", 10, "k", 1, "h", 1),
        ("ZADD", KEYS.leases, START_MS + 5, "t"),
        ("ZADD", KEYS.open, START_MS, "t"),
    )
    return of


def test_settle_charges_once_and_tells_the_same_again(server: Server, run: Run, held: Account) -> None:
    def commit(usd: int) -> Any:
        return run("settle", settle_keys(held), "t", 3, usd, 3, 1, '[null,"completed"]', 1, "", "")

    assert commit(4) == [DONE, 8, 3, 1, 4, 3, 1, [100, 4, 0, 0], []]
    server.command("HSET", KEYS.meta, "sequence", 8)
    assert commit(9) == [DONE, 8, 3, 0, 4, 3, 1, [100, 4, 0, 0], []]
    assert server.command("HMGET", KEYS.run("r1"), "c", "r", "k", "h") == [b"4", b"0", b"1", b"0"]
    assert server.command("HGETALL", KEYS.spend(START_MS // 86_400_000))[1] == b"4 3 1"
    assert [server.command("ZCARD", key) for key in (KEYS.leases, KEYS.open, KEYS.ended)] == [0, 0, 1]


def test_settle_asks_for_the_accounts_that_it_was_not_sent(server: Server, run: Run, held: Account) -> None:
    assert run("settle", settle_keys(held)[:-2], "t", 3, 4, 3, 1, "", 0, "", "") == [AGAIN, 7]
    assert server.command("HGET", KEYS.call("t"), "s") == b"1"


def test_settle_expires_no_lease_that_still_runs(run: Run, held: Account) -> None:
    assert run("settle", settle_keys(held), "t", 2, "", "", "", "", 1, "", "")[2:4] == [1, 0]
    assert run("settle", settle_keys(held), "t", 2, "", "", "", "", 1, "", "", now_ms=START_MS + 5)[2:7] == [2, 1, 10, 5, 1]


def test_extend_holds_more_once_however_often_it_is_asked(server: Server, run: Run, held: Account) -> None:
    keys = [KEYS.call("t"), KEYS.leases, KEYS.run("r1"), KEYS.account(held.key)]
    for target, holds in (("16 0 0", b"16"), ("16 0 0", b"16"), ("22 0 1", b"22"), ("16 0 0", b"22"), ("", b"22")):
        assert run("extend", keys, "t", 100, target, 1)[0] == DONE
        assert server.command("HGET", KEYS.account(held.key), "r") == holds
    assert run("extend", keys, "t", 100, "101 0 0", 1)[0] == UNKNOWN
    assert run("extend", keys[:2], "t", 100, "23 0 0", 1)[0] == AGAIN
    assert server.command("HMGET", KEYS.call("t"), "h", "l") == [b"22 5 1", str(START_MS + 100).encode()]


def test_balances_of_a_rolling_window_leave_out_what_has_fallen_out_of_it(server: Server, run: Run) -> None:
    of = account("hour", Unit.USD, rolling(59_000))  # buckets of a second
    at = START_MS // 1_000
    amounts = ("c", 15, "r", 1, "u", 3, "a", 0, "e", 2**53, "o", at - 59)
    buckets = (f"b{at - 59}", "4 1 0", f"b{at - 58}", "5 2 0", f"b{at}", "6 0 0")
    server.command("HSET", KEYS.account(of.key), *amounts, *buckets)

    def told(later_ms: int) -> Any:
        return run("balances", [KEYS.account(of.key)], of.window.bucket_ms, now_ms=START_MS + later_ms)[2][0][:3]

    assert told(0) == [15, 1, 3]
    assert told(1_000) == [11, 1, 2]
    assert told(2_000) == [6, 1, 0]
    assert told(59_000) == [6, 1, 0]
    assert told(60_000) == [0, 1, 0]
    assert told(10**9) == [0, 1, 0]


def test_run_asks_again_where_the_run_has_another_owner(server: Server, run: Run) -> None:
    server.command("HSET", KEYS.run("r1"), "o", "k2", "s", "0")
    keys = [KEYS.run("r1"), KEYS.runs, KEYS.owner("k1"), KEYS.owner("k1"), KEYS.active("k1"), KEYS.acts, KEYS.acts_order]
    assert run("run", keys, "stop", "r1", "k1", "act", "[]", "op") == [AGAIN, 7]
    assert run("run", keys, "stop", "never seen", "k2", "act", "[]", "op")[0] == DONE


def test_account_adjusts_once_and_never_below_zero(server: Server, run: Run) -> None:
    key = KEYS.account(account().key)
    keys = [key, KEYS.acts, KEYS.acts_order]
    assert run("account", keys, "adjust", 5, "act", "[]", "")[0] == UNKNOWN
    server.command("HSET", key, "c", 10, "r", 0, "u", 4, "a", 0, "e", 2**53)
    assert run("account", keys, "adjust", -7, "one", "[]", "")[2] == b"below_zero"
    assert run("account", keys, "adjust", -6, "one", "[]", "")[2:] == [b"done", None, 4, 0, 4, 0, -6]
    assert run("account", keys, "adjust", -6, "one", "[]", "")[2:] == [b"replayed", None, 4, 0, 4, 0, -6]
    assert server.command("HMGET", KEYS.meta, "raises", "acts") == [b"1", b"1"]


def test_freeze_counts_what_is_frozen(server: Server, run: Run) -> None:
    keys = [KEYS.frozen, KEYS.freezes, KEYS.acts, KEYS.acts_order]
    for act, act_id, changed, frozen in (
        ("freeze", "one", 1, b"1"),
        ("freeze", "one", 1, b"1"),  # asked again
        ("freeze", "two", 0, b"1"),
        ("thaw", "three", 1, b"0"),
        ("thaw", "four", 0, b"0"),
    ):
        assert run("freeze", keys, act, "agent=a1", act_id, "[]", "[]")[2] == changed
        assert server.command("HGET", KEYS.meta, "frozen") == frozen


def test_sweep_keeps_an_account_that_something_still_counts_in(server: Server, run: Run) -> None:
    of = account(window=rolling(59_000))
    key = KEYS.account(account().key)
    keys = [KEYS.ends, KEYS.named, key]
    for amounts in (("c", 5, "r", 0, "f", 4), ("c", 5, "r", 1, "f", 5), ("c", 5, "r", 0, "f", 4, "j", 2)):
        server.commands(("DEL", key), ("HSET", key, *amounts, "u", 0, "a", 0, "e", 1))
        assert run("sweep", keys, "account", "", account().key, "") == [DONE, 7, 0]
    server.command("HSET", key, "f", 3)
    assert run("sweep", keys, "account", "", account().key, "") == [DONE, 8, 1]
    assert server.command("EXISTS", key) == 0
    assert of.window.bucket_ms == 1_000


def test_runs_tells_the_fields_that_are_asked_for(server: Server, run: Run) -> None:
    server.command("HSET", KEYS.run("r1"), "o", "k1", "s", "1")
    assert run("runs", [KEYS.run("r1"), KEYS.run("r2")], "s", "o") == [DONE, 7, 0, [[b"1", b"k1"], [None, None]]]
