"""What each model costs and can do. Pure: the catalog's data is read by `bundled`, the operator's additions by `settings`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from gateway.core.measures import CACHE_WRITE_LONG, CACHED, INPUT_TOKENS, REQUESTS, measure_of
from gateway.core.money import Microcents


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of one tier, in microcents per million tokens. Cached and cache-write rates that a provider does not list are
    the input rate; reasoning is billed as output unless it is dearer."""

    input: int
    output: int
    cached_input: int
    cache_write: int
    above_input_tokens: int = 0  # the tier applies to calls with more input than this
    # Cache writes that live longer (Anthropic's 1 hour, OpenAI's 12): for calls that ask for that. None: as `cache_write`.
    cache_write_long: int | None = None
    others: tuple[tuple[str, int], ...] = ()  # of token classes of `core.measures` that have a price of their own; sorted
    dearest_input: int = field(init=False, compare=False)  # for a call that asks for no long-lived cache
    rounding: int = field(init=False, compare=False)  # what pricing three classes of input separately may add, in microcents

    def __post_init__(self) -> None:
        classes = (self.input, self.cached_input, self.cache_write)
        object.__setattr__(self, "dearest_input", max(classes))
        object.__setattr__(self, "rounding", 2 if any(price % 1_000_000 for price in classes) else 0)

    def of(self, measure: str) -> int:
        """The price of one of the other classes of tokens: its own, else that of the class that stands for it."""
        own = self.own(measure)
        if own is not None:
            return own
        if measure == CACHE_WRITE_LONG:
            return self.cache_write
        if measure in CACHED:
            uncached = self.own(CACHED[measure])
            return self.cached_input if uncached is None else uncached
        return self.input if measure in INPUT_TOKENS else self.output

    def own(self, measure: str) -> int | None:
        if measure == CACHE_WRITE_LONG:
            return self.cache_write_long
        for name, price in self.others:
            if name == measure:
                return price
        return None


@dataclass(frozen=True, slots=True)
class Model:
    """One model at one provider. `tiers` is ordered by `above_input_tokens`; the first starts at 0. Empty: no price known."""

    name: str
    provider: str
    tiers: tuple[Rates, ...]
    context: int  # tokens of input and output together
    max_output: int
    max_input: int | None = None
    capabilities: frozenset[str] = frozenset()
    parameters: frozenset[str] | None = None  # request parameters it accepts; None: not known, so all
    service_tiers: tuple[tuple[str, tuple[Rates, ...]], ...] = ()  # ("priority", tiers), ("flex", tiers)
    # Of what is billed by the piece, in microcents per million pieces; sorted. 0: it is known to cost nothing more.
    fees: tuple[tuple[str, int], ...] = ()
    dialects: frozenset[str] | None = None  # what it can be asked in; None: not known, so all
    encoding: str | None = None  # "o200k_base", "cl100k_base"; None: no public tokenizer
    reasoning: bool = False
    free: bool = False
    retired: bool = False  # past the end its provider announced: served to those who ask for it, never chosen for them

    request_fee: int = field(init=False, compare=False)  # of each call, whatever it uses; 0 where there is none
    _fees: Mapping[str, int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_fees", dict(self.fees))
        object.__setattr__(self, "request_fee", self._fees.get(REQUESTS, 0))

    @property
    def priced(self) -> bool:
        return self.free or bool(self.tiers)

    @property
    def base_only(self) -> bool:
        """`ft:gpt-4o-mini-2024-07-18`: what the fine-tuned models of this base cost, and nothing that could be asked for itself."""
        return self.name.startswith("ft:") and self.name.count(":") == 1

    def fee(self, piece: str) -> int | None:
        """Of one kind (`images/hd/1024x1024`), else of its measure (`images`). None: nobody told us."""
        known = self._fees
        return known.get(piece, known.get(measure_of(piece))) if known else None


@dataclass(frozen=True, slots=True)
class Route:
    """One way to have a model served: at a provider, by the name that it has there, with the prices and limits of that one."""

    provider: str
    model: Model  # its `name` is what the provider is asked for


@dataclass(frozen=True, slots=True)
class Catalog:
    """Models by name, the operator's own entries laid over the bundled ones."""

    version: str
    models: Mapping[str, Model]
    # Provider of names that match a glob (`providers.local.models: ["gemma-*"]`), in the file's order.
    served_by: tuple[tuple[str, str], ...] = field(default=())
    # The dialects that each provider speaks, by its profile. One that is not named speaks all.
    spoken: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # Models that the config gives several routes, in the order in which they are tried.
    routes: Mapping[str, tuple[Route, ...]] = field(default_factory=dict)
    # What is reserved for each request with a field that nothing models (`Call.unpriced`), or for pieces without a fee: no bound.
    flat: Mapping[str, Microcents] = field(default_factory=dict)

    def find(self, name: str) -> Model | None:
        """A fine-tuned model (`ft:gpt-4o-mini-2024-07-18:acme::id`) costs what every one of its base does."""
        model = self.models.get(name)
        if model is None and name.startswith("ft:"):
            base = self.models.get(":".join(name.split(":", 2)[:2]))
            return None if base is None else replace(base, name=name)
        return model

    def provider_of(self, name: str) -> str | None:
        """The provider that serves a model name, whether or not its price is known."""
        for glob, provider in self.served_by:
            if fnmatchcase(name, glob):
                return provider
        model = self.find(name)
        return model.provider if model else None

    def speaks(self, provider: str, dialect: str) -> bool:
        spoken = self.spoken.get(provider)
        return spoken is None or dialect in spoken

    def routes_of(self, name: str) -> tuple[Route, ...]:
        """Where a model can be had; empty where nobody is known to serve it."""
        model, provider = self.find(name), self.provider_of(name)
        if model is None or provider is None:
            return ()
        return self.routes.get(name) or (Route(provider, model),)

    def of_provider(self, provider: str) -> Iterable[Model]:
        return (model for model in self.models.values() if self.provider_of(model.name) == provider)
