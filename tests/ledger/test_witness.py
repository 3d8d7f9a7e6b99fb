"""A store that is not the one seen before, or is behind it, is noticed: at start and while running. Nothing is charged to it."""

import asyncio
import shutil
from pathlib import Path

import apsw
import pytest

from gateway.core.values import Ending, Hold
from gateway.ledger.contract import LedgerLost, LedgerUnavailable
from gateway.ledger.sqlite.ledger import SqliteLedger, adopt
from gateway.ledger.witness import Seen, Witness
from tests.ledger.builders import LEASE_MS, TENANT, account, decision, settlement
from tests.support.clock import Clock


class House:
    """A ledger file and a witness that outlive the processes which use them."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.file = folder / "ledger.db"
        self.witness = Witness(folder / "state" / "witness")
        self.snapshot = folder / "snapshot.db"
        self._clock = clock

    async def open(self) -> SqliteLedger:
        ledger = SqliteLedger(str(self.file), self.witness, self._clock)
        await ledger.start()
        return ledger

    async def spend(self, usd: int) -> None:
        ledger = await self.open()
        await pay(ledger, usd)
        await ledger.close()

    async def committed(self) -> int:
        ledger = await self.open()
        (balance,) = await ledger.balances(TENANT, [account()])
        await ledger.close()
        return balance.committed

    def take_snapshot(self) -> None:
        shutil.copy(self.file, self.snapshot)

    def remove(self) -> None:
        for name in ("", "-wal", "-shm"):
            Path(f"{self.file}{name}").unlink(missing_ok=True)


async def pay(ledger: SqliteLedger, usd: int) -> None:
    held = await ledger.reserve(decision(), LEASE_MS)
    assert isinstance(held, Hold)
    await ledger.commit(TENANT, held.id, settlement(usd))


@pytest.fixture
def house(tmp_path: Path, clock: Clock) -> House:
    return House(tmp_path, clock)


async def test_a_fresh_install_makes_both(house: House) -> None:
    await house.spend(4)
    seen = house.witness.read()
    assert seen is not None
    assert (seen.sequence, len(seen.epoch)) == (2, 16)
    assert await house.committed() == 4


async def test_an_old_snapshot_is_refused_and_says_what_to_do(house: House) -> None:
    await house.spend(4)
    house.take_snapshot()
    await house.spend(5)
    house.remove()
    shutil.copy(house.snapshot, house.file)
    with pytest.raises(LedgerLost, match=r"older than what was seen here before \(step 2 of 4\).*`penstock ledger adopt`"):
        await house.open()
    adopt(str(house.file), house.witness)
    assert await house.committed() == 4


async def test_a_file_that_is_gone_is_refused_and_not_made_anew(house: House) -> None:
    await house.spend(4)
    house.remove()
    with pytest.raises(LedgerLost, match="gone or empty"):
        await house.open()
    assert not house.file.exists()
    adopt(str(house.file), house.witness)
    assert await house.committed() == 0


async def test_an_empty_file_is_refused(house: House) -> None:
    await house.spend(4)
    house.remove()
    house.file.touch()
    with pytest.raises(LedgerLost, match="gone or empty"):
        await house.open()


async def test_an_empty_database_is_refused(house: House) -> None:
    await house.spend(4)
    house.remove()
    apsw.Connection(str(house.file)).execute("CREATE TABLE something (else_ TEXT)")
    with pytest.raises(LedgerLost, match="not a ledger"):
        await house.open()


async def test_what_is_no_database_is_refused(house: House) -> None:
    house.file.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(LedgerLost, match="damaged or not a ledger"):
        await house.open()


async def test_another_ledger_is_refused(house: House, tmp_path: Path, clock: Clock) -> None:
    await house.spend(4)
    other = House(tmp_path / "other", clock)
    await other.spend(1)
    house.remove()
    shutil.copy(other.file, house.file)
    with pytest.raises(LedgerLost, match="another ledger"):
        await house.open()
    adopt(str(house.file), house.witness)
    assert await house.committed() == 1


async def test_a_ledger_without_a_witness_is_taken_as_it_is(house: House) -> None:
    await house.spend(4)
    house.witness.path.unlink()
    assert await house.committed() == 4
    seen = house.witness.read()
    assert seen is not None
    assert seen.sequence == 2


async def test_a_witness_that_cannot_be_read_proves_that_there_was_a_ledger(house: House) -> None:
    await house.spend(4)
    for content in (b"", b"[]", b'{"epoch": "x"}'):
        house.witness.path.write_bytes(content)
        with pytest.raises(LedgerLost, match="not readable"):
            await house.open()


async def test_a_ledger_of_a_newer_version_is_left_alone(house: House) -> None:
    await house.spend(4)
    apsw.Connection(str(house.file)).execute("UPDATE meta SET version = 99")
    with pytest.raises(LedgerUnavailable, match="schema version 99"):
        await house.open()


# -- while running ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["epoch = 'another'", "sequence = sequence - 1"])
async def test_a_store_that_changes_under_a_running_gateway_is_refused(house: House, change: str) -> None:
    ledger = await house.open()
    await pay(ledger, 4)
    with apsw.Connection(str(house.file)) as connection:
        connection.execute(f"UPDATE meta SET {change}")
    with pytest.raises(LedgerLost):
        await ledger.reserve(decision(), LEASE_MS)
    with pytest.raises(LedgerLost):
        await ledger.run(TENANT, "r1")
    with pytest.raises(LedgerLost):
        await ledger.release(TENANT, "rsv_1", Ending.NOT_SENT)
    assert ledger.health()["ok"] is False
    assert "ledger_lost" in str(ledger.health()["why"])
    await ledger.close()
    assert apsw.Connection(str(house.file)).execute("SELECT count(*) FROM calls").get == 1


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_removed_or_replaced_under_a_running_gateway_is_noticed(
    house: House, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = await house.open()
    await pay(ledger, 4)
    house.take_snapshot()
    house.file.unlink()
    if replaced:
        shutil.copy(house.snapshot, house.file)
    monkeypatch.setattr("gateway.ledger.sqlite.store._LOOK_EVERY_S", 0.0)
    with pytest.raises(LedgerLost, match="deleted or replaced"):
        await ledger.reserve(decision(), LEASE_MS)
    await ledger.close()


async def test_a_running_gateway_stops_when_the_ledger_is_adopted_elsewhere(house: House) -> None:
    ledger = await house.open()
    await pay(ledger, 4)
    adopted = adopt(str(house.file), house.witness)
    with pytest.raises(LedgerLost):
        await pay(ledger, 5)
    await ledger.close()
    assert house.witness.read() == adopted
    await house.spend(5)
    assert await house.committed() == 9


# -- the file -----------------------------------------------------------------------------------------------------------------


def test_the_sequence_only_grows_and_an_older_epoch_never_comes_back(tmp_path: Path) -> None:
    witness = Witness(tmp_path / "a" / "witness")
    assert witness.read() is None
    witness.merge(Seen("one", 5))
    witness.merge(Seen("one", 3))
    assert witness.read() == Seen("one", 5)
    witness.merge(Seen("two", 9))
    assert witness.read() == Seen("one", 5)
    with witness.locked():
        witness.replace(Seen("two", 1))
    witness.merge(Seen("one", 6))
    assert witness.read() == Seen("two", 1)


async def test_the_witness_follows_a_running_ledger(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.ledger.sqlite.ledger._TIDY_EVERY_S", 0.01)
    ledger = await house.open()
    await pay(ledger, 4)
    for _ in range(500):
        seen = house.witness.read()
        assert seen is not None
        if seen.sequence == 2:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the witness stayed behind")
    await ledger.close()


async def test_a_witness_that_cannot_be_written_shows_in_health_and_stops_no_call(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.sqlite.ledger._TIDY_EVERY_S", 0.01)
    ledger = await house.open()
    written = house.witness.path.read_bytes()
    house.witness.path.write_bytes(b"scribbled over")
    await pay(ledger, 4)
    for _ in range(500):
        if "trouble" in ledger.health():
            break
        await asyncio.sleep(0.01)
    assert ("not readable" in str(ledger.health()["trouble"]), ledger.health()["ok"]) == (True, True)
    await pay(ledger, 4)
    house.witness.path.write_bytes(written)
    await ledger.close()
