"""What this host last saw of the ledger, in a file beside it: so that an emptied, replaced or restored store is noticed.

The file holds the store's epoch and the highest sequence number seen; of a store where each tenant is an atom of its own, those of each
tenant. Several processes share it: a write merges under a lock, the sequence only grows within an epoch, and a process that still knows
an older epoch never overwrites a newer one.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.ledger.contract import LedgerLost

ADOPT_HINT = "check that this is the ledger you want to go on with, then run `penstock ledger adopt`"


@dataclass(frozen=True, slots=True)
class Seen:
    """A point in a store's history."""

    epoch: str
    sequence: int


def new_epoch() -> str:
    return secrets.token_hex(8)


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
        fields = self._fields()
        if fields is None:
            return None
        try:
            return Seen(str(fields["epoch"]), int(fields["sequence"]))
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreadable() from error

    def read_tenants(self) -> dict[str, Seen]:
        """By tenant; none where no ledger was ever seen from here. LedgerLost as `read`."""
        fields = self._fields()
        if fields is None:
            return {}
        try:
            return {str(name): Seen(str(epoch), int(sequence)) for name, (epoch, sequence) in fields["tenants"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unreadable() from error

    def _fields(self) -> Any:
        try:
            return orjson.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise self._unreadable() from error

    def _unreadable(self) -> LedgerLost:
        return LedgerLost(f"the witness file {self.path} is not readable, or of another kind of ledger: {ADOPT_HINT}")

    def merge(self, seen: Seen) -> None:
        """Keeps the later of the two. Takes the lock."""
        with self.locked():
            before = self.read()
            if before is None or (before.epoch == seen.epoch and before.sequence < seen.sequence):
                self.replace(seen)

    def merge_tenants(self, seen: Mapping[str, Seen]) -> None:
        """Keeps the later point of each tenant. Takes the lock."""
        with self.locked():
            kept = self.read_tenants()
            for name, each in seen.items():
                before = kept.get(name)
                if before is None or (before.epoch == each.epoch and before.sequence < each.sequence):
                    kept[name] = each
            self._write_tenants(kept)

    def replace_tenants(self, seen: Mapping[str, Seen]) -> None:
        """Writes them whatever stood there. Takes the lock."""
        with self.locked():
            self._write_tenants(seen)

    def replace(self, seen: Seen) -> None:
        """Writes it whatever stood there. The caller holds the lock."""
        self._write({"epoch": seen.epoch, "sequence": seen.sequence})

    def _write_tenants(self, seen: Mapping[str, Seen]) -> None:
        self._write({"tenants": {name: (each.epoch, each.sequence) for name, each in seen.items()}})

    def _write(self, fields: Mapping[str, object]) -> None:
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        with draft.open("wb") as file:
            file.write(orjson.dumps(fields))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
