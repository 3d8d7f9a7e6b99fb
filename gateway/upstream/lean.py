"""The client on httptools: no more than a provider's API needs of HTTP/1.1, at a small part of aiohttp's CPU (ADR 18)."""

import asyncio

from gateway.upstream.decoding import decoded
from gateway.upstream.dialing import Dialer, Proxy
from gateway.upstream.heads import request_head, target
from gateway.upstream.pool import Pool
from gateway.upstream.port import Answer, Endpoint, UpstreamRequest


class LeanUpstream:
    """One provider's connections. No redirects, no cookies, no environment; a POST is never repeated. To be made where a loop runs."""

    def __init__(self, endpoint: Endpoint) -> None:
        """ValueError: the endpoint's proxy can't be used."""
        loop = asyncio.get_running_loop()
        proxy = None if endpoint.proxy is None else Proxy.of(endpoint.proxy)
        self._proxy_headers = None if proxy is None else proxy.headers
        self._pool = Pool(endpoint, Dialer(proxy, loop), loop)

    async def open(self, request: UpstreamRequest) -> Answer:
        method = request.method
        aim = target(method, request.url, self._proxy_headers)
        head = request_head(method, aim.opening, request.headers, len(request.body))
        connection = await self._pool.connection(aim.origin)
        answer = await connection.ask(head, request.body, head_only=method == "HEAD")
        return decoded(answer) if "Content-Encoding" in answer.headers else answer

    async def close(self) -> None:
        await self._pool.close()
