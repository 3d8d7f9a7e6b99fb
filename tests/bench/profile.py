"""Where a loaded gateway spends its CPU, by layer: a table of shares and microseconds. Needs py-spy (in the dev environment).

    python -m tests.bench.profile [--target 'Penstock on SQLite'] [--seconds 10] [--write]

The kernel says how much CPU each thread had. A sampling profiler says on what: a sample counts for the layer of the innermost frame that is the
gateway's own; where there is none, for the event loop, or for whatever else runs in that thread. What the kernel does for a layer, such as
sending, is the layer's. Microseconds are these shares of what a call cost in a run without the profiler, just before.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.bench import machine
from tests.bench.lifecycles import opened
from tests.bench.measuring import Load, Measure, Reading
from tests.bench.pages import DOCS, write
from tests.bench.tables import SIXTEEN_LIFECYCLES, SIXTY_FOUR, STREAM_LOADS
from tests.bench.targets import OURS, SQLITE, VALKEY, Place, provider, started

BEGIN, END = "<!-- bench profile: begin -->", "<!-- bench profile: end -->"
HZ: Final = 200
RAMP_S: Final = 2.0  # of the load, before the profiler looks
LOADS: Final = (SIXTY_FOUR, STREAM_LOADS[1], SIXTEEN_LIFECYCLES)

SERVER, CLIENT = "server: HTTP in and out", "provider client"
CYCLES: Final = "Cycles layer: reading, telling, remembering"
FLOW, PURE = "flow: who asks, hold, relay", "core and wire: reading, deciding, metering"
SETTLING, LEDGER = "settling: charge, log line, metrics", "ledger, in the event loop"
WRITER, LOOP, OTHER = "ledger, its own thread", "event loop, nothing of ours above it", "other threads"

_OURS: Final = re.compile(r"(?:^|[/(])gateway/([a-z_]+)(?:/|\.py)")
_OF_FOLDER: Final[Mapping[str, str]] = {
    "server": SERVER,
    "upstream": CLIENT,
    "cycles": CYCLES,
    "core": PURE,
    "wire": PURE,
    "ledger": LEDGER,
    **dict.fromkeys(("settling", "charging", "observer", "events", "metrics"), SETTLING),
}
_NOT_A_CALLS: Final = frozenset({"app", "cli", "launch", "workers"})  # what only runs the loop
_TID: Final = re.compile(r"thread \((\d+)\)")


def shares(stacks: Iterable[str], cpu_s: Mapping[int, float], main: int) -> Mapping[str, float]:
    """Layer → its share of all CPU time, the dearest first. From py-spy's raw lines, `thread (ID): NAME;frame;…;leaf COUNT`, outermost frame
    first, and the CPU time of each thread by its id. A thread that was never seen at work counts for the others."""
    samples: dict[int, Counter[str]] = {}
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        found = _TID.match(thread)
        assert found, f"a line without its thread: {line[:200]}"
        tid = int(found[1])
        samples.setdefault(tid, Counter())[_layer(frames, tid == main)] += int(count)
    layers: Counter[str] = Counter()
    for tid, seconds in cpu_s.items():
        seen = samples.get(tid) or Counter({OTHER: 1})
        for layer, count in seen.items():
            layers[layer] += seconds * count / seen.total()
    return {layer: seconds / layers.total() for layer, seconds in layers.most_common() if seconds}


def _layer(frames: Sequence[str], in_main_thread: bool) -> str:
    for frame in reversed(frames):
        found = _OURS.search(frame)
        if found and found[1] not in _NOT_A_CALLS:
            layer = _OF_FOLDER.get(found[1], FLOW)
            return WRITER if layer == LEDGER and not in_main_thread else layer
    return LOOP if in_main_thread else OTHER


def table(target: str, load: Load, reading: Reading, of_all: Mapping[str, float], in_kernel: float) -> str:
    """Shares times what a call cost without the profiler."""
    unit, each_us = ("chunk", reading["cpu_us_chunk"]) if load.streams else ("call", reading["cpu_us_call"])
    if load is SIXTEEN_LIFECYCLES:
        unit = "lifecycle"
    lines = [f"| layer | share | µs a {unit} |", "|---|---|---|"]
    lines += [f"| {layer} | {share:.0%} | {each_us * share:.1f} |" for layer, share in of_all.items()]
    lines.append(f"| all; {in_kernel:.0%} of it in the kernel | 100% | {each_us:.1f} |")
    return f"**{target}; {load.name}**\n\n" + "\n".join(lines)


def profiled(target_name: str, place: Place, measure: Measure, seconds: float, loads: Sequence[Load] = LOADS) -> Iterable[str]:
    with started(target_name, place) as running:
        target = replace(running, headers=opened(running))
        for load in loads:
            pid = target.pids[0]
            reading = measure(target, load, seconds)
            raw = place.folder / "profile.raw"
            command = [_py_spy(), "record", "--threads", "--format", "raw", "--rate", str(HZ), "--output", str(raw)]
            command += ["--duration", f"{seconds:.0f}", "--pid", str(pid)]
            with ThreadPoolExecutor() as beside:
                # The load begins before the profiler looks, and ends after it.
                loading = beside.submit(measure, target, replace(load, ramp=RAMP_S), seconds + 2)
                time.sleep(RAMP_S + 1)
                before = machine.cpu_of_threads(pid)
                ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
                after = machine.cpu_of_threads(pid)
                loading.result()
            assert ended.returncode == 0, f"py-spy ended with code {ended.returncode}: {ended.stdout}{ended.stderr}"
            spent = _less(after, before)
            cpu_s = {tid: user + system for tid, (user, system) in spent.items()}
            in_kernel = sum(system for _, system in spent.values()) / sum(cpu_s.values())
            yield table(target_name, load, reading, shares(raw.read_text().splitlines(), cpu_s, pid), in_kernel)


def _less(
    after: Mapping[int, tuple[float, float]], before: Mapping[int, tuple[float, float]]
) -> Mapping[int, tuple[float, float]]:
    none = (0.0, 0.0)
    return {tid: (now[0] - before.get(tid, none)[0], now[1] - before.get(tid, none)[1]) for tid, now in after.items()}


def _py_spy() -> str:
    beside = Path(sys.executable).parent / "py-spy"
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    assert found, "py-spy is not installed: it is in the dev environment (`make check` installs it)"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile")
    parser.add_argument("--target", choices=OURS, action="append", help=f"{SQLITE} and {VALKEY} by default")
    parser.add_argument("--only", choices=[load.name for load in LOADS], action="append", help="these loads")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCS}")
    options = parser.parse_args()
    machine.allow_many_files()
    cores = machine.cores()
    command = f"python -m tests.bench.profile --seconds {options.seconds:g}"
    told = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine.about()}. `{command}`: {HZ} samples a second, which itself slows what it looks at."
    ]
    with tempfile.TemporaryDirectory(prefix="penstock-profile-") as folder, provider(cores) as source:
        measure = Measure(source, cores, options.seconds)
        for number, name in enumerate(options.target or (SQLITE, VALKEY)):
            loads = [load for load in LOADS if not options.only or load.name in options.only]
            for one in profiled(name, Place(Path(folder) / f"{number}", source.port, cores), measure, options.seconds, loads):
                print(f"{one}\n", flush=True)
                told.append(one)
    if options.write:
        write("\n\n".join(told), BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
