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
from gateway.ledger.contract import Debiting, HoldState, Keep, RunState, SetLimit
from gateway.ledger.layout import places
from gateway.ledger.redis import scripts
from gateway.ledger.redis.kept import (
    VERSION,
    KeptAccount,
    KeptCall,
    KeptMeta,
    KeptRun,
    keep_account,
    keep_call,
    keep_meta,
    keep_run,
    read_amounts,
)
from gateway.ledger.redis.keys import TenantKeys
from gateway.ledger.redis.ledger import RedisLedger
from gateway.ledger.redis.lines import Lines
from gateway.ledger.redis.packing import packed_texts, unpacked_numbers, unpacked_texts
from gateway.ledger.redis.scripts import text_of
from gateway.ledger.redis.servers import servers
from gateway.ledger.redis.shapes import AGAIN, DONE, LOST, UNKNOWN
from gateway.ledger.witness import Witness
from gateway.store_url import parse
from tests.ledger.builders import LEASE_MS, START_MS, TENANT, account, caller, charge, decision, own_run_charge, plan, settlement
from tests.ledger.stored import account_of, call_of, change_meta, meta_of, run_of
from tests.support.valkey import Server, redis_6_2, valkey

FOLDER = Path(scripts.__file__).parent / "lua"
NAMES = sorted(path.stem for path in FOLDER.glob("*.lua"))
PARTS = ("common", "lines", "short")
SHORT = ("commit", "hold")
WHOLE = [name for name in NAMES if name not in (*PARTS, *SHORT, "meta")]
KEYS = TenantKeys(TENANT)
A_RUN = KeptRun(
    *(START_MS, 0, 0, 0, 0, START_MS, None, None, None, 0, RunState.ACTIVE, False, False, True),
    *("k1", "", (), ""),
)
Run = Callable[..., Any]


@pytest.fixture(params=["valkey", pytest.param("redis 6.2", marks=pytest.mark.deep)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    binary = valkey() if request.param == "valkey" else redis_6_2()
    if binary is None:
        pytest.skip("no Redis 6.2 for this Python")
    with Server(tmp_path / "server", binary=binary) as running:
        running.command("SET", KEYS.meta, keep_meta(KeptMeta(7, 0, 0, 0, VERSION, "e")))
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
    if name not in PARTS:
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
    body = """call('ZADD', 'at', tonumber(ARGV[3]), 'a')
    call('SET', 'kept', numbers('<d', tonumber(ARGV[3])))
    return {call('ZSCORE', 'at', 'a'), int(tonumber(ARGV[3])), tonumber(ARGV[3])}"""
    assert lua(server, body, amount) == [str(amount).encode(), str(amount).encode(), amount]
    assert unpacked_numbers(server.command("GET", "kept")) == [amount]


_UNDECLARED = """local declared = {}
for _, key in ipairs(KEYS) do
  declared[key] = true
end
local function call(command, key, ...)
  local named = {key, ...}
  local last = command == 'TIME' and 0 or (command == 'MGET' or command == 'MSET') and #named or 1
  for at = 1, last, command == 'MSET' and 2 or 1 do
    if not declared[named[at]] then
      error('not in KEYS: ' .. command .. ' ' .. tostring(named[at]))
    end
  end
  if key == nil then
    return redis.call(command)
  end
  return redis.call(command, key, ...)
end
"""


def test_texts_that_python_packs_are_read_by_lua_and_the_other_way_round(server: Server) -> None:
    texts = ["", "a", "ü|\x00", "b" * 31, "c" * 32, "d" * 255, "e" * 256, "f" * 70_000]
    packed = packed_texts(*texts)
    assert [each.decode() for each in unpacked_texts(packed)] == texts
    told = lua(server, "return {texts(cmsgpack.unpack(ARGV[3])), cmsgpack.unpack(ARGV[3])}", packed)
    assert told[0] == packed
    assert [each.decode() for each in told[1:]] == texts


@pytest.mark.parametrize("broken", [b"\xa2a", b"\xd9", b"\x01", b"\xc0"])
def test_what_no_script_packed_is_no_text(broken: bytes) -> None:
    with pytest.raises(ValueError, match="text"):
        unpacked_texts(broken)


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
    assert server.command("EVAL", text_of("meta"), 1, meta, "", "") == [b"", 0, VERSION]
    assert server.command("EXISTS", meta) == 0
    assert server.command("EVAL", text_of("meta"), 1, meta, "one", "") == [b"one", 0, VERSION]
    assert server.command("EVAL", text_of("meta"), 1, meta, "two", "") == [b"one", 0, VERSION]
    assert server.command("EVAL", text_of("meta"), 1, meta, "two", "other") == [b"one", 0, VERSION]
    assert server.command("EVAL", text_of("meta"), 1, meta, "two", "one") == [b"two", 0, VERSION]
    assert meta_of(server, "new") == KeptMeta(0, 0, 0, 0, VERSION, "two")


def test_due_tells_the_oldest_first_and_passes_by_what_it_is_told_to(server: Server, run: Run) -> None:
    server.command("ZADD", KEYS.leases, START_MS + 1, "later", START_MS, "now", START_MS - 5, "b", START_MS - 5, "a")
    assert run("due", [KEYS.leases], 10, 0, 1, 0) == [
        *(DONE, 7, START_MS, [b"a", str(START_MS - 5).encode(), b"b", str(START_MS - 5).encode(), b"now", str(START_MS).encode()])
    ]
    assert run("due", [KEYS.leases], 1, 5, 1, 1)[3][0] == b"b"
    assert run("due", [KEYS.leases], 10, 6, 1, 0)[3] == []


def settle_keys(of: Account, day: int = START_MS // 86_400_000) -> list[str]:
    return [
        *(KEYS.call("t"), KEYS.leases, KEYS.expired, KEYS.ended, KEYS.tombstones, KEYS.days, KEYS.spend(day), KEYS.recent("r1")),
        *(KEYS.acts, KEYS.acts_order, KEYS.ends, KEYS.named, KEYS.shared, KEYS.run("r1"), KEYS.account(of.key)),
    ]


@pytest.fixture
def held(server: Server) -> Account:
    """A live hold of 10 microcents, by hand."""
    of = account()
    lines = Lines((charge(of),))
    group = orjson.dumps(["k1", "r1", {}, "big", "lab"])
    texts = (lines.text.encode(), lines.names.encode(), (), group, "", b"[]")
    held = KeptCall(HoldState.LIVE, START_MS + 5, Amounts(0, 0, 0), 0, b"", START_MS, False, 0, Amounts(10, 5, 1), None, *texts)
    server.commands(
        ("SET", KEYS.call("t"), keep_call(held)),
        ("SET", KEYS.account(of.key), keep_account(KeptAccount(10, 0, 0, 0, None, 2**53, 0, 0))),
        ("SET", KEYS.run("r1"), keep_run(A_RUN._replace(reserved=10, open=1, calls=1, last_ms=START_MS - 9_000, latest="t"))),
        ("ZADD", KEYS.leases, START_MS + 5, "t"),
    )
    return of


def test_settle_charges_once_and_tells_the_same_again(server: Server, run: Run, held: Account) -> None:
    def commit(usd: int) -> Any:
        return run("settle", settle_keys(held), "t", 3, usd, 3, 1, 0, 0, '[null,"completed"]', 1, "", "")

    assert commit(4) == [DONE, 8, 3, 1, 4, 3, 1, [100, 4, 0, 0], [], 0, 0]
    change_meta(server, sequence=8)
    assert commit(9) == [DONE, 8, 3, 0, 4, 3, 1, [100, 4, 0, 0], [], 0, 0]
    found = run_of(server, "r1")
    assert (found.committed, found.reserved, found.calls, found.open) == (4, 0, 1, 0)
    assert read_amounts(server.command("HGETALL", KEYS.spend(START_MS // 86_400_000))[1]) == Amounts(4, 3, 1)
    assert [server.command("ZCARD", key) for key in (KEYS.leases, KEYS.expired, KEYS.ended)] == [0, 0, 1]


def test_settle_asks_for_the_accounts_that_it_was_not_sent(server: Server, run: Run, held: Account) -> None:
    assert run("settle", settle_keys(held)[:-2], "t", 3, 4, 3, 1, 0, 0, "", 0, "", "") == [AGAIN, 7]
    assert call_of(server, "t").state is HoldState.LIVE


def test_settle_expires_no_lease_that_still_runs(run: Run, held: Account) -> None:
    assert run("settle", settle_keys(held), "t", 2, "", "", "", "", "", "", 1, "", "")[2:4] == [1, 0]
    assert run("settle", settle_keys(held), "t", 2, "", "", "", "", "", "", 1, "", "", now_ms=START_MS + 5)[2:7] == [
        2,
        1,
        10,
        5,
        1,
    ]


def test_extend_holds_more_once_however_often_it_is_asked(server: Server, run: Run, held: Account) -> None:
    keys = [KEYS.call("t"), KEYS.leases, KEYS.ends, KEYS.named, KEYS.shared, KEYS.run("r1"), KEYS.account(held.key)]
    for usd, holds in ((16, 16), (16, 16), (22, 22), (16, 22), (None, 22)):
        target = "" if usd is None else str(list(places(Amounts(usd, 0, 1), None)))
        assert run("extend", keys, "t", 100, target, 1, "")[0] == DONE
        assert account_of(server, held.key).reserved == holds
    assert run("extend", keys, "t", 100, "[101,0,0,101,0,0,0,0]", 1, "")[0] == UNKNOWN
    assert run("extend", keys[:2], "t", 100, "[23,0,0,23,0,0,0,0]", 1, "")[0] == AGAIN
    found = call_of(server, "t")
    assert (found.held, found.lease_ms) == (Amounts(22, 5, 1), START_MS + 100)


def test_balances_of_a_rolling_window_leave_out_what_has_fallen_out_of_it(server: Server, run: Run) -> None:
    of = account("hour", Unit.USD, rolling(59_000))  # buckets of a second
    at = START_MS // 1_000
    buckets = ((at - 59, 4, 1, 0), (at - 58, 5, 2, 0), (at, 6, 0, 0))
    kept = KeptAccount(1, 15, 3, 0, None, 2**53, 0, 0, at - 59, buckets)
    server.command("SET", KEYS.account(of.key), keep_account(kept))

    def told(later_ms: int) -> Any:
        return run("balances", [KEYS.account(of.key)], of.window.bucket_ms, now_ms=START_MS + later_ms)[2][0][:3]

    assert told(0) == [15, 1, 3]
    assert told(1_000) == [11, 1, 2]
    assert told(2_000) == [6, 1, 0]
    assert told(59_000) == [6, 1, 0]
    assert told(60_000) == [0, 1, 0]
    assert told(10**9) == [0, 1, 0]


def test_run_asks_again_where_the_run_has_another_owner(server: Server, run: Run) -> None:
    server.command("SET", KEYS.run("r1"), keep_run(A_RUN._replace(owner="k2")))
    keys = [KEYS.run("r1"), KEYS.runs, KEYS.owner("k1"), KEYS.owner("k1"), KEYS.active("k1"), KEYS.acts, KEYS.acts_order]
    assert run("run", keys, "stop", "r1", "k1", "act", "[]", "op") == [AGAIN, 7]
    assert run("run", keys, "stop", "never seen", "k2", "act", "[]", "op")[0] == DONE


def test_account_adjusts_once_and_never_below_zero(server: Server, run: Run) -> None:
    key = KEYS.account(account().key)
    keys = [key, KEYS.acts, KEYS.acts_order]
    assert run("account", keys, "adjust", 5, "act", "[]", "")[0] == UNKNOWN
    server.command("SET", key, keep_account(KeptAccount(0, 10, 4, 0, None, 2**53, 0, 0)))
    assert run("account", keys, "adjust", -7, "one", "[]", "")[2] == b"below_zero"
    assert run("account", keys, "adjust", -6, "one", "[]", "")[2:] == [b"done", None, 4, 0, 4, 0, -6]
    assert run("account", keys, "adjust", -6, "one", "[]", "")[2:] == [b"replayed", None, 4, 0, 4, 0, -6]
    assert (meta_of(server).raises, meta_of(server).acts) == (1, 1)


def test_fund_is_known_when_it_is_asked_for_again(server: Server, run: Run) -> None:
    key = KEYS.account(account().key)
    keys = [key, KEYS.acts, KEYS.acts_order, KEYS.ends, KEYS.named, KEYS.shared]
    asked = ("one", "[]", 5, "", "", "", account().key, 2**53, "")
    assert run("fund", keys, *asked)[2:] == [b"done", None, [5, 0, 0, 0, 0, 0]]
    assert run("fund", keys, *asked)[2:] == [b"replayed", [5, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0]]
    assert (meta_of(server).raises, meta_of(server).acts, server.command("ZCARD", KEYS.ends)) == (1, 1, 1)


def test_a_change_of_a_document_is_known_when_it_is_asked_for_again(server: Server, run: Run) -> None:
    keys = [KEYS.documents, KEYS.documents_number, KEYS.documents_latest]
    for wanted, expected, change, done in (
        (("1", "new"), ("", ""), "one", 1),
        (("1", "new"), ("", ""), "one", 1),  # asked again
        (("1", "new"), ("", ""), "two", 0),
        (("", ""), ("1", "new"), "three", 1),
        (("", ""), ("1", "new"), "three", 1),  # asked again
        (("", ""), ("1", "new"), "four", 0),
    ):
        assert run("document", keys, "a", change, *wanted, *expected)[2] == done
    assert int(server.command("GET", KEYS.documents_number)) == 2


def test_who_remembers_is_known_when_it_is_asked_for_again(run: Run) -> None:
    keys = [KEYS.memo("n"), KEYS.memos]
    assert run("memo", keys, "n", "a" * 16, "told", 100)[2] is None
    assert run("memo", keys, "n", "a" * 16, "told", 100)[2] is None  # asked again
    assert run("memo", keys, "n", "b" * 16, "other", 100)[2] == b"told"
    assert run("memo", keys, "n", "", "", 0)[2] == b"told"


def test_freeze_counts_what_is_frozen(server: Server, run: Run) -> None:
    keys = [KEYS.frozen, KEYS.freezes, KEYS.acts, KEYS.acts_order]
    for act, act_id, changed, frozen in (
        ("freeze", "one", 1, 1),
        ("freeze", "one", 1, 1),  # asked again
        ("freeze", "two", 0, 1),
        ("thaw", "three", 1, 0),
        ("thaw", "four", 0, 0),
    ):
        assert run("freeze", keys, act, "agent=a1", act_id, "[]", "[]")[2] == changed
        assert meta_of(server).frozen == frozen


def test_sweep_keeps_an_account_that_something_still_counts_in(server: Server, run: Run) -> None:
    of = account(window=rolling(59_000))
    key = KEYS.account(account().key)
    keys = [KEYS.ends, KEYS.named, key]
    kept = KeptAccount(0, 5, 0, 0, None, 1, 4, 0)
    for each in (kept, kept._replace(reserved=1, carried=5), kept._replace(adjusted=2)):
        server.command("SET", key, keep_account(each))
        assert run("sweep", keys, "account", "", account().key, "") == [DONE, 7, 0]
    server.command("SET", key, keep_account(kept._replace(carried=3, adjusted=2)))
    assert run("sweep", keys, "account", "", account().key, "") == [DONE, 8, 1]
    assert server.command("EXISTS", key) == 0
    assert of.window.bucket_ms == 1_000


def test_runs_tells_what_is_kept(server: Server, run: Run) -> None:
    server.command("SET", KEYS.run("r1"), keep_run(A_RUN))
    assert run("runs", [KEYS.run("r1"), KEYS.run("r2")]) == [DONE, 7, 0, [keep_run(A_RUN), None]]
