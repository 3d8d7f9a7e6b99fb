"""Statements that put many rows into a table by as few executions as may be.

SQLite gives up the GIL in each execution, and the writer then has to wait for the event loop to let go of it: with rows one by one, that
costs more than the rows do.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

import apsw

Values: TypeAlias = Sequence[int | str | bytes | None]
_AT_ONCE: Final = 64  # rows in one execution at most: a power of two, as all are, so that few statements stay prepared


class Many:
    """INSERT or REPLACE of rows of `columns`. Their values come one row after the other in one list."""

    __slots__ = ("_texts", "_width")

    def __init__(self, verb: str, table: str, columns: str) -> None:
        self._width = columns.count(",") + 1
        row = f"({', '.join('?' * self._width)})"
        self._texts = {
            1 << power: f"{verb} INTO {table} ({columns}) VALUES {', '.join([row] * (1 << power))}"
            for power in range(_AT_ONCE.bit_length())
        }

    def write(self, cursor: apsw.Cursor, values: Values) -> None:
        at, left = 0, len(values) // self._width
        while left:
            rows = 1 << (min(left, _AT_ONCE).bit_length() - 1)
            end = at + rows * self._width
            cursor.execute(self._texts[rows], values[at:end])
            at = end
            left -= rows

    def insert(self, cursor: apsw.Cursor, values: Values) -> range:
        """The ids of the new rows. They follow one another: nobody else writes to the file meanwhile."""
        if not values:
            return range(0)
        self.write(cursor, values)
        last = cursor.connection.last_insert_rowid()
        return range(last - len(values) // self._width + 1, last + 1)
