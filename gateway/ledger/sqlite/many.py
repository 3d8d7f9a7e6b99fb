"""Statements that put many rows into a table by as few executions as may be.

SQLite gives up the GIL in each execution, and the writer then has to wait for the event loop to let go of it: with rows one by one, that
costs more than the rows do.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

import apsw

Values: TypeAlias = Sequence[int | str | bytes | None]
_SIZES: Final = (64, 32, 16, 8, 4, 2, 1)  # rows in one execution: few enough statements to stay prepared


class Many:
    """INSERT or REPLACE of rows of `columns`. Their values come one row after the other in one list."""

    __slots__ = ("_texts", "_width")

    def __init__(self, verb: str, table: str, columns: str) -> None:
        self._width = columns.count(",") + 1
        row = f"({', '.join('?' * self._width)})"
        self._texts = {size: f"{verb} INTO {table} ({columns}) VALUES {', '.join([row] * size)}" for size in _SIZES}

    def write(self, cursor: apsw.Cursor, values: Values) -> int:
        """How many rows it was."""
        at, width = 0, self._width
        for size, text in self._texts.items():
            while len(values) - at >= size * width:
                cursor.execute(text, values[at : at + size * width])
                at += size * width
        return at // width

    def insert(self, cursor: apsw.Cursor, values: Values) -> range:
        """The ids of the new rows. They follow one another: nobody else writes to the file meanwhile."""
        number = self.write(cursor, values)
        last = cursor.connection.last_insert_rowid()
        return range(last - number + 1, last + 1)
