"""A load generator in a process of its own: N connections, each one call after the other, over bare asyncio. Prints JSON.

JSON: the time of each call. Streams: how late each event arrived, counted from the request on the provider's own grid.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Final, cast

import uvloop

_FILLER: Final = (
    "The river rises in the hills, runs past the mill and the old stone houses, and leaves what it carries at the gate. " * 12
)


def request(path: str, connection: int, stream: bool, salt: str) -> tuple[bytes, bytes]:
    """A call's bytes before and after a nine-digit number that makes every call's last message new."""
    options = '"stream":true,"stream_options":{"include_usage":true},' if stream else ""
    before = f'{{"model":"bench-model",{options}"max_tokens":256,"messages":[{{"role":"system","content":"{_FILLER}"}},'
    before += '{"role":"user","content":"Question number '
    after = f', about rivers: {salt}. How long is it?"}}]}}'
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer sk-bench\r\nContent-Type: application/json\r\n"
        f"X-Run-Id: bench-{salt}-{connection}\r\nContent-Length: {len(before) + 9 + len(after)}\r\n\r\n"
    )
    return (head + before).encode(), after.encode()


class Caller(asyncio.Protocol):
    """One connection. `samples` are seconds: of whole calls, or of each event's lateness."""

    def __init__(self, parts: tuple[bytes, bytes], stream: bool, gap_s: float, until: float) -> None:
        self._before, self._after = parts
        self._stream, self._gap_s, self._until = stream, gap_s, until
        self._buffer = bytearray()
        self._sent_at = 0.0
        self._events = 0
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.calls = 0
        self.samples: list[float] = []
        self.failure = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.failure = self.failure or f"the connection was lost: {exc}"
            self.done.set_result(None)

    def _send(self) -> None:
        assert self._transport is not None
        self._buffer.clear()
        self._events = 0
        self._sent_at = time.perf_counter()
        self._transport.write(self._before + b"%09d" % self.calls + self._after)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self._buffer and not data.startswith(b"HTTP/1.1 200"):
            return self._fail(data)
        self._buffer += data
        if self._stream:
            self._late(data, now)
            if self._buffer.endswith(b"0\r\n\r\n"):
                self._ended()
        elif self._is_whole():
            self.samples.append(now - self._sent_at)
            self._ended()
        return None

    def _late(self, data: bytes, now: float) -> None:
        """The token events come on a grid; the finish and the usage come with the last."""
        for _ in range(data.count(b'"content":" river"')):
            self.samples.append(now - self._sent_at - self._events * self._gap_s)
            self._events += 1

    def _is_whole(self) -> bool:
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return False
        at = self._buffer.lower().find(b"content-length:", 0, head)
        return len(self._buffer) == head + 4 + int(self._buffer[at + 15 : head].split(b"\r\n", 1)[0])

    def _ended(self) -> None:
        self.calls += 1
        if time.perf_counter() < self._until:
            self._send()
        else:
            self._finish()

    def _fail(self, data: bytes) -> None:
        self.failure = data[:800].decode(errors="replace")
        self._finish()

    def _finish(self) -> None:
        assert self._transport is not None
        self.done.set_result(None)
        self._transport.close()


def percentile(samples: Sequence[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


async def load(options: argparse.Namespace) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    callers = []
    for number in range(options.connections):
        parts = request(options.path, number, options.stream, options.salt)
        _, caller = await loop.create_connection(
            lambda parts=parts: Caller(parts, options.stream, options.gap_ms / 1000, began + options.seconds),
            "127.0.0.1",
            options.port,
        )
        callers.append(caller)
    await asyncio.gather(*(caller.done for caller in callers))
    seconds = time.perf_counter() - began
    samples = [sample for caller in callers for sample in caller.samples]
    failures = [caller.failure for caller in callers if caller.failure]
    return {
        "calls": sum(caller.calls for caller in callers),
        "samples": len(samples),
        "seconds": seconds,
        "p50_ms": percentile(samples, 0.50) * 1000,
        "p99_ms": percentile(samples, 0.99) * 1000,
        "failures": len(failures),
        "failure": failures[0] if failures else "",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--gap-ms", type=float, default=20)
    parser.add_argument("--salt", default="x")
    json.dump(uvloop.run(load(parser.parse_args())), sys.stdout)
