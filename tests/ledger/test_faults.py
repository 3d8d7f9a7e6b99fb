"""Faults before and after a store's commands: what is asked again with the same id counts once, and every balance stays exact.

Random histories as in test_state_machine.py, through the model and a store that now and then fails: SQLite before its COMMIT and after it,
Valkey with the connection cut before a command arrived and after it was done. Whoever asks does what the contract says: asks again.
"""

from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import apsw
import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import rule

from gateway.core.scopes import Amounts
from gateway.ledger.contract import Ledger, LedgerUnavailable
from gateway.ledger.sqlite.ledger import SqliteLedger
from tests.ledger.asking import balance, hold
from tests.ledger.builders import LEASE_MS, START_MS, TENANT, account, decision
from tests.ledger.compare import agree
from tests.ledger.test_state_machine import Ask, Machine, Tell, run_machine
from tests.support.between import Between
from tests.support.clock import Clock
from tests.support.stores import STORES, SqliteStore, ValkeyStore, opened

_TRIES: Final = 20


class Faults(Protocol):
    """`arm`: the next command fails, "before" it does anything or "after" it has done all of it. `met`: how many have failed."""

    met: int

    def arm(self, moment: str) -> None: ...

    def disarm(self) -> None: ...


class CommitFaults:
    """Of one SQLite ledger's writer."""

    def __init__(self, ledger: SqliteLedger) -> None:
        connection = ledger._store._connection  # nothing else meets its commits
        assert connection is not None
        connection.set_commit_hook(self._before)
        connection.set_wal_hook(self._after)
        self._armed = ""
        self.met = 0

    def arm(self, moment: str) -> None:
        self._armed = moment

    def disarm(self) -> None:
        self._armed = ""

    def _before(self) -> bool:
        self._meet("before")
        return False

    def _after(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._meet("after")
        return apsw.SQLITE_OK

    def _meet(self, moment: str) -> None:
        if self._armed == moment:
            self._armed = ""
            self.met += 1
            raise apsw.IOError(f"{moment} the commit")


class LinkFaults:
    """Of every connection to a server."""

    def __init__(self, link: Between) -> None:
        self._link = link
        self._armed = False
        self.met = 0

    def arm(self, moment: str) -> None:
        self._armed = True
        (self._link.cut_before if moment == "before" else self._link.cut_after)(self._meets)

    def disarm(self) -> None:
        self._armed = False

    def _meets(self, args: Any) -> bool:
        if not self._armed or args[0].upper() != b"EVALSHA":
            return False
        self._armed = False
        self.met += 1
        return True


class FaultyMachine(Machine):
    """A step that meets a fault is sent alone, and asked for until it is answered. One that had been done when its answer was lost may
    be answered in other words (changed: False), so only what is true afterwards is compared."""

    links: "list[Between]"
    moment = ""  # of the fault that the next step meets

    def settle_in(self, kind: str) -> None:
        self.faults: list[Faults] = []
        super().settle_in(kind)

    def open(self) -> Ledger:
        if isinstance(self.store, ValkeyStore) and self.store.through is None:
            link = Between(urlsplit(self.store.url).port or 6379)
            link.__enter__()
            self.links = [*getattr(self, "links", []), link]
            self.store.through = link.url + urlsplit(self.store.url).path
            self.faults.append(LinkFaults(link))
        ledger = super().open()
        if isinstance(ledger, SqliteLedger):
            self.faults.append(CommitFaults(ledger))
        return ledger

    def teardown(self) -> None:
        super().teardown()
        for link in getattr(self, "links", []):
            link.__exit__(None, None, None)

    def step(self, ask: Ask, tell: Tell, alone: bool = True) -> None:
        if self.moment:
            self.flush()
            self.insist(ask, tell)
        else:
            super().step(ask, tell, alone)

    def insist(self, ask: Ask, tell: Tell | None = None) -> None:
        moment, self.moment = self.moment, ""
        met = sum(each.met for each in self.faults)
        for each in self.faults if moment else ():
            each.arm(moment)
        answer = self.answer(ask)
        for each in self.faults:
            each.disarm()
        if tell is not None:
            expected = tell(self.model)
            if moment == "before" or sum(each.met for each in self.faults) == met:
                agree(answer, expected)

    def answer(self, ask: Ask) -> Any:
        for _ in range(_TRIES):
            try:
                return self.read(ask)
            except LedgerUnavailable:
                continue
        raise AssertionError("it was never answered")

    @rule(moment=st.sampled_from(("before", "after")))
    def something_fails(self, moment: str) -> None:
        self.flush()
        self.moment = moment

    @rule(moment=st.sampled_from(("before", "after")))
    def something_else_fails(self, moment: str) -> None:
        self.something_fails(moment)

    @rule()
    def expire_all(self) -> None:
        self.flush()
        self.insist(lambda ledger: ledger.expire(1_000))
        for hold_id in self.model.due():
            self.model.expire(hold_id)


async def test_an_extension_that_is_asked_for_again_after_its_answer_was_lost_is_held_once(tmp_path: Path) -> None:
    async with opened(SqliteStore(tmp_path), Clock(START_MS)) as ledger:
        assert isinstance(ledger, SqliteLedger)
        held = await hold(ledger, decision())
        faults = CommitFaults(ledger)
        faults.arm("after")
        with pytest.raises(LedgerUnavailable):
            await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(30, 0))
        assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(30, 0))
        assert faults.met == 1
        assert (await balance(ledger, account())).reserved == 30


@pytest.mark.parametrize("kind", STORES)
def test_faults_before_and_after_each_command_leave_every_balance_exact(kind: str) -> None:
    run_machine(kind, examples=12, steps=25, phases=(Phase.reuse, Phase.generate), machine=FaultyMachine)


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", STORES)
def test_faults_in_many_long_histories_leave_every_balance_exact(kind: str) -> None:
    run_machine(kind, examples=1_000, steps=40, machine=FaultyMachine)
