"""A real Valkey that loses, hangs, refuses and comes back: nothing acknowledged is missing, nothing is counted twice, and a store that is
not the one seen before admits nobody."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Ending, Hold
from gateway.ledger.contract import (
    Adjusting,
    Debiting,
    HoldState,
    Impossible,
    Keep,
    LedgerLost,
    LedgerUnavailable,
    Refusal,
    SetLimit,
    Unfit,
)
from gateway.ledger.redis.keys import TENANTS, TenantKeys
from gateway.ledger.redis.ledger import RedisLedger, adopt
from gateway.ledger.redis.scripts import text_of
from gateway.ledger.redis.servers import Standalone, servers, slot_of
from gateway.ledger.verify import verify_ledger
from gateway.ledger.witness import Seen, Witness
from gateway.store_url import parse
from tests.ledger.asking import balance, debit, hold, spend
from tests.ledger.builders import LEASE_MS, TENANT, account, caller, charge, decision, own_run_charge, plan, settlement
from tests.ledger.stored import change_meta, meta_of
from tests.support.between import Between
from tests.support.valkey import DURABLE, Server, cluster, redis_6_2

PATIENT_MS = 20_000  # two cores may be shared by many
MILLION_USD = 10**14  # in microcents


@dataclass
class Host:
    """A gateway's machine: its witness outlives its ledgers."""

    url: str
    witness: Witness

    def ledger(self, timeout_ms: int = PATIENT_MS) -> RedisLedger:
        return RedisLedger(servers(parse(self.url), timeout_ms), self.witness)

    @asynccontextmanager
    async def opened(self, timeout_ms: int = PATIENT_MS) -> AsyncIterator[RedisLedger]:
        ledger = self.ledger(timeout_ms)
        await ledger.start()
        try:
            yield ledger
        finally:
            await ledger.close()

    async def adopt(self) -> None:
        store = servers(parse(self.url), PATIENT_MS)
        await store.start()
        await adopt(store, self.witness)
        await store.close()


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with Server(tmp_path / "server") as running:
        yield running


@pytest.fixture
def host(server: Server, tmp_path: Path) -> Host:
    return Host(server.url, Witness(tmp_path / "state" / "witness"))


async def eventually(ask: Callable[[], Any]) -> Any:
    """The answer, once the store is there again."""
    for _ in range(200):
        try:
            return await ask()
        except LedgerUnavailable:
            await asyncio.sleep(0.05)
    raise AssertionError("the store never came back")


# -- loss -----------------------------------------------------------------------------------------------------------------------------


async def test_an_emptied_store_admits_nobody_until_it_is_adopted(host: Host, server: Server) -> None:
    async with host.opened() as ledger:
        await spend(ledger, decision(), 4)
        server.command("FLUSHALL")
        with pytest.raises(LedgerLost, match=r"no longer has tenant 'acme'.*`penstock ledger adopt`"):
            await ledger.reserve(decision(), LEASE_MS)
        with pytest.raises(LedgerLost):
            await ledger.release(TENANT, "rsv_1", Ending.NOT_SENT)
        with pytest.raises(LedgerLost):
            await ledger.run(TENANT, "r1")
        with pytest.raises(LedgerLost):
            await ledger.reserve(decision(of=caller(tenant="other")), LEASE_MS)
        with pytest.raises(LedgerLost):
            await ledger.start()
        assert ledger.health()["ok"] is False
        assert str(ledger.health()["why"]).startswith("ledger_lost: ")
        assert server.command("EXISTS", TenantKeys(TENANT).meta) == 0
        await host.adopt()
        await ledger.start()
        assert ledger.health()["ok"] is True
        await spend(ledger, decision(), 5)
        assert (await balance(ledger, account())).committed == 5


async def test_not_even_a_tenant_that_is_new_gets_into_an_emptied_store(host: Host, server: Server) -> None:
    async with host.opened() as ledger:
        await spend(ledger, decision(), 4)
        server.command("FLUSHALL")
        with pytest.raises(LedgerLost, match="acme"):
            await ledger.reserve(decision(of=caller(tenant="new")), LEASE_MS)
        assert server.command("EXISTS", TenantKeys("new").meta) == 0


class LateLooks(Standalone):
    """Where a tenant stands is told when the test lets it: steps that are asked for after it are answered before it."""

    def __init__(self, url: str) -> None:
        super().__init__(parse(url), PATIENT_MS)
        self.of: str | None = None  # the tenant
        self.waiting: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        self._look = self.script(text_of("meta"))

    def call(self, key: str, *args: Any, **how: Any) -> "asyncio.Future[Any]":
        answer = super().call(key, *args, **how)
        if self.of is None or key != TenantKeys(self.of).meta or args[:2] != ("EVALSHA", self._look):
            return answer
        return asyncio.ensure_future(self._late(answer))

    async def _late(self, answer: "asyncio.Future[Any]") -> Any:
        told, go = await answer, asyncio.Event()
        self.waiting.put_nowait(go)
        await go.wait()
        return told


@asynccontextmanager
async def late(host: Host) -> AsyncIterator[tuple[RedisLedger, LateLooks]]:
    store = LateLooks(host.url)
    ledger = RedisLedger(store, host.witness)
    await ledger.start()
    try:
        yield ledger, store
    finally:
        await ledger.close()


async def test_a_tenant_that_goes_on_while_another_is_made_has_lost_nothing(host: Host) -> None:
    async with late(host) as (ledger, store):
        await spend(ledger, decision(), 4)
        store.of = TENANT
        making = asyncio.ensure_future(ledger.reserve(decision(of=caller(tenant="new")), LEASE_MS))
        look = await store.waiting.get()
        store.of = None
        await spend(ledger, decision(), 4)
        look.set()
        assert isinstance(await making, Hold)
        assert ledger.health()["ok"] is True
        await spend(ledger, decision(), 4)


async def test_a_tenant_that_several_gateways_make_at_once_has_lost_nothing(host: Host, server: Server) -> None:
    async with host.opened() as there, late(host) as (ledger, store):
        store.of = TENANT
        making = asyncio.ensure_future(ledger.reserve(decision(), LEASE_MS))
        look = await store.waiting.get()  # there was no such tenant
        await spend(there, decision(), 4)
        store.of = None
        await ledger.expire()  # now there is: it counts among the known ones, which are looked at before it is made, and after
        store.of = TENANT
        for _ in range(3):
            look.set()
            look = await store.waiting.get()
        store.of = None
        await spend(ledger, decision(), 4)
        look.set()
        assert isinstance(await making, Hold)
        assert ledger.health()["ok"] is True
        assert ledger.health()["sequence"] == meta_of(server).sequence


async def test_a_gateway_that_starts_on_an_emptied_store_refuses(host: Host, server: Server) -> None:
    async with host.opened() as ledger:
        await spend(ledger, decision(), 4)
    server.command("FLUSHALL")
    with pytest.raises(LedgerLost):
        async with host.opened():
            pass


@pytest.mark.parametrize(
    ("field", "value", "says"), [("epoch", "another", "another ledger"), ("sequence", 1, r"step 1 of 2 of tenant 'acme'")]
)
async def test_another_store_or_an_older_one_is_noticed_by_the_next_step(
    host: Host, server: Server, field: str, value: str | int, says: str
) -> None:
    async with host.opened() as ledger:
        await spend(ledger, decision(), 4)
        keys = TenantKeys(TENANT)
        change_meta(server, **{field: value})
        with pytest.raises(LedgerLost, match=says):
            await ledger.reserve(decision(), LEASE_MS)
        assert server.command("ZCARD", keys.leases) == 0


async def test_what_another_host_adopted_is_accepted_as_it_is(host: Host, server: Server, tmp_path: Path) -> None:
    other = Host(host.url, Witness(tmp_path / "elsewhere" / "witness"))
    async with host.opened() as here, other.opened() as there:
        await spend(here, decision(), 4)
        await spend(there, decision(), 1)
        server.command("FLUSHALL")
        for ledger in (here, there):
            with pytest.raises(LedgerLost):
                await ledger.reserve(decision(), LEASE_MS)
        await host.adopt()
        epoch = meta_of(server).epoch
        await here.start()
        with pytest.raises(LedgerLost, match="another ledger"):
            await there.start()
        await other.adopt()
        await there.start()
        assert meta_of(server).epoch == epoch
        await spend(there, decision(), 2)
        await spend(here, decision(), 3)
        assert (await balance(here, account())).committed == 5


async def test_adopting_leaves_tenants_alone_that_lost_nothing(host: Host, server: Server) -> None:
    async with host.opened() as ledger:
        for tenant in (TENANT, "other"):
            await spend(ledger, decision(plan(charge(account(tenant=tenant))), of=caller(tenant=tenant)), 4)
    before = host.witness.read_tenants()
    change_meta(server, sequence=1)
    await host.adopt()
    after = host.witness.read_tenants()
    assert after["other"] == before["other"]
    assert after[TENANT].sequence == 1
    assert after[TENANT].epoch != before[TENANT].epoch


async def test_a_store_without_a_witness_is_taken_as_it_is(host: Host) -> None:
    async with host.opened() as ledger:
        await spend(ledger, decision(), 4)
    host.witness.path.unlink()
    async with host.opened() as ledger:
        assert (await balance(ledger, account())).committed == 4
    assert host.witness.read_tenants()[TENANT].sequence == 2


async def test_a_witness_of_another_kind_of_ledger_is_refused(host: Host) -> None:
    with host.witness.locked():
        host.witness.replace(Seen("of sqlite", 5))
    with pytest.raises(LedgerLost, match="another kind of ledger"):
        async with host.opened():
            pass


async def test_a_server_that_was_killed_with_nothing_on_disk_is_noticed_when_it_is_back(host: Host, server: Server) -> None:
    async with host.opened() as ledger:
        await spend(ledger, decision(), 4)
        server.kill()
        server.start()
        with pytest.raises(LedgerLost):
            await eventually(lambda: ledger.reserve(decision(), LEASE_MS))


async def test_nothing_acknowledged_is_missing_after_a_kill_where_every_write_is_on_disk(tmp_path: Path) -> None:
    with Server(tmp_path / "server", DURABLE) as server:
        host = Host(server.url, Witness(tmp_path / "witness"))
        acknowledged = 0
        async with host.opened(timeout_ms=3_000) as ledger:

            async def agent(number: int) -> None:
                nonlocal acknowledged
                for turn in range(20):
                    decided = decision(plan(charge(limit=10**6), usd=10), decision_id=f"bdg_{number}-{turn}")
                    held = await eventually(lambda decided=decided: ledger.reserve(decided, LEASE_MS))
                    assert isinstance(held, Hold)
                    done = await eventually(lambda held=held: ledger.commit(TENANT, held.id, settlement(7)))
                    assert done.state is HoldState.COMMITTED
                    acknowledged += 7

            agents = [asyncio.ensure_future(agent(number)) for number in range(8)]
            await asyncio.wait(agents, return_when=asyncio.FIRST_COMPLETED)  # the others are in the midst of it
            server.kill()
            server.start()
            await asyncio.gather(*agents)
            found = await balance(ledger, account())
            assert (found.committed, found.reserved) == (8 * 20 * 7, 0)
            assert (await verify_ledger(ledger.dump())).different == 0


# -- another version ------------------------------------------------------------------------------------------------------------------


def older(server: Server) -> None:
    """As version 1 kept it: a hash."""
    key = TenantKeys(TENANT).meta
    epoch = meta_of(server).epoch
    server.command("DEL", key)
    server.command("HSET", key, "version", "1", "epoch", epoch, "sequence", "2")


def newer(server: Server) -> None:
    change_meta(server, version=99)


@pytest.mark.parametrize(("version", "write"), [(1, older), (99, newer)])
async def test_what_another_version_has_written_is_left_alone_and_the_error_says_what_to_do(
    host: Host, server: Server, version: int, write: Callable[[Server], None]
) -> None:
    async with host.opened() as ledger:
        await spend(ledger, decision(), 4)
    write(server)
    before = server.command("DUMP", TenantKeys(TENANT).meta)
    why = rf"penstock:{{acme}}:meta.* in version {version}; this gateway reads version 2: .*ledger export.*ledger import"
    with pytest.raises(Unfit, match=why):
        async with host.opened():
            pass
    with pytest.raises(Unfit, match=why):
        await host.adopt()
    host.witness.path.unlink()  # a machine that has never seen it
    async with host.opened() as ledger:
        for step in (
            lambda: ledger.reserve(decision(), LEASE_MS),
            lambda: ledger.commit(TENANT, "rsv_1", settlement(1)),
            lambda: ledger.run(TENANT, "r1"),
            ledger.expire,
        ):
            with pytest.raises(Unfit, match=why):
                await step()
    assert server.command("DUMP", TenantKeys(TENANT).meta) == before


# -- trouble --------------------------------------------------------------------------------------------------------------------------


async def test_a_server_that_hangs_is_gone_on_with_when_it_is_back(host: Host, server: Server) -> None:
    async with host.opened(timeout_ms=300) as ledger:
        await spend(ledger, decision(), 4)
        server.freeze()
        waiting = decision()
        with pytest.raises(LedgerUnavailable, match="in time"):
            await ledger.reserve(waiting, LEASE_MS)
        server.thaw()
        held = await eventually(lambda: ledger.reserve(waiting, LEASE_MS))
        assert isinstance(held, Hold)
        await eventually(lambda: ledger.commit(TENANT, held.id, settlement(5)))
        found = await balance(ledger, account())
        assert (found.committed, found.reserved) == (9, 0)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["reserve", "commit", "release", "debit", "adjust", "extend"])
async def test_a_step_whose_connection_breaks_is_done_once(server: Server, tmp_path: Path, step: str, after: bool) -> None:
    with Between(server.port) as link:
        async with Host(link.url, Witness(tmp_path / "witness")).opened() as ledger:
            await spend(ledger, decision(), 20)
            held = await hold(ledger, decision())
            (link.cut_after if after else link.cut_before)("EVALSHA")
            if step == "reserve":
                assert isinstance(await ledger.reserve(decision(), LEASE_MS), Hold)
            elif step == "commit":
                settled = await ledger.commit(TENANT, held.id, settlement(4))
                assert settled is not None
                assert settled.charged.usd == 4
            elif step == "release":
                assert (await ledger.release(TENANT, held.id, Ending.NOT_SENT)).state is HoldState.RELEASED
            elif step == "debit":
                debited = await ledger.debit(decision(), settlement(4), Debiting.ASK)
                assert not isinstance(debited, Refusal)
            elif step == "adjust":
                done = await ledger.adjust(TENANT, account().key, 4, "act-1", "op", "the bill")
                assert done is not None
                assert done[0] in (Adjusting.DONE, Adjusting.REPLAYED)
            else:
                assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(16, 0, 0))
            found = await balance(ledger, account())
            expected = {
                "reserve": (20, 20),
                "commit": (24, 0),
                "release": (20, 0),
                "debit": (24, 10),
                "adjust": (24, 10),
                "extend": (20, 16),
            }
            assert (found.committed, found.reserved) == expected[step]


async def test_scripts_that_the_server_forgot_are_told_again(host: Host, server: Server) -> None:
    async with host.opened() as ledger:
        held = await hold(ledger, decision())
        server.command("SCRIPT", "FLUSH")
        await ledger.commit(TENANT, held.id, settlement(4))
        assert (await balance(ledger, account())).committed == 4


async def test_a_store_that_is_full_holds_nothing_and_goes_on_when_there_is_room(host: Host, server: Server) -> None:
    async with host.opened() as ledger:
        await spend(ledger, decision(), 4)
        server.command("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(LedgerUnavailable, match="OOM"):
            await ledger.reserve(decision(), LEASE_MS)
        server.command("CONFIG", "SET", "maxmemory", 0)
        found = await balance(ledger, account())
        assert (found.committed, found.reserved) == (4, 0)
        assert meta_of(server).sequence == 2
        await spend(ledger, decision(), 5)


async def test_a_store_that_may_evict_balances_is_refused_and_says_how_to_mend_it(host: Host, server: Server) -> None:
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(LedgerUnavailable, match=r"allkeys-lru.*CONFIG SET maxmemory-policy noeviction"):
        async with host.opened():
            pass


# -- waiting --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
async def test_a_hold_whose_waiter_is_gone_is_given_back(host: Host, first: bool) -> None:
    async with host.opened() as ledger:
        if not first:  # of a tenant that this gateway knows
            await spend(ledger, decision(), 4)
        for turns in range(6):
            task = asyncio.ensure_future(ledger.reserve(decision(plan(charge(limit=10**6))), LEASE_MS))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            (answer,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(answer, Hold):  # it was answered before
                await ledger.release(TENANT, answer.id, Ending.NOT_SENT)
    async with host.opened() as ledger:  # what was under way ended with the first one's close
        assert (await balance(ledger, account())).reserved == 0


async def test_a_commit_whose_waiter_is_gone_happens(host: Host) -> None:
    async with host.opened() as ledger:
        held = await hold(ledger, decision())
        task = asyncio.ensure_future(ledger.commit(TENANT, held.id, settlement(4)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await balance(ledger, account())).committed == 4


async def test_what_is_asked_of_a_closed_ledger_is_refused(host: Host) -> None:
    async with host.opened() as ledger:
        await spend(ledger, decision(), 4)
    with pytest.raises(LedgerUnavailable, match="not open"):
        ledger.reserve(decision(), LEASE_MS)
    await ledger.close()


# -- amounts and names ----------------------------------------------------------------------------------------------------------------


async def huge(host: Host) -> None:
    """All that moves money, at $49M."""
    limit = 49 * MILLION_USD
    of = account("all")
    async with host.opened() as ledger:
        decided = decision(plan(charge(of, limit, alerts=(999_999,)), own_run_charge(limit=limit), usd=limit - 1))
        held = await hold(ledger, decided)
        assert held.balances[0].reserved == limit - 1
        assert isinstance(await ledger.reserve(decision(plan(charge(of, limit), usd=2)), LEASE_MS), Refusal)
        assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(limit, 0, 0))
        settled = await ledger.commit(TENANT, held.id, settlement(limit - 3))
        assert settled is not None
        assert [(alert.limit, alert.committed) for alert in settled.alerts] == [(limit, limit - 3)]
        adjusted = await ledger.adjust(TENANT, of.key, -(limit - 10), "act", "op", "")
        assert adjusted is not None
        assert adjusted[1].balance.committed == 7
        await ledger.set_limit(TENANT, "r1", "", SetLimit(limit + 1, True, "op"))
        await ledger.set_account_limit(TENANT, of.key, limit + 5, "op", "")
        found = await ledger.account(TENANT, of.key)
        assert found is not None
        assert (found.balance.limit, found.adjusted) == (limit + 5, -(limit - 10))
        (row,) = await ledger.spend(TENANT, (), 0, 2**53, None)
        assert row.usd == limit - 3
        view = await ledger.run(TENANT, "r1")
        assert view is not None
        assert (view.limit, view.committed, view.reserved) == (limit + 1, limit - 3, 0)
        (aged,) = await ledger.aged(Keep(0, 0), 10)
        assert await ledger.retire(TENANT, [aged.decision_id], Keep(0, 0)) == 1
        found = await ledger.account(TENANT, of.key)
        assert found is not None
        assert (found.carried, found.balance.committed) == (limit - 3, 7)
        assert (await verify_ledger(ledger.dump())).different == 0


async def test_amounts_are_exact_up_to_the_bound(host: Host) -> None:
    await huge(host)


@pytest.mark.parametrize("step", ["reserve", "debit", "commit", "extend", "adjust"])
async def test_no_step_takes_an_account_beyond_what_is_counted_exactly(host: Host, step: str) -> None:
    of, nearly = account(), 2**53 - 10
    async with host.opened() as ledger:
        await debit(ledger, decision(plan(charge(limit=None), usd=1)), settlement(nearly), Debiting.ALWAYS)
        held = await hold(ledger, decision(plan(charge(limit=None), usd=5)))
        more = decision(plan(charge(limit=None), usd=6))
        steps: dict[str, Callable[[], Any]] = {
            "reserve": lambda: ledger.reserve(more, LEASE_MS),
            "debit": lambda: ledger.debit(more, settlement(6), Debiting.ALWAYS),
            "commit": lambda: ledger.commit(TENANT, held.id, settlement(11)),
            "extend": lambda: ledger.extend(TENANT, held.id, LEASE_MS, Amounts(11, 0, 0)),
            "adjust": lambda: ledger.adjust(TENANT, of.key, 6, "act_1", "op", "why"),
        }
        with pytest.raises(Impossible, match="more than it can count"):
            await steps[step]()
        stands = await balance(ledger, of)
        assert (stands.committed, stands.reserved) == (nearly, 5)
        assert await ledger.commit(TENANT, held.id, settlement(10))
        assert (await balance(ledger, of)).committed == 2**53
        verdict = await verify_ledger(ledger.dump())
        assert verdict.differences == ()


@pytest.mark.deep
async def test_amounts_are_exact_on_the_oldest_redis_too(tmp_path: Path) -> None:
    binary = redis_6_2()
    if binary is None:
        pytest.skip("no Redis 6.2 for this Python")
    with Server(tmp_path / "server", binary=binary) as server:
        await huge(Host(server.url, Witness(tmp_path / "witness")))


async def test_names_with_braces_and_signs_are_tenants_of_their_own(host: Host) -> None:
    names = ["a{b}c", "}", "{", "{}", "a b|c,d=e%", "ü"]
    async with host.opened() as ledger:
        for number, name in enumerate(names, 1):
            of = account(tenant=name, agent="x}{y")
            await spend(ledger, decision(plan(charge(of)), of=caller("run:{1}", tenant=name)), number)
        for number, name in enumerate(names, 1):
            (found,) = await ledger.balances(name, [account(tenant=name, agent="x}{y")])
            assert found.committed == number
            keys = TenantKeys(name)
            assert len({slot_of(key) for key in (keys.meta, keys.runs, keys.run("run:{1}"), keys.account(of.key))}) == 1
        assert [each.tenant for each in await ledger.aged(Keep(0, 0), 10)] == names


async def test_a_gateway_that_never_saw_a_tenant_ends_its_holds(host: Host) -> None:
    async with host.opened() as one, host.opened() as other:
        held = await one.reserve(decision(), 0)
        assert isinstance(held, Hold)
        (ended,) = await other.expire()
        assert (ended.hold_id, ended.run, ended.charged) == (held.id, "r1", Amounts(10, 5, 1))
        assert await one.expire() == []
        settled = await one.commit(TENANT, held.id, settlement(4))
        assert settled is not None
        assert settled.balances[0].committed == 4


# -- a cluster ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.deep
async def test_a_cluster_keeps_each_tenant_whole_and_a_node_that_lost_its_data_stops_all(tmp_path: Path) -> None:
    with cluster(tmp_path) as nodes:
        host = Host(f"redis+cluster://127.0.0.1:{nodes[0].port}", Witness(tmp_path / "witness"))
        names = [f"tenant-{number}" for number in range(12)]
        async with host.opened() as ledger:
            for name in names:
                of = account(tenant=name, unit=Unit.CALLS)
                asked = [decision(plan(charge(of, 10)), of=caller(tenant=name)) for _ in range(40)]
                answers = await asyncio.gather(*[ledger.reserve(each, 0) for each in asked])
                assert sum(isinstance(each, Hold) for each in answers) == 10
            assert len(await ledger.expire(1_000)) == 120
            assert (await verify_ledger(ledger.dump())).different == 0
            homes = [
                sum(node.command("EXISTS", TenantKeys(name).meta) if _has(node, name) else 0 for name in names) for node in nodes
            ]
            assert min(homes) > 0
            nodes[1].command("FLUSHALL")
            with pytest.raises(LedgerLost):
                await ledger.reserve(decision(of=caller(tenant="quite new")), LEASE_MS)
        assert slot_of(TENANTS) >= 0


def _has(node: Server, tenant: str) -> bool:
    slot = slot_of(TenantKeys(tenant).meta)
    mine = node.command("CLUSTER", "MYID")
    return any(first <= slot <= last and master[2] == mine for first, last, master, *_ in node.command("CLUSTER", "SLOTS"))
