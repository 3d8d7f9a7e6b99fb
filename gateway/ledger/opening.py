"""The ledger that the config names: made, or adopted as it is. Nothing else knows which store stands behind it."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.ledger import redis, sqlite
from gateway.ledger.contract import Ledger
from gateway.ledger.redis.servers import servers
from gateway.ledger.witness import Witness
from gateway.settings import LedgerSettings, SqliteSettings

_WITNESS: Final = "witness.json"  # in the state folder


def ledger_of(config: LedgerSettings, state_dir: Path, clock_ms: Callable[[], int]) -> Ledger:
    """Not started yet. `clock_ms`: a store with a clock of its own does not ask it."""
    witness = Witness(state_dir / _WITNESS)
    if isinstance(config, SqliteSettings):
        return sqlite.SqliteLedger(str(config.path), witness, clock_ms, config.synchronous, config.timeout_ms)
    return redis.RedisLedger(servers(config.url, config.timeout_ms, config.wait_replicas), witness)


def never_used(config: LedgerSettings) -> bool:
    """Whether there is nothing to read yet: to look must not create it."""
    return isinstance(config, SqliteSettings) and not config.path.exists()


async def adopt(config: LedgerSettings, state_dir: Path) -> str:
    """What the store says from now on is taken for the truth; returns what that is. LedgerUnavailable."""
    witness = Witness(state_dir / _WITNESS)
    if isinstance(config, SqliteSettings):
        seen = sqlite.adopt(str(config.path), witness)
        return f"at epoch {seen.epoch}, step {seen.sequence}"
    store = servers(config.url, config.timeout_ms, config.wait_replicas)
    await store.start()
    try:
        adopted = await redis.adopt(store, witness)
    finally:
        await store.close()
    return "; ".join(f"tenant {name} at epoch {seen.epoch}, step {seen.sequence}" for name, seen in adopted.items()) or "empty"
