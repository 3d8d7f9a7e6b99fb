"""A scripted OpenAI-compatible provider on loopback, for the demo and for trying things out: no key, no network, an exact bill.

    python -m gateway.demo.provider --port 9800 --price big=15:75 --price small=1:5

prints one JSON line when it listens. Beside `POST /v1/chat/completions` (JSON and SSE) and `GET /v1/models` it answers
`GET /__bill` (what was billed so far), `DELETE /__bill` (start a new one) and `POST /__script` (`{"replies": [{"text": "…"}, …]}`:
directions for the next replies, one each). Models without a price do not exist here.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from typing import Final

import orjson
from aiohttp import web

from gateway.bundled import load_encoding
from gateway.demo.bill import Bill, Price
from gateway.demo.replies import AS_ASKED, DONE, BadRequest, Reply, Script, Writer, json_answer, stream_events

MAX_BODY = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast replies come. One event carries `tokens_per_event` tokens; a JSON answer takes as long as its stream would."""

    first_byte_ms: float = 0
    event_ms: float = 0
    tokens_per_event: int = 1


AT_ONCE: Final = Pace()


@dataclass(slots=True)
class Provider:
    """The provider's state: its bill and the directions that wait. One event loop."""

    writer: Writer
    prices: Mapping[str, Price]
    pace: Pace = AT_ONCE
    bill: Bill = field(init=False)
    scripts: deque[Script] = field(default_factory=deque)
    serials: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.bill = Bill(self.prices)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/__bill", self._show_bill)
        app.router.add_delete("/__bill", self._clear_bill)
        app.router.add_post("/__script", self._take_scripts)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "scripted"} for name in self.prices]
        return _json(200, {"object": "list", "data": data})

    async def _show_bill(self, _: web.Request) -> web.Response:
        return _json(200, self.bill.as_object())

    async def _clear_bill(self, _: web.Request) -> web.Response:
        self.bill.calls.clear()
        return web.Response(status=204)

    async def _take_scripts(self, request: web.Request) -> web.Response:
        try:
            scripts = read_scripts(await request.read())
        except ValueError as error:
            return _error(400, str(error), None)
        self.scripts.extend(scripts)
        return web.Response(status=204)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        try:
            body = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            return _error(400, f"We could not parse the JSON body of your request: {error}", None)
        if not isinstance(body, dict):
            return _error(400, "The body must be a JSON object.", None)
        if body.get("model") not in self.prices:
            return _error(404, f"The model {body.get('model')!r} does not exist.", "model", "model_not_found")
        try:
            script = self.scripts.popleft() if self.scripts else AS_ASKED
            reply = self.writer.reply(body, script, next(self.serials))
        except BadRequest as error:
            return _error(400, str(error), error.param)
        await asyncio.sleep(self.pace.first_byte_ms / 1000)
        if body.get("stream"):
            return await self._stream(request, reply, body)
        await asyncio.sleep(self.pace.event_ms / 1000 * reply.completion_tokens / self.pace.tokens_per_event)
        self._charge(reply, reply.completion_tokens, "whole")
        return web.Response(body=json_answer(reply, int(time.time()), reply.usage()), content_type="application/json")

    async def _stream(self, request: web.Request, reply: Reply, body: Mapping[str, object]) -> web.StreamResponse:
        options = body.get("stream_options")
        events = stream_events(
            reply,
            int(time.time()),
            ask_usage=isinstance(options, dict) and options.get("include_usage") is True,
            tokens_per_event=self.pace.tokens_per_event,
        )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"})
        generated, ended = 0, "cut"
        try:
            await response.prepare(request)
            for event in events:
                generated += event.tokens
                await response.write(event.data)
                if event.tokens and self.pace.event_ms:
                    await asyncio.sleep(self.pace.event_ms / 1000)
            ended = "whole"
        except ConnectionResetError:
            return response  # the client left: what was generated until then is billed
        finally:
            self._charge(reply, generated, ended)
        # The bill is written before the client can know that the answer is complete.
        await response.write(DONE.data)
        await response.write_eof()
        return response

    def _charge(self, reply: Reply, generated: int, ended: str) -> None:
        self.bill.add(reply.model, reply.prompt_tokens, reply.cached_tokens, generated, ended)


def read_scripts(body: bytes) -> Sequence[Script]:
    """`{"replies": [{…}]}`, each object with the fields of `Script`. ValueError says what is wrong."""
    wanted = orjson.loads(body)
    replies = wanted.get("replies") if isinstance(wanted, dict) else None
    if not isinstance(replies, list):
        raise ValueError('expected {"replies": [{…}, …]}')
    known = {one.name for one in fields(Script)}
    for reply in replies:
        if not isinstance(reply, dict) or not reply.keys() <= known:
            raise ValueError(f"each reply is an object with any of: {', '.join(sorted(known))}")
    return [Script(**reply) for reply in replies]


def _json(status: int, value: object) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _error(status: int, message: str, param: str | None, code: str | None = None) -> web.Response:
    return _json(status, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.demo.provider", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free one; the JSON line tells which")
    parser.add_argument(
        "--price", action="append", default=[], metavar="MODEL=IN:OUT[:CACHED]", help="dollars per million tokens"
    )
    parser.add_argument("--encoding", default="o200k_base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", default="40-400", metavar="MIN-MAX", help="length of replies")
    parser.add_argument("--first-byte-ms", type=float, default=0)
    parser.add_argument("--event-ms", type=float, default=0, help="pause after each event of a stream")
    parser.add_argument("--tokens-per-event", type=int, default=1)
    return parser.parse_args(argv)


def _provider(options: argparse.Namespace) -> Provider:
    shortest, longest = (int(part) for part in options.tokens.split("-"))
    prices = {}
    for priced in options.price or ["big-model=15:75", "small-model=1:5"]:
        name, _, text = priced.partition("=")
        prices[name] = Price.parse(text)
    writer = Writer(load_encoding(options.encoding), options.seed, shortest, longest)
    return Provider(writer, prices, Pace(options.first_byte_ms, options.event_ms, options.tokens_per_event))


async def _serve(provider: Provider, port: int) -> None:
    runner = web.AppRunner(provider.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
    await site.start()
    port = runner.addresses[0][1]
    sys.stdout.write(json.dumps({"ready": True, "port": port, "base_url": f"http://127.0.0.1:{port}/v1"}) + "\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await stop.wait()
    await runner.cleanup()


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    try:
        provider = _provider(options)
    except (ValueError, ArithmeticError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    asyncio.run(_serve(provider, options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
