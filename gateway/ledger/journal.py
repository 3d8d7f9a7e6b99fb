"""The durable journal beside the ledger: what a ledger could not take is in here before anybody is told that it was recorded.

One file a process, in a folder that the processes of a host share. Its owner holds a lock on it for as long as it lives; a file whose
owner is gone is taken over by whoever looks next, entry by entry, and removed once the ledger has all of them. An entry is appended,
flushed to the disk (one flush for all that wait), and marked as done when the ledger has it: what is marked is not replayed, and what
was replayed just before a crash, and not marked, is recognised by the ledger by its id. A file in which hardly anything still waits is
replaced by one with only that, so that one entry which waits for days does not keep all that came after it.

    the end of a file is torn       its writer died while writing: nobody was told that it was recorded. Left out
    any other line is damaged       kept in `aside.jsonl`, and told: somebody has to look
"""

import asyncio
import fcntl
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import orjson

from gateway.core.record import record
from gateway.ledger.contract import LedgerUnavailable
from gateway.ledger.entries import Done, Entry, Unreadable, done_line, line_of, number_of, read_line

MAX_ENTRIES: Final = 50_000  # that wait, in a process: some 100 MB of memory at most
ASIDE: Final = "aside.jsonl"
_SUFFIX: Final = ".journal"
_DRAFT: Final = ".draft"  # of a file that will take another's place: nobody looks for entries in it
_DEAD_AT_MOST: Final = 10_000  # lines of a file that nobody needs


class JournalFull(LedgerUnavailable):
    """Neither ledger nor journal takes anything: no call may go out that only the journal would remember."""


@record
class Ticket:
    """An entry that is on the disk and waits for the ledger."""

    file: "_File"
    number: int
    entry: Entry


@record
class Damage:
    """A line that cannot be replayed. It is kept in `aside.jsonl`."""

    why: str
    file: str


class _File:
    """One journal file, locked. Only the journal's thread touches it."""

    __slots__ = ("descriptor", "length", "lines", "next_number", "own", "path", "waiting")

    def __init__(self, path: Path, descriptor: int, *, own: bool) -> None:
        self.path = path
        self.descriptor = descriptor
        self.own = own
        self.length = 0
        self.lines = 0
        self.next_number = 1
        self.waiting: set[int] = set()  # the entries on the disk that are not done

    def append(self, text: bytes, *, durable: bool) -> None:
        """All of it or, where it raises OSError, nothing."""
        written = 0
        try:
            while written < len(text):
                written += os.pwrite(self.descriptor, text[written:], self.length + written)
            if durable:
                os.fsync(self.descriptor)
        except OSError:
            # A line that is half there would spoil the next one.
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.length)
            raise
        self.length += len(text)
        self.lines += text.count(b"\n")

    def empty(self) -> None:
        os.ftruncate(self.descriptor, 0)
        self.length = self.lines = 0

    @property
    def mostly_dead(self) -> bool:
        return self.lines - len(self.waiting) > max(_DEAD_AT_MOST, len(self.waiting))

    def compact(self) -> None:
        """Leaves the lines of what waits, and those that can't be read, which are for whoever takes the file over. They are on the disk
        in a locked file before it takes this one's place: a crash or an OSError leaves one of the two, whole."""
        lines = os.pread(self.descriptor, self.length, 0).splitlines(keepends=True)
        self.lines = len(self.waiting)  # where it fails, it is tried again only after as many lines
        draft = self.path.with_suffix(_DRAFT)
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        fresh = _File(draft, descriptor, own=self.own)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            kept = [line for line in lines if (number := number_of(line.rstrip(b"\n"))) is None or number in self.waiting]
            fresh.append(b"".join(kept), durable=True)
            draft.replace(self.path)
        except OSError:
            fresh.remove()
            raise
        os.close(self.descriptor)  # who waited for its lock finds that it is not at its path any more
        self.descriptor, self.length, self.lines = descriptor, fresh.length, fresh.lines
        _flush_folder(self.path.parent)

    def remove(self) -> None:
        """While it is locked, so that nobody takes over a file that is about to go."""
        self.path.with_suffix(_DRAFT).unlink(missing_ok=True)  # of a process that died while it compacted
        self.path.unlink(missing_ok=True)
        self.let_go()

    @property
    def gone(self) -> bool:
        return self.descriptor < 0

    def let_go(self) -> None:
        """Whoever looks next takes it over. Idempotent."""
        if not self.gone:
            os.close(self.descriptor)
            self.descriptor = -1


class Journal:
    """Belongs to the event loop that opens it. `put`, `done` and `set_aside` are under way when they return."""

    def __init__(self, folder: Path, at_most: int = MAX_ENTRIES) -> None:
        self._folder = folder
        self._at_most = at_most
        self._thread = ThreadPoolExecutor(1, "ledger-journal")
        self._own: _File | None = None
        self._files: list[_File] = []  # taken over; the thread's
        self._puts: list[tuple[Entry, asyncio.Future[Ticket]]] = []  # for the next flush
        self._dones: list[Ticket] = []
        self._flushing: asyncio.Future[None] | None = None
        self._closed = False
        self._failing = False  # the last write was in vain
        self._putting = 0  # entries on their way to the disk
        self.waiting = 0  # entries on the disk, put there or taken over, that are not done
        self.aside = 0  # lines in `aside.jsonl`, as of when it was last looked at

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """LedgerUnavailable where the folder can't be written: a gateway without a journal would forget what calls cost."""
        self._loop = asyncio.get_running_loop()
        try:
            self.aside = await self._loop.run_in_executor(self._thread, self._open)
        except OSError as error:
            raise LedgerUnavailable(f"the journal in {self._folder} cannot be written: {error.strerror}") from error

    def _open(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._own = self._new_file()
        aside = self._folder / ASIDE
        return aside.read_bytes().count(b"\n") if aside.exists() else 0

    def _new_file(self) -> _File:
        while True:
            path = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(path, descriptor):  # else another process took it over between the two
                _flush_folder(self._folder)
                return _File(path, descriptor, own=True)
            os.close(descriptor)

    async def close(self) -> None:
        """What was put is on the disk then. What still waits is taken over by another process, or by the next one."""
        while self._flushing is not None:
            await self._flushing
        self._closed = True
        await self._loop.run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        assert self._own is not None
        if not self._own.waiting:
            self._own.remove()
        for file in (self._own, *self._files):
            file.let_go()

    # -- writing --------------------------------------------------------------------------------------------------------------

    @property
    def takes_more(self) -> bool:
        """As far as is known: the disk has the last word."""
        return self._has_room and not self._closed and not self._failing

    @property
    def _has_room(self) -> bool:
        return self.waiting + self._putting < self._at_most

    async def try_again(self) -> None:
        """Whether a disk that took nothing takes something now; nothing to do where the last write went well."""
        if self._failing and self._flushing is None and not self._closed:
            try:
                await self._loop.run_in_executor(self._thread, self._write_nothing)
            except OSError:
                return
            self._failing = False

    def _write_nothing(self) -> None:
        assert self._own is not None
        self._own.append(done_line(Done(())), durable=True)

    def put(self, entry: Entry) -> "asyncio.Future[Ticket]":
        """Done when the entry is on the disk. JournalFull, also where the disk takes no more."""
        future = self._loop.create_future()
        if not self._has_room or self._closed:
            future.set_exception(
                JournalFull(f"the journal in {self._folder} is full: {self.waiting} entries wait for the ledger")
            )
            return future
        self._putting += 1
        self._puts.append((entry, future))
        self._flush()
        return future

    def done(self, ticket: Ticket) -> None:
        """The ledger has it."""
        self.waiting -= 1
        self._dones.append(ticket)
        self._flush()

    def set_aside(self, ticket: Ticket, why: str) -> None:
        """The ledger will never take it: kept for a human, and done with."""
        self.aside += 1
        line = line_of(ticket.number, ticket.entry).rstrip()
        kept = self._loop.run_in_executor(self._thread, self._keep_aside, ticket.file.path.name, line, why)
        kept.add_done_callback(lambda kept: None if kept.exception() is not None else self.done(ticket))

    def _flush(self) -> None:
        """One at a time: what is asked for meanwhile goes out together, in the next."""
        if self._flushing is not None or self._closed or not (self._puts or self._dones):
            return
        puts, self._puts = self._puts, []
        dones, self._dones = self._dones, []
        self._flushing = self._loop.create_future()
        working = self._loop.run_in_executor(self._thread, self._write, [entry for entry, _ in puts], dones)
        working.add_done_callback(lambda done: self._flushed(done, [future for _, future in puts]))

    def _flushed(self, working: "asyncio.Future[Sequence[Ticket]]", futures: Sequence["asyncio.Future[Ticket]"]) -> None:
        failure = working.exception()
        if futures:
            self._failing = failure is not None
        self._putting -= len(futures)
        if failure is not None:
            why = failure.strerror if isinstance(failure, OSError) else repr(failure)
            for future in futures:
                if not future.done():
                    future.set_exception(JournalFull(f"the journal in {self._folder} cannot be written: {why}"))
        else:
            self.waiting += len(futures)
            for future, ticket in zip(futures, working.result(), strict=True):
                if not future.done():
                    future.set_result(ticket)
        flushing, self._flushing = self._flushing, None
        assert flushing is not None
        flushing.set_result(None)
        self._flush()

    def _write(self, entries: Sequence[Entry], dones: Sequence[Ticket]) -> Sequence[Ticket]:
        """In the thread. Raises only where the entries were not written."""
        for ticket in dones:
            ticket.file.waiting.discard(ticket.number)
        own = self._own
        assert own is not None
        for file in {ticket.file for ticket in dones}:
            numbers = tuple(ticket.number for ticket in dones if ticket.file is file)
            with suppress(OSError):  # it is replayed once more then, and the ledger knows it by its id
                _mark(file, numbers, entries_follow=bool(entries) and file is own)
        if own.mostly_dead:
            with suppress(OSError):
                own.compact()
        if not entries:
            return ()
        tickets = [Ticket(own, own.next_number + place, entry) for place, entry in enumerate(entries)]
        own.append(b"".join(line_of(ticket.number, ticket.entry) for ticket in tickets), durable=True)
        own.next_number += len(tickets)
        own.waiting.update(ticket.number for ticket in tickets)
        return tickets

    def _keep_aside(self, file: str, line: bytes, why: str) -> None:
        text = orjson.dumps({"file": file, "why": why, "line": line.decode(errors="backslashreplace")}) + b"\n"
        descriptor = os.open(self._folder / ASIDE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # -- taking over ----------------------------------------------------------------------------------------------------------

    async def take_over(self, told: Callable[[Damage], None]) -> Sequence[Ticket]:
        """The entries of files whose owner is gone, in their order. Nobody else gets them while this process lives."""
        if not self.takes_more:
            return ()
        tickets, damages = await self._loop.run_in_executor(self._thread, self._take_over)
        self.waiting += len(tickets)
        self.aside += len(damages)
        for damage in damages:
            told(damage)
        return tickets

    def _take_over(self) -> tuple[list[Ticket], list[Damage]]:
        tickets: list[Ticket] = []
        damages: list[Damage] = []
        assert self._own is not None
        self._files = [file for file in self._files if not file.gone]
        ours = {file.path for file in (self._own, *self._files)}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            file = None if path in ours else _taken(path)
            if file is None:
                continue
            try:
                found = self._read(file, damages)
            except OSError:  # of the disk, on which damage could not be kept either: the file waits for better days
                file.let_go()
                break
            tickets += found
            if found:
                self._files.append(file)
            else:
                file.remove()
        return tickets, damages

    def _read(self, file: _File, damages: list[Damage]) -> list[Ticket]:
        content = os.pread(file.descriptor, os.fstat(file.descriptor).st_size, 0)
        *lines, torn = content.split(b"\n")
        file.length = len(content) - len(torn)
        found: dict[int, Ticket] = {}
        for line in lines:
            try:
                number, read = read_line(line)
            except Unreadable as why:
                self._keep_aside(file.path.name, line, str(why))
                damages.append(Damage(str(why), file.path.name))
                continue
            if isinstance(read, Done):
                for done in read.numbers:
                    found.pop(done, None)
            else:
                found[number] = Ticket(file, number, read)
        file.waiting = set(found)
        return list(found.values())


def _taken(path: Path) -> _File | None:
    """The file, locked; None while its owner lives, or where another process was quicker."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if not _is_at(path, descriptor):  # it was read and removed while we opened it
        os.close(descriptor)
        return None
    return _File(path, descriptor, own=False)


def _mark(file: _File, numbers: tuple[int, ...], *, entries_follow: bool) -> None:
    """What has no entry left that waits is emptied, or removed where its owner is gone."""
    if file.waiting or entries_follow:
        file.append(done_line(Done(numbers)), durable=False)
    elif file.own:
        file.empty()
    else:
        file.remove()


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


def _flush_folder(folder: Path) -> None:
    """So that a new file's name survives a power loss, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
