"""Asks the gateway's own pages without HTTP: through the real route table, as a caller with some key."""

from collections.abc import Sequence
from typing import Any

import orjson
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.identity import ANONYMOUS, Principal
from gateway.server.routes import Miss, Route, Routes, Visit
from gateway.wire.exchange import Inbound, Reply
from gateway.wire.problem import Refused, problem


def principal_of(headers: CIMultiDictProxy[str]) -> Principal:
    """`Authorization: a` is the key `key_a`; `admin` is the admin, `anonymous` nobody in particular; none is refused."""
    name = headers.get("Authorization")
    if name is None:
        raise Refused(problem("invalid_key", "no key"))
    return Principal("default", name if name in ("admin", ANONYMOUS) else f"key_{name}", admin=name == "admin")


class Asking:
    """`await ask("GET", "/budget/runs", as_="a")` → (status, the JSON object)."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = Routes({}, routes)

    async def __call__(
        self, method: str, target: str, body: object = None, as_: str | None = "a", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        reply = await self.reply(method, target, body, as_, **headers)
        return reply.status, orjson.loads(reply.body)

    async def reply(self, method: str, target: str, body: object = None, as_: str | None = "a", **more: str) -> Reply:
        """`more` headers, `_` for `-`: `X_Run_Id="r1"`."""
        path, _, query = target.partition("?")
        given = {name.replace("_", "-"): value for name, value in more.items()}
        headers = CIMultiDictProxy(CIMultiDict(given if as_ is None else {"Authorization": as_, **given}))
        raw = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        inbound = Inbound(method, path, query, None, headers, raw, "req_1")
        found = self._routes.find(method, path)
        if isinstance(found, Miss):
            return Reply(found.problem.status, found.problem.body(), found.problem.headers())
        assert isinstance(found, Visit)
        try:
            return await found.page(inbound, found.parameters)
        except Refused as refused:
            return Reply(refused.problem.status, refused.problem.body(), [*refused.problem.headers(), *refused.headers])
