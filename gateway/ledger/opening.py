"""The ledger that the config names: made, or adopted as it is. Nothing else knows which store stands behind it."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.ledger import sqlite
from gateway.ledger.contract import Ledger, LedgerUnavailable
from gateway.ledger.witness import Seen, Witness
from gateway.settings import LedgerSettings, SqliteSettings

_WITNESS: Final = "witness.json"  # in the state folder


def ledger_of(config: LedgerSettings, state_dir: Path, clock_ms: Callable[[], int]) -> Ledger:
    """Not started yet. `clock_ms`: a store with a clock of its own does not ask it."""
    witness = Witness(state_dir / _WITNESS)
    if isinstance(config, SqliteSettings):
        return sqlite.SqliteLedger(str(config.path), witness, clock_ms, config.synchronous, config.timeout_ms)
    raise LedgerUnavailable(f"{config}: not built yet")


def never_used(config: LedgerSettings) -> bool:
    """Whether there is nothing to read yet: to look must not create it."""
    return isinstance(config, SqliteSettings) and not config.path.exists()


async def adopt(config: LedgerSettings, state_dir: Path) -> Seen:
    """What the store says from now on is taken for the truth. LedgerUnavailable."""
    witness = Witness(state_dir / _WITNESS)
    if isinstance(config, SqliteSettings):
        return sqlite.adopt(str(config.path), witness)
    raise LedgerUnavailable(f"{config}: not built yet")
