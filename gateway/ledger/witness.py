"""What this host last saw of the ledger, in a file beside it: so that an emptied, replaced or restored store is noticed.

The file holds the store's epoch and the highest sequence number seen. Several processes share it: a write merges under a lock, the
sequence only grows within an epoch, and a process that still knows an older epoch never overwrites a newer one.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from gateway.ledger.contract import LedgerLost

ADOPT_HINT = "check that this is the ledger you want to go on with, then run `penstock ledger adopt` and start the gateway again"


@dataclass(frozen=True, slots=True)
class Seen:
    """A point in a store's history."""

    epoch: str
    sequence: int


class Witness:
    """The witness file. Every method is synchronous and short; none is called on the event loop."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time. Not re-entrant. A killed process leaves no lock behind."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def read(self) -> Seen | None:
        """None where no ledger was ever seen from here. An unreadable witness proves that one was: LedgerLost."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            fields = orjson.loads(content)
            return Seen(str(fields["epoch"]), int(fields["sequence"]))
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerLost(f"the witness file {self.path} is not readable: {ADOPT_HINT}") from error

    def merge(self, seen: Seen) -> None:
        """Keeps the later of the two. Takes the lock."""
        with self.locked():
            before = self.read()
            if before is None or (before.epoch == seen.epoch and before.sequence < seen.sequence):
                self.replace(seen)

    def replace(self, seen: Seen) -> None:
        """Writes it whatever stood there. The caller holds the lock."""
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        with draft.open("wb") as file:
            file.write(orjson.dumps({"epoch": seen.epoch, "sequence": seen.sequence}))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
