"""What reserve.lua and the short scripts are sent and what they answer. Most of what is sent is the same for every call of a run over the
same charges, and is put together once."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from struct import Struct, unpack
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import orjson

from gateway.core.scopes import Amounts, Caller
from gateway.core.values import Balance, Decision, Hold
from gateway.ledger.contract import Alert, Barred, Barrier, Ended, HoldState, Refusal, Reserved, Settled, Stale
from gateway.ledger.layout import places, windows_of
from gateway.ledger.redis.kept import LAPSES, keep_call_texts, keep_run_texts
from gateway.ledger.redis.keys import TenantKeys
from gateway.ledger.redis.lines import Lines, group_end, group_start, rest_of
from gateway.ledger.redis.packing import packed_numbers, packed_text, packed_texts
from gateway.ledger.redis.resp import bulk
from gateway.ledger.redis.scripts import Scripts
from gateway.ledger.states import STATES

# What the scripts answer.
LOST, DONE, UNKNOWN, AGAIN, HELD, REFUSED, BARRED, STALE, ENDED = range(9)
_AT_MOST: Final = 8_192
_SHARED: Final = "untagged/"  # how the value of `run` begins in accounts that calls without a run id share
DAY_MS: Final = 86_400_000


class Shape:
    """The calls of one caller over the same charges. Holds on to those, by whose identity it is known."""

    __slots__ = (
        *(
            "accounts",
            "after",
            "ancestry",
            "caller",
            "charges",
            "group",
            "held_long",
            "lines",
            "plain",
            "rare",
            "runs",
            "settled",
        ),
        *("texts", "usual", "windows"),
    )

    def __init__(self, keys: TenantKeys, decision: Decision) -> None:
        caller, terms = decision.call.caller, decision.terms
        charges = {id(plan.charges): plan.charges for plan in decision.ladder}
        self.charges = tuple(charges.values())
        self.windows = windows_of([charge for each in self.charges for charge in each])  # that of the first plan is not all
        self.texts = {identity: number for number, identity in enumerate(charges, 1)}
        self.lines = tuple([Lines(each) for each in self.charges])
        self.accounts = tuple([tuple([keys.account(key) for key in each.keys]) for each in self.lines])
        names = [caller.run, *caller.ancestry]
        self.runs = tuple([keys.run(name) for name in names])
        if caller.parent is not None and caller.parent not in names:
            names.append(caller.parent)
        run_limit = decision.call.directives.run_limit
        shared = caller.run_issued and caller.run_scope != caller.run
        self.ancestry = "/".join(caller.ancestry)
        # Short, as every reserve reads it: numbers where they are, false where there is none.
        self.caller = orjson.dumps(
            (
                *(caller.run_issued, -1 if run_limit is None else run_limit),
                *self.windows,
                *(-1 if terms.max_active is None else terms.max_active, terms.idle_ms, terms.same_request, terms.within_calls),
                *(self._offsets(), caller.parent or False, decision.lapses),
            )
        )
        self.rare = orjson.dumps((caller.run_scope, _values(caller), end_of_day(caller.run_scope) if shared else 0))
        self.group = group_start(caller.key, caller.run, caller.dimensions)
        # KEYS of reserve.lua behind the owner's runs; of settle.lua around the day's spend.
        self.after = (
            *(keys.recent(caller.run), keys.frozen, keys.refused, keys.refused_at, keys.ring(caller.run_scope), keys.ends),
            *(keys.named, keys.shared, keys.ended, keys.days),
        )
        lists = (keys.ends, keys.named, keys.shared)
        self.settled = (keys.recent(caller.run), keys.acts, keys.acts_order, *lists, *self.runs)
        self.plain: dict[tuple[str, str], Plain] = {}  # by model and provider of the first plan
        self.usual = len(names) == len(self.runs) and caller.parent in (None, *caller.ancestry[:1]) and self.lines[0].usual
        self.held_long = False  # the last call was refused: the next one may well be, so reserve.lua is asked at once
        if len(names) > len(self.runs):
            self.runs = (*self.runs, keys.run(names[-1]))

    def plain_of(self, scripts: Scripts, keys: TenantKeys, epoch: str, decision: Decision) -> "Plain | None":
        """None: it takes reserve.lua."""
        if not self.usual:
            return None
        plan = decision.ladder[0]
        plain = self.plain.get((plan.model, plan.provider))
        if plain is None:
            plain = self.plain[plan.model, plan.provider] = Plain(scripts, keys, epoch, self, decision)
        return plain

    def _offsets(self) -> list[int]:
        """Where each text's accounts start; then how many there are."""
        offsets = [0]
        for each in self.accounts:
            offsets.append(offsets[-1] + len(each))
        return offsets


class Known(NamedTuple):
    """What names the keys of a hold. All of it stays as it is for as long as the hold is on record."""

    lines: Lines
    day: int  # of its reserve
    runs: int
    around: tuple[str, ...]  # its keys behind the day's spend
    accounts: tuple[str, ...]
    plainly: "Plainly | None" = None  # None: commit.lua does not know how


class Plain:
    """The commands that the short scripts are called with, of calls of a shape whose first plan is by one model of one provider: all but
    what is each call's own is packed once."""

    __slots__ = ("_after_key", "_days", "_epoch", "_group", "_head", "_keys", "_names", "_scripts", "_shape", "_terms", "_texts")

    def __init__(self, scripts: Scripts, keys: TenantKeys, epoch: str, shape: Shape, decision: Decision) -> None:
        caller, rules, lines, plan = decision.call.caller, decision.terms, shape.lines[0], decision.ladder[0]
        run_limit = decision.call.directives.run_limit
        watched = rules.max_active is not None and not caller.run_issued
        self._scripts = scripts
        self._keys = keys
        self._epoch = epoch
        self._shape = shape
        self._names = names = (caller.run, *caller.ancestry)
        self._group = shape.group + group_end(plan.model, plan.provider)
        self._days: dict[int, Known] = {}
        texts = (*shape.runs, *shape.accounts[0])
        self._texts = 2 + len(texts)  # among KEYS
        recent = [keys.recent(caller.run)] if rules.same_request else []
        after = (*texts, keys.leases, keys.active(caller.owner), keys.runs, keys.owner(caller.owner), *recent)
        after += (keys.lapsing,) if decision.lapses else ()
        begins = [keep_run_texts(caller.owner, "", caller.ancestry[place:]) for place in range(len(names))]
        terms = packed_numbers(
            *(*shape.windows, -1 if run_limit is None else run_limit, caller.run_issued),
            *(
                rules.idle_ms if watched else -1,
                rules.same_request,
                rules.within_calls,
                LAPSES if decision.lapses else 0,
                len(names),
            ),
            *lines.to_hold(names),
        )
        record = keep_call_texts(lines.text, lines.names, caller.ancestry, self._group)
        self._head = _head(scripts.hold, keys.meta, len(after), 7)
        self._after_key = bulk(*after, epoch)
        self._terms = bulk(terms, packed_texts(*[text for pair in zip(begins, names, strict=True) for text in pair]), record)

    def hold(self, seen: int, decision: Decision, tail: str, lease_ms: int) -> bytes:
        plan = decision.ladder[0]
        held, first = plan.held, None if plan.slice is None else plan.slice.cost
        if first is None:
            numbers = _SIX.pack(seen, self._texts, lease_ms, held.usd, held.tokens, held.calls)
        else:
            numbers = packed_numbers(seen, self._texts, lease_ms, *places(held, first)[:6])
        fingerprint = decision.call.fingerprint
        texts = (packed_texts(fingerprint) if fingerprint else _EMPTY) + packed_text(rest_of(decision))
        key, name = self._keys.call(tail).encode(), tail.encode()
        own = (len(key), key, self._after_key, len(numbers), numbers, len(name), name, self._terms, len(texts), texts)
        return self._head + b"$%d\r\n%b\r\n%b$%d\r\n%b\r\n$%d\r\n%b\r\n%b$%d\r\n%b\r\n" % own

    def known(self, at_ms: int) -> "Known":
        """Of a hold that was made then."""
        day = at_ms // DAY_MS
        known = self._days.get(day)
        if known is None:
            keys, shape, names = self._keys, self._shape, self._names
            lines, accounts = shape.lines[0], shape.accounts[0]
            after = (*shape.runs, *accounts, keys.leases, keys.ended, keys.days, keys.spend(day))
            terms = packed_numbers(day, len(names), *lines.to_commit(names))
            head, after_key = _head(self._scripts.commit, keys.meta, len(after), 6), bulk(*after, self._epoch)
            plainly = Plainly(keys, self._texts, head, after_key, bulk(terms, self._group))
            known = Known(lines, day, len(names), shape.settled, accounts, plainly)
            self._days = {day: known}  # of the day before, nothing more is held
        return known


class Plainly(NamedTuple):
    """What commit.lua is sent of a hold."""

    keys: TenantKeys
    texts: int  # among KEYS
    head: bytes
    after_key: bytes
    terms: bytes

    def commit(self, seen: int, cost: Amounts, tail: str, closing: bytes) -> bytes:
        numbers = _FIVE.pack(seen, self.texts, cost.usd, cost.tokens, cost.calls)
        text = packed_text(closing)
        key, name = self.keys.call(tail).encode(), tail.encode()
        own = (len(key), key, self.after_key, len(numbers), numbers, len(name), name, self.terms, len(text), text)
        return self.head + b"$%d\r\n%b\r\n%b$%d\r\n%b\r\n$%d\r\n%b\r\n%b$%d\r\n%b\r\n" % own


def _head(sha: str, meta: str, keys: int, args: int) -> bytes:
    """An EVALSHA up to the call's key. `keys`: how many there are behind that. `args`: of the script."""
    return b"*%d\r\n%b" % (5 + keys + args, bulk("EVALSHA", sha, 2 + keys, meta))


_FIVE: Final = Struct("<5d")
_SIX: Final = Struct("<6d")
_EMPTY: Final = packed_texts("")


class Shapes:
    """The shapes of one tenant, as far as they are known. Only a hint: any can be made anew."""

    __slots__ = ("_keys", "_known")

    def __init__(self, keys: TenantKeys) -> None:
        self._keys = keys
        self._known: dict[object, Shape] = {}

    def of(self, decision: Decision) -> Shape:
        call = decision.call
        caller = call.caller
        known_by = (
            *(caller.key, caller.owned_by, caller.run, caller.run_scope, caller.run_issued, caller.dimensions),
            *(caller.parent, caller.ancestry),
            *(call.directives.run_limit, decision.terms, decision.lapses),
            *[id(plan.charges) for plan in decision.ladder],
        )
        shape = self._known.get(known_by)
        if shape is None:
            if len(self._known) >= _AT_MOST:
                self._known.clear()
            shape = self._known[known_by] = Shape(self._keys, decision)
        return shape


def _values(caller: Caller) -> str:
    """As frozen scopes are compared with: `,agent=a1,key=k1,run=r1,tenant=acme,`."""
    named = (*caller.dimensions, ("key", caller.key), ("run", caller.run_scope), ("tenant", caller.tenant))
    pairs = [f"{name}={quote(value, safe='', errors='surrogatepass')}" for name, value in named]
    return f",{','.join(pairs)},"


def end_of_day(run_scope: str) -> int:
    """Of a scope that calls without a run id share: its text ends with the day. Far away, where it does not."""
    try:
        midnight = date.fromisoformat(run_scope.rpartition("/")[2]) + timedelta(days=1)
    except ValueError:
        return 2**53
    return int(datetime(midnight.year, midnight.month, midnight.day, tzinfo=UTC).timestamp()) * 1000


def shared_until(run_scope: str) -> str | int:
    """The end of the day of a scope that calls without a run id share; "" of any other."""
    return end_of_day(run_scope) if run_scope.startswith(_SHARED) else ""


def plans_of(shape: Shape, decision: Decision) -> bytes:
    plans = []
    for plan in decision.ladder:
        held, first = plan.held, None if plan.slice is None else plan.slice.cost
        slices: tuple[int, ...] = () if first is None else (first.usd, first.tokens, first.calls)
        if held.credits or held.risk_points:
            slices = (*(slices or (False, False, False)), held.credits, held.risk_points)
        plans.append(
            (
                *(shape.texts[id(plan.charges)], held.usd, held.tokens, held.calls),
                *(_group_end(plan.model, plan.provider), *slices),
            )
        )
    return orjson.dumps(plans)


_group_end = lru_cache(maxsize=4_096)(group_end)


def arguments(shape: Shape, decision: Decision, tail: str, lease_ms: int, debit: bytes = b"") -> tuple[str | bytes | int, ...]:
    """ARGV of reserve.lua, from the third on."""
    call = decision.call
    args: list[str | bytes | int] = [
        *(tail, lease_ms, call.fingerprint, call.caller.owner, call.caller.run, shape.ancestry, shape.caller, shape.rare),
        *(rest_of(decision), debit, plans_of(shape, decision), shape.group),
    ]
    for each in shape.lines:
        args.append(each.text)
        args.append(each.names)
    return tuple(args)


# -- answers --------------------------------------------------------------------------------------------------------------------


def plainly_held(plain: Plain, lines: Lines, decision: Decision, reply: bytes) -> tuple[int, Known, Hold]:
    """Of hold.lua: the sequence, and the hold."""
    sequence, now_ms, lease_ms, *told = unpack(f"<{len(reply) // 8}q", reply)
    return sequence, plain.known(now_ms), Hold(decision, decision.ladder[0], lines.balances(told), lease_ms)


def plainly_settled(lines: Lines, cost: Amounts, reply: bytes) -> tuple[int, Settled]:
    """Of commit.lua: the sequence, and how it went."""
    sequence, *told = unpack(f"<{len(reply) // 8}q", reply)
    return sequence, Settled(HoldState.COMMITTED, True, cost, lines.balances(told))


def reserved(shape: Shape, decision: Decision, reply: Sequence[Any]) -> Reserved:
    code = reply[0]
    if code == HELD:
        plan = decision.ladder[reply[4] - 1]
        lines = shape.lines[shape.texts[id(plan.charges)] - 1]
        warnings = tuple([_balance(lines, *each) for each in reply[6]]) if reply[6] else ()
        return Hold(decision, plan, lines.balances(reply[5]), reply[3], warnings, len(reply) > 7)
    if code == ENDED:
        return Ended(STATES[reply[2]])
    return refused(shape, decision, reply)


def refused(shape: Shape, decision: Decision, reply: Sequence[Any]) -> Refusal | Barred | Stale:
    code = reply[0]
    if code == REFUSED:
        _, _, now_ms, paused, blocking, accounts = reply
        return Refusal(
            decision,
            tuple([_aging_balance(shape, *each) for each in blocking]),
            tuple([_aging_balance(shape, *each) for each in accounts]),
            now_ms,
            bool(paused),
        )
    if code == BARRED:
        what, owner = [each.decode("utf-8", "surrogatepass") for each in reply[3:5]]
        return Barred(decision, Barrier(reply[2].decode()), what, owner)
    assert code == STALE, reply
    place = reply[4].decode()
    return Stale(reply[2], reply[3].decode("utf-8", "surrogatepass"), tuple(place.split("/")) if place else ())


def settled(lines: Lines | None, reply: Sequence[Any]) -> Settled:
    """Of settle.lua's DONE, and a debit's. `lines` None: a tombstone."""
    _, _, state, changed, usd, tokens, calls, told, fired, *more = reply
    charged = Amounts(usd, tokens, calls, *more)
    if lines is None or not told:
        return Settled(STATES[state], bool(changed), charged)
    alerts = tuple([_alert(lines, *each) for each in fired]) if fired else ()
    return Settled(STATES[state], bool(changed), charged, lines.balances(told), alerts)


def _balance(lines: Lines, place: int, limit: int | None, committed: int, reserved: int, unconfirmed: int) -> Balance:
    ceiling = lines.charges[place - 1].ceiling
    return Balance(ceiling.account, limit, committed, reserved, unconfirmed, ceiling.mode)


def _aging_balance(
    shape: Shape, text: int, place: int, limit: int | None, committed: int, reserved: int, unconfirmed: int, aging: list[int]
) -> Balance:
    ceiling = shape.lines[text - 1].charges[place - 1].ceiling
    pairs = tuple(zip(aging[::2], aging[1::2], strict=True))
    return Balance(ceiling.account, limit, committed, reserved, unconfirmed, ceiling.mode, pairs)


def _alert(lines: Lines, place: int, threshold: int, limit: int, committed: int) -> Alert:
    return Alert(lines.charges[place - 1].ceiling.account, threshold, limit, committed)
