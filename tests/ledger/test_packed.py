"""Records say what a call used in five fields, or six; those that an earlier version wrote have five."""

import zlib

import orjson
import pytest

from gateway.core.scopes import Amounts
from gateway.core.values import Ending, Usage, UsageSource
from gateway.ledger.entries import Commit, line_of, read_line
from gateway.ledger.packed import Closing, pack_closing, unpack_closing
from gateway.ledger.redis.lines import closing_of, closing_text
from tests.ledger.builders import settlement

PLAIN = Usage(UsageSource.PROVIDER, 1, 2, 3, 4)
RICH = Usage(UsageSource.COUNTED, 1, 2, 3, 4, (("audio_input", 5), ("images/hd/1024x1024", 6)))
COST = Amounts(7, 8, 1)


@pytest.mark.parametrize("usage", [PLAIN, RICH, None])
def test_usage_comes_back_from_a_record_as_it_was(usage: Usage | None) -> None:
    closing = Closing(COST, usage, Ending.COMPLETED, 9)
    assert unpack_closing(pack_closing(closing)) == closing
    assert closing_of({"x": b"7 8 1", "z": b"9", "e": closing_text(usage, Ending.COMPLETED)}) == closing


def test_records_of_an_earlier_version_are_read() -> None:
    packed = b'[[7,8,1],["provider",1,2,3,4],"completed",9]'
    assert unpack_closing(packed) == Closing(COST, PLAIN, "completed", 9)
    call = {"x": b"7 8 1", "z": b"9", "e": b'[["provider",1,2,3,4],"completed"]'}
    assert closing_of(call) == Closing(COST, PLAIN, "completed", 9)


def test_a_usage_of_plain_tokens_takes_no_more_room_than_before() -> None:
    assert pack_closing(Closing(COST, PLAIN, "completed", 9)) == b'[[7,8,1],["provider",1,2,3,4],"completed",9]'


def test_a_journal_of_an_earlier_version_is_read() -> None:
    entry = Commit("default", "rsv_1", settlement(tokens=4))
    assert len(orjson.loads(line_of(3, entry).partition(b" ")[2])[2][2][1]) == 5
    text = b'[3,"commit",["default","rsv_1",[[4,4,1],["provider",4,0,0,0],"completed"]]]'
    assert read_line(b"%08x %s" % (zlib.crc32(text), text)) == (3, entry)
