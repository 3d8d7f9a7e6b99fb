"""The worst case is never below what a call within its caps can cost, and room is reckoned with what surely is there."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bundled import load_tokenizer
from gateway.core import estimate
from gateway.core.catalog import Model, Rates
from gateway.core.measures import CACHE_WRITE_LONG, TOKENS
from gateway.core.money import Microcents
from gateway.core.policy import OutputPolicy
from gateway.core.scopes import Amounts, Caller
from gateway.core.tokens import TokenCounter
from gateway.core.values import TOOL_RESULTS, Attachment, Caching, Call, Image, Output, Part, Usage, UsageSource

MILLION = 1_000_000
PER_MILLION = 100_000_000  # microcents in one USD: rates below read as USD per million tokens
COUNTER = TokenCounter(load_tokenizer)
POLICY = OutputPolicy()
HELLO = Part("user", ("hello",), 3)  # 4 tokens


def rates(input: float, output: float, cached: float | None = None, write: float | None = None, above: int = 0) -> Rates:  # noqa: A002
    dollars = (input, output, input if cached is None else cached, input if write is None else write)
    return Rates(*(round(each * PER_MILLION) for each in dollars), above_input_tokens=above)


def model(
    *tiers: Rates, name: str = "gpt-4o", encoding: str | None = "o200k_base", context: int = 128_000, max_output: int = 16_384
) -> Model:
    return Model(name, "openai", tiers or (rates(2.5, 10, 1.25),), context, max_output, encoding=encoding)


def call(
    *parts: Part, choices: int = 1, cap: int | None = None, tier: str | None = None, needs: frozenset[str] = frozenset()
) -> Call:
    return Call(
        Caller("default", "k", "r", "r"), "chat", "gpt-4o", False, choices, cap, parts or (HELLO,), needs, service_tier=tier
    )


def used(fresh: int = 0, cached: int = 0, written: int = 0, output: int = 0, *others: tuple[str, int]) -> Usage:
    return Usage(UsageSource.PROVIDER, fresh, cached, written, output, others)


# -- input --------------------------------------------------------------------------------------------------------------------


def test_what_the_providers_tools_bring_is_bounded_by_the_request_or_by_the_context() -> None:
    """The whole input is read again after each; without a bound of their own they may fill the context every time."""
    searching = replace(call(HELLO, Part(TOOL_RESULTS, (), 100)), readings=3)
    read = estimate.input_of(searching, model(), COUNTER)
    assert (read.tokens, read.least) == (3 * (4 + 100), 104)
    assert estimate.input_tokens(replace(call(), readings=3), model(), COUNTER) == 3 * 128_000


def test_text_is_counted_with_its_overhead() -> None:
    assert estimate.input_tokens(call(HELLO, HELLO), model(), COUNTER) == 8


@pytest.mark.parametrize(
    ("name", "low", "high", "auto"),
    [
        ("gpt-4o-2024-08-06", 85, 1445, 1445),
        ("gpt-4.1", 85, 1445, 1445),
        ("gpt-5", 70, 1190, 1190),
        ("o1", 75, 1275, 1275),
        ("openai/o3", 75, 1275, 1275),
        ("gpt-4o-mini", 2833, 48_169, 48_169),
        ("gpt-4.1-mini", 2489, 2489, 2489),
        ("gpt-4.1-nano-2025-04-14", 3779, 3779, 3779),
        ("o4-mini", 2642, 2642, 2642),
        ("gpt-5-mini", 2489, 2489, 2489),
        ("gpt-5.4-nano", 3779, 3779, 3779),
        ("gpt-5.4", 3000, 3000, 12_000),
        ("claude-3-5-sonnet-20241022", 1600, 1600, 1600),
        ("claude-opus-4-20250514", 1600, 1600, 1600),
        ("anthropic/claude-sonnet-4-5", 1600, 1600, 1600),
        ("claude-opus-4-8", 4784, 4784, 4784),
        ("gemini-2.5-flash", 4128, 4128, 4128),
        ("some-new-model", 16_384, 16_384, 16_384),
    ],
)
def test_an_image_is_bounded_by_the_rule_of_the_models_family(name: str, low: int, high: int, auto: int) -> None:
    for detail, expected in (("low", low), ("high", high), ("auto", auto), ("", auto)):
        with_image = call(replace(HELLO, images=(Image(detail), Image(detail))))
        assert estimate.input_tokens(with_image, model(name=name, context=MILLION), COUNTER) == 4 + 2 * expected


def test_audio_is_bounded_by_its_size() -> None:
    spoken = call(
        replace(HELLO, attachments=(Attachment("audio", 30_000), Attachment("audio", 29))), needs=frozenset({"audio_input"})
    )
    assert estimate.input_tokens(spoken, model(), COUNTER) == 4 + 1001 + 1


def test_a_file_is_bounded_by_the_context_and_leaves_room_for_output() -> None:
    filed = call(replace(HELLO, attachments=(Attachment("file", 500),)), needs=frozenset({"files"}))
    read = estimate.input_of(filed, model(), COUNTER)
    assert (read.tokens, read.least, read.basis) == (128_000, 4, "bounded")
    assert estimate.output_cap(filed, model(), read.least, POLICY) == 8192


def test_a_model_without_a_public_tokenizer_is_reckoned_what_its_provider_adds_for_tools() -> None:
    asked = call(HELLO, needs=frozenset({"tools"}))
    assert estimate.input_tokens(asked, model(encoding=None), COUNTER) == 7 + 850
    assert estimate.input_tokens(asked, model(), COUNTER) == 4


# -- output -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "policy_cap", "models", "context", "expected"),
    [
        (100, 32_768, 16_384, 128_000, 100),
        (50_000, 32_768, 65_536, 128_000, 32_768),
        (50_000, 32_768, 16_384, 128_000, 16_384),
        (50_000, 32_768, 16_384, 5_000, 1_000),
        (None, 32_768, 16_384, 128_000, 8_192),
        (None, 4_096, 16_384, 128_000, 4_096),
    ],
)
def test_the_cap_is_the_least_of_all_that_apply(
    client: int | None, policy_cap: int, models: int, context: int, expected: int
) -> None:
    asked = call(cap=client)
    assert (
        estimate.output_cap(asked, model(context=context, max_output=models), 4_000, OutputPolicy(max_tokens=policy_cap))
        == expected
    )


def test_where_the_policy_names_no_default_its_own_cap_is_the_default() -> None:
    assert estimate.output_cap(call(), model(max_output=99_999), 4, OutputPolicy((("o*", 9),), max_tokens=20_000)) == 20_000


@pytest.mark.parametrize("context", [4_000, 3_000])
def test_input_that_fills_the_context_leaves_no_room(context: int) -> None:
    assert estimate.output_cap(call(cap=1), model(context=context), 4_000, POLICY) == 0


def test_input_above_the_models_own_limit_leaves_no_room() -> None:
    limited = replace(model(), max_input=1_000)
    assert estimate.output_cap(call(), limited, 1_000, POLICY) == 8192
    assert estimate.output_cap(call(), limited, 1_001, POLICY) == 0


def test_counted_input_larger_than_the_context_is_said_as_it_is() -> None:
    long = call(Part("user", ("word " * 2_000,)))
    tokens = estimate.input_tokens(long, model(context=1_000), COUNTER)
    assert tokens == 2_001
    assert estimate.output_cap(long, model(context=1_000), tokens, POLICY) == 0


def test_input_that_a_factor_lifts_above_the_context_is_held_at_the_context_and_keeps_its_room() -> None:
    guessed, small = call(Part("user", ("word " * 2_000,)), cap=500), model(encoding=None, context=3_000)
    read = estimate.input_of(guessed, small, COUNTER)
    assert read.tokens == 3_000  # 3,502 by the factor, which the provider would refuse
    assert estimate.output_cap(guessed, small, read.least, POLICY) == 500


def test_input_that_surely_passes_the_context_is_not_helped_by_the_factor() -> None:
    guessed, small = call(Part("user", ("word " * 4_000,))), model(encoding=None, context=3_000)
    read = estimate.input_of(guessed, small, COUNTER)
    assert read.tokens == 7_002
    assert estimate.output_cap(guessed, small, read.least, POLICY) == 0


# -- price --------------------------------------------------------------------------------------------------------------------


def test_the_worst_case_is_the_whole_input_and_every_choices_cap() -> None:
    assert estimate.worst_case(call(choices=2), model(), 1_000, 4_096) == Amounts(250_000 + 2 * 4_096_000, 1_000 + 2 * 4_096, 1)


def test_input_is_priced_as_if_all_of_it_were_written_to_the_cache_where_that_is_dearer() -> None:
    assert estimate.worst_case(call(), model(rates(3, 15, 0.3, 3.75)), 1_000_000, 0).usd == 375_000_000


def test_the_dearest_tier_that_the_input_may_fall_in_is_held() -> None:
    tiered = model(rates(1.25, 10), rates(2.5, 15, above=200_000))
    assert estimate.worst_case(call(), tiered, 200_000, 0).usd == 25_000_000
    assert estimate.worst_case(call(), tiered, 200_001, 0).usd == 50_000_250
    assert estimate.cost_of(tiered, used(150_000, 50_000), None).usd == 25_000_000
    assert estimate.cost_of(tiered, used(150_000, 50_000, 0, 1), None).usd == 25_000_000 + 1_000
    assert estimate.cost_of(tiered, used(150_000, 50_001, 0, 1), None).usd == 50_000_250 + 1_500


@pytest.mark.parametrize(
    ("tier", "held", "charged"),
    [
        (None, 2.5, 2.5),
        ("default", 2.5, 2.5),
        ("priority", 4.25, 4.25),
        ("auto", 4.25, 2.5),
        ("flex", 2.5, 1.25),
        ("scale", 2.5, 2.5),
    ],
)
def test_a_service_tier_is_held_at_the_dearer_of_itself_and_the_ordinary_one(
    tier: str | None, held: float, charged: float
) -> None:
    served = replace(model(), service_tiers=(("priority", (rates(4.25, 17),)), ("flex", (rates(1.25, 5),))))
    assert estimate.worst_case(call(tier=tier), served, MILLION, 0).usd == held * PER_MILLION
    assert estimate.cost_of(served, used(MILLION), tier).usd == charged * PER_MILLION


def test_a_service_tier_without_a_price_is_told() -> None:
    priority = replace(model(), service_tiers=(("priority", (rates(4.25, 17),)),))
    assert estimate.service_tier_priced(priority, "priority")
    assert all(estimate.service_tier_priced(model(), tier) for tier in (None, "auto", "default", "flex"))
    assert not estimate.service_tier_priced(model(), "priority")
    assert not estimate.service_tier_priced(priority, "turbo")
    assert estimate.service_tier_priced(Model("m", "local", (), 1, 1, free=True), "turbo")


def test_a_free_model_costs_nothing_but_its_tokens_and_calls_count() -> None:
    free = Model("m", "local", (), 8192, 2048, free=True)
    assert estimate.worst_case(call(choices=3), free, 100, 10) == Amounts(0, 130, 1)
    assert estimate.cost_of(free, used(1, 2, 3, 4), None) == Amounts(0, 10, 1)


def test_each_class_of_tokens_is_rounded_up_on_its_own() -> None:
    odd = Model("m", "p", (Rates(1, 1, 1, 1),), 8192, 2048)
    assert estimate.cost_of(odd, used(1, 1, 1, 1), None).usd == 4
    assert estimate.worst_case(call(), odd, 3, 1).usd == 4


def test_an_unpriced_model_never_gets_here() -> None:
    with pytest.raises(AssertionError, match="has no price"):
        estimate.worst_case(call(), Model("m", "p", (), 8192, 2048), 1, 1)


# -- other classes of tokens --------------------------------------------------------------------------------------------------

AUDIO = Rates(
    *(250_000_000, 1_000_000_000, 125_000_000, 250_000_000),
    others=(("audio_input", 4_000_000_000), ("audio_output", 8_000_000_000)),
)  # USD 2.50 and 10, cached 1.25; sound 40 and 80
IMAGES = Rates(
    *(500_000_000, 0, 125_000_000, 500_000_000), others=(("image_input", 1_000_000_000), ("image_output", 4_000_000_000))
)


@pytest.mark.parametrize(
    ("measure", "price"),
    [
        ("audio_input", 4_000_000_000),
        ("cached_audio", 4_000_000_000),
        ("audio_output", 8_000_000_000),
        ("image_input", 250_000_000),
        ("cached_image", 125_000_000),
        ("image_output", 1_000_000_000),
        ("cache_write_long", 250_000_000),
    ],
)
def test_a_class_without_a_price_of_its_own_has_that_of_the_class_it_belongs_to(measure: str, price: int) -> None:
    assert AUDIO.of(measure) == price
    assert estimate.cost_of(model(AUDIO), used(0, 0, 0, 0, (measure, 1_000)), None) == Amounts(price // 1_000, 1_000)


def test_long_lived_cache_writes_have_their_own_price_where_there_is_one() -> None:
    long = replace(rates(3, 15, 0.3, 3.75), cache_write_long=600_000_000)
    assert estimate.cost_of(model(long), used(0, 0, 0, 0, ("cache_write_long", MILLION)), None).usd == 6 * PER_MILLION
    for caching, held in ((Caching.OFF, 3), (Caching.AUTOMATIC, 3.75), (Caching.SHORT, 3.75), (Caching.LONG, 6)):
        assert estimate.worst_case(replace(call(), caching=caching), model(long), MILLION, 0).usd == held * PER_MILLION, caching


def test_sound_is_held_at_its_price_only_where_the_call_may_have_it() -> None:
    def held(needs: set[str], **more: str) -> float:
        asked = replace(call(needs=frozenset(needs)), **more)
        return estimate.worst_case(asked, model(AUDIO), MILLION, 0).usd / PER_MILLION

    def written(*needs: str) -> float:
        return estimate.worst_case(call(needs=frozenset(needs)), model(AUDIO), 0, MILLION).usd / PER_MILLION

    assert (held(set()), held({"audio_output"}), held({"audio_input"}), held({"vision"})) == (2.5, 2.5, 40, 2.5)
    assert held(set(), continues="resp_1") == 40  # what that was made from is not known
    assert (written(), written("audio_input"), written("audio_output")) == (10, 10, 80)


def test_a_model_that_makes_images_may_answer_with_one_unasked() -> None:
    assert estimate.worst_case(call(), model(IMAGES), 0, MILLION).usd == 40 * PER_MILLION
    assert estimate.worst_case(call(needs=frozenset({"vision"})), model(IMAGES), MILLION, 0).usd == 10 * PER_MILLION


def test_a_tier_by_context_length_counts_input_of_every_class() -> None:
    tiered = model(rates(1, 2), rates(10, 20, above=100))
    assert estimate.cost_of(tiered, used(50, 0, 0, 1, ("audio_input", 50)), None).usd == 100 * 100 + 200
    assert estimate.cost_of(tiered, used(50, 0, 0, 1, ("audio_input", 51)), None).usd == 101 * 1_000 + 2_000


def test_what_writes_nothing_that_is_billed_by_the_token_holds_no_output() -> None:
    assert estimate.worst_case(replace(call(), output=Output.NONE), model(), 1_000, 4_096) == Amounts(250_000, 1_000)


def test_what_a_prediction_may_add_is_held_beside_the_cap_once() -> None:
    predicted = replace(call(choices=2), predicted=50)
    assert estimate.worst_case(predicted, model(), 0, 100) == Amounts(250_000, 250)
    assert estimate.explain(predicted, model(), COUNTER, 100)[-1].what == "output: 2 × 100 + 50 predicted tokens"


# -- pieces -------------------------------------------------------------------------------------------------------------------

CENT_A_SEARCH = 1_000_000 * MILLION
DALL_E = Model(
    "dall-e-3",
    "openai",
    (Rates(0, 0, 0, 0),),
    4_000,
    1,
    fees=(("images", 12_000_000 * MILLION), ("images/standard/1024x1024", 4_000_000 * MILLION)),
)
FREE = Model("m", "local", (), 8192, 2048, free=True)


def wanting(*pieces: tuple[str, int], output: Output = Output.CAPPED, flat: tuple[tuple[str, int], ...] = ()) -> Call:
    return replace(call(), pieces=pieces, output=output, flat=tuple((name, Microcents(usd)) for name, usd in flat))


def test_pieces_are_priced_by_their_kind_else_by_their_measure() -> None:
    for piece, cents in (("images", 12), ("images/hd/1024x1024", 12), ("images/standard/1024x1024", 4)):
        asked = wanting((piece, 3), output=Output.FIXED)
        assert estimate.worst_case(asked, DALL_E, 50, 0) == Amounts(3 * cents * MILLION, 50)
        assert estimate.cost_of(DALL_E, used(50, 0, 0, 0, (piece, 3)), None) == Amounts(3 * cents * MILLION, 50)


def test_the_fee_of_a_request_is_paid_once_a_call_whatever_it_uses() -> None:
    sonar = replace(model(rates(1, 1)), fees=(("requests", 500_000 * MILLION), ("web_searches", CENT_A_SEARCH)))
    assert estimate.worst_case(call(choices=3), sonar, 0, 0).usd == 500_000
    assert estimate.worst_case(wanting(("web_searches", 2)), sonar, 0, 0).usd == 2_500_000
    assert estimate.cost_of(sonar, used(), None).usd == 500_000
    assert estimate.cost_of(sonar, used(0, 0, 0, 0, ("web_searches", 2)), None).usd == 2_500_000


def test_a_piece_without_a_fee_is_told_unless_tokens_pay_for_it_or_something_is_set_aside() -> None:
    assert estimate.piece_without_price(wanting(("web_searches/low", 1)), model()) == "web_searches"
    assert estimate.piece_without_price(wanting(("web_searches", 1), flat=(("web_searches", 5),)), model()) is None
    assert estimate.piece_without_price(wanting(("audio_seconds", 60)), model()) is None  # gpt-4o-transcribe bills its tokens
    assert estimate.piece_without_price(wanting(("web_searches", 1)), FREE) is None
    searching = replace(model(), fees=(("web_searches", CENT_A_SEARCH),))
    assert estimate.piece_without_price(wanting(("web_searches", 1)), searching) is None


def test_a_model_is_priced_for_what_it_is_there_for() -> None:
    embedding = model(rates(0.02, 0))
    image, chat = wanting(("images/hd/1024x1024", 1), output=Output.FIXED), call()
    embed = wanting(output=Output.NONE)
    assert [estimate.work_priced(each, embedding) for each in (chat, image, embed)] == [False, False, True]
    assert [estimate.work_priced(each, DALL_E) for each in (chat, image, embed)] == [False, True, False]
    assert [estimate.work_priced(each, model()) for each in (chat, image, embed)] == [True, True, True]
    assert estimate.work_priced(image, model(IMAGES))
    assert estimate.work_priced(chat, replace(DALL_E, fees=(("requests", 1),)))
    assert estimate.work_priced(chat, FREE)


def test_a_flat_reserve_is_held_and_charged_in_full_unless_the_real_number_is_told_and_priced() -> None:
    asked = replace(wanting(flat=(("tools.web_search", 25), ("prediction", 5))), unpriced=("tools.web_search", "prediction"))
    searching = replace(model(), fees=(("web_searches", CENT_A_SEARCH),))
    assert estimate.worst_case(asked, model(), 0, 0).usd == 30
    assert estimate.flat_charge(asked, model(), {"web_searches"}) == 30
    assert estimate.flat_charge(asked, searching) == 30
    assert estimate.flat_charge(asked, searching, {"web_searches"}) == 5
    assert estimate.flat_charge(asked, FREE) == 0


def test_a_flat_reserve_for_pieces_counts_only_where_they_have_no_fee() -> None:
    asked = wanting(("web_searches", 3), flat=(("web_searches", 25),))
    assert estimate.worst_case(asked, model(), 0, 0).usd == 25
    searching = replace(model(), fees=(("web_searches", CENT_A_SEARCH),))
    assert estimate.worst_case(asked, searching, 0, 0).usd == 3_000_000


@pytest.mark.parametrize(
    ("usage", "tier", "found"),
    [
        (used(1, 2, 3, 4), None, ()),
        (used(1, 2, 3, 4), "scale", ()),
        (used(1), "turbo", ("service_tier",)),
        (used(1, 0, 0, 0, ("audio_input", 1), ("image_input", 2), ("web_searches", 1)), None, ("audio_input", "web_searches")),
        (used(1, 0, 0, 0, ("audio_input", 0), ("audio_seconds", 5)), None, ()),
        (used(1, 0, 0, 0, ("image_output", 1), ("cache_write_long", 1)), None, ("image_output", "cache_write_long")),
    ],
)
def test_what_was_billed_at_a_price_that_is_not_known_is_told(usage: Usage, tier: str | None, found: tuple[str, ...]) -> None:
    seeing = replace(model(), capabilities=frozenset({"vision"}))
    assert estimate.unpriced_usage(seeing, usage, tier) == found
    assert estimate.unpriced_usage(FREE, usage, tier) == ()


# -- the bound ----------------------------------------------------------------------------------------------------------------

prices = st.one_of(st.integers(0, 5_000), st.integers(0, 20_000).map(lambda dollars: dollars * PER_MILLION // 100))
classes = st.dictionaries(st.sampled_from(sorted(TOKENS - {CACHE_WRITE_LONG})), prices).map(
    lambda own: tuple(sorted(own.items()))
)


def tier_lists(draw: st.DrawFn) -> tuple[Rates, ...]:
    bounds = sorted(draw(st.sets(st.integers(1, 5_000), max_size=2)))
    return tuple(
        Rates(
            *(draw(prices) for _ in range(4)),
            above_input_tokens=above,
            cache_write_long=draw(st.none() | prices),
            others=draw(classes),
        )
        for above in (0, *bounds)
    )


SERVED = {"auto": ["default", "priority"], "priority": ["priority", "default"], "flex": ["flex", "default"]}
SERVED["batch"] = ["batch", "default"]
PIECES = ["images/hd/1024x1024", "images", "web_searches/low", "web_searches", "audio_seconds", "requests"]


@st.composite
def calls_and_usage(draw: st.DrawFn) -> tuple[Call, Model, int, int, Usage, str | None]:
    tiers = tuple((name, tier_lists(draw)) for name in ("priority", "flex", "batch"))
    fees = tuple(sorted(draw(st.dictionaries(st.sampled_from(PIECES), st.integers(0, 10**13))).items()))
    priced = replace(model(*tier_lists(draw)), service_tiers=tiers, fees=fees)
    tier = draw(st.sampled_from([None, "auto", "default", "priority", "flex", "batch"]))
    served = draw(st.sampled_from(SERVED.get(tier or "", [tier])))
    caching = draw(st.sampled_from(list(Caching)))
    needs = draw(st.frozensets(st.sampled_from(["vision", "audio_input", "audio_output", "files", "tools"])))
    continues = draw(st.sampled_from([None, "resp_1"]))
    pieces = draw(st.dictionaries(st.sampled_from(PIECES[:-1]), st.integers(0, 5)))
    flat = tuple((name, Microcents(draw(st.integers(0, 10**8)))) for name in draw(st.sets(st.sampled_from(PIECES[1::2]))))
    input_tokens, cap, choices = draw(st.integers(0, 6_000)), draw(st.integers(1, 6_000)), draw(st.integers(1, 4))
    # The classes that such a call may be billed in.
    read = ["input", "cached"]
    if caching is not Caching.OFF:
        read.append("written")
    if caching is Caching.LONG:
        read.append(CACHE_WRITE_LONG)
    if "audio_input" in needs or continues:
        read += ["audio_input", "cached_audio"]
    if {"vision", "files"} & needs or continues:
        read += ["image_input", "cached_image"]
    written = ["output", "image_output", *(["audio_output"] if "audio_output" in needs else [])]
    spread: dict[str, int] = {}
    for names, most in ((read, input_tokens), (written, cap * choices)):
        left = most
        for name in draw(st.permutations(names)):
            spread[name] = draw(st.integers(0, left))
            left -= spread[name]
    billed = {piece: draw(st.integers(0, most)) for piece, most in pieces.items()}
    main = [spread.pop(name, 0) for name in ("input", "cached", "written", "output")]
    usage = used(*main, *sorted((spread | billed).items()))
    asked = replace(
        call(choices=choices, tier=tier, needs=needs),
        caching=caching,
        continues=continues,
        pieces=tuple(sorted(pieces.items())),
        flat=flat,
    )
    return asked, priced, input_tokens, cap, usage, served


@given(calls_and_usage())
def test_what_a_call_within_its_caps_cost_never_passes_what_was_held(
    case: tuple[Call, Model, int, int, Usage, str | None],
) -> None:
    asked, priced, input_tokens, cap, usage, served = case
    held, cost = estimate.worst_case(asked, priced, input_tokens, cap), estimate.cost_of(priced, usage, served)
    assert cost.usd + estimate.flat_charge(asked, priced) <= held.usd
    assert cost.tokens <= held.tokens
    assert cost.calls == held.calls == 1


# -- explain ------------------------------------------------------------------------------------------------------------------


def test_the_estimate_is_explained_line_by_line() -> None:
    tools, shape = Part("tools", ('{"name": "f"}',), 12), Part("response_format", ('{"type": "object"}',))
    asked = call(
        HELLO, replace(HELLO, images=(Image("low"), Image("high"))), HELLO, tools, shape, Part("reply", (), 3), choices=2
    )
    lines = estimate.explain(asked, model(), COUNTER, 4_096)
    assert [line.what for line in lines] == [
        "input: 3 messages",
        "tools",
        "response format",
        "reply",
        "image ×2",
        "output: 2 × 4096 tokens",
    ]
    held = estimate.worst_case(asked, model(), estimate.input_tokens(asked, model(), COUNTER), 4_096)
    assert sum(line.tokens for line in lines) == held.tokens
    assert sum(line.usd for line in lines) == held.usd
    assert (lines[0].tokens, lines[0].usd, lines[4].tokens) == (12, 3_000, 85 + 1445)


@pytest.mark.parametrize("asked", [
    call(replace(HELLO, attachments=(Attachment("file", 900),), images=(Image("auto"),)), needs=frozenset({"files"})),
    call(Part("user", ("word " * 900,)), HELLO, Part("tools", ("{}",)), needs=frozenset({"tools"})),
    call(HELLO, HELLO, HELLO, Part("tools", ("a b c",)), Part("functions", ("x",))),
])  # fmt: skip
@pytest.mark.parametrize("encoding", ["o200k_base", None])
def test_the_lines_add_up_to_what_is_held_even_where_it_is_bounded(asked: Call, encoding: str | None) -> None:
    small = model(encoding=encoding, context=1_500)
    lines = estimate.explain(asked, small, COUNTER, 100)
    assert sum(line.tokens for line in lines) == estimate.input_tokens(asked, small, COUNTER) + 100


def test_fees_and_flat_reserves_are_lines_of_their_own() -> None:
    searching = replace(model(), fees=(("requests", 500_000 * MILLION), ("web_searches", CENT_A_SEARCH)))
    asked = replace(wanting(("web_searches/low", 2), flat=(("prediction", 7),)), unpriced=("prediction",))
    lines = estimate.explain(asked, searching, COUNTER, 100)
    assert [(line.what, line.usd) for line in lines[2:]] == [
        ("web searches/low ×2", 2_000_000),
        ("fee of each request", 500_000),
        ("flat reserve, which is no bound", 7),
    ]
    assert sum(line.usd for line in lines) == estimate.worst_case(asked, searching, 4, 100).usd
