"""What runs the gateway asks of it: what is it, is it alive, is it ready and what does it enforce, what has it counted."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from multidict import CIMultiDictProxy

from gateway.core.grants import NO_GRANTS, Grants
from gateway.core.policy import Budget, Policy, Share, Terms
from gateway.ledger.contract import Ledger
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.server.pages import PrincipalOf, json_reply
from gateway.server.routes import Route
from gateway.server.views import Json
from gateway.wire.exchange import Inbound, Reply
from gateway.wire.problem import amount_text

_TEXT: Final = (("Content-Type", CONTENT_TYPE), ("Cache-Control", "no-store"))


@dataclass(frozen=True, slots=True)
class Serving:
    """What is in force at this moment. `policy_error`: why the file, as it is now, could not be taken; the policy before it stays."""

    policy: Policy
    policy_error: str | None
    price_table_version: str
    gateway_version: str
    unmetered: tuple[str, ...] = ()  # routes that the config lets pass: no gate bounds what they cost
    grants: Grants = NO_GRANTS


@dataclass(frozen=True, slots=True)
class Ops:
    """`principal_of`: who may ask for more than /healthz; None on a loopback listener, where no credential is asked. `shedding`: why calls
    are refused for want of room at this moment, if they are."""

    ledger: Ledger
    metrics: Metrics
    serving: Callable[[], Serving]
    principal_of: PrincipalOf | None
    shedding: Callable[[], str | None]

    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", "/", self.root),
            Route("GET", "/run/{id}", self.root),
            Route("GET", "/run/{id}/", self.root),
            Route("GET", "/healthz", self.healthz),
            Route("GET", "/readyz", self.readyz),
            Route("GET", "/metrics", self.metrics_text),
        )

    async def root(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """What answers at a base URL: Claude Code looks there first. Off loopback it says nothing that is worth a credential."""
        del inbound, params
        about: Json = {"name": "penstock", "about": "a reverse proxy that gives every AI agent run a spending ceiling"}
        if self.principal_of is None:
            about |= {"version": self.serving().gateway_version}
        base_urls = {"openai": "/v1 or /run/RUN_ID/v1", "anthropic": "/ or /run/RUN_ID"}
        return json_reply({**about, "base_urls": base_urls, "models": "/v1/models", "health": "/healthz", "docs": "docs/api.md"})

    async def healthz(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """200 while the process serves at all: restarting it would help nothing that /readyz reports, and least of all too much work."""
        del inbound, params
        shedding = self.shedding()
        return json_reply({"status": "ok"} if shedding is None else {"status": "ok", "shedding": shedding})

    async def readyz(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """503 while the ledger does not serve, or did not tell yet which grants there are: without it no call passes. A policy file that can't be taken is told, and is no 503:
        the gateway goes on with the policy it has. Nor is `shedding`: were each gateway that has too much to do taken away, none would be
        left for what they still do."""
        del params
        self._check(inbound.headers)
        serving, ledger = self.serving(), self.ledger.health()
        grants = serving.grants
        ready = bool(ledger.get("ok")) and grants.unread is None
        status: Json = {
            "ready": ready,
            "ledger": ledger,
            "shedding": self.shedding(),
            "policy_version": serving.policy.version,
            "policy_error": serving.policy_error,
            "gates": [_gate(budget) for budget in serving.policy.budgets],
            "grants": grants.counts if grants.unread is None else {"unread": grants.unread.why},
            "unmetered_routes": list(serving.unmetered),
            "versions": {"gateway": serving.gateway_version, "price_table": serving.price_table_version},
        }
        return json_reply(status, 200 if ready else 503)

    async def metrics_text(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """Prometheus' text format, of all workers."""
        del params
        self._check(inbound.headers)
        self.metrics.flush()
        return Reply(200, await asyncio.to_thread(self.metrics.exposition), _TEXT)

    def _check(self, headers: CIMultiDictProxy[str]) -> None:
        if self.principal_of is not None:
            self.principal_of(headers)


def _gate(budget: Budget) -> Json:
    return {
        "name": budget.name,
        **({} if budget.renamed_from is None else {"renamed_from": budget.renamed_from}),
        "scope": "+".join(budget.scope) or "tenant",
        "window": budget.window_name,
        "timezone": budget.timezone.key,
        **_terms(budget.terms),
        "overrides": [{"match": dict(override.match), **_terms(override.terms)} for override in budget.overrides],
    }


def _terms(terms: Terms) -> Json:
    limit = terms.limit
    if isinstance(limit, Share):
        shown = f"{limit.ppm / 10_000:g}% of {limit.budget}"
    else:
        shown = amount_text(limit.amount, limit.unit)
    return {"limit": shown, "mode": terms.mode.value}
