"""THE path of a call, read top to bottom: identity → a Call → decide → reserve → relay → commit. One `serve` does it all.

Nothing is forwarded before its worst case is held. From the moment there is a hold, `Relay` answers for its end.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from gateway.core.ceilings import fits
from gateway.core.decide import Rulebook, Unservable
from gateway.core.meter import Meter
from gateway.core.values import Call, Charge, Ending, Hold, Plan
from gateway.identity import Identity, Principal
from gateway.ledger.contract import Ended, LedgerLost, LedgerUnavailable, Refusal, RunRefusal, Stale
from gateway.observer import Observer, Story
from gateway.relay import Errand, Relay, Shared
from gateway.settling import Settling, first_blocking
from gateway.upstream import UpstreamRequest
from gateway.wire import chat
from gateway.wire.budget import refusal_headers, undecided_headers
from gateway.wire.exchange import ClientGone, Inbound, Outlet
from gateway.wire.headers import directives, forwardable
from gateway.wire.problem import Alternative, Refused, budget_refusal, problem

_DECISIONS_A_CALL: Final = 3  # the first, and two more on new facts
_READ_INLINE_BYTES: Final = 262_144  # some 1 to 5 ms of reading, for usual messages
_COUNT_INLINE_CHARS: Final = 16_384  # some 2 ms of tokenizing; a body of fewer bytes has hardly more text than that
_WATCH_S: Final = 0.5  # how often a process asks which of its live runs were stopped


class Flow:
    """Serves calls. `rulebook` is the policy in force: replaced as a whole on reload, taken once per call."""

    def __init__(
        self, shared: Shared, identity: Identity, rulebook: Rulebook, observer: Observer, new_id: Callable[[], str]
    ) -> None:
        self._shared = shared
        self._identity = identity
        self.rulebook = rulebook
        self._observer = observer
        self._new_id = new_id
        self._live: set[Relay] = set()

    # -- the path -------------------------------------------------------------------------------------------------------------

    async def serve(self, inbound: Inbound, outlet: Outlet) -> None:
        """`POST /v1/chat/completions`. Every refusal is answered here; whatever else is raised is a bug, and the server's to answer."""
        story = self._observer.story(inbound.request_id)
        status = 0  # nobody was there to be answered
        try:
            status = await self._serve(inbound, outlet, story)
        except Exception:
            status = 500
            raise
        finally:
            story.answered(status)

    async def _serve(self, inbound: Inbound, outlet: Outlet, story: Story) -> int:
        """What the client was answered; 0 if it left before."""
        try:
            relay = await self._admit(inbound, story)
        except Refused as refusal:
            return await _refuse(refusal, outlet, story)
        self._live.add(relay)
        try:
            await relay.run(outlet)
        finally:
            self._live.discard(relay)
        return relay.status

    async def _admit(self, inbound: Inbound, story: Story) -> Relay:
        """Everything before the provider: the relay it returns has a hold."""
        rulebook = self.rulebook
        principal = self._identity.principal(inbound.headers, model_route=True)
        request = await _read(inbound.body)
        story.asked(request.model, request.stream)
        at_ms = self._shared.clock_ms()
        caller = self._identity.caller(principal, inbound, request.text_field, rulebook.policy, at_ms)
        story.called_by(caller)
        call = request.call(caller, directives(inbound.headers))
        if len(inbound.body) > _COUNT_INLINE_CHARS:
            await self._count_beforehand(rulebook, call)
        settling = await self._reserve(rulebook, call, principal, at_ms, story)
        try:
            relay = self._relay(rulebook, settling, request, inbound, principal)
            story.sent()
        except BaseException:
            # A bug between the hold and the one who answers for it must not leak it.
            settling.release(Ending.NOT_SENT)
            raise
        return relay

    async def _count_beforehand(self, rulebook: Rulebook, call: Call) -> None:
        """Large new text is counted in a thread, so that it stalls nobody else's call; the decision then finds it counted."""
        counter = rulebook.counter
        for encoding in rulebook.encodings(call):
            tally = counter.look_up(call.parts, encoding)
            if tally.pending_chars > _COUNT_INLINE_CHARS:
                await asyncio.to_thread(counter.finish, tally)

    async def _reserve(self, rulebook: Rulebook, call: Call, principal: Principal, at_ms: int, story: Story) -> Settling:
        """Decides, and holds the first plan that fits; decides again where the ledger knows better."""
        served = self._identity.served(principal)
        for _ in range(_DECISIONS_A_CALL):
            decision = rulebook.decide(call, served, at_ms, self._new_id())
            if isinstance(decision, Unservable):
                raise Refused(problem(decision.code, decision.message, decision.param))
            story.decided(decision)
            began_s = time.perf_counter()
            try:
                reserved = await self._shared.ledger.reserve(decision, self._shared.settings.lease_ms)
            except LedgerUnavailable as failure:
                raise Refused(
                    problem("ledger_unavailable", f"the ledger does not answer ({failure}): no call is let through")
                ) from failure
            except LedgerLost as failure:
                raise Refused(problem("ledger_lost", f"{failure}: no call is let through")) from failure
            story.reserved(time.perf_counter() - began_s)
            if isinstance(reserved, Hold):
                return Settling(self._shared.ledger, self._shared.settings, self._shared.alert, reserved, story)
            if isinstance(reserved, Refusal):
                raise self._over_budget(rulebook, reserved, served)
            if isinstance(reserved, RunRefusal):
                said = problem("run_stopped", f"Run {call.caller.run} was stopped: it takes no more calls. Start another run.")
                raise Refused(said, refusal_headers(decision, None, ()))
            if isinstance(reserved, Stale):
                if reserved.owner != call.caller.key:
                    raise Refused(
                        problem(
                            "run_owned_by_another", f"the run {call.caller.run} belongs to another key: choose another run id"
                        )
                    )
                at_ms = reserved.now_ms
            else:
                assert isinstance(reserved, Ended)  # an id that was used before: the next one will not be
        raise Refused(problem("ledger_unavailable", "the ledger's clock and windows did not agree within three decisions"))

    def _relay(
        self, rulebook: Rulebook, settling: Settling, request: chat.ChatRequest, inbound: Inbound, principal: Principal
    ) -> Relay:
        """What goes to the provider: the client's request, with the plan's model and cap, and a credential."""
        plan, provider = settling.hold.plan, self._shared.settings.providers[settling.hold.plan.provider]
        profile, model = provider.profile, rulebook.catalog.models[plan.model]
        headers = forwardable(inbound.headers, rulebook.identity_headers)
        credential = self._identity.credential_for(principal, provider)
        if credential is not None:
            headers.append(credential)
        path = inbound.path.removeprefix("/v1")
        url = f"{provider.base_url}{path}?{inbound.query}" if inbound.query else provider.base_url + path
        body = request.encode(plan, profile, model.parameters)
        upstream_request = UpstreamRequest(url, inbound.method, headers, body)
        errand = Errand(model, provider, upstream_request, request.wants_usage, request.clamped(plan))
        meter = Meter(rulebook.counter, model.encoding, profile.usage_covers_all_choices or request.choices == 1)
        return Relay(self._shared, errand, meter, settling)

    # -- refusals -------------------------------------------------------------------------------------------------------------

    def _over_budget(self, rulebook: Rulebook, refusal: Refusal, served: frozenset[str]) -> Refused:
        decision = refusal.decision
        told = _told(refusal)

        def has_room(plan: Plan) -> bool:
            return first_blocking(plan, refusal.balances) is None

        alternatives = [
            Alternative.of(model, plan, has_room(plan)) for model, plan in rulebook.alternatives(decision, served, has_room)
        ]
        said = budget_refusal(decision, decision.ladder[told], refusal.blocking[told], alternatives)
        return Refused(said, refusal_headers(decision, refusal.blocking[told], refusal.balances))

    # -- live calls -----------------------------------------------------------------------------------------------------------

    def run_stopped(self, tenant: str, run: str) -> None:
        """Ends the run's live calls in this process; the others notice within half a second."""
        self._interrupt(tenant, frozenset((run,)))

    def scope_frozen(self, tenant: str, scope: Sequence[tuple[str, str]]) -> None:
        """The same for whoever has all of the scope's values."""
        for relay in list(self._live):
            caller = relay.hold.decision.call.caller
            if caller.tenant == tenant and all(caller.value(name) == value for name, value in scope):
                relay.interrupt(Ending.RUN_STOPPED)

    def shut_down(self) -> None:
        """Ends every live call, and every drain."""
        for relay in list(self._live):
            relay.interrupt(Ending.GATEWAY_STOPPED)

    async def watch(self) -> None:
        """Runs as long as the gateway: keeps the leases of calls that last, and notices runs that were stopped elsewhere."""
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                for relay in list(self._live):
                    relay.keep_lease()
                await self._notice_stopped()
            except (LedgerUnavailable, LedgerLost) as failure:
                # A ledger that is away is told of by the calls it refuses; this loop only must not end.
                self._observer.events.log.warning("watch_failed", why=str(failure))
            except Exception as failure:  # noqa: BLE001 - a background loop: without it no stop would be noticed any more
                self._observer.events.problem("watching live calls", failure)

    async def _notice_stopped(self) -> None:
        by_tenant: dict[str, set[str]] = {}
        for relay in self._live:
            caller = relay.hold.decision.call.caller
            by_tenant.setdefault(caller.tenant, set()).add(caller.run)
        for tenant, runs in by_tenant.items():
            stopped = await self._shared.ledger.stopped(tenant, tuple(runs))
            if stopped:
                self._interrupt(tenant, stopped)

    def _interrupt(self, tenant: str, runs: frozenset[str]) -> None:
        for relay in list(self._live):
            caller = relay.hold.decision.call.caller
            if caller.tenant == tenant and caller.run in runs:
                relay.interrupt(Ending.RUN_STOPPED)


async def _read(body: bytes) -> chat.ChatRequest:
    if len(body) <= _READ_INLINE_BYTES:
        return chat.read(body)
    return await asyncio.to_thread(chat.read, body)


async def _refuse(refusal: Refused, outlet: Outlet, story: Story) -> int:
    said = refusal.problem
    story.refused(said.code, said.status)
    headers = refusal.headers or undecided_headers(story.caller.run)
    try:
        await outlet.answer(said.status, [*said.headers(), *headers], said.body())
    except ClientGone:
        return 0  # nothing was held for it
    return said.status


def _told(refusal: Refusal) -> int:
    """Which plan the answer speaks of: the requested one, unless only the share kept for cheaper plans stood in its way."""
    blocking, plan = refusal.blocking[0], refusal.decision.ladder[0]
    whole = next(Charge(charge.ceiling) for charge in plan.charges if charge.ceiling.account == blocking.account)
    amount = plan.cost_max.of(blocking.account.unit)
    only_its_share = fits(whole, amount, blocking.limit, blocking.committed, blocking.reserved)
    return len(refusal.blocking) - 1 if only_its_share else 0
