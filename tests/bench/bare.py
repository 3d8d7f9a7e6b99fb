"""The same stack without budget work: the gateway's own edge and its own provider client, with nothing between them."""

import argparse
import asyncio
import json
import sys

import uvloop

from gateway.server.edge import Edge, Limits
from gateway.server.guards import Guards
from gateway.server.routes import Routes
from gateway.upstream import AiohttpUpstream, Endpoint, UpstreamRequest
from gateway.wire.exchange import Inbound, Outlet
from gateway.wire.headers import forwardable, returnable

_MAX_ANSWER = 32 * 2**20


class PassThrough:
    """Request in, request out, bytes back."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url}/chat/completions"
        self._upstream = AiohttpUpstream(Endpoint())

    async def serve(self, inbound: Inbound, outlet: Outlet) -> None:
        headers = [*forwardable(inbound.headers), ("Authorization", inbound.headers["Authorization"])]
        answer = await self._upstream.open(UpstreamRequest(self._url, inbound.method, headers, inbound.body))
        try:
            if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                await outlet.start(answer.status, returnable(answer.headers))
                async for chunk in answer.chunks():
                    await outlet.write(chunk)
                await outlet.finish()
            else:
                body = await answer.read(_MAX_ANSWER)
                await outlet.answer(answer.status, returnable(answer.headers), body)
        finally:
            answer.release()


def _report(where: str, failure: BaseException) -> None:
    sys.stderr.write(f"{where}: {failure!r}\n")


async def _serve(base_url: str) -> None:
    through = PassThrough(base_url)
    edge = Edge(Routes({("POST", "/v1/chat/completions"): through.serve}), Limits(), Guards(), _report)
    port = await edge.listen("127.0.0.1", 0)
    sys.stdout.write(json.dumps({"port": port}) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    uvloop.run(_serve(parser.parse_args().upstream))
