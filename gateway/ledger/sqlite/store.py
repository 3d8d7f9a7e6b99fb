"""The SQLite file as one atom: a batch of steps is one transaction, and a store that has lost something is refused.

Synchronous, and used by one thread at a time. A step that raises is our bug or bad input: the batch is rolled back and its steps run
again one by one, so that only the faulty one fails. Trouble with the file itself fails the whole batch.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import apsw

from gateway.ledger.contract import LedgerLost, LedgerUnavailable
from gateway.ledger.sqlite.books import Books
from gateway.ledger.sqlite.schema import (
    TROUBLE,
    carry_over,
    connect,
    create_tables,
    file_identity,
    mapped_errors,
    read_meta,
    read_rules,
)
from gateway.ledger.witness import ADOPT_HINT, Seen, Witness, new_epoch

Work: TypeAlias = Callable[[Books], object]
_LOOK_EVERY_S: Final = 1.0  # how often the file at the path is compared with the one that is open


class Store:
    """An open ledger file. `open` and `transact` raise LedgerLost and LedgerUnavailable only."""

    def __init__(self, path: str, witness: Witness, synchronous: str, timeout_ms: int) -> None:
        self.path = path
        self.seen = Seen("", 0)
        self._witness = witness
        self._synchronous = synchronous
        self._timeout_ms = timeout_ms
        self._connection: apsw.Connection | None = None
        self._cursor: apsw.Cursor | None = None
        self._books: Books | None = None
        self._data_version: object = None
        self._rules = 0
        self._identity: tuple[int, int] | None = None
        self._looked_at = 0.0

    def open(self) -> None:
        """Creates what has never been; refuses what is not what was seen before."""
        self.close()
        with mapped_errors(self.path), self._witness.locked():
            known = self._witness.read()
            if known is not None and file_identity(self.path) is None:
                raise LedgerLost(f"the ledger file {self.path} is gone or empty: restore it; {ADOPT_HINT}")
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            connection = connect(self.path, self._synchronous, self._timeout_ms)
            try:
                if known is None:
                    create_tables(connection)
                carry_over(connection)
                found = read_meta(connection, self.path)
                _compare(self.path, known, found)
                if known != found:
                    self._witness.replace(found)
            except BaseException:
                connection.close()
                raise
            self.seen = found
            self._connection = connection
            self._cursor = connection.cursor()
            self._books = Books(self._cursor)
            self._data_version = None
            self._identity = file_identity(self.path)
            self._looked_at = time.monotonic()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = self._cursor = self._books = None

    def transact(self, works: Sequence[Work], now_ms: int) -> list[object]:
        """The answer of each step, or the exception that it raised, all committed."""
        with mapped_errors(self.path):
            self._look()
            try:
                return self._together(works, now_ms, trusting=True)
            except (*TROUBLE, LedgerLost, LedgerUnavailable):
                raise
            except apsw.ConstraintError:  # most likely an id that was not new: see Books.call_unless_new
                pass
            except Exception as error:  # noqa: BLE001 - a faulty step must not take the others down
                if len(works) == 1:
                    return [error]
        return [self._alone(work, now_ms) for work in works]

    def _alone(self, work: Work, now_ms: int) -> object:
        try:
            with mapped_errors(self.path):
                return self._together([work], now_ms, trusting=False)[0]
        except Exception as error:  # noqa: BLE001 - whatever it is: the steps before it are committed, and keep their answers
            return error

    def _together(self, works: Sequence[Work], now_ms: int, *, trusting: bool) -> list[object]:
        cursor, books = self._cursor, self._books
        if cursor is None or books is None:
            raise LedgerUnavailable(f"{self.path} is not open")
        try:
            cursor.execute("BEGIN IMMEDIATE")
            found, rules = read_rules(cursor, self.path)
            if found.epoch != self.seen.epoch or found.sequence < self.seen.sequence:
                _compare(self.path, self.seen, found)
            self._forget_what_others_changed(cursor, books)
            if rules != self._rules:
                books.forget_rules()
            books.begin(now_ms, trusting)
            answers = [work(books) for work in works]
            books.write()
            sequence = found.sequence + books.changes
            if books.changes:
                rules += books.rules_changed
                cursor.execute("UPDATE meta SET sequence = ?, rules = ?", (sequence, rules))
            cursor.execute("COMMIT")
        except BaseException:
            books.forget()
            assert self._connection is not None
            if self._connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise
        books.committed()
        self.seen = Seen(found.epoch, sequence)
        self._rules = rules
        return answers

    def _forget_what_others_changed(self, cursor: apsw.Cursor, books: Books) -> None:
        """SQLite's data version changes when any other connection has committed to the file; our own commits leave it."""
        version = cursor.execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            books.forget()
            self._data_version = version

    def _look(self) -> None:
        """SQLite goes on writing into a file that was deleted or replaced under it: nobody else would see what we charge."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            if file_identity(self.path) != self._identity:
                raise LedgerLost(f"the ledger file {self.path} was deleted or replaced while it was open: {ADOPT_HINT}")


def _compare(path: str, known: Seen | None, found: Seen) -> None:
    if known is None:
        return
    if found.epoch != known.epoch:
        raise LedgerLost(
            f"{path} is another ledger (epoch {found.epoch}) than the one used here before ({known.epoch}): {ADOPT_HINT}"
        )
    if found.sequence < known.sequence:
        raise LedgerLost(
            f"{path} is older than what was seen here before (step {found.sequence} of {known.sequence}):"
            f" spend after that is missing; {ADOPT_HINT}"
        )


def adopt(path: str, witness: Witness) -> Seen:
    """Goes on with the ledger as it is, or with a new one where there is none. Its new epoch stops every gateway that still
    remembers the old one, until it starts again."""
    with mapped_errors(path), witness.locked():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        connection = connect(path, "FULL", 5_000)
        try:
            create_tables(connection)
            carry_over(connection)
            read_meta(connection, path)
            connection.execute("UPDATE meta SET epoch = ?", (new_epoch(),))
            adopted = read_meta(connection, path)
        finally:
            connection.close()
        witness.replace(adopted)
    return adopted
