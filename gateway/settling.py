"""One hold and its one end. Whatever happens to a call, its hold is committed, released, or left to its lease: once.

The ledger's steps are under way when the function that asks for them returns, so ending a hold needs no await, and a `finally` can
do it. `written` is the wait, and only decides when the client sees its last bytes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from gateway.core.scopes import Amounts
from gateway.core.values import Decision, Ending, Hold, Plan, Receipt, Usage, UsageSource
from gateway.core.windows import END_OF_TIME_MS
from gateway.ledger.contract import Alert, Debiting, HoldState, Ledger, LedgerLost, LedgerUnavailable, Settled, Settlement
from gateway.observer import Story
from gateway.settings import Settings


class Settling:
    """Made as soon as there is a hold. The first of `commit`, `release` and `leave` ends it; asking for another is a bug."""

    def __init__(self, ledger: Ledger, settings: Settings, alert: Callable[[Alert], None], hold: Hold, story: Story) -> None:
        self._ledger = ledger
        self._settings = settings
        self._alert = alert
        self.hold = hold  # grows by `widen`
        self.story = story
        self.balances = hold.balances  # as they stand: after the end those that the ledger answered
        self.charged: Amounts | None = None  # once the ledger has said so
        self.ended = False
        self._tenant = hold.decision.call.caller.tenant
        self._under_way = False  # the ledger has been asked to end it, and has not answered
        self._waiter: asyncio.Future[None] | None = None  # whoever waits for that
        self._lease_until_ms = hold.lease_until_ms
        self._lease_ms = settings.lease_of(hold.decision.call)
        story.held(hold)

    # -- its end --------------------------------------------------------------------------------------------------------------

    def commit(self, usage: Usage, cost: Amounts, ending: Ending) -> None:
        settlement = Settlement(cost, usage, ending)
        self._end(lambda: self._charge(settlement), usage, ending)

    def release(self, ending: Ending) -> None:
        self._end(lambda: self._give_back(ending), Usage(UsageSource.PROVIDER), ending)

    def leave(self, why: str) -> None:
        """Nobody can say whether it was billed: the hold stays, and is charged when its lease ends."""
        assert not self.ended, self.hold.id
        self.ended = True
        self.story.unsettled(Ending.UNKNOWN, why)

    def entrust(self) -> None:
        """The answer comes later: whoever asks for it settles the hold (see `stored`), else its lease ends it."""
        assert not self.ended, self.hold.id
        self.ended = True
        self.story.entrusted()

    def _charge(self, settlement: Settlement) -> Awaitable[object]:
        return self._ledger.commit(self._tenant, self.hold.id, settlement)

    def _give_back(self, ending: Ending) -> Awaitable[object]:
        return self._ledger.release(self._tenant, self.hold.id, ending)

    async def written(self) -> None:
        """Waits for the ledger, not for long, so that the run's next call sees the refund. Whatever fails, `_recorded` hears of it."""
        if not self._under_way:
            return
        # By hand: one wake-up where `asyncio.wait` has two, at a tenth of its cost.
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(self._settings.commit_wait_ms / 1000, self._wake)
        try:
            await waiter
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, ask: Callable[[], Awaitable[object]], usage: Usage, ending: Ending) -> None:
        assert not self.ended, self.hold.id
        self.ended = True
        began_s = time.perf_counter()
        try:
            step = asyncio.ensure_future(ask())
        except (LedgerUnavailable, LedgerLost) as failure:  # closed: it takes no more steps
            self._not_taken(ending, failure)
            return
        self._under_way = True
        step.add_done_callback(lambda done: self._recorded(done, usage, ending, time.perf_counter() - began_s))

    def _recorded(self, step: "asyncio.Future[object]", usage: Usage, ending: Ending, seconds: float) -> None:
        """The step's own end, whether or not anybody waited for it."""
        self._under_way = False
        self._wake()
        failure = None if step.cancelled() else step.exception()
        settled = None if step.cancelled() or failure is not None else step.result()
        if not isinstance(settled, Settled):
            self._not_taken(ending, failure)
            return
        self.balances = settled.balances or self.balances
        self.charged = settled.charged
        for alert in settled.alerts:
            self._alert(alert)
        self.story.settled(Receipt(self.hold, usage, settled.charged, ending, settled.balances), seconds)

    def _not_taken(self, ending: Ending, failure: BaseException | None) -> None:
        self.story.unsettled(ending, f"the ledger did not take the settlement: {failure!r}")

    def serve_by(self, plan: Plan) -> None:
        """Another provider serves the call, under the same hold."""
        self.hold = replace(self.hold, plan=plan)
        self.story.moved(self.hold)

    # -- while it lives -------------------------------------------------------------------------------------------------------

    async def widen(self, plan: Plan) -> bool:
        """Holds what the wider plan holds, in each account as much as it has of it; never less than is held. False: there is no room, or
        no ledger that says so, which may have taken it all the same: asked again, it holds no more for that."""
        slices = None if plan.slice is None else plan.slice.cost
        try:
            widened = await self._ledger.extend(self._tenant, self.hold.id, self._lease_ms, plan.held, slices)
        except (LedgerUnavailable, LedgerLost):
            return False
        if widened:
            self.hold = replace(self.hold, plan=plan)
        return widened

    def keep_lease(self, now_ms: int) -> None:
        """Extends the lease once a third of it has passed. Not waited for: a failure leaves two thirds to try again."""
        lease_ms = self._lease_ms
        if self.ended or now_ms < self._lease_until_ms - lease_ms * 2 // 3:
            return
        extended = asyncio.ensure_future(self._ledger.extend(self._tenant, self.hold.id, lease_ms))
        self._lease_until_ms = now_ms + lease_ms
        extended.add_done_callback(self._lease_kept)

    def _lease_kept(self, extended: "asyncio.Future[bool]") -> None:
        if extended.cancelled() or extended.exception() is not None:
            self._lease_until_ms = 0  # try again at the next turn


def beyond(wanted: Amounts, held: Amounts) -> Amounts:
    """What is missing, where anything is. It is the same call."""
    return Amounts(max(0, wanted.usd - held.usd), max(0, wanted.tokens - held.tokens), 0)


class Unheld(Settling):
    """A call that goes out while the ledger is away, because every budget it meets allows that. Nothing is held for it; what it cost is
    charged at its end, as a debit that the ledger takes whatever, now or when it is back. A gateway that is killed before forgets it."""

    def __init__(
        self, ledger: Ledger, settings: Settings, alert: Callable[[Alert], None], decision: Decision, story: Story
    ) -> None:
        requested = replace(decision, ladder=decision.ladder[:1])
        super().__init__(ledger, settings, alert, Hold(requested, decision.ladder[0], (), END_OF_TIME_MS), story)

    def leave(self, why: str) -> None:
        """There is no lease that would end: the worst case is charged now."""
        del why
        plan, choices = self.hold.plan, self.hold.decision.call.choices
        held = Usage(UsageSource.HELD, input_tokens=plan.input_tokens, output_tokens=plan.output_cap * choices)
        self.commit(held, plan.cost_max, Ending.UNKNOWN)

    def entrust(self) -> None:
        """Nor is there a hold that a later answer could settle."""
        self.leave("")

    async def widen(self, plan: Plan) -> bool:
        self.hold = replace(self.hold, plan=plan)
        return True

    def _charge(self, settlement: Settlement) -> Awaitable[object]:
        decision = replace(self.hold.decision, ladder=(self.hold.plan,))
        return self._ledger.debit(decision, settlement, Debiting.REPLAY)

    def _give_back(self, ending: Ending) -> Awaitable[object]:
        del ending
        nothing: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        nothing.set_result(Settled(HoldState.RELEASED, True, Amounts(0, 0, 0)))
        return nothing
