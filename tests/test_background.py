"""Background loops of a whole gateway: what nobody planned is told once a minute, with its type and no word of what it quotes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway import app
from gateway.events import Events
from tests.support.config import Setup


async def test_work_in_the_background_that_fails_is_told_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, policy = app.load(Setup(tmp_path, "http://127.0.0.1:9/v1").write())
    lines: list[bytes] = []
    events = Events(lines.append)
    gateway = app.Gateway(config, policy, events)
    asked: list[str] = []

    def broken(what: str) -> Any:
        async def step(*_: object) -> None:
            asked.append(what)
            raise ZeroDivisionError("a secret")

        return step

    monkeypatch.setattr(gateway.office.reaper, "_every_s", 0.001)
    monkeypatch.setattr("gateway.keeper._EVERY_S", 0.001)
    monkeypatch.setattr(gateway.ledger, "expire", broken("expire"))
    monkeypatch.setattr(gateway.ledger, "aged", broken("aged"))
    await gateway.start()
    for _ in range(1_000):
        if min(asked.count("expire"), asked.count("aged")) >= 3:
            break
        await asyncio.sleep(0.005)
    await gateway.stop()
    events.close()
    assert min(asked.count("expire"), asked.count("aged")) >= 3
    told = [json.loads(line) for chunk in lines for line in chunk.splitlines()]
    problems = sorted((line["where"], line["error"]) for line in told if line["event"] == "problem")
    assert problems == [
        ("ending holds whose lease ran out", "ZeroDivisionError"),
        ("keeping the ledger small", "ZeroDivisionError"),
    ]
    assert b"a secret" not in b"".join(lines)
