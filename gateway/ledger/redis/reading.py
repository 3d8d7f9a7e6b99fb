"""What a Redis ledger shows to readers. Nothing here changes anything, and nothing waits for a step.

What several commands read is not of one instant: a reader may see a run before a step and its account after it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import orjson

from gateway.core.scopes import NO_VALUE, Account, Amounts, Caller, Unit
from gateway.core.values import Balance
from gateway.ledger.contract import AccountView, Act, Barrier, CallRecord, Documents, Frozen, RunState, RunView, SpendRow
from gateway.ledger.packed import account_of, call_record
from gateway.ledger.redis.kept import KeptCall, KeptRun, read_account, read_amounts, read_call, read_run
from gateway.ledger.redis.lines import closing_of, record_of, refusal_of, run_of
from gateway.ledger.redis.slots import Slots, Tenant
from gateway.ledger.telling import day_name, dearest_first, halting

_DAY_MS: Final = 86_400_000
_PAGE: Final = 500

# A ledger's way to say how the accounts of a call stand: their effective limits are the scripts' to tell.
Standing: TypeAlias = Callable[[Tenant, str], Awaitable[tuple[Balance, ...]]]


async def run(slots: Slots, tenant: Tenant, name: str, standing: Standing) -> RunView | None:
    raises, (kept,) = await kept_runs(slots, tenant, [name])
    if kept is None:
        return None
    accounts = await standing(tenant, kept.latest) if kept.latest else ()
    return _view(tenant.name, name, kept, raises, accounts)


async def kept_runs(slots: Slots, tenant: Tenant, names: Sequence[str]) -> tuple[int, list[KeptRun | None]]:
    """How many raises there were, and the runs."""
    found = await slots.run(tenant, slots.scripts.runs, [tenant.keys.run(name) for name in names])
    return found[2], [None if text is None else read_run(text) for text in found[3]]


def _view(tenant: str, name: str, run: KeptRun, raises: int, accounts: tuple[Balance, ...] = ()) -> RunView:
    paused = run.is_paused(raises)
    state = run.state if paused or run.state is not RunState.PAUSED else RunState.ACTIVE
    return RunView(
        *(tenant, name, run.owner, state, run.limit, run.raised, run.committed, run.reserved, run.unconfirmed, run.calls),
        *(run.first_ms, run.last_ms, accounts, run.ancestry, run.paused_by if paused else ""),
    )


async def run_called(slots: Slots, tenant: Tenant, name: str) -> KeptRun | None:
    text = await slots.command(tenant, "GET", tenant.keys.run(name))
    return None if text is None else read_run(text)


async def runs(slots: Slots, tenant: Tenant, owner: str | None, limit: int, before: str | None) -> list[RunView]:
    keys = tenant.keys
    listing = keys.runs if owner is None else keys.owner(owner)
    start = 0
    if before is not None:
        rank = await slots.command(tenant, "ZREVRANK", listing, before)
        if rank is None:
            return []
        start = rank + 1
    names = [name.decode() for name in await slots.command(tenant, "ZREVRANGE", listing, start, start + limit - 1)]
    found = []
    for at in range(0, len(names), _PAGE):
        page = names[at : at + _PAGE]
        raises, kept = await kept_runs(slots, tenant, page)
        found += [_view(tenant.name, name, each, raises) for name, each in zip(page, kept, strict=True) if each is not None]
    return found


async def record(slots: Slots, tenant: Tenant, decision_id: str) -> CallRecord | None:
    """A call that was refused once and held later under the same id shows as held."""
    tail = decision_id.removeprefix("bdg_")
    call = await call_of(slots, tenant, tail)
    if call is not None and call.lines:
        return told(tenant.name, tail, call)
    text = await slots.command(tenant, "HGET", tenant.keys.refused, tail)
    return None if text is None else call_record(tenant.name, tail, None, refusal_of(text), None)


async def call_of(slots: Slots, tenant: Tenant, tail: str) -> KeptCall | None:
    text = await slots.command(tenant, "GET", tenant.keys.call(tail))
    return None if text is None else read_call(text)


def told(tenant: str, tail: str, call: KeptCall) -> CallRecord:
    return call_record(tenant, tail, call.state, record_of(tenant, call), closing_of(call), call.lease_ms)


async def balances(slots: Slots, tenant: Tenant, accounts: Sequence[Account]) -> list[Balance]:
    found = []
    for start in range(0, len(accounts), _PAGE):
        page = accounts[start : start + _PAGE]
        for account in page:
            assert account.tenant == tenant.name, account
        for account, (committed, reserved, unconfirmed, *_) in zip(page, await _look(slots, tenant, page), strict=True):
            found.append(Balance(account, None, committed, reserved, unconfirmed))
    return found


async def _look(slots: Slots, tenant: Tenant, accounts: Sequence[Account]) -> Any:
    named = [tenant.keys.account(account.key) for account in accounts]
    buckets = [account.window.bucket_ms or "" for account in accounts]
    return (await slots.run(tenant, slots.scripts.balances, named, *buckets))[2]


async def account(slots: Slots, tenant: Tenant, key: str) -> AccountView | None:
    text = await slots.command(tenant, "GET", tenant.keys.account(key))
    if text is None:
        return None
    found = account_of(tenant.name, key, read_account(text).end_ms)
    ((committed, reserved, unconfirmed, limit, carried, adjusted, _),) = await _look(slots, tenant, [found])
    return AccountView(Balance(found, limit, committed, reserved, unconfirmed), carried, adjusted)


async def frozen(slots: Slots, tenant: Tenant) -> list[Frozen]:
    texts, values = await asyncio.gather(
        slots.command(tenant, "ZRANGE", tenant.keys.frozen, 0, -1), slots.command(tenant, "HGETALL", tenant.keys.freezes)
    )
    kept = dict(zip(values[::2], values[1::2], strict=True))
    found = []
    for text in texts:
        if text in kept:
            at_ms, _, rest = kept[text].partition(b" ")
            scope, who, why = orjson.loads(rest)
            found.append(Frozen(tuple([(name, value) for name, value in scope]), int(at_ms), who, why))
    return found


async def documents(slots: Slots, tenant: Tenant, known: int) -> Documents | None:
    keys = tenant.keys
    reply = await slots.run(tenant, slots.scripts.documents, (keys.documents, keys.documents_number), known)
    if reply[3] is None:
        return None
    told = [each.decode() for each in reply[3]]
    return Documents(reply[2], dict(zip(told[::2], told[1::2], strict=True)))


async def halted(slots: Slots, tenant: Tenant, callers: Sequence[Caller]) -> list[Barrier | None]:
    names = list({name for caller in callers for name in (caller.run, *caller.ancestry)})
    scopes = await frozen(slots, tenant)
    stopped = set()
    for start in range(0, len(names), _PAGE):
        page = names[start : start + _PAGE]
        _, kept = await kept_runs(slots, tenant, page)
        stopped |= {name for name, each in zip(page, kept, strict=True) if each is not None and each.state is RunState.STOPPED}
    return [halting(caller, stopped, scopes) for caller in callers]


async def acts(slots: Slots, tenant: Tenant, limit: int, before: str | None) -> list[Act]:
    keys = tenant.keys
    start = 0
    if before is not None:
        rank = await slots.command(tenant, "ZREVRANK", keys.acts_order, before)
        if rank is None:
            return []
        start = rank + 1
    ids = await slots.command(tenant, "ZREVRANGE", keys.acts_order, start, start + limit - 1)
    texts = await slots.command(tenant, "HMGET", keys.acts, *ids) if ids else []
    return [read_act(each.decode(), text) for each, text in zip(ids, texts, strict=True)]


def read_act(act_id: str, text: bytes) -> Act:
    at_ms, _, rest = text.partition(b" ")
    who, act, what, why = orjson.loads(rest)
    return Act(act_id, int(at_ms), who, act, what, why)


async def holds(slots: Slots, tenant: Tenant, run: str | None, limit: int) -> list[CallRecord]:
    """Looks at all of the tenant's open holds, since no list has them in their order."""
    tails: list[str] = []
    for listing in (tenant.keys.leases, tenant.keys.expired):
        tails += [tail.decode() for tail in await slots.command(tenant, "ZRANGE", listing, 0, -1)]
    found: list[tuple[int, str, KeptCall]] = []
    for start in range(0, len(tails), _PAGE):
        page = tails[start : start + _PAGE]
        for tail, call in zip(page, await asyncio.gather(*[call_of(slots, tenant, tail) for tail in page]), strict=True):
            if call is not None and call.lines and (run is None or run_of(call.group) == run):
                found.append((call.at_ms, tail, call))
    return [told(tenant.name, tail, call) for _, tail, call in sorted(found)[:limit]]


async def leases(slots: Slots, tenant: Tenant, limit: int, before: str | None) -> list[CallRecord]:
    listing, start = tenant.keys.lapsing, 0
    if before is not None:
        rank = await slots.command(tenant, "ZREVRANK", listing, before.removeprefix("bdg_"))
        if rank is None:
            return []
        start = rank + 1
    tails = [tail.decode() for tail in await slots.command(tenant, "ZREVRANGE", listing, start, start + limit - 1)]
    calls = await asyncio.gather(*[call_of(slots, tenant, tail) for tail in tails])
    return [told(tenant.name, tail, call) for tail, call in zip(tails, calls, strict=True) if call and call.lines]


async def spend(slots: Slots, tenant: Tenant, by: Sequence[str], from_ms: int, to_ms: int, owner: str | None) -> list[SpendRow]:
    first, last = from_ms // _DAY_MS, (to_ms - 1) // _DAY_MS
    sums: dict[tuple[str, ...], list[int]] = {}
    for day in await days(slots, tenant):
        if not first <= day <= last:
            continue
        for text, amounts in (await day_spend(slots, tenant, day)).items():
            key, run_, dimensions, model, provider = orjson.loads(text)
            if owner in (None, key):
                values = dimensions | {"key": key, "run": run_, "model": model, "provider": provider, "day": day_name(day)}
                total = sums.setdefault(tuple([values.get(word, NO_VALUE) for word in by]), [0] * len(Unit))
                for place, unit in enumerate(Unit):
                    total[place] += amounts.of(unit)
    return dearest_first(sums)


async def days(slots: Slots, tenant: Tenant) -> list[int]:
    return sorted(map(int, await slots.command(tenant, "SMEMBERS", tenant.keys.days)))


async def day_spend(slots: Slots, tenant: Tenant, day: int) -> dict[bytes, Amounts]:
    """By group. In pages: a busy day has many."""
    found: dict[bytes, Amounts] = {}
    cursor: Any = 0
    while True:
        cursor, page = await slots.command(tenant, "HSCAN", tenant.keys.spend(day), cursor, "COUNT", 1_000)
        found.update(zip(page[::2], map(read_amounts, page[1::2]), strict=True))
        if int(cursor) == 0:
            return found
