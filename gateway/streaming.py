"""A streamed answer on its way from its provider to its client, metered as it passes (design: section 8).

Pieces are relayed from the connection's own callback (`_relay`), so that no task wakes for one. The task's turn comes where there is
something to wait for, and what follows waits with it, as does the provider:

    the client has yet to take what was written    until it has; one that takes nothing for too long has left
    more output than is held                       until more is held, or there is no room for it
    the last event                                 kept back until the call is settled
"""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Final

from gateway.admitting import first_blocking
from gateway.buffers import Buffers
from gateway.charging import Charging, output_held
from gateway.core import estimate
from gateway.core.values import Plan, Slice
from gateway.settling import Settling, beyond
from gateway.slicing import Slicing
from gateway.upstream import Answer, Unknown
from gateway.wire.dialect import Stream
from gateway.wire.exchange import ClientGone, Outlet
from gateway.wire.problem import Problem, budget_refusal, problem

# How much more to hold at once for a provider that ignores the output cap.
_MORE_OUTPUT_TOKENS: Final = 512
_FRAMING_END_S: Final = 0.05


class Streaming:
    """Of one answer by the provider `name`. `relay` it; where its client leaves meanwhile, `read_on`."""

    __slots__ = (
        "_answer",
        "_full",
        "_late",
        "_left",
        "_meter",
        "_model",
        "_name",
        "_output_held",
        "_settling",
        "_slicing",
        "cut",
        "rest",
        "stream",
    )

    def __init__(self, answer: Answer, stream: Stream, charging: Charging, settling: Settling, name: str) -> None:
        self._answer = answer
        self.stream = stream
        self._meter = charging.meter
        self._model = charging.model
        self._settling = settling
        self._name = name
        self._output_held = output_held(settling.hold)
        self._slicing = None
        if settling.hold.plan.slice is not None:
            self._slicing = Slicing(settling, charging.meter, charging.model)
        self._late = b""  # to be relayed at the task's turn
        self._full = False  # the client has yet to take what was written
        self._left = 0  # bytes that may still be read on
        self.cut: str | None = None  # the provider broke off, and how
        self.rest = b""  # what follows once the call is settled

    # -- to the client --------------------------------------------------------------------------------------------------------

    async def relay(self, outlet: Outlet, buffers: Buffers) -> bool:
        """All but the `rest`. False: the output passed what is held, and there is no room for more. ClientGone, also where the client takes
        too little for what it may leave in `buffers`."""
        stream = self.stream
        # Kept nowhere but here: the outlet knows the relay, which knows this. Memory that only the garbage collector can free is freed late.
        take = partial(self._relay, outlet)
        try:
            while not await self._answer.pour(take):
                covered = self._slicing is None or await self._slicing.covers()
                await self._make_up(outlet, buffers)
                if stream.done:
                    break
                if not stream.finished and not (covered and await self._has_room()):
                    return False
        except Unknown as failure:
            self.cut = str(failure)
        self.rest = stream.finish()
        if self.cut is None and stream.cut:
            self.cut = "the stream ended early"
        return True

    def _relay(self, outlet: Outlet, piece: bytes) -> bool:
        """Whether the next may come before the task's turn."""
        stream = self.stream
        relayed = stream.feed(piece)
        if not self._is_held():
            self._late = relayed
            return False
        if relayed and not outlet.put(relayed):
            self._full = True
            return False
        return not stream.done

    async def _make_up(self, outlet: Outlet, buffers: Buffers) -> None:
        """Relays what had to wait, and returns once the client has taken enough of all."""
        late, full = self._late, self._full
        self._late, self._full = b"", False
        if late:
            full = not outlet.put(late)
        if not full:
            return
        size = outlet.waiting
        if not buffers.take(size):
            outlet.drop()
            raise ClientGone
        try:
            await outlet.room()
        finally:
            buffers.give(size)

    async def end_badly(self, outlet: Outlet, ending: bytes) -> None:
        """So that the client can tell that this is not the whole. Where the answer's format has no such ending, as sound, it is cut."""
        if ending or self.stream.error_seen:
            await outlet.finish(ending)
        else:
            outlet.abort()

    async def read_out(self) -> None:
        """After the last event only the framing's end is due. It is waited for a moment, so that the connection can serve another call."""
        try:
            async with asyncio.timeout(_FRAMING_END_S):
                await self._answer.pour(lambda _: True)
        except (TimeoutError, Unknown):
            pass  # then the connection is closed instead of kept

    # -- more output than is held ---------------------------------------------------------------------------------------------

    def _is_held(self) -> bool:
        """Whether what is held covers the output so far, for all that can be said without waiting."""
        return (self._slicing is None or self._slicing.is_ahead()) and not self._meter.exceeds(self._output_held)

    async def _has_room(self) -> bool:
        """Whether the worst case covers the output so far. Where a provider ignores the cap, what it may write next is held first, or no
        room is left."""
        if not self._meter.exceeds(self._output_held):
            return True
        widened = await self._settling.widen(self._wider())
        self._output_held = output_held(self._settling.hold)
        return widened

    def _wider(self) -> Plan:
        plan, call = self._settling.hold.plan, self._settling.hold.decision.call
        seen = -(-self._meter.tokens_seen // call.choices)
        cap = max(plan.output_cap, seen) + _MORE_OUTPUT_TOKENS
        cost = estimate.worst_case(call, self._model, plan.input_tokens, cap)
        return replace(plan, output_cap=cap, cost_max=cost, slice=None if plan.slice is None else Slice(cap, cost))

    def no_more(self) -> Problem:
        """Why the answer was ended, once its call is settled."""
        plan, slicing = self._settling.hold.plan, self._slicing
        if slicing is not None and not slicing.whole:
            needed = slicing.missing()
            written = self._meter.charged_tokens
            what = f"The answer was ended after {written} tokens, as no budget is left to hold more of it"
        else:
            more = beyond(self._wider().cost_max, plan.cost_max)
            needed = replace(plan, cost_max=more, slice=None if plan.slice is None else replace(plan.slice, cost=more))
            what = (
                f"{self._name} wrote more than the {plan.output_cap} tokens it was asked for, and no budget is left to hold more"
            )
        blocking = first_blocking(needed, self._settling.balances)
        if blocking is None:  # there was none when it was asked; settling has made some
            return problem("run_ceiling_reached", f"{what}.")
        refusal = budget_refusal(self._settling.hold.decision, needed, blocking)
        return replace(refusal, detail=f"{what}. {refusal.detail}")

    # -- without its client ---------------------------------------------------------------------------------------------------

    async def read_on(self, most: int) -> None:
        """Meters what comes, `most` bytes of it at most. More of a slice is held for a client that left as for any; more than was asked
        for is not."""
        self._left = most
        try:
            while not await self._answer.pour(self._feed):
                covered = self._slicing is None or await self._slicing.covers()
                if self.stream.done or self._left < 0 or not covered or self._meter.exceeds(self._output_held):
                    return
        except Unknown:
            pass  # what was counted until here is charged
        self.stream.finish()

    def _feed(self, piece: bytes) -> bool:
        self.stream.feed(piece)
        self._left -= len(piece)
        return self._left >= 0 and not self.stream.done and self._is_held()

    def end(self) -> None:
        """Nothing more is asked for."""
        if self._slicing is not None:
            self._slicing.end()
