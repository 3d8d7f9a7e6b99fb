"""A ledger into a file, and a file into a ledger. Every balance is recomputed on the way out, before the way in, and after it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import IO, Final

from gateway.ledger.contract import Ledger, LedgerUnavailable
from gateway.ledger.rows import Reader, from_lines, to_line
from gateway.ledger.verify import Audit, Verdict, verify, verify_ledger

_LINES: Final = 1_000


class Unbalanced(Exception):
    """The balances of an export are not what its records say. Nothing was loaded."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"the balances in this export are not what its records say: {verdict.different} differences")
        self.verdict = verdict


async def export_to(ledger: Ledger, file: IO[bytes]) -> Verdict:
    """Writes everything. The verdict is on what was written."""
    reader, audit = Reader(), Audit()
    lines: list[bytes] = []
    async for row in ledger.dump():
        audit.add(reader.read(row))
        lines.append(to_line(row))
        if len(lines) == _LINES:
            await asyncio.to_thread(file.writelines, lines)
            lines = []
    reader.finish()
    await asyncio.to_thread(file.writelines, lines)
    return audit.finish()


async def import_from(ledger: Ledger, file: IO[bytes]) -> Verdict:
    """Into an empty ledger. `file` is read twice: it can go back to its start. Damaged, Unbalanced: nothing was loaded."""
    before = await asyncio.to_thread(verify, from_lines(file))
    if before.different:
        raise Unbalanced(before)
    file.seek(0)
    await ledger.load(_rows_of(file))
    after = await verify_ledger(ledger.dump())
    if after.different or after.sums != before.sums:
        raise LedgerUnavailable(f"what was loaded is not what the export says: loaded {after.sums}, expected {before.sums}")
    return after


async def _rows_of(file: IO[bytes]) -> AsyncIterator[Mapping[str, object]]:
    for row in from_lines(file):
        yield row
