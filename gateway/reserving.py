"""One question to the ledger: may this decision's call be made? Whatever it answers with a hold has a `Settling` that ends it."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, TypeAlias

from gateway.admitting import admit, first_blocking, over_budget
from gateway.core.decide import Counts, Reach, Rulebook
from gateway.core.scopes import Caller
from gateway.core.values import Call, Decision, Hold, Plan
from gateway.ledger.contract import Barred, Ended, LedgerLost, LedgerUnavailable, Refusal, Stale
from gateway.ledger.journal import JournalFull
from gateway.observer import Story
from gateway.settling import Desk, Settling, Unheld
from gateway.wire.problem import Alternative, Refused, problem

_RUNS_AT_MOST: Final = 10_000  # whose place in their tree is remembered

Answer: TypeAlias = Settling | Refusal | Barred


class Reserving:
    """`new_id` makes the ids of decisions."""

    def __init__(self, desk: Desk, clock_ms: Callable[[], int], new_id: Callable[[], str]) -> None:
        self._desk = desk
        self._clock_ms = clock_ms
        self.new_id = new_id

    async def ask(self, story: Story, decision: Decision) -> Answer | Stale:
        """Refused, where there is no ledger to answer it, and a budget that minds."""
        ledger, settings = self._desk.ledger, self._desk.settings
        story.decided(decision)
        began_s = time.perf_counter()
        try:
            reserved = await ledger.reserve(decision, settings.lease_of(decision.call))
            if isinstance(reserved, Ended):  # an id that was used before: the next one was not
                decision = replace(decision, id=self.new_id())
                story.decided(decision)
                reserved = await ledger.reserve(decision, settings.lease_of(decision.call))
        except LedgerUnavailable as failure:
            allowed = all(charge.ceiling.outage_allow for charge in decision.ladder[0].charges)
            if allowed and not isinstance(failure, JournalFull):
                # Under an id of its own: what may have been held under the first is given back, and an id that has ended is not charged.
                decision = replace(decision, id=self.new_id())
                story.decided(decision)
                story.let_through(decision, str(failure))
                return Unheld(self._desk, decision, story)
            raise Refused(
                problem("ledger_unavailable", f"the ledger does not answer ({failure}): no call is let through")
            ) from failure
        except LedgerLost as failure:
            raise Refused(problem("ledger_lost", f"{failure}: no call is let through")) from failure
        story.reserved(time.perf_counter() - began_s)
        if isinstance(reserved, Hold):
            return Settling(self._desk, reserved, story)
        assert not isinstance(reserved, Ended), decision.id
        return reserved

    async def again(self, settling: Settling, plan: Plan) -> Settling | None:
        """A hold of its own for a call that goes on elsewhere; None: there is no room for it. As nothing is asked of the run anew, its
        rules for repeated requests don't count it twice."""
        decision = settling.hold.decision

        def decide(call: Call, at_ms: int) -> Decision:
            return replace(decision, id=self.new_id(), call=call, ladder=(plan,), at_ms=at_ms)

        try:
            call = replace(decision.call, fingerprint="")
            answer: Answer = await admit(call, self._clock_ms(), decide, partial(self.ask, settling.story))
        except Refused:
            return None
        return answer if isinstance(answer, Settling) else None


def no_room(rulebook: Rulebook, refusal: Refusal, reach: Reach, counts: Counts) -> Refused:
    """What a call is told that no account has room for, and what it could ask for instead."""

    def has_room(plan: Plan) -> bool:
        return first_blocking(plan, refusal.balances) is None

    others = rulebook.alternatives(refusal.decision, reach, has_room, counts)
    return over_budget(refusal, [Alternative.of(model, plan, has_room(plan)) for model, plan in others])


class Kin:
    """Whose child a run is, and which key's, as far as this process knows: a hint, which saves later calls of the run a second question."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}  # owner (its own key's or not: "") and ancestry

    def placed(self, caller: Caller) -> Caller:
        """The caller with its likely ancestry and owner. The ledger says if it is so."""
        owner, known = self._known.get((caller.tenant, caller.run), ("", ()))
        parent = caller.parent
        if parent is not None and known[:1] != (parent,):
            owner, above = self._known.get((caller.tenant, parent), ("", ()))
            known = (parent, *above)
        if caller.shares and owner not in ("", caller.key):
            return replace(caller, ancestry=known, owned_by=owner)
        return replace(caller, ancestry=known) if known else caller

    def learn(self, caller: Caller) -> None:
        """From a call that was let in. Roots need no place here, unless several keys share them."""
        if caller.ancestry or (caller.shares and not caller.run_issued):
            key = (caller.tenant, caller.run)
            self._known.pop(key, None)  # the latest goes last
            self._known[key] = (caller.owner if caller.shares else "", caller.ancestry)
            if len(self._known) > _RUNS_AT_MOST:
                del self._known[next(iter(self._known))]
