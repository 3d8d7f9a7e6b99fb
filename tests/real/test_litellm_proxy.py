"""LiteLLM's real proxy with our hook in it: the races, endings and refusals of calls that come in through its door. Its provider is the fake
one on loopback, and it asks nobody else."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from gateway.demo.replies import Writer
from tests.support.config import Setup, ladder, listed, opened_by, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.litellm_proxy import MASTER, LiteLLM, deployment, needs_litellm
from tests.support.pricing import MODELS, price_table
from tests.support.provider import Behaviour, FaultProvider, UsageReport

pytestmark = [pytest.mark.deep, needs_litellm]

LIMIT = "$0.01"
ONE = 0.0002275  # what `chat` costs at most, and does: 11 tokens in, 20 out


@pytest.fixture(scope="module")
def provider(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, price_table()) as running:
        yield running


@pytest.fixture(scope="module")
def here(provider: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator["World"]:
    """One proxy with two workers, and a gateway beside it on the same config: the same ledger, policy and install."""
    rules = policy(
        run_ceiling(LIMIT, overrides=[{"match": {"run": "cap-10-*"}, "limit": f"${ONE * 10:.7f}"}]),
        models=ladder(**{"big-model": ["small-model"]}),
    )
    keyed = opened_by(listed("both-doors", MASTER))  # so the key means the same at both
    keyed["extra"]["reservation"] = {"lease": "3s"}
    setup = Setup(tmp_path_factory.mktemp("litellm"), provider.base_url, rules, **keyed)
    models = [
        *(deployment(model.name, provider.base_url) for model in MODELS),
        deployment("alias", provider.base_url, "openai/big-model"),
        deployment("flaky", provider.base_url, "openai/big-model"),
        deployment("flaky-to-mystery", provider.base_url, "openai/big-model"),
        deployment("mystery", provider.base_url),
        deployment("with-base", provider.base_url, "openai/our-own", model_info={"base_model": "big-model"}),
        deployment("capped", provider.base_url, "openai/big-model", max_tokens=7),
        deployment("gone", "http://127.0.0.1:9/v1", "openai/big-model"),
    ]
    router = {"disable_cooldowns": True, "fallbacks": [{"flaky": ["small-model"]}, {"flaky-to-mystery": ["mystery"]}]}
    cache = {"cache": True, "cache_params": {"type": "local", "mode": "default_off"}}
    with GatewayProcess(setup) as gateway, LiteLLM(setup, models, cache, router) as litellm:
        yield World(litellm, gateway, provider)


class World:
    def __init__(self, litellm: LiteLLM, gateway: GatewayProcess, provider: FaultProvider) -> None:
        self.litellm = litellm
        self.gateway = gateway
        self.provider = provider

    def run(self, run: str) -> Any:
        """What the ledger says, through the other door."""
        return self.gateway.run(run, MASTER)

    def settled(self, run: str, within_s: float = 10) -> Any:
        """Once nothing of it is held any more."""
        deadline = time.monotonic() + within_s
        while float((view := self.run(run))["reserved_usd"]):
            assert time.monotonic() < deadline, view
            time.sleep(0.05)
        return view


@pytest.fixture(autouse=True)
def fresh(here: World) -> Iterator[None]:
    here.provider.forget()
    yield
    assert "Traceback" not in here.litellm.log.partition("gateway/integrations")[2][:2000]
    here.provider.choose = None


# -- one call ---------------------------------------------------------------------------------------------------------------------


def test_a_call_is_reserved_and_charged_what_the_provider_reported(here: World) -> None:
    got = here.litellm.chat("one-json")
    assert got.status_code == 200
    assert got.headers["x-budget-decision"] == "allow"
    assert got.headers["x-run-id"] == "one-json"
    assert float(got.headers["x-budget-remaining-usd"]) == pytest.approx(0.01 - ONE)
    view = here.run("one-json")
    assert (float(view["committed_usd"]), float(view["reserved_usd"]), view["calls"]) == (ONE, 0, 1)
    assert here.provider.bill.microcents == round(ONE * 1e8)


def test_a_stream_is_charged_by_the_usage_at_its_end_which_the_client_did_not_ask_for(here: World) -> None:
    client = here.litellm.client("one-stream")
    with client.chat.completions.create(
        model="big-model", messages=[{"role": "user", "content": "tell me about rivers"}], max_tokens=20, stream=True
    ) as stream:
        chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)
    assert float(here.settled("one-stream")["committed_usd"]) == ONE == here.provider.bill.microcents / 1e8


def test_what_is_sent_has_the_cap_that_was_held(here: World) -> None:
    body = {"model": "small-model", "messages": [{"role": "user", "content": "hi"}]}
    got = here.litellm.post("/v1/chat/completions", body, "no-cap")
    assert got.status_code == 200
    assert here.provider.calls[0].json["max_tokens"] == 8192
    assert here.litellm.chat("own-cap", max_tokens=None, max_completion_tokens=9).status_code == 200
    assert here.provider.calls[1].json.get("max_completion_tokens") == 9
    assert "max_tokens" not in here.provider.calls[1].json


def test_a_deployments_own_cap_is_what_a_request_without_one_has(here: World) -> None:
    assert here.litellm.chat("deployed-cap", model="capped", max_tokens=None).status_code == 200
    assert here.provider.calls[0].json["max_tokens"] == 7


def test_a_group_is_priced_by_the_model_behind_it_or_by_its_base_model(here: World) -> None:
    for run, group in (("by-alias", "alias"), ("by-base", "with-base")):
        got = here.litellm.chat(run, model=group)
        if group == "alias":
            assert got.status_code == 200
        view = here.run(run)
        assert view["accounts"], view
    assert float(here.run("by-alias")["committed_usd"]) == ONE


def test_a_call_that_no_longer_fits_goes_to_the_cheaper_model(here: World) -> None:
    got = here.litellm.chat("cheaper", max_tokens=2_000)
    assert got.status_code == 200
    assert (got.headers["x-budget-decision"], got.headers["x-budget-selected-model"]) == ("downgrade", "small-model")
    assert here.provider.calls[0].json["model"] == "small-model"


def test_run_and_dimensions_come_from_metadata_where_no_header_says_them(here: World) -> None:
    got = here.litellm.chat(None, metadata={"run_id": "by-metadata", "agent": "scout"})
    assert got.headers["x-run-id"] == "by-metadata"
    body = {"model": "big-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    headers = {**here.litellm.headers(), "x-litellm-session-id": "sess-1"}
    got = httpx.post(f"{here.litellm.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=60)
    assert got.headers["x-run-id"] == "sess-1"


# -- refusals ---------------------------------------------------------------------------------------------------------------------


def test_a_refusal_is_402_with_our_body_and_one_post(here: World) -> None:
    client = here.litellm.client("refused")
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model="big-model",
            messages=[{"role": "user", "content": "x"}],
            max_tokens=16_000,
            extra_headers={"X-Budget-Downgrade": "never"},
        )
    answer = caught.value.response
    assert answer.status_code == 402
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-budget-decision"] == "block"
    said = answer.json()
    assert said["code"] == "call_exceeds_limit"
    assert said["budget"]["limit_usd"] == "0.01"
    assert said["error"]["code"] == "budget_exceeded"
    assert "refused" in said["error"]["message"]
    assert [alternative["model"] for alternative in said["alternatives"]] == ["small-model"]
    assert here.provider.requests == []
    here.provider.wait_for(lambda: '"run":"refused"' in here.litellm.log)
    assert here.litellm.log.count('"run":"refused"') == 1


def test_a_streamed_call_is_refused_by_status(here: World) -> None:
    body = {"model": "alias", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16_000, "stream": True}
    got = here.litellm.post("/v1/chat/completions", body, "refused-stream", **{"X-Budget-Downgrade": "never"})
    assert (got.status_code, got.json()["code"]) == (402, "call_exceeds_limit")


def test_an_unknown_price_is_refused(here: World) -> None:
    got = here.litellm.chat("unpriced", model="mystery")
    assert (got.status_code, got.json()["code"]) == (400, "model_not_priced")
    assert "openai/mystery" in got.json()["error"]["message"]
    assert here.provider.requests == []


def test_what_nothing_meters_is_refused(here: World) -> None:
    got = here.litellm.post("/v1/rerank", {"model": "big-model", "query": "q", "documents": ["a"]}, "reranks")
    assert (got.status_code, got.json()["code"]) == (404, "route_not_metered")


def test_extra_body_names_no_other_model(here: World) -> None:
    got = here.litellm.chat("sneaks", model="small-model", extra_body={"model": "big-model", "max_tokens": 16_000})
    assert (got.status_code, got.json()["code"]) == (400, "ambiguous_request")
    assert here.provider.requests == []


# -- races ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_200_at_once_on_a_cap_for_10_are_exactly_10(here: World, stream: bool) -> None:
    run = f"cap-10-{stream}"
    here.provider.default = Behaviour(first_byte_s=8)
    body = {
        "model": "alias",
        "messages": [{"role": "user", "content": "tell me about rivers"}],
        "max_tokens": 20,
        "stream": stream,
    }
    async with httpx.AsyncClient(trust_env=False, timeout=110, limits=httpx.Limits(max_connections=200)) as client:

        async def one() -> int:
            answer = await client.post(f"{here.litellm.url}/v1/chat/completions", json=body, headers=here.litellm.headers(run))
            return answer.status_code

        try:
            statuses = Counter(await asyncio.gather(*(one() for _ in range(200))))
        finally:
            here.provider.default = Behaviour()
    assert statuses == {200: 10, 402: 190}
    assert len(here.provider.calls) == 10
    view = here.settled(run)
    assert float(view["committed_usd"]) == pytest.approx(10 * ONE)


# -- endings ----------------------------------------------------------------------------------------------------------------------


def test_a_client_that_leaves_in_mid_stream_pays_for_what_was_seen(here: World) -> None:
    here.provider.next(Behaviour(pace_s=0.05))
    body = {
        "model": "big-model",
        "messages": [{"role": "user", "content": "tell me about rivers"}],
        "max_tokens": 400,
        "stream": True,
    }
    with httpx.stream(
        "POST", f"{here.litellm.url}/v1/chat/completions", json=body, headers=here.litellm.headers("leaves"), trust_env=False
    ) as answer:
        lines = answer.iter_lines()
        for _ in range(12):
            next(lines)
    view = here.settled("leaves")
    assert 11 * 250e-8 < float(view["committed_usd"]) < 0.004
    assert float(view.get("unconfirmed_usd") or 0) == 0
    here.provider.wait_for(lambda: len(here.provider.left) == 1)


def test_a_client_that_leaves_before_a_whole_answer_is_charged_when_it_comes(here: World) -> None:
    here.provider.next(Behaviour(first_byte_s=1))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{here.litellm.url}/v1/chat/completions",
            json={"model": "big-model", "messages": [{"role": "user", "content": "tell me about rivers"}], "max_tokens": 20},
            headers=here.litellm.headers("leaves-early"),
            trust_env=False,
            timeout=0.5,
        )
    assert float(here.settled("leaves-early")["committed_usd"]) == ONE


def test_what_the_provider_refused_costs_nothing(here: World) -> None:
    for status in (400, 401, 429, 500, 503):
        here.provider.next(Behaviour(status=status))
        got = here.litellm.chat(f"said-{status}", model="alias")
        assert got.status_code in (400, 401, 429, 500, 503), got.text
        view = here.run(f"said-{status}")
        assert (float(view["committed_usd"]), float(view["reserved_usd"])) == (0, 0), status


def test_a_connection_that_was_never_made_costs_nothing(here: World) -> None:
    assert here.litellm.chat("never-made", model="gone").status_code >= 500
    view = here.run("never-made")
    assert (float(view["committed_usd"]), float(view["reserved_usd"])) == (0, 0)


def test_what_may_have_been_billed_is_charged_at_the_leases_end(here: World) -> None:
    here.provider.next(Behaviour(reset=True), Behaviour(status=502))
    for run in ("reset", "bad-gateway"):
        assert here.litellm.chat(run, model="alias").status_code >= 500
        view = here.run(run)
        assert (float(view["committed_usd"]), float(view["reserved_usd"])) == (0, ONE), run
    for run in ("reset", "bad-gateway"):
        assert float(here.settled(run)["unconfirmed_usd"]) == ONE


def test_a_stream_that_the_provider_cuts_is_charged_for_what_came(here: World) -> None:
    here.provider.next(Behaviour(cut_after_events=6, pace_s=0.02))
    got = here.litellm.chat("cut", model="alias", stream=True, max_tokens=400)
    assert got.status_code == 200
    assert 11 * 250e-8 < float(here.settled("cut")["committed_usd"]) < 0.001


def test_a_provider_that_reports_no_usage_is_paid_for_what_was_counted(here: World) -> None:
    here.provider.next(Behaviour(usage=UsageReport.NEVER), Behaviour(usage=UsageReport.NEVER))
    assert here.litellm.chat("untold").status_code == 200
    assert float(here.settled("untold")["committed_usd"]) == pytest.approx(ONE, rel=0.05)
    assert here.litellm.chat("untold-stream", stream=True).status_code == 200
    assert float(here.settled("untold-stream")["committed_usd"]) == pytest.approx(ONE, rel=0.05)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_out_of_litellms_cache_costs_nothing(here: World, stream: bool) -> None:
    run = f"cached-{stream}"
    for _ in range(2):
        got = here.litellm.chat(run, text=f"cache me {stream}", stream=stream, cache={"use-cache": True})
        assert got.status_code == 200
        time.sleep(1)  # a stream is put there behind its back
    assert len(here.provider.calls) == 1
    view = here.settled(run)
    assert float(view["committed_usd"]) == pytest.approx(here.provider.bill.microcents / 1e8)
    assert view["calls"] == 1


# -- attempts ---------------------------------------------------------------------------------------------------------------------


def test_a_fallback_has_a_hold_of_its_own(here: World) -> None:
    here.provider.next(Behaviour(status=500))
    got = here.litellm.chat("falls-back", model="flaky")
    assert got.status_code == 200
    assert [call.json["model"] for call in here.provider.calls] == ["big-model", "small-model"]
    view = here.run("falls-back")
    assert float(view["committed_usd"]) == pytest.approx(here.provider.bill.microcents / 1e8)
    assert (view["calls"], float(view["reserved_usd"])) == (1, 0)


def test_a_fallback_after_what_may_have_been_billed_is_a_second_hold(here: World) -> None:
    here.provider.next(Behaviour(reset=True))
    assert here.litellm.chat("falls-back-unsure", model="flaky").status_code == 200
    view = here.run("falls-back-unsure")
    assert view["calls"] == 2
    assert float(view["reserved_usd"]) == ONE
    view = here.settled("falls-back-unsure")
    assert float(view["committed_usd"]) == pytest.approx(ONE + here.provider.bill.microcents / 1e8)


def test_a_fallback_to_an_unknown_price_is_refused(here: World) -> None:
    here.provider.next(Behaviour(status=500))
    got = here.litellm.chat("falls-to-mystery", model="flaky-to-mystery")
    assert (got.status_code, got.json()["code"]) == (400, "model_not_priced")
    assert len(here.provider.calls) == 1


def test_a_retry_is_asked_about_again(here: World) -> None:
    here.provider.next(Behaviour(reset=True), Behaviour())
    got = here.litellm.chat("retries", model="alias", num_retries=1)
    assert got.status_code == 200
    assert len(here.provider.calls) == 2
    assert here.run("retries")["calls"] == 2


# -- other dialects ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_messages_are_metered_too(here: World, stream: bool) -> None:
    run = f"messages-{stream}"
    client = anthropic.Anthropic(base_url=here.litellm.url, api_key=MASTER, default_headers={"X-Run-Id": run})
    asked: dict[str, Any] = {
        "model": "alias",
        "messages": [{"role": "user", "content": "tell me about rivers"}],
        "max_tokens": 20,
    }
    if stream:
        with client.messages.stream(**asked) as answer:
            answer.until_done()
    else:
        client.messages.create(**asked)
    view = here.settled(run)
    assert float(view["committed_usd"]) == pytest.approx(here.provider.bill.microcents / 1e8)
    assert view["calls"] == 1
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(**{**asked, "max_tokens": 16_000}, extra_headers={"X-Budget-Downgrade": "never"})
    said = caught.value.response.json()
    assert (caught.value.response.status_code, said["type"], said["code"]) == (402, "error", "call_exceeds_limit")
    assert said["error"]["type"] == "billing_error"


@pytest.mark.parametrize("stream", [False, True])
def test_responses_are_metered_too(here: World, stream: bool) -> None:
    run = f"responses-{stream}"
    client = here.litellm.client(run)
    answer = client.responses.create(model="alias", input="tell me about rivers", max_output_tokens=20, stream=stream)
    if stream:
        list(answer)
    view = here.settled(run)
    assert float(view["committed_usd"]) == pytest.approx(here.provider.bill.microcents / 1e8)
    assert view["calls"] == 1


# -- several doors ----------------------------------------------------------------------------------------------------------------


def test_both_doors_draw_on_one_ceiling(here: World) -> None:
    run = "two-doors"
    assert here.litellm.chat(run).status_code == 200
    here.gateway.client(run, MASTER).chat.completions.create(
        model="big-model", messages=[{"role": "user", "content": "tell me about rivers"}], max_tokens=20
    )
    assert here.litellm.chat(run).status_code == 200
    view = here.run(run)
    assert (float(view["committed_usd"]), view["calls"]) == (pytest.approx(3 * ONE), 3)
