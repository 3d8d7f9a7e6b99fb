"""A load generator in a process of its own: many connections over non-blocking sockets and one epoll loop. Prints JSON.

    python -m tests.bench.load --port 8080 --connections 64 --seconds 4                       # JSON calls, one after the other on each
    python -m tests.bench.load --port 8080 --connections 16 --rate 1500                       # JSON calls on a fixed schedule
    python -m tests.bench.load --port 8080 --connections 256 --stream --events 100 --gap-us 50000

Closed loop: each connection makes one call after the other. With `--rate` the calls come on a fixed schedule, whatever the answers do, and a
call's latency counts from when it was due. Streams begin over the ramp, the first of each connection being of any length, so that ends
and beginnings are spread from the start; the window waits until all have begun; those under way at its end are cut.

Only what falls into the window of `--seconds` after the `--ramp` counts, and only an answer that is whole and right is a call: its status,
its length, its text, the number of its events and their end. One that is not fails the run. `--measure NAME=PID,…` gives the CPU time of that
process tree in the window, and its memory before the first connection and at the window's end.
"""

import argparse
import gc
import json
import os
import re
import select
import socket
import sys
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any, Final

from tests.bench.canned import STAMP_WRAPS, WORDS
from tests.bench.machine import allow_many_files, core_s, cpu_s, memory_kb, tree
from tests.bench.wheel import Wheel

FILLER: Final = (
    "The river rises in the hills, runs past the mill and the old stone houses, and leaves what it carries at the gate. " * 12
)
ENDS_WITHIN_S: Final = 60.0  # what is under way when the window ends
BEGIN_WITHIN_S: Final = 30.0  # all streams, after the ramp
BEGIN_UNDER_OVERLOAD_S: Final = 8.0
SETTLES_S: Final = 0.3
SHED_S: Final = 1.0  # until a call that was shed is made again
_TEXT: Final = WORDS.encode()
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_STAMP: Final = re.compile(rb'"content": ?" (\d{9})"')
_GOLDEN: Final = 0.618034
_MAX_EVENTS: Final = 1024  # of the epoll, at a time


class Wrong(Exception):
    """An answer is not what it has to be."""


class Chunks:
    """A chunked body off the wire, cut anywhere. `feed` → the bytes inside; `ended` after the last chunk."""

    __slots__ = ("_left", "_partial", "ended")

    def __init__(self) -> None:
        self._left = 0  # of the chunk that is being read, with the line end after it
        self._partial = b""  # of a chunk's first line
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        if self._partial:
            data = self._partial + data
            self._partial = b""
        inside = []
        at, size = 0, len(data)
        while at < size:
            if self._left:
                took = min(self._left, size - at)
                body = min(self._left - 2, took)
                if body > 0:
                    inside.append(data[at : at + body])
                self._left -= took
                at += took
                continue
            line = data.find(b"\r\n", at)
            if line < 0:
                self._partial = data[at:]
                break
            length = int(data[at:line].split(b";", 1)[0], 16)
            if not length:
                if size - line < 4:
                    self._partial = data[at:]
                    break
                if data[line : line + 4] != b"\r\n\r\n" or size - line > 4:
                    raise Wrong(f"after the last chunk: {data[line : line + 80]!r}")
                self.ended = True
                break
            self._left = length + 2
            at = line + 2
        return inside[0] if len(inside) == 1 else b"".join(inside)


class Events:
    """The events of one stream, of an answer's body cut anywhere. `feed` → their stamps, in microseconds."""

    __slots__ = ("_partial", "count", "done")

    def __init__(self) -> None:
        self._partial = b""
        self.count = 0
        self.done = False  # after `data: [DONE]`

    def feed(self, data: bytes) -> Sequence[bytes]:
        if self._partial:
            data = self._partial + data
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            self._partial = data
            return ()
        self._partial = data[end:] if end < len(data) else b""
        stamps = _STAMP.findall(data, 0, end)
        self.count += len(stamps)
        if data.find(b"data: [DONE]", 0, end) >= 0:
            self.done = True
        elif not stamps and b'"error"' in data:
            raise Wrong(data[:500].decode(errors="replace"))
        return stamps


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample that `share` of all are not above. 0 of none."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to load, and how."""

    port: int
    path: str
    connections: int
    seconds: float
    ramp: float
    stream: bool
    events: int
    gap_us: int
    rate: float  # calls a second, on a schedule; 0: each connection as fast as it is answered
    runs: str  # hot, connection or call: whose run id a call has
    sheds: bool  # 503 `overloaded` is an answer too: the call is made again a second later
    headers: Sequence[str]
    salt: str
    measured: dict[str, Sequence[int]] = field(default_factory=dict)
    core: int | None = None  # where what is measured runs


def request(plan: Plan, connection: int, events: int = 0) -> Callable[[int], bytes]:
    """What makes the bytes of a connection's call from its number. Every call's last message is new, and every request as long as the
    others."""
    options = '"stream":true,"stream_options":{"include_usage":true},' if plan.stream else ""
    pace = f" pace:{events:06d}:{plan.gap_us}" if plan.stream else ""
    before = f'{{"model":"bench-model",{options}"max_tokens":1024,"messages":[{{"role":"system","content":"{FILLER}"}},'
    before += f'{{"role":"user","content":"{pace}Question number '
    after = f' of {connection:06d}, about rivers: {plan.salt}. How long is it?"}}]}}'
    run = f"bench-{plan.salt}" + ("" if plan.runs == "hot" else f"-{connection:06d}")
    lines = [
        f"POST {plan.path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Authorization: Bearer sk-bench",
        "Content-Type: application/json",
        f"Content-Length: {len(before) + 9 + len(after)}",
        *plan.headers,
        f"X-Run-Id: {run}",
    ]
    head, rest = "\r\n".join(lines).encode(), b"\r\n\r\n" + before.encode()
    tail = after.encode()
    if plan.runs == "call":
        return lambda number: b"%b-%09d%b%09d%b" % (head, number, rest, number, tail)
    start = head + rest
    return lambda number: b"%b%09d%b" % (start, number, tail)


class Connection:
    """One connection and the call under way on it."""

    __slots__ = ("called_s", "chunks", "events", "make", "number", "received", "sock", "waits", "wanted")

    def __init__(self, number: int, make: Callable[[int], bytes]) -> None:
        self.number = number
        self.make = make  # the bytes of a call, from its number
        self.sock = socket.socket()
        self.received = b""  # of an answer's beginning
        self.called_s = 0.0  # or when the call was due
        self.waits = False  # for an answer
        self.wanted = 0  # events
        self.chunks: Chunks | None = None
        self.events: Events | None = None


class Generator:
    """`run` → what the window gave."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._poll = select.epoll()
        self._buffer = bytearray(1 << 18)
        self._view = memoryview(self._buffer)
        self._connections: dict[int, Connection] = {}
        self._free: list[Connection] = []  # with a rate: those with nothing under way
        self._queue: deque[float] = deque()  # with a rate: calls that were due when all connections were busy
        self._wheel: Wheel[Connection] = Wheel(perf_counter())
        self._numbers = 0  # calls made
        self._numbers_due = 0  # with a rate: calls that the schedule has come to
        self._began_s = 0.0
        self._until_s = float("inf")
        self._begun: set[int] = set()  # connections whose first stream has had an event
        self._counts = False  # inside the window
        self._under_way = 0
        self._last_s = 0.0  # when anything came
        self.calls = 0
        self.shed = 0
        self.failures = 0
        self.failure = ""
        self.call_s = array("d")
        self.first_s = array("d")  # of streams: to the first event
        self.delay_us = array("d")  # of events: from when they were made
        self.late_s = array("d")  # our own, with a schedule

    # -- the course of it ---------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        plan = self._plan
        memory = {name: memory_kb(_trees(pids)) for name, pids in plan.measured.items()}
        self._connect()
        self._began_s = perf_counter()
        self._begin()
        self._until(self._began_s + plan.ramp)
        if plan.stream:
            self._all_begin()
        self._until_s = perf_counter() + plan.seconds
        before = self._meter()
        self._counts = True
        self._until(self._until_s)
        self._counts = False
        after = self._meter()
        grown = {name: memory_kb(_trees(pids)) - memory[name] for name, pids in plan.measured.items()}
        if not plan.stream:
            self._last_calls()
        seconds = after["at"] - before["at"]
        return {
            "calls": self.calls,
            "seconds": seconds,
            "call_ms": _spread(self.call_s, 1e3),
            "first_ms": _spread(self.first_s, 1e3),
            "events": len(self.delay_us),
            "delay_ms": _spread(self.delay_us, 1e-3),
            "late_ms": _spread(self.late_s, 1e3),
            "streams": len(self._begun),
            "shed": self.shed,
            "own_cpu_s": after["own"] - before["own"],
            "core_s": after["core"] - before["core"],
            "cpu_s": {name: after[name] - before[name] for name in plan.measured},
            "grown_kb": grown,
            "failures": self.failures,
            "failure": self.failure,
        }

    def _connect(self) -> None:
        plan = self._plan
        for number in range(plan.connections):
            # The first streams are of any length, so that ends and beginnings are spread.
            wanted = max(1, int(plan.events * (number * _GOLDEN % 1))) if plan.stream else 0
            connection = Connection(number, self._maker(number, wanted))
            connection.wanted = wanted
            self._open(connection)

    def _maker(self, number: int, wanted: int) -> Callable[[int], bytes]:
        return request(self._plan, number, wanted)

    def _open(self, connection: Connection) -> None:
        connection.sock = sock = socket.create_connection(("127.0.0.1", self._plan.port), timeout=30)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[sock.fileno()] = connection
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def _begin(self) -> None:
        plan, began = self._plan, self._began_s
        if plan.rate:
            self._free = list(self._connections.values())
            return
        over = plan.ramp * 0.8 if plan.stream else plan.ramp * 0.2
        for connection in self._connections.values():
            self._wheel.add(began + over * connection.number / plan.connections, connection)

    def _all_begin(self) -> None:
        """However long a target takes to open them: the window begins when every stream runs, and has run for a while. Where the load may be
        too much, some may have to wait for ever; `streams` says how many ran."""
        plan = self._plan
        end = perf_counter() + (BEGIN_UNDER_OVERLOAD_S if plan.sheds else BEGIN_WITHIN_S)
        while len(self._begun) < plan.connections and not self.failures and perf_counter() < end:
            self._until(perf_counter() + 0.05)
        if len(self._begun) < plan.connections and not plan.sheds:
            self._fail(f"{len(self._begun)} of {plan.connections} streams began within {BEGIN_WITHIN_S:g} s")
        self._until(perf_counter() + SETTLES_S)

    def _until(self, end: float) -> None:
        """Loads until then; returns as soon after as what came together was dealt with."""
        plan = self._plan
        poll, wheel, began = self._poll, self._wheel, self._began_s
        now = perf_counter()
        while now < end:
            wait_s = end - now
            due = wheel.wait_s(now)
            if due is not None and due < wait_s:
                wait_s = due
            if plan.rate:
                next_s = began + self._numbers_due / plan.rate
                wait_s = min(wait_s, max(0.0, next_s - now))
            if wait_s > 0:
                select.select((poll,), (), (), wait_s)  # epoll itself waits whole milliseconds only
            for fd, _ in poll.poll(0, _MAX_EVENTS):
                self._readable(self._connections[fd])
            now = perf_counter()
            for connection in wheel.take(now):
                self._call(connection, now)
            if plan.rate:
                self._calls_due(began, now)

    def _calls_due(self, began: float, now: float) -> None:
        while (due := began + self._numbers_due / self._plan.rate) <= now:
            self._numbers_due += 1
            if self._free:
                if self._counts:
                    self.late_s.append(now - due)
                self._call(self._free.pop(), due)
            else:
                self._queue.append(due)

    def _last_calls(self) -> None:
        """Those under way have to end well too; they count no more."""
        end = perf_counter() + ENDS_WITHIN_S
        while self._under_way:
            if perf_counter() > end:
                self._fail(f"{self._under_way} calls had no answer {ENDS_WITHIN_S:g} s after the end")
                return
            for fd, _ in self._poll.poll(0.2, _MAX_EVENTS):
                self._readable(self._connections[fd])

    def _meter(self) -> dict[str, float]:
        plan = self._plan
        told = {name: cpu_s(_trees(pids)) for name, pids in plan.measured.items()}
        return {**told, "at": perf_counter(), "own": process_time(), "core": core_s(plan.core) if plan.core is not None else 0.0}

    # -- calls --------------------------------------------------------------------------------------------------------------

    def _call(self, connection: Connection, at_s: float) -> None:
        """A call that counts from `at_s`."""
        plan = self._plan
        if at_s >= self._until_s:
            return
        if plan.stream:
            if connection.called_s and connection.wanted != plan.events:
                connection.make, connection.wanted = request(plan, connection.number, plan.events), plan.events
            connection.chunks, connection.events = None, Events()
        self._numbers += 1
        data = connection.make(self._numbers)
        connection.called_s = at_s
        connection.waits = True
        self._under_way += 1
        try:
            sent = connection.sock.send(data)
        except OSError as failure:
            self._lost(connection, f"while a request was written: {failure}")
            return
        assert sent == len(data), "a request is no larger than a socket's buffer"

    def _readable(self, connection: Connection) -> None:
        try:
            size = connection.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as failure:
            self._lost(connection, str(failure))
            return
        if not size:
            self._lost(connection, "the connection was closed")
            return
        try:
            ended = self._received(connection, self._view[:size].tobytes())
        except Wrong as wrong:
            self._lost(connection, str(wrong))
            return
        if ended:
            self._ended(connection)

    def _received(self, connection: Connection, data: bytes) -> bool:
        """Whether the answer is whole."""
        assert connection.waits, f"bytes that nobody asked for: {data[:200]!r}"
        if connection.chunks is not None:
            return self._streamed(connection, connection.chunks, data)
        if connection.received:
            data = connection.received + data
        head = data.find(b"\r\n\r\n")
        if head < 0:
            connection.received = data
            return False
        if data[9:12] != b"200":
            if self._plan.sheds and data[9:12] == b"503":
                return self._was_shed(connection, data, head)
            raise Wrong(data[:800].decode(errors="replace"))
        if not self._plan.stream:
            connection.received = data
            return self._is_whole(data, head)
        connection.received = b""
        if not _CHUNKED.search(data, 0, head + 2):
            raise Wrong(f"a stream that is not chunked: {data[:800]!r}")
        connection.chunks = Chunks()
        return self._streamed(connection, connection.chunks, data[head + 4 :])

    def _is_whole(self, data: bytes, head: int) -> bool:
        return is_whole(data, head)

    def _was_shed(self, connection: Connection, data: bytes, head: int) -> bool:
        """Not an answer: the call is made again."""
        connection.received = data
        if not has_length(data, head) or b'"overloaded"' not in data:
            return False
        connection.received, connection.waits = b"", False
        self._under_way -= 1
        self.shed += self._counts
        self._wheel.add(perf_counter() + SHED_S, connection)
        return False

    def _streamed(self, connection: Connection, chunks: Chunks, data: bytes) -> bool:
        events = connection.events
        assert events is not None
        first = not events.count
        stamps = events.feed(chunks.feed(data))
        if stamps:
            now = perf_counter()
            if first:
                self._begun.add(connection.number)
            if self._counts:
                if first:
                    self.first_s.append(now - connection.called_s)
                now_us = int(now * 1e6) % STAMP_WRAPS
                for stamp in stamps:
                    self.delay_us.append((now_us - int(stamp)) % STAMP_WRAPS)
            if events.count > connection.wanted:
                raise Wrong(f"{events.count} events of {connection.wanted}")
        if not chunks.ended:
            return False
        if not events.done or events.count != connection.wanted:
            raise Wrong(f"a stream ended after {events.count} events of {connection.wanted}: {data[-300:]!r}")
        return True

    def _ended(self, connection: Connection) -> None:
        now = perf_counter()
        connection.waits = False
        connection.received = b""
        self._under_way -= 1
        if self._counts:
            self.calls += 1
            self.call_s.append(now - connection.called_s)
        if not self._plan.rate:
            self._call(connection, now)
        elif self._queue:
            self._call(connection, self._queue.popleft())
        else:
            self._free.append(connection)

    def _lost(self, connection: Connection, why: str) -> None:
        del self._connections[connection.sock.fileno()]
        connection.sock.close()
        if connection.waits:
            self._under_way -= 1
            self._fail(why)
        else:
            self._open(connection)  # a server may close what is idle

    def _fail(self, why: str) -> None:
        self.failures += 1
        self.failure = self.failure or why


def is_whole(data: bytes, head: int) -> bool:
    """Whether a JSON answer, whose head ends at `head`, is all there. Wrong where it is not the one that was asked for."""
    if _CHUNKED.search(data, 0, head + 2):
        chunks = Chunks()
        text = chunks.feed(data[head + 4 :])
        whole = chunks.ended
    else:
        text, whole = data, has_length(data, head)
    if whole and _TEXT not in text:
        raise Wrong(f"another text: {data[:800]!r}")
    return whole


def has_length(data: bytes, head: int) -> bool:
    """As many bytes as the answer's head says."""
    said = _LENGTH.search(data, 0, head + 2)
    if not said:
        raise Wrong(f"an answer of unknown length: {data[:800]!r}")
    missing = head + 4 + int(said[1]) - len(data)
    if missing < 0:
        raise Wrong(f"{-missing} bytes beyond the answer")
    return not missing


def _spread(samples: Sequence[float], factor: float) -> dict[str, float]:
    return {"p50": percentile(samples, 0.50) * factor, "p99": percentile(samples, 0.99) * factor}


def _trees(pids: Sequence[int]) -> Sequence[int]:
    return [below for pid in pids for below in tree(pid)]


def _measured(text: str) -> tuple[str, Sequence[int]]:
    name, _, pids = text.partition("=")
    return name, [int(pid) for pid in pids.split(",")]


def main(loading: type[Generator] = Generator) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--ramp", type=float, default=0.5)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--gap-us", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--runs", choices=("hot", "connection", "call"), default="connection")
    parser.add_argument("--sheds", action="store_true", help="503 `overloaded` is no failure: the call is made again")
    parser.add_argument("--header", action="append", default=[], help="NAME: VALUE")
    parser.add_argument("--salt", default=f"{os.getpid():07d}")
    parser.add_argument("--measure", type=_measured, action="append", default=[], help="NAME=PID,…")
    parser.add_argument("--core", type=int, help="where what is measured runs")
    options = parser.parse_args()
    allow_many_files()
    gc.disable()  # no cycles are made here
    given = vars(options)
    plan = Plan(headers=given.pop("header"), measured=dict(given.pop("measure")), **given)
    json.dump(loading(plan).run(), sys.stdout)


if __name__ == "__main__":
    main()
