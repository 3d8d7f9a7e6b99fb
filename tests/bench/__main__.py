"""Penstock beside a direct call, nginx, a bare proxy and the same stack without budget work, in one run; prints tables.

    python -m tests.bench [--only PART …] [--seconds 2] [--rounds 3] [--quick] [--peers] [--write]

What is measured has one core to itself; the provider, the load and a Valkey server share the other. Rounds go over all targets. CPU is that of
the measured process tree, from /proc, and is the steady figure on a noisy machine. Each part's table is printed as it ends; `--write` puts it
into docs/benchmarks.md, and the targets above it. The plain numbers go to .bench/results.json. `--peers` measures LiteLLM and Portkey in the
parts json and streams (`make bench-peers` installs them).

Ends with 1 where an answer of ours was wrong, a target could not be started or a gateway logged what nobody planned for.
"""

import argparse
import contextlib
import json
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.bench import estimating, ledger, machine, steps, tables, verdict
from tests.bench.lifecycles import opened
from tests.bench.measuring import Failed, Load, Measure, Rows, in_rounds, tried
from tests.bench.pages import DOCS, write
from tests.bench.tables import (
    FEW_STREAMS,
    FULL,
    HALF,
    JSON_LOADS,
    LIFECYCLES,
    MEMORY,
    RUNS,
    SIXTEEN,
    SIXTY,
    STREAM_LOADS,
    TWO_THOUSAND,
)
from tests.bench.targets import (
    BARE,
    DIRECT,
    LITELLM,
    NGINX,
    OURS,
    PEERS,
    PORTKEY,
    SQLITE,
    STACK,
    VALKEY,
    WORKERS,
    Missing,
    Place,
    Target,
    provider,
    started,
)

RESULTS: Final = PEERS / "results.json"
VERSIONS: Final = PEERS / "versions.json"  # of the peers that were installed
STREAMS_FED: Final = 36_000.0  # chunks a second that one core can make and take
SIXTY_SHARE: Final = 0.6  # of a core
OVERLOAD: Final = 1.3
FIRST: Final = Load("first calls", 1)
WARM: Final = Load("warm-up", 16)
WARM_STREAMS: Final = Load("warm-up, streams", 16, gap_us=10_000, events=20)
BESIDE_PEERS: Final = (DIRECT, NGINX, BARE, SQLITE, PORTKEY, LITELLM)
BETWEEN: Final = (NGINX, BARE, STACK, SQLITE, VALKEY)


@dataclass(slots=True)
class Bench:
    """One run: what is started, and how it is measured. A part's results are plain JSON."""

    options: argparse.Namespace
    cores: machine.Cores
    folder: Path
    source: Target
    measure: Measure
    stack: contextlib.ExitStack
    running: dict[str, Target] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)  # part → its results, of this run and of those before
    serial: int = 0

    @property
    def rounds(self) -> int:
        return int(self.options.rounds)

    def targets(self, *names: str) -> Sequence[Target]:
        """Those of them that this machine has: started once, and warm."""
        wanted = self.options.targets
        return [target for name in names if not wanted or name in wanted if (target := self._target(name)) is not None]

    def fresh(self, name: str) -> contextlib.AbstractContextManager[Target]:
        """Started for this alone. Missing where it can't be had."""
        self.serial += 1
        return started(name, Place(self.folder / f"{self.serial}", self.source.port, self.cores))

    def _target(self, name: str) -> Target | None:
        if name == DIRECT:
            return replace(self.source, pids=(), core=None)
        if name not in self.running and name not in self.missing:
            try:
                target = self.stack.enter_context(self.fresh(name))
                self.warm(target)
                self.running[name] = target
            except (Missing, AssertionError) as why:
                self.missing[name] = str(why)
                sys.stderr.write(f"MISSING: {name}: {why}\n")
        return self.running.get(name)

    def warm(self, target: Target) -> None:
        """The first calls of some peers take seconds. What fails here is said; whether it matters, the measurements will tell."""
        for load in (FIRST, WARM, WARM_STREAMS):
            try:
                self.measure(target, load, 0.5 if self.options.quick else 1.0)
            except Failed as failed:
                sys.stderr.write(f"FAILED: {failed}\n")


# -- parts: each measures, and returns plain results ------------------------------------------------------------------------------


def json_calls(bench: Bench) -> Any:
    names = BESIDE_PEERS if bench.options.peers else (DIRECT, *BETWEEN, WORKERS)
    return in_rounds(bench.measure, bench.targets(*names), JSON_LOADS, bench.rounds).to_json()


def half_load(bench: Bench) -> Any:
    """Each target at half of what it does at 16 connections, and the direct call at the same rate."""
    known = Rows.from_json(bench.kept["json"]) if "json" in bench.kept else Rows()
    (direct,), rows = bench.targets(DIRECT), Rows()
    for target in bench.targets(BARE, STACK, SQLITE, VALKEY):
        calls_s = known.median(target.name, SIXTEEN.name, "calls_s") if "json" in bench.options.only else None
        load = replace(HALF, rate=(calls_s or bench.measure(target, SIXTEEN, 1.0)["calls_s"]) / 2)
        for _ in range(bench.rounds):
            tried(rows, bench.measure, direct, replace(load, name=tables.beside(HALF, target.name)))
            tried(rows, bench.measure, target, load)
    return rows.to_json()


def streams(bench: Bench) -> Any:
    names, loads = ((DIRECT, *BETWEEN), STREAM_LOADS)
    if bench.options.peers:
        names, loads = BESIDE_PEERS, (FEW_STREAMS, *STREAM_LOADS)
    # A stream takes the longest to measure, and has the most samples.
    return in_rounds(bench.measure, bench.targets(*names), loads, max(1, bench.rounds - 1)).to_json()


def full_load(bench: Bench) -> Any:
    """2,000 streams: at 60 % of a core, and with more than the core can do. What a chunk costs is found first; busy, it costs less."""
    (direct,), rows = bench.targets(DIRECT), Rows()
    fitted = []
    for target in bench.targets(BARE, STACK, SQLITE, VALKEY):
        try:
            idle_us = bench.measure(target, TWO_THOUSAND, 1.0)["cpu_us_chunk"]
            busy_us = bench.measure(target, TWO_THOUSAND.at(_fed(SIXTY_SHARE, idle_us)), 1.0)["cpu_us_chunk"]
        except Failed as failed:
            sys.stderr.write(f"FAILED: {failed}\n")
            rows.failed[target.name, SIXTY.name] = str(failed)
        else:
            # Where others have the core, chunks come in heaps, and each seems to cost next to nothing.
            chunk_us = max(busy_us, idle_us / 2)
            fitted.append((target, SIXTY.at(_fed(SIXTY_SHARE, chunk_us)), FULL.at(_fed(OVERLOAD, chunk_us))))
    for _ in range(max(1, bench.rounds - 1)):
        for target, sixty, full in fitted:
            tried(rows, bench.measure, direct, replace(sixty, name=tables.beside(SIXTY, target.name)))
            tried(rows, bench.measure, target, sixty)
            tried(rows, bench.measure, target, full)
    return rows.to_json()


def _fed(share: float, chunk_us: float) -> float:
    """Chunks a second that make so much of a core busy; as many as can be made and taken, at most."""
    return min(STREAMS_FED, share * 1e6 / chunk_us)


def memory(bench: Bench) -> Any:
    """In a process that has carried no such load before: what it grew to once stays with it."""
    rows = Rows()
    for name in (NGINX, BARE, STACK, SQLITE, VALKEY):
        if bench.options.targets and name not in bench.options.targets:
            continue
        try:
            with bench.fresh(name) as target:
                bench.warm(target)
                tried(rows, bench.measure, target, MEMORY)
        except (Missing, AssertionError) as why:
            rows.failed[name, MEMORY.name] = str(why)
            sys.stderr.write(f"FAILED: {name}: {why}\n")
    return rows.to_json()


def runs(bench: Bench) -> Any:
    return in_rounds(bench.measure, bench.targets(SQLITE, VALKEY), RUNS, bench.rounds).to_json()


def lifecycles(bench: Bench) -> Any:
    keyed = [replace(target, headers=opened(target)) for target in bench.targets(SQLITE, VALKEY)]
    return in_rounds(bench.measure, keyed, LIFECYCLES, bench.rounds).to_json()


def conversations(bench: Bench) -> Any:
    return steps.measured(bench.targets(DIRECT, BARE, STACK, SQLITE, VALKEY), 1 if bench.options.quick else 2 * bench.rounds)


def ledger_alone(bench: Bench) -> Any:
    return ledger.table(bench.options.seconds, bench.rounds)


def counting(_bench: Bench) -> Any:
    return estimating.table()


PARTS: Final[Mapping[str, tuple[Callable[[Bench], Any], Callable[[Any], str]]]] = {
    "json": (json_calls, tables.json_calls),
    "half": (half_load, tables.half_load),
    "streams": (streams, tables.streams),
    "full": (full_load, tables.full_load),
    "memory": (memory, tables.memory),
    "runs": (runs, tables.runs),
    "conversations": (conversations, tables.conversations),
    "cycles": (lifecycles, tables.lifecycles),
    "ledger": (ledger_alone, str),
    "counting": (counting, str),
}
WITH_PEERS: Final = ("json", "streams")


# -- the run ----------------------------------------------------------------------------------------------------------------------


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, _asked_to_end)
    machine.allow_many_files()
    bench_kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    wrong: list[str] = []
    with _bench(options, bench_kept) as bench:
        for name in options.only:
            try:
                _part(bench, name, wrong)
            except Exception as failure:  # noqa: BLE001 - a run that nobody watches: the other parts go on
                traceback.print_exc()
                wrong.append(f"{name}: {failure!r}")
        for name, target in bench.running.items():
            wrong += [f"{name} logged: {line[:1000]}" for line in target.troubles()[:3]]
        wrong += [f"{name}: {why}" for name, why in bench.missing.items()]
        report = verdict.table(verdict.of(bench.kept))
        print(f"\n{report}", flush=True)
        if options.write:
            write(report, *verdict.MARKS)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _part(bench: Bench, name: str, wrong: list[str]) -> None:
    options = bench.options
    began = time.monotonic()
    measured, told = PARTS[name]
    results = measured(bench)
    part = f"{name}-peers" if options.peers and name in WITH_PEERS else name
    bench.kept[part] = results
    bench.kept.setdefault("cores_to_spare", bench.cores.to_spare)
    report = f"{_about(options)}\n\n{told(results)}"
    if isinstance(results, dict) and "rows" in results:
        report += f"\n\n{tables.noise(results)}"
    if absent := [f"**Missing: {target}.** {why.splitlines()[0]}" for target, why in bench.missing.items()]:
        report += "\n\n" + "\n\n".join(absent)
    print(f"\n{report}\n", flush=True)
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {part} took {time.monotonic() - began:.0f} s\n")
    if isinstance(results, dict) and "failed" in results:
        wrong += [f"{why}" for target, _, why in results["failed"] if target in (*OURS, STACK, BARE, DIRECT)]
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(bench.kept, indent=1))
    if options.write:
        write(report, f"<!-- bench {part}: begin -->", f"<!-- bench {part}: end -->")


@contextlib.contextmanager
def _bench(options: argparse.Namespace, kept: dict[str, Any]) -> Iterator[Bench]:
    cores = machine.cores()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        source = stack.enter_context(provider(cores))
        yield Bench(options, cores, folder, source, Measure(source, cores, options.seconds), stack, kept=kept)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=PARTS, default=None, help=", ".join(PARTS))
    parser.add_argument("--targets", nargs="+", metavar="NAME", default=[], help="none but these, such as 'Penstock on SQLite'")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything runs: no figures to keep")
    parser.add_argument("--peers", action="store_true", help="LiteLLM and Portkey too; of the parts json and streams")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCS}")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 0.5, 1
        if options.write:
            parser.error("--quick gives no figures to keep")
    if options.write and options.targets:
        parser.error("what is written has all targets")
    options.only = options.only or list(WITH_PEERS if options.peers else PARTS)
    if options.peers and set(options.only) - set(WITH_PEERS):
        parser.error(f"peers are measured in {' and '.join(WITH_PEERS)} only")
    return options


def _about(options: argparse.Namespace) -> str:
    flags = ["--seconds", f"{options.seconds:g}", "--rounds", f"{options.rounds}", *(["--peers"] if options.peers else [])]
    if len(options.only) < len(WITH_PEERS if options.peers else PARTS):
        flags += ["--only", *options.only]
    about = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine.about()}. `python -m tests.bench {shlex.join(flags)}`."
    if options.peers and VERSIONS.exists():
        about += f" Peers: {'; '.join(json.loads(VERSIONS.read_text()).values())}."
    return about


def _asked_to_end(_number: int, _frame: FrameType | None) -> None:
    """So that everything that was started ends too."""
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
