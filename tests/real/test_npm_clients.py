"""Codex CLI and Claude Code as people install them, started by `penstock run` before a third project's mock provider (aimock): they
complete, their run is metered by what the provider reported, and a refused turn is one POST whose text they show.

The clients are pinned in `npm/package-lock.json` and installed beside it when it changes.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.demo.bill import Price
from tests.support import installing
from tests.support.config import Setup, free_port, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.load import microcents
from tests.support.loopback import LOOPBACK

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]

BIN: Final = installing.NPM / "node_modules" / ".bin"
KEY: Final = "sk-test-caller"
SAID: Final = "The mill is mended."
USAGE: Final = {"input_tokens": 4_021, "output_tokens": 7, "prompt_tokens": 4_021, "completion_tokens": 7, "total_tokens": 4_028}


@pytest.fixture(scope="module")
def installed() -> None:
    installing.npm()


@dataclass(frozen=True, slots=True)
class Mock:
    """aimock, and what it was asked."""

    url: str

    def posts(self) -> Sequence[Any]:
        return [each for each in httpx.get(f"{self.url}/__aimock/journal", **LOOPBACK).json() if each["method"] == "POST"]


@pytest.fixture(scope="module")
def mock(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    folder, port = tmp_path_factory.mktemp("aimock"), free_port()
    fixture = {"match": {"userMessage": "mill"}, "response": {"content": SAID, "usage": USAGE}}
    (folder / "fixtures.json").write_text(json.dumps({"fixtures": [fixture]}))
    command = ["node", BIN / "llmock", "--port", str(port), "--fixtures", folder / "fixtures.json"]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_until_it_listens(port, running)
        yield Mock(f"http://127.0.0.1:{port}")
    finally:
        running.terminate()
        running.wait()


def _wait_until_it_listens(port: int, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert running.poll() is None
        assert time.monotonic() < deadline
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return


@pytest.fixture(scope="module")
def gateway(mock: Mock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    providers = {
        "openai": {"base_url": f"{mock.url}/v1", "accepts_caller_keys": True},
        "anthropic": {"base_url": mock.url, "accepts_caller_keys": True},
    }
    rules = policy(run_ceiling("$5.00"), runs={"id_from": ["path", "header:session-id", "claude-code"]})
    # Codex offers its model a search in every call.
    extra = {"providers": providers, "models": {}, "reservation": {"flat": {"tools.web_search": "$0.05"}}}
    setup = Setup(tmp_path_factory.mktemp("npm"), "", policy=rules, extra=extra)
    with GatewayProcess(setup) as running:
        yield running
        assert running.troubles == []


@dataclass(frozen=True, slots=True)
class Agent:
    """One client: how it is started, which model it asks, and what that costs."""

    command: Callable[[], list[str | Path]]
    model: str
    price: Price


def codex() -> list[str | Path]:
    # It does not look at OPENAI_BASE_URL: a shell puts it into the option that it has.
    script = '"$0" exec --skip-git-repo-check -c openai_base_url="$OPENAI_BASE_URL" -m gpt-5 "mend the mill"'
    return ["sh", "-c", script, BIN / "codex"]


def claude() -> list[str | Path]:
    return [BIN / "claude", "-p", "mend the mill", "--model", "claude-haiku-4-5"]


AGENTS: Final = {
    "codex": Agent(codex, "gpt-5", Price.parse("1.25:10:0.125")),
    "claude-code": Agent(claude, "claude-haiku-4-5", Price.parse("1:5:0.10")),
}


def started(name: str, home: Path, *before: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The agent's end, in an empty home of its own. `before`: what starts it."""
    quiet = {"DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "CODEX_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY, **quiet}
    return subprocess.run(
        [*before, *map(str, AGENTS[name].command())],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**environment, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **more},
        cwd=home,
        timeout=300,
        check=False,
    )


def penstock_run(gateway: GatewayProcess, run: str, limit: str) -> list[str]:
    return [sys.executable, "-m", "gateway", "run", "--gateway", gateway.url, "--run", run, "--limit", limit, "--"]


@pytest.mark.parametrize("name", AGENTS)
def test_the_agent_completes_and_its_run_is_charged_what_the_provider_reported(
    gateway: GatewayProcess, mock: Mock, name: str, tmp_path: Path
) -> None:
    agent, before = AGENTS[name], len(mock.posts())
    done = started(name, tmp_path, *penstock_run(gateway, f"{name}-good", "$2.00"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAID in done.stdout
    told = gateway.run(f"{name}-good", KEY)
    posts = len(mock.posts()) - before
    assert told["calls"] == posts >= 1
    each = agent.price.microcents(USAGE["input_tokens"], 0, USAGE["output_tokens"])
    assert microcents(told["committed_usd"]) == posts * each
    assert (told["limit_usd"], told["reserved_usd"]) == ("2.00", "0.00")
    assert f"penstock: run {name}-good spent ${told['committed_usd']} of $2.00" in done.stderr
    assert f"penstock:   {agent.model}  " in done.stderr


@pytest.mark.parametrize("name", AGENTS)
def test_a_refused_turn_is_one_post_and_the_agent_shows_why(
    gateway: GatewayProcess, mock: Mock, name: str, tmp_path: Path
) -> None:
    before, run = len(mock.posts()), f"{name}-refused"
    done = started(name, tmp_path, *penstock_run(gateway, run, "$0.0001"))
    assert done.returncode != 0
    assert f"Run {run}: this call could use up to" in done.stdout + done.stderr
    assert len(mock.posts()) == before
    assert [line["code"] for line in gateway.calls_logged(run, KEY)] == ["call_exceeds_limit"]


@pytest.mark.parametrize("name", AGENTS)
def test_the_agents_own_session_is_its_run_where_the_policy_says_so(gateway: GatewayProcess, name: str, tmp_path: Path) -> None:
    def runs() -> dict[str, Any]:
        return {run["run_id"]: run for run in gateway.get("/budget/runs?limit=200", KEY)["runs"]}

    before = runs()
    done = started(name, tmp_path, OPENAI_BASE_URL=f"{gateway.url}/v1", ANTHROPIC_BASE_URL=gateway.url)
    assert done.returncode == 0, done.stdout + done.stderr
    [(session, told)] = [(run, told) for run, told in runs().items() if run not in before]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", session)
    assert microcents(told["committed_usd"]) > 0
