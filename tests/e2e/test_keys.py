"""`auth: keys`: the gateway's own keys open it, beyond loopback too; and without them it does not listen there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import openai
import pytest

from tests.support.config import Setup, free_port, listed, policy, run_ceiling
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess
from tests.support.load import chat
from tests.support.loopback import LOOPBACK
from tests.support.provider import FaultProvider

CI: Final = "pk-ci-4b1f"
NIGHTLY: Final = "pk-nightly-77aa"
ACME: Final = "pk-acme-90cd"
HOUSE: Final = "sk-house-55e1"


@pytest.fixture(scope="module")
def gateway(folder: Path, shared_provider: FaultProvider) -> Iterator[GatewayProcess]:
    port = free_port()
    setup = Setup(
        folder,
        shared_provider.base_url,
        port=port,
        policy=policy(run_ceiling("$1"), {"name": "team-month", "scope": "team", "window": "month", "limit": "$9"}),
        provider={"accepts_caller_keys": False, "api_key_env": "HOUSE_KEY"},
        extra={
            "listen": f"0.0.0.0:{port}",
            "auth": "keys",
            "keys": [
                listed("ci", CI, dimensions={"team": "research"}),
                listed("nightly", NIGHTLY),
                listed("acme", ACME, tenant="acme"),
            ],
        },
    )
    with GatewayProcess(setup, env={"HOUSE_KEY": HOUSE}) as running:
        yield running
        assert running.troubles == []
        assert not any(key in running.log for key in (CI, NIGHTLY, ACME, HOUSE))


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    return shared_provider


def ask(gateway: GatewayProcess, run: str, **headers: str) -> httpx.Response:
    sent = {"X-Run-Id": run} | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=chat(max_tokens=5), headers=sent, **LOOPBACK, timeout=30)


def test_a_key_serves_and_never_leaves_the_gateway(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    answer = gateway.client(run, key=CI).chat.completions.create(**chat(max_tokens=5))
    assert answer.choices[0].message.content
    [call] = provider.calls
    assert call.header("Authorization") == f"Bearer {HOUSE}"
    assert CI.encode() not in call.head + call.body
    assert ask(gateway, run, x_api_key=CI).status_code == 200  # in either scheme's header
    assert gateway.run(run, key=CI)["key"] == "ci"


@pytest.mark.parametrize(
    "sent", [{}, {"Authorization": "Bearer pk-other"}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {HOUSE}"}]
)
def test_whoever_has_no_key_learns_nothing_but_that_it_lives(
    gateway: GatewayProcess, provider: FaultProvider, run: str, sent: dict[str, str]
) -> None:
    refused = ask(gateway, run, **sent)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_key")
    for path in ("/readyz", "/metrics", "/budget/runs", "/budget/spend", "/v1/models", "/admin/holds"):
        assert httpx.get(gateway.url + path, headers=sent, **LOOPBACK).status_code == 401, path
    assert httpx.get(f"{gateway.url}/healthz", **LOOPBACK).status_code == 200
    assert provider.requests == []
    with pytest.raises(openai.AuthenticationError):
        gateway.client(run, key="sk-proj-whatever").chat.completions.create(**chat())


def test_no_header_overrides_what_a_key_is_bound_to(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    answer = ask(gateway, run, Authorization=f"Bearer {CI}", X_Team_Id="another", X_Agent_Id="a-1")
    told = gateway.get(f"/budget/decisions/{answer.headers['X-Budget-Decision-Id']}", key=CI)
    assert told["dimensions"] == {"agent": "a-1", "team": "research"}
    rows = gateway.get("/budget/spend?by=team", key=CI)["rows"]
    assert [row["team"] for row in rows] == ["research"]


def test_keys_do_not_see_each_others_runs_and_tenants_share_nothing(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    assert ask(gateway, run, Authorization=f"Bearer {CI}").status_code == 200
    assert ask(gateway, run, Authorization=f"Bearer {NIGHTLY}").json()["code"] == "run_owned_by_another"
    assert ask(gateway, run, Authorization=f"Bearer {ACME}").status_code == 200  # its own run of that name
    assert gateway.run(run, key=ACME)["calls"] == gateway.run(run, key=CI)["calls"] == 1


def test_the_admin_resumes_another_tenants_run_by_naming_the_tenant(
    gateway: GatewayProcess, provider: FaultProvider, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme = {"Authorization": f"Bearer {ACME}"}
    assert ask(gateway, run, **acme).status_code == 200
    assert gateway.admin("POST", f"/budget/runs/{run}/pause?tenant=acme").json()["paused_by"] == "admin"
    assert ask(gateway, run, **acme).json()["code"] == "run_paused"
    for page in ("resume", "stop"):
        assert gateway.admin("POST", f"/budget/runs/{run}/{page}").status_code == 404  # default has no such run
    own = httpx.post(f"{gateway.url}/budget/runs/{run}/resume?tenant=acme", headers=acme, **LOOPBACK)
    assert own.status_code == 400
    monkeypatch.setenv("PENSTOCK_ADMIN_TOKEN", ADMIN_TOKEN)
    monkeypatch.setenv("PENSTOCK_GATEWAY", gateway.url)
    told = subprocess.run(
        [sys.executable, "-m", "gateway", "runs", "resume", run, "--tenant", "acme"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "state            active" in told.stdout, told.stderr
    assert ask(gateway, run, **acme).status_code == 200
    assert gateway.admin("GET", f"/budget/runs/{run}").status_code == 404  # nor was one made there


def test_a_key_that_is_known_makes_any_host_name_good(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    assert ask(gateway, run, Authorization=f"Bearer {CI}", Host="penstock.internal:8080").status_code == 200
    assert ask(gateway, run, Authorization=f"Bearer {CI}", Origin="https://attacker.test").status_code == 403


def test_beyond_loopback_a_gateway_without_keys_does_not_start(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "http://127.0.0.1:9/v1", extra={"listen": "0.0.0.0:8080"})
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(setup.write())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    [line] = (ended.stdout + ended.stderr).splitlines()
    for needed in ("config.yaml:1", "listen", "auth: keys", "loopback"):
        assert needed in line
