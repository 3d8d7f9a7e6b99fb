"""The runtime plane's pages: who asks, what was sent, and the handler."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import orjson

from gateway.cycles import reading
from gateway.cycles.answering import PREFIX, Answering, Page, new_trace
from gateway.cycles.balances import Balances
from gateway.cycles.evaluating import Evaluating
from gateway.cycles.events import Events
from gateway.cycles.faults import JSON, Fault
from gateway.cycles.ground import Ground
from gateway.cycles.listing import Listing
from gateway.cycles.reservations import Reservations
from gateway.cycles.telling import Json
from gateway.cycles.tracing import HEADER, trace_of
from gateway.identity import Principal
from gateway.wire.exchange import Inbound, Reply

Told: TypeAlias = list[tuple[str, str]]  # headers of the answer
Work: TypeAlias = Callable[[Principal, Inbound, Mapping[str, str], Told], Awaitable[Json]]


@dataclass(frozen=True, slots=True)
class Plane:
    ground: Ground
    reservations: Reservations
    evaluating: Evaluating
    events: Events
    balances: Balances
    listing: Listing
    answering: Answering

    @classmethod
    def over(cls, ground: Ground, answering: Answering, *, newer_members: bool) -> "Plane":
        reservations = Reservations(ground)
        listing = Listing(ground, reservations, newer_members)
        return cls(ground, reservations, Evaluating(ground), Events(ground), Balances(ground), listing, answering)

    def pages(self) -> Sequence[tuple[str, str, Page]]:
        one = f"{PREFIX}/v1/reservations/{{id}}"
        return (
            ("POST", f"{PREFIX}/v1/decide", self._page(self._decide)),
            ("POST", f"{PREFIX}/v1/reservations", self._page(self._create)),
            ("GET", f"{PREFIX}/v1/reservations", self._page(self._list, admin=True)),
            ("GET", one, self._page(self._get, admin=True)),
            ("POST", f"{one}/commit", self._page(self._commit, finishing=True)),
            ("POST", f"{one}/release", self._page(self._release, finishing=True, admin=True)),
            ("POST", f"{one}/extend", self._page(self._extend)),
            ("POST", f"{PREFIX}/v1/events", self._page(self._record, status=201)),
            ("GET", f"{PREFIX}/v1/balances", self._page(self._balances)),
            ("GET", f"{PREFIX}/actuator/health", self.health),
            ("GET", f"{PREFIX}/actuator/health/readiness", self.health),
        )

    def _page(self, work: Work, *, finishing: bool = False, admin: bool = False, status: int = 200) -> Page:
        return self.answering.page(partial(self._asked, work, finishing, admin), status)

    async def _asked(
        self, work: Work, finishing: bool, admin: bool, inbound: Inbound, params: Mapping[str, str], told: Told
    ) -> Json:
        principal = await self._principal(inbound, finishing, admin)
        if not principal.admin:
            told.append(("X-Cycles-Tenant", principal.tenant))
        return await work(principal, inbound, params, told)

    async def _principal(self, inbound: Inbound, finishing: bool, admin: bool) -> Principal:
        """Fault UNAUTHORIZED. `finishing`: what is asked for ends what was begun before. `admin`: the admin may ask as well."""
        identity, headers = self.ground.identity, inbound.headers
        principal = identity.of_cycles(headers, finishing=finishing)
        if principal is None and admin:
            principal = identity.of_admin(headers)
        if principal is None:
            await self.ground.look_again()  # the key may have been made a moment ago, elsewhere
            principal = identity.of_cycles(headers, finishing=finishing)
        if principal is None:
            raise Fault("UNAUTHORIZED", identity.no_cycles_key(headers))
        return principal

    # -- the endpoints --------------------------------------------------------------------------------------------------------

    async def _decide(self, principal: Principal, inbound: Inbound, params: Mapping[str, str], told: Told) -> Json:
        del params, told
        return await self.evaluating.decide(principal, reading.decide(inbound.body, inbound.headers))

    async def _create(self, principal: Principal, inbound: Inbound, params: Mapping[str, str], told: Told) -> Json:
        del params
        request = reading.create(inbound.body, inbound.headers)
        if request.dry_run:
            return await self.evaluating.dry_run(principal, request)
        return await self.reservations.create(principal, request, inbound.request_id, told)

    async def _commit(self, principal: Principal, inbound: Inbound, params: Mapping[str, str], told: Told) -> Json:
        request = reading.commit(inbound.body, inbound.headers)
        return await self.reservations.commit(principal, params["id"], request, inbound.request_id, told)

    async def _release(self, principal: Principal, inbound: Inbound, params: Mapping[str, str], told: Told) -> Json:
        request = reading.release(inbound.body, inbound.headers)
        return await self.reservations.release(principal, params["id"], request, inbound.request_id, told)

    async def _extend(self, principal: Principal, inbound: Inbound, params: Mapping[str, str], told: Told) -> Json:
        del told
        return await self.reservations.extend(principal, params["id"], reading.extend(inbound.body, inbound.headers))

    async def _record(self, principal: Principal, inbound: Inbound, params: Mapping[str, str], told: Told) -> Json:
        del params
        return await self.events.record(principal, reading.event(inbound.body, inbound.headers), inbound.request_id, told)

    async def _get(self, principal: Principal, inbound: Inbound, params: Mapping[str, str], told: Told) -> Json:
        del inbound, told
        row = await self.reservations.get(principal, params["id"])
        if not principal.admin:
            self.ground.registry.require(principal, "reservations:list")
        return row.json(newer=True, metadata=True, committed_metadata=self.listing.newer)

    async def _list(self, principal: Principal, inbound: Inbound, params: Mapping[str, str], told: Told) -> Json:
        del params, told
        return await self.listing.rows(principal, reading.listing(inbound.query))

    async def _balances(self, principal: Principal, inbound: Inbound, params: Mapping[str, str], told: Told) -> Json:
        del params, told
        return await self.balances.told(principal, reading.balances(inbound.query))

    async def health(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """As clients look whether there is a server: needs no key, and says no more than that."""
        del params
        up = bool(self.ground.ledger.health().get("ok"))
        told = [JSON, ("Cache-Control", "no-store"), (HEADER, trace_of(inbound.headers, new_trace))]
        return Reply(200 if up else 503, orjson.dumps({"status": "UP" if up else "DOWN"}), told)
