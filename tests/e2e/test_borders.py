"""What must not cross: a key to another provider, a web page to the gateway, a caller into another's run, a secret into the log."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.demo.replies import Writer
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import ADMIN_TOKEN, CALLER_KEY, GatewayProcess
from tests.support.load import chat
from tests.support.loopback import LOOPBACK
from tests.support.pricing import BIG, SMALL, TestModel, price_table
from tests.support.provider import Behaviour, FaultProvider

OURS: Final = "sk-gateway-own-7c1f09d2"  # the gateway's key at the second provider
SECRET: Final = "sk-sentinel-93b1c5e7"
PROMPT: Final = "the sentinel prompt about a purple heron"
OTHER: Final = TestModel("other-model", "1", "1")
UNKEYED: Final = TestModel("unkeyed-model", "1", "1")
LOCAL: Final = TestModel("local-model", "1", "1")
EVERY_MODEL: Final = (BIG, SMALL, OTHER, UNKEYED, LOCAL)


@pytest.fixture(scope="module")
def first(writer: Writer) -> Iterator[FaultProvider]:
    """Takes callers' keys."""
    with FaultProvider(writer, price_table(*EVERY_MODEL)) as running:
        yield running


@pytest.fixture(scope="module")
def second(writer: Writer) -> Iterator[FaultProvider]:
    """Every other provider of the config, and what the environment names as a proxy."""
    with FaultProvider(writer, price_table(*EVERY_MODEL)) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(folder: Path, first: FaultProvider, second: FaultProvider) -> Iterator[GatewayProcess]:
    models = {model.name: model.as_config("test") for model in (BIG, SMALL)}
    models |= {
        OTHER.name: OTHER.as_config("other"),
        UNKEYED.name: UNKEYED.as_config("unkeyed"),
        LOCAL.name: LOCAL.as_config("local"),
    }
    setup = Setup(
        folder,
        first.base_url,
        policy=policy(run_ceiling("$5"), models={"downgrade": {"big-model": ["other-model", "unkeyed-model"]}}),
        extra={
            "providers": {
                "test": {"base_url": first.base_url, "accepts_caller_keys": True},
                "other": {"base_url": second.base_url, "api_key_env": "OTHER_API_KEY"},
                "unkeyed": {"base_url": second.base_url, "api_key_env": "NOT_SET_API_KEY"},
                "local": {"base_url": second.base_url},
            },
            "models": models,
        },
    )
    proxy = second.base_url.removesuffix("/v1")
    env = {"OTHER_API_KEY": OURS, "HTTP_PROXY": proxy, "http_proxy": proxy, "ALL_PROXY": proxy, "NO_PROXY": "", "no_proxy": ""}
    with GatewayProcess(setup, env=env) as running:
        yield running


@pytest.fixture(autouse=True)
def _as_new(first: FaultProvider, second: FaultProvider) -> None:
    first.forget()
    second.forget()


def ask(gateway: GatewayProcess, body: Any, run: str | None = None, **headers: str) -> httpx.Response:
    sent = {"Authorization": f"Bearer {SECRET}"} | ({"X-Run-Id": run} if run else {})
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=sent, **LOOPBACK, timeout=30)


def bytes_at(provider: FaultProvider) -> bytes:
    return b"\n".join(request.head + request.body for request in provider.requests)


# -- keys -------------------------------------------------------------------------------------------------------------------------


def test_a_callers_key_goes_to_the_one_provider_that_takes_it(
    gateway: GatewayProcess, first: FaultProvider, second: FaultProvider, run: str
) -> None:
    assert ask(gateway, chat(max_tokens=5), run).status_code == 200
    assert first.calls[0].header("Authorization") == f"Bearer {SECRET}"
    assert OURS.encode() not in bytes_at(first)
    assert second.requests == []


@pytest.mark.parametrize(("model", "sent"), [("other-model", f"Bearer {OURS}"), ("local-model", None)])
def test_another_provider_never_sees_a_callers_key_in_any_header(
    gateway: GatewayProcess, first: FaultProvider, second: FaultProvider, run: str, model: str, sent: str | None
) -> None:
    answer = ask(
        gateway, chat(model=model, max_tokens=5), run, Cookie=f"k={SECRET}", Proxy_Authorization=f"Basic {SECRET}", api_key=SECRET
    )
    assert answer.status_code == 200
    assert second.calls[0].header("Authorization") == sent
    assert SECRET.encode() not in bytes_at(second)
    assert first.requests == []


def test_a_model_of_a_provider_without_a_key_is_not_served(gateway: GatewayProcess, second: FaultProvider, run: str) -> None:
    answer = ask(gateway, chat(model="unkeyed-model"), run)
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_served")
    assert second.requests == []


def test_a_key_in_the_other_schemes_header_is_not_forwarded(
    gateway: GatewayProcess, first: FaultProvider, second: FaultProvider, run: str
) -> None:
    answer = httpx.post(
        f"{gateway.url}/v1/chat/completions", json=chat(), headers={"x-api-key": SECRET, "X-Run-Id": run}, **LOOPBACK
    )
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_served")
    assert first.requests == second.requests == []


def test_a_downgrade_to_another_provider_uses_the_gateways_key_there(
    gateway: GatewayProcess, first: FaultProvider, second: FaultProvider, run: str
) -> None:
    body = chat(max_tokens=1_000)
    answer = ask(gateway, body, run, X_Run_Limit="$0.002")  # fits only the cheaper model
    assert (answer.status_code, answer.headers["X-Budget-Selected-Model"]) == (200, "other-model")
    assert second.calls[0].header("Authorization") == f"Bearer {OURS}"
    assert SECRET.encode() not in bytes_at(second)
    assert first.requests == []


def test_a_redirect_is_not_followed(gateway: GatewayProcess, first: FaultProvider, second: FaultProvider, run: str) -> None:
    elsewhere = f"{second.base_url}/chat/completions"
    first.next(Behaviour(status=307, headers=(("Location", elsewhere),)))
    answer = ask(gateway, chat(max_tokens=5), run)
    assert answer.status_code == 307
    assert second.requests == []


def test_what_carries_identity_stays_here(gateway: GatewayProcess, first: FaultProvider, run: str) -> None:
    answer = ask(
        gateway,
        chat(max_tokens=5),
        run,
        X_Agent_Id="a-1",
        X_Run_Limit="$1",
        X_Budget_Downgrade="never",
        Cookie="c=1",
        X_Other="o",
    )
    assert answer.status_code == 200
    sent = {name.lower() for name, _ in first.calls[0].headers}
    assert sent & {"x-agent-id", "x-run-id", "x-run-limit", "x-budget-downgrade", "cookie"} == set()
    assert "x-other" in sent


# -- web pages --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["penstock.example.com", "rebound.attacker.test:8080", "127.0.0.1.attacker.test", "localhost.", "", "169.254.1.1"]
)
def test_a_foreign_host_is_refused(gateway: GatewayProcess, first: FaultProvider, host: str) -> None:
    answer = ask(gateway, chat(), Host=host)
    assert (answer.status_code, answer.json()["code"]) == (403, "host_not_allowed")
    assert httpx.get(f"{gateway.url}/budget/runs", headers={"Host": host}, **LOOPBACK).status_code == 403
    assert first.requests == []


@pytest.mark.parametrize("origin", ["https://attacker.test", "http://127.0.0.1:3000", "null", ""])
def test_a_web_page_is_refused(gateway: GatewayProcess, first: FaultProvider, origin: str) -> None:
    answer = ask(gateway, chat(), Origin=origin)
    assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")
    preflight = httpx.options(f"{gateway.url}/v1/chat/completions", headers={"Origin": origin}, **LOOPBACK)
    assert preflight.status_code == 403
    assert not any(name.startswith("access-control-") for name in preflight.headers)
    assert first.requests == []


# -- other callers ----------------------------------------------------------------------------------------------------------------


def test_another_key_can_neither_use_nor_see_nor_limit_nor_stop_a_run(
    gateway: GatewayProcess, first: FaultProvider, run: str
) -> None:
    mine = ask(gateway, chat(max_tokens=5), run)
    before = gateway.run(run, key=SECRET)
    theirs = {"Authorization": "Bearer sk-another-caller"}

    used = httpx.post(f"{gateway.url}/run/{run}/v1/chat/completions", json=chat(), headers=theirs, **LOOPBACK)
    assert (used.status_code, used.json()["code"]) == (403, "run_owned_by_another")
    for method, path, body in (
        ("GET", f"/budget/runs/{run}", None),
        ("PUT", f"/budget/runs/{run}", {"limit": "$0.01"}),
        ("POST", f"/budget/runs/{run}/stop", {}),
        ("GET", f"/budget/decisions/{mine.headers['X-Budget-Decision-Id']}", None),
    ):
        answer = httpx.request(method, gateway.url + path, json=body, headers=theirs, **LOOPBACK)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert httpx.get(f"{gateway.url}/budget/runs", headers=theirs, **LOOPBACK).json()["runs"] == []
    assert httpx.get(f"{gateway.url}/budget/spend", headers=theirs, **LOOPBACK).json()["total"]["calls"] == 0
    assert len(first.calls) == 1
    assert gateway.run(run, key=SECRET) == before


@pytest.mark.parametrize("sent", [{"Authorization": f"Bearer {ADMIN_TOKEN}"}, {"x-api-key": ADMIN_TOKEN}])
def test_the_admin_token_opens_no_model_route(gateway: GatewayProcess, first: FaultProvider, sent: dict[str, str]) -> None:
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=chat(), headers=sent, **LOOPBACK)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_key")
    assert httpx.get(f"{gateway.url}/v1/models", headers=sent, **LOOPBACK).status_code == 401
    assert first.requests == []


# -- secrets ----------------------------------------------------------------------------------------------------------------------


def test_no_key_and_no_prompt_is_written_anywhere(
    gateway: GatewayProcess, first: FaultProvider, second: FaultProvider, run: str
) -> None:
    """Calls of every kind that end well and badly, and then every byte that the gateway wrote."""
    first.next(
        Behaviour(),
        Behaviour(status=500, body=json.dumps({"error": {"message": f"bad key {SECRET} for {PROMPT}"}}).encode()),
        Behaviour(status=401, body=SECRET.encode()),
        Behaviour(reset=True),
        Behaviour(cut_after_events=2),
    )
    for stream in (False, False, False, False, True, True):
        ask(gateway, chat(PROMPT, max_tokens=50, stream=stream), run)
    ask(gateway, chat(PROMPT, model="other-model"), run)
    ask(gateway, chat(PROMPT, max_tokens=10**6), run, X_Run_Limit="$0.0001")  # refused
    ask(gateway, chat(PROMPT, stream="yes"), run)
    ask(gateway, chat(PROMPT, model=PROMPT[:20]), run)
    ask(gateway, chat(PROMPT) | {PROMPT: 1}, f"{run}.{SECRET}!")
    httpx.get(f"{gateway.url}/budget/runs?limit={SECRET}", **LOOPBACK)
    httpx.get(f"{gateway.url}/budget/runs", headers={"Authorization": f"Bearer {SECRET}"}, **LOOPBACK)
    gateway.admin("GET", "/admin/holds")
    assert gateway.run(run, key=SECRET)["calls"] > 0

    written = {path: path.read_bytes() for path in gateway.setup.folder.rglob("*") if path.is_file()}
    assert {"gateway.log", "ledger.db", "secret"} <= {path.name for path in written}
    for path, content in written.items():
        for sentinel in (SECRET, CALLER_KEY, OURS, ADMIN_TOKEN, PROMPT, "purple heron"):
            assert sentinel.encode() not in content, f"{sentinel!r} is in {path.name}"
    assert gateway.troubles == []
    assert (gateway.setup.folder / "state" / "secret").stat().st_mode & 0o077 == 0
