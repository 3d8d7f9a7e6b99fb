"""A ledger on an empty store of each kind, with a clock that stands still."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.ledger.contract import Ledger
from tests.ledger.builders import START_MS
from tests.support.clock import Clock
from tests.support.stores import STORES, Store, new_store, opened


@pytest.fixture
def clock() -> Clock:
    return Clock(START_MS)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return new_store(request.param, tmp_path)


@pytest.fixture
async def ledger(store: Store, clock: Clock) -> AsyncIterator[Ledger]:
    async with opened(store, clock) as running:
        yield running
