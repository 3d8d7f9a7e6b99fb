"""The plane over each store, with a clock that stands still until a test moves it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.ledger.contract import Ledger
from tests.cycles.world import World
from tests.support.clock import Clock
from tests.support.stores import STORES, new_store, opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
async def ledger(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Ledger]:
    async with opened(new_store(request.param, tmp_path), clock) as ledger:
        yield ledger


@pytest.fixture
async def world(ledger: Ledger, clock: Clock) -> World:
    return await World(ledger, clock).open(1_000)
