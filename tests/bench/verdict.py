"""Each target of the project beside what was measured, and whether it is met: from the results alone, so that a new run keeps it true.

CPU µs a call is the gate, as calls a second move with the machine: so many calls a second are met where the CPU of a call allows them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.bench import tables
from tests.bench.measuring import FEEDS_AT_MOST, Rows
from tests.bench.tables import FOUR_LIFECYCLES, FULL, HALF, MEMORY, ONE, SIXTEEN, SIXTEEN_LIFECYCLES, SIXTY, SIXTY_FOUR
from tests.bench.targets import BARE, LITELLM, PORTKEY, SQLITE, STACK, VALKEY, WORKERS

MARKS: Final = ("<!-- bench targets: begin -->", "<!-- bench targets: end -->")
CORE_US: Final = 1e6
UNCHANGED: Final = 1.1  # CPU of a call with two workers ÷ with one, where no core is to spare
NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`met` None: not measured, or not a measurement."""

    target: str
    measured: str
    met: bool | None


def of(results: Mapping[str, Any]) -> Sequence[Verdict]:
    """`results`: part → what it gave."""
    calls, half, full, memory = (_rows(results, part) for part in ("json", "half", "full", "memory"))
    lifecycles = _rows(results, "cycles")
    return (
        _share(calls, STACK, 0.8),
        _share(calls, BARE, 1.0),
        _calls_a_second(calls, SQLITE, 3_000),
        _calls_a_second(calls, VALKEY, 2_500),
        _peer(_rows(results, "json-peers"), LITELLM, 30),
        _peer(_rows(results, "json-peers"), PORTKEY, 4),
        _at_most("JSON, 1 connection, SQLite: p50 added", calls.added(SQLITE, ONE.name, "p50_ms"), 0.6, "ms"),
        _at_most("JSON, 1 connection, Valkey: p50 added", calls.added(VALKEY, ONE.name, "p50_ms"), 0.9, "ms"),
        _half(half, SQLITE),
        _half(half, VALKEY),
        _chunks(full),
        _at_most("2,000 streams: resident memory of each", memory.median(SQLITE, MEMORY.name, "kb_each"), 50, "KB"),
        _delay(full),
        *_steps(results.get("conversations")),
        _workers(calls, bool(results.get("cores_to_spare"))),
        _lifecycles_a_second(lifecycles, 2_000),
        _at_most(
            "Cycles lifecycle, 4 connections, SQLite: p50", lifecycles.median(SQLITE, FOUR_LIFECYCLES.name, "p50_ms"), 3, "ms"
        ),
        Verdict("Nothing of correctness was traded", "no measurement: `make test`, `make test-deep`", None),
    )


def table(verdicts: Sequence[Verdict]) -> str:
    marks = {True: "met", False: "**missed**", None: "–"}
    lines = ["| target: one core, a dollar reserved for every call | measured | |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {one.target} | {one.measured} | {marks[one.met]} |" for one in verdicts)])


# -- the targets ------------------------------------------------------------------------------------------------------------------


def _share(calls: Rows, of_what: str, least: float) -> Verdict:
    """Of the calls that something else makes of the same CPU."""
    target = f"JSON, SQLite: ≥ {least} × the calls of {of_what if of_what == STACK else f'the {of_what}'}"
    ours, theirs = (calls.median(name, SIXTY_FOUR.name, "cpu_us_call") for name in (SQLITE, of_what))
    if not ours or not theirs:
        return Verdict(target, NOT_MEASURED, None)
    rates = [calls.median(name, SIXTY_FOUR.name, "calls_s") or 0.0 for name in (SQLITE, of_what)]
    measured = f"{theirs / ours:.2f} × by CPU ({theirs:.0f} ÷ {ours:.0f} µs a call), {rates[0] / rates[1]:.2f} × by calls/s"
    return Verdict(target, measured + _short(theirs / ours, least), theirs / ours >= least)


def _calls_a_second(calls: Rows, ours: str, least: float) -> Verdict:
    target = f"JSON, {ours}: ≥ {least:,} calls/s, so ≤ {CORE_US / least:.0f} µs of CPU a call"
    cpu, rate = (calls.median(ours, SIXTY_FOUR.name, metric) for metric in ("cpu_us_call", "calls_s"))
    if not cpu or not rate:
        return Verdict(target, NOT_MEASURED, None)
    most = CORE_US / least
    return Verdict(target, f"{cpu:.0f} µs; {rate:,.0f} calls/s at 64 connections" + _over(cpu, most), cpu <= most)


def _lifecycles_a_second(lifecycles: Rows, least: float) -> Verdict:
    most = CORE_US / least
    target = f"Cycles lifecycle (reserve + commit), SQLite: ≥ {least:,.0f}/s, so ≤ {most:.0f} µs of CPU each"
    cpu, rate = (lifecycles.median(SQLITE, SIXTEEN_LIFECYCLES.name, metric) for metric in ("cpu_us_call", "calls_s"))
    if not cpu or not rate:
        return Verdict(target, NOT_MEASURED, None)
    return Verdict(target, f"{cpu:.0f} µs; {rate:,.0f}/s at 16 connections" + _over(cpu, most), cpu <= most)


def _peer(calls: Rows, peer: str, least: float) -> Verdict:
    target = f"CPU of a JSON call, {peer} ÷ Penstock on SQLite: expected ≥ {least:g}"
    ours, theirs = (calls.median(name, SIXTEEN.name, "cpu_us_call") for name in (SQLITE, peer))
    if not ours or not theirs:
        return Verdict(target, f"{NOT_MEASURED}: `make bench-peers`", None)
    ratio = theirs / ours
    return Verdict(
        target, f"{ratio:.1f} ({theirs:,.0f} ÷ {ours:.0f} µs at 16 connections)" + _short(ratio, least), ratio >= least
    )


def _half(half: Rows, ours: str) -> Verdict:
    target = f"JSON, 16 connections, half load, {ours}: p99 added ≤ 3 ms"
    added = half.added(ours, HALF.name, "p99_ms", tables.beside(HALF, ours))
    if added is None:
        return Verdict(target, NOT_MEASURED, None)
    rate = half.median(ours, HALF.name, "calls_s")
    return Verdict(target, f"{added:.2f} ms at {rate:,.0f} calls/s" + _over(added, 3), added <= 3)


def _chunks(full: Rows) -> Verdict:
    target = "≥ 25,000 streamed chunks/s"
    rate, cpu, feeding = (full.median(SQLITE, FULL.name, metric) for metric in ("chunks_s", "cpu_us_chunk", "feeding_share"))
    if not rate or not cpu or not feeding:
        return Verdict(target, NOT_MEASURED, None)
    limited = feeding > FEEDS_AT_MOST
    most = CORE_US / cpu if limited else rate
    measured = f"{rate:,.0f} chunks/s, {cpu:.0f} µs of CPU each"
    if limited:
        measured += f" (the load generator was the limit; by CPU {most:,.0f})"
    return Verdict(target, measured + _short(most, 25_000), most >= 25_000)


def _delay(full: Rows) -> Verdict:
    target = "2,000 streams at 60 % load: p99 added to a chunk ≤ 50 ms"
    added = full.added(SQLITE, SIXTY.name, "delay_p99_ms", tables.beside(SIXTY, SQLITE))
    if added is None:
        return Verdict(target, NOT_MEASURED, None)
    rate, share = (full.median(SQLITE, SIXTY.name, metric) or 0.0 for metric in ("chunks_s", "cpu_share"))
    return Verdict(target, f"{added:.1f} ms at {rate:,.0f} chunks/s, {share:.0%} of the core" + _over(added, 50), added <= 50)


def _steps(told: Any) -> Sequence[Verdict]:
    sixty = "Step 60 of a 50,000-token conversation: added over direct"
    growth = "Step 60 ≤ 1.5 × step 10, beyond the body's transfer"
    if not told or SQLITE not in told:
        return (Verdict(f"{sixty} ≤ 3 ms", NOT_MEASURED, None), Verdict(growth, NOT_MEASURED, None))
    whole = _at_most(sixty, tables.added_ms(told, SQLITE, "60"), 3, "ms")
    early, late = (tables.beyond_ms(told, SQLITE, step) for step in ("10", "60"))
    if early is None or late is None:
        return (whole, Verdict(growth, NOT_MEASURED, None))
    return (
        whole,
        Verdict(growth, f"{late:.2f} ÷ {early:.2f} ms = {late / early:.2f}" + _over(late / early, 1.5), late <= 1.5 * early),
    )


def _workers(calls: Rows, to_spare: bool) -> Verdict:
    rate, rates = (calls.median(name, SIXTY_FOUR.name, "calls_s") for name in (SQLITE, WORKERS))
    one, two = (calls.median(name, SIXTY_FOUR.name, "cpu_us_call") for name in (SQLITE, WORKERS))
    if to_spare:
        target = "Two workers ≥ 1.7 × one"
        if not rate or not rates:
            return Verdict(target, NOT_MEASURED, None)
        return Verdict(target, f"{rates / rate:.2f} × the calls/s" + _short(rates / rate, 1.7), rates >= 1.7 * rate)
    target = f"Two workers: no cores to spare here, so CPU of a call unchanged (≤ {UNCHANGED} × one's)"
    if not one or not two:
        return Verdict(target, NOT_MEASURED, None)
    measured = f"{two / one:.2f} × ({two:.0f} ÷ {one:.0f} µs), both workers on the one core"
    return Verdict(target, measured + _over(two / one, UNCHANGED), two <= UNCHANGED * one)


def _at_most(what: str, measured: float | None, most: float, unit: str) -> Verdict:
    target = f"{what} ≤ {most:g} {unit}"
    if measured is None:
        return Verdict(target, NOT_MEASURED, None)
    return Verdict(target, f"{measured:.2f} {unit}" + _over(measured, most), measured <= most)


def _over(measured: float, most: float) -> str:
    return f"; {measured / most - 1:.0%} over" if measured > most else ""


def _short(measured: float, least: float) -> str:
    return f"; {1 - measured / least:.0%} short" if measured < least else ""


def _rows(results: Mapping[str, Any], part: str) -> Rows:
    return Rows.from_json(results[part]) if part in results else Rows()
