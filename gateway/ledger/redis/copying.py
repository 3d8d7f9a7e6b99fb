"""A Redis ledger as neutral rows (`ledger.rows`), and back.

A dump reads in pages, so it holds up no call; a tenant that was changed meanwhile is read again, and after some tries the dump fails: of a
busy ledger there is none. A load writes what a tenant is known by last: one that was cut off is no ledger, and the next says what is in
its way.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import IO, Any, Final

import orjson

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Outcome
from gateway.core.windows import END_OF_TIME_MS
from gateway.ledger import rows
from gateway.ledger.contract import Frozen, HoldState, LedgerUnavailable, RunState
from gateway.ledger.packed import (
    NOTHING,
    account_of,
    ancestry_in,
    pack_closing,
    pack_record,
    packable_amounts,
    run_in,
    unpack_closing,
    unpack_record,
)
from gateway.ledger.redis.keeping import due
from gateway.ledger.redis.kept import (
    VERSION,
    KeptAccount,
    KeptCall,
    KeptMeta,
    KeptRun,
    keep_account,
    keep_amounts,
    keep_call,
    keep_memo,
    keep_meta,
    keep_run,
    read_account,
    read_call,
    read_memo,
    read_run,
)
from gateway.ledger.redis.keys import TENANTS, TenantKeys, as_text
from gateway.ledger.redis.lines import Lines, closing_of, closing_text, group_end, group_start, record_of, refusal_of
from gateway.ledger.redis.reading import day_spend, days, documents, frozen, kept_runs, read_act
from gateway.ledger.redis.resp import Argument
from gateway.ledger.redis.shapes import shared_until
from gateway.ledger.redis.slots import Slots, Tenant
from gateway.ledger.witness import Seen, new_epoch

_PAGE: Final = 500
_TRIES: Final = 5
_IN_MEMORY: Final = 8 * 1024 * 1024


async def dump(slots: Slots) -> AsyncIterator[Mapping[str, object]]:
    tenants = sorted(await slots.all(), key=lambda each: each.name)
    at_ms = (await due(slots, tenants[0], tenants[0].keys.leases, 0))[0] if tenants else 0
    yield rows.to_mapping(rows.Head(rows.FORMAT, at_ms))
    number = 1
    for tenant in tenants:
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
            await _dump_tenant(slots, tenant, file)
            file.seek(0)
            for row in rows.from_lines(file):
                yield row
                number += 1
    yield rows.to_mapping(rows.End(number))


async def _dump_tenant(slots: Slots, tenant: Tenant, file: IO[bytes]) -> None:
    """As of one instant: nothing changed between the first look and the last."""
    for _ in range(_TRIES):
        file.seek(0)
        file.truncate()
        at_ms, _ = await due(slots, tenant, tenant.keys.leases, 0)
        before = await slots.look(tenant.keys)
        async for row in _Dump(slots, tenant, at_ms).all():
            file.write(rows.to_line(rows.to_mapping(row)))
        if await slots.look(tenant.keys) == before:
            return
    raise LedgerUnavailable(f"tenant {tenant.name!r} is in use: it can be dumped once nothing changes it for a moment")


class _Dump:
    """One tenant's rows."""

    def __init__(self, slots: Slots, tenant: Tenant, at_ms: int) -> None:
        self._slots = slots
        self._tenant = tenant
        self._name = tenant.name
        self._keys = tenant.keys
        self._at_ms = at_ms

    async def all(self) -> AsyncIterator[rows.Row]:
        raises, _ = await kept_runs(self._slots, self._tenant, [])
        yield rows.Tenant(self._name, self._at_ms, raises)
        parts = (self._accounts, self._runs, self._calls, self._refusals, self._spend, self._acts, self._freezes)
        for part in (*parts, self._documents, self._memos):
            async for row in part():
                yield row

    async def _ask(self, *args: Argument) -> Any:
        return await self._slots.command(self._tenant, *args)

    async def _pages(self, listing: str) -> AsyncIterator[list[str]]:
        start = 0
        while page := await self._ask("ZRANGE", listing, start, start + _PAGE - 1):
            yield [member.decode("utf-8", "surrogatepass") for member in page]
            start += _PAGE

    async def _accounts(self) -> AsyncIterator[rows.Row]:
        keys = self._keys
        for listing in (keys.ends, keys.named):
            async for page in self._pages(listing):
                names = [member.partition(" ")[2] if listing == keys.named else member for member in page]
                for name, text in zip(names, await self._ask("MGET", *map(keys.account, names)), strict=True):
                    # One with a window that ends stands in both.
                    if text is not None and (listing == keys.ends or read_account(text).end_ms == END_OF_TIME_MS):
                        yield self._account(name, read_account(text))

    def _account(self, name: str, kept: KeptAccount) -> rows.AccountRow:
        window = account_of(self._name, name, kept.end_ms).window
        committed, unconfirmed = kept.committed, kept.unconfirmed
        buckets: list[tuple[int, int, int, int]] = []
        if window.span_ms:
            oldest = window.oldest_bucket(self._at_ms)
            buckets = [bucket for bucket in kept.buckets if bucket[0] >= oldest]
            committed, unconfirmed = sum(each[1] for each in buckets), sum(each[2] for each in buckets)
        return rows.AccountRow(
            *(self._name, name, kept.end_ms, committed, kept.reserved, unconfirmed, kept.carried, kept.adjusted, kept.alerted),
            *(kept.limit, tuple(buckets)),
        )

    async def _runs(self) -> AsyncIterator[rows.Row]:
        async for page in self._pages(self._keys.runs):
            _, kept = await kept_runs(self._slots, self._tenant, page)
            recents = await asyncio.gather(*[self._ask("LRANGE", self._keys.recent(run), 0, -1) for run in page])
            for run, each, recent in zip(page, kept, recents, strict=True):
                if each is not None:
                    yield self._run(run, each, recent)

    def _run(self, run: str, kept: KeptRun, recent: Sequence[bytes]) -> rows.Run:
        pairs = [each.decode().partition(" ") for each in reversed(recent)]
        return rows.Run(
            tenant=self._name,
            run=run,
            owner=kept.owner,
            first_ms=kept.first_ms,
            last_ms=kept.last_ms,
            state=kept.state,
            paused_no=kept.paused_no,
            paused_by=kept.paused_by,
            limit=kept.limit,
            raised=kept.raised,
            asked=kept.asked,
            committed=kept.committed,
            reserved=kept.reserved,
            unconfirmed=kept.unconfirmed,
            calls=kept.calls,
            latest=kept.latest or None,
            issued=kept.issued,
            placed=kept.placed,
            ancestry=kept.ancestry,
            recent=tuple([(tail, fingerprint) for tail, _, fingerprint in pairs]),
        )

    async def _calls(self) -> AsyncIterator[rows.Row]:
        keys = self._keys
        for listing in (keys.leases, keys.ended, keys.tombstones):
            async for page in self._pages(listing):
                for tail, text in zip(page, await self._ask("MGET", *map(keys.call, page)), strict=True):
                    if text is not None:
                        yield self._call(tail, read_call(text))

    def _call(self, tail: str, call: KeptCall) -> rows.CallRow:
        closing = closing_of(call)
        return rows.CallRow(
            *(self._name, tail, call.state, call.lease_ms if call.state is HoldState.LIVE else 0),
            orjson.loads(pack_record(record_of(self._name, call))) if call.lines else None,
            None if closing is None else orjson.loads(pack_closing(closing)),
        )

    async def _refusals(self) -> AsyncIterator[rows.Row]:
        keys = self._keys
        seen: set[str] = set()
        async for page in self._pages(keys.refused_at):
            for text in await self._ask("HMGET", keys.refused, *page):
                ring = orjson.loads(text)[0] if text is not None else ""
                if ring in seen or text is None:
                    continue
                seen.add(ring)
                tails = [tail.decode() for tail in reversed(await self._ask("LRANGE", keys.ring(ring), 0, -1))]
                texts = await self._ask("HMGET", keys.refused, *tails) if tails else []
                for number, (tail, each) in enumerate(zip(tails, texts, strict=True), 1):
                    if each is not None:
                        yield rows.Refused(self._name, ring, number, tail, orjson.loads(pack_record(refusal_of(each))))

    async def _spend(self) -> AsyncIterator[rows.Row]:
        for day in await days(self._slots, self._tenant):
            for group, spent in (await day_spend(self._slots, self._tenant, day)).items():
                owner, run, dimensions, model, provider = orjson.loads(group)
                amounts = [spent.of(unit) for unit in Unit]
                yield rows.Spend(self._name, day, owner, run, model, provider, dimensions, *amounts)

    async def _acts(self) -> AsyncIterator[rows.Row]:
        async for page in self._pages(self._keys.acts_order):
            for act_id, text in zip(page, await self._ask("HMGET", self._keys.acts, *page), strict=True):
                act = read_act(act_id, text)
                yield rows.ActRow(self._name, act.id, act.at_ms, act.who, act.act, act.what, act.why)

    async def _freezes(self) -> AsyncIterator[rows.Row]:
        for each in await frozen(self._slots, self._tenant):
            yield rows.FrozenRow(self._name, each.scope, each.at_ms, each.who, each.why)

    async def _documents(self) -> AsyncIterator[rows.Row]:
        told = await documents(self._slots, self._tenant, 0)
        for name, text in sorted(told.texts.items()) if told else ():
            yield rows.DocumentRow(self._name, name, text)

    async def _memos(self) -> AsyncIterator[rows.Row]:
        async for page in self._pages(self._keys.memos):
            for name, text in zip(page, await self._ask("MGET", *map(self._keys.memo, page)), strict=True):
                if text is not None:
                    yield rows.MemoRow(self._name, name, *read_memo(text))


# -- back -------------------------------------------------------------------------------------------------------------------------


async def load(slots: Slots, given: AsyncIterator[Mapping[str, object]]) -> int:
    present = await slots.all()
    if present:
        raise LedgerUnavailable(f"{slots.servers.url} is not empty (tenant {present[0].name!r}): {_ONLY_EMPTY}")
    number = 0
    loading: _Load | None = None
    async for row in rows.read_all(given):
        number += 1
        if isinstance(row, rows.Tenant | rows.End) and loading is not None:
            await loading.finish()
            loading = None
        if isinstance(row, rows.Tenant):
            loading = _Load(slots, row)
            await loading.check_empty()
        elif loading is not None:
            await loading.add(row)
    await slots.witness()
    return number


_ONLY_EMPTY: Final = "rows are loaded into an empty ledger only"


class _Load:
    """One tenant's keys, written a few hundred commands at a time."""

    def __init__(self, slots: Slots, row: rows.Tenant) -> None:
        self._slots = slots
        self._name = row.tenant
        self._raises = row.raises
        self._keys = TenantKeys(row.tenant)
        self._commands: list[tuple[Argument, ...]] = []
        self._acts = 0
        self._frozen = 0
        self._open: Counter[str] = Counter()  # live and expired holds, by run

    async def check_empty(self) -> None:
        """What a load that was cut off left shows in its lists."""
        keys = self._keys
        lists = (keys.meta, keys.runs, keys.ends, keys.named, keys.leases, keys.ended, keys.tombstones, keys.acts, keys.days)
        if await self._slots.servers.call(keys.meta, "EXISTS", *lists, keys.documents, keys.memos, idempotent=True):
            where = self._slots.servers.url
            raise LedgerUnavailable(f"{where} already has keys that start with {keys.prefix}: remove them; {_ONLY_EMPTY}")

    async def _flush(self) -> None:
        commands, self._commands = self._commands, []
        call, meta = self._slots.servers.call, self._keys.meta
        await asyncio.gather(*[call(meta, *command, idempotent=True, replicated=True) for command in commands])

    async def finish(self) -> None:
        """From here on it is a ledger."""
        await self._flush()
        keys, servers = self._keys, self._slots.servers
        for run, count in self._open.items():
            text = await servers.call(keys.meta, "GET", keys.run(run), idempotent=True)
            if text is not None:
                self._commands.append(("SET", keys.run(run), keep_run(read_run(text)._replace(open=count))))
        await self._flush()
        seen = Seen(new_epoch(), 1)
        meta = keep_meta(KeptMeta(seen.sequence, self._raises, self._frozen, self._acts, VERSION, seen.epoch))
        await servers.call(TENANTS, "SADD", TENANTS, self._name, idempotent=True, replicated=True)
        await servers.call(keys.meta, "SET", keys.meta, meta, idempotent=True, replicated=True)
        self._slots.known[self._name] = Tenant(self._name, seen)

    async def add(self, row: rows.Row) -> None:
        keys, commands = self._keys, self._commands
        if isinstance(row, rows.AccountRow):
            self._add_account(row)
        elif isinstance(row, rows.Run):
            self._add_run(row)
        elif isinstance(row, rows.CallRow):
            self._add_call(row)
        elif isinstance(row, rows.Refused):
            self._add_refusal(row)
        elif isinstance(row, rows.Spend):
            spent = Amounts(row.usd, row.tokens, row.calls, row.credits, row.risk_points)
            group = group_start(row.owner, row.run, tuple(row.dimensions.items())) + group_end(row.model, row.provider)
            commands.append(("HSET", keys.spend(row.day), group, keep_amounts(spent)))
            commands.append(("SADD", keys.days, row.day))
        elif isinstance(row, rows.ActRow):
            self._acts += 1
            text = f"{row.at_ms} ".encode() + orjson.dumps((row.who, row.act, row.what, row.why))
            commands.append(("HSET", keys.acts, row.id, text))
            commands.append(("ZADD", keys.acts_order, self._acts, row.id))
        elif isinstance(row, rows.FrozenRow):
            self._frozen += 1
            scope = Frozen(row.scope, row.at_ms, row.who, row.why).text
            commands.append(("ZADD", keys.frozen, 0, scope))
            commands.append(("HSET", keys.freezes, scope, f"{row.at_ms} ".encode() + orjson.dumps((row.scope, row.who, row.why))))
        elif isinstance(row, rows.DocumentRow):
            commands.append(("HSET", keys.documents, row.name, row.text))
            commands.append(("INCR", keys.documents_number))
        elif isinstance(row, rows.MemoRow):
            commands.append(("SET", keys.memo(row.name), keep_memo(row.text, row.until_ms)))
            commands.append(("ZADD", keys.memos, row.until_ms, row.name))
        if len(commands) >= _PAGE:
            await self._flush()

    def _add_account(self, row: rows.AccountRow) -> None:
        keys, commands = self._keys, self._commands
        account = account_of(self._name, row.key, row.end_ms)
        oldest = row.buckets[0][0] if row.buckets else None
        kept = KeptAccount(
            *(row.reserved, row.committed, row.unconfirmed, row.alerted, row.limit, row.end_ms, row.carried, row.adjusted),
            *(oldest, row.buckets),
        )
        commands.append(("SET", keys.account(row.key), keep_account(kept)))
        run = run_in(account.scope)
        if run:
            text = as_text(run)
            commands.append(("ZADD", keys.named, 0, f"{text} {row.key}"))
            until_ms = shared_until(run)
            if until_ms:
                commands.append(("ZADD", keys.shared, until_ms, text))
        if not run or row.end_ms < END_OF_TIME_MS:
            commands.append(("ZADD", keys.ends, row.end_ms, row.key))

    def _add_run(self, row: rows.Run) -> None:
        keys, commands = self._keys, self._commands
        state = RunState(row.state)
        kept = KeptRun(
            last_ms=row.last_ms,
            reserved=row.reserved,
            committed=row.committed,
            open=0,  # `finish` counts them
            calls=row.calls,
            first_ms=row.first_ms,
            paused_no=row.paused_no,
            limit=row.limit,
            asked=row.asked,
            unconfirmed=row.unconfirmed,
            state=state,
            raised=row.raised,
            issued=row.issued,
            placed=row.placed,
            owner=row.owner,
            paused_by=row.paused_by,
            ancestry=row.ancestry,
            latest=row.latest or "",
        )
        commands.append(("SET", keys.run(row.run), keep_run(kept)))
        commands.append(("ZADD", keys.runs, row.last_ms // 1000, row.run))
        commands.append(("ZADD", keys.owner(row.owner), row.last_ms // 1000, row.run))
        if row.placed and not row.issued and state is not RunState.STOPPED:
            commands.append(("ZADD", keys.active(row.owner), row.last_ms, row.run))
        if row.recent:
            commands.append(("LPUSH", keys.recent(row.run), *[f"{tail} {fingerprint}" for tail, fingerprint in row.recent]))

    def _add_call(self, row: rows.CallRow) -> None:
        keys, commands = self._keys, self._commands
        state = HoldState(row.state)
        closing = unpack_closing(None if row.closing is None else orjson.dumps(row.closing))
        ended_ms = 0 if closing is None else closing.at_ms
        used = b"" if closing is None else closing_text(closing.usage, closing.ending, closing.note)
        call = KeptCall(state, 0, NOTHING if closing is None else closing.charged, ended_ms, used)
        if row.record is None:
            commands.append(("SET", keys.call(row.tail), keep_call(call)))
            commands.append(("ZADD", keys.tombstones, ended_ms, row.tail))
            return
        record = unpack_record(self._name, orjson.dumps(row.record))
        inputs: dict[str, Any] = dict(record.inputs)
        inputs.pop("effective_max_output_tokens", None)
        input_tokens = [0] * len(inputs["ladder"])
        input_tokens[record.plan] = inputs.pop("input_tokens", 0)
        lines = Lines(record.charges)
        group = group_start(record.owner, record.run, record.dimensions) + group_end(record.selected_model, record.provider)
        call = call._replace(
            lease_ms=row.lease_ms if state is HoldState.LIVE else 0,
            at_ms=record.at_ms,
            warned=record.outcome == Outcome.ADVISORY_WARN,
            plan=record.plan,
            held=record.held,
            slices=record.slices,
            lapses=record.lapses,
            fingerprint=str(inputs.get("fingerprint", "")),
            ancestry=ancestry_in(record),
            lines=lines.text.encode(),
            names=lines.names.encode(),
            group=group.encode(),
            rest=orjson.dumps((record.requested_model, inputs, input_tokens)),
        )
        commands.append(("SET", keys.call(row.tail), keep_call(call)))
        if state is HoldState.LIVE:
            commands.append(("ZADD", keys.leases, row.lease_ms, row.tail))
        if record.lapses:
            commands.append(("ZADD", keys.lapsing, record.at_ms, row.tail))
        if state is HoldState.EXPIRED:
            commands.append(("ZADD", keys.expired, record.at_ms, row.tail))
        if state in (HoldState.LIVE, HoldState.EXPIRED):
            self._open[record.run] += 1
        if closing is not None:
            commands.append(("ZADD", keys.ended, closing.at_ms, row.tail))

    def _add_refusal(self, row: rows.Refused) -> None:
        keys = self._keys
        record = unpack_record(self._name, orjson.dumps(row.record))
        inputs = dict(record.inputs)
        why, blocking, accounts = inputs.pop("why"), _balances(inputs.pop("blocking")), _balances(inputs.pop("accounts"))
        held = packable_amounts(record.held)
        group = (record.owner, record.run, dict(record.dimensions), record.selected_model, record.provider)
        rest: tuple[object, ...] = (record.requested_model, inputs, [])
        self._commands += [
            ("HSET", keys.refused, row.tail, orjson.dumps((row.ring, record.at_ms, why, held, group, rest, blocking, accounts))),
            ("ZADD", keys.refused_at, record.at_ms, row.tail),
            ("LPUSH", keys.ring(row.ring), row.tail),
        ]


def _balances(told: Any) -> list[Any]:
    return [[each[name] for name in ("account", "limit", "committed", "reserved", "mode")] for each in told]
