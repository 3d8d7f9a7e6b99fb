"""The profile's table counts each sample for one layer, and weighs threads by what the kernel says."""

import pytest

from tests.bench import profile
from tests.bench.tables import SIXTY_FOUR, STREAM_LOADS

LOOPS = "serve (gateway/app.py:324);run (uvloop/__init__.py:92)"


def of(stack: str) -> str:
    """Where a sample of the main thread counts."""
    (layer,) = profile.shares([f"thread (7): MainThread;{stack} 1"], {7: 1.0}, main=7)
    return layer


@pytest.mark.parametrize(
    ("stack", "layer"),
    [
        (f"{LOOPS};data_received (gateway/server/connection.py:9)", profile.SERVER),
        (f"{LOOPS};serve (gateway/flow.py:9);read (gateway/wire/chat.py:1);loads (orjson.so)", profile.PURE),
        (f"{LOOPS};serve (/src/gateway/flow.py:9)", profile.FLOW),
        (f"{LOOPS};serve (gateway/flow.py:9);reserve (gateway/ledger/sqlite/ledger.py:3)", profile.LEDGER),
        (f"{LOOPS};feed (gateway/upstream/lean.py:9)", profile.CLIENT),
        (f"{LOOPS};end (gateway/settling.py:9);observe (gateway/observer.py:2)", profile.SETTLING),
        (LOOPS, profile.LOOP),
    ],
)
def test_a_sample_counts_for_the_innermost_frame_that_is_ours(stack: str, layer: str) -> None:
    assert of(stack) == layer


def test_the_ledger_at_work_in_its_thread_is_told_apart() -> None:
    stacks = ["thread (8): ledger-writer;run (threading.py:1);_write (gateway/ledger/sqlite/ledger.py:203) 3"]
    assert profile.shares(stacks, {8: 0.5}, main=7) == {profile.WRITER: 1.0}


def test_threads_weigh_what_the_kernel_says_and_not_how_often_they_were_seen() -> None:
    main = f"thread (7): MainThread;{LOOPS};serve (gateway/flow.py:9)"
    stacks = [f"{main} 30", f"{main};read (gateway/wire/chat.py:1) 10", "thread (9): idler;_worker (concurrent/thread.py:81) 400"]
    told = profile.shares(stacks, {7: 0.8, 9: 0.1, 10: 0.1}, main=7)
    assert told == {profile.FLOW: pytest.approx(0.6), profile.PURE: pytest.approx(0.2), profile.OTHER: pytest.approx(0.2)}
    assert next(iter(told)) == profile.FLOW


def test_the_table_gives_each_layer_its_part_of_a_call() -> None:
    table = profile.table("ours", SIXTY_FOUR, {"cpu_us_call": 300.0}, {profile.FLOW: 0.75, profile.PURE: 0.25}, in_kernel=0.2)
    assert f"| {profile.FLOW} | 75% | 225.0 |" in table
    assert "| all; 20% of it in the kernel | 100% | 300.0 |" in table


def test_streams_are_told_by_the_chunk() -> None:
    table = profile.table(
        "ours", STREAM_LOADS[0], {"cpu_us_chunk": 40.0, "cpu_us_call": 300.0}, {profile.LOOP: 1.0}, in_kernel=0.5
    )
    assert "µs a chunk" in table
    assert f"| {profile.LOOP} | 100% | 40.0 |" in table
