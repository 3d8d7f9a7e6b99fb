"""What a call is charged at its end: the provider's word, what was counted, the pieces told or bounded, and flat reserves."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.charging import Charging, Phase
from gateway.core.catalog import Model, Rates
from gateway.core.measures import REQUESTS
from gateway.core.meter import Meter
from gateway.core.money import Microcents
from gateway.core.profiles import OnDisconnect
from gateway.core.tokens import TokenCounter
from gateway.core.values import Ending, Hold, Output, Usage, UsageSource
from tests.support import records, rulebooks
from tests.support.records import USD
from tests.support.rulebooks import Words

DOLLAR = 1_000_000 * USD  # a fee, as it stands in a Model
SEARCHING = rulebooks.model("big", 30, fees=(("web_searches", DOLLAR // 100), ("web_searches/high", DOLLAR // 50)))
REPORT = Usage(UsageSource.PROVIDER, 1_000, output_tokens=100)  # 3,000 and 3,000 microcents


def held(**facts: Any) -> Hold:
    """A call of 1,000 tokens in and 200 out, at most."""
    hold = records.hold()
    call = rulebooks.call(**facts)
    plan = replace(hold.plan, model="big", input_tokens=1_000, output_cap=200)
    return replace(hold, decision=replace(hold.decision, call=call), plan=plan)


def charged(
    hold: Hold,
    *,
    model: Model = SEARCHING,
    told: dict[str, int] | None = None,
    report: Usage | None = REPORT,
    ending: Ending = Ending.COMPLETED,
) -> tuple[Usage, int]:
    meter = Meter(TokenCounter(lambda _: Words()), model.encoding)
    meter.pieces.update(told or {})
    if report is not None:
        meter.report(report)
    usage, cost = Charging(model, OnDisconnect.COUNT, meter, Phase.RELAYING).of(hold, ending)
    return usage, cost.usd


TOKENS_COST = 1_000 * 3 * USD // 1_000_000 + 100 * 30 * USD // 1_000_000


@pytest.mark.parametrize(
    ("pieces", "told", "others", "fees"),
    [
        ((), {}, (), 0),
        ((), {"web_searches": 2}, (("web_searches", 2),), 2),
        ((("web_searches", 5),), {"web_searches": 2}, (("web_searches", 2),), 2),
        ((("web_searches", 5),), {}, (("web_searches", 5),), 5),
        ((("web_searches", 5),), {"web_searches": 0}, (), 0),
        ((("web_searches/high", 1),), {"web_searches": 3}, (("web_searches", 3),), 3),
        ((("web_searches/high", 1),), {"code_sessions": 1}, (("code_sessions", 1), ("web_searches/high", 1)), 2),
        ((("audio_seconds", 60),), {}, (), 0),
    ],
    ids=["none", "seen", "fewer than the bound", "untold", "none, as told", "told by another name", "another told", "tokens pay"],
)
def test_the_pieces_that_were_told_are_charged_and_of_others_the_bound(
    pieces: Any, told: dict[str, int], others: Any, fees: int
) -> None:
    usage, usd = charged(held(pieces=pieces), told=told)
    assert usage == replace(REPORT, others=others)
    assert usd == TOKENS_COST + fees * USD // 100


@pytest.mark.parametrize(
    ("reasons", "unseen", "whole"),
    [
        (True, None, True),  # nobody can say that it did not reason
        (False, None, False),  # the request forbade it
        (True, False, False),  # its answer shows where reasoning begins, and it did not
        (False, True, True),  # something else was not seen: what the provider's tools brought
    ],
)
def test_a_client_that_left_pays_the_whole_hold_only_where_something_may_be_unseen(
    reasons: bool, unseen: bool | None, whole: bool
) -> None:
    meter = Meter(TokenCounter(lambda _: Words()), None)
    meter.report(replace(REPORT, output_tokens=0))
    meter.unseen = unseen
    meter.text("a few words of it")
    reasoning = replace(SEARCHING, reasoning=True)
    usage, _ = Charging(reasoning, OnDisconnect.COUNT, meter, Phase.RELAYING).of(held(reasons=reasons), Ending.CLIENT_LEFT)
    assert usage.source is (UsageSource.HELD if whole else UsageSource.COUNTED)


def test_input_alone_is_no_report_of_reasoning_that_has_begun() -> None:
    meter = Meter(TokenCounter(lambda _: Words()), None)
    meter.report(replace(REPORT, output_tokens=0))
    assert meter.reported
    meter.unseen = True
    assert not meter.reported


def test_pieces_in_the_providers_report_count_as_told() -> None:
    report = replace(REPORT, others=(("audio_input", 5), ("web_searches", 1)))
    usage, usd = charged(held(pieces=(("web_searches", 5),)), report=report)
    assert usage == report
    assert usd == TOKENS_COST + 5 * 3 * 100 + USD // 100


def test_the_flat_reserve_is_charged_in_full_unless_the_real_fee_is_known() -> None:
    hold = held(
        unpriced=("tools.web_search", "prediction"), flat=(("tools.web_search", Microcents(25)), ("prediction", Microcents(5)))
    )
    assert charged(hold)[1] == TOKENS_COST + 30
    assert charged(hold, told={"web_searches": 1})[1] == TOKENS_COST + USD // 100 + 5
    assert charged(hold, told={"web_searches": 0})[1] == TOKENS_COST + 5
    assert charged(hold, told={"web_searches": 1}, model=rulebooks.BIG)[1] == TOKENS_COST + 30


def test_the_fee_of_a_request_is_charged_without_a_report_too() -> None:
    model = rulebooks.model("big", 30, fees=((REQUESTS, DOLLAR),))
    assert charged(held(), model=model, report=None)[1] == 3_000 * 100 + USD


def test_output_that_is_not_text_and_was_not_reported_is_charged_as_held() -> None:
    hold = held(output=Output.FIXED, client_cap=200)
    usage, usd = charged(hold, report=None)
    assert (usage, usd) == (Usage(UsageSource.HELD, 1_000, output_tokens=200), hold.plan.cost_max.usd)
    by_the_image = Model("big", "openai", (Rates(0, 0, 0, 0),), 4_000, 1, fees=(("images", DOLLAR),))
    usage, usd = charged(held(output=Output.FIXED, pieces=(("images", 2),)), report=None, model=by_the_image)
    assert (usage.others, usd) == ((("images", 2),), 2 * USD)


def test_sound_that_was_not_reported_is_charged_as_held() -> None:
    """What was relayed of it is its transcript."""
    hold = held(needs=frozenset({"audio_output"}))
    assert charged(hold, report=None)[0].source is UsageSource.HELD


def test_a_call_that_nobody_answered_is_charged_its_bound_with_its_pieces() -> None:
    hold = held(pieces=(("web_searches", 5), ("characters", 9)))
    meter = Meter(TokenCounter(lambda _: Words()), None)
    usage, cost = Charging(SEARCHING, OnDisconnect.COUNT, meter, Phase.OPENED).of(hold, Ending.UNKNOWN)
    assert usage == Usage(UsageSource.HELD, 1_000, output_tokens=200, others=(("web_searches", 5),))
    assert cost == hold.plan.cost_max


def test_what_was_billed_without_a_price_is_told() -> None:
    meter = Meter(TokenCounter(lambda _: Words()), None)
    meter.served_at("turbo")
    meter.unknown.add("usage.video_tokens")
    charging = Charging(SEARCHING, OnDisconnect.COUNT, meter, Phase.RELAYING)
    used = replace(REPORT, others=(("code_sessions", 1), ("web_searches", 1)))
    assert charging.unpriced(used) == ("service_tier", "code_sessions", "usage.video_tokens")
