"""Ledger records as the JSON that callers and operators read: USD as decimal strings, times in RFC 3339, UTC."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypeAlias

from gateway.asks import Ask
from gateway.core.money import format_usd
from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Balance, Mode, Usage
from gateway.core.windows import Window, WindowKind
from gateway.ledger.contract import AccountView, Act, CallRecord, Frozen, HoldState, RunState, RunView, Settled

Json: TypeAlias = dict[str, object]

_NUMBER: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)

# Of an account's line among a decision's inputs: amounts in the account's unit.
_AMOUNTS: Final = frozenset({"held", "limit", "committed", "reserved", "margin"})
BY_BUDGET: Final = "budget"  # who paused a run that nobody paused: a budget with `on_exhausted: pause`


def instant(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def tightest_usd(balances: Sequence[Balance]) -> str | None:
    """What is left in the tightest account in USD; None where nothing limits USD."""
    left = [each.remaining for each in balances if each.account.unit is Unit.USD and each.remaining is not None]
    return format_usd(min(left)) if left else None


def amount(value: int | None, unit: Unit) -> str | int | None:
    """USD as a decimal string, all else as numbers."""
    return format_usd(value) if value is not None and unit is Unit.USD else value


def ceiling_of(view: RunView) -> Balance | None:
    """The run's own ceiling as its latest call met it: the tightest enforced lifetime account in USD that counts this run. A call
    without a run id shares one; without its own, a run shows that."""
    enforced = [
        balance
        for balance in view.accounts
        if [name for name, _ in balance.account.scope] == ["run"]
        and balance.account.unit is Unit.USD
        and balance.account.window.kind is WindowKind.LIFETIME
        and balance.limit is not None
        and balance.mode is not Mode.ADVISORY_ESTIMATE
    ]
    own = [balance for balance in enforced if balance.account.scope == (("run", view.run),)]
    return min(own or enforced, key=lambda balance: (balance.limit or 0, balance.remaining or 0), default=None)


def run_json(view: RunView) -> Json:
    ceiling = ceiling_of(view)
    if ceiling is not None:
        limit, remaining = ceiling.limit, ceiling.remaining
    else:
        limit = view.limit
        remaining = None if limit is None else max(0, limit - view.committed - view.reserved)
    return {
        "run_id": view.run,
        "key": view.owner,
        "state": view.state.value,
        "paused_by": (view.paused_by or BY_BUDGET) if view.state is RunState.PAUSED else None,
        "parent": view.ancestry[0] if view.ancestry else None,
        "ancestry": list(view.ancestry),
        "limit_usd": amount(limit, Unit.USD),
        "committed_usd": format_usd(view.committed),
        "reserved_usd": format_usd(view.reserved),
        "remaining_usd": amount(remaining, Unit.USD),
        "unconfirmed_usd": format_usd(view.unconfirmed),
        "calls": view.calls,
        "first_at": instant(view.first_ms),
        "last_at": instant(view.last_ms),
        "accounts": [account_json(balance) for balance in view.accounts],
    }


def ask_json(ask: Ask | None) -> Json | None:
    if ask is None:
        return None
    return {
        "run_id": ask.run,
        "key": ask.owner,
        "unit": ask.unit.value,
        "amount": amount(ask.amount, ask.unit),
        "reason": ask.reason,
        "at": instant(ask.at_ms),
        "account": ask.account or None,
        "limit": amount(ask.limit, ask.unit),
    }


def account_json(balance: Balance) -> Json:
    return {**_balance_json(balance), "mode": balance.mode.value}


def account_view_json(view: AccountView) -> Json:
    """An account by itself: `limit` is the one stored with it, null where the policy's counts. What is the mode, only the policy knows."""
    unit = view.balance.account.unit
    return {
        **_balance_json(view.balance),
        "carried": amount(view.carried, unit),
        "adjusted": amount(view.adjusted, unit),
    }


def _balance_json(balance: Balance) -> Json:
    account = balance.account
    unit = account.unit
    return {
        "account": account.key,
        "name": account.name,
        "scope": account.scope_name,
        "scope_values": dict(account.scope),
        **_window_json(account.window),
        "unit": unit.value,
        "limit": amount(balance.limit, unit),
        "committed": amount(balance.committed, unit),
        "reserved": amount(balance.reserved, unit),
        "remaining": amount(balance.remaining, unit),
        "unconfirmed": amount(balance.unconfirmed, unit),
    }


def _window_json(window: Window) -> Json:
    """A lifetime has no beginning, and a rolling window moves on all the time."""
    if window.kind in (WindowKind.LIFETIME, WindowKind.ROLLING):
        return {"window": window.name, "timezone": None, "window_starts": None, "window_ends": None}
    return {
        "window": window.name,
        "timezone": window.timezone,
        "window_starts": instant(window.start_ms),
        "window_ends": instant(window.end_ms),
    }


def record_json(record: CallRecord) -> Json:
    """One call: what was decided and why, and what became of it. `state` of a refused call is `refused`."""
    return {
        "decision_id": record.decision_id,
        "reservation_id": None if record.state is None else record.hold_id,
        "run_id": record.run,
        "key": record.owner,
        "at": instant(record.at_ms),
        "outcome": record.outcome,
        "state": "refused" if record.state is None else record.state.value,
        "requested_model": record.requested_model,
        "selected_model": record.selected_model,
        "provider": record.provider,
        "held_usd": None if record.state is None else format_usd(record.held.usd),
        "held_tokens": None if record.state is None else record.held.tokens,
        **(more_json("held", record.held) if record.state is not None else {}),
        **_charged_json(record.charged),
        "usage": None if record.usage is None else _usage_json(record.usage),
        "ending": record.ending,
        "expires_at": expiry(record),
        **({"lapses": True} if record.lapses else {}),
        "dimensions": dict(record.dimensions),
        "lines": [_line_json(key, held) for key, held in record.lines],
        "inputs": inputs_json(record.inputs),
    }


def expiry(record: CallRecord) -> str | None:
    """When a live hold is charged in full, or lapses, unless it ends before."""
    return instant(record.lease_until_ms) if record.state is HoldState.LIVE else None


def settled_json(hold_id: str, settled: Settled) -> Json:
    """`changed` is false where the hold had ended before: what it was charged then stands."""
    return {
        "reservation_id": hold_id,
        "state": settled.state.value,
        "changed": settled.changed,
        **_charged_json(settled.charged),
    }


def frozen_json(frozen: Frozen) -> Json:
    return {"scope": dict(frozen.scope), "at": instant(frozen.at_ms), "who": frozen.who, "reason": frozen.why}


def act_json(act: Act) -> Json:
    """`what` is a run, an account, a scope or a hold; an amount that the act was about stands beside it."""
    what, _, number = act.what.partition(" ")  # what stands before is an id, a key or a scope's text: without spaces
    changed = int(number) if _NUMBER.fullmatch(number) else None
    return {
        "id": act.id,
        "at": instant(act.at_ms),
        "who": act.who,
        "act": act.act,
        "what": what,
        "amount": amount(changed, _unit_of(what) if "|" in what else Unit.USD),
        "reason": act.why,
    }


def _charged_json(charged: Amounts | None) -> Json:
    if charged is None:
        return {"charged_usd": None, "charged_tokens": None}
    return {"charged_usd": format_usd(charged.usd), "charged_tokens": charged.tokens, **more_json("charged", charged)}


def more_json(verb: str, amounts: Amounts | None) -> Json:
    """`held_credits`, `charged_risk_points`: only where there are any, as no call of a model has."""
    if amounts is None:
        return {}
    told = {f"{verb}_credits": amounts.credits, f"{verb}_risk_points": amounts.risk_points}
    return {name: each for name, each in told.items() if each}


def _usage_json(usage: Usage) -> Json:
    return {
        "source": usage.source.value,
        "input_tokens": usage.input_tokens,
        "cached_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        # Of classes that few calls have, and what is billed by the piece: the names of `core.measures`.
        "others": dict(usage.others),
    }


def _line_json(key: str, held: int) -> Json:
    unit = _unit_of(key)
    return {"account": key, "unit": unit.value, "held": amount(held, unit)}


def inputs_json(inputs: Mapping[str, object]) -> Json:
    """The ledger keeps integers; a reader gets USD as everywhere else."""
    return {name: _input(name, value) for name, value in inputs.items()}


def _input(name: str, value: object) -> object:
    if isinstance(value, Mapping):
        account = value.get("account")
        unit = _unit_of(account) if isinstance(account, str) else None
        return {
            inner: amount(given, unit) if unit is not None and inner in _AMOUNTS else _input(inner, given)
            for inner, given in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_input(name, each) for each in value]
    if isinstance(value, int) and (name.endswith("_usd") or name == "run_limit"):
        return format_usd(value)
    return value


def _unit_of(account_key: str) -> Unit:
    return Unit(account_key.rpartition("|")[2])
