"""What the clients themselves cost: CPU of this process per small JSON call and per streamed chunk, against the canned provider in another.

    python -m tests.bench.client [--rounds 7] [--calls 2000] [--at-once 16]

The clients take turns, and the least of the rounds counts: noise only adds.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager

import uvloop

from gateway.upstream import AiohttpUpstream, Endpoint, LeanUpstream, Upstream, UpstreamRequest

_HEADERS = [
    ("content-type", "application/json"),
    ("accept", "application/json"),
    ("user-agent", "OpenAI/Python 2.8.0"),
    ("x-stainless-lang", "python"),
    ("x-stainless-package-version", "2.8.0"),
    ("x-stainless-retry-count", "0"),
    ("authorization", "Bearer sk-bench-0123456789"),
]
_JSON = b'{"model":"bench-model","messages":[{"role":"user","content":"' + b"a word " * 40 + b'"}]}'
_STREAMED = _JSON[:-1] + b',"stream":true}'
_TOKENS, _STREAMS = 200, 20


@contextmanager
def canned(tokens: int, gap_ms: float) -> Iterator[int]:
    command = [sys.executable, "-m", "tests.bench.canned", "--tokens", str(tokens), "--gap-ms", str(gap_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(json.loads(process.stdout.readline())["port"])
        finally:
            process.terminate()


async def _calls(upstream: Upstream, url: str, calls: int) -> None:
    for _ in range(calls):
        answer = await upstream.open(UpstreamRequest(url, "POST", _HEADERS, _JSON))
        assert len(await answer.read(1 << 20)) > 100
        answer.release()


async def _stream(upstream: Upstream, url: str) -> None:
    size = 0

    def take(piece: bytes) -> bool:
        nonlocal size
        size += len(piece)
        return True

    answer = await upstream.open(UpstreamRequest(url, "POST", _HEADERS, _STREAMED))
    assert await answer.pour(take)
    assert size > 100
    answer.release()


async def _at_once(works: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*works)


async def _cpu_us(work: Awaitable[None], units: int) -> float:
    began = time.process_time()
    await work
    return (time.process_time() - began) / units * 1e6


async def _round(upstream: Upstream, url: str, calls: int, at_once: int) -> dict[str, float]:
    each = calls // at_once
    return {
        "JSON call, one at a time": await _cpu_us(_calls(upstream, url, calls), calls),
        f"JSON call, {at_once} at a time": await _cpu_us(
            _at_once(_calls(upstream, url, each) for _ in range(at_once)), each * at_once
        ),
        f"chunk, {_STREAMS} streams": await _cpu_us(
            _at_once(_stream(upstream, url) for _ in range(_STREAMS)), _STREAMS * _TOKENS
        ),
    }


async def _measure(url: str, rounds: int, calls: int, at_once: int) -> None:
    clients: dict[str, Upstream] = {"lean": LeanUpstream(Endpoint()), "aiohttp": AiohttpUpstream(Endpoint())}
    best: dict[str, dict[str, float]] = {name: {} for name in clients}
    for _ in range(rounds):
        for name, upstream in clients.items():
            for work, cpu_us in (await _round(upstream, url, calls, at_once)).items():
                best[name][work] = min(best[name].get(work, cpu_us), cpu_us)
    for upstream in clients.values():
        await upstream.close()
    print(f"{'CPU µs per':30} {'lean':>8} {'aiohttp':>8}")
    for work in best["lean"]:
        print(f"{work:30} {best['lean'][work]:8.1f} {best['aiohttp'][work]:8.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=16)
    options = parser.parse_args()
    with canned(_TOKENS, 5) as port:
        uvloop.run(_measure(f"http://127.0.0.1:{port}/v1/chat/completions", options.rounds, options.calls, options.at_once))
