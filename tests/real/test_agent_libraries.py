"""What agents are built with, unmodified: the Agents SDK, LangChain and Pydantic AI, on the dialects that they speak by default. They
complete, are metered, and a refusal is one POST whose text they raise.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import openai
import pytest
from llmock.testing import LLMockServer

from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess, base_url
from tests.support.load import microcents
from tests.support.loopback import LOOPBACK
from tests.support.pricing import BIG

pytestmark = [pytest.mark.deep, pytest.mark.timeout(300)]

agents = pytest.importorskip("agents", reason="openai-agents is not installed: make test-deep does it")
langchain_openai = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed: make test-deep does it")
pydantic_ai = pytest.importorskip("pydantic_ai", reason="pydantic-ai-slim is not installed: make test-deep does it")

ASKED: Final = "Where does the water go?"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Another project's scripted provider, for chat and for responses."""
    with LLMockServer() as running:
        yield running.base_url("openai")


@pytest.fixture(scope="module")
def gateway(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    setup = Setup(tmp_path_factory.mktemp("libraries"), server, policy=policy(run_ceiling("$1.00")))
    with GatewayProcess(setup) as running:
        yield running
        assert running.troubles == []


@pytest.fixture
def control(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.removesuffix("/v1"), **LOOPBACK) as client:
        client.post("/_llmock/reset").raise_for_status()
        yield client


def posts(control: httpx.Client) -> int:
    count: int = control.get("/_llmock/requests").json()["count"]
    return count


# -- each library asks once, whole or streamed: its answer's text -------------------------------------------------------------------


async def agents_sdk(url: str, stream: bool, responses: bool) -> str:
    agents.set_tracing_disabled(disabled=True)
    client = openai.AsyncOpenAI(base_url=url, api_key=CALLER_KEY)
    model_class = agents.OpenAIResponsesModel if responses else agents.OpenAIChatCompletionsModel
    agent = agents.Agent(name="miller", instructions="Be brief.", model=model_class(BIG.name, openai_client=client))
    if not stream:
        return str((await agents.Runner.run(agent, ASKED)).final_output)
    result = agents.Runner.run_streamed(agent, ASKED)
    async for _ in result.stream_events():
        pass
    return str(result.final_output)


async def langchain(url: str, stream: bool, responses: bool) -> str:
    model = langchain_openai.ChatOpenAI(model=BIG.name, base_url=url, api_key=CALLER_KEY, use_responses_api=responses)
    if not stream:
        return str((await model.ainvoke(ASKED)).text)
    return "".join([str(chunk.text) async for chunk in model.astream(ASKED)])


async def pydantic(url: str, stream: bool, responses: bool) -> str:
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=url, api_key=CALLER_KEY)
    agent = pydantic_ai.Agent((OpenAIResponsesModel if responses else OpenAIChatModel)(BIG.name, provider=provider))
    if not stream:
        return str((await agent.run(ASKED)).output)
    async with agent.run_stream(ASKED) as result:
        return "".join([text async for text in result.stream_text(delta=True)])


LIBRARIES: Final[list[Callable[[str, bool, bool], Any]]] = [agents_sdk, langchain, pydantic]
EACH_WAY: Final = pytest.mark.parametrize(
    ("library", "stream", "responses"),
    [(library, stream, responses) for library in LIBRARIES for stream in (False, True) for responses in (False, True)],
    ids=lambda value: getattr(value, "__name__", None),
)


@EACH_WAY
async def test_it_completes_and_its_run_is_charged(
    gateway: GatewayProcess, control: httpx.Client, library: Any, stream: bool, responses: bool
) -> None:
    run = f"{library.__name__}-{stream}-{responses}"
    text = await library(base_url(gateway.url, run), stream, responses)
    assert text.strip()
    told = await asyncio.to_thread(gateway.run, run)
    assert (told["calls"], told["reserved_usd"]) == (1, "0.00")
    assert microcents(told["committed_usd"]) > 0
    assert posts(control) == 1


@EACH_WAY
async def test_a_refusal_is_one_post_and_its_text_is_raised(
    gateway: GatewayProcess, control: httpx.Client, library: Any, stream: bool, responses: bool
) -> None:
    run = f"{library.__name__}-{stream}-{responses}-refused"
    gateway.admin("PUT", f"/budget/runs/{run}", {"limit": "$0.0001"}).raise_for_status()
    with pytest.raises(Exception, match="this call could use up to") as refused:
        await library(base_url(gateway.url, run), stream, responses)
    assert "402" in str(refused.value) or getattr(refused.value, "status_code", None) == 402
    assert posts(control) == 0
    assert [line["status"] for line in await asyncio.to_thread(gateway.calls_logged, run)] == [402]
