"""What reserve.lua is sent and what it answers. Most of what is sent is the same for every call of a run over the same charges, and is put
together once."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

import orjson

from gateway.core.scopes import Caller
from gateway.core.values import Balance, Decision, Hold
from gateway.ledger.contract import Alert, Barred, Barrier, Ended, Refusal, Reserved, Settled, Stale
from gateway.ledger.layout import windows_of
from gateway.ledger.redis.keys import TenantKeys
from gateway.ledger.redis.lines import Lines, amounts_of, group_end, group_start, held_text, rest_of
from gateway.ledger.states import STATES

# What the scripts answer.
LOST, DONE, UNKNOWN, AGAIN, HELD, REFUSED, BARRED, STALE, ENDED = range(9)
_AT_MOST: Final = 8_192


class Shape:
    """The calls of one caller over the same charges. Holds on to those, by whose identity it is known."""

    __slots__ = ("accounts", "after", "ancestry", "caller", "charges", "group", "lines", "rare", "runs", "settled", "texts")

    def __init__(self, keys: TenantKeys, decision: Decision) -> None:
        caller, terms = decision.call.caller, decision.terms
        charges = {id(plan.charges): plan.charges for plan in decision.ladder}
        self.charges = tuple(charges.values())
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
                *windows_of([charge for each in self.charges for charge in each]),
                *(-1 if terms.max_active is None else terms.max_active, terms.idle_ms, terms.same_request, terms.within_calls),
                *(self._offsets(), caller.parent or False),
            )
        )
        scope_text = quote(caller.run_scope, safe="", errors="surrogatepass")
        self.rare = orjson.dumps((caller.run_scope, scope_text, _values(caller), end_of_day(caller.run_scope) if shared else 0))
        self.group = group_start(caller.key, caller.run, caller.dimensions)
        # KEYS of reserve.lua behind the owner's runs; of settle.lua around the day's spend.
        self.after = (
            *(keys.recent(caller.run), keys.frozen, keys.refused, keys.refused_at, keys.ring(caller.run_scope), keys.ends),
            *(keys.named, keys.shared, keys.ended, keys.days),
        )
        self.settled = (keys.recent(caller.run), keys.acts, keys.acts_order, *self.runs)
        if len(names) > len(self.runs):
            self.runs = (*self.runs, keys.run(names[-1]))

    def _offsets(self) -> list[int]:
        """Where each text's accounts start; then how many there are."""
        offsets = [0]
        for each in self.accounts:
            offsets.append(offsets[-1] + len(each))
        return offsets


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
            *(caller.key, caller.run, caller.run_scope, caller.run_issued, caller.dimensions, caller.parent, caller.ancestry),
            *(call.directives.run_limit, decision.terms),
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


def plans_of(shape: Shape, decision: Decision) -> bytes:
    plans = []
    for plan in decision.ladder:
        held, first = plan.held, None if plan.slice is None else plan.slice.cost
        slices = () if first is None else (first.usd, first.tokens, first.calls)
        plans.append(
            (
                *(shape.texts[id(plan.charges)], held.usd, held.tokens, held.calls, held_text(held, first)),
                *(_group_end(plan.model, plan.provider), *slices),
            )
        )
    return orjson.dumps(plans)


_group_end = lru_cache(maxsize=4_096)(group_end)


def arguments(shape: Shape, decision: Decision, tail: str, lease_ms: int, debit: bytes = b"") -> tuple[str | bytes | int, ...]:
    """ARGV of reserve.lua, from the third on."""
    call = decision.call
    args: list[str | bytes | int] = [
        *(tail, lease_ms, call.fingerprint, call.caller.key, call.caller.run, shape.ancestry, shape.caller, shape.rare),
        *(rest_of(decision), debit, plans_of(shape, decision), shape.group),
    ]
    for each in shape.lines:
        args.append(each.text)
        args.append(each.names)
    return tuple(args)


# -- answers --------------------------------------------------------------------------------------------------------------------


def reserved(shape: Shape, decision: Decision, reply: Sequence[Any]) -> Reserved:
    code = reply[0]
    if code == HELD:
        plan = decision.ladder[reply[4] - 1]
        lines = shape.lines[shape.texts[id(plan.charges)] - 1]
        warnings = tuple([_balance(lines, *each) for each in reply[6]]) if reply[6] else ()
        return Hold(decision, plan, lines.balances(reply[5]), reply[3], warnings)
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
        return Barred(decision, Barrier(reply[2].decode()), reply[3].decode("utf-8", "surrogatepass"))
    assert code == STALE, reply
    place = reply[4].decode()
    return Stale(reply[2], reply[3].decode("utf-8", "surrogatepass"), tuple(place.split("/")) if place else ())


def settled(lines: Lines | None, reply: Sequence[Any]) -> Settled:
    """Of settle.lua's DONE, and a debit's. `lines` None: a tombstone."""
    _, _, state, changed, usd, tokens, calls, told, fired, *_ = reply
    charged = amounts_of(b"%d %d %d" % (usd, tokens, calls))
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
