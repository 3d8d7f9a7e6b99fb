"""Records say what a call used in five fields, or six, and what it holds in one or two; those that an earlier version wrote have the less."""

import zlib

import orjson
import pytest

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Ending, Usage, UsageSource
from gateway.ledger.contract import HoldState, Settlement
from gateway.ledger.entries import Commit, line_of, read_line
from gateway.ledger.packed import Closing, Record, inputs_of, pack_closing, pack_record, unpack_closing, unpack_record
from gateway.ledger.redis.kept import KeptCall, keep_call, read_call
from gateway.ledger.redis.lines import Lines, closing_of, closing_text, read_lines
from gateway.ledger.redis.packing import packed_numbers, packed_texts
from tests.ledger.builders import account, charge, decision, plan, settlement

PLAIN = Usage(UsageSource.PROVIDER, 1, 2, 3, 4)
RICH = Usage(UsageSource.COUNTED, 1, 2, 3, 4, (("audio_input", 5), ("images/hd/1024x1024", 6)))
COST = Amounts(7, 8, 1)


@pytest.mark.parametrize("usage", [PLAIN, RICH, None])
def test_usage_comes_back_from_a_record_as_it_was(usage: Usage | None) -> None:
    closing = Closing(COST, usage, Ending.COMPLETED, 9)
    assert unpack_closing(pack_closing(closing)) == closing
    assert closing_of(KeptCall(HoldState.COMMITTED, 0, COST, 9, closing_text(usage, Ending.COMPLETED))) == closing


def test_records_of_an_earlier_version_are_read() -> None:
    packed = b'[[7,8,1],["provider",1,2,3,4],"completed",9]'
    assert unpack_closing(packed) == Closing(COST, PLAIN, "completed", 9)
    call = KeptCall(HoldState.COMMITTED, 0, COST, 9, b'[["provider",1,2,3,4],"completed"]')
    assert closing_of(call) == Closing(COST, PLAIN, "completed", 9)


def test_a_usage_of_plain_tokens_takes_no_more_room_than_before() -> None:
    assert pack_closing(Closing(COST, PLAIN, "completed", 9)) == b'[[7,8,1],["provider",1,2,3,4],"completed",9]'


def test_a_journal_of_an_earlier_version_is_read() -> None:
    entry = Commit("default", "rsv_1", settlement(3, tokens=4))
    assert len(orjson.loads(line_of(3, entry).partition(b" ")[2])[2][2][1]) == 5
    text = b'[3,"commit",["default","rsv_1",[[3,4,1],["provider",4,0,0,0],"completed"]]]'
    assert read_line(b"%08x %s" % (zlib.crc32(text), text)) == (3, entry)


@pytest.mark.parametrize("slices", [None, Amounts(3, 2)])
def test_what_a_call_holds_comes_back_from_a_record_as_it_was(slices: Amounts | None) -> None:
    charges = (charge(account("run-ceiling", run="r1"), sliced=slices is not None), charge(account("month")))
    made = decision(plan(*charges, first=slices))
    kept = Record(
        *("r1", "k1", 9, "allow", "big", "big", "lab", Amounts(10, 5), charges, (), 0),
        {name: value for name, value in inputs_of(made, made.ladder[0]).items() if name != "ladder"},
        slices,
    )
    assert unpack_record("acme", pack_record(kept)) == kept
    assert [line.held for line in kept.lines] == [10 if slices is None else 3, 10]
    assert len(orjson.loads(pack_record(kept))) == (12 if slices is None else 13), "without slices, as it always was"
    lines = Lines(charges)
    live = KeptCall(
        HoldState.LIVE, 8, Amounts(0, 0, 0), 0, b"", 9, True, 1, kept.held, slices, b"[]", b"[1]", ("r0",), b"g", "f", b"{}"
    )
    assert read_call(keep_call(live)) == live
    texts = packed_texts(b"[]", b"[1]", "r0", b"g", "f", b"{}")
    held = (10, 5, 1, *((10, 5, 1) if slices is None else (3, 2, 1)))
    assert keep_call(live) == packed_numbers(1, 8, 0, 0, 0, 0, 9, 1, 1, slices is not None, *held) + texts, "as it always was"
    assert read_lines("acme", lines.text.encode(), lines.names.encode()).charges == charges


@pytest.mark.parametrize("lapses", [False, True])
@pytest.mark.parametrize("slices", [None, Amounts(3, 2)])
@pytest.mark.parametrize("more", [(0, 0), (7, 0), (0, 9)])
def test_credits_risk_points_and_what_lapses_come_back_as_they_were(
    more: tuple[int, int], slices: Amounts | None, lapses: bool
) -> None:
    charges = (charge(account("run-ceiling", run="r1"), sliced=slices is not None), charge(account("credits", Unit.CREDITS)))
    held, charged = Amounts(10, 5, 1, *more), Amounts(7, 8, 1, *reversed(more))
    kept = Record("r1", "k1", 9, "allow", "big", "big", "lab", held, charges, (), 0, {}, slices, lapses)
    assert unpack_record("acme", pack_record(kept)) == kept
    assert [line.held for line in kept.lines] == [10 if slices is None else 3, more[0]]
    closing = Closing(charged, PLAIN, Ending.COMPLETED, 9)
    assert unpack_closing(pack_closing(closing)) == closing
    entry = Commit("acme", "rsv_1", Settlement(charged, PLAIN, Ending.COMPLETED))
    assert read_line(line_of(3, entry).rstrip()) == (3, entry)
    call = KeptCall(
        *(HoldState.COMMITTED, 8, charged, 9, b"{}", 9, True, 1, held, slices, b"[]", b"[1]", (), b"g", "f", b"{}"),
        lapses=lapses,
    )
    assert read_call(keep_call(call)) == call
    lines = Lines(charges)
    assert read_lines("acme", lines.text.encode(), lines.names.encode()).charges == charges
