"""LiteLLM's real proxy with two workers and the three lines of docs/litellm.md, on one ledger with a gateway that other keys use."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from gateway.demo.replies import Writer
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.litellm_proxy import LiteLLM, deployment, needs_litellm, shown
from tests.support.pricing import price_table
from tests.support.provider import Behaviour, FaultProvider

pytestmark = [pytest.mark.deep, needs_litellm]

ONE = 0.0002275


@pytest.fixture(scope="module")
def provider(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, price_table()) as running:
        yield running


@pytest.fixture(scope="module")
def doors(provider: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiteLLM, GatewayProcess]]:
    rules = policy(run_ceiling(f"${ONE * 10:.7f}"), runs={"owner": "tenant"})
    setup = Setup(tmp_path_factory.mktemp("litellm"), provider.base_url, rules)
    lines = yaml.safe_load(shown("litellm_settings"))["litellm_settings"]
    models = [deployment("big-model", provider.base_url), deployment("alias", provider.base_url, "openai/big-model")]
    with GatewayProcess(setup) as gateway, LiteLLM(setup, models, litellm_settings=lines, workers=2) as litellm:
        yield litellm, gateway


def view_of(gateway: GatewayProcess, run: str) -> Any:
    return gateway.run(run)


async def test_several_workers_hold_one_cap(doors: tuple[LiteLLM, GatewayProcess], provider: FaultProvider) -> None:
    litellm, gateway = doors
    provider.forget()
    provider.default = Behaviour(first_byte_s=8)
    body = {"model": "alias", "messages": [{"role": "user", "content": "tell me about rivers"}], "max_tokens": 20}
    async with httpx.AsyncClient(trust_env=False, timeout=110, limits=httpx.Limits(max_connections=200)) as client:

        async def one() -> tuple[int, str]:
            answer = await client.post(f"{litellm.url}/v1/chat/completions", json=body, headers=litellm.headers("workers"))
            return answer.status_code, answer.headers["x-budget-decision-id"]

        try:
            answers = await asyncio.gather(*(one() for _ in range(100)))
        finally:
            provider.default = Behaviour()
    assert Counter(status for status, _ in answers) == {200: 10, 402: 90}
    assert len({made[15:27] for _, made in answers}) == 2, "both workers had some"
    assert float(view_of(gateway, "workers")["committed_usd"]) == pytest.approx(10 * ONE)


def test_a_run_of_the_tenant_goes_on_at_the_other_door_under_another_key(doors: tuple[LiteLLM, GatewayProcess]) -> None:
    litellm, gateway = doors
    for _ in range(4):
        assert litellm.chat("shared").status_code == 200
        gateway.client("shared").chat.completions.create(
            model="big-model", messages=[{"role": "user", "content": "tell me about rivers"}], max_tokens=20
        )
    assert [litellm.chat("shared").status_code for _ in range(3)] == [200, 200, 402]
    view = view_of(gateway, "shared")
    assert (float(view["committed_usd"]), view["calls"]) == (pytest.approx(10 * ONE), 10)


def test_a_stopped_run_ends_its_stream_and_takes_no_more_calls(
    doors: tuple[LiteLLM, GatewayProcess], provider: FaultProvider
) -> None:
    litellm, gateway = doors
    provider.next(Behaviour(pace_s=0.1))
    body = {
        "model": "alias",
        "messages": [{"role": "user", "content": "tell me about rivers"}],
        "max_tokens": 150,
        "stream": True,
    }
    seen = 0
    with httpx.stream(
        "POST", f"{litellm.url}/v1/chat/completions", json=body, headers=litellm.headers("stopped"), trust_env=False, timeout=60
    ) as answer:
        for line in answer.iter_lines():
            seen += line.startswith("data:")
            if seen == 5:
                gateway.admin("POST", "/budget/runs/stopped/stop")
                seen += 1
    assert seen < 100
    refused = litellm.chat("stopped")
    assert (refused.status_code, refused.json()["code"]) == (402, "run_stopped")
    deadline = time.monotonic() + 10
    while float(view_of(gateway, "stopped")["reserved_usd"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert 0 < float(view_of(gateway, "stopped")["committed_usd"]) < 0.0015


def test_what_litellm_asks_of_its_own_accord_is_reserved_too(doors: tuple[LiteLLM, GatewayProcess]) -> None:
    litellm, gateway = doors
    answer = httpx.get(f"{litellm.url}/health", headers=litellm.headers(), trust_env=False, timeout=60)
    assert answer.json()["healthy_count"] == 2, answer.text
    runs = gateway.admin("GET", "/budget/runs").json()
    [own] = [run for run in runs["runs"] if run["run_id"].startswith("litellm:")]
    assert own["calls"] == 2
    assert float(own["reserved_usd"]) == 0


def test_a_config_with_a_mistake_keeps_it_from_starting(
    provider: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> None:
    setup = Setup(tmp_path_factory.mktemp("mistaken"), provider.base_url, extra={"leger": "x"})
    with pytest.raises(AssertionError, match="leger"), LiteLLM(setup, [deployment("big-model", provider.base_url)]):
        pass
