"""The models that tests use, once for everyone: their prices as the provider bills them and as the gateway's config states them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.demo.bill import Price


@dataclass(frozen=True, slots=True)
class TestModel:
    """A model of the config's `models:` map. Dollars per million tokens as text, so that nothing is rounded on the way."""

    __test__ = False

    name: str
    input: str
    output: str
    cached_input: str | None = None
    context: int = 200_000
    max_output: int = 16_384
    capabilities: tuple[str, ...] = ("tools", "vision", "json_schema")
    encoding: str | None = "o200k_base"

    @property
    def price(self) -> Price:
        return Price.parse(":".join(part for part in (self.input, self.output, self.cached_input) if part is not None))

    def as_config(self, provider: str) -> dict[str, Any]:
        price: dict[str, float] = {"input": float(self.input), "output": float(self.output)}
        if self.cached_input is not None:
            price["cached_input"] = float(self.cached_input)
        entry: dict[str, Any] = {
            "provider": provider,
            "price": price,
            "context": self.context,
            "max_output": self.max_output,
            "capabilities": list(self.capabilities),
        }
        return entry if self.encoding is None else {**entry, "encoding": self.encoding}


BIG: Final = TestModel("big-model", "2.50", "10")
SMALL: Final = TestModel("small-model", "0.15", "0.60")
MODELS: Final = (BIG, SMALL)


def price_table(*models: TestModel) -> Mapping[str, Price]:
    return {model.name: model.price for model in models or MODELS}
