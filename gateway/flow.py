"""THE path of a call, read top to bottom: identity → a Call → decide → reserve → relay → commit. One `serve` does it all.

Nothing is forwarded before its worst case is held. From the moment there is a hold, `Relay` answers for its end.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from gateway.admitting import admit, barred
from gateway.core.decide import Counts, Reach, Rulebook, Unservable
from gateway.core.record import record
from gateway.core.scopes import Amounts, Caller
from gateway.core.values import Call, Decision, Ending
from gateway.identity import Identity, Principal
from gateway.journey import Asked, Journey, Passage, Ways
from gateway.large import HUGE_BYTES, SMALL_BYTES
from gateway.ledger.contract import Barred, Barrier, LedgerLost, LedgerUnavailable, RunState
from gateway.observer import Observer, Story
from gateway.relay import Places, Relay, Shared
from gateway.reserving import Answer, Kin, Reserving, no_room
from gateway.settling import Desk, Settling, Waits
from gateway.watching import Watch
from gateway.wire import unmetered
from gateway.wire.budget import undecided_headers
from gateway.wire.dialect import Dialect
from gateway.wire.exchange import ClientGone, Inbound, Outlet
from gateway.wire.headers import directives
from gateway.wire.problem import Refused, bad_request, problem
from gateway.wire.request import Request
from gateway.wire.unmetered import UnmeteredRoute

_READING_S: Final = 10  # a good part of the huge requests that may wait is read by then
_COUNT_INLINE_CHARS: Final = 16_384  # some 2 ms of tokenizing; a body of fewer bytes has hardly more text than that
_COUNT_INLINE_PARTS: Final = 1_000  # some 2 ms of hashing and looking up, all of them counted before
_LOOK_S: Final = 0.3  # how often a call that waits for a raise looks
_WAITS_AT_MOST: Final = 1_000
_NO_BACKGROUND: Final = (
    "What a background answer costs is known only when somebody asks for it, and until then its worst case stays held: leave `background` out, "
    "or have it allowed in the gateway's config (background: allow)."
)

_Decide: TypeAlias = Callable[[Call, int], Decision | Unservable]


class Flow:
    """Serves calls. `rulebook` is the policy in force: replaced as a whole on reload, taken once per call."""

    def __init__(
        self, shared: Shared, identity: Identity, rulebook: Rulebook, observer: Observer, new_id: Callable[[], str]
    ) -> None:
        self._shared = shared
        self._identity = identity
        self.rulebook = rulebook
        self._observer = observer
        desk = Desk(shared.ledger, shared.settings, shared.alert, Waits(shared.settings.commit_wait_ms / 1000))
        self._reserving = Reserving(desk, shared.clock_ms, new_id)
        self._ways = Ways(shared, identity, self._reserving.again, self._reach)
        self._watch = Watch(shared.ledger, observer.events)
        self._live = self._watch.live
        self._kin = Kin()
        self._waits = Places(_WAITS_AT_MOST)
        self._waiting: set[asyncio.Event] = set()  # for a raise: set, the wait is over
        self._waits_end = False

    # -- the path -------------------------------------------------------------------------------------------------------------

    async def pass_on(self, route: UnmeteredRoute, inbound: Inbound, outlet: Outlet) -> None:
        """One call of a route that nothing meters, at the config's flat cost."""
        await self.serve(unmetered.dialect_of(route), inbound, outlet, route)

    async def serve(self, dialect: Dialect, inbound: Inbound, outlet: Outlet, route: UnmeteredRoute | None = None) -> None:
        """One call. Every refusal is answered here; whatever else is raised is a bug, and the server's to answer."""
        story = self._observer.story(inbound.request_id)
        status = 0  # nobody was there to be answered
        try:
            try:
                if route is None:
                    relay = await self._admit(dialect, inbound, outlet, story)
                else:
                    relay = await self._admit_unmetered(route, dialect, inbound, outlet, story)
            except Refused as refusal:
                status = await self._refuse(refusal, dialect, inbound, outlet, story)
            else:
                self._live.add(relay)
                try:
                    await relay.run(outlet)
                finally:
                    self._live.discard(relay)
                status = relay.status
        except Exception:
            status = 500
            raise
        finally:
            story.answered(status)

    async def _refuse(self, refusal: Refused, dialect: Dialect, inbound: Inbound, outlet: Outlet, story: Story) -> int:
        said = refusal.problem
        answer = self._shared.readers.answer(said, dialect, inbound.headers.get("User-Agent", ""), story.streams)
        story.refused(said.code, answer.status)
        headers = refusal.headers or undecided_headers(story.caller.run)
        try:
            await outlet.answer(answer.status, [*answer.headers, *headers], answer.body)
        except ClientGone:
            return 0  # nothing was held for it
        return answer.status

    async def _admit(self, dialect: Dialect, inbound: Inbound, outlet: Outlet, story: Story) -> Relay:
        """Everything before the provider: the relay it returns has a hold."""
        posed = await self._posed(dialect, None, inbound, story)
        rulebook, counts, reach = posed.rulebook, posed.counts, posed.reach
        journey = Journey(self._ways, rulebook, Asked(dialect, posed.request, inbound, posed.principal), counts)
        decide = partial(self._by_the_book, rulebook, reach, counts)
        settling = await self._reserve(rulebook, posed.call, counts, reach, decide, posed.at_ms, outlet, story)
        return self._answering(settling, journey, story)

    async def pose(self, dialect: Dialect, inbound: Inbound, request: Request | None = None, run: str | None = None) -> "Posed":
        """A call that is not made: for whoever asks what would be done with it. `request`: where its body is none of the dialect's; `run`:
        where it is named otherwise than the policy tells."""
        return await self._posed(dialect, request, inbound, self._observer.story(inbound.request_id), run)  # which nobody is told

    async def _posed(
        self, dialect: Dialect, request: Request | None, inbound: Inbound, story: Story, run: str | None = None
    ) -> "Posed":
        """Everything before the decision. Refused."""
        principal = await self._identity.admitted(inbound.headers)
        rulebook = self.rulebook
        fingerprinted, fingerprint = rulebook.policy.runs.terms.same_request > 0, ""
        if request is None:
            if len(inbound.body) <= SMALL_BYTES:
                request, fingerprint = _read(dialect, inbound, fingerprinted)
            else:
                request, fingerprint = await self._read_beside(dialect, inbound, fingerprinted)
        story.asked(request.model, request.stream)
        if request.background and not self._shared.settings.background:
            raise bad_request("not_estimable", _NO_BACKGROUND, "background")
        at_ms = self._shared.clock_ms()
        caller = self._kin.placed(self._identity.caller(principal, inbound, request, rulebook.policy, at_ms, run))
        story.called_by(caller)
        call = request.call(caller, directives(inbound.headers), fingerprint)
        counts = rulebook.counts(call, len(inbound.body))
        inbound.body = b""
        if counts.size > _COUNT_INLINE_CHARS:
            await self._count_beforehand(rulebook, call, counts)
        reach = self._reach(principal, self._shared.origins.find(call.continues))
        return Posed(rulebook, principal, request, call, counts, reach, at_ms)

    async def _admit_unmetered(
        self, route: UnmeteredRoute, dialect: Dialect, inbound: Inbound, outlet: Outlet, story: Story
    ) -> Relay:
        """The same for a route that nothing meters."""
        principal = await self._identity.admitted(inbound.headers)
        rulebook, provider = self.rulebook, self._shared.settings.providers[route.provider]
        request = unmetered.read(route, inbound.body, inbound.headers)
        inbound.body = b""
        story.asked(route.name, stream=False)
        if provider.name not in self._identity.served(principal):
            raise Refused(problem("model_not_served", f"{provider.name}, which serves this route, has no credential here."))
        at_ms = self._shared.clock_ms()
        caller = self._kin.placed(self._identity.caller(principal, inbound, request, rulebook.policy, at_ms))
        story.called_by(caller)
        call, cost = request.call(caller, directives(inbound.headers)), Amounts(route.cost, 0)

        def decide(call: Call, at_ms: int) -> Decision | Unservable:
            return rulebook.at_flat_cost(call, provider.name, cost, at_ms, self._reserving.new_id())

        passage = Passage(self._ways, rulebook, Asked(dialect, request, inbound, principal))
        counts, reach = rulebook.counts(call), self._reach(principal)
        settling = await self._reserve(rulebook, call, counts, reach, decide, at_ms, outlet, story)
        return self._answering(settling, passage, story)

    async def _read_beside(self, dialect: Dialect, inbound: Inbound, fingerprinted: bool) -> tuple[Request, str]:
        """The same for a large body, so that it stalls nobody else's call."""
        size, large = len(inbound.body), self._shared.large
        if size > HUGE_BYTES and large.crowded:
            waiting = "Too many requests of this size wait to be read; nothing was sent to the provider. Try again in a moment."
            self._observer.metrics.shed("huge")
            raise Refused(problem("overloaded", waiting, retry_after=_READING_S))
        return await large.done(size, partial(_read, dialect, inbound, fingerprinted))

    def _answering(self, settling: Settling, way: Journey | Passage, story: Story) -> Relay:
        """The one who answers for the hold from here on."""
        try:
            relay = Relay(self._shared, way.errand(settling.hold), settling, way)
            story.sent()
        except BaseException:
            # A bug between the hold and the one who answers for it must not leak it.
            settling.release(Ending.NOT_SENT)
            raise
        return relay

    async def _count_beforehand(self, rulebook: Rulebook, call: Call, counts: Counts, *, beside: bool = False) -> None:
        """Large new text is counted in a thread, so that it stalls nobody else's call; the decision, or with `beside` the list of its
        alternatives, then finds it counted."""
        if counts.size <= _COUNT_INLINE_CHARS:
            return
        many = counts.size > HUGE_BYTES or len(call.parts) > _COUNT_INLINE_PARTS
        if many or rulebook.uncounted_chars(call, counts, beside=beside) > _COUNT_INLINE_CHARS:
            await self._shared.large.done(counts.size, partial(rulebook.count, call, counts, beside=beside))

    async def _reserve(
        self,
        rulebook: Rulebook,
        call: Call,
        counts: Counts,
        reach: Reach,
        decide: _Decide,
        at_ms: int,
        outlet: Outlet,
        story: Story,
    ) -> Settling:
        """Decides, and holds the first plan that fits. Where the run is paused, and its budget says so, a raise is waited for."""
        ask = partial(self._reserving.ask, story)
        answer: Answer = await admit(call, at_ms, decide, ask)
        patience = _patience(answer)
        if patience is not None and not self._waits_end and self._waits.take():
            try:
                answer = await self._wait_for_raise(patience, answer, outlet, lambda at_ms: admit(call, at_ms, decide, ask))
            finally:
                self._waits.give()
        if isinstance(answer, Settling):
            self._kin.learn(answer.hold.decision.call.caller)
            return answer
        if isinstance(answer, Barred):
            raise barred(answer)
        await self._count_beforehand(rulebook, call, counts, beside=True)
        raise no_room(rulebook, answer, reach, counts)

    def _by_the_book(self, rulebook: Rulebook, reach: Reach, counts: Counts, call: Call, at_ms: int) -> Decision | Unservable:
        return rulebook.decide(call, reach, at_ms, self._reserving.new_id(), counts)

    def _reach(self, principal: Principal, made_by: str | None = None) -> Reach:
        """`made_by`: the provider that alone can go on with what the call continues."""
        served = self._identity.served(principal)
        return Reach(served, self._shared.breakers.resting() if made_by is None else served - {made_by})

    # -- waiting for a raise --------------------------------------------------------------------------------------------------

    async def _wait_for_raise(
        self, patience: "_Patience", answer: Answer, outlet: Outlet, again: Callable[[int], Awaitable[Answer]]
    ) -> Answer:
        """The answer when the wait is over: after a raise, or when the time is up, the client leaves, the gateway stops."""
        over = asyncio.Event()
        outlet.on_gone(over.set)
        self._waiting.add(over)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + patience.wait_ms / 1000
        caller, run = patience.caller, patience.run
        try:
            while (left_s := until_s - loop.time()) > 0 and not over.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), min(_LOOK_S, left_s))
                halted = not over.is_set() and await self._is_halted(caller)
                if over.is_set() or (not halted and await self._is_paused(caller.tenant, run)):
                    continue
                answer = await again(self._shared.clock_ms())
                more = _patience(answer)
                if more is None or halted:
                    break
                caller, run = more.caller, more.run
        finally:
            self._waiting.discard(over)
        return answer

    async def _is_halted(self, caller: Caller) -> bool:
        """No raise would let it in: the run, or one that it comes from, was stopped meanwhile, or it was frozen."""
        try:
            [barrier] = await self._shared.ledger.halted(caller.tenant, [caller])
        except (LedgerUnavailable, LedgerLost):
            return False
        return barrier is not None

    async def _is_paused(self, tenant: str, run: str) -> bool:
        try:
            view = await self._shared.ledger.run(tenant, run)
        except (LedgerUnavailable, LedgerLost):
            return True  # for all that is known
        return view is not None and view.state is RunState.PAUSED

    # -- live calls -----------------------------------------------------------------------------------------------------------

    def run_stopped(self, tenant: str, run: str) -> None:
        """Ends the live calls of the run and of its descendants in this process; the others notice within half a second."""
        self._watch.interrupt(tenant, lambda caller: caller.run == run or run in caller.ancestry, Ending.RUN_STOPPED)

    def scope_frozen(self, tenant: str, scope: Sequence[tuple[str, str]]) -> None:
        """The same for whoever has all of the scope's values."""
        self._watch.interrupt(tenant, lambda caller: caller.has(scope), Ending.SCOPE_FROZEN)

    def wait_no_more(self) -> None:
        """The gateway is about to stop: who waits for a raise is answered now."""
        self._waits_end = True
        for over in self._waiting:
            over.set()

    def shut_down(self) -> None:
        """Ends every live call, and every wait and drain."""
        self.wait_no_more()
        self._watch.interrupt_all(Ending.GATEWAY_STOPPED)

    async def watch(self) -> None:
        """Runs as long as the gateway: keeps the leases of calls that last, and notices what was stopped or frozen elsewhere."""
        await self._watch.run()


@dataclass(slots=True, eq=False)
class Posed:
    """A call, read and ready to be decided."""

    rulebook: Rulebook
    principal: Principal
    request: Request
    call: Call
    counts: Counts
    reach: Reach
    at_ms: int


@record
class _Patience:
    """How long a refused call waits for which run: its caller's, or one that it comes from."""

    caller: Caller
    run: str
    wait_ms: int


def _patience(answer: Answer) -> _Patience | None:
    """None: the answer is final."""
    if isinstance(answer, Settling):
        return None
    decision, caller = answer.decision, answer.decision.call.caller
    if isinstance(answer, Barred):
        pausing, run = decision.ladder[0].charges, answer.what
        paused = answer.barrier is Barrier.PAUSED
    else:
        blocking = {balance.account.key for balance in answer.blocking}
        charges = [charge for plan in decision.ladder for charge in plan.charges]
        pausing, run = tuple(charge for charge in charges if charge.ceiling.account.key in blocking), caller.run
        paused = answer.paused
    wait_ms = max((charge.ceiling.wait_for_raise_ms for charge in pausing if charge.ceiling.pause), default=0)
    return _Patience(caller, run, wait_ms) if paused and wait_ms else None


def _read(dialect: Dialect, inbound: Inbound, fingerprinted: bool) -> tuple[Request, str]:
    """The request and, where that is asked for, its fingerprint."""
    request = dialect.read(inbound.body, inbound.headers)
    return request, request.fingerprint() if fingerprinted else ""
