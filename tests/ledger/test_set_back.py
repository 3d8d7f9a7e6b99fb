"""A Redis that was set back by less than all gateways have seen: what one of them finds out stops all, until it is adopted."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.ledger import opening
from gateway.ledger.contract import Ledger, LedgerLost
from gateway.settings import RedisSettings
from gateway.store_url import parse
from tests.ledger.asking import of_run, spend, view
from tests.ledger.builders import TENANT
from tests.ledger.stored import change_meta, meta_of
from tests.support.stores import PATIENT_MS
from tests.support.valkey import Server


class Host:
    """A machine with a state folder of its own."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.config = RedisSettings(parse(server.url), PATIENT_MS)
        self.folder = folder

    @asynccontextmanager
    async def ledger(self) -> AsyncIterator[Ledger]:
        ledger = opening.ledger_of(self.config, self.folder, lambda: 0)
        try:
            await ledger.start()
            yield ledger
        finally:
            await ledger.close()

    async def adopt(self) -> str:
        return await opening.adopt(self.config, self.folder)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "valkey") as running:
        yield running


@pytest.fixture
def hosts(tmp_path: Path, server: Server) -> tuple[Host, Host]:
    """The first will see more than the second."""
    return Host(server, tmp_path / "one"), Host(server, tmp_path / "other")


def set_back(server: Server, steps: int) -> None:
    """As by a failover that lost the last steps."""
    change_meta(server, sequence=meta_of(server).sequence - steps)


async def test_once_the_gateway_that_saw_more_has_noticed_nobody_is_served(server: Server, hosts: tuple[Host, Host]) -> None:
    async with hosts[0].ledger() as one, hosts[1].ledger() as other:
        await spend(other, of_run(), 1)
        await spend(one, of_run(), 1)
        await spend(one, of_run(), 1)
        set_back(server, 2)
        with pytest.raises(LedgerLost, match="older than what was seen there before"):
            await spend(one, of_run(), 1)
        with pytest.raises(LedgerLost, match="was set back"):
            await spend(other, of_run(), 1)


async def test_what_a_gateway_that_starts_finds_out_stops_those_that_run(server: Server, hosts: tuple[Host, Host]) -> None:
    async with hosts[1].ledger() as other:
        await spend(other, of_run(), 1)
        async with hosts[0].ledger() as one:
            await spend(one, of_run(), 1)
        set_back(server, 1)
        for _ in range(2):
            with pytest.raises(LedgerLost):
                async with hosts[0].ledger():
                    pass
        with pytest.raises(LedgerLost):
            await spend(other, of_run(), 1)


async def test_each_host_goes_on_once_it_has_adopted_what_is_there(server: Server, hosts: tuple[Host, Host]) -> None:
    async with hosts[0].ledger() as one, hosts[1].ledger() as other:
        await spend(other, of_run(), 1)
        await spend(one, of_run(), 1)
        set_back(server, 1)
        with pytest.raises(LedgerLost):
            await spend(one, of_run(), 1)
    for host in hosts:
        with pytest.raises(LedgerLost, match="penstock ledger adopt"):
            async with host.ledger():
                pass
        assert TENANT in await host.adopt()
        async with host.ledger() as ledger:
            await spend(ledger, of_run(), 1)
    async with hosts[0].ledger() as ledger:
        assert (await view(ledger)).calls == 4


async def test_a_store_that_is_set_back_twice_is_adopted_twice(server: Server, hosts: tuple[Host, Host]) -> None:
    host = hosts[0]
    for _ in range(2):
        async with host.ledger() as ledger:
            await spend(ledger, of_run(), 1)
            set_back(server, 1)
            with pytest.raises(LedgerLost):
                await spend(ledger, of_run(), 1)
        await host.adopt()
    assert meta_of(server).epoch.count("-") == 1
