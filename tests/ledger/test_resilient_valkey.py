"""A real server that is killed, frozen or emptied under a gateway's load: it recovers by itself, charges once, holds nothing, or refuses."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from gateway.core.values import Hold
from gateway.ledger import resilient
from gateway.ledger.contract import Ledger, LedgerLost, LedgerUnavailable, Settled
from gateway.ledger.journal import Journal
from gateway.ledger.redis.ledger import RedisLedger, adopt
from gateway.ledger.redis.servers import servers
from gateway.ledger.resilient import ResilientLedger
from gateway.ledger.witness import Witness
from gateway.store_url import parse
from tests.ledger.builders import LEASE_MS, TENANT, decision, own_run_charge, plan, settlement
from tests.ledger.test_resilient import Told, idle, until
from tests.support.valkey import DURABLE, Server

TIMEOUT_MS: Final = 300
LINES: Final = 8


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resilient, "_TEND_S", 0.05)


@asynccontextmanager
async def gateway(folder: Path, server: Server) -> AsyncIterator[tuple[ResilientLedger, Journal, Told]]:
    told, journal = Told(), Journal(folder / "journal")

    def make() -> Ledger:
        return RedisLedger(servers(parse(server.url), TIMEOUT_MS), Witness(folder / "witness"))

    ledger = ResilientLedger(make, journal, TIMEOUT_MS // 2, told)
    await ledger.start()
    try:
        yield ledger, journal, told
        assert told.problems == []
    finally:
        await ledger.close()


class Load:
    """Calls on one run, on several lines, until it is over. `charged` counts what somebody was told is recorded."""

    def __init__(self, ledger: ResilientLedger) -> None:
        self._ledger = ledger
        self._over = False
        self.held = self.charged = self.refused = 0

    async def run(self, while_it_goes: Callable[[], None]) -> None:
        lines = [asyncio.create_task(self._line()) for _ in range(LINES)]
        await until(lambda: self.charged > 20)
        await asyncio.to_thread(while_it_goes)
        before = self.charged
        await until(lambda: self.charged > before + 20)
        self._over = True
        await asyncio.gather(*lines)

    def until_refused(self) -> None:
        """In a thread."""
        for _ in range(1_000):
            if self.refused > 50:
                return
            time.sleep(0.01)
        raise AssertionError("no call was refused")

    async def _line(self) -> None:
        while not self._over:
            try:
                hold = await self._ledger.reserve(decision(plan(own_run_charge(limit=10**9))), LEASE_MS)
            except LedgerUnavailable:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            assert isinstance(hold, Hold), hold
            self.held += 1
            await asyncio.sleep(0.002)
            assert isinstance(await self._ledger.commit(TENANT, hold.id, settlement(4)), Settled)
            self.charged += 1


async def adds_up(ledger: ResilientLedger, journal: Journal, load: Load, told: Told) -> None:
    await until(lambda: idle(journal))
    view = await ledger.run(TENANT, "r1")
    assert view is not None
    assert (view.committed, view.reserved, view.calls) == (4 * load.charged, 0, load.charged)
    assert load.held == load.charged
    assert told.aside == []


async def test_a_durable_server_that_is_killed_under_load_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with Server(tmp_path / "server", DURABLE) as server:
        async with gateway(tmp_path, server) as (ledger, journal, told):
            load = Load(ledger)

            def killed() -> None:
                server.kill()
                load.until_refused()
                server.start()

            await load.run(killed)
            await adds_up(ledger, journal, load, told)


async def test_a_server_that_stops_answering_for_a_while_is_waited_for_by_nobody(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        async with gateway(tmp_path, server) as (ledger, journal, told):
            load = Load(ledger)

            def frozen() -> None:
                server.freeze()
                load.until_refused()
                server.thaw()

            await load.run(frozen)
            await adds_up(ledger, journal, load, told)
            assert None in told.serving


async def test_a_server_that_comes_back_empty_admits_nobody_until_it_is_adopted(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        async with gateway(tmp_path, server) as (ledger, journal, told):
            hold = await ledger.reserve(decision(), LEASE_MS)
            assert isinstance(hold, Hold)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await until_lost(ledger)
            for _ in range(3):
                with pytest.raises(LedgerLost):
                    await ledger.reserve(decision(), LEASE_MS)
            assert isinstance(await ledger.commit(TENANT, hold.id, settlement()), Settled)
            link = servers(parse(server.url), TIMEOUT_MS)
            await link.start()
            await adopt(link, Witness(tmp_path / "witness"))
            await link.close()
            await until(lambda: ledger.health()["ok"] is True)
            assert isinstance(await ledger.reserve(decision(), LEASE_MS), Hold)
            await until(lambda: idle(journal))
            assert [what for what, _ in told.aside] == [hold.id]


async def until_lost(ledger: ResilientLedger) -> None:
    for _ in range(500):
        try:
            await ledger.reserve(decision(), LEASE_MS)
        except LedgerLost:
            return
        except LedgerUnavailable:
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("a call was let through")
    raise AssertionError("nobody noticed")
