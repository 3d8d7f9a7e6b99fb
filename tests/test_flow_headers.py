"""`X-Budget-*` on every answer of a metered call, however it ended: what was decided, what is left, which run."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.flow import chat, quick_retries, world
from tests.support.provider import Behaviour, FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

HELD = {
    "X-Budget-Decision",
    "X-Budget-Decision-Id",
    "X-Budget-Enforcement-Mode",
    "X-Budget-Price-Table-Version",
    "X-Budget-Remaining-USD",
    "X-Budget-Reservation-Id",
    "X-Run-Id",
}
BLOCKED = HELD - {"X-Budget-Reservation-Id"} | {"X-Budget-Blocking-Scope"}
NOT_DECIDED = {"X-Budget-Decision", "X-Run-Id"}


@pytest.mark.parametrize(
    ("behaviour", "request_body", "limit", "status", "headers"),
    [
        (Behaviour(), chat(), USD, 200, HELD),
        (Behaviour(), chat(stream=True), USD, 200, HELD),
        (Behaviour(status=422), chat(), USD, 422, HELD),
        (Behaviour(status=500), chat(stream=True), USD, 500, HELD),
        (Behaviour(status=429), chat(), USD, 429, HELD),
        (Behaviour(status=502), chat(), USD, 502, HELD),
        (Behaviour(reset=True), chat(), USD, 504, HELD),
        (Behaviour(), chat(), 1, 402, BLOCKED),
        (Behaviour(), chat(stream=True), 1, 402, BLOCKED),
        (Behaviour(), chat(model="someones-finetune"), USD, 400, NOT_DECIDED),
        (Behaviour(), b"{}", USD, 400, {"X-Budget-Decision"}),
    ],
)
async def test_every_answer_says_what_was_decided(
    tmp_path: Path,
    provider: FaultProvider,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: Behaviour,
    request_body: Any,
    limit: int,
    status: int,
    headers: set[str],
) -> None:
    quick_retries(monkeypatch)
    provider.default = behaviour
    async with world(tmp_path, provider.base_url, policy(budget("run-ceiling", "run", limit=limit))) as here:
        got = await here.ask(request_body)
        assert got.status == status, got.body
        ours = {name for name in got.headers if name.startswith(("X-Budget-", "X-Run-"))}
        assert ours == headers
        assert got.headers["X-Budget-Decision"] == ("allow" if headers is HELD else "block")
        if "X-Run-Id" in headers:
            assert got.headers["X-Run-Id"] == "r1"


async def test_where_nothing_answers_the_headers_are_the_same(tmp_path: Path) -> None:
    async with world(
        tmp_path, "http://127.0.0.1:9/v1", policy(budget("run-ceiling", "run", limit=USD)), provider={"retries": 0}
    ) as here:
        got = await here.ask(chat())
        assert got.status == 502
        assert {name for name in got.headers if name.startswith(("X-Budget-", "X-Run-"))} == HELD
