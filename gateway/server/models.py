"""`GET /v1/models`: what this caller can ask for, in OpenAI's shape. Costs nothing and calls no provider."""

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from gateway.core.decide import Rulebook
from gateway.identity import Identity
from gateway.wire.exchange import Inbound, Outlet
from gateway.wire.problem import Refused


@dataclass(frozen=True, slots=True)
class ModelList:
    """Lists models that are priced, allowed by the policy in force, and reachable with this caller's credential."""

    identity: Identity
    rulebook: Callable[[], Rulebook]

    async def serve(self, inbound: Inbound, outlet: Outlet) -> None:
        """Every name in the list can be called; one that can't would only be refused later."""
        try:
            principal = self.identity.principal(inbound.headers, model_route=True)
        except Refused as refusal:
            await outlet.answer(refusal.problem.status, refusal.problem.headers(), refusal.problem.body())
            return
        rulebook, served = self.rulebook(), self.identity.served(principal)
        listed = [
            {"id": model.name, "object": "model", "created": 0, "owned_by": provider}
            for model in rulebook.catalog.models.values()
            if model.priced
            and rulebook.policy.models.allows(model.name)
            and (provider := rulebook.catalog.provider_of(model.name)) in served
        ]
        await outlet.answer(200, [("Content-Type", "application/json")], orjson.dumps({"object": "list", "data": listed}))
