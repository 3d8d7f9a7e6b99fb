"""Cycles' published live-server suite, and what they build on their client for LangChain and for the Agents SDK, unmodified, before a real
gateway.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import openai
import pytest
import runcycles
from llmock.testing import LLMockServer
from runcycles import Action, Amount, AsyncCyclesClient, CyclesClient, Subject, Unit

from tests.support.config import Setup, policy
from tests.support.cycles import CENT, Opened, Plane
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]

SUITE: Final = "tests/integration/test_live_server.py"
MODEL: Final = "test-model"
ASKED: Final = "Where does the water go?"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    setup = Setup(tmp_path_factory.mktemp("cycles"), "http://127.0.0.1:9/v1", policy={**policy(), "budgets": []})
    with GatewayProcess(setup) as running:
        yield Plane(f"{running.url}/cycles", ADMIN_TOKEN)
        assert running.troubles == []


@pytest.fixture
def own(plane: Plane) -> Opened:
    return plane.opened(100 * CENT)


# -- their live suite -------------------------------------------------------------------------------------------------------------------


def test_their_live_server_suite_passes(own: Opened, tmp_path: Path) -> None:
    """From the source distribution of the client that is installed here; it is not among the wheel's files."""
    wanted = f"runcycles=={runcycles.__version__}"
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "runcycles", "--dest"]
    fetched = subprocess.run([*fetch, tmp_path, wanted], capture_output=True, text=True, check=False)
    archives = list(tmp_path.glob("*.tar.gz"))
    if not archives:
        pytest.skip(f"the source distribution can't be had: {fetched.stderr[-300:]}")
    with tarfile.open(archives[0]) as archive:
        [member] = [each for each in archive.getmembers() if each.name.endswith(f"/{SUITE}")]
        archive.extract(member, tmp_path, filter="data")
    where = {"CYCLES_BASE_URL": own.url, "CYCLES_API_KEY": own.key, "CYCLES_TENANT": own.tenant, "NO_PROXY": "*"}
    # With a root of its own, so that our settings are not theirs.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-c", os.devnull]
    ran = subprocess.run(
        [*command, tmp_path / member.name], capture_output=True, text=True, env={**os.environ, **where}, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "5 passed" in ran.stdout
    assert own.balance()["spent"] == 8_000


# -- what they build on it --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with LLMockServer() as running:
        yield running.base_url("openai")


def cents(amount: int) -> Amount:
    return Amount(unit=Unit.USD_MICROCENTS, amount=amount * CENT)


@pytest.fixture
def create_agent() -> Any:
    return pytest.importorskip(
        "langchain.agents", reason="langchain-runcycles is not installed: make test-deep does it"
    ).create_agent


def gates(client: CyclesClient | AsyncCyclesClient, own: Opened) -> Sequence[Any]:
    gated = pytest.importorskip("langchain_runcycles")
    subject = Subject(tenant=own.tenant, agent="miller")
    return (
        gated.CyclesFanOutGate(5, client=client, subject=subject, action=Action(kind="model.turn", name="mill")),
        gated.CyclesModelGate(
            client, subject=subject, action=Action(kind="llm.completion", name=MODEL), mode="decide+reserve", estimate=cents(3)
        ),
        gated.CyclesToolGate(
            client, subject=subject, action=Action(kind="tool.call", name="gauge"), mode="decide+reserve", estimate=cents(1)
        ),
    )


def scripted() -> Any:
    """A model that uses its tool once, and then answers."""
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    class Model(GenericFakeChatModel):
        def bind_tools(self, tools: Any, **_: Any) -> Any:
            return self

    uses = AIMessage(content="", tool_calls=[{"name": "gauge", "args": {"at": "weir"}, "id": "call-1"}])
    return Model(messages=iter([uses, AIMessage(content="To the mill.")]))


def gauge(at: str) -> str:
    """How high the water stands."""
    return f"two feet at the {at}"


def test_langchain_agents_are_gated_turn_by_turn_and_charged(own: Opened, create_agent: Any) -> None:
    with CyclesClient(own.config()) as client:
        agent = create_agent(model=scripted(), tools=[gauge], middleware=gates(client, own))
        ended = agent.invoke({"messages": [("user", ASKED)]})
    assert ended["messages"][-1].content == "To the mill."
    assert ended["messages"][-2].content == "two feet at the weir"
    assert (own.balance()["spent"], own.balance()["reserved"]) == (7 * CENT, 0)


async def test_an_asynchronous_langchain_agent_stops_when_its_budget_is_spent(plane: Plane, create_agent: Any) -> None:
    own = plane.opened(3 * CENT)
    async with AsyncCyclesClient(own.config()) as client:
        agent = create_agent(model=scripted(), tools=[gauge], middleware=gates(client, own))
        ended = await agent.ainvoke({"messages": [("user", ASKED)]})
    assert "BUDGET_EXCEEDED" in str([message.content for message in ended["messages"]])
    assert (own.balance()["spent"], own.balance()["reserved"]) == (3 * CENT, 0)


@pytest.fixture
def agents() -> Any:
    found = pytest.importorskip("agents", reason="runcycles-openai-agents is not installed: make test-deep does it")
    found.set_tracing_disabled(disabled=True)
    return found


def hooks(own: Opened, **more: Any) -> Any:
    governed = pytest.importorskip("runcycles_openai_agents")
    return governed.CyclesRunHooks(config=own.config(), tenant=own.tenant, llm_estimate=5 * CENT, **more)


def miller(agents: Any, provider: str, **more: Any) -> Any:
    client = openai.AsyncOpenAI(base_url=provider, api_key="sk-test")
    model = agents.OpenAIChatCompletionsModel("gpt-4o", openai_client=client)
    return agents.Agent(name="miller", instructions="Be brief.", model=model, **more)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agents_sdk_run_is_charged_for_its_calls(own: Opened, agents: Any, provider: str, stream: bool) -> None:
    governed = hooks(own)
    if stream:
        result = governed.run_streamed(miller(agents, provider), ASKED)
        async for _ in result.stream_events():
            pass
    else:
        result = await governed.run(miller(agents, provider), ASKED)
    assert result.final_output
    assert (own.balance()["spent"], own.balance()["reserved"]) == (5 * CENT, 0)


async def test_an_agents_sdk_run_without_budget_ends_before_its_call(plane: Plane, agents: Any, provider: str) -> None:
    own = plane.opened(4 * CENT)
    with pytest.raises(runcycles.BudgetExceededError, match="too little is left"):
        await hooks(own).run(miller(agents, provider), ASKED)
    assert own.balance() == {"remaining": 4 * CENT, "reserved": 0, "spent": 0, "allocated": 4 * CENT}
