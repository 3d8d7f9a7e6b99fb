"""What each step does in each state of a hold, as histories: one row an event, its answer, and the account afterwards.

The account has a limit of 100. `committed 25` says what stands charged; `(again)` that this step changed nothing.
"""

from typing import Final

import pytest

from gateway.core.scopes import Amounts
from gateway.core.values import Decision, Ending, Hold
from gateway.ledger.contract import Ended, Ledger, Refusal, Settled
from tests.ledger.builders import LEASE_MS, TENANT, account, charge, decision, plan, settlement
from tests.support.clock import Clock

Row = tuple[str, str, int, int, int]  # event, answer, committed, reserved, unconfirmed

HISTORIES: Final[dict[str, tuple[Row, ...]]] = {
    "a commit replaces the hold by the cost": (
        ("reserve a 60", "held", 0, 60, 0),
        ("commit a 25", "committed 25", 25, 0, 0),
    ),
    "a cost above the hold is recorded, and above the limit too": (
        ("reserve a 60", "held", 0, 60, 0),
        ("commit a 130", "committed 130", 130, 0, 0),
        ("reserve b 1", "refused", 130, 0, 0),
        ("reserve c 0", "held", 130, 0, 0),
    ),
    "what does not fit is refused and changes nothing": (
        ("reserve a 60", "held", 0, 60, 0),
        ("reserve b 41", "refused", 0, 60, 0),
        ("reserve c 40", "held", 0, 100, 0),
        ("reserve d 1", "refused", 0, 100, 0),
    ),
    "a release gives everything back": (
        ("reserve a 100", "held", 0, 100, 0),
        ("release a", "released 0", 0, 0, 0),
        ("reserve b 100", "held", 0, 100, 0),
    ),
    "every step counts once": (
        ("reserve a 60", "held", 0, 60, 0),
        ("reserve a 60", "held", 0, 60, 0),
        ("commit a 25", "committed 25", 25, 0, 0),
        ("commit a 30", "committed 25 (again)", 25, 0, 0),
        ("release a", "committed 25 (again)", 25, 0, 0),
        ("extend a", "no", 25, 0, 0),
        ("reserve a 60", "ended committed", 25, 0, 0),
    ),
    "after a release nothing is charged": (
        ("reserve a 60", "held", 0, 60, 0),
        ("release a", "released 0", 0, 0, 0),
        ("release a", "released 0 (again)", 0, 0, 0),
        ("commit a 25", "released 0 (again)", 0, 0, 0),
        ("reserve a 60", "ended released", 0, 0, 0),
    ),
    "a release that comes before its reserve wins": (
        ("release a", "released 0", 0, 0, 0),
        ("reserve a 60", "ended released", 0, 0, 0),
        ("release a", "released 0 (again)", 0, 0, 0),
        ("commit a 10", "released 0 (again)", 0, 0, 0),
    ),
    "nothing is charged for a hold that never was": (
        ("commit a 10", "unknown", 0, 0, 0),
        ("settle a 10", "unknown", 0, 0, 0),
        ("extend a", "no", 0, 0, 0),
    ),
    "a hold whose lease ran out is charged in full until it is known better": (
        ("reserve a 60", "held", 0, 60, 0),
        ("wait 59999", "", 0, 60, 0),
        ("expire", "", 0, 60, 0),
        ("wait 1", "", 0, 60, 0),
        ("expire", "a 60", 60, 0, 60),
        ("expire", "", 60, 0, 60),
        ("reserve b 41", "refused", 60, 0, 60),
        ("commit a 25", "committed 25", 25, 0, 0),
        ("commit a 10", "committed 25 (again)", 25, 0, 0),
        ("release a", "committed 25 (again)", 25, 0, 0),
    ),
    "a late release takes an expired hold back, once": (
        ("reserve a 60", "held", 0, 60, 0),
        ("wait 60000", "", 0, 60, 0),
        ("expire", "a 60", 60, 0, 60),
        ("release a", "released 0", 0, 0, 0),
        ("commit a 25", "released 0 (again)", 0, 0, 0),
    ),
    "an expired hold may turn out dearer than it was": (
        ("reserve a 60", "held", 0, 60, 0),
        ("wait 60000", "", 0, 60, 0),
        ("expire", "a 60", 60, 0, 60),
        ("commit a 75", "committed 75", 75, 0, 0),
    ),
    "a lease that is extended ends later": (
        ("reserve a 60", "held", 0, 60, 0),
        ("wait 40000", "", 0, 60, 0),
        ("extend a", "yes", 0, 60, 0),
        ("wait 40000", "", 0, 60, 0),
        ("expire", "", 0, 60, 0),
        ("wait 20000", "", 0, 60, 0),
        ("expire", "a 60", 60, 0, 60),
        ("extend a", "no", 60, 0, 60),
    ),
    "a hold may grow while there is room, and settles as what it became": (
        ("reserve a 60", "held", 0, 60, 0),
        ("extend a 90", "yes", 0, 90, 0),
        ("extend a 101", "no", 0, 90, 0),
        ("extend a 100", "yes", 0, 100, 0),
        ("release a", "released 0", 0, 0, 0),
    ),
    "a hold that is asked to grow again has grown, and none becomes less": (
        ("reserve a 60", "held", 0, 60, 0),
        ("extend a 90", "yes", 0, 90, 0),
        ("extend a 90", "yes", 0, 90, 0),
        ("extend a 70", "yes", 0, 90, 0),
    ),
    "what has grown expires in full": (
        ("reserve a 60", "held", 0, 60, 0),
        ("extend a 90", "yes", 0, 90, 0),
        ("wait 60000", "", 0, 90, 0),
        ("expire", "a 90", 90, 0, 90),
        ("commit a 85", "committed 85", 85, 0, 0),
    ),
    "an operator settles what is unclear": (
        ("reserve a 60", "held", 0, 60, 0),
        ("reserve b 30", "held", 0, 90, 0),
        ("settle b 20", "committed 20", 20, 60, 0),
        ("wait 60000", "", 20, 60, 0),
        ("expire", "a 60", 80, 0, 60),
        ("settle a 50", "committed 50", 70, 0, 0),
        ("settle a 10", "committed 50 (again)", 70, 0, 0),
        ("settle a nothing", "committed 50 (again)", 70, 0, 0),
    ),
    "an operator gives back what was never billed": (
        ("reserve a 60", "held", 0, 60, 0),
        ("wait 60000", "", 0, 60, 0),
        ("expire", "a 60", 60, 0, 60),
        ("settle a nothing", "released 0", 0, 0, 0),
    ),
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
async def test_history(history: tuple[Row, ...], ledger: Ledger, clock: Clock) -> None:
    for event, answer, *sums in history:
        assert await _happen(event, ledger, clock) == answer, event
        (balance,) = await ledger.balances(TENANT, [account()])
        assert [balance.committed, balance.reserved, balance.unconfirmed] == sums, event
        view = await ledger.run(TENANT, "r1")
        if view is not None:
            assert [view.committed, view.reserved, view.unconfirmed] == sums, event
        rows = await ledger.spend(TENANT, (), clock.now_ms - LEASE_MS * 10, clock.now_ms + 1, None)
        assert sum(row.usd for row in rows) == sums[0], event


def _decided(name: str, usd: int) -> Decision:
    return decision(plan(charge(), usd=usd), decision_id=f"bdg_{name}")


async def _happen(event: str, ledger: Ledger, clock: Clock) -> str:
    verb, *rest = event.split()
    if verb == "wait":
        clock.now_ms += int(rest[0])
        return ""
    if verb == "expire":
        return " ".join(f"{each.hold_id.removeprefix('rsv_')} {each.charged.usd}" for each in await ledger.expire())
    hold_id = f"rsv_{rest[0]}"
    if verb == "reserve":
        answer = await ledger.reserve(_decided(rest[0], int(rest[1])), LEASE_MS)
        if isinstance(answer, Ended):
            return f"ended {answer.state}"
        assert isinstance(answer, Hold | Refusal)
        return "held" if isinstance(answer, Hold) else "refused"
    if verb == "extend":
        held = Amounts(int(rest[1]), 0, 0) if rest[1:] else None
        return "yes" if await ledger.extend(TENANT, hold_id, LEASE_MS, held) else "no"
    if verb == "commit":
        return _in_words(await ledger.commit(TENANT, hold_id, settlement(int(rest[1]))))
    if verb == "release":
        return _in_words(await ledger.release(TENANT, hold_id, Ending.NOT_SENT))
    assert verb == "settle"
    cost_usd = None if rest[1] == "nothing" else int(rest[1])
    return _in_words(await ledger.settle(TENANT, hold_id, cost_usd, "op", "the provider's bill"))


def _in_words(settled: Settled | None) -> str:
    if settled is None:
        return "unknown"
    return f"{settled.state} {settled.charged.usd}" + ("" if settled.changed else " (again)")
