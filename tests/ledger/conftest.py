"""A ledger in a folder of its own, with a clock that stands still."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.witness import Witness
from tests.ledger.builders import START_MS
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(START_MS)


@pytest.fixture
async def ledger(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteLedger]:
    running = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness"), clock)
    await running.start()
    yield running
    await running.close()
