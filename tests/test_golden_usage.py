"""What each provider reports, in the shapes of their published APIs, becomes what they bill: priced by hand in `golden/usage`.

A case: `price` as the config would say it, further fields of the `request`, the provider's `answer`, what was `used`, and what that costs.
A provider is covered by a file with its profile's name.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway import bundled
from gateway.charging import Charging, Phase
from gateway.core import estimate
from gateway.core.catalog import Model
from gateway.core.meter import Meter
from gateway.core.money import Microcents, format_usd, parse_usd
from gateway.core.tokens import TokenCounter
from gateway.core.values import Call, Directives, Ending
from gateway.price_file import PriceFile, priced
from gateway.wire.dialects import DIALECTS
from tests.support import records
from tests.support.rulebooks import Words

GOLDEN = Path(__file__).parent / "golden" / "usage"
CASES = [(path.stem, case) for path in sorted(GOLDEN.glob("*.json")) for case in orjson.loads(path.read_bytes())]
MAIN = ("input", "cached", "cache_write", "output")
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2_000}


@pytest.mark.parametrize(("provider", "case"), CASES, ids=[f"{provider}: {case['what']}" for provider, case in CASES])
def test_what_a_provider_reports_costs_what_it_bills(provider: str, case: dict[str, Any]) -> None:
    dialect = next(each for each in DIALECTS if each.name == case.get("dialect", "chat"))
    model = model_of(case)
    call = call_of(dialect, case)
    meter = Meter(TokenCounter(lambda _: Words()), model.encoding)
    dialect.read_answer(orjson.dumps(case["answer"]), meter)
    charging = Charging(model, bundled.load_profiles()[provider].on_disconnect, meter, Phase.RELAYING)
    usage, cost = charging.of(hold_of(call, model), Ending.COMPLETED)
    used = dict(zip(MAIN, (usage.input_tokens, usage.cached_tokens, usage.cache_write_tokens, usage.output_tokens), strict=True))
    assert {name: number for name, number in used.items() if number} | dict(usage.others) == case["used"]
    assert format_usd(cost.usd) == format_usd(parse_usd(case["cost_usd"]))
    assert list(charging.unpriced(usage)) == case.get("unpriced", [])


@pytest.mark.parametrize(("provider", "case"), CASES, ids=[f"{provider}: {case['what']}" for provider, case in CASES])
def test_it_never_passes_what_so_much_input_and_output_is_held_at(provider: str, case: dict[str, Any]) -> None:
    del provider
    dialect = next(each for each in DIALECTS if each.name == case.get("dialect", "chat"))
    model, call = model_of(case), call_of(dialect, case)
    meter = Meter(TokenCounter(lambda _: Words()), model.encoding)
    dialect.read_answer(orjson.dumps(case["answer"]), meter)
    usage = meter.usage(0)
    written = max(0, usage.total_output_tokens - call.predicted)
    held = estimate.worst_case(call, model, usage.total_input_tokens, written)
    assert parse_usd(case["cost_usd"]) <= held.usd


def test_every_provider_that_has_a_profile_has_its_golden_payloads() -> None:
    assert {provider for provider, _ in CASES} == bundled.load_profiles().keys() - {"generic"}


def model_of(case: dict[str, Any]) -> Model:
    able = frozenset(case.get("capabilities", ()))
    return priced(
        Model("m", "p", (), 200_000, 20_000, capabilities=able, encoding="o200k_base"), PriceFile.model_validate(case["price"])
    )


def call_of(dialect: Any, case: dict[str, Any]) -> Call:
    fields = {name: value for name, value in (HELLO | case.get("request", {})).items() if value is not None}
    request = dialect.read(orjson.dumps(fields), CIMultiDictProxy(CIMultiDict()))
    flat = tuple((name, Microcents(parse_usd(usd))) for name, usd in case.get("flat", {}).items())
    return replace(request.call(records.caller(), Directives()), flat=flat)


def hold_of(call: Call, model: Model) -> Any:
    hold = records.hold()
    plan = replace(hold.plan, model=model.name, input_tokens=100_000, output_cap=2_000)
    return replace(hold, decision=replace(hold.decision, call=call), plan=plan)
