"""One held call at the provider: opens it, relays it through the meter, and settles it however it ends (design: section 8).

What makes it safe: the ledger's steps are under way when the function that asks for them returns, so settling needs no await, and
`finally` alone keeps the promise that a hold ends once. The waits that remain only decide when the client sees its last bytes.

    phase      what is known                            a hold that ends here is
    UNSENT     nothing reached a provider               released
    OPENED     the request may have been read           charged in full, since nobody can say less; after a reset, left to its lease
    REFUSED    the provider said no before any output   released
    RELAYING   output is flowing                        charged by usage; without one, by what was counted or held
    SETTLED    the ledger has the last word             –
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from gateway.core import estimate
from gateway.core.catalog import Model
from gateway.core.meter import Meter
from gateway.core.profiles import OnDisconnect
from gateway.core.scopes import Amounts
from gateway.core.values import Balance, Ending, Hold, Receipt, Usage, UsageSource
from gateway.ledger.contract import Alert, Ledger, LedgerLost, LedgerUnavailable, Settled, Settlement
from gateway.observer import Story
from gateway.settings import Provider, Settings
from gateway.upstream import NOT_SENT, Answer, Failure, NotSent, RetryPolicy, TooLarge, Unknown, Upstream, UpstreamRequest
from gateway.wire.budget import decision_headers
from gateway.wire.chat import ChatStream, error_event, read_answer
from gateway.wire.exchange import ClientGone, Headers, Outlet
from gateway.wire.headers import returnable
from gateway.wire.problem import Problem, problem
from gateway.wire.status import released_by

# How much more to hold at once for a provider that ignores the output cap.
_MORE_OUTPUT_TOKENS: Final = 512
_FRAMING_END_S: Final = 0.05
_GOODBYE_S: Final = 1.0  # a stopped call's last words: with the 0.5 s until it is noticed, well under the 2 s promised


class Phase(Enum):
    UNSENT = auto()
    OPENED = auto()
    REFUSED = auto()
    RELAYING = auto()
    SETTLED = auto()


@dataclass(frozen=True, slots=True)
class Shared:
    """What all relays of a process share."""

    ledger: Ledger
    upstreams: Mapping[str, Upstream]  # by provider
    settings: Settings
    alert: Callable[[Alert], None]
    background: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    drains: asyncio.Semaphore  # how many calls may be read on for clients that left
    clock_ms: Callable[[], int]
    jitter: Callable[[], float]  # in [0, 1)


@dataclass(frozen=True, slots=True)
class Errand:
    """One held call, ready to go out."""

    hold: Hold
    model: Model
    provider: Provider
    request: UpstreamRequest
    wants_usage: bool  # the client asked for the usage chunk
    clamped: bool


class Relay:
    """Runs one errand. `interrupt` ends it from outside."""

    def __init__(self, shared: Shared, errand: Errand, meter: Meter, story: Story) -> None:
        self._shared = shared
        self._errand = errand
        self.hold = errand.hold
        self._meter = meter
        self._story = story
        self._phase = Phase.UNSENT
        self._answer: Answer | None = None
        self._stream: ChatStream | None = None
        self._service_tier = errand.hold.decision.call.service_tier  # the request's, until the provider says how it was served
        self._output_held = errand.hold.plan.output_cap * errand.hold.decision.call.choices
        self._task: asyncio.Task[Any] | None = None
        self._interruption: Ending | None = None
        self._lease_until_ms = errand.hold.lease_until_ms
        self._told: Callable[[Relay], None] | None = None
        self.status = 0  # what the client was answered

    # -- the course of things -------------------------------------------------------------------------------------------------

    async def run(self, outlet: Outlet) -> None:
        """Returns when the client has its answer; raises CancelledError only. A drain goes on in the background."""
        self._task = asyncio.current_task()
        draining = False
        try:
            opened = await self._open()
            if isinstance(opened, Problem):
                await self._tell(outlet, opened)
            else:
                await self._relay(opened, outlet)
        except ClientGone:
            draining = self._read_on()
        except asyncio.CancelledError:
            if self._interruption is None:
                raise
            assert self._task is not None
            self._task.uncancel()
            await self._break_off(outlet, self._interruption)
        finally:
            if not draining:
                self._end(Ending.CLIENT_LEFT)

    def interrupt(self, ending: Ending) -> None:
        """Ends a call whose run was stopped, or whose client is gone. Nothing happens to one that has settled."""
        if self._phase is Phase.SETTLED or self._interruption is not None or self._task is None:
            return
        self._interruption = ending
        self._task.cancel()

    def client_gone(self) -> None:
        """The connection was lost while nothing was written. A drain just reads on; other profiles save the tokens."""
        if self._stream is not None and self._errand.provider.profile.on_disconnect is not OnDisconnect.DRAIN:
            self.interrupt(Ending.CLIENT_LEFT)

    def when_settled(self, told: Callable[["Relay"], None]) -> None:
        """Calls back once: now, or when a drain in the background has settled."""
        if self._phase is Phase.SETTLED:
            told(self)
        else:
            self._told = told

    def keep_lease(self, lease_ms: int) -> None:
        """Extends the lease once a third of it has passed. Not waited for: a failure leaves two thirds to try again."""
        now_ms = self._shared.clock_ms()
        if self._phase is Phase.SETTLED or now_ms < self._lease_until_ms - lease_ms * 2 // 3:
            return
        self._lease_until_ms = now_ms + lease_ms
        extended = asyncio.ensure_future(
            self._shared.ledger.extend(self.hold.decision.call.caller.tenant, self.hold.id, lease_ms)
        )
        extended.add_done_callback(self._lease_kept)

    def _lease_kept(self, extended: asyncio.Future[bool]) -> None:
        if extended.cancelled() or extended.exception() is not None:
            self._lease_until_ms = 0  # try again at the next turn

    async def _open(self) -> Answer | Problem:
        """Tries again only what was provably not billed, under the same hold."""
        upstream = self._shared.upstreams[self._name]
        retries = RetryPolicy(self._errand.provider.retries)
        attempt, waited_s = 1, 0.0
        while True:
            self._phase = Phase.OPENED
            try:
                answer = await upstream.open(self._errand.request)
            except NotSent as reason:
                self._phase = Phase.UNSENT
                self._failed("not_sent")
                wait_s = retries.wait_s(NOT_SENT, attempt, waited_s, self._shared.jitter())
                if wait_s is None:
                    await self._settled(Ending.NOT_SENT)
                    return problem("provider_unreachable", f"{self._name} could not be reached ({reason}); nothing was charged")
            except Unknown as reason:
                self._failed("unknown")
                self._leave(f"no answer from {self._name}: {reason}")
                return problem(
                    "provider_timeout",
                    f"{self._name} may have taken the request, but did not answer ({reason}). It may have been billed: its worst case "
                    f"stays held as {self.hold.id}",
                )
            else:
                self._answer = answer
                if answer.status < 400:
                    return answer
                self._failed(str(answer.status))
                failure = Failure.of(answer.status, answer.headers, self._shared.clock_ms() / 1000)
                wait_s = retries.wait_s(failure, attempt, waited_s, self._shared.jitter())
                if wait_s is None:
                    return answer
                self._phase = Phase.UNSENT
                answer.close()
            attempt += 1
            waited_s += wait_s
            await asyncio.sleep(wait_s)

    async def _relay(self, answer: Answer, outlet: Outlet) -> None:
        if not 200 <= answer.status < 300:
            await self._relay_refusal(answer, outlet)
        elif answer.headers.get("Content-Type", "").lower().startswith("text/event-stream"):
            await self._relay_stream(answer, outlet)
        else:
            await self._relay_json(answer, outlet)

    async def _relay_refusal(self, answer: Answer, outlet: Outlet) -> None:
        """The provider's own error goes to the client as it came."""
        released = released_by(answer.status)
        if released:
            self._phase = Phase.REFUSED
        try:
            body = await answer.read(self._limits.max_response)
        except (Unknown, TooLarge):
            body = b""
        if released:
            settled = await self._settled(Ending.PROVIDER_REFUSED)
        else:
            self._leave(f"{self._name} answered {answer.status}, which something in between may have said")
            settled = None
        await self._answer_with(outlet, answer.status, self._headers(answer, settled), body)

    async def _relay_json(self, answer: Answer, outlet: Outlet) -> None:
        try:
            body = await answer.read(self._limits.max_response)
        except Unknown as failure:
            self._failed("cut")
            self._leave(f"the answer broke off: {failure}")
            await self._tell(outlet, problem("provider_cut", f"the answer of {self._name} broke off ({failure})"))
            return
        except TooLarge:
            await self._settled(Ending.PROVIDER_CUT)
            limit = self._limits.max_response
            await self._tell(outlet, problem("provider_cut", f"the answer of {self._name} is larger than {limit} bytes"))
            return
        self._phase = Phase.RELAYING
        self._service_tier = read_answer(body, self._meter) or self._service_tier
        settled = await self._settled(Ending.COMPLETED)
        await self._answer_with(outlet, answer.status, self._headers(answer, settled), body)

    async def _relay_stream(self, answer: Answer, outlet: Outlet) -> None:
        self._phase = Phase.RELAYING
        self._stream = stream = ChatStream(self._meter, hide_usage=not self._errand.wants_usage)
        outlet.on_gone(self.client_gone)
        self.status = answer.status
        await outlet.start(answer.status, self._headers(answer, None))
        cut: str | None = None
        chunks = answer.chunks()
        try:
            async for chunk in chunks:
                relayed = stream.feed(chunk)
                if relayed:
                    await outlet.write(relayed)
                if self._meter.exceeds(self._output_held) and not await self._hold_more():
                    await self._cut_off(outlet, stream)
                    return
                if stream.done:
                    break
        except Unknown as failure:
            cut = str(failure)
        rest = stream.finish()
        if cut is None and stream.cut:
            cut = "the stream ended early"
        if cut is not None:
            self._failed("cut")
        await self._settled(Ending.COMPLETED if cut is None else Ending.PROVIDER_CUT)
        if rest:
            await outlet.write(rest)
        if cut is not None:
            # Never a clean end: a client would take half an answer for a whole one.
            await outlet.write(error_event(problem("provider_cut", f"{self._name} broke off: {cut}")))
        await outlet.finish()
        if stream.done:
            await _read_out(chunks)

    async def _hold_more(self) -> bool:
        """A provider that ignores the cap: hold what it may write next, or learn that no room is left."""
        plan, call = self.hold.plan, self.hold.decision.call
        here = estimate.worst_case(call, self._errand.model, plan.input_tokens, plan.output_cap)
        beyond = estimate.worst_case(call, self._errand.model, plan.input_tokens, plan.output_cap + _MORE_OUTPUT_TOKENS)
        more = Amounts(beyond.usd - here.usd, beyond.tokens - here.tokens, 0)
        settings = self._shared.settings
        if not await self._shared.ledger.extend(call.caller.tenant, self.hold.id, settings.lease_ms, more):
            return False
        self._output_held += _MORE_OUTPUT_TOKENS * call.choices
        return True

    async def _cut_off(self, outlet: Outlet, stream: ChatStream) -> None:
        """The output passed what was held, and there is no room for more."""
        await self._settled(Ending.OUTPUT_EXCEEDED)
        said = problem("run_ceiling_reached", "the provider wrote more than it was asked for, and no budget is left to hold more")
        await outlet.write(stream.length_ending(said))
        await outlet.finish()

    async def _break_off(self, outlet: Outlet, ending: Ending) -> None:
        """Interrupted: settle first, then tell the client if it is there."""
        self._end(ending)
        if ending is Ending.CLIENT_LEFT:
            return
        run = self.hold.decision.call.caller.run
        if ending is Ending.RUN_STOPPED:
            said = problem("run_stopped", f"Run {run} was stopped while this call was under way; its later calls are refused.")
        else:
            said = problem("overloaded", "The gateway is shutting down; the call was ended and settled.")
        try:
            async with asyncio.timeout(_GOODBYE_S):
                if outlet.started:
                    await outlet.write(error_event(said))
                    await outlet.finish()
                else:
                    await self._tell(outlet, said)
        except (TimeoutError, ClientGone):
            outlet.abort()

    # -- a client that left ---------------------------------------------------------------------------------------------------

    def _read_on(self) -> bool:
        """Starts a drain where the profile wants one and there is room for it. True: the drain will settle."""
        wanted = self._errand.provider.profile.on_disconnect is OnDisconnect.DRAIN
        if self._phase is not Phase.RELAYING or not wanted or self._shared.drains.locked():
            return False
        self._task = self._shared.background(self._drain())
        return True

    async def _drain(self) -> None:
        """Reads the stream to its end for the provider's own usage: bounded in time, in bytes and in number."""
        assert self._answer is not None
        assert self._stream is not None
        drain, read = self._shared.settings.drain, 0
        try:
            async with self._shared.drains, asyncio.timeout(drain.time_ms / 1000):
                async for chunk in self._answer.chunks():
                    self._stream.feed(chunk)
                    read += len(chunk)
                    if read > drain.bytes or self._meter.exceeds(self._output_held):
                        break
                self._stream.finish()
        except (TimeoutError, Unknown):
            pass  # what was counted until here is charged
        finally:
            self._end(self._interruption or Ending.CLIENT_LEFT)

    # -- settling -------------------------------------------------------------------------------------------------------------

    def _end(self, ending: Ending) -> None:
        """The last resort of every path, and the whole of most: settles what has not settled, closes what is open."""
        self._settle(ending)
        if self._answer is not None:
            self._answer.release()  # keeps the connection only if the answer was read to its end

    async def _settled(self, ending: Ending) -> Settled | None:
        """Settles and waits, not for long, so that the run's next call sees the refund."""
        step = self._settle(ending)
        if step is None:
            return None
        try:
            async with asyncio.timeout(self._shared.settings.commit_wait_ms / 1000):
                return await asyncio.shield(step)
        except (TimeoutError, LedgerUnavailable, LedgerLost):
            return None  # `_recorded` hears of it

    def _settle(self, ending: Ending) -> asyncio.Future[Settled | None] | None:
        """Ends the hold, once. The step is under way when this returns."""
        if self._phase is Phase.SETTLED:
            return None
        phase, self._phase = self._phase, Phase.SETTLED
        tenant, ledger = self.hold.decision.call.caller.tenant, self._shared.ledger
        step: asyncio.Future[Settled | None]
        if phase is Phase.UNSENT or phase is Phase.REFUSED:
            ending = Ending.NOT_SENT if phase is Phase.UNSENT else Ending.PROVIDER_REFUSED
            usage, cost = Usage(UsageSource.PROVIDER), Amounts(0, 0, 0)
            step = asyncio.ensure_future(ledger.release(tenant, self.hold.id, ending))
        else:
            usage, cost = self._charge(phase, ending)
            step = asyncio.ensure_future(ledger.commit(tenant, self.hold.id, Settlement(cost, usage, ending)))
        if self._told is not None:
            self._told(self)
        receipt, began_s = Receipt(self.hold, usage, cost, ending), time.perf_counter()
        step.add_done_callback(lambda done: self._recorded(done, receipt, began_s))
        return step

    def _charge(self, phase: Phase, ending: Ending) -> tuple[Usage, Amounts]:
        plan, call = self.hold.plan, self.hold.decision.call
        if not self._meter.reported and self._must_charge_the_hold(phase, ending):
            held = Usage(UsageSource.HELD, input_tokens=plan.input_tokens, output_tokens=plan.output_cap * call.choices)
            return held, plan.cost_max
        usage = self._meter.usage(plan.input_tokens, self._output_held)
        tier = self._stream.service_tier if self._stream is not None and self._stream.service_tier else self._service_tier
        return usage, estimate.cost_of(self._errand.model, usage, tier)

    def _must_charge_the_hold(self, phase: Phase, ending: Ending) -> bool:
        """Without the provider's word, what was relayed is the charge, unless there may be output that nobody saw."""
        if phase is Phase.OPENED or (self._stream is None and ending is not Ending.COMPLETED):
            return True
        if ending not in (Ending.CLIENT_LEFT, Ending.RUN_STOPPED, Ending.GATEWAY_STOPPED):
            return False
        return self._errand.model.reasoning or self._errand.provider.profile.on_disconnect is OnDisconnect.FULL_HOLD

    def _recorded(self, step: asyncio.Future[Settled | None], receipt: Receipt, began_s: float) -> None:
        """The step's own end, whether or not anybody waited for it."""
        failure = None if step.cancelled() else step.exception()
        settled = None if step.cancelled() or failure is not None else step.result()
        if settled is None:
            self._story.unsettled(receipt.ending, f"the ledger did not take the settlement: {failure!r}")
            return
        for alert in settled.alerts:
            self._shared.alert(alert)
        charged = Receipt(receipt.hold, receipt.usage, settled.charged, receipt.ending, settled.balances)
        self._story.settled(charged, time.perf_counter() - began_s)

    def _leave(self, why: str) -> None:
        """Nobody can say whether it was billed: the hold stays, and is charged when its lease ends."""
        self._phase = Phase.SETTLED
        self._story.unsettled(Ending.UNKNOWN, why)

    # -- words ----------------------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self._errand.provider.name

    @property
    def _limits(self) -> Settings:
        return self._shared.settings

    def _failed(self, kind: str) -> None:
        self._story.provider_failed(self._name, kind)

    def _headers(self, answer: Answer | None, settled: Settled | None) -> Headers:
        balances: tuple[Balance, ...] = settled.balances if settled is not None else self.hold.balances
        ours = decision_headers(self.hold, balances, self._errand.clamped)
        return ours if answer is None else [*returnable(answer.headers), *ours]

    async def _tell(self, outlet: Outlet, said: Problem) -> None:
        self._story.refused(said.code, said.status)
        await self._answer_with(outlet, said.status, [*said.headers(), *self._headers(None, None)], said.body())

    async def _answer_with(self, outlet: Outlet, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        await outlet.answer(status, headers, body)


async def _read_out(chunks: AsyncIterator[bytes]) -> None:
    """After `[DONE]` only the framing's end is due. It is waited for a moment, so that the connection can serve another call."""
    try:
        async with asyncio.timeout(_FRAMING_END_S):
            async for _ in chunks:
                pass
    except (TimeoutError, Unknown):
        pass  # then the connection is closed instead of kept
