"""Many calls at once, as plain HTTP: what a client sees, without an SDK's retries or opinions.

async with caller(gateway.url) as call:
    seen = await asyncio.gather(*(call(chat("hello", max_tokens=10), run="r1") for _ in range(200)))
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from gateway.core.money import parse_usd
from tests.support.gateway import CALLER_KEY


def chat(text: str = "What is a penstock?", model: str = "big-model", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer. `whole`: it ended as its framing says. Status 0: there was none."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def code(self) -> str | None:
        """Of a refusal in the gateway's shape."""
        return self.json["code"] if self.headers.get("Content-Type") == "application/problem+json" else None

    @property
    def finished(self) -> bool:
        """A stream to its last event, or a whole JSON answer."""
        streamed = self.headers.get("Content-Type", "").startswith("text/event-stream")
        return self.status == 200 and self.whole and (not streamed or self.body.endswith(b"data: [DONE]\n\n"))


Send = Callable[..., Awaitable[Seen]]


@asynccontextmanager
async def caller(url: str, key: str = CALLER_KEY) -> AsyncIterator[Send]:
    """Yields `send(body, run=…, **headers)`; each call may have a connection of its own. `_` in a header's name stands for `-`."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def send(body: Any, run: str | None = None, at: str = url, **headers: str) -> Seen:
            sent = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            sent |= {"X-Run-Id": run} if run is not None else {}
            sent |= {name.replace("_", "-"): value for name, value in headers.items()}
            raw = body if isinstance(body, bytes) else orjson.dumps(body)
            try:
                async with session.post(f"{at}/v1/chat/completions", data=raw, headers=sent) as answer:
                    body, whole = bytearray(), True
                    try:
                        async for piece in answer.content.iter_any():
                            body += piece
                    except aiohttp.ClientError:
                        whole = False
                    return Seen(answer.status, answer.headers, bytes(body), whole)
            except (aiohttp.ClientError, OSError):
                return Seen(0, {}, b"", whole=False)

        yield send


async def until(condition: Callable[[], Any], within_s: float) -> None:
    """Waits for a condition that asks a gateway or a provider, in a thread: other calls go on meanwhile."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not await asyncio.to_thread(condition):
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.05)


def statuses(seen: Iterable[Seen]) -> dict[int, int]:
    """How many of each: `{200: 10, 402: 190}`."""
    counted: dict[int, int] = {}
    for each in seen:
        counted[each.status] = counted.get(each.status, 0) + 1
    return counted


def microcents(usd: str) -> int:
    """A decimal string of the budget API."""
    return int(parse_usd(usd))
