"""The same stack without budget work: the gateway's own edge and the provider client that it uses by default, with nothing between them."""

import argparse
import asyncio
import gc
import json
import sys

import uvloop

from gateway.app import _CLIENTS
from gateway.config_file import UpstreamFile
from gateway.server.edge import Edge, Limits
from gateway.server.guards import Guards
from gateway.server.routes import Routes
from gateway.upstream import Endpoint, UpstreamRequest
from gateway.wire.exchange import Inbound, Outlet
from gateway.wire.headers import forwardable, returnable

_MAX_ANSWER = 32 * 2**20


class PassThrough:
    """Request in, request out, bytes back; streams in the connection's callback, as the gateway relays them."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url}/chat/completions"
        self._upstream = _CLIENTS[UpstreamFile().client](Endpoint())

    async def serve(self, inbound: Inbound, outlet: Outlet) -> None:
        headers = [*forwardable(inbound.headers), ("Authorization", inbound.headers["Authorization"])]
        answer = await self._upstream.open(UpstreamRequest(self._url, inbound.method, headers, inbound.body))
        try:
            if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                await outlet.start(answer.status, returnable(answer.headers))
                while not await answer.pour(outlet.put):
                    await outlet.room()
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
    gc.collect()  # as a gateway does before it serves
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    sys.stdout.write(json.dumps({"port": port}) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bare")
    parser.add_argument("--upstream", required=True, help="such as http://127.0.0.1:9000/v1")
    uvloop.run(_serve(parser.parse_args().upstream))
