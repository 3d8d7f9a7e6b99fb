"""What the Cycles admin plane made, as a gateway knows it: from a real ledger, shared by several gateways."""

import asyncio
import hashlib
from dataclasses import replace

import pytest

from gateway.core.grants import Grants, GrantStatus, scope_of
from gateway.core.scopes import BOOKKEEPING, Caller, Unit
from gateway.identity import Principal
from gateway.ledger.contract import LedgerLost, LedgerUnavailable, Unfit
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.witness import Witness
from gateway.registry import BudgetDoc, KeyDoc, PolicyDoc, Registry, TenantDoc
from gateway.wire.problem import Refused
from tests.support.clock import NOW_MS, Clock
from tests.support.records import caller

DAY_MS = 86_400_000


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def ledger(tmp_path, clock):
    opened = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness.json"), clock)
    await opened.start()
    yield opened
    await opened.close()


class Gateway:
    """A registry, and what it told."""

    def __init__(self, ledger, clock):
        self.told: list[Grants] = []
        self.troubles: list[Exception] = []
        self.changed = asyncio.Event()
        self.registry = Registry(ledger, clock, self._tell, self.troubles.append)

    def _tell(self, grants):
        self.told.append(grants)
        self.changed.set()


@pytest.fixture
async def here(ledger, clock):
    gateway = Gateway(ledger, clock)
    await gateway.registry.look()
    return gateway


@pytest.fixture
async def there(ledger, clock):
    gateway = Gateway(ledger, clock)
    await gateway.registry.look()
    return gateway


def budget(scope="tenant:default", **facts):
    return BudgetDoc("ldg_1", "default", scope, Unit.USD.value, 500, **facts)


def key(secret="cyc_live_a", **facts):
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return KeyDoc("key_1", "default", digest, secret[:12], expires_ms=NOW_MS + DAY_MS, **facts)


def policy(number=1, **facts):
    return PolicyDoc(f"pol_{number}", "default", f"p{number}", **{"pattern": "tenant:default", **facts})


async def put(gateway, document):
    await gateway.registry.change(type(document), document.name, lambda _: document)


# -- looking ----------------------------------------------------------------------------------------------------------------------


async def test_until_it_was_read_nobody_knows_which_grants_there_are(ledger, clock):
    gateway = Gateway(ledger, clock)
    assert gateway.registry.grants.unread.code == "ledger_unavailable"
    await gateway.registry.look()
    assert gateway.registry.grants.unread is None
    assert len(gateway.told) == 1


async def test_an_own_write_is_known_at_once_and_told(here):
    await put(here, budget())
    assert [grant.text for grant in here.registry.grants_for(caller())] == ["tenant:default"]
    assert here.told[-1] is here.registry.grants


async def test_another_gateways_write_is_known_after_the_next_look(here, there):
    await put(here, budget())
    assert not there.registry.grants_for(caller())
    await there.registry.look()
    assert there.registry.grants_for(caller())
    await put(here, replace(budget(), status=GrantStatus.FROZEN.value))
    await there.registry.look()
    assert there.registry.grants_for(caller())[0].status is GrantStatus.FROZEN


async def test_a_look_that_finds_nothing_new_tells_nothing(here, there):
    await put(here, budget())
    told = len(here.told)
    await here.registry.look()
    assert len(here.told) == told
    await put(here, key())  # a key is no grant
    assert len(here.told) == told


async def test_the_loop_looks_again_and_again_whatever_a_look_meets(here, there, monkeypatch):
    monkeypatch.setattr("gateway.registry._LOOK_EVERY_S", 0.001)
    real, failing = there.registry.look, [RuntimeError("a bug"), LedgerUnavailable("away")]

    async def look():
        if failing:
            raise failing.pop()
        await real()

    monkeypatch.setattr(there.registry, "look", look)
    await put(here, budget())
    there.changed.clear()
    task = asyncio.create_task(there.registry.run())
    await there.changed.wait()
    task.cancel()
    assert there.registry.grants_for(caller())
    assert [str(each) for each in there.troubles] == ["away", "a bug"]


class Slow:
    """A ledger that answers when it is told to."""

    def __init__(self, ledger):
        self.asked = 0
        self.begun = asyncio.Event()
        self.free = asyncio.Event()
        self.ledger = ledger

    async def documents(self, tenant, known=0):
        self.asked += 1
        found = await self.ledger.documents(tenant, known)
        self.begun.set()
        await self.free.wait()
        return found


async def test_a_look_that_began_before_a_write_is_not_taken_for_one_after_it(ledger, clock, here):
    slow = Slow(ledger)
    registry = Registry(slow, clock, lambda _: None, lambda _: None)
    early = asyncio.create_task(registry.look())
    await slow.begun.wait()
    await put(here, budget())
    late = [asyncio.create_task(registry.look()) for _ in range(20)]
    await asyncio.sleep(0)
    slow.free.set()
    await asyncio.gather(early, *late)
    assert registry.grants_for(caller())
    assert slow.asked == 2  # those who came late share one


async def test_who_leaves_while_it_looks_spoils_nobody_elses_look(ledger, clock):
    slow = Slow(ledger)
    registry = Registry(slow, clock, lambda _: None, lambda _: None)
    leaves, stays = asyncio.create_task(registry.look()), asyncio.create_task(registry.look())
    await asyncio.sleep(0)
    leaves.cancel()
    slow.free.set()
    await stays
    assert registry.grants.unread is None


async def test_a_ledger_that_is_away_or_lost_leaves_what_was_read_and_says_why_where_nothing_was(clock):
    class Away:
        failure: Exception = LedgerLost("another store")

        async def documents(self, tenant, known=0):
            raise self.failure

    ledger = Away()
    gateway = Gateway(ledger, clock)
    with pytest.raises(LedgerLost):
        await gateway.registry.look()
    assert gateway.registry.grants.unread.code == "ledger_lost"
    ledger.failure = LedgerUnavailable("gone")
    with pytest.raises(LedgerUnavailable):
        await gateway.registry.look()
    assert gateway.told[-1].unread.code == "ledger_unavailable"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"id": "x"}', '{"id":"l","tenant":"d","scope":"nonsense","unit":"usd","opening":1}']
)
async def test_a_budget_that_cannot_be_read_is_never_passed_over(ledger, clock, here, text):
    await put(here, budget())
    await ledger.put_document(BOOKKEEPING, "budget tenant:default/agent:a usd", text, None)
    with pytest.raises(Unfit):
        await here.registry.look()
    assert here.registry.grants_for(caller())  # as it was read
    new = Gateway(ledger, clock)
    with pytest.raises(Unfit):
        await new.registry.look()
    assert new.registry.grants.unread.code == "ledger_unavailable"


async def test_what_a_newer_gateway_wrote_besides_is_read_over(ledger, here):
    await ledger.put_document(BOOKKEEPING, "webhook w1", '{"url": "x"}', None)
    await ledger.put_document(BOOKKEEPING, "tenant acme", '{"id": "acme", "title": "A", "colour": "red"}', None)
    await here.registry.look()
    assert here.registry.tenant("acme") == TenantDoc("acme", "A")


# -- writing ----------------------------------------------------------------------------------------------------------------------


async def test_changes_of_one_document_side_by_side_all_count(here, there):
    await put(here, TenantDoc("acme", "0"))
    await there.registry.look()

    async def count(gateway):
        await gateway.registry.change(TenantDoc, "tenant acme", lambda before: replace(before, title=str(int(before.title) + 1)))

    await asyncio.gather(*[count(gateway) for gateway in (here, there) for _ in range(10)])
    await here.registry.look()
    assert here.registry.tenant("acme").title == "20"


async def test_what_the_change_raises_is_raised_and_nothing_is_written(here):
    def refuse(before):
        raise KeyError("no")

    with pytest.raises(KeyError):
        await here.registry.change(TenantDoc, "tenant acme", refuse)
    assert here.registry.tenant("acme") is None


# -- keys and rights --------------------------------------------------------------------------------------------------------------


async def test_a_key_is_found_by_its_secret_alone_and_ends_when_it_says(here, clock):
    await put(here, key())
    found = here.registry.key("cyc_live_a")
    assert found.id == "key_1"
    assert here.registry.key("cyc_live_b") is None
    assert here.registry.status(found) == "ACTIVE"
    clock.now_ms += DAY_MS
    assert here.registry.status(found) == "EXPIRED"
    assert here.registry.status(replace(found, revoked_ms=1)) == "REVOKED"


@pytest.mark.parametrize(
    ("held", "wanted", "permitted"),
    [
        (["budgets:write"], "budgets:write", True),
        (["budgets:read"], "budgets:write", False),
        (["admin:write"], "budgets:write", True),
        (["admin:read"], "budgets:write", False),
        (["admin:read"], "balances:read", True),
        (["admin:write"], "reservations:create", False),
        ([], "reservations:create", False),
    ],
)
async def test_a_key_may_do_what_it_is_permitted(here, held, wanted, permitted):
    principal = Principal("default", "key_1", registered=key(permissions=held))
    if permitted:
        here.registry.require(principal, wanted)
    else:
        with pytest.raises(Refused, match=wanted) as refused:
            here.registry.require(principal, wanted)
        assert refused.value.problem.status == 403


async def test_a_restricted_key_acts_only_on_its_scopes(here):
    restricted = Principal("default", "k", registered=key(permissions=["reservations:create"], scope_filter=["workspace:eng"]))
    here.registry.require(restricted, "reservations:create", scope_of("tenant:default/workspace:eng"))
    with pytest.raises(Refused):
        here.registry.require(restricted, "reservations:create", scope_of("tenant:default"))


async def test_a_key_of_the_config_may_do_everything(here):
    here.registry.require(Principal("default", "ops"), "budgets:write", scope_of("tenant:default"))


# -- policies ---------------------------------------------------------------------------------------------------------------------


async def test_the_policy_with_the_highest_priority_has_the_say_over_each_thing(here):
    await put(here, policy(1, priority=1, caps={"max_tokens": 1}, overage="REJECT"))
    await put(here, policy(2, priority=2, caps={"max_tokens": 2}))
    await put(here, policy(3, priority=3, pattern="tenant:default/agent:*", caps={"max_tokens": 3}))
    governed = here.registry.governed(caller())
    assert (governed.caps, governed.overage) == ({"max_tokens": 2}, "REJECT")
    assert here.registry.caps_for(caller(agent="a")) == {"max_tokens": 3}
    assert here.registry.caps_for(Caller("other", "k", "r", "r")) is None


async def test_of_equal_ones_the_narrower_pattern_has_the_say(here):
    await put(here, policy(1, caps={"max_tokens": 1}))
    await put(here, policy(2, pattern="tenant:default/agent:a", caps={"max_tokens": 2}))
    assert here.registry.caps_for(caller(agent="a")) == {"max_tokens": 2}


async def test_a_policy_counts_while_it_is_active_and_in_its_time(here, clock):
    await put(here, policy(1, caps={"max_tokens": 1}, from_ms=NOW_MS + 10, until_ms=NOW_MS + 20))
    assert here.registry.caps_for(caller()) is None
    clock.now_ms += 10
    assert here.registry.caps_for(caller()) == {"max_tokens": 1}
    clock.now_ms += 10
    assert here.registry.caps_for(caller()) is None
    await put(here, policy(2, caps={"max_tokens": 2}, status="DISABLED"))
    assert here.registry.caps_for(caller()) is None


async def test_an_overage_is_a_policys_else_the_narrowest_budgets_else_the_tenants(here):
    assert here.registry.governed(caller()).overage is None
    await put(here, TenantDoc("default", "D", overage="REJECT"))
    assert here.registry.governed(caller()).overage == "REJECT"
    await put(here, budget(overage="ALLOW_IF_AVAILABLE"))
    await put(here, replace(budget("tenant:default/agent:a", overage="ALLOW_WITH_OVERDRAFT"), id="ldg_2"))
    assert here.registry.governed(caller()).overage == "ALLOW_IF_AVAILABLE"
    assert here.registry.governed(caller(agent="a")).overage == "ALLOW_WITH_OVERDRAFT"
    await put(here, policy(overage="REJECT"))
    assert here.registry.governed(caller(agent="a")).overage == "REJECT"


async def test_times_are_the_policys_else_the_tenants_else_the_protocols(here):
    def terms():
        governed = here.registry.governed(caller())
        return governed.ttl_ms, governed.max_ttl_ms, governed.max_extensions

    assert terms() == (60_000, 3_600_000, 10)
    await put(here, TenantDoc("default", "D", ttl_ms=5_000, max_extensions=0))
    assert terms() == (5_000, 3_600_000, 0)
    await put(here, policy(ttl={"max_ttl_ms": 7_000}))
    assert terms() == (5_000, 7_000, 0)


async def test_a_tenant_that_is_not_active_takes_no_calls(here):
    await put(here, TenantDoc("default", "D", status="SUSPENDED"))
    assert here.registry.grants.halted == {"default": "suspended"}


async def test_a_change_of_one_budget_leaves_the_grants_of_all_others_as_they_were_made(here):
    for scope in ("tenant:default", "tenant:default/agent:a"):
        await here.registry.change(BudgetDoc, f"budget {scope} usd", lambda _, scope=scope: budget(scope))
    wide, narrow = here.registry.grants_for(caller(agent="a"))
    await here.registry.change(BudgetDoc, "budget tenant:default/agent:a usd", lambda before: replace(before, overdraft=5))
    now_wide, now_narrow = here.registry.grants_for(caller(agent="a"))
    assert now_wide is wide
    assert (narrow.overdraft, now_narrow.overdraft) == (0, 5)
