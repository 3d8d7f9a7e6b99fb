"""Which plans may serve a call, and the ceilings each has to fit under. Pure: same call, policy, prices, the same ladder.

Nothing here knows a balance. The ladder goes to the ledger, which holds the first plan that fits: a downgrade is data.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.core import estimate, slices
from gateway.core.anchors import Chain
from gateway.core.catalog import Catalog, Model, Route
from gateway.core.ceilings import Ceilings, DimensionRequired, Standing
from gateway.core.grants import NO_GRANTS, Grants
from gateway.core.learned import Learned
from gateway.core.measures import measure_of
from gateway.core.money import Microcents
from gateway.core.policy import Policy
from gateway.core.record import record
from gateway.core.scopes import NO_VALUE, Amounts, Caller
from gateway.core.tokens import TokenCounter
from gateway.core.values import SAME_MODEL, Call, Decision, InputBasis, Output, Part, Passed, Plan, Slice

# What some models bill above their text: the catalog withholds the capability where the price of that is not known.
PRICED_MEDIA: Final = frozenset({"vision", "audio_input", "audio_output"})
SMALLEST_CLAMP: Final = 256  # output tokens
CLAMPS: Final = (2, 4, 8)


@record
class Unservable:
    """No plan at all, whatever the balances: the requested model is unknown, unpriced, not allowed, not able or too small."""

    code: str
    message: str
    param: str | None = None


@record
class Reach:
    """The providers that a caller's calls can go to: those with a credential; and those of all that had better not be asked now.
    `models`: those that can be asked for instead of what was; None: all."""

    served: frozenset[str]
    resting: frozenset[str] = frozenset()
    models: Collection[str] | None = None


@record
class Offer:
    """A model as the policy and the catalog have it, whatever the call."""

    model: Model  # as its first route has it
    routes: tuple[Route, ...]  # in the order in which they are tried; all priced
    instead: tuple[str, ...]  # the models of its ladder, in the order in which they are tried
    models: tuple[Model, ...]  # of its ladder, as all their routes have them


@dataclass(slots=True, eq=False)  # not frozen, which would cost a tenth of a decision; nobody assigns to it
class Rung:
    """A model as one call would use it, by one of its routes."""

    name: str  # as it is asked for here
    model: Model
    provider: str
    cap: int
    input_tokens: int
    cost_max: Amounts
    input_basis: InputBasis


class Rulebook:
    """A policy, the grants beside it and a catalog, ready to decide. Made once per policy, and again when a grant changes; its caches
    hold nothing that a restart would miss."""

    def __init__(
        self,
        policy: Policy,
        catalog: Catalog,
        counter: TokenCounter,
        learned: Learned | None = None,
        grants: Grants = NO_GRANTS,
    ) -> None:
        self.policy = policy
        self.catalog = catalog
        self.grants = grants
        self.counter = counter
        self.learned = learned or Learned(counter)  # outlives a policy, where the next one is made with the same
        # Headers that say who is calling: they never go upstream.
        self.identity_headers = policy.identity_headers | {
            source.name for source in policy.runs.id_from if source.kind == "header"
        }
        self._ceilings = Ceilings(policy, grants)
        self._terms = policy.runs.terms
        self._offers: dict[str, Offer | Unservable] = {}
        self._routes: dict[str, tuple[Route, ...] | Unservable] = {}
        self._beside: dict[str, tuple[str, ...]] = {}
        self._distinct: Sequence[str] | None = None  # until somebody asks

    def beside(self, grants: Grants) -> "Rulebook":
        """The same policy beside other grants."""
        rulebook = Rulebook(self.policy, self.catalog, self.counter, self.learned, grants)
        # What a model costs does not hang on grants.
        rulebook._offers, rulebook._routes, rulebook._beside = self._offers, self._routes, self._beside
        rulebook._distinct = self._distinct
        return rulebook

    # -- the decision ---------------------------------------------------------------------------------------------------------

    def counts(self, call: Call, size: int = 0) -> "Counts":
        """What its texts are found to be. Costs nothing yet; whoever goes on with the call hands it on."""
        return Counts(call, self.counter, self.learned, size)

    def decide(
        self, call: Call, reach: Reach, at_ms: int, decision_id: str, counts: "Counts | None" = None
    ) -> Decision | Unservable:
        standing = self._standing(call, at_ms)
        if isinstance(standing, Unservable):
            return standing
        hard = _is_hard(standing, call)
        call = _with_flat(call, self.catalog.flat)
        if hard and call.unpriced and (unknown := _without_reserve(call)) is not None:
            return _not_priced(unknown)
        asking = _Asking(call, reach, counts or self.counts(call), hard)
        first = self._rung(asking, call.model)
        if isinstance(first, Unservable):
            return first
        if hard and (withheld := (call.needs & PRICED_MEDIA) - first.model.capabilities):
            return _not_covered(call.model, min(withheld))
        rungs = [first]
        passed_over: Sequence[Passed] = ()
        if call.directives.downgrade:
            cheaper, passed_over = self._cheaper(asking, first)
            rungs += cheaper
            if self.policy.output.clamp_to_budget:
                rungs += _clamped(call, rungs[-1])
        ladder = _ladder(call, rungs, standing)
        return Decision(decision_id, call, ladder, at_ms, self.catalog.version, tuple(passed_over), self._terms)

    def for_cost(
        self, call: Call, cost: Amounts, at_ms: int, decision_id: str, *, spent: bool = False, lapses: bool = False
    ) -> Decision | Unservable:
        """For work that no model here does, at a cost that the caller names: one plan, in every budget but those over models or
        providers. `spent`: it has been spent already, so nothing that is frozen or closed stands in its way. `lapses`: see `Decision`."""
        standing = self._standing(call, at_ms, spent=spent)
        if isinstance(standing, Unservable):
            return standing
        plan = Plan(call.model, NO_VALUE, 0, 0, cost, standing.whole)
        return Decision(
            *(decision_id, call, (plan,), at_ms, self.catalog.version), terms=self._terms, repeatable=True, lapses=lapses
        )

    def at_flat_cost(self, call: Call, provider: str, cost: Amounts, at_ms: int, decision_id: str) -> Decision | Unservable:
        """For a route that nothing meters: one plan, at what the config says that a call of it costs."""
        standing = self._standing(call, at_ms)
        if isinstance(standing, Unservable):
            return standing
        plan = Plan(call.model, provider, 0, 0, cost, standing.charges(call.model, provider, has_cheaper=False))
        return Decision(decision_id, call, (plan,), at_ms, self.catalog.version, terms=self._terms)

    def alternatives(
        self,
        decision: Decision,
        reach: Reach,
        fits: Callable[[Plan], bool] | None = None,
        counts: "Counts | None" = None,
        at_most: int = 5,
    ) -> Sequence[tuple[Model, Plan]]:
        """What a refused call could ask for instead: the models of its ladder, then cheaper ones of the same provider, dearest
        first. Those that fit, by the caller's word, go before those that don't."""
        call = decision.call
        standing, offer = self._standing(call, decision.at_ms), self._offer(call.model)
        if isinstance(standing, Unservable) or isinstance(offer, Unservable):
            return ()
        asking = _Asking(call, reach, counts or self.counts(call), _is_hard(standing, call))
        first = self._rung(asking, call.model)
        if isinstance(first, Unservable):
            return ()
        found: list[tuple[Model, Plan]] = []
        for name in dict.fromkeys((*offer.instead, *self._beside_of(call.model, offer))):
            rung = self._rung(asking, name)
            if not isinstance(rung, Unservable) and _unfit(call, rung, first, first) is None:
                found.append((rung.model, _plan(call, rung, standing, has_cheaper=False)))
        if fits is not None:
            found.sort(key=lambda pair: not fits(pair[1]))
        return found[:at_most]

    def choices(self, call: Call, reach: Reach, at_ms: int, counts: "Counts | None" = None) -> Iterator[Plan | None]:
        """What each model of the catalog would hold for the call, if the call named that one and took no other; None where it can't serve
        it, so that whoever asks may pause after any. None of those that are retired, or made for other work than talk; of one model's names,
        the shortest stands for all."""
        standing = self._standing(call, at_ms)
        if isinstance(standing, Unservable):
            return
        hard = _is_hard(standing, call)
        call = _with_flat(call, self.catalog.flat)
        if hard and call.unpriced and _without_reserve(call) is not None:
            return
        asking = _Asking(call, reach, counts or self.counts(call), hard)
        if self._distinct is None:
            self._distinct = self._distinct_models()
        for name in self._distinct:
            # Its output cap may be one that the policy sets by name.
            named = replace(asking, call=replace(call, model=name))
            rung = self._rung(named, name)
            if isinstance(rung, Unservable) or _unable(named.call, rung.model) is not None or _does_more(call, rung.model):
                yield None
            else:
                yield _plan(named.call, rung, standing, has_cheaper=False)

    def onward(
        self, decision: Decision, plan: Plan, tried: Collection[Route], reach: Reach, counts: "Counts | None" = None
    ) -> Plan | None:
        """Another route for a plan whose provider failed, for as much output at most; None: there is none left."""
        call = decision.call
        standing, offer = self._standing(call, decision.at_ms), self._offer(plan.model)
        if isinstance(standing, Unservable) or isinstance(offer, Unservable):
            return None
        asking = _Asking(call, reach, counts or self.counts(call), _is_hard(standing, call))
        rung = self._rung(asking, plan.model, tried)
        if isinstance(rung, Unservable):
            return None
        cap = min(rung.cap, plan.output_cap)
        rung = replace(rung, cap=cap, cost_max=estimate.worst_case(call, rung.model, rung.input_tokens, cap))
        return _plan(call, rung, standing, has_cheaper=False)

    def route(self, plan: Plan) -> Route:
        """The one that a plan goes by."""
        offer = self._offer(plan.model)
        assert isinstance(offer, Offer), plan.model
        return next(route for route in offer.routes if route.provider == plan.provider)

    def uncounted_chars(self, call: Call, counts: "Counts", *, beside: bool = False) -> int:
        """How much text deciding this call would tokenize, at the model that needs it most, or with `beside` listing its alternatives.
        Where that is much, `count` goes first, elsewhere."""
        return max(map(counts.uncounted_chars, self._counted_at(call, beside)), default=0)

    def count(self, call: Call, counts: "Counts", *, beside: bool = False) -> None:
        """All of that. On any thread, as long as it may take."""
        for model in self._counted_at(call, beside):
            counts.input_of(model)

    def _counted_at(self, call: Call, beside: bool) -> Iterator[Model]:
        offer = self._offer(call.model)
        if isinstance(offer, Offer):
            yield from offer.models
            for other in map(self._routes_of, self._beside_of(call.model, offer) if beside else ()):
                if not isinstance(other, Unservable):
                    yield other[0].model

    def run_ceiling(self, caller: Caller) -> int | None:
        """The policy's own limit for the caller's run, in microcents; None where it sets none."""
        return self._ceilings.run_ceiling(caller)

    def _standing(self, call: Call, at_ms: int, *, spent: bool = False) -> Standing | Unservable:
        standing = self._ceilings.standing(call, at_ms)
        if isinstance(standing, DimensionRequired):
            return Unservable(
                "dimension_required",
                f"the budget {standing.budget!r} needs each call to name its {standing.dimension}",
                standing.dimension,
            )
        unread = self.grants.unread
        if unread is not None and not standing.outage_allow:
            # As in an outage: only where every budget that applies would let the call through then.
            return Unservable(unread.code, f"no budget that was made while the gateway runs could be read yet: {unread.why}")
        if standing.shut is not None and not spent:
            shut = standing.shut
            return Unservable("scope_frozen", f"{shut.what} is {shut.how} by the operator: it takes no calls")
        return standing

    # -- rungs ----------------------------------------------------------------------------------------------------------------

    def _rung(self, asking: "_Asking", name: str, tried: Collection[Route] = ()) -> Rung | Unservable:
        """What the model would cost for this call by the first route that it can take, or why it can't serve it."""
        call, counts, hard = asking.call, asking.counts, asking.hard
        if asking.reach.models is not None and name != call.model and name not in asking.reach.models:
            return Unservable("model_not_served", f"nothing here serves the model {name!r}", "model")
        routes = self._routes_of(name)
        if isinstance(routes, Unservable):
            return routes
        route = self._open_route(routes, name, asking, tried)
        if isinstance(route, Unservable):
            return route
        model, provider = route.model, route.provider
        if hard and not estimate.service_tier_priced(model, call.service_tier):
            return Unservable(
                "not_estimable",
                f"what the service_tier {call.service_tier!r} costs at {name!r} is not known: leave it out, or price it in the config "
                f"(models.{name}.price.service_tiers)",
                "service_tier",
            )
        if not estimate.work_priced(call, model):
            return Unservable(
                "model_not_priced",
                f"the price of the model {name!r} is not known for calls to this route: add it to `models` in the config "
                f"(models.{name}.price)",
                "model",
            )
        if hard and call.pieces and (piece := estimate.piece_without_price(call, model)) is not None:
            return _not_priced(piece, f"at {name!r} ")
        read = counts.input_of(model)
        input_tokens = read.tokens
        cap = estimate.output_cap(call, model, read.least, self.policy.output)
        if call.output is Output.FIXED and self.policy.output.max_tokens < cap and estimate.output_billed(model):
            return Unservable(
                "not_estimable",
                f"each answer to this request takes up to {cap} output tokens, whatever cap is set, and the policy allows "
                f"{self.policy.output.max_tokens} (output.max_tokens)",
            )
        if cap < 1 and call.output is Output.CAPPED:
            return Unservable(
                "not_estimable",
                f"the input, about {input_tokens} tokens, leaves no room for output in the {model.context} tokens of {name}",
                "messages",
            )
        if cap < call.least_cap:
            return Unservable(
                "output_cap_conflict",
                f"thinking.budget_tokens ({call.least_cap - 1}) must be below the output cap, which is {cap} for {name} here (the least of "
                "max_tokens, the policy's, the model's, and what its context leaves): lower the first",
                "thinking.budget_tokens",
            )
        return Rung(name, model, provider, cap, input_tokens, estimate.worst_case(call, model, input_tokens, cap), read.basis)

    def _open_route(
        self, routes: tuple[Route, ...], name: str, asking: "_Asking", tried: Collection[Route]
    ) -> Route | Unservable:
        """The first whose provider can be reached, and does not rest; else the first that can be reached."""
        reach = asking.reach
        only = routes[0] if len(routes) == 1 and not tried else None  # of nearly every model
        if only is not None and only.provider in reach.served and self.catalog.speaks(only.provider, asking.call.dialect):
            return only
        reachable = [route for route in routes if route.provider in reach.served and route not in tried]
        if not reachable:
            providers = ", ".join(dict.fromkeys(route.provider for route in routes))
            return Unservable(
                "model_not_served",
                f"the model {name!r} is served by {providers}, for which there is no credential here",
                "model",
            )
        speaking = [route for route in reachable if self.catalog.speaks(route.provider, asking.call.dialect)]
        if not speaking:
            providers = ", ".join(route.provider for route in reachable)
            return Unservable(
                "model_not_served", f"{providers}, which serves the model {name!r}, cannot be asked on this route", "model"
            )
        return next((route for route in speaking if route.provider not in reach.resting), speaking[0])

    def _cheaper(self, asking: "_Asking", first: Rung) -> tuple[list[Rung], list[Passed]]:
        """The rungs below the first, each cheaper for this call than the one before, and the models that are none."""
        call = asking.call
        offer = self._offer(call.model)
        assert isinstance(offer, Offer)  # it made the first rung
        if not offer.instead:
            return [], []
        found: list[Rung] = []
        passed_over: list[Passed] = []
        for name in offer.instead:
            rung = self._rung(asking, name)
            if isinstance(rung, Unservable):
                passed_over.append(Passed(name, rung.message))
            else:
                found.append(rung)
        if self.policy.models.auto:
            found.sort(key=lambda rung: -rung.cost_max.usd)  # list prices gave an order; what counts is this call's cost
        rungs = [first]
        for rung in found:
            reason = _unfit(call, rung, first, rungs[-1])
            if reason is None:
                rungs.append(rung)
            else:
                passed_over.append(Passed(rung.name, reason))
        return rungs[1:], passed_over

    # -- offers ---------------------------------------------------------------------------------------------------------------

    def _offer(self, name: str) -> Offer | Unservable:
        known = self._offers.get(name)
        if known is None:
            known = self._make_offer(name)
            if name in self.catalog.models:  # callers make up names without end; the catalog is finite
                self._offers[name] = known
        return known

    def _make_offer(self, name: str) -> Offer | Unservable:
        routes = self._routes_of(name)
        if isinstance(routes, Unservable):
            return routes
        auto = self.policy.models.auto
        instead = self._cheaper_beside(routes[0].model, routes[0].provider) if auto else self.policy.models.ladder_for(name)
        instead = tuple(other for other in dict.fromkeys(instead) if other != name)
        models = tuple(route.model for each in (name, *instead) for route in self.catalog.routes_of(each))
        return Offer(routes[0].model, routes, instead, models)

    def _routes_of(self, name: str) -> tuple[Route, ...] | Unservable:
        """Those of a model that the policy allows, where its price is known, in the order in which they are tried."""
        known = self._routes.get(name)
        if known is None:
            known = self._priced_routes(name)
            if name in self.catalog.models:
                self._routes[name] = known
        return known

    def _priced_routes(self, name: str) -> tuple[Route, ...] | Unservable:
        if not self.policy.models.allows(name):
            return Unservable("model_not_served", f"the policy does not allow the model {name!r} (models.allow)", "model")
        routes = tuple(route for route in self.catalog.routes_of(name) if route.model.priced)
        if not routes:
            return Unservable(
                "model_not_priced",
                f"the price of the model {name!r} is not known, so its cost cannot be bounded: add it to `models` in the "
                "config, with its price or with `free: true`",
                "model",
            )
        return routes

    def _beside_of(self, name: str, offer: Offer) -> tuple[str, ...]:
        """The provider's cheaper models, dearest first by list price."""
        known = self._beside.get(name)
        if known is None:
            known = self._cheaper_beside(offer.model, offer.routes[0].provider)
            if name in self.catalog.models:
                self._beside[name] = known
        return known

    def _cheaper_beside(self, model: Model, provider: str) -> tuple[str, ...]:
        """The provider's cheaper models, dearest first, by the list price of output. None that it has retired, and none that only has a price."""
        ceiling = _list_price(model)
        cheaper = [
            other
            for other in self.catalog.of_provider(provider)
            if other.priced and not (other.retired or other.base_only or _is_for_other_work(other, model))
            if _list_price(other) < ceiling and self.policy.models.allows(other.name)
        ]
        cheaper.sort(key=lambda other: (-_list_price(other), other.name))
        return _shortest_names(cheaper)

    def _distinct_models(self) -> Sequence[str]:
        """Those that may be asked for."""
        models = (model for model in self.catalog.models.values() if not (model.retired or model.base_only))
        allowed = [model for model in models if model.priced and self.policy.models.allows(model.name)]
        return _shortest_names(sorted(allowed, key=lambda model: model.name))


def _shortest_names(models: Sequence[Model]) -> tuple[str, ...]:
    """Of one model's names (`gpt-5-mini`, `gpt-5-mini-2025-08-07`) the shortest stands for all. `models`: those of one price by name."""
    distinct = {replace(model, name=""): model.name for model in reversed(models)}
    return tuple(model.name for model in models if distinct[replace(model, name="")] == model.name)


def _is_for_other_work(other: Model, than: Model) -> bool:
    """Made to speak, or to search before each answer: no stand-in for a model that does neither."""
    speaks = "audio_output" in other.capabilities and "audio_output" not in than.capabilities
    return speaks or (other.request_fee > 0 and not than.request_fee)


@dataclass(slots=True, eq=False)
class _Asking:
    """One call, as its rungs are looked for."""

    call: Call
    reach: Reach
    counts: "Counts"
    hard: bool


class Counts:
    """The texts of one call: hashed once, counted once for each encoding (the models of a ladder often share one), and what that makes of
    its input at each model. May be filled on one thread and used on another, one after the other. `size`: bytes of its request."""

    __slots__ = ("_call", "_chain", "_counter", "_inputs", "_known", "_learned", "_tokens", "size")

    def __init__(self, call: Call, counter: TokenCounter, learned: Learned, size: int) -> None:
        self.size = size
        self._call = call
        self._chain: Chain | None = None
        self._counter = counter
        self._learned = learned
        self._tokens: dict[tuple[str | None, int], tuple[Sequence[Part], int]] = {}
        # By the identity of the model, as a route has it, which stands beside what is kept so that it stays one.
        self._known: dict[int, tuple[Model, estimate.Known]] = {}
        self._inputs: dict[int, tuple[Model, estimate.Input]] = {}

    @property
    def chain(self) -> Chain:
        if self._chain is None:
            self._chain = Chain(self._call)
        return self._chain

    def input_of(self, model: Model) -> estimate.Input:
        found = self._inputs.get(id(model))
        if found is None:
            read = estimate.input_of(self._call, model, self, self._known_at(model))
            found = self._inputs[id(model)] = (model, read)
        return found[1]

    def uncounted_chars(self, model: Model) -> int:
        return self._counter.look_up(self._known_at(model).new, model.encoding).pending_chars

    def _known_at(self, model: Model) -> estimate.Known:
        found = self._known.get(id(model))
        if found is None:
            found = self._known[id(model)] = (model, self._learned.known(self._call, self.chain, model))
        return found[1]

    def count_parts(self, parts: Sequence[Part], encoding: str | None) -> int:
        counted = self._tokens.get((encoding, len(parts)))
        if counted is not None and counted[0] is parts:
            return counted[1]
        tokens = self._counter.count_parts(parts, encoding)
        self._tokens[encoding, len(parts)] = (parts, tokens)
        return tokens


def _is_hard(standing: Standing, call: Call) -> bool:
    """Whether what can't be priced must be refused: no hard gate holds against a cost that nobody can bound. A limit that was set on
    the run from outside (`PUT /budget/runs/{id}`) is the ledger's knowledge, and not seen here."""
    return standing.hard or call.directives.run_limit is not None


def _with_flat(call: Call, flat: Mapping[str, Microcents]) -> Call:
    """The call with what the config reserves for what nothing models in it."""
    if not flat or not (call.unpriced or call.pieces):
        return call
    names = dict.fromkeys((*call.unpriced, *(measure_of(piece) for piece, _ in call.pieces)))
    return replace(call, flat=tuple((name, flat[name]) for name in names if name in flat))


def _without_reserve(call: Call) -> str | None:
    reserved = {name for name, _ in call.flat}
    return next((name for name in call.unpriced if name not in reserved), None)


def _not_priced(what: str, where: str = "") -> Unservable:
    return Unservable(
        "not_estimable",
        f"what {what!r} costs {where}cannot be bounded here: leave it out, or have the config set an amount aside for each such "
        f"request (reservation.flat: {{{what}: $0.25}})",
        what,
    )


def _not_covered(name: str, kind: str) -> Unservable:
    return Unservable(
        "not_estimable",
        f"what {kind} costs at {name!r} is not known: where the price of its text covers it, say so in the config, in the model's "
        f"`capabilities`",
        "messages",
    )


def _does_more(call: Call, model: Model) -> bool:
    """Made to speak, or to search before each answer, which a call that is only to be written to asks of none."""
    speaks = "audio_output" in model.capabilities and "audio_output" not in call.needs
    return call.output is Output.CAPPED and (speaks or model.request_fee > 0)


def _list_price(model: Model) -> int:
    return 0 if model.free else model.tiers[0].output


def _unfit(call: Call, rung: Rung, first: Rung, before: Rung) -> str | None:
    """Why a model cannot stand in for the requested one after the rung before it, or None."""
    unable = _unable(call, rung.model)
    if unable is not None:
        return unable
    # A client that named a cap gets it; one that named none gets each model's default, as long as it is worth having.
    enough = first.cap if call.client_cap is not None else min(first.cap, SMALLEST_CLAMP)
    if rung.cap < enough:
        return f"can write only {rung.cap} tokens here"
    if rung.cost_max.usd >= before.cost_max.usd:
        return "is not cheaper for this call" if before is first else f"is not cheaper for this call than {before.name}"
    return None


def _unable(call: Call, model: Model) -> str | None:
    """Why another model than the requested one could not serve the call, whatever it costs, or None."""
    if SAME_MODEL in call.needs:
        return "cannot go on with what another model began"
    lacking = call.needs - model.capabilities
    if lacking:
        return f"lacks {', '.join(sorted(lacking))}"
    if model.dialects is not None and call.dialect not in model.dialects:
        return "cannot be asked on this route"
    if model.parameters is not None and (unknown := call.parameters - model.parameters):
        return f"does not take {', '.join(sorted(unknown))}"
    return None


def _clamped(call: Call, last: Rung) -> list[Rung]:
    """The last model once more, with less and less output."""
    caps = [cap for divisor in CLAMPS if (cap := last.cap // divisor) >= max(SMALLEST_CLAMP, call.least_cap)]
    return [replace(last, cap=cap, cost_max=estimate.worst_case(call, last.model, last.input_tokens, cap)) for cap in caps]


def _ladder(call: Call, rungs: Sequence[Rung], standing: Standing) -> tuple[Plan, ...]:
    last = rungs[-1].name  # of which there are several rungs where the output is clamped
    return tuple([_plan(call, rung, standing, has_cheaper=rung.name != last) for rung in rungs])


def _plan(call: Call, rung: Rung, standing: Standing, *, has_cheaper: bool) -> Plan:
    name, provider = rung.name, rung.provider
    sliced = bool(standing.slices) and rung.cap > slices.FIRST and _is_metered_as_it_comes(call, rung.model)
    charges = standing.charges(name, provider, has_cheaper, sliced)
    plan = Plan(name, provider, rung.cap, rung.input_tokens, rung.cost_max, charges, input_basis=rung.input_basis)
    if not sliced:
        return plan
    return replace(plan, slice=Slice(slices.FIRST, estimate.worst_case(call, rung.model, rung.input_tokens, slices.FIRST)))


def _is_metered_as_it_comes(call: Call, model: Model) -> bool:
    """Whether its output shows while it is written, so that what is held of it can grow with it: not that of a JSON answer, which
    comes at its end, nor that of a model which may reason unseen, nor one that is fetched later."""
    unseen = call.background or (model.reasoning and call.reasons) or "audio_output" in call.needs
    return call.stream and call.output is Output.CAPPED and not unseen
