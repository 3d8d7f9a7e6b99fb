"""Cycles' own npm clients, unmodified, before a real gateway: the TypeScript client does everything it has, and the MCP server's tools are
called by the official MCP client. What they were told is right, and the budget is charged exactly that.

They are pinned in `npm-cycles/package.json` and installed beside it, from whatever registry npm is set up with.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.config import Setup, policy
from tests.support.cycles import CENT, Opened, Plane
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]

NPM: Final = Path(__file__).parent / "npm-cycles"
SERVER: Final = NPM / "node_modules/@runcycles/mcp-server/dist/index.js"
TOOLS: Final = 9


@pytest.fixture(scope="module")
def installed() -> None:
    """Without any package's scripts."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("there is no node and npm here")
    wanted, done = (NPM / "package.json").read_text(), NPM / "node_modules" / "installed"
    if done.exists() and done.read_text() == wanted:
        return
    command = [npm, "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
    ran = subprocess.run(command, cwd=NPM, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        pytest.skip(f"Cycles' npm clients could not be installed: {ran.stderr[-300:]}")
    done.write_text(wanted)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    setup = Setup(tmp_path_factory.mktemp("npm-cycles"), "http://127.0.0.1:9/v1", policy={**policy(), "budgets": []})
    with GatewayProcess(setup) as running:
        yield Plane(f"{running.url}/cycles", ADMIN_TOKEN)
        assert running.troubles == []


@pytest.fixture
def own(plane: Plane) -> Opened:
    return plane.opened(100 * CENT)


def told(own: Opened, home: Path, script: str, *arguments: str | Path) -> Any:
    """What a script of ours printed, with the clients' own environment variables."""
    where = {"CYCLES_BASE_URL": own.url, "CYCLES_API_KEY": own.key, "CYCLES_TENANT": own.tenant}
    ran = subprocess.run(
        ["node", NPM / script, *arguments],
        capture_output=True,
        text=True,
        env={"HOME": str(home), "PATH": os.environ["PATH"], **where},
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout)


def test_the_typescript_client_does_everything_it_has(installed: None, own: Opened, tmp_path: Path) -> None:
    assert told(own, tmp_path, "client.mjs") == {
        "inside": {"decision": "ALLOW", "scopePath": own.scope},
        "guarded": 3 * CENT,
        "failed": "no work",
        "stream": True,
        "extended": 10_000,
        "live": "ACTIVE",
        "charged": 2 * CENT,
        "released": 4 * CENT,
        "event": 201,
        "listed": ["COMMITTED", "COMMITTED", "COMMITTED", "RELEASED", "RELEASED"],
        "decided": "ALLOW",
        "refused": {"typed": True, "status": 409, "code": "BUDGET_EXCEEDED"},
        "balance": {"spent": 12 * CENT, "reserved": 0, "remaining": 88 * CENT},
    }
    assert own.balance()["spent"] == 12 * CENT


def test_every_tool_of_the_mcp_server_works(installed: None, own: Opened, tmp_path: Path) -> None:
    answers = told(own, tmp_path, "tools.mjs", SERVER)
    assert len(answers["tools"]) == TOOLS
    assert answers["decide"]["decision"] == answers["reserve"]["decision"] == "ALLOW"
    assert answers["extend"]["status"] == "ACTIVE"
    assert answers["get"]["status"] == "ACTIVE"
    assert answers["commit"]["charged"]["amount"] == 4 * CENT
    assert answers["release"]["released"]["amount"] == 5 * CENT
    assert answers["event"]["status"] == "APPLIED"
    assert sorted(each["status"] for each in answers["list"]["reservations"]) == ["COMMITTED", "RELEASED"]
    assert "BUDGET_EXCEEDED" in answers["refused"]["error"]
    [balance] = answers["balance"]["balances"]
    assert balance["spent"]["amount"] == own.balance()["spent"] == 6 * CENT
