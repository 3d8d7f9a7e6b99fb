"""What a call can cost at most, and what it did cost. Pure: same call, model, counts, the same amounts.

The bound: `cost_of(usage) <= worst_case(input, cap)` for every usage whose input (of whatever classes such a call can be billed in)
is at most `input`, whose output is at most `cap` for each choice, and whose pieces are at most the call's. It does not depend on how
the provider caches: input and output are priced at the dearest of their rates, in the dearest tier that so much input may fall in.

Three things it cannot know, each an overrun when it happens: a tokenizer that is not public (a factor stands in, see `tokens`), a
project at the provider whose default service tier is `priority` while the request names none, and prices the table lacks.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from gateway.core.catalog import Model, Rates
from gateway.core.factors import UNKNOWN, Factor
from gateway.core.measures import (
    AUDIO_INPUT,
    AUDIO_OUTPUT,
    BILLED_AS,
    CACHE_WRITE_LONG,
    CACHED_AUDIO,
    CACHED_IMAGE,
    IMAGE_INPUT,
    IMAGE_OUTPUT,
    TOKENS,
    WORK,
    measure_of,
)
from gateway.core.media import attachment_tokens, image_tokens
from gateway.core.money import Microcents, price_of
from gateway.core.policy import OutputPolicy
from gateway.core.record import record
from gateway.core.scopes import Amounts
from gateway.core.tokens import REFERENCE, PartsCounter
from gateway.core.values import (
    SETTINGS,
    TOOL_RESULTS,
    Caching,
    Call,
    EstimateLine,
    InputBasis,
    Output,
    Part,
    Pieces,
    Usage,
)

# Claude puts up to 804 tokens of its own before the tools of a request; chat templates of open models put less.
_HIDDEN_TOOL_TOKENS: Final = 850

_NO_DIGITS: Final = str.maketrans("", "", "0123456789")

# Words for the ordinary rates, or for rates that are never above them.
_STANDARD_TIERS: Final = frozenset({None, "auto", "default", "standard", "standard_only", "on_demand", "flex", "batch"})
_PREPAID_TIERS: Final = frozenset({"scale"})  # answered where the capacity was bought beforehand
# Input whose price is that of text at models that list the ability: the catalog lists none whose price is not known.
_AS_TEXT: Final = {AUDIO_INPUT: "audio_input", CACHED_AUDIO: "audio_input", IMAGE_INPUT: "vision", CACHED_IMAGE: "vision"}


# -- input --------------------------------------------------------------------------------------------------------------------


@record
class Known:
    """What helps to estimate one call at one model, beyond what is in it (see `learned`)."""

    new: tuple[Part, ...]  # the parts that `before` does not cover: all of them where there is none
    before: int | None = None  # tokens, by the provider's own count, of all that stands before the new parts
    doubted: bool = False  # such counts have proved too low
    factor: Factor = UNKNOWN


@record
class Input:
    """The estimate of a call's input."""

    tokens: int  # to hold
    least: (
        int  # what it surely takes, as far as anybody can say: room for output is reckoned with it. Of one of the call's inputs
    )
    basis: InputBasis


def input_of(call: Call, model: Model, counter: PartsCounter, known: Known | None = None) -> Input:
    """What to hold for the input. It never passes what the model can take, since the provider refuses more, unless the input surely
    is more: then `output_cap` finds no room."""
    if known is None:
        known = Known(call.parts)
    if call.counted is not None:
        return Input(call.counted, call.counted, InputBasis.COUNTED)
    limit = _input_limit(model) * call.inputs
    new = known.new
    text = counter.count_parts(new, model.encoding or REFERENCE)
    if _has_unseen(call, known):
        return Input(max(limit, text) * call.readings, text, InputBasis.BOUNDED)
    tokens, exact = text, True
    if model.encoding is None:
        tokens, exact = (
            known.factor.scaled(new, lambda parts: counter.count_parts(parts, REFERENCE)) + _hidden_tokens(call, new),
            False,
        )
    media = any(part.images or part.attachments for part in new)
    if media:
        tokens, exact = tokens + _media_tokens(model, new), False
    least, before = text, known.before
    if before is None:
        basis = InputBasis.BOUNDED if media else InputBasis.COUNTED if exact else InputBasis.FACTOR
    else:
        basis, tokens = InputBasis.ANCHORED, before + tokens
        if call.continues is not None:
            exact = False  # of what came before, the provider may drop the reasoning
        else:
            least += before
            if known.doubted:
                tokens = max(tokens, input_of(call, model, counter, Known(call.parts, factor=known.factor)).tokens)
    if tokens > limit and not exact:
        if model.encoding is None:
            least -= _digits_surplus(new)
        if least <= limit:
            tokens = limit
            basis = InputBasis.BOUNDED if before is None else basis
    # Inputs of one request are mostly alike; the provider refuses one that is too long.
    return Input(tokens * call.readings, -(-least // call.inputs), basis)


def input_tokens(call: Call, model: Model, counter: PartsCounter, known: Known | None = None) -> int:
    return input_of(call, model, counter, known).tokens


def output_cap(call: Call, model: Model, input_least: int, policy: OutputPolicy) -> int:
    """`effective_max_output_tokens`, per choice: the least of the client's cap (or the policy's default), the policy's cap, the
    model's and what its context leaves. 0: the input leaves no room, and the model can't serve the call. Where no cap can be
    written, what the request itself leads to.

    Where the input is bounded rather than counted, room is reckoned with what it takes at least: the hold is then a little
    larger than the context allows, instead of the answer being cut short or refused for a guess.
    """
    if call.output is not Output.CAPPED:
        return call.client_cap or 0
    if input_least > _input_limit(model):
        return 0
    wanted = call.client_cap if call.client_cap is not None else policy.default_for(call.model)
    caps = (policy.max_tokens, model.max_output, model.context - input_least)
    return max(0, min(caps) if wanted is None else min(wanted, *caps))


def _has_unseen(call: Call, known: Known) -> bool:
    """The provider puts something before the input that nobody here has seen, or adds what its own tools bring."""
    if call.continues is not None and known.before is None:
        return True
    return call.readings > 1 and not any(part.role == TOOL_RESULTS for part in call.parts)


def _input_limit(model: Model) -> int:
    return model.context if model.max_input is None else min(model.context, model.max_input)


def _hidden_tokens(call: Call, new: Sequence[Part]) -> int:
    """What the provider adds for tools. An anchor has it."""
    return _HIDDEN_TOOL_TOKENS if "tools" in call.needs and len(new) == len(call.parts) else 0


def _digits_surplus(parts: Sequence[Part]) -> int:
    """At most so many tokens of the reference's count come from its counting each digit."""
    digits = sum(len(text) - len(text.translate(_NO_DIGITS)) for part in parts for text in part.texts)
    return digits * 2 // 3


def _media_tokens(model: Model, parts: Sequence[Part]) -> int:
    tokens = 0
    for part in parts:
        tokens += sum(image_tokens(model.name, image) for image in part.images)
        if part.attachments:
            attached = attachment_tokens(model.name, part.attachments)
            tokens += _input_limit(model) if attached is None else attached
    return tokens


# -- price --------------------------------------------------------------------------------------------------------------------


def service_tier_priced(model: Model, service_tier: str | None) -> bool:
    """False: the request asks for a service tier whose price nobody told us, and which may be dearer."""
    return model.free or service_tier in _STANDARD_TIERS or any(name == service_tier for name, _ in model.service_tiers)


def work_priced(call: Call, model: Model) -> bool:
    """False: the model has no price for what such a call is for: tokens in and out, or images, sound, characters. An embedding
    model has none for an answer, one that is billed by the image none for a chat."""
    if model.free or model.request_fee:
        return True
    if call.pieces and any(measure_of(piece) in WORK and model.fee(piece) is not None for piece, _ in call.pieces):
        return True
    return model.tiers[0].input > 0 and (call.output is Output.NONE or output_billed(model))


def output_billed(model: Model) -> bool:
    """The model bills what it writes by the token."""
    if model.free:
        return False
    rates = model.tiers[0]
    return rates.output > 0 or rates.of(AUDIO_OUTPUT) > 0 or rates.of(IMAGE_OUTPUT) > 0


def piece_without_price(call: Call, model: Model) -> str | None:
    """Something that the call may be billed for by the piece, and for which there is neither a fee nor a flat reserve."""
    if model.free:
        return None
    flat = dict(call.flat)
    for piece, _ in call.pieces:
        measure = measure_of(piece)
        if measure not in WORK and model.fee(piece) is None and measure not in flat:
            return measure
    return None


def output_held(call: Call, cap: int) -> int:
    """Output tokens of all choices together, at most."""
    return 0 if call.output is Output.NONE else cap * call.choices + call.predicted


def worst_case(call: Call, model: Model, input_tokens: int, cap: int) -> Amounts:
    """The most that so much input, `cap` output tokens for each choice, and the pieces of the call can cost. The model must be
    priced. A flat reserve is in it, which bounds nothing."""
    output_tokens = output_held(call, cap)
    tokens = input_tokens + output_tokens
    if model.free:
        return Amounts(0, tokens)
    input_rate, output_rate, rounding = _dearest(model, call, input_tokens)
    usd = price_of(input_tokens, input_rate) + price_of(output_tokens, output_rate) + rounding
    if call.pieces:
        usd += _fees(model, call.pieces)
    if model.request_fee:
        usd += price_of(1, model.request_fee)
    if call.flat:
        usd += flat_charge(call, model)
    return Amounts(Microcents(usd), tokens)


def cost_of(model: Model, usage: Usage, service_tier: str | None) -> Amounts:
    """What the usage costs, each class rounded up on its own. `service_tier` is the provider's word for how it served the call
    where it said so, else the request's; one without rates of its own costs the ordinary ones."""
    input_tokens = usage.total_input_tokens
    tokens = input_tokens + usage.total_output_tokens
    if model.free:
        return Amounts(0, tokens)
    rates = _rates(_tiers(model, service_tier), input_tokens)
    usd = price_of(usage.input_tokens, rates.input) + price_of(usage.output_tokens, rates.output)
    if usage.cached_tokens:
        usd += price_of(usage.cached_tokens, rates.cached_input)
    if usage.cache_write_tokens:
        usd += price_of(usage.cache_write_tokens, rates.cache_write)
    if usage.others:
        usd += sum(price_of(number, rates.of(measure)) for measure, number in usage.others if measure in TOKENS)
        usd += _fees(model, usage.others)
    if model.request_fee:
        usd += price_of(1, model.request_fee)
    return Amounts(usd, tokens)


def flat_charge(call: Call, model: Model, told: Collection[str] = ()) -> int:
    """The flat reserves that a call is held, and charged, in full. Not those of fields whose real number the answer told (`told`:
    measures) and whose fee is known, nor those of pieces that have a fee."""
    usd = 0
    for name, amount in call.flat:
        if name in call.unpriced:
            measure = BILLED_AS.get(name, "")
            known = measure in told and model.fee(measure) is not None
        else:
            known = all(model.fee(piece) is not None for piece, _ in call.pieces if measure_of(piece) == name)
        usd += 0 if known or model.free else amount
    return usd


def unpriced_usage(model: Model, usage: Usage, service_tier: str | None) -> tuple[str, ...]:
    """What the provider bills, by its own report, at a price that is not known here: classes, pieces, `service_tier`."""
    if model.free:
        return ()
    found = [] if _tier_known(model, service_tier) else ["service_tier"]
    if usage.others:
        rates = _rates(_tiers(model, service_tier), usage.total_input_tokens)
        for measure, number in usage.others:
            if not number:
                continue
            if measure in TOKENS:
                priced = _AS_TEXT.get(measure, "") in model.capabilities or rates.own(measure) is not None
            else:
                priced = model.fee(measure) is not None or (measure_of(measure) in WORK and rates.input > 0)
            if not priced:
                found.append(measure_of(measure))
    return tuple(found)


def _tier_known(model: Model, service_tier: str | None) -> bool:
    return service_tier_priced(model, service_tier) or service_tier in _PREPAID_TIERS


def _fees(model: Model, pieces: Pieces) -> int:
    return sum(price_of(number, model.fee(piece) or 0) for piece, number in pieces if piece not in TOKENS)


def _tiers(model: Model, service_tier: str | None) -> tuple[Rates, ...]:
    assert model.tiers, f"{model.name} has no price"
    for name, tiers in model.service_tiers:
        if name == service_tier:
            return tiers
    return model.tiers


def _rates(tiers: tuple[Rates, ...], input_tokens: int) -> Rates:
    """The whole call is billed at the last tier that its input passes."""
    applying = tiers[0]
    for rates in tiers[1:]:
        if rates.above_input_tokens < input_tokens:
            applying = rates
    return applying


def _dearest(model: Model, call: Call, input_tokens: int) -> tuple[int, int, int]:
    """Rates of input and output, and what rounding each class separately may add.

    Whatever tier is asked for, the provider may serve the call at the ordinary one. `auto` means what the project at the
    provider is set to, which may be `priority`; a request that names no tier means the same to OpenAI, but holding double for
    every ordinary call would starve the rest, so there the ordinary rates hold.
    """
    first, *others = _tiers(model, None)
    input_rate, output_rate, rounding = _dearest_of(first, call)
    service_tier = call.service_tier
    if service_tier is not None and model.service_tiers:
        others += _tiers(model, "priority" if service_tier == "auto" else service_tier)
    for rates in others:
        if rates.above_input_tokens == 0 or rates.above_input_tokens < input_tokens:
            read, written, more = _dearest_of(rates, call)
            input_rate = max(input_rate, read)
            output_rate = max(output_rate, written)
            rounding = max(rounding, more)
    return input_rate, output_rate, rounding


def _dearest_of(rates: Rates, call: Call) -> tuple[int, int, int]:
    """The same of one tier: of the classes that such a call may be billed in."""
    caching, needs = call.caching, call.needs
    if not rates.others and caching is not Caching.OFF and caching is not Caching.LONG:
        return rates.dearest_input, rates.output, rates.rounding  # nearly every call: no class has a price of its own
    read, written = [rates.input, rates.cached_input], [rates.output]
    if caching is not Caching.OFF:
        read.append(rates.cache_write)
    if caching is Caching.LONG:
        read.append(rates.of(CACHE_WRITE_LONG))
    # What an earlier answer was made from is not in this request.
    if "audio_input" in needs or call.continues is not None:
        read += (rates.of(AUDIO_INPUT), rates.of(CACHED_AUDIO))
    if "vision" in needs or "files" in needs or call.continues is not None:
        read += (rates.of(IMAGE_INPUT), rates.of(CACHED_IMAGE))
    if "audio_output" in needs:
        written.append(rates.of(AUDIO_OUTPUT))
    if (image := rates.own(IMAGE_OUTPUT)) is not None:  # such a model may answer with an image, asked or not
        written.append(image)
    exact = all(price % 1_000_000 == 0 for price in (*read, *written))
    return max(read), max(written), 0 if exact else len(read) + len(written) - 2


# -- for a reader -------------------------------------------------------------------------------------------------------------


def explain(call: Call, model: Model, counter: PartsCounter, cap: int) -> tuple[EstimateLine, ...]:
    """The estimate line by line; the lines add up to the tokens held. Not for the path of a call."""
    held = input_tokens(call, model, counter)
    input_rate, output_rate, _ = (0, 0, 0) if model.free else _dearest(model, call, held)
    lines: list[tuple[str, int]] = []
    messages = [part for part in call.parts if part.role not in SETTINGS]
    if messages:
        plural = "" if len(messages) == 1 else "s"
        lines.append((f"input: {len(messages)} message{plural}", counter.count_parts(messages, model.encoding)))
    others = [part for part in call.parts if part.role in SETTINGS]
    lines.extend((part.role.replace("_", " "), counter.count_parts([part], model.encoding)) for part in others)
    if hidden := 0 if model.encoding else _hidden_tokens(call, call.parts):
        lines.append(("what the provider adds for tools", hidden))
    images = [image_tokens(model.name, image) for part in call.parts for image in part.images]
    if images:
        lines.append((f"image ×{len(images)}", sum(images)))
    if attached := sum(len(part.attachments) for part in call.parts):
        lines.append((f"attachment ×{attached}", _media_tokens(model, call.parts) - sum(images)))
    # A bounded input is held at no more than the context. Else lines are rounded one by one and the estimate as a whole: the first
    # line takes the difference.
    if beside := held - sum(tokens for _, tokens in lines):
        if held == _input_limit(model):
            lines.append(("less what the context can't hold", beside))
        else:
            lines[0] = (lines[0][0], lines[0][1] + beside)
    times = f"{call.choices} × {cap}" if call.choices > 1 else f"{cap}"
    output_tokens = output_held(call, cap)
    if call.predicted:
        times = f"{times} + {call.predicted} predicted"
    if output_tokens:
        lines.append((f"output: {times} tokens", output_tokens))
    priced = [EstimateLine(what, tokens, price_of(tokens, input_rate)) for what, tokens in lines]
    if output_tokens:
        priced[-1] = replace(priced[-1], usd=price_of(output_tokens, output_rate))
    return (*priced, *_beside_tokens(call, model))


def _beside_tokens(call: Call, model: Model) -> list[EstimateLine]:
    if model.free:
        return []
    lines = [
        EstimateLine(f"{piece.replace('_', ' ')} ×{number}", 0, price_of(number, fee))
        for piece, number in call.pieces
        if (fee := model.fee(piece)) is not None
    ]
    if fee := model.request_fee:
        lines.append(EstimateLine("fee of each request", 0, price_of(1, fee)))
    if flat := flat_charge(call, model):
        lines.append(EstimateLine("flat reserve, which is no bound", 0, flat))
    return lines
