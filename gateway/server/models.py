"""`GET /v1/models`: what this caller can ask for, in the shape that it reads. Costs nothing and calls no provider."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from gateway.core.catalog import Model
from gateway.core.decide import Rulebook
from gateway.identity import Identity
from gateway.wire import messages
from gateway.wire.dialects import shape_for
from gateway.wire.exchange import Inbound, Outlet
from gateway.wire.problem import Refused, Shape, bad_request, problem

_MOST: Final = 1000  # on a page of Anthropic's
_UNKNOWN_DATE: Final = "1970-01-01T00:00:00Z"  # Anthropic's word for it


@dataclass(frozen=True, slots=True)
class ModelList:
    """Lists models that are priced, allowed by the policy in force, and reachable with this caller's credential. In Anthropic's shape
    those of the providers that can be asked for messages."""

    identity: Identity
    rulebook: Callable[[], Rulebook]

    async def serve(self, inbound: Inbound, outlet: Outlet) -> None:
        """Every name in the list can be called; one that can't would only be refused later."""
        shape = shape_for(inbound.path, inbound.headers)
        try:
            answer = self._answer(inbound, shape)
        except Refused as refusal:
            said = refusal.problem
            await outlet.answer(said.status, said.headers(), said.body(shape))
            return
        await outlet.answer(200, [("Content-Type", "application/json")], orjson.dumps(answer))

    def _answer(self, inbound: Inbound, shape: Shape) -> dict[str, Any]:
        listed = self._listed(inbound, shape)
        show = _anthropic if shape is Shape.ANTHROPIC else _openai
        name = inbound.parameters.get("name")
        if name is not None:
            for model, provider in listed:
                if model.name == name:
                    return show(model, provider)
            raise Refused(problem("not_found", "There is no such model, or none that this caller can ask for.", "model"))
        if shape is Shape.OPENAI:
            return {"object": "list", "data": [show(*each) for each in listed]}
        page, more = _page(listed, inbound.query)
        return {
            "data": [show(*each) for each in page],
            "has_more": more,
            "first_id": page[0][0].name if page else None,
            "last_id": page[-1][0].name if page else None,
        }

    def _listed(self, inbound: Inbound, shape: Shape) -> list[tuple[Model, str]]:
        principal = self.identity.principal(inbound.headers, model_route=True)
        rulebook, served = self.rulebook(), self.identity.served(principal)
        catalog = rulebook.catalog
        reachable = [name for name in served if shape is Shape.OPENAI or catalog.speaks(name, messages.NAME)]
        return [
            (model, provider)
            for model in catalog.models.values()
            if model.priced and not model.base_only and rulebook.policy.models.allows(model.name)
            for provider in [route.provider for route in catalog.routes_of(model.name) if route.provider in reachable][:1]
        ]


def _openai(model: Model, provider: str) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": provider}


def _anthropic(model: Model, provider: str) -> dict[str, Any]:
    del provider
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": _UNKNOWN_DATE,
        "lifecycle": "deprecated" if model.retired else "active",
        "max_input_tokens": model.max_input or model.context,
        "max_tokens": model.max_output,
    }


def _page(listed: Sequence[tuple[Model, str]], query: str) -> tuple[Sequence[tuple[Model, str]], bool]:
    """Anthropic's cursors; whether more follows in the direction that was asked for."""
    asked = dict(parse_qsl(query))
    names = [model.name for model, _ in listed]
    limit = asked.get("limit", str(_MOST))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= _MOST):
        raise bad_request("bad_request", f"limit: expected an integer from 1 to {_MOST}.", "limit")
    before, after = asked.get("before_id"), asked.get("after_id")
    if before is not None:
        end = names.index(before) if before in names else 0
        start = max(0, end - int(limit))
        return listed[start:end], start > 0
    start = names.index(after) + 1 if after in names else 0
    end = start + int(limit)
    return listed[start:end], end < len(names)
