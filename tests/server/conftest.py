"""A real ledger on a file of its own, with a clock that stands still until a test moves it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.witness import Witness
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ledger(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteLedger]:
    opened = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness.json"), clock)
    await opened.start()
    yield opened
    await opened.close()
