"""The loads of each part, and its results as a Markdown table: medians over the rounds; in brackets, the lowest and the highest."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from tests.bench.measuring import FEEDS_AT_MOST, Load, Row, Rows
from tests.bench.targets import DIRECT, NAMES, SQLITE, STACK

SECOND_S: Final = 20.0  # chunks of a stream, a second

ONE: Final = Load("JSON, 1 connection", 1)
SIXTEEN: Final = Load("JSON, 16 connections", 16)
SIXTY_FOUR: Final = Load("JSON, 64 connections", 64)
JSON_LOADS: Final = (ONE, SIXTEEN, SIXTY_FOUR)
HALF: Final = Load("JSON, 16 connections, half load", 16)
_STREAMS: Final = Load("", 1, gap_us=round(1e6 / SECOND_S), ramp=1.0)
# A thousand may be more than some can do.
STREAM_LOADS: Final = tuple(
    replace(_STREAMS, name=f"{many:,} streams", connections=many, sheds=many >= 1000) for many in (64, 256, 1000)
)
FEW_STREAMS: Final = replace(_STREAMS, name="16 streams", connections=16)  # which every peer can carry
TWO_THOUSAND: Final = Load("2,000 streams, what a chunk costs", 2000, gap_us=500_000, ramp=4.0, sheds=True)
SIXTY: Final = replace(TWO_THOUSAND, name="2,000 streams, 60 % load")
FULL: Final = replace(TWO_THOUSAND, name="2,000 streams, more than a core can do")
MEMORY: Final = replace(TWO_THOUSAND, name="2,000 streams, memory", gap_us=400_000)
HOT: Final = replace(SIXTY_FOUR, name="one run for all", runs="hot")
RUNS: Final = (
    HOT,
    replace(SIXTY_FOUR, name="a run for each connection"),
    replace(SIXTY_FOUR, name="a run for each call", runs="call"),
)
_LIFECYCLE: Final = Load("", 1, generator="tests.bench.lifecycles")
LIFECYCLES: Final = tuple(
    replace(_LIFECYCLE, name=f"lifecycles, {many} connection{'s' * (many > 1)}", connections=many) for many in (1, 4, 16, 64)
)
FOUR_LIFECYCLES, SIXTEEN_LIFECYCLES = LIFECYCLES[1], LIFECYCLES[2]
LIMITED: Final = (
    "\n\n† The load generator, the provider and the store together had more than "
    f"{FEEDS_AT_MOST:.0%} of their core: they were the limit, not the target."
)

Cell = Callable[[Rows, Row], str]


def beside(load: Load, target: str) -> str:
    """The name of the direct call's row at the load that fits a target."""
    return f"{load.name}, as {target}"


# -- the parts --------------------------------------------------------------------------------------------------------------------


def json_calls(told: Any) -> str:
    columns = {
        "calls/s": _rate("calls_s"),
        "p50 added, ms": _added("p50_ms"),
        "p99 added, ms": _added("p99_ms"),
        "CPU µs/call": _cpu("cpu_us_call"),
        "CPU ÷ Penstock's": _ratio("cpu_us_call"),
    }
    return _each_load(Rows.from_json(told), JSON_LOADS, columns)


def streams(told: Any) -> str:
    columns = {
        "chunks/s": _rate("chunks_s"),
        "first chunk, p50 added, ms": _added("first_p50_ms"),
        "p99": _added("first_p99_ms"),
        "each chunk, p50 added, ms": _added("delay_p50_ms"),
        "p99 ": _added("delay_p99_ms"),
        "CPU µs/chunk": _cpu("cpu_us_chunk"),
        "CPU ÷ Penstock's": _ratio("cpu_us_chunk"),
        "calls/s shed": _plain("shed_s", ",.0f"),
    }
    about = f"{SECOND_S:g} chunks a second each, {_STREAMS.events} a stream; CPU is with the calls that begin and end them."
    return f"{about}\n\n{_each_load(Rows.from_json(told), (FEW_STREAMS, *STREAM_LOADS), columns)}"


def half_load(told: Any) -> str:
    columns = {
        "calls/s": _plain("calls_s", ",.0f"),
        "p50 added, ms": _added_beside(HALF, "p50_ms"),
        "p99 added, ms": _added_beside(HALF, "p99_ms"),
        "CPU of the core": _share("cpu_share"),
        "own sends late, p99, ms": _plain("late_ms", ".2f"),
    }
    about = "On a fixed schedule, half of what each did at 16 connections; latency from when a call was due; beside the direct call at the same rate."
    return f"{about}\n\n{_each_load(Rows.from_json(told), (HALF,), columns)}"


def full_load(told: Any) -> str:
    rows = Rows.from_json(told)
    sixty = {
        "chunks/s": _rate("chunks_s"),
        "CPU of the core": _share("cpu_share"),
        "first chunk, p50 added, ms": _added_beside(SIXTY, "first_p50_ms"),
        "p99": _added_beside(SIXTY, "first_p99_ms"),
        "each chunk, p50 added, ms": _added_beside(SIXTY, "delay_p50_ms"),
        "p99 ": _added_beside(SIXTY, "delay_p99_ms"),
        "CPU µs/chunk": _cpu("cpu_us_chunk"),
        "provider's events late, p99, ms": _plain("late_ms", ".2f"),
        "streams that ran": _plain("streams", ",.0f"),
        "calls/s shed": _plain("shed_s", ",.0f"),
    }
    full = {
        "chunks/s": _rate("chunks_s"),
        "offered": _plain("offered_s", ",.0f"),
        "CPU of the core": _share("cpu_share"),
        "CPU µs/chunk": _cpu("cpu_us_chunk"),
        "chunks per second of CPU": lambda _rows, row: f"{1e6 / row.median('cpu_us_chunk'):,.0f}",
        "streams that ran": _plain("streams", ",.0f"),
        "calls/s shed": _plain("shed_s", ",.0f"),
    }
    return f"{_each_load(rows, (SIXTY,), sixty)}\n\n{_each_load(rows, (FULL,), full)}"


def memory(told: Any) -> str:
    columns = {
        "KB a stream": _plain("kb_each", ".1f"),
        "streams that ran": _plain("streams", ",.0f"),
        "chunks/s meanwhile": _plain("chunks_s", ",.0f"),
    }
    about = "Growth of resident memory ÷ streams that ran, in a process that has carried none before."
    return f"{about}\n\n{_each_load(Rows.from_json(told), (MEMORY,), columns)}"


def runs(told: Any) -> str:
    columns = {
        "calls/s": _rate("calls_s"),
        "CPU µs/call": _cpu("cpu_us_call"),
        "store's CPU µs/call": _plain("store_us_call", ".0f"),
    }
    return f"JSON, 64 connections.\n\n{_each_load(Rows.from_json(told), RUNS, columns)}"


def lifecycles(told: Any) -> str:
    columns = {
        "lifecycles/s": _rate("calls_s"),
        "p50, ms": _plain("p50_ms", ".2f"),
        "p99, ms": _plain("p99_ms", ".2f"),
        "CPU µs each": _cpu("cpu_us_call"),
        "store's CPU µs": _plain("store_us_call", ".0f"),
    }
    about = (
        "A lifecycle is a reservation and its commit, two requests as the Python client sends them, held against the tenant's budget, the "
        "agent's and the run's ceiling."
    )
    return f"{about}\n\n{_each_load(Rows.from_json(told), LIFECYCLES, columns)}"


def conversations(told: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    lines = ["| | step | request, KB | added over direct, ms | beyond the body's transfer, ms |", "|---|---|---|---|---|"]
    for target in (name for name in told if name not in (DIRECT, "bytes")):
        for step in told[target]:
            beyond = beyond_ms(told, target, step)
            cells = [target, step, f"{statistics.median(told['bytes'][step]) / 1024:.0f}", f"{added_ms(told, target, step):.2f}"]
            cells.append("–" if beyond is None or target == STACK else f"{beyond:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    about = (
        "Steps of conversations that grow to 50,000 tokens, one call at a time: medians over the steps beside the one that is named. "
        "The body's transfer is what the same stack without budget work adds."
    )
    return f"**Growing conversations**\n\n{about}\n\n" + "\n".join(lines)


def added_ms(told: Mapping[str, Mapping[str, Sequence[float]]], target: str, step: str) -> float:
    """Over going direct; call by call, as they were made in turn."""
    return statistics.median(a - b for a, b in zip(told[target][step], told[DIRECT][step], strict=True))


def beyond_ms(told: Mapping[str, Mapping[str, Sequence[float]]], target: str, step: str) -> float | None:
    """Over the same stack without budget work. None where that was not measured."""
    if STACK not in told:
        return None
    return statistics.median(a - b for a, b in zip(told[target][step], told[STACK][step], strict=True))


def noise(told: Any) -> str:
    """How much of the measured core something else had, the hypervisor included."""
    shares = [
        share
        for target, _, rounds in told["rows"]
        if target != DIRECT
        for share in rounds.get("others_share", ())
        if rounds["cpu_share"]
    ]
    if not shares:
        return "What else ran on the measured core is not known."
    return f"Others had {statistics.median(shares):.0%} of the measured core, {max(shares):.0%} at most."


# -- cells ------------------------------------------------------------------------------------------------------------------------


def _each_load(rows: Rows, loads: Sequence[Load], columns: Mapping[str, Cell]) -> str:
    told = []
    limited = False
    for load in loads:
        if not rows.has(load.name):
            continue
        lines = [f"| | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
        for target in NAMES:
            row = rows.get(target, load.name)
            if (target, load.name) in rows.failed:
                why = rows.failed[target, load.name].replace("\n", " ").replace("|", "\\|")
                lines.append(f"| {target} | **failed**: {why[:300]} {'| ' * (len(columns) - 1)}|")
            elif row is not None:
                cells = [cell(rows, row) for cell in columns.values()]
                limited = limited or any("†" in cell for cell in cells)
                lines.append(f"| {target} | {' | '.join(cells)} |")
        told.append(f"**{load.name}**\n\n" + "\n".join(lines))
    return "\n\n".join(told) + (LIMITED if limited else "")


def _plain(metric: str, form: str) -> Cell:
    return lambda _rows, row: format(row.median(metric), form) if metric in row.rounds else "–"


def _share(metric: str) -> Cell:
    return lambda _rows, row: f"{row.median(metric):.0%}"


def _rate(metric: str) -> Cell:
    def told(_rows: Rows, row: Row) -> str:
        limited = row.target != DIRECT and row.median("feeding_share") > FEEDS_AT_MOST
        return f"{row.median(metric):,.0f}{'†' if limited else ''}"

    return told


def _cpu(metric: str) -> Cell:
    def told(_rows: Rows, row: Row) -> str:
        if row.target == DIRECT or metric not in row.rounds:
            return "–"
        lowest, highest = row.range(metric)
        return f"{row.median(metric):,.0f} ({lowest:,.0f}–{highest:,.0f})"

    return told


def _ratio(metric: str) -> Cell:
    def told(rows: Rows, row: Row) -> str:
        ours = rows.median(SQLITE, row.load, metric)
        if not ours or row.target == DIRECT or metric not in row.rounds:
            return "–"
        return f"{row.median(metric) / ours:.2f}"

    return told


def _added(metric: str) -> Cell:
    def told(rows: Rows, row: Row) -> str:
        added = rows.added(row.target, row.load, metric)
        if row.target == DIRECT or added is None:
            return f"({row.median(metric):.2f})"
        return f"{added:.2f}"

    return told


def _added_beside(load: Load, metric: str) -> Cell:
    def told(rows: Rows, row: Row) -> str:
        added = rows.added(row.target, load.name, metric, beside(load, row.target))
        return "–" if added is None else f"{added:.2f}"

    return told
