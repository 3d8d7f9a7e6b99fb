"""What readers of either store tell in the same way."""

from collections.abc import Collection, Mapping, Sequence
from datetime import date, timedelta

from gateway.core.scopes import Caller
from gateway.ledger.contract import Barrier, Frozen, SpendRow


def day_name(day: int) -> str:
    """Days since the epoch → "2026-11-22"."""
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()


def dearest_first(sums: Mapping[tuple[str, ...], Sequence[int]]) -> list[SpendRow]:
    """`sums`: usd, tokens, calls, credits and risk points by group. Groups that came to nothing are left out."""
    rows = [SpendRow(group, *total) for group, total in sums.items() if any(total)]
    return sorted(rows, key=lambda each: (-each.usd, -each.tokens, each.group))


def halting(caller: Caller, stopped: Collection[str], frozen: Sequence[Frozen]) -> Barrier | None:
    """What ends the caller's live calls. `stopped`: runs."""
    if any(run in stopped for run in (caller.run, *caller.ancestry)):
        return Barrier.STOPPED
    return Barrier.FROZEN if any(scope.takes(caller) for scope in frozen) else None
