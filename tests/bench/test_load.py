"""The benchmark measures what it says: the load and the canned provider agree on every call and every event."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bench import __main__ as bench
from tests.bench import estimating

TOKENS, GAP_MS = 5, 10


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    command = [sys.executable, "-m", "tests.bench.canned", "--tokens", str(TOKENS), "--gap-ms", str(GAP_MS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["port"]
        process.terminate()


def load(port: int, *more: str) -> Any:
    command = [sys.executable, "-m", "tests.bench.load", "--port", str(port), "--seconds", "0.2", "--connections", "3", *more]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    assert told["failures"] == 0, told["failure"]
    return told


def test_each_call_is_one_sample(port: int) -> None:
    told = load(port)
    assert told["calls"] == told["samples"] > 3


def test_each_event_of_a_stream_is_one_sample_of_how_late_it_was(port: int) -> None:
    told = load(port, "--stream", "--gap-ms", str(GAP_MS))
    assert told["samples"] == told["calls"] * TOKENS
    assert 0 <= told["p50_ms"] < TOKENS * GAP_MS


def test_the_tables_show_what_a_target_adds_to_going_direct() -> None:
    targets = [bench.Target("direct", 0, None), bench.Target("bare", 0, 1), bench.Target("ours", 0, 2)]
    results = {
        (target.name, load.name): bench.Figures([100.0 * n], [2000.0], [1.0 * n], [2.0 * n], [50.0 * n], [5.0])
        for n, target in enumerate(targets, 1)
        for load in bench.LOADS
    }
    tables = "\n".join(bench._tables(results, targets))
    assert "| direct | 100 | (1.00) | (2.00) | – |" in tables
    assert "| ours | 300 | 2.00 | 4.00 | 150 |" in tables
    assert "makes 1.50 × the calls" in tables


def test_the_counting_table_has_a_row_for_each_case() -> None:
    assert estimating.table().count("\n| ") == 4
