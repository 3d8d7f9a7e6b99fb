"""One request under another server's hooks: the hold that is made for it before it starts, and the attempts to serve it, each under a hold
of its own. Whatever becomes of an attempt, its hold ends once; what nobody tells us about is charged when its lease ends.

    admitted    a hold for the first plan that fits, the request as it should be sent
    attempt     takes that hold over if it is enough for what is really sent, and unused; else has one of its own, or is refused
    its end     committed from what the provider reported, or was seen; released where nothing can have been billed; else left
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Final

from gateway.admitting import admit, barred
from gateway.charging import Charging, Phase
from gateway.core import estimate
from gateway.core.catalog import Model
from gateway.core.decide import Counts, Reach, Rulebook, Unservable
from gateway.core.meter import Meter
from gateway.core.profiles import OnDisconnect
from gateway.core.record import record
from gateway.core.scopes import Caller
from gateway.core.values import Call, Decision, Directives, Ending, Hold, Plan, UsageSource
from gateway.ledger.contract import Barred
from gateway.observer import Story
from gateway.office import Ids, Office, clock_ms
from gateway.reserving import Answer, Kin, Reserving, no_room
from gateway.settling import Desk, Settling, Waits
from gateway.watching import Watch
from gateway.wire.budget import decision_headers, undecided_headers
from gateway.wire.dialect import Dialect, Stream
from gateway.wire.problem import Refused, bad_request
from gateway.wire.request import Request

_COUNT_INLINE_CHARS: Final = 16_384
_NO_BACKGROUND: Final = "What a background answer costs is known only when somebody asks for it: leave `background` out."


@record
class Wanted:
    """What is to be sent: a request that was read, and the model by the name that its price is known by."""

    dialect: Dialect
    request: Request
    model: str
    size: int = 0  # bytes


class Door:
    """What all requests that come in through one server's hooks share."""

    def __init__(self, office: Office) -> None:
        settings = office.config
        desk = Desk(office.ledger, settings, office.observer.alert, Waits(settings.commit_wait_ms / 1000))
        self.office = office
        catalog = settings.catalog
        # Whatever has a price can be reached: the server has the credentials.
        self.providers = frozenset(provider for name in catalog.models if (provider := catalog.provider_of(name)) is not None)
        self.reserving = Reserving(desk, clock_ms, Ids())
        self.watch = Watch(office.ledger, office.events)
        self.kin = Kin()

    @property
    def rulebook(self) -> Rulebook:
        return self.office.rulebook

    def session(
        self, caller: Caller, directives: Directives, request_id: str, servable: Callable[[], Collection[str]]
    ) -> "Session":
        """`servable`: the models that the server can be asked for."""
        story = self.office.observer.story(request_id)
        story.called_by(caller)
        return Session(self, self.kin.placed(caller), directives, story, servable)


class Session:
    """One request, from its first hook to its last."""

    def __init__(
        self, door: Door, caller: Caller, directives: Directives, story: Story, servable: Callable[[], Collection[str]]
    ) -> None:
        self._door = door
        self._rulebook = door.rulebook  # the policy as it was when the request came
        self.caller = caller
        self._directives = directives
        self.story = story
        self._servable = servable
        self._unused: Settling | None = None  # held for an attempt that has not begun
        self.live: list[Attempt] = []  # those that have not ended
        self.latest: Attempt | None = None
        self._headers: list[tuple[str, str]] = undecided_headers(caller.run)
        self._answered = False

    # -- before it starts -----------------------------------------------------------------------------------------------------

    async def admit(self, wanted: Wanted) -> Plan:
        """Holds the first plan that fits. Refused, where none does."""
        request, rulebook = wanted.request, self._rulebook
        self.story.asked(request.model, request.stream)
        if request.background:
            raise bad_request("not_estimable", _NO_BACKGROUND, "background")
        fingerprint = request.fingerprint() if rulebook.policy.runs.terms.same_request > 0 else ""
        settling = await self._reserve(
            wanted, self._directives, fingerprint, Reach(self._door.providers, models=self._servable())
        )
        self._unused = settling
        self._headers = decision_headers(settling.hold, settling.balances, request.clamped(settling.hold.plan))
        return settling.hold.plan

    def refused(self, refusal: Refused, status: int) -> list[tuple[str, str]]:
        """The headers of its answer."""
        self.story.refused(refusal.problem.code, status)
        self._headers = list(refusal.headers) or undecided_headers(self.caller.run)
        return self._headers

    # -- attempts -------------------------------------------------------------------------------------------------------------

    async def begin(self, wanted: Wanted, inside: "Attempt | None" = None) -> "Attempt":
        """An attempt is about to be sent, as `wanted` says. Its hold is the one made for the request, where that has not been used and is
        enough for this; else one of its own. Refused, where there is no room for it."""
        for before in list(self.live):
            if before is not inside:
                before.broke_off()
        unused, self._unused = self._unused, None
        if unused is not None:
            try:
                if (plan := self._under(unused, wanted)) is not None:
                    return self._made(unused, wanted, plan, inside)
            except BaseException:
                unused.release(Ending.NOT_SENT)
                raise
            unused.release(Ending.NOT_SENT)
            await unused.written()
        # As this is what was asked for already, or LiteLLM's own choice: no other model is looked for, and it counts as no repetition.
        asked = replace(self._directives, downgrade=False)
        settling = await self._reserve(wanted, asked, "", Reach(self._door.providers))
        return self._made(settling, wanted, settling.hold.plan, inside)

    def _under(self, settling: Settling, wanted: Wanted) -> Plan | None:
        """The plan for what is sent, if what is held is enough for it, in the same accounts."""
        hold = settling.hold
        call = replace(_call(wanted, self.caller, replace(self._directives, downgrade=False)), caller=hold.decision.call.caller)
        counts = self._rulebook.counts(call, wanted.size)
        decided = self._rulebook.decide(call, Reach(self._door.providers), hold.decision.at_ms, hold.decision.id, counts)
        if isinstance(decided, Unservable):
            return None
        plan, held = decided.ladder[0], hold.plan
        same = {charge.ceiling.account.key for charge in plan.charges} == {charge.ceiling.account.key for charge in held.charges}
        enough = plan.cost_max.usd <= held.cost_max.usd and plan.cost_max.tokens <= held.cost_max.tokens
        return replace(plan, cost_max=held.cost_max, charges=held.charges) if same and enough else None

    def _made(self, settling: Settling, wanted: Wanted, plan: Plan, inside: "Attempt | None") -> "Attempt":
        settling.serve_by(plan)
        model = self._rulebook.route(plan).model
        attempt = Attempt(self._door, self, settling, wanted, model, self._counter_for(model), inside)
        self.live.append(attempt)
        self._door.watch.live.add(attempt)
        self.latest = attempt
        self._headers = decision_headers(settling.hold, settling.balances, wanted.request.clamped(plan))
        self.story.sent()
        return attempt

    def _counter_for(self, model: Model) -> Meter:
        return Meter(self._rulebook.counter, model.encoding)

    async def _reserve(self, wanted: Wanted, directives: Directives, fingerprint: str, reach: Reach) -> Settling:
        rulebook = self._rulebook
        call = _call(wanted, self.caller, directives, fingerprint)
        counts = rulebook.counts(call, wanted.size)
        await _counted(rulebook, call, counts)

        def decide(call: Call, at_ms: int) -> Decision | Unservable:
            return rulebook.decide(call, reach, at_ms, self._door.reserving.new_id(), counts)

        ask = partial(self._door.reserving.ask, self.story)
        answer: Answer = await admit(call, clock_ms(), decide, ask)
        if isinstance(answer, Settling):
            self._door.kin.learn(answer.hold.decision.call.caller)
            self.caller = answer.hold.decision.call.caller
            return answer
        if isinstance(answer, Barred):
            raise barred(answer)
        raise no_room(rulebook, answer, reach, counts)

    # -- its end --------------------------------------------------------------------------------------------------------------

    def ended(self, attempt: "Attempt") -> None:
        self.live = [each for each in self.live if each is not attempt]
        self._door.watch.live.discard(attempt)

    def over(self, status: int, ending: Ending = Ending.UNKNOWN) -> None:
        """The client has its answer, or never will: what has not ended by now ends so."""
        unused, self._unused = self._unused, None
        if unused is not None:
            unused.release(Ending.NOT_SENT)
        for attempt in list(self.live):
            attempt.end(ending)
        if not self._answered:
            self._answered = True
            self.story.answered(status)

    def headers(self) -> list[tuple[str, str]]:
        """Of its answer, as things stand."""
        latest = self.latest
        if latest is not None:
            return latest.headers()
        return self._headers


class Attempt:
    """One call of one provider's model. `Live`, so that its lease goes on, and a stop reaches it."""

    def __init__(
        self,
        door: Door,
        session: Session,
        settling: Settling,
        wanted: Wanted,
        model: Model,
        meter: Meter,
        inside: "Attempt | None",
    ) -> None:
        self._door = door
        self.session = session
        self.inside = inside  # the attempt of another request in whose course this one is made
        self._settling = settling
        self.wanted = wanted
        self._meter = meter
        # Nothing reads on here once a client has left: LiteLLM closes the provider's connection.
        self._charging = Charging(model, OnDisconnect.COUNT, meter, Phase.OPENED)
        self._stream: Stream | None = None
        self.interruption: Ending | None = None
        self._bridged = False  # a call of another kind that serves this one is under way, or was

    @property
    def caller(self) -> Caller:
        return self._settling.hold.decision.call.caller

    @property
    def plan(self) -> Plan:
        return self._settling.hold.plan

    @property
    def live(self) -> bool:
        return not self._settling.ended

    def is_served_by(self, dialect: Dialect, model: str, bridges: Callable[[Dialect, Dialect], bool]) -> bool:
        """Whether a call of another kind that is about to be made only serves this one, under its hold: the first of its model does."""
        if self._bridged or model != self.wanted.model or not bridges(self.wanted.dialect, dialect):
            return False
        self._bridged = True
        return True

    def headers(self) -> list[tuple[str, str]]:
        return decision_headers(self._settling.hold, self._settling.balances, self.wanted.request.clamped(self.plan))

    # -- while it lasts -------------------------------------------------------------------------------------------------------

    def keep_lease(self) -> None:
        self._settling.keep_lease(clock_ms())

    def interrupt(self, ending: Ending) -> None:
        """Whoever relays its stream looks at this with every piece."""
        self.interruption = self.interruption or ending

    def relay(self, event: bytes) -> None:
        """A piece of its stream, on its way to the client."""
        if self._stream is None:
            self._charging.phase = Phase.RELAYING
            self._stream = self.wanted.dialect.stream(self._meter, self.wanted.request)
        self._stream.feed(event)

    @property
    def exceeds(self) -> bool:
        """More output was seen than is held."""
        return self._meter.exceeds(estimate.output_held(self._settling.hold.decision.call, self.plan.output_cap))

    # -- its end --------------------------------------------------------------------------------------------------------------

    async def answered(self, answer: bytes) -> None:
        """The provider's whole answer is there; returns when the ledger has it, or soon after."""
        if not self.live:
            return
        self._charging.phase = Phase.RELAYING
        self.wanted.dialect.read_answer(answer, self._meter)
        self.end(Ending.COMPLETED)
        await self._settling.written()

    async def written(self) -> None:
        await self._settling.written()

    def refused(self) -> None:
        """The provider said no, before any output."""
        if self.live and self._charging.phase is Phase.OPENED:
            self._charging.phase = Phase.REFUSED
        self.end(Ending.PROVIDER_REFUSED)

    def not_sent(self) -> None:
        """Nothing reached a provider."""
        if self.live and self._charging.phase is Phase.OPENED:
            self._charging.phase = Phase.UNSENT
        self.end(Ending.NOT_SENT)

    def broke_off(self) -> None:
        """It failed, and nobody can say more than what was seen of it."""
        self.end(Ending.PROVIDER_CUT if self._charging.phase is Phase.RELAYING else Ending.UNKNOWN)

    def end(self, ending: Ending) -> None:
        """Settles it, if it has not been. Needs no await."""
        settling, charging = self._settling, self._charging
        if settling.ended:
            return
        try:
            if charging.nothing_billed:
                settling.release(Ending.NOT_SENT if charging.phase is Phase.UNSENT else Ending.PROVIDER_REFUSED)
            elif ending is Ending.UNKNOWN:
                settling.leave("nobody can say whether it was billed")
            else:
                self._commit(ending)
        finally:
            self.session.ended(self)

    def _commit(self, ending: Ending) -> None:
        settling, charging = self._settling, self._charging
        hold: Hold = settling.hold
        try:
            if self._stream is not None:
                self._stream.finish()
            usage, cost = charging.of(hold, ending)
        except BaseException:
            settling.leave("what it cost could not be worked out")
            raise
        if unpriced := charging.unpriced(usage):
            self.session.story.unpriced(hold.plan.provider, hold.plan.model, unpriced)
        settling.commit(usage, cost, ending)
        if usage.source is UsageSource.PROVIDER:
            self._door.office.learned.settled(hold.decision.call, charging.model, hold.plan, usage, self._meter.answer_id)


def _call(wanted: Wanted, caller: Caller, directives: Directives, fingerprint: str = "") -> Call:
    """A stream's whole worst case is held, as a JSON answer's is: a hold that grows with its stream takes a relay that can end it."""
    call = wanted.request.call(caller, directives, fingerprint)
    return replace(call, model=wanted.model, stream=False)


async def _counted(rulebook: Rulebook, call: Call, counts: Counts) -> None:
    """Much new text is counted beside the event loop."""
    if counts.size > _COUNT_INLINE_CHARS and rulebook.uncounted_chars(call, counts, beside=True) > _COUNT_INLINE_CHARS:
        await asyncio.to_thread(rulebook.count, call, counts, beside=True)
