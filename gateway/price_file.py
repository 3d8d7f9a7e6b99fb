"""What a model costs, as the config says it → `Rates` and fees, exactly. Every mistake is located; what is not said stays as bundled."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final

from pydantic import Field

from gateway.core import measures
from gateway.core.catalog import Model, Rates
from gateway.core.money import MICROCENTS_PER_USD
from gateway.yaml_fields import Word, preset, whole
from gateway.yaml_source import Place, Reader, Reads, Section, Unexpected

MAX_PRICE_USD: Final = 100_000  # per million tokens: a slipped decimal point, rather than a price
MAX_FEE_USD: Final = 1_000  # of one image, second, search …
_PIECES: Final = 1_000_000  # fees are held per million pieces, so that a character's price is an integer

# What a model that is billed by the piece takes, where nothing is said: more than any of them do.
PIECEWISE_CONTEXT: Final = 131_072
PIECEWISE_MAX_OUTPUT: Final = 16_384

# Keys of a price → the measures that they are fees of.
FEES: Final[Mapping[str, str]] = {
    "per_request": measures.REQUESTS,
    "per_image": measures.IMAGES,
    "per_second": measures.AUDIO_SECONDS,
    "per_character": measures.CHARACTERS,
    "web_search": measures.WEB_SEARCHES,
    "file_search": measures.FILE_SEARCHES,
    "code_session": measures.CODE_SESSIONS,
}
_WORK: Final = ("per_request", "per_image", "per_second", "per_character")
_CLASSES: Final = (
    measures.AUDIO_INPUT,
    measures.AUDIO_OUTPUT,
    measures.CACHED_AUDIO,
    measures.CACHED_IMAGE,
    measures.IMAGE_INPUT,
    measures.IMAGE_OUTPUT,
)

_IMPLIED: Final[Mapping[str, tuple[str, ...]]] = {
    "audio_input": ("audio_input", "per_second"),
    "audio_output": ("audio_output", "per_character"),
    "vision": ("image_input",),
}

Fees = tuple[tuple[str, int], ...]  # kind ("" for any), microcents per million pieces


# -- kinds of values --------------------------------------------------------------------------------------------------------------


def _usd(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unexpected
    try:
        return Decimal(value.removeprefix("$") if isinstance(value, str) else str(value))
    except InvalidOperation:
        raise Unexpected from None


def _parse_price(value: object) -> int:
    """USD per million tokens → microcents per million tokens, exactly."""
    usd = _usd(value)
    if not usd.is_finite() or usd <= 0:
        raise Unexpected(f"a price above 0; a model that costs nothing says `free: true`{'' if usd.is_finite() else ', not NaN'}")
    if usd > MAX_PRICE_USD:
        raise Unexpected(f"at most {MAX_PRICE_USD:,} US dollars per million tokens")
    microcents = usd * MICROCENTS_PER_USD
    if microcents != microcents.to_integral_value():
        raise Unexpected("a price with at most 8 decimals")
    return int(microcents)


def _fee(value: object, *, may_be_nothing: bool) -> int:
    usd = _usd(value)
    if not usd.is_finite() or usd < 0 or (usd == 0 and not may_be_nothing):
        raise Unexpected(f"an amount {'of at least' if may_be_nothing else 'above'} 0{'' if usd.is_finite() else ', not NaN'}")
    if usd > MAX_FEE_USD:
        raise Unexpected(f"at most {MAX_FEE_USD:,} US dollars for one")
    microcents = usd * MICROCENTS_PER_USD * _PIECES
    if microcents != microcents.to_integral_value():
        raise Unexpected("an amount with at most 14 decimals")
    return int(microcents)


def _parse_work_fee(value: object) -> Fees:
    return (("", _fee(value, may_be_nothing=False)),)


def _parse_tool_fee(value: object) -> Fees:
    """0: it is known to cost nothing."""
    return (("", _fee(value, may_be_nothing=True)),)


def _by_kind(value: object, *, may_be_nothing: bool) -> Fees:
    if not isinstance(value, dict):
        return (("", _fee(value, may_be_nothing=may_be_nothing)),)
    if not value or not all(isinstance(kind, str) and kind and kind.isprintable() for kind in value):
        raise Unexpected
    fees = [(str(kind), _fee(each, may_be_nothing=may_be_nothing)) for kind, each in value.items()]
    # A kind that is not listed costs what the dearest does.
    return (*fees, ("", max(fee for _, fee in fees)))


def _parse_image_fee(value: object) -> Fees:
    return _by_kind(value, may_be_nothing=False)


def _parse_search_fee(value: object) -> Fees:
    return _by_kind(value, may_be_nothing=True)


_PRICE: Final = Reads(
    _parse_price,
    "a price in US dollars per million tokens, such as 0.25",
    {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}], "examples": [0.25]},
)
_A_FEE: Final[Mapping[str, object]] = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}
_FEES_BY_KIND: Final[Mapping[str, object]] = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string"},
        {"type": "object", "additionalProperties": {"type": ["number", "string"]}},
    ]
}
Price = Annotated[int, _PRICE]
WorkFee = Annotated[Fees, Reads(_parse_work_fee, "an amount in US dollars such as 0.006", _A_FEE)]
ToolFee = Annotated[Fees, Reads(_parse_tool_fee, "an amount in US dollars such as 0.0025", _A_FEE)]
ImageFee = Annotated[
    Fees, Reads(_parse_image_fee, "an amount in US dollars such as 0.04, or such amounts by quality/size", _FEES_BY_KIND)
]
SearchFee = Annotated[
    Fees, Reads(_parse_search_fee, "an amount in US dollars such as 0.01, or such amounts by low, medium and high", _FEES_BY_KIND)
]
Tokens = Annotated[int, whole(1, 100_000_000)]


# -- the file's shape -------------------------------------------------------------------------------------------------------------


class RatesFile(Section):
    input: Price | None = preset(
        None, description="Input tokens, in US dollars per million. Required but where work is billed by the piece."
    )
    output: Price | None = preset(None, description="Output tokens. Required for a model that writes any.")
    cached_input: Price | None = preset(None, description="Input read from the provider's cache. Default: the input price.")
    cache_write: Price | None = preset(None, description="Input written to the provider's cache. Default: the input price.")
    cache_write_long: Price | None = preset(
        None, description="The same, where the request asks for a cache that lives longer. Default: the cache-write price."
    )
    audio_input: Price | None = preset(None, description="Sound, as tokens of input. Default: the input price.")
    cached_audio: Price | None = preset(
        None, description="The same, read from the provider's cache. Default: its price otherwise."
    )
    audio_output: Price | None = preset(None, description="Sound, as tokens of output. Default: the output price.")
    image_input: Price | None = preset(None, description="Images, as tokens of input. Default: the input price.")
    cached_image: Price | None = preset(
        None, description="The same, read from the provider's cache. Default: its price otherwise."
    )
    image_output: Price | None = preset(None, description="Images, as tokens of output. Default: the output price.")


class TierFile(RatesFile):
    above_input_tokens: Tokens = Field(description="The tier counts for calls with more input than this.")


class ServiceTierFile(RatesFile):
    tiers: list[TierFile] = preset([], description="Other prices for long input, in ascending order.")


class PriceFile(ServiceTierFile):
    service_tiers: dict[Word, ServiceTierFile] = preset(
        {}, description="Prices by `service_tier`: `priority`, `flex` … What is bundled for others stays."
    )
    per_request: WorkFee | None = preset(None, description="For each call, whatever it uses. In US dollars, as all that follow.")
    per_image: ImageFee | None = preset(
        None,
        description="For each image that it makes: one amount, or a map such as `{standard/1024x1024: 0.04, hd/1024x1024: 0.08}`.",
    )
    per_second: WorkFee | None = preset(None, description="For each second of sound that it hears.")
    per_character: WorkFee | None = preset(None, description="For each character that it speaks.")
    web_search: SearchFee | None = preset(
        None,
        description="For each web search: one amount, or a map such as `{low: 0.005, medium: 0.008, high: 0.012}`. 0: nothing more.",
    )
    file_search: ToolFee | None = preset(None, description="For each search in stored files.")
    code_session: ToolFee | None = preset(None, description="For each session of an interpreter.")

    @property
    def implies(self) -> frozenset[str]:
        """What a model can do that has a price for it."""
        return frozenset(ability for ability, keys in _IMPLIED.items() if any(getattr(self, key) is not None for key in keys))

    @property
    def by_the_piece(self) -> bool:
        return any(getattr(self, key) is not None for key in _WORK)


# -- reading ----------------------------------------------------------------------------------------------------------------------


def check(reader: Reader, place: Place, price: PriceFile, *, known: bool, writes: bool) -> None:
    """`known`: the model has prices of tokens already, which stay where none is said. `writes`: it is known to write tokens."""
    if price.input is None and price.output is None and (known or price.by_the_piece):
        if price.tiers or (price.service_tiers and not known):
            reader.refuse((*place, "input"), "a price per million tokens: tiers have some")
        return
    writes = writes or price.output is not None
    _check_rates(reader, place, price, writes)
    _check_tiers(reader, (*place, "tiers"), price.tiers, writes)
    for name, tier in price.service_tiers.items():
        _check_rates(reader, (*place, "service_tiers", name), tier, writes)
        _check_tiers(reader, (*place, "service_tiers", name, "tiers"), tier.tiers, writes)


def _check_rates(reader: Reader, place: Place, rates: RatesFile, writes: bool) -> None:
    for key, required in (("input", True), ("output", writes)):
        if required and getattr(rates, key) is None and reader.sound(*place, key):
            reader.refuse((*place, key), f"{_PRICE.expected} (the key is required)")


def _check_tiers(reader: Reader, place: Place, tiers: list[TierFile], writes: bool) -> None:
    for i, tier in enumerate(tiers):
        _check_rates(reader, (*place, i), tier, writes)
        if i and tier.above_input_tokens <= tiers[i - 1].above_input_tokens:
            reader.refuse((*place, i, "above_input_tokens"), "more than the tier before it")


def priced(bundled: Model, price: PriceFile) -> Model:
    """The model at the config's prices. A class of tokens, a service tier or a fee that these don't name stays as bundled."""
    known = dict(bundled.tiers[0].others) if bundled.tiers else {}
    service_tiers = dict(bundled.service_tiers)
    service_tiers.update((name, _tiers(tier, known)) for name, tier in price.service_tiers.items())
    fees = dict(bundled.fees)
    for key, measure in FEES.items():
        said: Fees | None = getattr(price, key)
        if said is not None:
            fees = {piece: fee for piece, fee in fees.items() if measures.measure_of(piece) != measure}
            fees.update((f"{measure}/{kind}" if kind else measure, fee) for kind, fee in said)
    return replace(
        bundled,
        tiers=bundled.tiers if price.input is None and bundled.tiers else _tiers(price, known),
        service_tiers=tuple(service_tiers.items()),
        fees=tuple(sorted(fees.items())),
        free=False,
    )


def _tiers(price: ServiceTierFile, known: Mapping[str, int]) -> tuple[Rates, ...]:
    return (_rates(price, 0, known), *(_rates(tier, tier.above_input_tokens, known) for tier in price.tiers))


def _rates(price: RatesFile, above_input_tokens: int, known: Mapping[str, int]) -> Rates:
    fresh = price.input or 0
    said = {measure: own for measure in _CLASSES if (own := getattr(price, measure)) is not None}
    return Rates(
        input=fresh,
        output=price.output or 0,
        cached_input=price.cached_input or fresh,
        cache_write=price.cache_write or fresh,
        above_input_tokens=above_input_tokens,
        cache_write_long=price.cache_write_long,
        others=tuple(sorted({**known, **said}.items())),
    )
