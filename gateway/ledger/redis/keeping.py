"""What a Redis ledger need no longer keep. Found by age in sorted sets, removed by scripts that look once more, a thing at a time: no
command takes longer than one call's does."""

import asyncio
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

import orjson

from gateway.core.scopes import Account
from gateway.core.windows import END_OF_TIME_MS
from gateway.ledger.contract import CallRecord, Keep, LedgerUnavailable
from gateway.ledger.packed import account_of, run_in
from gateway.ledger.redis.lines import read_lines, run_of
from gateway.ledger.redis.reading import call_of, days, run_called, told
from gateway.ledger.redis.shapes import AGAIN
from gateway.ledger.redis.slots import Slots, Tenant

_DAY_MS: Final = 86_400_000


class Progress:
    """How far a sweep has passed by what is due but still of use. It starts again where it found no more."""

    def __init__(self) -> None:
        self.passed: dict[tuple[str, str], int] = {}


async def due(
    slots: Slots, tenant: Tenant, listing: str, at_most: int, age_ms: int = 0, unit_ms: int = 1, skip: int = 0
) -> tuple[int, list[tuple[int, str]]]:
    """The server's time, and (score, member) of what is that old in a sorted set, the oldest first."""
    reply = await slots.run(tenant, slots.scripts.due, (listing,), at_most, age_ms, unit_ms, skip)
    members = [member.decode("utf-8", "surrogatepass") for member in reply[3][::2]]
    return reply[2], [(int(score), member) for score, member in zip(reply[3][1::2], members, strict=True)]


# -- calls ------------------------------------------------------------------------------------------------------------------------


async def aged(slots: Slots, keep: Keep, at_most: int) -> list[CallRecord]:
    tenants = await slots.all()
    found = await asyncio.gather(*[due(slots, each, each.keys.ended, at_most, keep.records_ms) for each in tenants])
    oldest = [
        (at_ms, tenant.name, tail, tenant) for tenant, (_, pairs) in zip(tenants, found, strict=True) for at_ms, tail in pairs
    ]
    oldest.sort(key=lambda each: each[:3])
    oldest = oldest[:at_most]
    calls = await asyncio.gather(*[call_of(slots, tenant, tail) for _, _, tail, tenant in oldest])
    return [told(name, tail, call) for (_, name, tail, _), call in zip(oldest, calls, strict=True) if call and call.lines]


async def retire(slots: Slots, tenant: Tenant, decision_ids: Sequence[str], keep: Keep) -> int:
    tails = [decision_id.removeprefix("bdg_") for decision_id in dict.fromkeys(decision_ids)]
    return sum(await asyncio.gather(*[_retire(slots, tenant, tail, keep) for tail in tails]))


async def _retire(slots: Slots, tenant: Tenant, tail: str, keep: Keep) -> int:
    keys = tenant.keys
    call = await call_of(slots, tenant, tail)
    if call is None or not call.lines:
        return 0
    accounts = [keys.account(key) for key in read_lines(tenant.name, call.lines, call.names).keys]
    named = (keys.call(tail), keys.ended, keys.expired, keys.lapsing, keys.run(run_of(call.group)), *accounts)
    reply = await slots.run(tenant, slots.scripts.retire, named, tail, keep.records_ms)
    if reply[0] == AGAIN:
        raise LedgerUnavailable(f"rsv_{tail} is another call than it was a moment ago")
    return int(reply[2])


# -- all else ---------------------------------------------------------------------------------------------------------------------


async def sweep(slots: Slots, progress: Progress, keep: Keep, at_most: int) -> int:
    gone = 0
    for tenant in await slots.all():
        each = _Sweep(slots, progress, keep, tenant)
        for remove in (each.tombstones, each.refusals, each.accounts, each.runs, each.shared, each.spend, each.acts, each.memos):
            if gone < at_most:
                gone += await remove(at_most - gone)
    return gone


class _Sweep:
    """Of one tenant. Each method removes about so many things of a kind, and returns how many it did."""

    def __init__(self, slots: Slots, progress: Progress, keep: Keep, tenant: Tenant) -> None:
        self._slots = slots
        self._progress = progress
        self._keep = keep
        self._tenant = tenant
        self._keys = tenant.keys
        self._forget_ms = max(keep.runs_ms, keep.records_ms)

    async def _remove(self, what: str, keys: Sequence[str], *args: str | int) -> int:
        return int((await self._slots.run(self._tenant, self._slots.scripts.sweep, keys, what, *args))[2])

    async def tombstones(self, at_most: int) -> int:
        _, found = await due(self._slots, self._tenant, self._keys.tombstones, at_most, self._keep.records_ms)
        keys = self._keys
        return sum([await self._remove("tombstone", (keys.tombstones, keys.call(tail)), tail) for _, tail in found])

    async def refusals(self, at_most: int) -> int:
        keys, gone = self._keys, 0
        _, found = await due(self._slots, self._tenant, keys.refused_at, at_most, self._keep.records_ms)
        for _, tail in found:
            text = await self._slots.command(self._tenant, "HGET", keys.refused, tail)
            ring = keys.ring(orjson.loads(text)[0]) if text is not None else keys.refused
            gone += await self._remove("refusal", (keys.refused, keys.refused_at, ring), tail)
        return gone

    async def _passing(self, listing: str, at_most: int, age_ms: int, unit_ms: int = 1) -> list[tuple[int, str]]:
        passed = self._progress.passed
        where = (self._tenant.name, listing)
        _, found = await due(self._slots, self._tenant, listing, at_most, age_ms, unit_ms, passed.get(where, 0))
        if len(found) < at_most:
            passed.pop(where, None)
        return found

    def _pass_by(self, listing: str) -> None:
        where = (self._tenant.name, listing)
        self._progress.passed[where] = self._progress.passed.get(where, 0) + 1

    async def accounts(self, at_most: int) -> int:
        keys, gone = self._keys, 0
        found = await self._passing(keys.ends, at_most, self._keep.records_ms)
        for end_ms, key in found:
            account = account_of(self._tenant.name, key, end_ms)
            removed = await self._remove(
                "account", (keys.ends, keys.named, keys.account(key)), _named(account), key, account.window.bucket_ms or ""
            )
            gone += removed
            if not removed and len(found) == at_most:
                self._pass_by(keys.ends)
        return gone

    async def runs(self, at_most: int) -> int:
        keys, gone = self._keys, 0
        found = await self._passing(keys.runs, at_most, self._forget_ms, 1_000)
        now_ms = await self._now_ms() if found else 0
        for _, run in found:
            kept = await run_called(self._slots, self._tenant, run)
            removed = 0
            if kept is not None and kept.last_ms + self._forget_ms <= now_ms:
                text = quote(run, safe="", errors="surrogatepass")
                accounts, args = await self._accounts_of(text)
                listed = (keys.ends, keys.named, keys.runs, keys.owner(kept.owner), keys.active(kept.owner))
                named = (*listed, keys.run(run), keys.recent(run), *accounts)
                removed = await self._remove("run", named, run, kept.last_ms, kept.owner, text, *args)
            gone += removed
            if not removed and len(found) == at_most:
                self._pass_by(keys.runs)
        return gone

    async def _now_ms(self) -> int:
        return (await due(self._slots, self._tenant, self._keys.leases, 0))[0]

    async def shared(self, at_most: int) -> int:
        keys, gone = self._keys, 0
        found = await self._passing(keys.shared, at_most, self._forget_ms)
        for _, text in found:
            accounts, args = await self._accounts_of(text)
            removed = await self._remove("shared", (keys.ends, keys.named, keys.shared, *accounts), text, *args)
            gone += removed
            if not removed and len(found) == at_most:
                self._pass_by(keys.shared)
        return gone

    async def _accounts_of(self, text: str) -> tuple[list[str], list[str | int]]:
        """The accounts whose scope names a run: their keys, and what the script takes of each."""
        keys = self._keys
        members = await self._slots.command(self._tenant, "ZRANGEBYLEX", keys.named, f"[{text} ", f"({text}!")
        named: list[str] = []
        args: list[str | int] = []
        for member in members:
            key = member.decode().partition(" ")[2]
            named.append(keys.account(key))
            args += [key, account_of(self._tenant.name, key, END_OF_TIME_MS).window.bucket_ms or ""]
        return named, args

    async def spend(self, at_most: int) -> int:
        """Day by day: one day may be more than was asked for."""
        keys, gone = self._keys, 0
        oldest = (await self._now_ms() - self._keep.spend_ms - self._keep.records_ms) // _DAY_MS
        for day in await days(self._slots, self._tenant):
            if day < oldest and gone < at_most:
                gone += await self._remove("spend", (keys.days, keys.spend(day)), day)
        return gone

    async def acts(self, at_most: int) -> int:
        listed = (self._keys.acts, self._keys.acts_order)
        return await self._remove("acts", listed, self._keep.spend_ms, self._keep.acts_at_most, at_most)

    async def memos(self, at_most: int) -> int:
        _, found = await due(self._slots, self._tenant, self._keys.memos, at_most)
        keys = self._keys
        return sum([await self._remove("memo", (keys.memos, keys.memo(name)), name) for _, name in found])


def _named(account: Account) -> str:
    return quote(run_in(account.scope), safe="", errors="surrogatepass")
