"""Direct, the same stack without budget work, and the gateway on SQLite, measured in one run, interleaved; prints tables.

    python -m tests.bench [--seconds 4] [--rounds 3] [--write]

What is measured has one core to itself; the provider and the load share the other. CPU is that of the measured process alone, from
/proc, and is the steady figure on a noisy machine. `--write` puts the tables into docs/benchmarks.md.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.bench import conversation, estimating, ledger, real
from tests.bench.pages import DOCS, write
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.pricing import TestModel

MODEL: Final = TestModel("bench-model", "2.50", "10")
TOKENS: Final = 100  # events of a stream
GAP_MS: Final = 20.0
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load."""

    name: str
    connections: int
    stream: bool = False


ONE: Final = Load("JSON, one connection", 1)
SIXTEEN: Final = Load("JSON, 16 connections", 16)
SIXTY_FOUR: Final = Load("JSON, 64 connections", 64)
STREAMS: Final = Load(f"{TOKENS}-event streams, {GAP_MS:.0f} ms apart, 64 at a time", 64, stream=True)
LOADS: Final = (ONE, SIXTEEN, SIXTY_FOUR, STREAMS)


@dataclass(frozen=True, slots=True)
class Target:
    """What is called. `pid` None: nothing stands between."""

    name: str
    port: int
    pid: int | None


@dataclass(slots=True)
class Figures:
    """What the rounds of one target under one load gave."""

    calls_per_s: list[float] = field(default_factory=list)
    events_per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_us_per_call: list[float] = field(default_factory=list)
    cpu_us_per_event: list[float] = field(default_factory=list)

    def median(self, name: str) -> float:
        return statistics.median(getattr(self, name) or [0.0])


Results = dict[tuple[str, str], Figures]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCS}")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    measured, rest = {cores[0]}, set(cores[1:]) or {cores[0]}
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, _targets(Path(folder), measured, rest) as targets:
        results = _measure(targets, options.seconds, options.rounds, rest)
    report = "\n\n".join(
        (
            _about(options, len(cores)),
            *_tables(results, targets),
            ledger.table(options.seconds, options.rounds),
            estimating.table(),
            real.table(),
        )
    )
    print(report)
    if options.write:
        write(report, BEGIN, END)
    grown = conversation.table()
    print(f"\n{grown}")
    if options.write:
        write(grown, conversation.BEGIN, conversation.END)
    return 0


# -- processes ------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _targets(folder: Path, measured: set[int], rest: set[int]) -> Iterator[Sequence[Target]]:
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(_process(["tests.bench.canned", "--tokens", str(TOKENS), "--gap-ms", str(GAP_MS)], rest))
        upstream = f"http://127.0.0.1:{provider.port}/v1"
        bare = stack.enter_context(_process(["tests.bench.bare", "--upstream", upstream], measured))
        # High enough that nothing is refused: what a refusal costs is another question.
        rules = policy(run_ceiling("$1000000"), runs={"max_active_per_key": 1_000_000})
        setup = Setup(folder, upstream, policy=rules, models=(MODEL,))
        gateway = stack.enter_context(GatewayProcess(setup))
        _pin(gateway.pid, measured)
        yield (
            Target("direct", provider.port, None),
            replace(bare, name="the same stack without budget work"),
            Target("Penstock on SQLite", setup.port, gateway.pid),
        )


@contextlib.contextmanager
def _process(module: Sequence[str], cores: set[int]) -> Iterator[Target]:
    command = [sys.executable, "-m", *module]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            _pin(process.pid, cores)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"{module[0]} ended with code {process.wait()}"
            yield Target(module[0], json.loads(line)["port"], process.pid)
        finally:
            process.terminate()


def _pin(pid: int, cores: set[int]) -> None:
    """A process with all the threads it has by now; those it starts later inherit."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def _cpu_s(pid: int) -> float:
    """User and system time of a process and all its threads."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) * _TICK_S


# -- measuring ------------------------------------------------------------------------------------------------------------------


def _measure(targets: Sequence[Target], seconds: float, rounds: int, cores: set[int]) -> Results:
    """Rounds over all targets, not targets over all rounds: what the machine does meanwhile falls on all of them."""
    results: Results = {(target.name, load.name): Figures() for target in targets for load in LOADS}
    for target in targets:
        _load(target, SIXTEEN, 1.0, cores, "warm")
    for number in range(rounds):
        for load in LOADS:
            for target in targets:
                figures = results[target.name, load.name]
                before = _cpu_s(target.pid) if target.pid else 0.0
                told = _load(target, load, seconds, cores, str(number))
                cpu_s = _cpu_s(target.pid) - before if target.pid else 0.0
                calls, samples = told["calls"], told["samples"]
                figures.calls_per_s.append(calls / told["seconds"])
                figures.p50_ms.append(told["p50_ms"])
                figures.p99_ms.append(told["p99_ms"])
                figures.cpu_us_per_call.append(cpu_s / calls * 1e6)
                if load.stream:
                    figures.events_per_s.append(samples / told["seconds"])
                    figures.cpu_us_per_event.append(cpu_s / samples * 1e6)
                print(f"round {number + 1}: {load.name}: {target.name}: {calls} calls", file=sys.stderr)
    return results


def _load(target: Target, load: Load, seconds: float, cores: set[int], salt: str) -> Any:
    command = [sys.executable, "-m", "tests.bench.load", "--port", str(target.port), "--connections", str(load.connections)]
    command += ["--seconds", str(seconds), "--gap-ms", str(GAP_MS), "--salt", f"{salt}-{time.time_ns()}"]
    if load.stream:
        command.append("--stream")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        _pin(process.pid, cores)
        output, _ = process.communicate(timeout=seconds + 60)
    assert process.returncode == 0, f"the load generator ended with code {process.returncode}"
    told = json.loads(output)
    assert not told["failures"], f"{told['failures']} connections failed, such as: {told['failure']}"
    return told


# -- telling --------------------------------------------------------------------------------------------------------------------


def _tables(results: Results, targets: Sequence[Target]) -> Iterator[str]:
    direct = targets[0].name

    def row(target: Target, load: Load) -> str:
        told, without = results[target.name, load.name], results[direct, load.name]
        added = [f"{max(0.0, told.median(name) - without.median(name)):.2f}" for name in ("p50_ms", "p99_ms")]
        if target.name == direct:
            added = [f"({told.median(name):.2f})" for name in ("p50_ms", "p99_ms")]
        cells = [target.name, f"{told.median('calls_per_s'):,.0f}", *added]
        cpu = told.median("cpu_us_per_call")
        cells.append(f"{cpu:,.0f}" if target.pid else "–")
        if load.stream:
            cells += [f"{told.median('events_per_s'):,.0f}", f"{told.median('cpu_us_per_event'):.0f}" if target.pid else "–"]
        return f"| {' | '.join(cells)} |"

    for load in LOADS:
        columns = ["", "calls/s", "p50 added, ms", "p99 added, ms", "CPU µs/call"]
        if load.stream:
            columns[2:4] = ["p50 of events added, ms", "p99 of events added, ms"]
            columns += ["events/s", "CPU µs/event"]
        lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(row(target, load) for target in targets)]
        yield f"**{load.name}**\n\n" + "\n".join(lines)
    bare, ours = (results[target.name, SIXTY_FOUR.name].median("calls_per_s") for target in targets[1:])
    yield f"At 64 connections Penstock makes {ours / bare:.2f} × the calls of the same stack without budget work."


def _about(options: argparse.Namespace, cores: int) -> str:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine()
    )
    command = f"python -m tests.bench --seconds {options.seconds:g} --rounds {options.rounds}"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cores} × {model}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}. `{command}`: medians of {options.rounds} rounds."
    )


def _lines(path: str) -> Sequence[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return ()


if __name__ == "__main__":
    sys.exit(main())
