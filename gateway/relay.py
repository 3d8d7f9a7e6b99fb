"""One held call at the provider: opens it, relays it through the meter, and settles it however it ends (design: section 8).

The phase says what is known of the call (see `charging`); from it follows what a hold that ends now is charged, and ending it needs
no await (see `settling`). So `finally` alone keeps the promise that every hold ends.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

from gateway.breaker import Breakers
from gateway.buffers import Buffers, Queue
from gateway.charging import Charging, Phase
from gateway.core.catalog import Model
from gateway.core.decide import Counts
from gateway.core.learned import Learned
from gateway.core.meter import Meter
from gateway.core.profiles import OnDisconnect
from gateway.core.record import record
from gateway.core.scopes import Caller
from gateway.core.values import Ending, Hold, UsageSource
from gateway.large import SMALL_BYTES, LargeWork
from gateway.ledger.contract import Alert, Ledger
from gateway.origins import Origins
from gateway.settings import Provider, Settings
from gateway.settling import Settling
from gateway.streaming import Streaming
from gateway.upstream import NOT_SENT, Answer, Failure, NotSent, RetryPolicy, TooLarge, Unknown, Upstream, UpstreamRequest
from gateway.whole import Whole
from gateway.wire.budget import decision_headers, stream_summary
from gateway.wire.dialect import Dialect
from gateway.wire.exchange import ClientGone, Headers, Outlet
from gateway.wire.headers import returnable
from gateway.wire.problem import Problem, problem
from gateway.wire.refusing import Readers
from gateway.wire.request import Request
from gateway.wire.status import released_by, worth_another_provider

_GOODBYE_S: Final = 1.0  # a stopped call's last words: with the 0.5 s until it is noticed, well under the 2 s promised


class Places:
    """How many calls may be read on at once for clients that left."""

    def __init__(self, number: int) -> None:
        self._free = number

    def take(self) -> bool:
        if self._free == 0:
            return False
        self._free -= 1
        return True

    def give(self) -> None:
        self._free += 1


@dataclass(frozen=True, slots=True)
class Shared:
    """What all relays of a process share."""

    ledger: Ledger
    upstreams: Mapping[str, Upstream]  # by provider
    settings: Settings
    alert: Callable[[Alert], None]
    drains: Places
    clock_ms: Callable[[], int]
    jitter: Callable[[], float]  # in [0, 1)
    breakers: Breakers
    answered: Callable[[Caller, str], None]  # an answer's id, by which a later call may continue it
    origins: Origins
    learned: Learned
    readers: Readers
    buffers: Buffers
    answers: Queue  # those that are kept whole
    large: LargeWork


@record
class Errand:
    """One held call, ready to go out."""

    model: Model
    provider: Provider
    dialect: Dialect
    asked: Request
    request: UpstreamRequest
    meter: Meter
    charging: type[Charging] = Charging
    counts: Counts | None = None  # of its request, where it was read


@record
class LeftBehind:
    """How a route failed. `billed`: nobody can say whether it was; then `why`, else `ending`, is the end of its hold."""

    billed: bool
    ending: Ending
    why: str = ""


class Onward(Protocol):
    """Where else a held call can go: `journey.Journey`."""

    def goes_on(self, settling: Settling) -> bool: ...

    async def onward(self, settling: Settling, left: LeftBehind, take: Callable[[Errand, Settling], None]) -> bool: ...


class Relay:
    """Runs one errand. `interrupt` ends it from outside."""

    def __init__(self, shared: Shared, errand: Errand, settling: Settling, journey: Onward) -> None:
        self._shared = shared
        self._journey = journey
        self._take(errand, settling)
        self._changing = False  # between two routes: the hold of the one may have ended, and that of the other is not made yet
        self._story = settling.story
        self._answer: Answer | None = None
        self._streaming: Streaming | None = None
        self._whole: Whole | None = None
        self._task: asyncio.Task[Any] | None = None
        self._interruption: Ending | None = None
        self._reading_on: asyncio.TimerHandle | None = None  # the client has left; when this fires, enough was read for it
        self.status = 0  # what the client was answered

    def _take(self, errand: Errand, settling: Settling) -> None:
        self._settling = settling
        self._errand = errand
        self._meter = errand.meter
        self._charging = errand.charging(errand.model, errand.provider.profile.on_disconnect, errand.meter)

    @property
    def hold(self) -> Hold:
        return self._settling.hold

    @property
    def caller(self) -> Caller:
        return self.hold.decision.call.caller

    # -- the course of things -------------------------------------------------------------------------------------------------

    async def run(self, outlet: Outlet) -> None:
        """Returns when the call is over: answered, or read on for a client that left, and its hold's end under way. Raises
        CancelledError, and what is a bug."""
        ending = Ending.UNKNOWN  # a bug's
        try:
            outlet.on_gone(self._client_left)  # at once, if it left while the hold was made
            self._task = asyncio.current_task()
            try:
                if self._interruption is not None:
                    await self._break_off(outlet, self._interruption)
                else:
                    await self._serve(outlet)
            except ClientGone:
                ending = Ending.CLIENT_LEFT
                if self._reads_on() and self._streaming is not None:
                    # For no longer than `_reads_on` says.
                    await self._streaming.read_on(self._shared.settings.drain.bytes)
        except asyncio.CancelledError:
            ending = self._interruption or Ending.GATEWAY_STOPPED
            if self._interruption is None:
                raise
            assert self._task is not None
            self._task.uncancel()
            await self._break_off(outlet, ending)
        finally:
            self._end(ending)
            if self._reading_on is not None:
                self._reading_on.cancel()
                self._shared.drains.give()

    def interrupt(self, ending: Ending) -> None:
        """Ends a call whose run was stopped, or for which nobody waits any more. Nothing happens to one whose hold has ended."""
        if (self._settling.ended and not self._changing) or self._interruption is not None:
            return
        self._interruption = ending
        if self._task is not None:
            self._task.cancel()

    def keep_lease(self) -> None:
        self._settling.keep_lease(self._shared.clock_ms())

    async def _serve(self, outlet: Outlet) -> None:
        opened = await self._open(outlet)
        if isinstance(opened, Problem):
            await self._tell(outlet, opened)
            return
        if len(self._errand.request.body) > SMALL_BYTES:
            self._let_go_of_request()
        if not 200 <= opened.status < 300:
            await self._relay_refusal(opened, outlet)
        elif opened.headers.get("Content-Type", "").lower().startswith(self._errand.dialect.streamed_types):
            await self._relay_stream(opened, outlet)
        else:
            await self._relay_json(opened, outlet)

    def _let_go_of_request(self) -> None:
        """Nobody will send it again, and its answer may take minutes."""
        errand = self._errand
        errand.asked.sent()
        self._errand = replace(errand, request=replace(errand.request, body=b""))

    async def _open(self, outlet: Outlet) -> Answer | Problem:
        """By one route after the other, where it is a provider that fails, and not the request."""
        while True:
            opened = await self._open_here()
            if not _is_providers(opened) or not await self._go_on(opened, outlet):
                return await self._given_up(opened)

    async def _open_here(self) -> Answer | NotSent | Unknown:
        """Tries again only what was provably not billed, under the same hold, and only where no other provider could be asked at once."""
        name, shared = self._name, self._shared
        upstream, breakers = shared.upstreams[name], shared.breakers
        rests = name in breakers.resting()
        retries: RetryPolicy | None = None
        attempt, waited_s = 1, 0.0
        while True:
            self._charging.phase = Phase.OPENED
            breakers.asked(name)
            opened: Answer | NotSent | Unknown
            try:
                opened = self._answer = await upstream.open(self._errand.request)
            except NotSent as reason:
                self._charging.phase = Phase.UNSENT
                opened, failure = reason, NOT_SENT
                self._failed("not_sent")
            except Unknown as reason:
                self._failed("unknown")
                breakers.failed(name)
                return reason
            else:
                if opened.status < 400:
                    breakers.answered(name)
                    return opened
                self._failed(str(opened.status))
                failure = Failure.of(opened.status, opened.headers, shared.clock_ms() / 1000)
            if retries is None:
                patient = not rests and not self._journey.goes_on(self._settling)
                retries = RetryPolicy(self._errand.provider.retries if patient else 0)
            if _is_providers(opened) and failure.status != 404:
                breakers.failed(name, failure.retry_after_s)
            else:
                breakers.answered(name)
            wait_s = retries.wait_s(failure, attempt, waited_s, shared.jitter())
            if wait_s is None:
                return opened
            self._set_aside(opened)
            if self._reading_on is not None:
                raise ClientGone  # nobody to try again for
            attempt += 1
            waited_s += wait_s
            await asyncio.sleep(wait_s)

    def _set_aside(self, opened: Answer | NotSent | Unknown) -> None:
        """A failure that is not passed on."""
        if not isinstance(opened, NotSent | Unknown):
            if released_by(opened.status):
                self._charging.phase = Phase.UNSENT
            opened.close()

    async def _go_on(self, failed: Answer | NotSent | Unknown, outlet: Outlet) -> bool:
        """Takes the next route, under the same hold or one of its own. False: there is none."""
        if self._reading_on is not None:
            return False  # nobody to go on for
        self._changing = True
        try:
            if not await self._journey.onward(self._settling, self._left_behind(failed), self._take):
                return False
        finally:
            self._changing = False
        self._set_aside(failed)
        self._answer = None
        outlet.on_gone(self._client_left)  # it may have left meanwhile
        return True

    def _left_behind(self, failed: Answer | NotSent | Unknown) -> LeftBehind:
        if isinstance(failed, NotSent):
            return LeftBehind(False, Ending.NOT_SENT)
        if isinstance(failed, Unknown):
            return LeftBehind(True, Ending.UNKNOWN, f"no answer from {self._name}: {failed}")
        if released_by(failed.status):
            return LeftBehind(False, Ending.PROVIDER_REFUSED)
        return LeftBehind(True, Ending.UNKNOWN, self._said_in_between(failed))

    def _said_in_between(self, answer: Answer) -> str:
        return f"{self._name} answered {answer.status}, which something in between may have said"

    async def _given_up(self, opened: Answer | NotSent | Unknown) -> Answer | Problem:
        """What the client is told of it, the hold ended where the failure says how."""
        if isinstance(opened, NotSent):
            await self._settled(Ending.NOT_SENT)
            return problem("provider_unreachable", f"{self._name} could not be reached ({opened}); nothing was charged")
        if isinstance(opened, Unknown):
            if not self._settling.ended:
                self._settling.leave(f"no answer from {self._name}: {opened}")
            return problem(
                "provider_timeout",
                f"{self._name} may have taken the request, but did not answer ({opened}). It may have been billed: its worst case "
                f"stays held as {self.hold.id}",
            )
        return opened

    async def _relay_refusal(self, answer: Answer, outlet: Outlet) -> None:
        """The provider's own error goes to the client as it came."""
        released = released_by(answer.status)
        if released:
            self._charging.phase = Phase.REFUSED
        try:
            body = await self._read(answer)
        except (Unknown, TooLarge):
            body = b""
        if released:
            await self._settled(Ending.PROVIDER_REFUSED)
        elif not self._settling.ended:
            self._settling.leave(self._said_in_between(answer))
        await self._answer_with(outlet, answer.status, self._headers(answer), body)

    async def _relay_json(self, answer: Answer, outlet: Outlet) -> None:
        try:
            body = await self._read(answer)
        except Unknown as failure:
            self._failed("cut")
            self._settling.leave(f"the answer broke off: {failure}")
            await self._tell(outlet, problem("provider_cut", f"the answer of {self._name} broke off ({failure})"))
            return
        except TooLarge:
            limit = self._shared.settings.max_response
            await self._settled(Ending.PROVIDER_CUT)
            await self._tell(
                outlet,
                problem("provider_cut", f"the answer of {self._name} is larger than {limit:,} bytes (limits.max_response)"),
            )
            return
        await self._metered(body)
        await self._settled(Ending.COMPLETED)
        await self._answer_with(outlet, answer.status, self._headers(answer), body)

    async def _metered(self, body: bytes) -> None:
        """A whole answer is metered whatever happens meanwhile: it says what the call cost, and its provider has nothing more to do."""
        read_answer, charging = self._errand.dialect.read_answer, self._charging
        if len(body) <= SMALL_BYTES:
            read_answer(body, self._meter)
        else:
            metering = asyncio.ensure_future(self._shared.large.done(len(body), partial(read_answer, body, self._meter)))
            try:
                await asyncio.shield(metering)
            except asyncio.CancelledError:
                await metering
                charging.phase = Phase.RELAYING
                raise
        charging.phase = Phase.RELAYING

    async def _read(self, answer: Answer) -> bytes:
        self._whole = Whole(answer, self._shared.settings.max_response, self._shared.answers)
        return await self._whole.read()

    async def _relay_stream(self, answer: Answer, outlet: Outlet) -> None:
        self._charging.phase = Phase.RELAYING
        stream = self._errand.dialect.stream(self._meter, self._errand.asked)
        self._streaming = streaming = Streaming(answer, stream, self._charging, self._settling, self._name)
        # No other route follows: what was sent need not be kept for as long as the stream lasts.
        self._errand = replace(self._errand, request=replace(self._errand.request, body=b""))
        await outlet.start(answer.status, self._headers(answer))
        self.status = answer.status
        if not await streaming.relay(outlet, self._shared.buffers):
            await self._settled(Ending.OUTPUT_EXCEEDED)
            await streaming.end_badly(outlet, stream.length_ending(streaming.no_more()))
            return
        if streaming.cut is not None or stream.error_seen:
            self._failed("cut")
            await self._settled(Ending.PROVIDER_CUT)
        else:
            await self._settled(Ending.COMPLETED)
        rest = streaming.rest
        if stream.done and not stream.error_seen:
            rest = self._summary(answer) + rest
        if streaming.cut is not None:
            # Never a clean end: a client would take half an answer for a whole one.
            said = problem("provider_cut", f"{self._name} broke off: {streaming.cut}")
            await outlet.write(rest)
            await streaming.end_badly(outlet, stream.error_ending(said))
            return
        await outlet.finish(rest)
        if stream.done:
            await streaming.read_out()

    def _summary(self, answer: Answer) -> bytes:
        """What stands before the last event, where the config wants that and the ledger has answered in time."""
        settling = self._settling
        if not self._shared.settings.stream_summary or settling.charged is None:
            return b""
        if not answer.headers.get("Content-Type", "").lower().startswith("text/event-stream"):
            return b""  # sound
        return stream_summary(self.caller.run, settling.charged.usd, settling.balances)

    # -- calls that nobody waits for any more ---------------------------------------------------------------------------------

    def _client_left(self) -> None:
        """The connection's word, whatever is being waited for."""
        if not self._reads_on():
            self.interrupt(Ending.CLIENT_LEFT)

    def _reads_on(self) -> bool:
        """Whether the answer is read on for the provider's own usage: where the profile wants that, bounded in time and number."""
        if self._settling.ended or self._interruption is not None:
            return False
        if self._reading_on is None:
            wanted = self._errand.provider.profile.on_disconnect is OnDisconnect.DRAIN
            if not wanted or self._charging.phase not in (Phase.OPENED, Phase.RELAYING) or not self._shared.drains.take():
                return False
            seconds = self._shared.settings.drain.time_ms / 1000
            self._reading_on = asyncio.get_running_loop().call_later(seconds, self.interrupt, Ending.CLIENT_LEFT)
        return True

    async def _break_off(self, outlet: Outlet, ending: Ending) -> None:
        """Interrupted: settle first, then tell the client if it is there."""
        self._end(ending)
        if ending is Ending.CLIENT_LEFT:
            return
        run = self.hold.decision.call.caller.run
        if ending is Ending.SCOPE_FROZEN:
            said = problem("scope_frozen", f"Run {run} was frozen while this call was under way; later calls are refused.")
        elif ending is Ending.RUN_STOPPED:
            said = problem("run_stopped", f"Run {run} was stopped while this call was under way; its later calls are refused.")
        else:
            said = problem("overloaded", "The gateway is shutting down; the call was ended and settled.")
        try:
            async with asyncio.timeout(_GOODBYE_S):
                if not outlet.started:
                    await self._tell(outlet, said)
                    return
                assert self._streaming is not None
                await self._streaming.end_badly(outlet, self._streaming.stream.error_ending(said))
        except (TimeoutError, ClientGone):
            outlet.abort()

    # -- settling -------------------------------------------------------------------------------------------------------------

    def _end(self, ending: Ending) -> None:
        """The last resort of every path, and the whole of most: settles what has not settled, closes what is open."""
        try:
            self._settle(ending)
        finally:
            if self._streaming is not None:
                self._streaming.end()
            if self._whole is not None:
                self._whole.give_back()
            if self._answer is not None:
                self._answer.release()  # keeps the connection only if the answer was read to its end

    async def _settled(self, ending: Ending) -> None:
        if self._meter.answer_id is not None:
            self._shared.answered(self.caller, self._meter.answer_id)
            self._shared.origins.learn(self._meter.answer_id, self._name)
        if self._meter.conversation_id is not None:
            self._shared.answered(self.caller, self._meter.conversation_id)
            self._shared.origins.learn(self._meter.conversation_id, self._name)
        self._settle(ending)
        await self._settling.written()

    def _settle(self, ending: Ending) -> None:
        """Ends the hold, if it has not ended."""
        charging, settling = self._charging, self._settling
        if settling.ended:
            return
        hold = settling.hold
        call, model = hold.decision.call, self._errand.model
        if charging.nothing_billed:
            settling.release(Ending.NOT_SENT if charging.phase is Phase.UNSENT else Ending.PROVIDER_REFUSED)
            return
        if call.background and (charging.phase is Phase.OPENED or self._meter.pending):
            settling.entrust()
            return
        try:
            usage, cost = charging.of(hold, ending)
        except BaseException:
            settling.leave("what it cost could not be worked out")
            raise
        if unpriced := charging.unpriced(usage):
            self._story.unpriced(self._name, model.name, unpriced)
        if usage.source is UsageSource.HELD and hold.plan.slice is not None:
            # No one amount is right in an account that holds the worst case and in one that holds a slice: the lease's end charges each
            # what it holds.
            settling.leave("nobody can say what it cost")
            return
        settling.commit(usage, cost, ending)
        counts = self._errand.counts
        chain = None if counts is None else counts.chain
        self._shared.learned.settled(call, model, hold.plan, usage, self._meter.answer_id, chain)

    # -- words ----------------------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self._errand.provider.name

    def _failed(self, kind: str) -> None:
        self._story.provider_failed(self._name, kind)

    def _headers(self, answer: Answer | None) -> Headers:
        hold = self._settling.hold
        ours = decision_headers(hold, self._settling.balances, self._errand.asked.clamped(hold.plan))
        return ours if answer is None else [*returnable(answer.headers), *ours]

    async def _tell(self, outlet: Outlet, said: Problem) -> None:
        errand = self._errand
        user_agent = next((value for name, value in errand.request.headers if name == "user-agent"), "")
        answer = self._shared.readers.answer(said, errand.dialect, user_agent, errand.asked.stream)
        self._story.refused(said.code, answer.status)
        await self._answer_with(outlet, answer.status, [*answer.headers, *self._headers(None)], answer.body)

    async def _answer_with(self, outlet: Outlet, status: int, headers: Headers, body: bytes) -> None:
        await outlet.answer(status, headers, body)
        self.status = status


def _is_providers(opened: Answer | NotSent | Unknown) -> bool:
    """A failure that another provider may not have."""
    return isinstance(opened, (NotSent, Unknown)) or worth_another_provider(opened.status)
