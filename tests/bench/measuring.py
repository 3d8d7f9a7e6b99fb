"""One measurement: a load on a target, and what it gave as plain numbers; and rounds of them over all targets.

Rounds go over all targets, not targets over all rounds: what the machine does meanwhile falls on all of them.
"""

import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.bench.machine import Cores, cpu_s, pin, tree
from tests.bench.targets import DIRECT, Target

FEEDS_AT_MOST: Final = 0.9  # of a core, by load, provider and store together: above, they were the limit
QUIET_SHARE: Final = 0.05
QUIET_WITHIN_S: Final = 20.0
_EVENTS: Final = 100

Reading = Mapping[str, float]


class Failed(Exception):
    """A measurement that can't stand: answers that were wrong, a target that does not come to rest."""


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load. `gap_us` > 0: streams; `rate` > 0: JSON calls on a schedule, a second."""

    name: str
    connections: int
    gap_us: int = 0
    rate: float = 0.0
    runs: str = "connection"
    events: int = _EVENTS
    ramp: float = 0.3
    sheds: bool = False  # the target may refuse for a moment: such calls are made again, and told
    generator: str = "tests.bench.load"

    @property
    def streams(self) -> bool:
        return self.gap_us > 0

    @property
    def offered(self) -> float:
        """Chunks a second."""
        return self.connections * 1e6 / self.gap_us if self.gap_us else 0.0

    def at(self, chunks_per_s: float) -> "Load":
        """The same streams, so many chunks a second in all."""
        return replace(self, gap_us=round(self.connections * 1e6 / chunks_per_s))


@dataclass(slots=True)
class Row:
    """What the rounds of one target under one load gave, by metric."""

    target: str
    load: str
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, reading: Reading) -> None:
        for name, value in reading.items():
            self.rounds.setdefault(name, []).append(value)

    def median(self, metric: str) -> float:
        return statistics.median(self.rounds[metric])

    def range(self, metric: str) -> tuple[float, float]:
        return min(self.rounds[metric]), max(self.rounds[metric])


class Rows:
    """Of one part, by target and load."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}
        self.failed: dict[tuple[str, str], str] = {}  # target, load → why; not measured any more

    def add(self, target: str, load: str, reading: Reading) -> None:
        self._rows.setdefault((target, load), Row(target, load)).add(reading)

    def has(self, load: str) -> bool:
        """Whether anything was measured, or failed, under it."""
        return any(one == load for _, one in (*self._rows, *self.failed))

    def get(self, target: str, load: str) -> Row | None:
        return self._rows.get((target, load))

    def median(self, target: str, load: str, metric: str) -> float | None:
        """None where it was not measured."""
        row = self._rows.get((target, load))
        return row.median(metric) if row is not None and metric in row.rounds else None

    def added(self, target: str, load: str, metric: str, direct_load: str = "") -> float | None:
        """Beyond what going direct took, round by round; under the same load, or another name of it. None where one was not measured in
        every round."""
        row, direct = self._rows.get((target, load)), self._rows.get((DIRECT, direct_load or load))
        if row is None or direct is None or len(row.rounds[metric]) != len(direct.rounds[metric]):
            return None
        return statistics.median(a - b for a, b in zip(row.rounds[metric], direct.rounds[metric], strict=True))

    def to_json(self) -> Any:
        failed = [[*which, why] for which, why in self.failed.items()]
        return {"rows": [[row.target, row.load, row.rounds] for row in self._rows.values()], "failed": failed}

    @classmethod
    def from_json(cls, told: Any) -> "Rows":
        rows = cls()
        for target, load, rounds in told["rows"]:
            rows._rows[target, load] = Row(target, load, rounds)
        rows.failed = {(target, load): why for target, load, why in told["failed"]}
        return rows


class Measure:
    """Calls on a target, from the cores of the rest."""

    def __init__(self, provider: Target, cores: Cores, seconds: float) -> None:
        self._provider = provider
        self._cores = cores
        self._seconds = seconds
        self._serial = 0

    def __call__(self, target: Target, load: Load, seconds: float | None = None) -> Reading:
        """Failed where any answer was wrong."""
        try:
            told = self._loaded(target, load, seconds or self._seconds)
            provider_late = self._provider_lateness()
        finally:
            self._rest(target)
        if told["failures"]:
            raise Failed(f"{target.name}, {load.name}: {told['failures']} wrong answers, such as: {told['failure']}")
        if not told["events" if load.streams else "calls"]:
            raise Failed(f"{target.name}, {load.name}: nothing came in the window")
        reading = reading_of(told, load, provider_late)
        _say(target, load, reading)
        return reading

    def _loaded(self, target: Target, load: Load, seconds: float) -> Any:
        self._serial += 1
        command = [sys.executable, "-m", load.generator, "--port", str(target.port), "--connections", str(load.connections)]
        command += ["--seconds", str(seconds), "--ramp", str(load.ramp), "--runs", load.runs, "--rate", str(load.rate)]
        command += ["--salt", f"{time.time_ns() % 10**9:09d}{self._serial:05d}"]
        if load.streams:
            command += ["--stream", "--gap-us", str(load.gap_us), "--events", str(load.events)]
        if load.sheds:
            command.append("--sheds")
        if target.core is not None:
            command += ["--core", str(target.core)]
        command += [f"--header={line}" for line in target.headers]
        groups = {"target": target.pids, "provider": self._provider.pids, "store": target.store}
        command += [f"--measure={name}={','.join(map(str, pids))}" for name, pids in groups.items() if pids]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            pin(process.pid, self._cores.rest)
            output, said = process.communicate(timeout=seconds + load.ramp + 120)
        except subprocess.TimeoutExpired:
            raise Failed(f"{target.name}, {load.name}: the load did not end") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            raise Failed(f"{target.name}, {load.name}: the load generator ended with code {process.returncode}: {said[-600:]}")
        return json.loads(output)

    def _provider_lateness(self) -> float:
        """Of the events that it made since it was asked last: p99, ms."""
        connection = http.client.HTTPConnection("127.0.0.1", self._provider.port, timeout=30)
        connection.request("GET", "/lateness")
        late: float = json.load(connection.getresponse())["late_p99_ms"]
        connection.close()
        return late

    def _rest(self, target: Target) -> None:
        """Until the target has dealt with what the load left, such as streams that were cut."""
        until = time.monotonic() + QUIET_WITHIN_S
        pids = [below for pid in target.pids for below in tree(pid)]
        while True:
            before = cpu_s(pids)
            time.sleep(0.2)
            if cpu_s(pids) - before <= 0.2 * QUIET_SHARE + 0.01:
                return
            if time.monotonic() > until:
                raise Failed(f"{target.name} is still busy {QUIET_WITHIN_S:g} s after the load")


def reading_of(told: Mapping[str, Any], load: Load, provider_late_ms: float = 0.0) -> Reading:
    """From what the load generator told: rates, CPU a call and a chunk, shares of cores."""
    seconds, cpu = told["seconds"], told["cpu_s"]
    target_s, store_s = cpu.get("target", 0.0), cpu.get("store", 0.0)
    feeding = (told["own_cpu_s"] + cpu.get("provider", 0.0) + store_s) / seconds
    reading = {
        "calls_s": told["calls"] / seconds,
        "p50_ms": told["call_ms"]["p50"],
        "p99_ms": told["call_ms"]["p99"],
        "cpu_share": target_s / seconds,
        "feeding_share": feeding,
        "late_ms": max(told["late_ms"]["p99"], provider_late_ms if load.streams else 0.0),
        "others_share": max(0.0, told["core_s"] - target_s) / seconds,
    }
    if told["calls"]:
        reading["cpu_us_call"] = target_s / told["calls"] * 1e6
        reading["store_us_call"] = store_s / told["calls"] * 1e6
    if load.streams:
        events = told["events"]
        reading |= {
            "chunks_s": events / seconds,
            "first_p50_ms": told["first_ms"]["p50"],
            "first_p99_ms": told["first_ms"]["p99"],
            "delay_p50_ms": told["delay_ms"]["p50"],
            "delay_p99_ms": told["delay_ms"]["p99"],
            "cpu_us_chunk": target_s / max(1, events) * 1e6,
            "offered_s": load.offered,
            "streams": told["streams"],
            "shed_s": told["shed"] / seconds,
            "kb_each": told["grown_kb"].get("target", 0) / max(1, told["streams"]),
        }
    return reading


def tried(rows: Rows, measure: Measure, target: Target, load: Load, seconds: float | None = None) -> None:
    """A row's next round. What fails is tried once more; then it is kept as failed, and not measured again: the others go on."""
    if (target.name, load.name) in rows.failed:
        return
    for last in (False, True):
        try:
            rows.add(target.name, load.name, measure(target, load, seconds))
        except Failed as failed:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} FAILED: {failed}\n")
            if last:
                rows.failed[target.name, load.name] = str(failed)
        else:
            return


def in_rounds(measure: Measure, targets: Sequence[Target], loads: Sequence[Load], rounds: int) -> Rows:
    """Each load on each target, round by round; every second round backwards."""
    rows = Rows()
    for number in range(rounds):
        for load in loads:
            for target in targets if number % 2 == 0 else targets[::-1]:
                tried(rows, measure, target, load)
    return rows


def _say(target: Target, load: Load, reading: Reading) -> None:
    what = f"{reading['calls_s']:,.0f} calls/s"
    if load.streams:
        what = f"{reading['chunks_s']:,.0f} of {load.offered:,.0f} chunks/s, {reading['cpu_us_chunk']:.0f} µs each"
    elif "cpu_us_call" in reading:
        what += f", {reading['cpu_us_call']:.0f} µs each"
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {load.name}: {target.name}: {what}\n")
