"""Forwards what a provider does for nothing, such as counting tokens: nothing is held for it, and no budget knows of it."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from gateway.core.catalog import Route
from gateway.core.decide import Rulebook
from gateway.identity import Identity, Principal
from gateway.journey import addressed
from gateway.relay import Shared
from gateway.upstream import NotSent, TooLarge, Unknown, UpstreamRequest
from gateway.wire.body import parse_object
from gateway.wire.dialect import Dialect
from gateway.wire.exchange import ClientGone, Headers, Inbound, Outlet
from gateway.wire.headers import forwardable, returnable
from gateway.wire.problem import Refused, problem
from gateway.wire.reading import model_name

_MOST_BYTES: Final = 1 << 20  # of an answer


class Forwarding:
    """`rulebook` is the policy in force."""

    def __init__(self, shared: Shared, identity: Identity, rulebook: Callable[[], Rulebook]) -> None:
        self._shared = shared
        self._identity = identity
        self._rulebook = rulebook

    async def serve(self, dialect: Dialect, inbound: Inbound, outlet: Outlet) -> None:
        """One request beside the dialect's own. It costs nothing, however it is read."""
        try:
            principal = self._identity.principal(inbound.headers, model_route=True)
            read = await self._shared.large.of(inbound.body, parse_object)
            route, body = self._route(dialect, principal, inbound.body, read)
            status, headers, body = await self._ask(route.provider, principal, inbound, body)
        except Refused as refusal:
            said = refusal.problem
            status, headers, body = said.status, [*said.headers(), *refusal.headers], said.body(dialect.shape)
        with contextlib.suppress(ClientGone):  # nothing hangs on it
            await outlet.answer(status, headers, body)

    def _route(self, dialect: Dialect, principal: Principal, raw: bytes, body: Mapping[str, Any]) -> tuple[Route, bytes]:
        """Where the request goes, and its body with the model's name there."""
        rulebook, served = self._rulebook(), self._identity.served(principal)
        name = model_name(body)
        routes = rulebook.catalog.routes_of(name) if rulebook.policy.models.allows(name) else ()
        for route in routes:
            if route.provider in served and rulebook.catalog.speaks(route.provider, dialect.name):
                return route, raw if route.model.name == name else orjson.dumps({**body, "model": route.model.name})
        raise Refused(problem("model_not_served", f"The model {name!r} cannot be asked here.", "model"))

    def request(self, name: str, principal: Principal, inbound: Inbound, body: bytes) -> UpstreamRequest:
        """As it goes to the provider."""
        provider = self._shared.settings.providers[name]
        headers = forwardable(inbound.headers, drop=self._rulebook().identity_headers)
        return addressed(provider, inbound, headers, self._identity.credential_for(principal, provider), body)

    async def _ask(self, name: str, principal: Principal, inbound: Inbound, body: bytes) -> tuple[int, Headers, bytes]:
        request = self.request(name, principal, inbound, body)
        try:
            answer = await self._shared.upstreams[name].open(request)
            try:
                return answer.status, returnable(answer.headers), await answer.read(_MOST_BYTES)
            finally:
                answer.release()
        except (NotSent, Unknown, TooLarge) as failure:
            raise Refused(problem("provider_unreachable", f"{name} gave no answer ({failure}).")) from failure
