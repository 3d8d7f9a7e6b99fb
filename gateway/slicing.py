"""Keeps what is held of one stream ahead of its output, where some of its budgets hold slices (`core.slices` has the figures).

More is asked for while the stream goes on; only where the output has come to what is held is it waited for. So nothing is read from the
provider that is not held, but for what was on its way already.
"""

import asyncio
from dataclasses import replace

from gateway.core import estimate, slices
from gateway.core.catalog import Model
from gateway.core.meter import Meter
from gateway.core.scopes import Amounts
from gateway.core.values import Plan, Slice
from gateway.settling import Settling, beyond


class Slicing:
    """Of a stream whose plan has a slice."""

    def __init__(self, settling: Settling, meter: Meter, model: Model) -> None:
        self._settling = settling
        self._meter = meter
        self._model = model
        self._asking: asyncio.Task[bool] | None = None  # for more, ahead of need
        self._asks = True  # ahead of need: False once there was no room, until the output has come to what is held
        self._look_again()

    @property
    def whole(self) -> bool:
        """All that the plan allows is held: what comes beyond it is more than was asked for."""
        plan = self._settling.hold.plan
        return plan.slice is None or plan.slice.output_cap >= plan.output_cap

    async def covers(self) -> bool:
        """Whether what is held covers the output so far. Waits for more only where the output has come to what is held; False: there is no
        room."""
        return self.is_ahead() or await self._catch_up()

    def is_ahead(self) -> bool:
        """The same without a wait: False where there would be one. Called for every piece, before that is relayed. Asks for more where it is
        time to."""
        if self._asking is not None and self._asking.done():
            self._heard(self._asking)
        if self._asks and self._asking is None and not self._within(self._ask_from):
            self._asking = asyncio.create_task(self._ask())
        return self.whole or self._within(self._sure)

    async def _catch_up(self) -> bool:
        while not self.whole and not self._within(self._sure):
            granted = self._asking is not None and await self._answer(self._asking)
            if not granted:  # or not asked yet; others may have given back by now what was missing then
                self._asking = asyncio.create_task(self._ask())
                granted = await self._answer(self._asking)
            if not granted:
                return False
        return True

    async def _answer(self, asking: "asyncio.Task[bool]") -> bool:
        await asyncio.wait([asking])  # whoever waits may go: the asking goes on, until `end`
        return self._heard(asking)

    def end(self) -> None:
        """Nobody asks any more. What the ledger holds by then goes with the hold's end."""
        if self._asking is not None:
            self._asking.cancel()

    def missing(self) -> Plan:
        """What there was no room for beyond what was written: the smallest step, and only where slices are held."""
        wider, written = self._sliced(self._next_caps()[-1]), self._sliced(self._seen)
        assert wider.slice is not None
        assert written.slice is not None
        more = replace(wider.slice, cost=beyond(wider.slice.cost, written.slice.cost))
        return replace(wider, cost_max=Amounts(0, 0, 0), slice=more)

    def _within(self, tokens: int) -> bool:
        return not self._meter.unseen and self._meter.within(tokens)

    def _heard(self, asking: "asyncio.Task[bool]") -> bool:
        self._asking = None
        granted = self._asks = asking.result()
        self._look_again()
        return granted

    def _look_again(self) -> None:
        """After the slice has grown, or has not."""
        plan, choices = self._settling.hold.plan, self._settling.hold.decision.call.choices
        held = plan.output_cap if plan.slice is None else plan.slice.output_cap
        self._sure = slices.sure_of(held, plan.output_cap) * choices
        self._ask_from = slices.ask_from(self._meter.charged_tokens, self._sure)
        self._asks = self._asks and not self.whole

    async def _ask(self) -> bool:
        for cap in self._next_caps():
            if await self._settling.widen(self._sliced(cap)):
                return True
        return False

    def _next_caps(self) -> tuple[int, ...]:
        plan = self._settling.hold.plan
        assert plan.slice is not None
        if self._meter.unseen:  # what is not shown has no bound but the cap
            return (plan.output_cap,)
        return slices.caps_after(plan.slice.output_cap, self._seen, plan.output_cap)

    @property
    def _seen(self) -> int:
        """Per choice."""
        return -(-self._meter.charged_tokens // self._settling.hold.decision.call.choices)

    def _sliced(self, cap: int) -> Plan:
        plan, call = self._settling.hold.plan, self._settling.hold.decision.call
        if cap >= plan.output_cap:
            return replace(plan, slice=Slice(plan.output_cap, plan.cost_max))
        return replace(plan, slice=Slice(cap, estimate.worst_case(call, self._model, plan.input_tokens, cap)))
