"""One hold and its one end. Whatever happens to a call, its hold is committed, released, or left to its lease: once.

The ledger's steps are under way when the function that asks for them returns, so ending a hold needs no await, and a `finally` can
do it. `written` is the wait, and only decides when the client sees its last bytes.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace

from gateway.core.record import record
from gateway.core.scopes import Amounts
from gateway.core.values import Decision, Ending, Hold, Plan, Receipt, Usage, UsageSource
from gateway.core.windows import END_OF_TIME_MS
from gateway.ledger.contract import Alert, Debiting, HoldState, Ledger, LedgerLost, LedgerUnavailable, Settled, Settlement
from gateway.observer import Story
from gateway.settings import Settings


class Waits:
    """Whoever waits for the ledger, all of them for the same time at most: one timer serves them, where one each costs a tenth of a call."""

    __slots__ = ("_seconds", "_timer", "_waiting")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()  # in the order in which their time is up
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> "asyncio.Future[None]":
        """To be set when the wait is over; set here when its time is up."""
        loop, waiting = asyncio.get_running_loop(), self._waiting
        while waiting and waiting[0][1].done():
            waiting.popleft()
        waiter, until_s = loop.create_future(), loop.time() + self._seconds
        waiting.append((until_s, waiter))
        if self._timer is None:
            self._timer = loop.call_at(until_s, self._time_is_up)
        return waiter

    def _time_is_up(self) -> None:
        """For the first of them; and looks again when it is for the next."""
        self._timer = None
        loop, waiting = asyncio.get_running_loop(), self._waiting
        now_s = loop.time()
        while waiting and (waiting[0][1].done() or waiting[0][0] <= now_s):
            _, waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
        if waiting:
            self._timer = loop.call_at(waiting[0][0], self._time_is_up)


@record
class Desk:
    """What all settlings of a process share."""

    ledger: Ledger
    settings: Settings
    alert: Callable[[Alert], None]
    waits: Waits  # of `settings.commit_wait_ms`


class Settling:
    """Made as soon as there is a hold. The first of `commit`, `release` and `leave` ends it; asking for another is a bug."""

    __slots__ = (
        *(
            "_began_s",
            "_desk",
            "_ending",
            "_ledger",
            "_lease_ms",
            "_lease_until_ms",
            "_tenant",
            "_under_way",
            "_usage",
            "_waiter",
        ),
        *("balances", "charged", "ended", "hold", "hold_id", "story"),
    )

    def __init__(self, desk: Desk, hold: Hold, story: Story) -> None:
        call = hold.decision.call
        self._desk = desk
        self._ledger = desk.ledger
        self.hold = hold  # grows by `widen`
        self.hold_id = hold.id
        self.story = story
        self.balances = hold.balances  # as they stand: after the end those that the ledger answered
        self.charged: Amounts | None = None  # once the ledger has said so
        self.ended = False
        self._tenant = call.caller.tenant
        self._under_way = False  # the ledger has been asked to end it, and has not answered
        self._waiter: asyncio.Future[None] | None = None  # whoever waits for that
        self._lease_until_ms = hold.lease_until_ms
        self._lease_ms = desk.settings.lease_of(call)
        story.held(hold)

    # -- its end --------------------------------------------------------------------------------------------------------------

    def commit(self, usage: Usage, cost: Amounts, ending: Ending) -> None:
        self._end(usage, ending, Settlement(cost, usage, ending))

    def release(self, ending: Ending) -> None:
        self._end(Usage(UsageSource.PROVIDER), ending, None)

    def leave(self, why: str) -> None:
        """Nobody can say whether it was billed: the hold stays, and is charged when its lease ends."""
        assert not self.ended, self.hold_id
        self.ended = True
        self.story.unsettled(Ending.UNKNOWN, why)

    def entrust(self) -> None:
        """The answer comes later: whoever asks for it settles the hold (see `stored`), else its lease ends it."""
        assert not self.ended, self.hold_id
        self.ended = True
        self.story.entrusted()

    def _charge(self, settlement: Settlement) -> Awaitable[object]:
        return self._ledger.commit(self._tenant, self.hold_id, settlement)

    def _give_back(self, ending: Ending) -> Awaitable[object]:
        return self._ledger.release(self._tenant, self.hold_id, ending)

    async def written(self) -> None:
        """Waits for the ledger, not for long, so that the run's next call sees the refund. Whatever fails, `_recorded` hears of it."""
        if not self._under_way:
            return
        # By hand: one wake-up where `asyncio.wait` has two, at a tenth of its cost.
        self._waiter = self._desk.waits.begin()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, usage: Usage, ending: Ending, settlement: Settlement | None) -> None:
        """None: nothing is charged."""
        assert not self.ended, self.hold_id
        self.ended = True
        self._usage, self._ending = usage, ending
        self._began_s = time.perf_counter()
        try:
            asked = self._give_back(ending) if settlement is None else self._charge(settlement)
            step = asked if isinstance(asked, asyncio.Future) else asyncio.ensure_future(asked)
        except (LedgerUnavailable, LedgerLost) as failure:  # closed: it takes no more steps
            self._not_taken(failure)
            return
        self._under_way = True
        step.add_done_callback(self._recorded)

    def _recorded(self, step: "asyncio.Future[object]") -> None:
        """The step's own end, whether or not anybody waited for it."""
        seconds = time.perf_counter() - self._began_s
        self._under_way = False
        self._wake()
        failure = None if step.cancelled() else step.exception()
        settled = None if step.cancelled() or failure is not None else step.result()
        if not isinstance(settled, Settled):
            self._not_taken(failure)
            return
        self.balances = settled.balances or self.balances
        self.charged = settled.charged
        for alert in settled.alerts:
            self._desk.alert(alert)
        self.story.settled(Receipt(self.hold, self._usage, settled.charged, self._ending, settled.balances), seconds)

    def _not_taken(self, failure: BaseException | None) -> None:
        self.story.unsettled(self._ending, f"the ledger did not take the settlement: {failure!r}")

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
            widened = await self._ledger.extend(self._tenant, self.hold_id, self._lease_ms, plan.held, slices)
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
        extended = asyncio.ensure_future(self._ledger.extend(self._tenant, self.hold_id, lease_ms))
        self._lease_until_ms = now_ms + lease_ms
        extended.add_done_callback(self._lease_kept)

    def _lease_kept(self, extended: "asyncio.Future[bool]") -> None:
        if extended.cancelled() or extended.exception() is not None:
            self._lease_until_ms = 0  # try again at the next turn


def beyond(wanted: Amounts, held: Amounts) -> Amounts:
    """What is missing, where anything is. It is the same call."""
    usd, tokens = max(0, wanted.usd - held.usd), max(0, wanted.tokens - held.tokens)
    return Amounts(usd, tokens, 0, max(0, wanted.credits - held.credits), max(0, wanted.risk_points - held.risk_points))


class Unheld(Settling):
    """A call that goes out while the ledger is away, because every budget it meets allows that. Nothing is held for it; what it cost is
    charged at its end, as a debit that the ledger takes whatever, now or when it is back. A gateway that is killed before forgets it."""

    __slots__ = ()

    def __init__(self, desk: Desk, decision: Decision, story: Story) -> None:
        requested = replace(decision, ladder=decision.ladder[:1])
        super().__init__(desk, Hold(requested, decision.ladder[0], (), END_OF_TIME_MS), story)

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
