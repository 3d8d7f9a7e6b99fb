"""A provider so lean that it is never what is measured: fixed bytes over non-blocking sockets and one epoll loop, JSON at once or a stream
at a steady pace. What a request wants, its text says, so that it passes through every proxy: `pace:EVENTS:GAP_US` (a gap of 0: all at once).

    python -m tests.bench.canned [--port 0] [--events 100] [--gap-ms 20]      prints {"port": …}

Each event of a stream carries the microsecond at which it was made, on the clock that all processes of the machine share. An event that
finds its connection full waits with the time it has. `GET /lateness` tells how late events were made, and counts anew.
"""

import argparse
import gc
import json
import re
import select
import socket
import sys
from array import array
from time import perf_counter, perf_counter_ns
from typing import Final

from tests.bench.machine import allow_many_files
from tests.bench.wheel import Wheel

STAMP_WRAPS: Final = 10**9  # microseconds: longer than any run
WORDS: Final = " river" * 60  # an answer's text
BACKLOG: Final = 4096
_HEAD: Final = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 1_700_000_000, "model": "bench-model"}
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ASKED: Final = re.compile(rb"POST /v1/chat/completions ")
_STREAMS: Final = re.compile(rb'"stream": ?true')
_PACE: Final = re.compile(rb"pace:(\d+):(\d+)")
_BYTES_A_TOKEN: Final = 4


def usage(request_bytes: int, output_tokens: int) -> dict[str, int]:
    prompt = request_bytes // _BYTES_A_TOKEN + 1
    return {"prompt_tokens": prompt, "completion_tokens": output_tokens, "total_tokens": prompt + output_tokens}


def plain(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def whole(request_bytes: int) -> bytes:
    """A JSON answer."""
    message = {"role": "assistant", "content": WORDS, "refusal": None}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return plain(_dumped({**_HEAD, "choices": choices, "usage": usage(request_bytes, 60)}))


def _dumped(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _event(choices: list[object], used: object = None) -> bytes:
    data = b"data: %b\n\n" % _dumped({**_HEAD, "object": "chat.completion.chunk", "choices": choices, "usage": used})
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_BEFORE_STAMP, _AFTER_STAMP = _event([{"index": 0, "delta": {"content": " 000000000"}, "finish_reason": None}]).split(
    b"000000000"
)


def token() -> bytes:
    return b"%b%09d%b" % (_BEFORE_STAMP, perf_counter_ns() // 1000 % STAMP_WRAPS, _AFTER_STAMP)


def stream_end(request_bytes: int, events: int) -> bytes:
    finish = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    return finish + _event([], usage(request_bytes, events)) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Connection:
    """One request after the other. `due_s` is when the next event of its stream is to be made."""

    __slots__ = ("due_s", "end", "events_left", "gap_s", "pending", "received", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.pending = b""  # made, and not taken by the connection yet
        self.events_left = 0
        self.gap_s = 0.0
        self.due_s = 0.0
        self.end = b""


class Provider:
    """`run` serves for ever."""

    def __init__(self, listening: socket.socket, events: int, gap_s: float) -> None:
        self._listening = listening
        self._events, self._gap_s = events, gap_s
        self._poll = select.epoll()
        self._poll.register(listening.fileno(), select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._wheel: Wheel[Connection] = Wheel(perf_counter())
        self._buffer = bytearray(1 << 18)
        self._view = memoryview(self._buffer)
        self._answers: dict[int, bytes] = {}
        self._late_s = array("d")

    def run(self) -> None:
        poll, wheel = self._poll, self._wheel
        while True:
            wait_s = wheel.wait_s(perf_counter())
            if wait_s is None:
                ready = poll.poll(-1, 1024)
            else:
                if wait_s:
                    select.select((poll,), (), (), wait_s)  # epoll itself waits whole milliseconds only
                ready = poll.poll(0, 1024)
            for fd, what in ready:
                connection = self._connections.get(fd)
                if connection is None:
                    self._accept()
                elif what & ~(select.EPOLLIN | select.EPOLLOUT):
                    self._close(connection)
                else:
                    if what & select.EPOLLOUT:
                        self._flush(connection)
                    if what & select.EPOLLIN:
                        self._readable(connection)
            now = perf_counter()
            for connection in wheel.take(now):
                self._tick(connection, now)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[sock.fileno()] = Connection(sock)
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def _close(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        if fd >= 0:
            del self._connections[fd]
            connection.sock.close()  # which takes it out of the epoll too
            connection.events_left = 0

    def _readable(self, connection: Connection) -> None:
        try:
            size = connection.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._close(connection)
            return
        data = connection.received + self._view[:size] if connection.received else self._view[:size].tobytes()
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            said = _LENGTH.search(data, 0, head + 2)
            length = int(said[1]) if said else 0
            if len(data) >= head + 4 + length:
                connection.received = data[head + 4 + length :]
                self._asked(connection, data, head + 4, length)
                return
        connection.received = data

    def _asked(self, connection: Connection, data: bytes, start: int, length: int) -> None:
        if data.startswith(b"GET"):
            self._send(connection, self._told() if data.startswith(b"GET /lateness ") else plain(b'{"object":"list","data":[]}'))
        elif not length or not _ASKED.match(data):
            self._send(
                connection,
                plain(b'{"error":{"message":"chat completions with a Content-Length, nothing else"}}', "404 Not Found"),
            )
        elif _STREAMS.search(data, start):
            self._open(connection, data, start, length)
        else:
            answer = self._answers.get(length)
            if answer is None:
                answer = self._answers[length] = whole(length)
            self._send(connection, answer)

    def _open(self, connection: Connection, data: bytes, start: int, length: int) -> None:
        asked = _PACE.search(data, start)
        events, gap_s = (int(asked[1]), int(asked[2]) / 1e6) if asked else (self._events, self._gap_s)
        connection.end = stream_end(length, events)
        if not gap_s:
            self._send(connection, b"".join((STREAM_HEAD, *(token() for _ in range(events)), connection.end)))
            return
        connection.gap_s = gap_s
        connection.events_left = events - 1
        self._send(connection, STREAM_HEAD + token())
        connection.due_s = perf_counter() + gap_s
        self._wheel.add(connection.due_s, connection)

    def _tick(self, connection: Connection, now: float) -> None:
        """The next event, on a grid from the start, so that a late one does not make all later ones late."""
        if connection.sock.fileno() < 0:
            return
        self._late_s.append(now - connection.due_s)
        if connection.events_left > 0:
            connection.events_left -= 1
            self._send(connection, token())
            connection.due_s += connection.gap_s
            self._wheel.add(connection.due_s, connection)
        else:
            self._send(connection, connection.end)

    def _send(self, connection: Connection, data: bytes) -> None:
        if connection.pending:
            connection.pending += data
            return
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        if sent < len(data):
            connection.pending = data[sent:]
            self._poll.modify(connection.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, connection: Connection) -> None:
        data, connection.pending = connection.pending, b""
        self._poll.modify(connection.sock.fileno(), select.EPOLLIN)
        self._send(connection, data)

    def _told(self) -> bytes:
        late = sorted(self._late_s)
        self._late_s = array("d")
        return plain(_dumped({"events": len(late), "late_p99_ms": late[len(late) * 99 // 100] * 1000 if late else 0.0}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.canned")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--events", "--tokens", type=int, default=100, help="of a stream that names no pace")
    parser.add_argument("--gap-ms", type=float, default=20)
    options = parser.parse_args()
    allow_many_files()
    gc.disable()  # no cycles are made here
    listening = socket.create_server(("127.0.0.1", options.port), backlog=BACKLOG)
    listening.setblocking(False)
    sys.stdout.write(json.dumps({"port": listening.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    Provider(listening, options.events, options.gap_ms / 1000).run()


if __name__ == "__main__":
    main()
