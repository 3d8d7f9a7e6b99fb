"""What happened, counted for Prometheus. No run, user or key is ever in a label, and every label's values are bounded.

The path of a call adds to plain tallies (a Prometheus child costs about 1 µs an increment and 2 µs a histogram, a dozen times a
call); `flush` moves them into the Prometheus objects, once per scrape or once a second. Everything but `exposition` belongs to
the event loop's thread.

Several workers: `PROMETHEUS_MULTIPROC_DIR` must be in the environment before this module is imported (prometheus-client decides at
its own import whether its values live in files), every worker calls `flush` once a second, and whoever answers adds the workers up.
"""

from bisect import bisect_left
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from gateway.core.measures import TOKENS
from gateway.core.money import MICROCENTS_PER_USD
from gateway.core.scopes import NO_VALUE
from gateway.core.values import Ending, Outcome, Receipt, Usage, UsageSource
from gateway.ledger.contract import Alert, Expired

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"  # a model that is not in the catalog: names that callers make up must not become label values

_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_RATIOS: Final = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0, 1.005, 1.01, 1.02, 1.05, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0, 5.0, 10.0)


class Metrics:
    """The counters of one process. `models` is what the catalog knows."""

    def __init__(self, models: Container[str], multiprocess_dir: Path | None = None) -> None:
        self._models = models
        self._multiprocess_dir = multiprocess_dir
        self._registry = CollectorRegistry()
        self._live = 0
        self._decisions = self._counter("decisions", "Decisions, by outcome and code of the refusal", ("outcome", "code"))
        self._calls = self._counter("calls", "Calls that had a hold, by how they ended", ("ending",))
        # Floats, because Prometheus has nothing else: for dashboards. Exact amounts are the ledger's.
        self._spend = self._counter("spend_usd", "USD charged", ("model", "provider"), MICROCENTS_PER_USD)
        self._unconfirmed = self._counter("unconfirmed_usd", "USD charged provisionally at a lease's end", (), MICROCENTS_PER_USD)
        self._tokens = self._counter("tokens", "Tokens used, each in one class", ("model", "class"))
        self._expired = self._counter("expired_holds", "Holds whose lease ran out", ())
        self._lapsed = self._counter("lapsed_holds", "Leases that ran out without a charge, as was agreed", ())
        self._overruns = self._counter("overruns", "Calls that cost more than was held", ("cause",))
        self._alerts = self._counter("alerts", "Accounts that passed a share of their limit", ("budget", "threshold"))
        self._provider_errors = self._counter("provider_errors", "Failures at a provider", ("provider", "kind"))
        self._rests = self._counter("provider_rests", "Times that a provider was left alone for a while", ("provider",))
        self._reloads = self._counter("policy_reloads", "Attempts to read a changed policy", ("result",))
        self._let_through = self._counter("let_through", "Calls that went out without a hold, while the ledger was away", ())
        self._shed = self._counter("shed", "Calls and connections refused for want of room", ("reason",))
        self._journalled = self._counter("journalled", "Steps that went into the journal beside the ledger", ("step",))
        self._unpriced = self._counter(
            "unpriced_usage", "Calls that a provider billed something for whose price is not known", ("provider", "what")
        )
        self._counters = (
            self._unpriced,
            *(self._decisions, self._calls, self._spend, self._unconfirmed, self._tokens, self._expired, self._lapsed),
            *(self._overruns, self._alerts, self._provider_errors, self._rests, self._reloads, self._let_through),
            *(self._journalled, self._shed),
        )
        self._ratio = self._histogram(
            "estimate_ratio",
            "Input tokens, estimated / reported by the provider; below 1 the estimate was too low",
            ("basis",),
            _RATIOS,
        )
        self._added = self._histogram("added_seconds", "From the request's arrival to the provider's being called", (), _SECONDS)
        self._ledger = self._histogram("ledger_seconds", "Waiting for the ledger, by step", ("step",), _SECONDS)
        self._histograms = (self._ratio, self._added, self._ledger)
        self._holds = Gauge(
            "penstock_holds", "Calls under way that have a hold", registry=self._registry, multiprocess_mode="livesum"
        )
        self._ledger_serves = Gauge(
            "penstock_ledger_serves", "1 while the ledger takes calls", registry=self._registry, multiprocess_mode="livemin"
        )
        self._ledger_serves.set(1)
        self._journal = Gauge(
            "penstock_journal_entries",
            "Entries of the journal that wait for the ledger",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self.journal_entries: Callable[[], int] = _none  # whoever has a journal puts its count here

    # -- the path of a call ---------------------------------------------------------------------------------------------------

    def decided(self, outcome: Outcome, code: str = "") -> None:
        """Every outcome but `block` has made a hold, which `settled` or `ended` closes."""
        self._decisions.add((outcome, code), 1)
        if outcome is not Outcome.BLOCK:
            self._live += 1

    def added(self, seconds: float) -> None:
        """How long the gateway took before the provider was called."""
        self._added.add((), seconds)

    def ledger(self, step: str, seconds: float) -> None:
        """`step` is the contract's verb: reserve, commit, release, extend."""
        self._ledger.add((step,), seconds)

    def settled(self, receipt: Receipt) -> None:
        """The hold became a receipt."""
        plan, usage = receipt.hold.plan, receipt.usage
        self._live -= 1
        self._calls.add((receipt.ending,), 1)
        self.settled_later(plan.model, plan.provider, usage, receipt.cost.usd)
        if usage.source is UsageSource.PROVIDER:
            read = usage.total_input_tokens
            if read > 0:
                self._ratio.add((plan.input_basis,), plan.input_tokens / read)

    def settled_later(self, model: str, provider: str, usage: Usage, usd: int) -> None:
        """What a call was charged, which is over already where its answer came in the background."""
        model = model if model in self._models else OTHER
        self._spend.add((model, provider), usd)
        if usage.input_tokens:
            self._tokens.add((model, "input"), usage.input_tokens)
        if usage.output_tokens:
            self._tokens.add((model, "output"), usage.output_tokens)
        if usage.cached_tokens:
            self._tokens.add((model, "cached"), usage.cached_tokens)
        if usage.cache_write_tokens:
            self._tokens.add((model, "cache_write"), usage.cache_write_tokens)
        for measure, number in usage.others:
            if number and measure in TOKENS:
                self._tokens.add((model, measure), number)

    def outside(self, ending: Ending, usage: Usage | None, usd: int) -> None:
        """What was spent, or given back, beside the proxy. Its holds are in no gauge: any process may end them."""
        self._calls.add((ending,), 1)
        if usage is not None:
            self.settled_later(OTHER, NO_VALUE, usage, usd)

    def ended(self, ending: Ending) -> None:
        """The call is over without a receipt: its hold was released, or stays until its lease ends."""
        self._live -= 1
        self._calls.add((ending,), 1)

    # -- beside the path ------------------------------------------------------------------------------------------------------

    def overrun(self, cause: str) -> None:
        """`cause` is one of the flow's words, never free text."""
        self._overruns.add((cause,), 1)

    def alert(self, alert: Alert) -> None:
        self._alerts.add((alert.account.name, f"{alert.threshold_ppm / 10_000:g}%"), 1)

    def expired(self, expired: Expired) -> None:
        """Its USD are not in `spend_usd`, which a late commit would count a second time."""
        (self._lapsed if expired.lapsed else self._expired).add((), 1)
        self._unconfirmed.add((), expired.charged.usd)

    def provider_error(self, provider: str, kind: str) -> None:
        """`kind` is one of the upstream's words (`connect`, `timeout`, `429` …), never free text."""
        self._provider_errors.add((provider, kind), 1)

    def provider_rests(self, provider: str) -> None:
        self._rests.add((provider,), 1)

    def unpriced_usage(self, provider: str, what: str) -> None:
        """`what` is bounded by the caller."""
        self._unpriced.add((provider, what), 1)

    def let_through(self) -> None:
        self._let_through.add((), 1)

    def journalled(self, step: str) -> None:
        """`step` is the contract's verb."""
        self._journalled.add((step,), 1)

    def shed(self, reason: str) -> None:
        """`reason` is one of the edge's words (`connections`, `calls`, `bodies`, `lag`), or `huge`: too many such requests wait to be
        read."""
        self._shed.add((reason,), 1)

    def ledger_serves(self, *, serves: bool) -> None:
        self._ledger_serves.set(int(serves))

    def policy_reload(self, *, ok: bool) -> None:
        self._reloads.add(("ok" if ok else "error",), 1)

    # -- out ------------------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Moves what was tallied into the Prometheus objects. With several workers: once a second, and before a worker ends."""
        for counter in self._counters:
            counter.flush()
        for histogram in self._histograms:
            histogram.flush()
        self._holds.set(self._live)
        self._journal.set(self.journal_entries())

    def exposition(self) -> bytes:
        """The text format, of all workers where there are several. Blocks for milliseconds: call it off the loop, after `flush`."""
        if self._multiprocess_dir is None:
            return generate_latest(self._registry)
        every_worker = CollectorRegistry()
        MultiProcessCollector(every_worker, path=str(self._multiprocess_dir))  # type: ignore[no-untyped-call]
        return generate_latest(every_worker)

    def _counter(self, name: str, what: str, labels: tuple[str, ...], divisor: int = 1) -> "_Count":
        return _Count(Counter(f"penstock_{name}", what, labels, registry=self._registry), divisor)

    def _histogram(self, name: str, what: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> "_Spread":
        return _Spread(_Histogram(f"penstock_{name}", what, labels, registry=self._registry, buckets=bounds), bounds)


def prepare_workers(multiprocess_dir: Path) -> None:
    """Before the first worker starts: what an earlier gateway left there is not ours to count."""
    multiprocess_dir.mkdir(parents=True, exist_ok=True)
    for left_over in multiprocess_dir.glob("*.db"):
        left_over.unlink(missing_ok=True)


def worker_died(multiprocess_dir: Path, pid: int) -> None:
    """Its open holds leave the gauge. What it counted stays: a counter must not go down."""
    mark_process_dead(pid, str(multiprocess_dir))  # type: ignore[no-untyped-call]


def _none() -> int:
    return 0


class _Count:
    """A counter's increments since the last flush, by label values. Integers; `divisor` turns them into the metric's unit."""

    __slots__ = ("_counter", "_divisor", "_since")

    def __init__(self, counter: Counter, divisor: int) -> None:
        self._counter = counter
        self._divisor = divisor
        self._since: dict[tuple[str, ...], int] = {}

    def add(self, labels: tuple[str, ...], amount: int) -> None:
        self._since[labels] = self._since.get(labels, 0) + amount

    def flush(self) -> None:
        since, self._since = self._since, {}
        for labels, amount in since.items():
            child = self._counter.labels(*labels) if labels else self._counter
            child.inc(amount / self._divisor)


class _Histogram(Histogram):
    """A Prometheus histogram that takes many observations at once."""

    def add(self, by_bucket: Sequence[int], total: float) -> None:
        self._sum.inc(total)
        for bucket, observed in zip(self._buckets, by_bucket, strict=True):
            if observed:
                bucket.inc(observed)


class _Spread:
    """A histogram's observations since the last flush, by label values: how many fell into each bucket, then their sum."""

    __slots__ = ("_bounds", "_histogram", "_since")

    def __init__(self, histogram: _Histogram, bounds: tuple[float, ...]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._since: dict[tuple[str, ...], list[float]] = {}

    def add(self, labels: tuple[str, ...], value: float) -> None:
        since = self._since.get(labels)
        if since is None:
            # One more bucket than bounds, for what lies above them all; one more for the sum.
            since = self._since[labels] = [0] * (len(self._bounds) + 2)
        since[bisect_left(self._bounds, value)] += 1
        since[-1] += value

    def flush(self) -> None:
        since, self._since = self._since, {}
        for labels, (*by_bucket, total) in since.items():
            child = self._histogram.labels(*labels) if labels else self._histogram
            child.add([int(observed) for observed in by_bucket], total)
