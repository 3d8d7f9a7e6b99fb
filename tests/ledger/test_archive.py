"""A record comes back from the archive as the ledger told it, for thirty days."""

import asyncio
import json
import sqlite3
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.scopes import Unit
from gateway.core.values import Ending, Hold
from gateway.ledger.archive import KEEP_MS, Archive
from gateway.ledger.contract import CallRecord, Ledger, LedgerUnavailable
from tests.ledger.asking import hold
from tests.ledger.builders import LEASE_MS, TENANT, account, caller, charge, decision, plan, settlement
from tests.support.clock import Clock


async def ended(ledger: Ledger, clock: Clock) -> list[CallRecord]:
    """One committed, one released, one expired."""
    charges = (charge(account(), None), charge(account("agents", agent="ä"), None))
    holds = []
    for _ in range(3):
        answer = await ledger.reserve(decision(plan(*charges), of=caller(agent="ä")), LEASE_MS)
        assert isinstance(answer, Hold)
        holds.append(answer)
    await ledger.commit(TENANT, holds[0].id, settlement())
    await ledger.release(TENANT, holds[1].id, Ending.NOT_SENT)
    clock.now_ms += LEASE_MS
    await ledger.expire()
    found = [await ledger.record(TENANT, each.decision.id) for each in holds]
    return [each for each in found if each is not None]


async def test_a_record_comes_back_as_it_was(ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    records = await ended(ledger, clock)
    assert len(records) == 3
    archive = Archive(tmp_path / "state" / "records.db")
    await archive.keep(records)
    await archive.keep(records[:1])  # a gateway that was killed before it retired it comes again
    again = Archive(archive.path)
    for each in records:
        assert await again.find(TENANT, each.decision_id) == each
    assert await again.find("other", records[0].decision_id) is None
    assert await again.find(TENANT, "bdg_none") is None
    await archive.close()
    await again.close()


async def test_credits_and_what_lapsed_come_back_too(ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    held = [
        await hold(ledger, decision(plan(charge(account("credits", Unit.CREDITS), None), credits=5, risk_points=6), lapses=True))
        for _ in range(2)
    ]
    await ledger.commit(TENANT, held[0].id, settlement(credits=4, risk_points=3))
    clock.now_ms += LEASE_MS
    await ledger.expire()
    archive = Archive(tmp_path / "records.db")
    for each in held:
        record = await ledger.record(TENANT, each.decision.id)
        assert record is not None
        await archive.keep([record])
        assert await archive.find(TENANT, record.decision_id) == record
    await archive.close()


async def test_a_record_of_an_earlier_version_is_read(ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    record, *_ = await ended(ledger, clock)
    archive = Archive(tmp_path / "records.db")
    await archive.keep([record])
    with closing(sqlite3.connect(archive.path)) as file:
        ((packed,),) = file.execute("SELECT record FROM records").fetchall()
        told = json.loads(zlib.decompress(packed))
        for name in ("lapses", "ended_ms", "note", "end_note"):
            del told[name]
        for amounts in (told["held"], told["charged"]):
            del amounts["credits"], amounts["risk_points"]
        file.execute("UPDATE records SET record = ?", (zlib.compress(json.dumps(told).encode()),))
        file.commit()
    assert await archive.find(TENANT, record.decision_id) == replace(record, ended_ms=0, end_note="")
    await archive.close()


async def test_a_question_makes_no_file(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "records.db")
    assert await archive.find(TENANT, "bdg_1") is None
    assert not archive.path.exists()
    await archive.close()
    await archive.close()


async def test_what_is_older_than_thirty_days_goes_the_oldest_first(ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    record, *_ = await ended(ledger, clock)
    archive = Archive(tmp_path / "records.db")
    await archive.keep([replace(record, decision_id=f"bdg_{day}", at_ms=day * 86_400_000) for day in range(5)])
    assert await archive.rotate(KEEP_MS + 3 * 86_400_000, 2) == 2
    assert await archive.find(TENANT, "bdg_1") is None
    assert await archive.find(TENANT, "bdg_2") is not None
    assert await archive.rotate(KEEP_MS + 3 * 86_400_000, 2) == 1
    assert await archive.rotate(KEEP_MS + 3 * 86_400_000, 2) == 0
    assert await archive.find(TENANT, "bdg_3") is not None
    await archive.close()


async def test_several_gateways_write_to_one_file(ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    record, *_ = await ended(ledger, clock)
    archives = [Archive(tmp_path / "records.db") for _ in range(4)]
    await asyncio.gather(
        *(
            each.keep([replace(record, decision_id=f"bdg_{place}_{number}") for number in range(50)])
            for place, each in enumerate(archives)
        )
    )
    for place in range(4):
        assert await archives[0].find(TENANT, f"bdg_{place}_49") is not None
    for each in archives:
        await each.close()


@pytest.mark.parametrize("content", [b"no database" * 100, b""])
async def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records.db"
    path.write_bytes(content)
    archive = Archive(path)
    if content:
        with pytest.raises(LedgerUnavailable, match=r"records\.db is damaged .* move it away, and a new one is made"):
            await archive.find(TENANT, "bdg_1")
    else:  # as a gateway leaves it that was killed while it made it
        assert await archive.find(TENANT, "bdg_1") is None
    await archive.close()
