"""What a door of the gateway wants to read again with a record: it is kept with the hold, and with the step that ended it."""

from dataclasses import replace

import pytest

from gateway.core.values import Ending
from gateway.ledger.contract import Hold, Ledger
from gateway.ledger.entries import Commit, Entry, Release, line_of, read_line
from tests.ledger.asking import hold, of_run
from tests.ledger.builders import LEASE_MS, START_MS, TENANT, settlement


async def test_a_hold_and_its_commit_keep_their_notes(ledger: Ledger) -> None:
    held = await hold(ledger, replace(of_run(), note="for the tool"))
    live = await ledger.record(TENANT, held.decision.id)
    await ledger.commit(TENANT, held.id, replace(settlement(4), note="by key 7"))
    await ledger.commit(TENANT, held.id, replace(settlement(4), note="by key 8"))
    ended = await ledger.record(TENANT, held.decision.id)
    assert live is not None
    assert ended is not None
    assert (live.note, live.end_note, live.ended_ms) == ("for the tool", "", 0)
    assert (ended.note, ended.end_note, ended.ended_ms) == ("for the tool", "by key 7", START_MS)
    assert "note" not in ended.inputs


async def test_a_release_keeps_its_note(ledger: Ledger) -> None:
    held = await hold(ledger, of_run())
    await ledger.release(TENANT, held.id, Ending.COMPLETED, "not needed")
    record = await ledger.record(TENANT, held.decision.id)
    assert record is not None
    assert (record.note, record.end_note) == ("", "not needed")


async def test_whoever_asks_for_the_same_hold_again_is_told_so(ledger: Ledger) -> None:
    asked = of_run()
    first, second = await ledger.reserve(asked, LEASE_MS), await ledger.reserve(asked, LEASE_MS)
    assert isinstance(first, Hold)
    assert isinstance(second, Hold)
    assert (first.again, second.again) == (False, True)


@pytest.mark.parametrize(
    "entry",
    [
        Commit(TENANT, "rsv_1", settlement(4)),
        Commit(TENANT, "rsv_1", replace(settlement(4), note="by key 7")),
        Release(TENANT, "rsv_1", Ending.COMPLETED),
        Release(TENANT, "rsv_1", Ending.COMPLETED, "not needed"),
    ],
    ids=["commit", "commit with a note", "release", "release with a note"],
)
def test_a_journal_keeps_notes(entry: Entry) -> None:
    assert read_line(line_of(1, entry)[:-1]) == (1, entry)
