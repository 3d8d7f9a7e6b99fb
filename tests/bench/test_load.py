"""The load generator reads what came, wherever it was cut, and takes nothing for a call that is not whole and right."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bench import canned
from tests.bench.load import Chunks, Events, Wrong, is_whole, percentile
from tests.bench.machine import Cores, cores, cpu_s, memory_kb, tree
from tests.bench.measuring import Load, Measure
from tests.bench.targets import BARE, SQLITE, STACK, Place, Target, provider, started
from tests.bench.wheel import TICK_S, Wheel

EVENTS = 4
STREAM = Load("streams", 3, gap_us=2_000, events=EVENTS, ramp=0.1)
CALLS = Load("calls", 3, ramp=0.05)


def streamed(events: int = EVENTS) -> bytes:
    """A stream's body on the wire, as the provider sends it."""
    return b"".join(canned.token() for _ in range(events)) + canned.stream_end(1000, events)


def read(pieces: Sequence[bytes]) -> tuple[Chunks, Events]:
    chunks, events = Chunks(), Events()
    for piece in pieces:
        events.feed(chunks.feed(piece))
    return chunks, events


# -- reading ----------------------------------------------------------------------------------------------------------------------


def test_a_stream_cut_at_any_byte_has_all_its_events_and_its_end() -> None:
    body = streamed()
    for at in range(1, len(body)):
        chunks, events = read((body[:at], body[at:]))
        assert (chunks.ended, events.done, events.count) == (True, True, EVENTS), at


def test_a_stream_that_came_byte_by_byte_is_read_too() -> None:
    chunks, events = read([bytes((byte,)) for byte in streamed()])
    assert (chunks.ended, events.done, events.count) == (True, True, EVENTS)


def test_a_stream_without_its_last_chunk_has_not_ended() -> None:
    chunks, events = read((streamed().removesuffix(b"0\r\n\r\n"),))
    assert not chunks.ended
    assert events.done


def test_an_error_in_a_stream_is_no_event() -> None:
    with pytest.raises(Wrong, match="no more budget"):
        Events().feed(b'data: {"error":{"message":"no more budget"}}\n\n')


def test_bytes_after_the_last_chunk_are_wrong() -> None:
    with pytest.raises(Wrong):
        Chunks().feed(b"0\r\n\r\nHTTP/1.1 200 OK")


def test_an_answer_is_whole_with_its_last_byte_and_not_before() -> None:
    answer = canned.whole(1000)
    head = answer.index(b"\r\n\r\n")
    assert is_whole(answer, head)
    assert not is_whole(answer[:-1], head)
    with pytest.raises(Wrong, match="beyond"):
        is_whole(answer + b"x", head)


def test_a_chunked_answer_is_whole_with_its_last_chunk() -> None:
    head, _, body = canned.whole(1000).partition(b"\r\n\r\n")
    head = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
    answer = head + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    assert is_whole(answer, len(head))
    assert not is_whole(answer[:-5], len(head))


def test_another_text_is_no_answer() -> None:
    answer = canned.plain(b'{"choices":[]}')
    with pytest.raises(Wrong, match="another text"):
        is_whole(answer, answer.index(b"\r\n\r\n"))


@pytest.mark.parametrize(("share", "sample"), [(0.0, 1), (0.5, 6), (0.99, 10), (1.0, 10)])
def test_a_percentile_is_a_sample(share: float, sample: int) -> None:
    assert percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == sample


def test_a_percentile_of_nothing_is_nothing() -> None:
    assert percentile([], 0.99) == 0.0


def test_what_is_due_comes_in_time_and_once() -> None:
    wheel: Wheel[str] = Wheel(10.0)
    for due_s, name in ((10.02, "later"), (10.01, "soon"), (9.0, "late")):
        wheel.add(due_s, name)
    assert wheel.take(10.001) == ["late"]
    assert wheel.take(10.009) == []
    assert 0 < (wheel.wait_s(10.009) or 0) <= 0.001 + TICK_S
    assert wheel.take(10.5) == ["soon", "later"]
    assert wheel.wait_s(10.5) is None


# -- the machine ------------------------------------------------------------------------------------------------------------------


def test_a_process_tree_has_what_its_processes_started() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        while len(tree(process.pid)) < 2:
            assert process.poll() is None
        assert memory_kb(tree(process.pid)) > 0
        process.communicate(b"\n")
    assert tree(process.pid) == (process.pid,)
    assert cpu_s([process.pid]) == 0


def test_what_is_measured_has_a_core_of_its_own_where_there_are_two() -> None:
    here = cores()
    assert len(here.one) == 1
    assert here.one <= here.two
    assert not here.two & here.rest or len(here.one | here.rest) == 1


# -- against each other -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everywhere() -> Cores:
    """Tests share the machine: nothing is pinned to one core."""
    here = cores()
    every = here.one | here.two | here.rest
    return Cores(every, every, every)


@pytest.fixture(scope="module")
def source(everywhere: Cores) -> Iterator[Target]:
    with provider(everywhere) as target:
        yield target


def straight(source: Target, *more: str) -> Any:
    command = [sys.executable, "-m", "tests.bench.load", "--port", str(source.port), "--seconds", "0.2", "--ramp", "0.05", *more]
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)


def test_each_call_on_a_schedule_is_made(source: Target) -> None:
    told = straight(source, "--connections", "2", "--rate", "200")
    assert told["failures"] == 0, told["failure"]
    assert 0 < told["calls"] <= 60


def test_the_events_of_a_stream_carry_when_they_were_made(source: Target) -> None:
    told = straight(source, "--connections", "3", "--stream", "--gap-us", "2000", "--events", str(EVENTS))
    assert told["failures"] == 0, told["failure"]
    assert told["events"] >= told["calls"] > 0
    assert 0 <= told["delay_ms"]["p50"] <= told["delay_ms"]["p99"] < 60_000


SHEDS = b"""
import socket, threading
REFUSAL = b'{"code":"overloaded"}'
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    client, _ = server.accept()
    while client.recv(65536):
        client.sendall(b"HTTP/1.1 503 Busy\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(REFUSAL))
        client.sendall(REFUSAL)
    client.close()
"""


@pytest.fixture
def overloaded() -> Iterator[Target]:
    """A target that sheds every call."""
    with subprocess.Popen([sys.executable, "-c", SHEDS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield Target("overloaded", int(process.stdout.readline()))
        process.kill()


def test_a_call_that_is_shed_is_a_failure_where_the_load_is_one_that_the_target_can_take(overloaded: Target) -> None:
    told = straight(overloaded)
    assert (told["calls"], told["failures"]) == (0, 1)
    assert told["failure"].startswith("HTTP/1.1 503")


def test_a_call_that_is_shed_is_made_again_where_the_load_is_meant_to_be_too_much(overloaded: Target) -> None:
    told = straight(overloaded, "--sheds")
    assert (told["calls"], told["failures"]) == (0, 0)


def test_streams_that_are_not_paced_come_whole(source: Target) -> None:
    told = straight(source, "--connections", "2", "--stream", "--gap-us", "0", "--events", "500")
    assert told["failures"] == 0, told["failure"]
    assert told["calls"] > 0


def test_an_answer_that_is_not_200_fails_the_run(source: Target) -> None:
    told = straight(source, "--path", "/v1/refused")
    assert told["calls"] == 0
    assert "404" in told["failure"]


@pytest.mark.parametrize("name", [BARE, STACK, SQLITE])
def test_a_target_answers_every_call_and_every_event(name: str, source: Target, everywhere: Cores, tmp_path: Path) -> None:
    measure = Measure(source, everywhere, seconds=0.3)
    with started(name, Place(tmp_path / "target", source.port, everywhere)) as target:
        calls, streams = measure(target, CALLS), measure(target, STREAM)
        assert not target.troubles()
    assert calls["calls_s"] > 0
    assert calls["cpu_us_call"] >= 0
    assert streams["chunks_s"] > 0
