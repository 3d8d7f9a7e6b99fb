"""`penstock mcp`: an agent's real MCP client, over standard input and output, before a real gateway. Every tool, and every way to fail."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, TextContent

from gateway import cli, mcp_server
from gateway.demo.replies import Writer
from gateway.remote import Remote
from tests.support.config import Setup, free_port, ladder, listed, opened_by, policy, run_ceiling
from tests.support.examples import examples
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess
from tests.support.pricing import price_table
from tests.support.provider import FaultProvider
from tests.support.valkey import until

KEY, OTHER_KEY = "pk-agent", "pk-other"
RULES = policy(
    run_ceiling("$1.00"),
    {"name": "steps", "scope": "run", "limit": "60 calls"},
    {"name": "risk", "scope": "run", "limit": "10 risk points"},
    {"name": "agent-day", "scope": "agent", "window": "day", "limit": "$3", "missing": "skip"},
    models=ladder(**{"big-model": ["small-model"]}),
)


def text_of(result: CallToolResult) -> str:
    [block] = result.content
    assert isinstance(block, TextContent)
    return block.text


@dataclass(frozen=True)
class Agent:
    """Its MCP client, which was started for the run `home`, and the gateway that its calls go through."""

    portal: BlockingPortal
    client: Client
    gateway: GatewayProcess

    def use(self, tool: str, **given: Any) -> tuple[str, dict[str, Any]]:
        """(what the model reads, what a program reads)."""
        result = self.portal.call(self.client.call_tool, tool, given)
        assert not result.is_error, text_of(result)
        assert isinstance(result.structured_content, dict)
        return text_of(result), result.structured_content

    def fail(self, tool: str, **given: Any) -> str:
        result = self.portal.call(self.client.call_tool, tool, given)
        assert result.is_error, text_of(result)
        assert result.structured_content is None
        return text_of(result)

    def call(self, run: str = "home", key: str = KEY, **body: Any) -> Any:
        """A model call, by the real SDK; its raw answer."""
        request = {"model": "big-model", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, **body}
        return self.gateway.client(run, key).chat.completions.with_raw_response.create(**request)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, writer: Writer) -> Iterator[Agent]:
    with FaultProvider(writer, price_table()) as provider:
        keys = opened_by(listed("agent", KEY), listed("other", OTHER_KEY))
        setup = Setup(tmp_path_factory.mktemp("mcp"), provider.base_url, policy=RULES, **keys)
        with GatewayProcess(setup) as gateway, start_blocking_portal() as portal:
            told = {"PENSTOCK_GATEWAY": f"{gateway.url}/v1", "PENSTOCK_KEY": KEY, "PENSTOCK_RUN_ID": "home"}
            env = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ} | told
            server = StdioServerParameters(command=sys.executable, args=["-m", "gateway", "mcp"], env=env, cwd=Path.cwd())
            with portal.wrap_async_context_manager(Client(server)) as client:
                yield Agent(portal, client, gateway)


# -- the tools --------------------------------------------------------------------------------------------------------------------


def test_the_tools_are_few_and_say_what_they_take_give_and_change(agent: Agent) -> None:
    tools = {tool.name: tool for tool in agent.portal.call(agent.client.list_tools).tools}
    assert list(tools) == ["budget_left", "estimate_call", "models_that_fit", "ask_for_raise", "record_cost"]
    for name, tool in tools.items():
        assert tool.description
        assert tool.output_schema is not None
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is (name not in ("ask_for_raise", "record_cost"))
        for parameter, schema in tool.input_schema["properties"].items():
            assert "description" in schema, (name, parameter)
    assert tools["record_cost"].input_schema["required"] == ["name", "idempotency_key"]
    assert "budget_left" in (agent.client.instructions or "")


def test_what_is_left_is_known_before_the_first_call_and_after(agent: Agent) -> None:
    text, left = agent.use("budget_left", run_id="fresh")
    assert text.splitlines()[0] == "Run fresh: $1.00 is left."
    assert (left["remaining_usd"], left["takes_calls"], left["open_ask"]) == ("1.00", True, None)
    agent.call("fresh")
    text, left = agent.use("budget_left", run_id="fresh")
    run = agent.gateway.run("fresh", KEY)
    assert left["remaining_usd"] == run["remaining_usd"]
    assert [(each["name"], each["limit"], each["committed"]) for each in left["budgets"]] == [
        ("run-ceiling", "1.00", run["committed_usd"]),
        ("steps", 60, 1),
        ("risk", 10, 0),
    ]
    assert "steps (run): 1 calls of 60 calls spent, 0 calls held" in text


def test_a_run_that_was_stopped_says_so(agent: Agent) -> None:
    agent.call("halted")
    agent.gateway.admin("POST", "/budget/runs/halted/stop")
    text, left = agent.use("budget_left", run_id="halted")
    assert (left["takes_calls"], left["why_not"]) == (False, "the run halted was stopped")
    assert "It takes no calls: the run halted was stopped." in text
    assert (
        "refused: the run halted was stopped" in agent.use("estimate_call", model="big-model", input_tokens=1, run_id="halted")[0]
    )
    assert "the run takes no calls" in agent.use("models_that_fit", input_tokens=1, run_id="halted")[0]


def test_an_estimate_is_what_the_call_then_holds(agent: Agent) -> None:
    messages = [{"role": "user", "content": "Tell me about rivers. " * 30}]
    text, told = agent.use("estimate_call", model="big-model", messages=messages, max_output_tokens=300)
    assert text.endswith("It fits.")
    answer = agent.call(messages=messages, max_tokens=300)
    decision = agent.gateway.get(f"/budget/decisions/{answer.headers['X-Budget-Decision-Id']}", KEY)
    first = told["ladder"][0]
    assert (first["held_usd"], first["input_tokens"]) == (decision["held_usd"], decision["inputs"]["input_tokens"])
    _, sized = agent.use("estimate_call", model="big-model", input_tokens=first["input_tokens"], max_output_tokens=300)
    assert sized["ladder"] == told["ladder"]


def test_an_estimate_says_what_would_be_called_instead_and_what_is_in_the_way(agent: Agent) -> None:
    text, told = agent.use("estimate_call", model="big-model", input_tokens=190_000, max_output_tokens=8_000)
    # 190,000 × $2.50 + 8,000 × $10 a million is $0.555; at twice that, nothing but the smaller one is left
    assert told["decision"] == "allow"
    agent.use("record_cost", name="render", idempotency_key="render-1", usd="0.60", run_id="spent")
    text, told = agent.use("estimate_call", model="big-model", input_tokens=190_000, max_output_tokens=8_000, run_id="spent")
    assert (told["decision"], told["selected_model"]) == ("downgrade", "small-model")
    assert "small-model would serve it instead: run-ceiling has no room for it: it needs $0.555, and $0.40 is left." in text
    assert told["ladder"][0]["blocked_by"] == [{"name": "run-ceiling", "unit": "usd", "needs": "0.555", "room": "0.40"}]
    agent.use("record_cost", name="render", idempotency_key="render-2", usd="0.39", run_id="spent")
    text, told = agent.use("estimate_call", model="big-model", input_tokens=190_000, max_output_tokens=8_000, run_id="spent")
    assert (told["decision"], told["selected_model"]) == ("block", None)
    assert "It would be refused: run-ceiling has no room for it" in text


def test_the_models_that_fit_are_listed_the_dearest_first(agent: Agent) -> None:
    text, told = agent.use("models_that_fit", input_tokens=1_000, max_output_tokens=500, needs=["tools"])
    assert [each["model"] for each in told["models"]] == ["big-model", "small-model"]
    assert text.splitlines()[0].startswith("2 models fit; $")
    _, told = agent.use("models_that_fit", input_tokens=1_000, at_most=1)
    assert ([each["model"] for each in told["models"]], told["left_out"]) == (["big-model"], 1)
    agent.use("record_cost", name="render", idempotency_key="poor-1", usd="0.99", run_id="poor")
    _, told = agent.use("models_that_fit", input_tokens=10_000, max_output_tokens=500, run_id="poor")
    assert [each["model"] for each in told["models"]] == ["small-model"]


def test_a_raise_is_asked_for_and_a_person_grants_it(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.call("asking")
    text, asked = agent.use("ask_for_raise", amount="$2.00", reason="two chapters are left", run_id="asking")
    assert text.startswith("Asked for $2.00 more for run asking. Nothing is granted yet; $0.99")
    assert (asked["open_ask"]["amount"], asked["limit_usd"]) == ("2.00", "1.00")
    assert "An ask for $2.00 more is open" in agent.use("budget_left", run_id="asking")[0]

    def told() -> list[str]:
        lines = agent.gateway.log.splitlines()
        return [line for line in lines if '"event":"raise_asked"' in line and '"run":"asking"' in line]

    until(told)  # the log is written beside the path of a call
    [line] = told()
    assert '"wanted":"$2.00"' in line
    assert "chapters" not in line
    monkeypatch.setenv("PENSTOCK_GATEWAY", agent.gateway.url)
    monkeypatch.setenv("PENSTOCK_ADMIN_TOKEN", ADMIN_TOKEN)

    def penstock(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["penstock", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    assert "two chapters are left" in penstock("runs", "asks")[1]
    assert '"amount": "2.00"' in penstock("runs", "asks", "--json")[1]
    assert "asks for         $2.00 more, at " in penstock("runs", "show", "asking")[1]
    assert "limit_usd        3.00" in penstock("runs", "raise", "asking")[1]
    assert "asks for nothing: name an amount" in penstock("runs", "raise", "asking")[1]
    assert "limit_usd        3.50" in penstock("runs", "raise", "asking", "$0.50")[1]
    assert "expected an amount in USD" in penstock("runs", "raise", "asking", "much")[1]
    _, left = agent.use("budget_left", run_id="asking")
    assert (left["open_ask"], left["budgets"][0]["limit"]) == (None, "3.50")
    agent.use("ask_for_raise", amount="30 calls", reason="the index is long", run_id="asking")
    assert "asks for room in steps|run=asking|lifetime|calls" in penstock("runs", "raise", "asking")[1]
    agent.use("ask_for_raise", amount="500 credits", reason="for the renderer", run_id="asking")
    assert "500 credits" in penstock("runs", "asks")[1]


def test_what_a_tool_costs_is_recorded_once(agent: Agent) -> None:
    cost = {"name": "web_search", "idempotency_key": "search-17", "usd": "0.12", "risk_points": 3, "run_id": "tools"}
    text, told = agent.use("record_cost", **cost)
    assert text == "web_search was recorded: $0.12; $0.88 is left."
    assert (told["charged_usd"], told["replayed"]) == ("0.12", False)
    assert agent.use("record_cost", **cost)[1]["replayed"]
    left = agent.use("budget_left", run_id="tools")[1]
    assert {each["name"]: each["committed"] for each in left["budgets"]} == {"run-ceiling": "0.12", "steps": 0, "risk": 3}
    refused = agent.fail("record_cost", name="render", idempotency_key="render-9", usd="0.95", run_id="tools")
    assert "Run tools has reached its ceiling" in refused
    gone = {"name": "render", "idempotency_key": "render-9", "usd": "0.95", "already_spent": True, "run_id": "tools"}
    assert agent.use("record_cost", **gone)[1]["remaining_usd"] == "0.00"


# -- what goes wrong --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "given", "words"),
    [
        ("estimate_call", {"model": "mystery-1", "input_tokens": 5}, "is not known, so its cost cannot be bounded"),
        ("estimate_call", {"model": "mystery-1", "input_tokens": 5}, "models_that_fit lists those that have a price."),
        ("estimate_call", {"model": "big-model"}, "Name either messages or input_tokens."),
        ("estimate_call", {"model": "big-model", "messages": [], "input_tokens": 1}, "Name either messages or input_tokens."),
        ("estimate_call", {"model": "big-model", "messages": [{"role": 5}]}, "role"),
        ("estimate_call", {"model": "big-model", "input_tokens": 300_000}, "leaves no room for output"),
        ("estimate_call", {"model": "big-model", "input_tokens": -1}, "greater than or equal to 0"),
        ("budget_left", {"run_id": "a b"}, "A run id has 1 to 128 of the characters"),
        ("models_that_fit", {"input_tokens": 5, "needs": ["wings"]}, "Input should be 'tools'"),
        ("ask_for_raise", {"amount": "much", "reason": "more"}, "amount: expected how much more, such as"),
        ("ask_for_raise", {"amount": "$2", "reason": "more", "run_id": "never-was"}, "A run is known from its first call on"),
        ("record_cost", {"name": "x", "idempotency_key": "k1"}, "Name usd, tokens, credits or risk_points."),
        ("record_cost", {"name": "x", "idempotency_key": "k 1", "usd": "1"}, "1 to 200 printable ASCII characters"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(agent: Agent, tool: str, given: dict[str, Any], words: str) -> None:
    if tool == "ask_for_raise" and "run_id" not in given:
        agent.call()
    assert words in agent.fail(tool, **given)


def test_a_key_that_is_used_for_another_cost_is_told(agent: Agent) -> None:
    agent.use("record_cost", name="x", idempotency_key="twice", usd="0.01")
    assert "Use a new key for another cost." in agent.fail("record_cost", name="x", idempotency_key="twice", usd="0.02")


def test_the_run_of_another_key_is_out_of_reach(agent: Agent) -> None:
    agent.call("hers", key=OTHER_KEY)
    for tool, given in (
        ("budget_left", {}),
        ("estimate_call", {"model": "big-model", "input_tokens": 1}),
        ("models_that_fit", {"input_tokens": 1}),
        ("record_cost", {"name": "x", "idempotency_key": "k9", "usd": "0.01"}),
    ):
        assert "The run hers belongs to another key" in agent.fail(tool, run_id="hers", **given), tool
    assert "There is no such run, or it is not yours to see." in agent.fail(
        "ask_for_raise", amount="$1", reason="-", run_id="hers"
    )


async def test_a_gateway_that_is_away_is_told_of_by_every_tool() -> None:
    async with Client(mcp_server.server(Remote(f"http://127.0.0.1:{free_port()}"), "r1")) as client:
        for tool, given in (
            ("budget_left", {}),
            ("estimate_call", {"model": "m", "input_tokens": 1}),
            ("models_that_fit", {"input_tokens": 1}),
            ("ask_for_raise", {"amount": "$1", "reason": "more"}),
            ("record_cost", {"name": "x", "idempotency_key": "k", "usd": "1"}),
        ):
            result = await client.call_tool(tool, given)
            assert result.is_error
            assert "no gateway answers at http://127.0.0.1:" in text_of(result)
            assert "penstock serve" in text_of(result)


async def test_a_bad_key_is_told_where_keys_come_from(agent: Agent) -> None:
    for token in (None, "pk-nobody"):
        async with Client(mcp_server.server(Remote(agent.gateway.url, token), None)) as client:
            result = await client.call_tool("budget_left", {})
            assert result.is_error
            assert "knows no such key" in text_of(result)
            assert "PENSTOCK_KEY" in text_of(result)


async def test_dimensions_come_with_headers_and_an_ask_needs_a_run(agent: Agent) -> None:
    remote = Remote(agent.gateway.url, KEY, headers={"X-Agent-Id": "a1"})
    async with Client(mcp_server.server(remote, None)) as client:
        result = await client.call_tool("budget_left", {})
        assert "agent-day (agent): $0.00 of $3.00 spent, $0.00 held, until " in text_of(result)
        assert "No run was named" in text_of(result)
        result = await client.call_tool("ask_for_raise", {"amount": "$1", "reason": "more"})
        assert "Name it by run_id, or start this server with --run or PENSTOCK_RUN_ID." in text_of(result)


async def test_an_ask_tells_what_is_left_in_the_tightest_budget_be_it_the_runs_own_or_not(agent: Agent) -> None:
    remote = Remote(agent.gateway.url, KEY, headers={"X-Agent-Id": "tight"})
    async with Client(mcp_server.server(remote, "wide")) as client:
        await client.call_tool("record_cost", {"name": "x", "idempotency_key": "wide-1", "usd": "0.25"})
        agent.gateway.admin("PUT", "/budget/runs/wide", {"limit": "9"})
        result = await client.call_tool("ask_for_raise", {"amount": "$1", "reason": "more"})
        assert "Nothing is granted yet; $2.75 is left." in text_of(result)


# -- what docs/mcp.md says of it ----------------------------------------------------------------------------------------------------


def set_ups() -> list[str]:
    return [example.text for example in examples("") if example.page == "docs/mcp.md"]


def test_the_set_ups_on_the_page_start_this_verb_with_what_it_reads() -> None:
    claude, codex, _ = set_ups()
    of_claude = json.loads(claude)["mcpServers"]["penstock"]
    of_codex = tomllib.loads(codex)["mcp_servers"]["penstock"]
    assert {name: of_claude[name] for name in ("command", "args")} == {"command": "penstock", "args": ["mcp"]}
    assert {name: of_codex[name] for name in ("command", "args")} == {"command": "penstock", "args": ["mcp"]}
    for names in (of_claude["env"], of_codex["env_vars"]):
        assert set(names) == {"PENSTOCK_GATEWAY", "PENSTOCK_KEY", "PENSTOCK_RUN_ID"}


@pytest.mark.deep
async def test_openai_agents_lists_the_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("agents")
    command = tmp_path / "penstock"  # this one, whatever is installed here
    command.write_text(f'#!/bin/sh\ncd "{Path.cwd()}" && exec "{sys.executable}" -m gateway "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    listed = "\n    listed = await budget.list_tools()\n"
    found: dict[str, Any] = {}
    code = compile(set_ups()[2] + listed, "docs/mcp.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    await eval(code, found)
    assert "budget_left" in [tool.name for tool in found["listed"]]


# -- the verb ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def penstock(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def complaint(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["penstock", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        [line] = capsys.readouterr().err.splitlines()
        return line

    return complaint


def test_without_its_package_the_verb_says_what_to_install(penstock: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mcp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.delitem(sys.modules, "gateway.mcp_server")
    monkeypatch.delattr("gateway.mcp_server")
    assert "pip install 'penstock-gateway[mcp]'" in penstock("mcp")


def test_a_run_or_header_that_is_none_is_one_line(penstock: Callable[..., str]) -> None:
    assert "--run: found 'a b'" in penstock("mcp", "--run", "a b")
    assert "expected a name, a colon and a value" in penstock("mcp", "-H", "X-Agent-Id")


def test_the_other_verbs_do_not_import_it() -> None:
    code = "import sys, gateway.cli; sys.exit('mcp' in sys.modules or 'gateway.mcp_server' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.deep
def test_it_is_served_over_http_on_loopback_too(agent: Agent) -> None:
    port = free_port()
    command = [sys.executable, "-m", "gateway", "mcp", "--gateway", agent.gateway.url, "--run", "home", "--listen", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "PENSTOCK_KEY": KEY}, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == f"penstock: MCP at http://127.0.0.1:{port}/mcp\n"
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport, trust_env=False) as plain:
            foreign = plain.post(f"http://127.0.0.1:{port}/mcp", headers={"Host": "evil.example"}, json={})
        assert foreign.status_code == 421
        with agent.portal.wrap_async_context_manager(Client(f"http://127.0.0.1:{port}/mcp")) as client:
            result = agent.portal.call(client.call_tool, "budget_left", {})
            assert not result.is_error
    finally:
        process.terminate()
        process.wait(30)
