"""What was put into the journal is there after any crash, is handed over once, and nothing damaged is dropped in silence."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Decision, Ending, Usage, UsageSource
from gateway.core.windows import rolling
from gateway.ledger import journal as journal_module
from gateway.ledger.contract import LedgerUnavailable, Settlement
from gateway.ledger.entries import Commit, Debit, Done, Entry, Release, Unreadable, done_line, line_of, read_line
from gateway.ledger.journal import ASIDE, Damage, Journal, JournalFull, Ticket
from tests.ledger.builders import account, caller, charge, decision, plan

SETTLEMENT = Settlement(Amounts(4, 3, 1), Usage(UsageSource.PROVIDER, 1, 0, 0, 2, (("images/hd", 2),)), Ending.COMPLETED)


def commit(number: int = 1) -> Commit:
    return Commit("acme", f"rsv_{number}", SETTLEMENT)


def debit() -> Debit:
    """With everything that a decision can say."""
    who = replace(caller("child", team="research", agent="wrïter, a=b"), parent="r0", ancestry=("r0", "root"), owned_by="k2")
    charges = (
        charge(account("run-ceiling", run="child"), None, own=True, alerts=(500_000,), share_ppm=950_000),
        charge(replace(account("burn", window=rolling(60_000), run="child"), shown="burn-rate"), 7, margin=2),
    )
    decided = decision(plan(*charges, usd=9, model="small"), of=who, run_limit=5)
    return Debit(replace(decided, call=replace(decided.call, fingerprint="abc", service_tier="flex", client_cap=9)), SETTLEMENT)


def debit_in_credits() -> Debit:
    charges = (charge(account("credits", Unit.CREDITS), 9), charge(account("risk", Unit.RISK_POINTS), 9))
    cost = Amounts(0, 0, 1, 5, 6)
    return Debit(decision(plan(*charges, usd=0, tokens=0, credits=5, risk_points=6)), replace(SETTLEMENT, cost=cost))


ENTRIES: list[Entry] = [commit(), Release("acme", "rsv_2", Ending.NOT_SENT), debit()]


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal(tmp_path)
    await opened.open()
    yield opened
    await opened.close()


def damage(told: Damage) -> None:
    raise AssertionError(told)


async def successor(folder: Path) -> tuple[Journal, list[Ticket]]:
    other = Journal(folder)
    await other.open()
    return other, list(await other.take_over(damage))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal"))


def suffixes(folder: Path) -> list[str]:
    return [path.suffix for path in folder.iterdir()]


def died(journal: Journal) -> None:
    """As the kernel would leave it: the lock is gone, the file is as it was written."""
    assert journal._own is not None
    journal._own.let_go()


# -- lines ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [*ENTRIES, debit_in_credits()], ids=lambda entry: type(entry).__name__)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert read_line(line_of(7, entry).rstrip(b"\n")) == (7, entry)


def test_no_prompt_is_in_a_line() -> None:
    from tests.support import records

    asked = records.decision(prompt="a secret of the caller's")
    line = line_of(1, Debit(asked, SETTLEMENT))
    assert b"secret" not in line
    read = read_line(line.rstrip())[1]
    assert isinstance(read, Debit)
    assert read.decision == replace(asked, call=replace(asked.call, parts=()))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_a_line_that_changed_anywhere_is_not_read(entry: Entry) -> None:
    line = line_of(7, entry).rstrip(b"\n")
    for place in range(len(line)):
        with pytest.raises(Unreadable):
            read_line(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :])
        with pytest.raises(Unreadable):
            read_line(line[:place])


def test_a_kind_of_a_later_version_is_not_guessed() -> None:
    import zlib

    text = orjson.dumps([1, "gift", []])
    with pytest.raises(Unreadable, match="no entry"):
        read_line(b"%08x %s" % (zlib.crc32(text), text))


# -- the file ---------------------------------------------------------------------------------------------------------------------


async def test_what_was_put_is_on_the_disk_when_it_is_said_so(journal: Journal, tmp_path: Path) -> None:
    tickets = [await journal.put(entry) for entry in ENTRIES]
    [file] = files(tmp_path)
    assert [read_line(line) for line in file.read_bytes().splitlines()] == [(each.number, each.entry) for each in tickets]
    assert journal.waiting == 3


async def test_all_that_wait_share_one_flush(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes: list[int] = []
    real = os.fsync
    monkeypatch.setattr(journal_module.os, "fsync", lambda descriptor: (flushes.append(descriptor), real(descriptor))[1])
    await asyncio.gather(*(journal.put(commit(number)) for number in range(100)))
    assert len(flushes) <= 2  # the first goes out alone where the thread was idle


async def test_a_file_whose_entries_are_all_done_is_empty_and_goes_with_its_owner(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.open()
    tickets = [await journal.put(commit(number)) for number in range(3)]
    journal.done(tickets[1])
    again = await journal.put(commit(9))
    for ticket in (tickets[0], tickets[2], again):
        journal.done(ticket)
    while journal._flushing is not None:
        await journal._flushing
    assert [file.stat().st_size for file in files(tmp_path)] == [0]
    assert journal.waiting == 0
    await journal.close()
    assert files(tmp_path) == []


async def test_a_dead_processs_entries_are_taken_over_once_and_in_their_order(tmp_path: Path) -> None:
    dead = Journal(tmp_path)
    await dead.open()
    tickets = [await dead.put(entry) for entry in (*ENTRIES, commit(8))]
    dead.done(tickets[1])
    await dead.put(commit(9))
    alive, found = await successor(tmp_path)
    assert found == [], "its owner lives"
    died(dead)
    third = Journal(tmp_path)
    await third.open()
    both = await asyncio.gather(alive.take_over(damage), third.take_over(damage))
    assert sorted([ticket.entry for ticket in each] for each in both if each) == [[ENTRIES[0], ENTRIES[2], commit(8), commit(9)]]
    assert alive.waiting + third.waiting == 4
    await third.close()
    await alive.close()


async def test_a_taken_over_file_is_gone_once_the_ledger_has_all_of_it(tmp_path: Path) -> None:
    dead = Journal(tmp_path)
    await dead.open()
    for number in range(2):
        await dead.put(commit(number))
    died(dead)
    alive, (first, second) = await successor(tmp_path)
    alive.done(first)
    await alive.put(commit(5))
    assert len(files(tmp_path)) == 2
    alive.done(second)
    await alive.put(commit(6))
    assert len(files(tmp_path)) == 1
    await alive.close()


async def test_what_its_successor_did_not_finish_is_taken_over_again_without_what_is_done(tmp_path: Path) -> None:
    dead = Journal(tmp_path)
    await dead.open()
    for number in range(3):
        await dead.put(commit(number))
    died(dead)
    alive, found = await successor(tmp_path)
    alive.done(found[1])
    await alive.put(commit(7))
    await alive.close()
    last, found = await successor(tmp_path)
    assert sorted(ticket.entry.hold_id for ticket in found) == ["rsv_0", "rsv_2", "rsv_7"]
    await last.close()


async def test_a_process_that_was_killed_leaves_its_entries(tmp_path: Path) -> None:
    script = f"""
import asyncio, os, signal
from pathlib import Path
from gateway.ledger.journal import Journal
from tests.ledger.test_journal import commit
async def main():
    journal = Journal(Path({str(tmp_path)!r}))
    await journal.open()
    await journal.put(commit(1))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], timeout=60)
    assert killed.returncode == -9
    alive, found = await successor(tmp_path)
    assert [ticket.entry for ticket in found] == [commit(1)]
    await alive.close()


# -- damage -----------------------------------------------------------------------------------------------------------------------


async def left_by_the_dead(folder: Path, content: bytes) -> tuple[list[Entry], list[Damage]]:
    (folder / "1-dead.journal").write_bytes(content)
    told: list[Damage] = []
    alive = Journal(folder)
    await alive.open()
    found = await alive.take_over(told.append)
    assert alive.aside == len(told)
    await alive.close()
    return [ticket.entry for ticket in found], told


@pytest.mark.parametrize("cut", [1, 20, 60])
async def test_a_torn_last_line_is_left_out_for_nobody_was_told_of_it(cut: int, tmp_path: Path) -> None:
    content = line_of(1, commit(1)) + line_of(2, commit(2))
    assert await left_by_the_dead(tmp_path, content[:-cut]) == ([commit(1)], [])


async def test_a_damaged_line_is_told_and_kept_and_the_others_are_replayed(tmp_path: Path) -> None:
    damaged = line_of(2, commit(2)).replace(b"rsv_2", b"rsv_3")
    found, told = await left_by_the_dead(tmp_path, line_of(1, commit(1)) + damaged + line_of(3, commit(3)))
    assert found == [commit(1), commit(3)]
    assert [each.file for each in told] == ["1-dead.journal"]
    [kept] = map(orjson.loads, (tmp_path / ASIDE).read_bytes().splitlines())
    assert kept["line"].encode() + b"\n" == damaged
    assert "checksum" in kept["why"]


async def test_an_entry_is_set_aside_with_the_reason_and_is_done_with(journal: Journal, tmp_path: Path) -> None:
    journal.set_aside(await journal.put(commit(1)), "no such hold")
    for _ in range(100):
        if journal.waiting == 0:
            break
        await asyncio.sleep(0.01)
    [kept] = map(orjson.loads, (tmp_path / ASIDE).read_bytes().splitlines())
    assert read_line(kept["line"].encode()) == (1, commit(1))
    assert (kept["why"], journal.aside, journal.waiting) == ("no such hold", 1, 0)


def test_what_is_done_is_said_in_a_line_of_its_own() -> None:
    assert read_line(done_line(Done((1, 4))).rstrip()) == (0, Done((1, 4)))


# -- bounds -----------------------------------------------------------------------------------------------------------------------


async def test_a_full_journal_takes_nothing_until_the_ledger_has_taken_something(tmp_path: Path) -> None:
    journal = Journal(tmp_path, at_most=2)
    await journal.open()
    tickets = [await journal.put(commit(number)) for number in range(2)]
    assert not journal.takes_more
    with pytest.raises(JournalFull):
        await journal.put(commit(3))
    journal.done(tickets[0])
    await journal.put(commit(4))
    await journal.close()


async def test_a_disk_that_takes_half_a_line_spoils_no_other(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    await journal.put(commit(1))
    [file] = files(tmp_path)
    before = len(file.read_bytes())

    def half(descriptor: int, data: bytes, offset: int) -> int:
        if offset == before:
            return real(descriptor, data[:10], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module.os, "pwrite", half)
    with pytest.raises(JournalFull, match="No space left"):
        await journal.put(commit(2))
    await journal.try_again()
    assert not journal.takes_more
    monkeypatch.setattr(journal_module.os, "pwrite", real)
    await journal.try_again()
    assert journal.takes_more
    await journal.put(commit(3))
    assert [read_line(line)[1] for line in file.read_bytes().splitlines()] == [commit(1), Done(()), commit(3)]
    assert journal.waiting == 2


async def came_and_went(journal: Journal, number: int) -> None:
    for each in range(number):
        journal.done(await journal.put(commit(1_000 + each)))
    while journal._flushing is not None:
        await journal._flushing


async def test_one_entry_that_waits_does_not_keep_all_that_came_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_DEAD_AT_MOST", 10)
    journal = Journal(tmp_path)
    await journal.open()
    await journal.put(commit(1))
    await came_and_went(journal, 100)
    [file] = files(tmp_path)
    assert file.read_bytes().count(b"\n") < 15
    other, nothing = await successor(tmp_path)
    assert nothing == []  # its owner lives, and holds the lock of the new file too
    late = await journal.put(Release("acme", "rsv_2", Ending.NOT_SENT))
    assert late.number == 102
    died(journal)
    assert [ticket.entry for ticket in await other.take_over(damage)] == [commit(1), late.entry]
    await other.close()


async def test_a_file_that_could_not_be_made_smaller_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_DEAD_AT_MOST", 10)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, f"no room for {target} in place of {self}")

    monkeypatch.setattr(Path, "replace", full)
    journal = Journal(tmp_path)
    await journal.open()
    await journal.put(commit(1))
    await came_and_went(journal, 50)
    last = await journal.put(commit(2))
    assert suffixes(tmp_path) == [".journal"]
    died(journal)
    other, found = await successor(tmp_path)
    assert [ticket.entry for ticket in found] == [commit(1), last.entry]
    await other.close()


@pytest.mark.parametrize("cut", [0, 1, 40, None])
async def test_a_process_that_died_while_it_made_its_file_smaller_loses_nothing(cut: int | None, tmp_path: Path) -> None:
    lines = [line_of(1, commit(1)), line_of(2, commit(2)), done_line(Done((2,)))]
    (tmp_path / "1-x.journal").write_bytes(b"".join(lines))
    (tmp_path / "1-x.draft").write_bytes(lines[0][:cut])
    other, [ticket] = await successor(tmp_path)
    assert ticket.entry == commit(1)
    other.done(ticket)
    while other._flushing is not None:
        await other._flushing
    await other.close()
    assert suffixes(tmp_path) == []


async def test_a_damaged_line_is_not_lost_when_its_file_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_DEAD_AT_MOST", 10)
    journal = Journal(tmp_path)
    await journal.open()
    await journal.put(commit(1))
    await journal.put(commit(2))
    [file] = files(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"rsv_1", b"rsv_9"))
    await came_and_went(journal, 50)
    assert file.read_bytes().count(b"\n") < 15
    died(journal)
    told: list[Damage] = []
    other = Journal(tmp_path)
    await other.open()
    assert [ticket.entry for ticket in await other.take_over(told.append)] == [commit(2)]
    assert [damage.why for damage in told] == ["its checksum is wrong"]
    await other.close()


async def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerUnavailable, match="cannot be written"):
        await Journal(tmp_path / "file" / "journal").open()


def test_a_decision_keeps_what_its_debit_needs() -> None:
    entry = debit()
    read = read_line(line_of(1, entry).rstrip())[1]
    assert isinstance(read, Debit)
    assert isinstance(read.decision, Decision)
    assert [charge.ceiling.account.key for charge in read.decision.ladder[0].charges] == [
        charge.ceiling.account.key for charge in entry.decision.ladder[0].charges
    ]
    assert read.decision.ladder[0].charges[1].ceiling.account.name == "burn-rate"
