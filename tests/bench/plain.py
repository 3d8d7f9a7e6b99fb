"""The bare aiohttp proxy: `aiohttp.web` and a `ClientSession`, written as their documentation shows them, on uvloop. Streams as they come."""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, TCPConnector, web

_NOT_FORWARDED = frozenset({"host", "content-length", "connection", "transfer-encoding", "keep-alive"})
_MAX_REQUEST = 32 * 2**20


def application(upstream: str) -> web.Application:
    client = web.AppKey("client", ClientSession)

    async def with_client(app: web.Application) -> AsyncIterator[None]:
        # As many connections as there are calls: the default of 100 would have the other streams wait.
        async with ClientSession(connector=TCPConnector(limit=0)) as session:
            app[client] = session
            yield

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _NOT_FORWARDED]
        body = await request.read()
        async with request.app[client].post(upstream + request.path, data=body, headers=headers) as answer:
            told = {"Content-Type": answer.headers["Content-Type"]}
            if answer.content_type != "text/event-stream":
                return web.Response(status=answer.status, headers=told, body=await answer.read())
            response = web.StreamResponse(status=answer.status, headers=told)
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response

    app = web.Application(client_max_size=_MAX_REQUEST)
    app.cleanup_ctx.append(with_client)
    app.router.add_post("/v1/{path:.*}", forward)
    return app


async def _serve(upstream: str) -> None:
    logging.disable()  # of streams that were cut
    runner = web.AppRunner(application(upstream), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
    await site.start()
    sys.stdout.write(json.dumps({"port": runner.addresses[0][1]}) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.plain")
    parser.add_argument("--upstream", required=True, help="such as http://127.0.0.1:9000")
    uvloop.run(_serve(parser.parse_args().upstream))
