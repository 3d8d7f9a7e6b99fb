"""Alive, ready, counted: what a load balancer, an operator and Prometheus ask."""

from zoneinfo import ZoneInfo

import pytest

from gateway.core.grants import Grant, Grants, GrantStatus, Unread, scope_of
from gateway.core.policy import Budget, Limit, Override, Policy, Share, Terms
from gateway.core.scopes import Unit
from gateway.core.values import Mode, Outcome
from gateway.core.windows import WindowKind
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.metrics import Metrics
from gateway.server.ops import Ops, Serving
from tests.support.pages import Asking, principal_of
from tests.support.records import USD

UTC = ZoneInfo("UTC")
POLICY = Policy(
    "sha-1",
    (
        Budget("run-ceiling", ("run",), WindowKind.LIFETIME, UTC, Terms(Limit(Unit.USD, 5 * USD), Mode.HARD_GATE)),
        Budget(
            "agent-day",
            ("team", "agent"),
            WindowKind.DAY,
            ZoneInfo("Europe/Berlin"),
            Terms(Limit(Unit.TOKENS, 200_000), Mode.ADVISORY_ESTIMATE),
            overrides=(Override((("agent", "nightly-*"),), Terms(Limit(Unit.CALLS, 60), Mode.HARD_GATE)),),
        ),
        Budget("tenant-month", (), WindowKind.MONTH, UTC, Terms(Limit(Unit.USD, 2000 * USD), Mode.SOFT_GATE)),
    ),
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(())


def ops(ledger: SqliteLedger, metrics: Metrics, policy_error: str | None = None, guarded: bool = False) -> Asking:
    serving = Serving(POLICY, policy_error, "2026-11-01+abc", "0.1.0", ("POST /v1/files",))
    return Asking(Ops(ledger, metrics, lambda: serving, principal_of if guarded else None, lambda: None).routes())


async def test_ready_names_the_ledger_the_policy_the_gates_and_the_versions(ledger: SqliteLedger, metrics: Metrics) -> None:
    status, shown = await ops(ledger, metrics)("GET", "/readyz", as_=None)
    assert status == 200
    assert shown["ready"] is True
    assert (shown["ledger"]["ok"], shown["ledger"]["engine"]) == (True, "sqlite")
    assert shown["ledger"]["epoch"]
    assert isinstance(shown["ledger"]["sequence"], int)
    assert (shown["policy_version"], shown["policy_error"]) == ("sha-1", None)
    assert shown["versions"] == {"gateway": "0.1.0", "price_table": "2026-11-01+abc"}
    assert shown["unmetered_routes"] == ["POST /v1/files"]
    assert shown["gates"] == [
        {
            "name": "run-ceiling",
            "scope": "run",
            "window": "lifetime",
            "timezone": "UTC",
            "limit": "$5.00",
            "mode": "hard_gate",
            "overrides": [],
        },
        {
            "name": "agent-day",
            "scope": "team+agent",
            "window": "day",
            "timezone": "Europe/Berlin",
            "limit": "200,000 tokens",
            "mode": "advisory_estimate",
            "overrides": [{"match": {"agent": "nightly-*"}, "limit": "60 calls", "mode": "hard_gate"}],
        },
        {
            "name": "tenant-month",
            "scope": "tenant",
            "window": "month",
            "timezone": "UTC",
            "limit": "$2000.00",
            "mode": "soft_gate",
            "overrides": [],
        },
    ]


async def test_ready_counts_grants_and_waits_until_they_are_read(ledger: SqliteLedger, metrics: Metrics) -> None:
    async def shown(grants: Grants) -> tuple[int, object]:
        serving = Serving(POLICY, None, "prices", "0.1.0", grants=grants)
        status, told = await Asking(Ops(ledger, metrics, lambda: serving, None, lambda: None).routes())(
            "GET", "/readyz", as_=None
        )
        return status, told["grants"]

    frozen = Grant("acme", scope_of("tenant:acme"), Unit.USD, status=GrantStatus.FROZEN)
    assert await shown(Grants([frozen])) == (200, {"active": 0, "frozen": 1, "closed": 0})
    assert await shown(Grants(unread=Unread("ledger_lost", "another store"))) == (503, {"unread": "another store"})


async def test_a_gate_is_shown_as_the_policy_writes_it(ledger: SqliteLedger, metrics: Metrics) -> None:
    share = Budget(
        "new",
        ("run",),
        WindowKind.ROLLING,
        UTC,
        Terms(Share(Unit.USD, 125_000, "tenant-month"), Mode.HARD_GATE),
        span_ms=600_000,
        renamed_from="old",
    )
    serving = Serving(Policy("sha-1", (share,)), None, "prices", "0.1.0")
    _, shown = await Asking(Ops(ledger, metrics, lambda: serving, None, lambda: None).routes())("GET", "/readyz")
    (gate,) = shown["gates"]
    assert (gate["name"], gate["renamed_from"]) == ("new", "old")
    assert (gate["window"], gate["limit"]) == ("rolling 10m", "12.5% of tenant-month")


async def test_a_ledger_that_does_not_serve_is_not_ready_and_says_why(ledger: SqliteLedger, metrics: Metrics) -> None:
    await ledger.close()
    status, shown = await ops(ledger, metrics)("GET", "/readyz")
    assert (status, shown["ready"], shown["ledger"]["ok"]) == (503, False, False)
    assert shown["ledger"]["why"]


async def test_the_process_is_healthy_even_then(ledger: SqliteLedger, metrics: Metrics) -> None:
    await ledger.close()
    assert await ops(ledger, metrics)("GET", "/healthz", as_=None) == (200, {"status": "ok"})


async def test_shedding_is_told_and_neither_unhealthy_nor_unready(ledger: SqliteLedger, metrics: Metrics) -> None:
    serving = Serving(Policy("sha-1", ()), None, "prices", "0.1.0")
    ask = Asking(Ops(ledger, metrics, lambda: serving, None, lambda: "lag").routes())
    assert await ask("GET", "/healthz") == (200, {"status": "ok", "shedding": "lag"})
    status, shown = await ask("GET", "/readyz")
    assert (status, shown["ready"], shown["shedding"]) == (200, True, "lag")


async def test_a_policy_file_that_cannot_be_taken_is_told_and_the_gateway_stays_ready(
    ledger: SqliteLedger, metrics: Metrics
) -> None:
    status, shown = await ops(ledger, metrics, policy_error="policy.yaml:3: limit: expected an amount")("GET", "/readyz")
    assert (status, shown["ready"]) == (200, True)
    assert shown["policy_error"] == "policy.yaml:3: limit: expected an amount"


async def test_metrics_are_prometheus_text_with_the_latest_counts(ledger: SqliteLedger, metrics: Metrics) -> None:
    metrics.decided(Outcome.ALLOW)
    reply = await ops(ledger, metrics).reply("GET", "/metrics")
    assert dict(reply.headers)["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b'penstock_decisions_total{code="",outcome="allow"} 1.0' in reply.body
    assert b"penstock_holds 1.0" in reply.body


async def test_off_loopback_all_but_healthz_needs_a_credential(ledger: SqliteLedger, metrics: Metrics) -> None:
    ask = ops(ledger, metrics, guarded=True)
    assert (await ask("GET", "/healthz", as_=None))[0] == 200
    for path in ("/readyz", "/metrics"):
        assert (await ask.reply("GET", path, as_=None)).status == 401
        assert (await ask.reply("GET", path, as_="a")).status == 200
