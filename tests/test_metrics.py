"""What Prometheus reads: every count, no identity in a label, several workers added up, and cheap enough for the path of a call."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.scopes import Amounts
from gateway.core.values import Ending, Outcome, Usage, UsageSource
from gateway.ledger.contract import Alert, Expired
from gateway.metrics import Metrics
from tests.support.records import USD, decision, hold, receipt, run_account


def scrape(metrics: Metrics) -> dict[str, float]:
    """Sample → value, as `name{label="value"}`; what prometheus-client adds about itself is left out."""
    metrics.flush()
    return parsed(metrics.exposition().decode())


def parsed(text: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                values[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return values


@pytest.fixture
def metrics() -> Metrics:
    return Metrics({"gpt-5-mini"})


def test_decisions_are_counted_by_outcome_and_code(metrics: Metrics) -> None:
    metrics.decided(Outcome.ALLOW)
    metrics.decided(Outcome.ALLOW)
    metrics.decided(Outcome.BLOCK, "run_ceiling_reached")
    values = scrape(metrics)
    assert values["penstock_decisions_total{code=,outcome=allow}"] == 2
    assert values["penstock_decisions_total{code=run_ceiling_reached,outcome=block}"] == 1


def test_a_receipt_counts_its_ending_spend_and_tokens_by_class(metrics: Metrics) -> None:
    metrics.settled(receipt(usd=USD // 4))
    values = scrape(metrics)
    assert values["penstock_calls_total{ending=completed}"] == 1
    assert values["penstock_spend_usd_total{model=gpt-5-mini,provider=openai}"] == 0.25
    assert values["penstock_tokens_total{class=input,model=gpt-5-mini}"] == 600
    assert values["penstock_tokens_total{class=cached,model=gpt-5-mini}"] == 200
    assert values["penstock_tokens_total{class=output,model=gpt-5-mini}"] == 40
    assert not any("cache_write" in name for name in values)


def test_what_is_shed_is_counted_by_reason(metrics: Metrics) -> None:
    for reason in ("lag", "calls", "lag"):
        metrics.shed(reason)
    values = scrape(metrics)
    assert (values["penstock_shed_total{reason=lag}"], values["penstock_shed_total{reason=calls}"]) == (2, 1)


def test_the_holds_gauge_counts_the_calls_under_way(metrics: Metrics) -> None:
    for _ in range(3):
        metrics.decided(Outcome.ALLOW)
    metrics.decided(Outcome.DOWNGRADE)
    metrics.decided(Outcome.BLOCK, "run_stopped")
    metrics.settled(receipt())
    metrics.ended(Ending.UNKNOWN)
    assert scrape(metrics)["penstock_holds"] == 2
    metrics.ended(Ending.NOT_SENT)
    metrics.ended(Ending.PROVIDER_REFUSED)
    values = scrape(metrics)
    assert values["penstock_holds"] == 0
    assert values["penstock_calls_total{ending=unknown}"] == 1


def test_an_estimate_below_what_the_provider_counted_shows_below_1(metrics: Metrics) -> None:
    # The plan estimates 900 input tokens.
    metrics.settled(receipt(usage=Usage(UsageSource.PROVIDER, input_tokens=1000, output_tokens=5)))
    metrics.settled(receipt(usage=Usage(UsageSource.PROVIDER, input_tokens=700, cached_tokens=100, cache_write_tokens=100)))
    values = scrape(metrics)
    assert values["penstock_estimate_ratio_bucket{basis=counted,le=0.9}"] == 1
    assert values["penstock_estimate_ratio_bucket{basis=counted,le=1.0}"] == 2
    assert values["penstock_estimate_ratio_sum{basis=counted}"] == pytest.approx(1.9)


@pytest.mark.parametrize("source", [UsageSource.COUNTED, UsageSource.HELD])
def test_only_the_providers_own_count_judges_an_estimate(metrics: Metrics, source: UsageSource) -> None:
    metrics.settled(receipt(usage=Usage(source, input_tokens=900)))
    assert not any(name.startswith("penstock_estimate_ratio") for name in scrape(metrics))


def test_a_model_outside_the_catalog_is_labelled_other(metrics: Metrics) -> None:
    for number in range(50):
        metrics.settled(receipt(hold(decision(model=f"made-up-{number}"))))
    spend = [name for name in scrape(metrics) if name.startswith("penstock_spend_usd_total")]
    assert spend == ["penstock_spend_usd_total{model=other,provider=openai}"]


def test_latencies_fall_into_cumulative_buckets_by_step(metrics: Metrics) -> None:
    for seconds in (0.0001, 0.0003, 0.9, 99.0):
        metrics.ledger("reserve", seconds)
    metrics.added(0.0004)
    values = scrape(metrics)
    assert values["penstock_ledger_seconds_bucket{le=0.0001,step=reserve}"] == 1
    assert values["penstock_ledger_seconds_bucket{le=0.0005,step=reserve}"] == 2
    assert values["penstock_ledger_seconds_bucket{le=1.0,step=reserve}"] == 3
    assert values["penstock_ledger_seconds_bucket{le=+Inf,step=reserve}"] == 4
    assert values["penstock_ledger_seconds_count{step=reserve}"] == 4
    assert values["penstock_added_seconds_count"] == 1


def test_alerts_overruns_expiries_errors_and_reloads_are_counted(metrics: Metrics) -> None:
    metrics.alert(Alert(run_account(), 800_000, 5 * USD, 4 * USD))
    metrics.overrun("output_exceeded")
    metrics.expired(Expired("rsv_1", "r1", Amounts(USD // 2, 10)))
    metrics.expired(Expired("rsv_2", "r1", Amounts(0, 0, 0), lapsed=True))
    metrics.provider_error("openai", "timeout")
    metrics.policy_reload(ok=False)
    values = scrape(metrics)
    assert values["penstock_alerts_total{budget=run-ceiling,threshold=80%}"] == 1
    assert values["penstock_overruns_total{cause=output_exceeded}"] == 1
    assert values["penstock_expired_holds_total"] == 1
    assert values["penstock_lapsed_holds_total"] == 1
    assert values["penstock_unconfirmed_usd_total"] == 0.5
    assert values["penstock_provider_errors_total{kind=timeout,provider=openai}"] == 1
    assert values["penstock_policy_reloads_total{result=error}"] == 1


def test_what_was_flushed_is_not_counted_again(metrics: Metrics) -> None:
    metrics.decided(Outcome.ALLOW)
    metrics.added(0.1)
    first = scrape(metrics)
    assert scrape(metrics) == first
    metrics.decided(Outcome.ALLOW)
    assert scrape(metrics)["penstock_decisions_total{code=,outcome=allow}"] == 2


def test_no_run_user_or_key_is_in_a_label(metrics: Metrics) -> None:
    metrics.decided(Outcome.ALLOW)
    metrics.settled(receipt())
    metrics.alert(Alert(run_account("run-secret"), 500_000, USD, USD))
    metrics.expired(Expired("rsv_secret", "run-secret", Amounts(1, 1)))
    metrics.flush()
    text = metrics.exposition().decode()
    assert "secret" not in text
    assert "key_a" not in text


WORKER = """
    import os, sys
    from gateway.core.values import Ending, Outcome
    from gateway.metrics import Metrics
    from tests.support.records import receipt
    from pathlib import Path
    metrics = Metrics({"gpt-5-mini"}, Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    for _ in range(5):
        metrics.decided(Outcome.ALLOW)
        metrics.added(0.002)
    metrics.settled(receipt())
    metrics.flush()
    print("ready", flush=True)
    sys.stdin.readline()
"""
READER = """
    import os, sys
    from pathlib import Path
    from gateway.metrics import Metrics, worker_died
    shared = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    if len(sys.argv) > 1:
        worker_died(shared, int(sys.argv[1]))
    sys.stdout.buffer.write(Metrics((), shared).exposition())
"""


def start(script: str, shared: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(shared), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_workers_are_added_up_and_a_dead_ones_holds_leave_the_gauge(tmp_path: Path) -> None:
    workers = [start(WORKER, tmp_path) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        both = parsed(start(READER, tmp_path).communicate(timeout=30)[0])
        assert both["penstock_decisions_total{code=,outcome=allow}"] == 10
        assert both["penstock_added_seconds_bucket{le=0.0025}"] == 10
        assert both["penstock_holds"] == 8
        workers[0].kill()
        workers[0].wait()
        one = parsed(start(READER, tmp_path, str(workers[0].pid)).communicate(timeout=30)[0])
        assert one["penstock_holds"] == 4
        assert one["penstock_decisions_total{code=,outcome=allow}"] == 10
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
