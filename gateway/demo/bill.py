"""What a provider would put on its invoice: every call it served, priced exactly. Shares no arithmetic with the gateway, so that the
two can be compared."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Self

MICROCENTS = 100_000_000  # in a dollar


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens. Cached input costs as much as other input where nothing is said."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """`INPUT:OUTPUT` or `INPUT:OUTPUT:CACHED`, such as `1.25:10:0.125`."""
        parts = [Decimal(part) for part in text.split(":")]
        if not 2 <= len(parts) <= 3 or any(not part.is_finite() or part < 0 for part in parts):
            raise ValueError(f"expected INPUT:OUTPUT or INPUT:OUTPUT:CACHED in dollars per million tokens, got {text!r}")
        return cls(*parts)

    def microcents(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """Each class of tokens is rounded up on its own."""
        cached = self.input if self.cached_input is None else self.cached_input
        lines = ((prompt_tokens - cached_tokens, self.input), (cached_tokens, cached), (completion_tokens, self.output))
        return sum(ceil(Fraction(tokens) * Fraction(rate) * MICROCENTS / 1_000_000) for tokens, rate in lines)


@dataclass(frozen=True, slots=True)
class BilledCall:
    """One line of the bill. `ended`: `whole`, or `cut` where only a part of the reply was generated."""

    model: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    microcents: int
    ended: str


@dataclass(slots=True)
class Bill:
    """Grows by one line for each call that was answered, and only then: an error costs nothing."""

    prices: Mapping[str, Price]
    calls: list[BilledCall] = field(default_factory=list)

    def add(self, model: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int, ended: str) -> BilledCall:
        microcents = self.prices[model].microcents(prompt_tokens, cached_tokens, completion_tokens)
        call = BilledCall(model, prompt_tokens, cached_tokens, completion_tokens, microcents, ended)
        self.calls.append(call)
        return call

    @property
    def microcents(self) -> int:
        return sum(call.microcents for call in self.calls)

    def as_object(self) -> dict[str, object]:
        by_model: dict[str, int] = {}
        for call in self.calls:
            by_model[call.model] = by_model.get(call.model, 0) + call.microcents
        return {
            "microcents": self.microcents,
            "usd": f"{Decimal(self.microcents) / MICROCENTS:.8f}",
            "by_model_microcents": by_model,
            "calls": [asdict(call) for call in self.calls],
        }
