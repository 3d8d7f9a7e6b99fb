"""A provider so lean that it is never what is measured: fixed bytes over bare asyncio, JSON at once or a stream at a steady pace."""

import argparse
import asyncio
import json
import sys
from typing import cast

import orjson
import uvloop

PROMPT_TOKENS = 300
_HEAD = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 0, "model": "bench-model"}
_TEXT = " river" * 60
_USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 60, "total_tokens": PROMPT_TOKENS + 60}
_MESSAGE = {"role": "assistant", "content": _TEXT, "refusal": None}
_BODY = orjson.dumps({**_HEAD, "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}], "usage": _USAGE})
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


def _event(choices: list[object], usage: object = None) -> bytes:
    data = b"data: %b\n\n" % orjson.dumps({**_HEAD, "object": "chat.completion.chunk", "choices": choices, "usage": usage})
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = _event([{"index": 0, "delta": {"content": " river"}, "finish_reason": None}])


def stream_end(tokens: int) -> bytes:
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}
    finish = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    return finish + _event([], usage) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Canned(asyncio.Protocol):
    """One connection: one request after the other."""

    def __init__(self, tokens: int, gap_s: float) -> None:
        self._tokens, self._gap_s = tokens, gap_s
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer[:head].lower().find(b"content-length:")
        length = int(self._buffer[at + 15 : head].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < head + 4 + length:
            return
        body, self._buffer = self._buffer[head + 4 :], b""
        assert self._transport is not None
        if b'"stream":true' in body:
            self._transport.write(STREAM_HEAD)
            loop = asyncio.get_running_loop()
            self._tick(loop, loop.time(), 0)
        else:
            self._transport.write(ANSWER)

    def _tick(self, loop: asyncio.AbstractEventLoop, began: float, sent: int) -> None:
        assert self._transport is not None
        if sent == self._tokens:
            self._transport.write(stream_end(self._tokens))
            return
        self._transport.write(TOKEN)
        # On a grid from the start, so that a late tick does not make all later ones late.
        self._timer = loop.call_at(began + (sent + 1) * self._gap_s, self._tick, loop, began, sent + 1)


async def _serve(tokens: int, gap_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Canned(tokens, gap_s), "127.0.0.1", 0, backlog=2048)
    sys.stdout.write(json.dumps({"port": server.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--gap-ms", type=float, default=20)
    options = parser.parse_args()
    uvloop.run(_serve(options.tokens, options.gap_ms / 1000))
