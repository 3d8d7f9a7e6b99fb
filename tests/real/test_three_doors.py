"""One run through three doors: LLM calls through the proxy, a tool through Cycles, another LLM call through LiteLLM with our hook. One
ceiling, one list of receipts, exact sums.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import openai
import orjson
import pytest
import runcycles

from gateway.demo.replies import Writer
from tests.support.config import Setup, listed, opened_by, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.litellm_proxy import MASTER, LiteLLM, deployment, needs_litellm
from tests.support.load import microcents
from tests.support.pricing import BIG, price_table
from tests.support.provider import FaultProvider

pytestmark = [pytest.mark.deep, needs_litellm, pytest.mark.timeout(600)]

CEILING: Final = 1_000_000  # microcents: $0.01
TOOL: Final = 300_000
RUN: Final = "errand"
WITHIN_S: Final = 30.0


@pytest.fixture
def provider(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, price_table()) as running:
        yield running


def receipts(log: Path, wanted: int) -> list[Any]:
    """The log's lines of the run's settled calls, when there are as many as that: who writes them does so a moment later."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        lines = [orjson.loads(line) for line in log.read_bytes().splitlines() if line.startswith(b"{")]
        found = [line for line in lines if line.get("event") == "call" and line.get("run") == RUN and line["charged_usd"]]
        if len(found) >= wanted:
            return found
        assert time.monotonic() < deadline, lines[-5:]
        time.sleep(0.1)


def test_three_doors_draw_on_one_ceiling_and_write_one_list_of_receipts(provider: FaultProvider, tmp_path: Path) -> None:
    keyed = opened_by(listed("all-doors", MASTER))  # one key opens all three
    keyed["extra"]["log"] = str(tmp_path / "calls.log")
    setup = Setup(tmp_path / "gateway", provider.base_url, policy(run_ceiling("$0.01")), **keyed)
    models = [deployment(BIG.name, provider.base_url)]
    with GatewayProcess(setup) as gateway, LiteLLM(setup, models) as litellm:
        config = runcycles.CyclesConfig(
            base_url=f"{gateway.url}/cycles", api_key=MASTER, tenant="default", workflow=RUN, journal_enabled=False
        )
        with runcycles.CyclesClient(config) as client, gateway.client(RUN, MASTER) as sdk:

            def tool(cost: int) -> Any:
                return runcycles.cycles(
                    estimate=cost, actual=cost, action_kind="tool.search", action_name="search", client=client
                )

            asked: Any = {"model": BIG.name, "messages": [{"role": "user", "content": "tell me about rivers"}], "max_tokens": 20}
            sdk.chat.completions.create(**asked)
            tool(TOOL)(lambda: None)()
            assert litellm.chat(RUN).status_code == 200
            assert len(list(sdk.chat.completions.create(**asked, stream=True))) > 1

            found = receipts(tmp_path / "calls.log", 4)
            costs = [microcents(line["charged_usd"]) for line in found]
            view = gateway.run(RUN, MASTER)
            assert len(found) == view["calls"] == 4
            assert sum(costs) == microcents(view["committed_usd"]) == provider.bill.microcents + TOOL
            assert microcents(view["reserved_usd"]) == 0

            # What is left is one amount, whoever asks: the tool takes it, and all three are refused.
            left = CEILING - sum(costs)
            with pytest.raises(runcycles.BudgetExceededError):
                tool(left + 1)(lambda: None)()
            tool(left)(lambda: None)()
            with pytest.raises(runcycles.BudgetExceededError):
                tool(1)(lambda: None)()
            with pytest.raises(openai.APIStatusError) as refused:
                sdk.chat.completions.create(**asked)
            assert (refused.value.status_code, litellm.chat(RUN).status_code) == (402, 402)
            assert microcents(gateway.run(RUN, MASTER)["committed_usd"]) == CEILING
            assert provider.bill.microcents == sum(costs) - TOOL
        assert gateway.troubles == []
