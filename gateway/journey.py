"""The routes of one call: what goes out by each, and which is next, and under which hold, when a provider fails."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from gateway.charging import FlatCharging
from gateway.core import estimate
from gateway.core.catalog import Model, Route
from gateway.core.decide import Counts, Reach, Rulebook
from gateway.core.meter import Meter
from gateway.core.profiles import OnDisconnect
from gateway.core.record import record
from gateway.core.values import SAME_MODEL, Ending, Hold, Plan
from gateway.identity import Identity, Principal
from gateway.relay import Errand, LeftBehind, Shared
from gateway.settings import Provider
from gateway.settling import Settling
from gateway.upstream import UpstreamRequest
from gateway.wire.dialect import Dialect
from gateway.wire.exchange import Inbound
from gateway.wire.headers import forwardable
from gateway.wire.request import Request


@record
class Asked:
    """A request as it came, and who sent it."""

    dialect: Dialect
    request: Request
    inbound: Inbound
    principal: Principal


@record
class Ways:
    """What all journeys of a process share. `hold_again` makes a hold of its own for a plan, or finds no room for it. `reach`: what the
    caller can reach now."""

    shared: Shared
    identity: Identity
    hold_again: Callable[[Settling, Plan], Awaitable[Settling | None]]
    reach: Callable[[Principal], Reach]


class Journey:
    """Of one call."""

    __slots__ = ("_asked", "_counts", "_rulebook", "_tried", "_ways")

    def __init__(self, ways: Ways, rulebook: Rulebook, asked: Asked, counts: Counts) -> None:
        self._ways = ways
        self._rulebook = rulebook
        self._asked = asked
        self._counts = counts
        self._tried: list[Route] = []

    def errand(self, hold: Hold) -> Errand:
        """What goes to the provider: the client's request, with the held plan's model and cap, and a credential."""
        plan = hold.plan
        route, request, inbound = self._rulebook.route(plan), self._asked.request, self._asked.inbound
        self._tried.append(route)
        if request.background:
            call = hold.decision.call
            flat = estimate.flat_charge(call, route.model) if call.flat else 0
            request.mark = self._ways.identity.hold_mark(call.caller.tenant, hold.id, flat)
        provider, model = self._ways.shared.settings.providers[route.provider], route.model
        headers = forwardable(inbound.headers, request.content_type, self._rulebook.identity_headers)
        named = plan if model.name == plan.model else replace(plan, model=model.name)
        body = request.encode(named, provider.profile, model.parameters)
        upstream_request = addressed(
            provider, inbound, headers, self._ways.identity.credential_for(self._asked.principal, provider), body
        )
        covers = provider.profile.usage_covers_all_choices or request.choices == 1
        meter = Meter(self._rulebook.counter, model.encoding, covers)
        meter.pending = request.background  # until the answer says otherwise: without a word it may be under way
        return Errand(model, provider, self._asked.dialect, request, upstream_request, meter, counts=self._counts)

    def goes_on(self, settling: Settling) -> bool:
        """Whether there is another route, and its provider does not rest."""
        plan = self._next(settling)
        return plan is not None and plan.provider not in self._ways.shared.breakers.resting()

    async def onward(self, settling: Settling, left: LeftBehind, take: Callable[[Errand, Settling], None]) -> bool:
        """Has the next route taken, and the hold that it goes under. False: there is none, or no room for it; the hold may have ended
        then. Where the failed one may have been billed its hold stays, and another is needed."""
        plan = self._next(settling)
        if plan is None:
            return False
        held = settling.hold.plan
        if not left.billed and plan.charges == held.charges and _fits(plan, held):
            settling.serve_by(replace(plan, cost_max=held.cost_max, slice=held.slice))
            take(self.errand(settling.hold), settling)
            return True
        if left.billed:
            settling.leave(left.why)
        else:
            settling.release(left.ending)
            await settling.written()
        another = await self._ways.hold_again(settling, plan)
        if another is None:
            return False
        try:
            take(self.errand(another.hold), another)
            return True
        except BaseException:
            another.release(Ending.NOT_SENT)  # a bug must not leak it
            raise

    def _next(self, settling: Settling) -> Plan | None:
        hold = settling.hold
        if SAME_MODEL in hold.decision.call.needs:  # another provider knows nothing of what it goes on with
            return None
        if len(self._rulebook.catalog.routes.get(hold.plan.model, ())) <= len(self._tried):
            return None
        reach = self._ways.reach(self._asked.principal)
        return self._rulebook.onward(hold.decision, hold.plan, self._tried, reach, self._counts)


class Passage:
    """The only way of a call of a route that nothing meters."""

    def __init__(self, ways: Ways, rulebook: Rulebook, asked: Asked) -> None:
        self._ways = ways
        self._rulebook = rulebook
        self._asked = asked

    def errand(self, hold: Hold) -> Errand:
        """What goes to the provider: the client's request as it came, and a credential."""
        plan, request, inbound = hold.plan, self._asked.request, self._asked.inbound
        provider = self._ways.shared.settings.providers[plan.provider]
        # Nothing that is still to come of its answer would say what it cost.
        provider = replace(provider, profile=replace(provider.profile, on_disconnect=OnDisconnect.COUNT))
        headers = forwardable(inbound.headers, request.content_type, self._rulebook.identity_headers)
        if not request.content_type:
            headers = [header for header in headers if header[0] != "content-type"]
        credential = self._ways.identity.credential_for(self._asked.principal, provider)
        body = request.encode(plan, provider.profile)
        upstream_request = addressed(provider, inbound, headers, credential, body)
        model = Model(plan.model, provider.name, tiers=(), context=0, max_output=0, free=True)
        meter = Meter(self._rulebook.counter, None)
        return Errand(model, provider, self._asked.dialect, request, upstream_request, meter, FlatCharging)

    def goes_on(self, settling: Settling) -> bool:
        del settling
        return False

    async def onward(self, settling: Settling, left: LeftBehind, take: Callable[[Errand, Settling], None]) -> bool:
        del settling, left, take
        return False


def _fits(plan: Plan, held: Plan) -> bool:
    """Whether what is held for the one is enough for the other. Equal charges, so both hold slices or neither does."""
    pairs = [(plan.cost_max, held.cost_max)]
    if plan.slice is not None and held.slice is not None:
        pairs.append((plan.slice.cost, held.slice.cost))
    return all(asked.usd <= has.usd and asked.tokens <= has.tokens for asked, has in pairs)


def addressed(
    provider: Provider, inbound: Inbound, headers: list[tuple[str, str]], credential: tuple[str, str] | None, body: bytes
) -> UpstreamRequest:
    """As it goes to the provider: to the same route there, with the credential that opens it."""
    if credential is not None:
        headers.append(credential)
    url = provider.url(inbound.path)
    return UpstreamRequest(f"{url}?{inbound.query}" if inbound.query else url, inbound.method, headers, body)
