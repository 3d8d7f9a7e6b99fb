"""Tables and verdicts say what the results say, and nothing of what was not measured."""

from typing import Any

import pytest

from tests.bench import estimating, tables, verdict
from tests.bench.measuring import Load, Rows, reading_of
from tests.bench.tables import FOUR_LIFECYCLES, FULL, HALF, MEMORY, ONE, SIXTEEN, SIXTEEN_LIFECYCLES, SIXTY, SIXTY_FOUR
from tests.bench.targets import BARE, DIRECT, LITELLM, PORTKEY, SQLITE, STACK, VALKEY, WORKERS


def call(cpu_us: float = 300, calls_s: float = 3_000, p50_ms: float = 1.0, feeding: float = 0.3) -> dict[str, float]:
    return {"cpu_us_call": cpu_us, "calls_s": calls_s, "p50_ms": p50_ms, "p99_ms": p50_ms * 2, "feeding_share": feeding}


def rows(*given: tuple[str, str, dict[str, float]]) -> Any:
    made = Rows()
    for target, load, reading in given:
        made.add(target, load, reading)
    return made.to_json()


def at_64(**cpu_us: float) -> Any:
    names = {"sqlite": SQLITE, "valkey": VALKEY, "stack": STACK, "bare": BARE, "workers": WORKERS}
    return {"json": rows(*((names[name], SIXTY_FOUR.name, call(us, 1e6 / us)) for name, us in cpu_us.items()))}


def one(results: dict[str, Any], target: str) -> verdict.Verdict:
    (found,) = (each for each in verdict.of(results) if target in each.target)
    return found


def test_without_results_nothing_is_met_and_nothing_missed() -> None:
    verdicts = verdict.of({})
    assert {each.met for each in verdicts} == {None}
    assert len(verdicts) == 19
    assert "**missed**" not in verdict.table(verdicts)


@pytest.mark.parametrize(("ours_us", "met"), [(124.9, True), (125, True), (126, False)])
def test_the_share_of_the_same_stack_is_judged_by_cpu(ours_us: float, met: bool) -> None:
    assert one(at_64(sqlite=ours_us, stack=100), STACK).met is met


def test_a_missed_target_says_by_how_much() -> None:
    told = one(at_64(sqlite=200, stack=100), STACK)
    assert told.measured == "0.50 × by CPU (100 ÷ 200 µs a call), 0.50 × by calls/s; 38% short"


@pytest.mark.parametrize(
    ("name", "us", "met"), [("sqlite", 333, True), ("sqlite", 334, False), ("valkey", 400, True), ("valkey", 401, False)]
)
def test_calls_a_second_are_judged_by_what_the_cpu_allows(name: str, us: float, met: bool) -> None:
    assert one(at_64(**{name: us}), f"JSON, {SQLITE if name == 'sqlite' else VALKEY}: ≥").met is met


def test_the_peers_are_ratios_of_cpu() -> None:
    peers = rows((SQLITE, SIXTEEN.name, call(300)), (LITELLM, SIXTEEN.name, call(9_300)), (PORTKEY, SIXTEEN.name, call(900)))
    results = {"json-peers": peers}
    assert one(results, LITELLM) == verdict.Verdict(
        f"CPU of a JSON call, {LITELLM} ÷ {SQLITE}: expected ≥ 30", "31.0 (9,300 ÷ 300 µs at 16 connections)", True
    )
    assert one(results, PORTKEY).met is False


def test_what_is_added_is_counted_from_the_direct_call() -> None:
    results = {"json": rows((DIRECT, ONE.name, call(p50_ms=0.1)), (SQLITE, ONE.name, call(p50_ms=0.65)))}
    told = one(results, "1 connection, SQLite")
    assert (told.measured, told.met) == ("0.55 ms", True)


def test_half_load_is_beside_the_direct_call_at_the_same_rate() -> None:
    results = {"half": rows((DIRECT, tables.beside(HALF, SQLITE), call(p50_ms=0.5)), (SQLITE, HALF.name, call(p50_ms=2.1)))}
    told = one(results, f"half load, {SQLITE}")
    assert (told.measured, told.met) == ("3.20 ms at 3,000 calls/s; 7% over", False)


@pytest.mark.parametrize(("feeding", "met"), [(0.5, False), (0.95, True)])
def test_where_the_load_was_the_limit_the_cpu_of_a_chunk_tells_what_a_core_could_do(feeding: float, met: bool) -> None:
    full = rows((SQLITE, FULL.name, {"chunks_s": 20_000, "cpu_us_chunk": 40, "feeding_share": feeding}))
    assert one({"full": full}, "streamed chunks/s").met is met


def test_the_delay_of_chunks_and_the_memory_of_streams_are_judged() -> None:
    busy = {"chunks_s": 15_000, "cpu_share": 0.6}
    full = rows(
        (DIRECT, tables.beside(SIXTY, SQLITE), {"delay_p99_ms": 1.0}), (SQLITE, SIXTY.name, {**busy, "delay_p99_ms": 51.5})
    )
    assert one({"full": full}, "60 % load").met is False
    assert one({"memory": rows((SQLITE, MEMORY.name, {"kb_each": 42.0}))}, "resident memory").met is True


def test_a_grown_step_is_judged_beyond_what_its_body_costs_any_proxy() -> None:
    told = {
        DIRECT: {"10": [1.0], "60": [3.0]},
        STACK: {"10": [2.0], "60": [5.0]},
        SQLITE: {"10": [3.0], "60": [6.6]},
        "bytes": {"10": [1], "60": [1]},
    }
    assert one({"conversations": told}, "added over direct").measured == "3.60 ms; 20% over"
    assert one({"conversations": told}, "beyond the body's transfer").measured == "1.60 ÷ 1.00 ms = 1.60; 7% over"


def test_two_workers_without_cores_to_spare_are_judged_by_the_cpu_of_a_call() -> None:
    results = at_64(sqlite=300, workers=320)
    assert one({**results, "cores_to_spare": False}, "Two workers").met is True
    assert one({**results, "cores_to_spare": True}, "Two workers").met is False


@pytest.mark.parametrize(("us", "p50_ms", "met"), [(500, 3.0, True), (501, 3.1, False)])
def test_a_cycles_lifecycle_is_judged_by_its_cpu_and_by_what_four_clients_wait(us: float, p50_ms: float, met: bool) -> None:
    rounds = rows((SQLITE, SIXTEEN_LIFECYCLES.name, call(us)), (SQLITE, FOUR_LIFECYCLES.name, call(p50_ms=p50_ms)))
    assert one({"cycles": rounds}, "reserve + commit").met is met
    assert one({"cycles": rounds}, "4 connections").met is met
    assert "| 500 (500–500) |" in tables.lifecycles(rows((SQLITE, SIXTEEN_LIFECYCLES.name, call(500))))


def test_a_table_shows_medians_with_what_they_lie_between() -> None:
    given = [(DIRECT, SIXTEEN.name, call(0, p50_ms=1))] * 3 + [
        (SQLITE, SIXTEEN.name, call(us, p50_ms=3)) for us in (300, 320, 290)
    ]
    table = tables.json_calls(rows(*given))
    assert f"| {SQLITE} | 3,000 | 2.00 | 4.00 | 300 (290–320) | 1.00 |" in table
    assert f"| {DIRECT} | 3,000 | (1.00) | (2.00) | – | – |" in table
    assert "†" not in table


def test_a_table_marks_where_the_load_was_the_limit_and_what_failed() -> None:
    made = Rows.from_json(rows((SQLITE, SIXTEEN.name, call(feeding=0.93))))
    made.failed[LITELLM, SIXTEEN.name] = "503 | overloaded"
    table = tables.json_calls(made.to_json())
    assert "3,000†" in table
    assert "were the limit" in table
    assert "**failed**: 503 \\| overloaded" in table


def test_a_direct_call_is_its_own_limit_and_not_marked() -> None:
    assert "†" not in tables.json_calls(rows((DIRECT, SIXTEEN.name, call(feeding=1.0))))


def test_loads_that_were_not_made_have_no_table() -> None:
    assert ONE.name not in tables.json_calls(rows((SQLITE, SIXTEEN.name, call())))


def test_what_else_ran_on_the_measured_core_is_said() -> None:
    busy = [{**call(), "cpu_share": 0.9, "others_share": share} for share in (0.01, 0.02, 0.30)]
    assert (
        tables.noise(rows(*((SQLITE, SIXTEEN.name, one) for one in busy))) == "Others had 2% of the measured core, 30% at most."
    )


def test_a_reading_divides_by_what_was_answered() -> None:
    told = {
        "seconds": 2.0,
        "calls": 1_000,
        "events": 20_000,
        "call_ms": {"p50": 1, "p99": 2},
        "first_ms": {"p50": 3, "p99": 4},
        "delay_ms": {"p50": 5, "p99": 6},
        "late_ms": {"p50": 0, "p99": 0},
        "own_cpu_s": 0.4,
        "core_s": 1.7,
        "cpu_s": {"target": 1.6, "provider": 0.3, "store": 0.1},
        "grown_kb": {"target": 5_000},
        "shed": 4,
        "streams": 100,
    }
    reading = reading_of(told, Load("streams", 100, gap_us=10_000), provider_late_ms=0.7)
    assert reading["cpu_us_call"] == pytest.approx(1_600)
    assert reading["cpu_us_chunk"] == pytest.approx(80)
    assert reading["chunks_s"] == 10_000
    assert reading["feeding_share"] == pytest.approx(0.4)
    assert reading["others_share"] == pytest.approx(0.05)
    assert reading["kb_each"] == 50
    assert reading["shed_s"] == 2
    assert reading["late_ms"] == 0.7
    assert Load("streams", 100, gap_us=10_000).at(5_000).gap_us == 20_000


def test_the_counting_table_has_a_row_for_each_case() -> None:
    assert estimating.table().count("\n| ") == 4
