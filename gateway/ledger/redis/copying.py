"""A Redis ledger as neutral rows (`ledger.rows`), and back.

A dump reads in pages, so it holds up no call; a tenant that was changed meanwhile is read again, and after some tries the dump fails: of a
busy ledger there is none. A load writes what a tenant is known by last: one that was cut off is no ledger, and the next says what is in
its way.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import IO, Any, Final
from urllib.parse import quote

import orjson

from gateway.core.values import Outcome
from gateway.core.windows import END_OF_TIME_MS
from gateway.ledger import rows
from gateway.ledger.contract import Frozen, HoldState, LedgerUnavailable, RunState
from gateway.ledger.packed import account_of, ancestry_in, pack_closing, pack_record, run_in, unpack_closing, unpack_record
from gateway.ledger.redis.keeping import due
from gateway.ledger.redis.keys import TENANTS, TenantKeys
from gateway.ledger.redis.lines import (
    NUMBERS,
    Lines,
    closing_of,
    closing_text,
    group_end,
    group_start,
    held_text,
    record_of,
    refusal_of,
    text_of,
)
from gateway.ledger.redis.reading import (
    PAUSED,
    STOPPED,
    ancestry_of,
    call_hash,
    day_spend,
    days,
    frozen,
    read_act,
    run_hashes,
)
from gateway.ledger.redis.resp import Argument
from gateway.ledger.redis.shapes import end_of_day
from gateway.ledger.redis.slots import Slots, Tenant
from gateway.ledger.states import STATES
from gateway.ledger.witness import Seen, new_epoch

_PAGE: Final = 500
_TRIES: Final = 5
_IN_MEMORY: Final = 8 * 1024 * 1024
_SHARED: Final = "untagged/"  # how the value of `run` begins in accounts that calls without a run id share
_STATES: Final = {STOPPED: RunState.STOPPED, PAUSED: RunState.PAUSED}
_STATE_TEXTS: Final = {RunState.ACTIVE: "0", RunState.STOPPED: "1", RunState.PAUSED: "2"}


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
        raises, _ = await run_hashes(self._slots, self._tenant, [])
        yield rows.Tenant(self._name, self._at_ms, raises)
        for part in (self._accounts, self._runs, self._calls, self._refusals, self._spend, self._acts, self._freezes):
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
                for name, pairs in zip(
                    names, await asyncio.gather(*[self._ask("HGETALL", keys.account(n)) for n in names]), strict=True
                ):
                    fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
                    # One with a window that ends stands in both.
                    if fields and (listing == keys.ends or int(fields[b"e"]) == END_OF_TIME_MS):
                        yield self._account(name, fields)

    def _account(self, name: str, fields: Mapping[bytes, bytes]) -> rows.AccountRow:
        end_ms = int(fields[b"e"])
        window = account_of(self._name, name, end_ms).window
        committed, reserved, unconfirmed, alerted = [int(fields.get(field, 0)) for field in (b"c", b"r", b"u", b"a")]
        buckets: list[tuple[int, int, int, int]] = []
        if window.span_ms:
            oldest = window.oldest_bucket(self._at_ms)
            for field, text in fields.items():
                if field[:1] == b"b" and int(field[1:]) >= oldest:
                    one, two, three = map(int, text.split())
                    buckets.append((int(field[1:]), one, two, three))
            buckets.sort()
            committed, unconfirmed = sum(each[1] for each in buckets), sum(each[2] for each in buckets)
        limit = fields.get(b"l")
        carried, adjusted = int(fields.get(b"f", 0)), int(fields.get(b"j", 0))
        return rows.AccountRow(
            *(self._name, name, end_ms, committed, reserved, unconfirmed, carried, adjusted, alerted),
            *(None if limit is None else int(limit), tuple(buckets)),
        )

    async def _runs(self) -> AsyncIterator[rows.Row]:
        async for page in self._pages(self._keys.runs):
            _, hashes = await run_hashes(self._slots, self._tenant, page)
            recents = await asyncio.gather(*[self._ask("LRANGE", self._keys.recent(run), 0, -1) for run in page])
            for run, fields, recent in zip(page, hashes, recents, strict=True):
                if fields["o"] is not None:
                    yield self._run(run, fields, recent)

    def _run(self, run: str, fields: Mapping[str, Any], recent: Sequence[bytes]) -> rows.Run:
        pairs = [each.decode().partition(" ") for each in reversed(recent)]
        return rows.Run(
            tenant=self._name,
            run=run,
            owner=fields["o"].decode(),
            first_ms=int(fields["f"]),
            last_ms=int(fields["t"]),
            state=_STATES.get(fields["s"], RunState.ACTIVE),
            paused_no=_number(fields["n"] or None),
            paused_by=(fields["b"] or b"").decode(),
            limit=_number(fields["l"]),
            raised=fields["x"] == b"1",
            asked=_number(fields["q"]),
            committed=int(fields["c"] or 0),
            reserved=int(fields["r"] or 0),
            unconfirmed=int(fields["u"] or 0),
            calls=int(fields["k"] or 0),
            latest=None if fields["g"] is None else fields["g"].decode(),
            issued=fields["i"] == b"1",
            placed=fields["p"] == b"1",
            ancestry=ancestry_of(fields["a"]),
            recent=tuple([(tail, fingerprint) for tail, _, fingerprint in pairs]),
        )

    async def _calls(self) -> AsyncIterator[rows.Row]:
        keys = self._keys
        for listing in (keys.open, keys.ended, keys.tombstones):
            async for page in self._pages(listing):
                calls = await asyncio.gather(*[call_hash(self._slots, self._tenant, tail) for tail in page])
                for tail, call in zip(page, calls, strict=True):
                    state = STATES[int(call["s"])] if call else None
                    if state is not None and (listing == keys.open or state is not HoldState.EXPIRED):  # those stand in two
                        yield self._call(tail, state, call)

    def _call(self, tail: str, state: HoldState, call: Mapping[str, bytes]) -> rows.CallRow:
        closing = closing_of(call)
        return rows.CallRow(
            *(self._name, tail, state, int(call["l"]) if state is HoldState.LIVE else 0),
            orjson.loads(pack_record(record_of(self._name, call))) if "d" in call else None,
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
            for group, amounts in (await day_spend(self._slots, self._tenant, day)).items():
                owner, run, dimensions, model, provider = orjson.loads(group)
                usd, tokens, calls = map(int, amounts.split())
                yield rows.Spend(self._name, day, owner, run, model, provider, dimensions, usd, tokens, calls)

    async def _acts(self) -> AsyncIterator[rows.Row]:
        async for page in self._pages(self._keys.acts_order):
            for act_id, text in zip(page, await self._ask("HMGET", self._keys.acts, *page), strict=True):
                act = read_act(act_id, text)
                yield rows.ActRow(self._name, act.id, act.at_ms, act.who, act.act, act.what, act.why)

    async def _freezes(self) -> AsyncIterator[rows.Row]:
        for each in await frozen(self._slots, self._tenant):
            yield rows.FrozenRow(self._name, each.scope, each.at_ms, each.who, each.why)


def _number(text: bytes | None) -> int | None:
    return None if text is None else int(text)


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

    async def check_empty(self) -> None:
        """What a load that was cut off left shows in its lists."""
        keys = self._keys
        lists = (keys.meta, keys.runs, keys.ends, keys.named, keys.open, keys.ended, keys.tombstones, keys.acts, keys.days)
        if await self._slots.servers.call(keys.meta, "EXISTS", *lists, idempotent=True):
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
        seen = Seen(new_epoch(), 1)
        fields = ("version", 1, "epoch", seen.epoch, "sequence", seen.sequence, "raises", self._raises)
        counted = ("acts", self._acts, "frozen", self._frozen)
        await servers.call(TENANTS, "SADD", TENANTS, self._name, idempotent=True, replicated=True)
        await servers.call(keys.meta, "HSET", keys.meta, *fields, *counted, idempotent=True, replicated=True)
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
            group = group_start(row.owner, row.run, tuple(row.dimensions.items())) + group_end(row.model, row.provider)
            commands.append(("HSET", keys.spend(row.day), group, f"{row.usd} {row.tokens} {row.calls}"))
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
        if len(commands) >= _PAGE:
            await self._flush()

    def _add_account(self, row: rows.AccountRow) -> None:
        keys, commands = self._keys, self._commands
        account = account_of(self._name, row.key, row.end_ms)
        fields: list[Argument] = ["c", row.committed, "r", row.reserved, "u", row.unconfirmed, "a", row.alerted, "e", row.end_ms]
        fields += ["f", row.carried, "j", row.adjusted]
        if row.limit is not None:
            fields += ["l", row.limit]
        if row.buckets:
            fields += ["o", row.buckets[0][0]]
        for index, committed, unconfirmed, carried in row.buckets:
            fields += [f"b{index}", f"{committed} {unconfirmed} {carried}"]
        commands.append(("HSET", keys.account(row.key), *fields))
        run = run_in(account.scope)
        if run:
            text = quote(run, safe="", errors="surrogatepass")
            commands.append(("ZADD", keys.named, 0, f"{text} {row.key}"))
            if run.startswith(_SHARED):
                commands.append(("ZADD", keys.shared, end_of_day(run), text))
        if not run or row.end_ms < END_OF_TIME_MS:
            commands.append(("ZADD", keys.ends, row.end_ms, row.key))

    def _add_run(self, row: rows.Run) -> None:
        keys, commands = self._keys, self._commands
        state = RunState(row.state)
        fields: list[Argument] = [
            *("o", row.owner, "f", row.first_ms, "t", row.last_ms, "s", _STATE_TEXTS[state]),
            *("n", "" if row.paused_no is None else row.paused_no, "b", row.paused_by, "x", int(row.raised)),
            *(
                "c",
                row.committed,
                "r",
                row.reserved,
                "u",
                row.unconfirmed,
                "k",
                row.calls,
                "i",
                int(row.issued),
                "p",
                int(row.placed),
            ),
            *("a", "/".join(row.ancestry)),
        ]
        for field, value in (("l", row.limit), ("q", row.asked), ("g", row.latest)):
            if value is not None:
                fields += [field, value]
        commands.append(("HSET", keys.run(row.run), *fields))
        commands.append(("ZADD", keys.runs, row.last_ms // 1000, row.run))
        commands.append(("ZADD", keys.owner(row.owner), row.last_ms // 1000, row.run))
        if row.placed and not row.issued and state is not RunState.STOPPED:
            commands.append(("ZADD", keys.active(row.owner), row.last_ms, row.run))
        if row.recent:
            commands.append(("LPUSH", keys.recent(row.run), *[f"{tail} {fingerprint}" for tail, fingerprint in row.recent]))

    def _add_call(self, row: rows.CallRow) -> None:
        keys, commands = self._keys, self._commands
        state = HoldState(row.state)
        fields: list[Argument] = ["s", NUMBERS[state]]
        closing = unpack_closing(None if row.closing is None else orjson.dumps(row.closing))
        if closing is not None:
            used = closing_text(closing.usage, closing.ending)
            fields += ["x", text_of(closing.charged), "e", used, "z", closing.at_ms]
        if row.record is None:
            commands.append(("HSET", keys.call(row.tail), *fields))
            commands.append(("ZADD", keys.tombstones, 0 if closing is None else closing.at_ms, row.tail))
            return
        record = unpack_record(self._name, orjson.dumps(row.record))
        inputs: dict[str, Any] = dict(record.inputs)
        inputs.pop("effective_max_output_tokens", None)
        input_tokens = [0] * len(inputs["ladder"])
        input_tokens[record.plan] = inputs.pop("input_tokens", 0)
        lines = Lines(record.charges)
        fields += [
            *("t", record.at_ms, "h", held_text(record.held, record.slices), "n", lines.text, "m", lines.names),
            *("g", group_start(record.owner, record.run, record.dimensions) + group_end(record.selected_model, record.provider)),
            *("d", orjson.dumps((record.requested_model, inputs, input_tokens))),
        ]
        said = {
            "f": str(inputs.get("fingerprint", "")),
            "p": record.plan or "",
            "w": "1" if record.outcome == Outcome.ADVISORY_WARN else "",
            "a": "/".join(ancestry_in(record)),
        }
        for field, value in said.items():
            if value != "":
                fields += [field, value]
        if state is HoldState.LIVE:
            fields += ["l", row.lease_ms]
            commands.append(("ZADD", keys.leases, row.lease_ms, row.tail))
        if state in (HoldState.LIVE, HoldState.EXPIRED):
            commands.append(("ZADD", keys.open, record.at_ms, row.tail))
            commands.append(("HINCRBY", keys.run(record.run), "h", 1))
        if closing is not None:
            commands.append(("ZADD", keys.ended, closing.at_ms, row.tail))
        commands.append(("HSET", keys.call(row.tail), *fields))

    def _add_refusal(self, row: rows.Refused) -> None:
        keys = self._keys
        record = unpack_record(self._name, orjson.dumps(row.record))
        inputs = dict(record.inputs)
        why, blocking, accounts = inputs.pop("why"), _balances(inputs.pop("blocking")), _balances(inputs.pop("accounts"))
        held = (record.held.usd, record.held.tokens, record.held.calls)
        group = (record.owner, record.run, dict(record.dimensions), record.selected_model, record.provider)
        rest: tuple[object, ...] = (record.requested_model, inputs, [])
        self._commands += [
            ("HSET", keys.refused, row.tail, orjson.dumps((row.ring, record.at_ms, why, held, group, rest, blocking, accounts))),
            ("ZADD", keys.refused_at, record.at_ms, row.tail),
            ("LPUSH", keys.ring(row.ring), row.tail),
        ]


def _balances(told: Any) -> list[Any]:
    return [[each[name] for name in ("account", "limit", "committed", "reserved", "mode")] for each in told]
