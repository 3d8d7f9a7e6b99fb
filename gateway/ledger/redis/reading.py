"""What a Redis ledger shows to readers. Nothing here changes anything, and nothing waits for a step.

What several commands read is not of one instant: a reader may see a run before a step and its account after it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import orjson

from gateway.core.scopes import NO_VALUE, Account, Caller
from gateway.core.values import Balance
from gateway.ledger.contract import AccountView, Act, Barrier, CallRecord, Frozen, RunState, RunView, SpendRow
from gateway.ledger.packed import account_of, call_record
from gateway.ledger.redis.lines import CALL_FIELDS, closing_of, record_of, refusal_of, run_of
from gateway.ledger.redis.slots import Slots, Tenant
from gateway.ledger.states import STATES
from gateway.ledger.telling import day_name, dearest_first, halting

_DAY_MS: Final = 86_400_000
_PAGE: Final = 500
STOPPED: Final = b"1"
PAUSED: Final = b"2"
# The fields of a run's hash: owner, first and last use, state, raises at its pause, who paused it, own limit, set by the admin, the last
# X-Run-Limit, committed, reserved, unconfirmed, calls, latest, issued, placed, ancestry, open holds.
RUN_FIELDS: Final = ("o", "f", "t", "s", "n", "b", "l", "x", "q", "c", "r", "u", "k", "g", "i", "p", "a", "h")


# A ledger's way to say how the accounts of a call stand: their effective limits are the scripts' to tell.
Standing: TypeAlias = Callable[[Tenant, str], Awaitable[tuple[Balance, ...]]]


async def run(slots: Slots, tenant: Tenant, name: str, standing: Standing) -> RunView | None:
    raises, (fields,) = await run_hashes(slots, tenant, [name])
    if fields["o"] is None:
        return None
    latest = fields["g"]
    accounts = await standing(tenant, latest.decode()) if latest else ()
    return _view(tenant.name, name, fields, raises, accounts)


async def run_hashes(slots: Slots, tenant: Tenant, names: Sequence[str]) -> tuple[int, list[dict[str, Any]]]:
    """How many raises there were, and the runs' hashes."""
    found = await slots.run(tenant, slots.scripts.runs, [tenant.keys.run(name) for name in names], *RUN_FIELDS)
    return found[2], [dict(zip(RUN_FIELDS, values, strict=True)) for values in found[3]]


def is_paused(fields: Mapping[str, Any], raises: int) -> bool:
    return fields["s"] == PAUSED and (not fields["n"] or int(fields["n"]) == raises)


def _view(tenant: str, name: str, fields: Mapping[str, Any], raises: int, accounts: tuple[Balance, ...] = ()) -> RunView:
    paused = is_paused(fields, raises)
    state = RunState.STOPPED if fields["s"] == STOPPED else RunState.PAUSED if paused else RunState.ACTIVE
    return RunView(
        tenant,
        name,
        fields["o"].decode(),
        state,
        None if fields["l"] is None else int(fields["l"]),
        fields["x"] == b"1",
        int(fields["c"] or 0),
        int(fields["r"] or 0),
        int(fields["u"] or 0),
        int(fields["k"] or 0),
        int(fields["f"]),
        int(fields["t"]),
        accounts,
        ancestry_of(fields["a"]),
        (fields["b"] or b"").decode() if paused else "",
    )


def ancestry_of(text: bytes | None) -> tuple[str, ...]:
    return tuple(text.decode().split("/")) if text else ()


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
        raises, hashes = await run_hashes(slots, tenant, page)
        found += [
            _view(tenant.name, name, each, raises) for name, each in zip(page, hashes, strict=True) if each["o"] is not None
        ]
    return found


async def record(slots: Slots, tenant: Tenant, decision_id: str) -> CallRecord | None:
    """A call that was refused once and held later under the same id shows as held."""
    tail = decision_id.removeprefix("bdg_")
    call = await call_hash(slots, tenant, tail)
    if "d" in call:
        return told(tenant.name, tail, call)
    text = await slots.command(tenant, "HGET", tenant.keys.refused, tail)
    return None if text is None else call_record(tenant.name, tail, None, refusal_of(text), None)


async def call_hash(slots: Slots, tenant: Tenant, tail: str) -> dict[str, bytes]:
    values = await slots.command(tenant, "HMGET", tenant.keys.call(tail), *CALL_FIELDS)
    return {name: value for name, value in zip(CALL_FIELDS, values, strict=True) if value is not None}


def told(tenant: str, tail: str, call: Mapping[str, bytes]) -> CallRecord:
    lease_ms = int(call.get("l", 0))
    return call_record(tenant, tail, STATES[int(call["s"])], record_of(tenant, call), closing_of(call), lease_ms)


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
    end_ms = await slots.command(tenant, "HGET", tenant.keys.account(key), "e")
    if end_ms is None:
        return None
    found = account_of(tenant.name, key, int(end_ms))
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


async def halted(slots: Slots, tenant: Tenant, callers: Sequence[Caller]) -> list[Barrier | None]:
    names = list({name for caller in callers for name in (caller.run, *caller.ancestry)})
    scopes = await frozen(slots, tenant)
    stopped = set()
    for start in range(0, len(names), _PAGE):
        page = names[start : start + _PAGE]
        _, _, _, states = await slots.run(tenant, slots.scripts.runs, [tenant.keys.run(name) for name in page], "s")
        stopped |= {name for name, (state,) in zip(page, states, strict=True) if state == STOPPED}

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
    """Of one run: looks through the tenant's open holds, a page at a time."""
    found: list[CallRecord] = []
    start = 0
    while len(found) < limit:
        tails = await slots.command(tenant, "ZRANGE", tenant.keys.open, start, start + _PAGE - 1)
        for tail, call in zip(
            tails, await asyncio.gather(*[call_hash(slots, tenant, tail.decode()) for tail in tails]), strict=True
        ):
            if "d" in call and (run is None or run_of(call["g"]) == run):
                found.append(told(tenant.name, tail.decode(), call))
        start += _PAGE
        if len(tails) < _PAGE:
            break
    return found[:limit]


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
                total = sums.setdefault(tuple([values.get(word, NO_VALUE) for word in by]), [0, 0, 0])
                for place, amount in enumerate(amounts.split()):
                    total[place] += int(amount)
    return dearest_first(sums)


async def days(slots: Slots, tenant: Tenant) -> list[int]:
    return sorted(map(int, await slots.command(tenant, "SMEMBERS", tenant.keys.days)))


async def day_spend(slots: Slots, tenant: Tenant, day: int) -> dict[bytes, bytes]:
    """Group → "usd tokens calls". In pages: a busy day has many."""
    found: dict[bytes, bytes] = {}
    cursor: Any = 0
    while True:
        cursor, page = await slots.command(tenant, "HSCAN", tenant.keys.spend(day), cursor, "COUNT", 1_000)
        found.update(zip(page[::2], page[1::2], strict=True))
        if int(cursor) == 0:
            return found
