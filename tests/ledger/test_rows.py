"""Rows are checked one by one and in their places; a line that is damaged is named."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest

from gateway.ledger.rows import (
    AccountRow,
    ActRow,
    CallRow,
    Damaged,
    End,
    FrozenRow,
    Head,
    Reader,
    Refused,
    Row,
    Run,
    Spend,
    Tenant,
    from_lines,
    read_all,
    to_line,
    to_mapping,
)

RUN = Run(
    tenant="acme",
    run="r1",
    owner="k1",
    first_ms=1,
    last_ms=2,
    state="paused",
    paused_no=3,
    paused_by="",
    limit=None,
    raised=False,
    asked=7,
    committed=4,
    reserved=0,
    unconfirmed=0,
    calls=1,
    latest="01",
    issued=False,
    placed=True,
    ancestry=("parent", "root"),
    recent=(("01", "abc"),),
)
ROWS: Sequence[Row] = (
    Head(1, 5),
    Tenant("acme", 5, 3),
    AccountRow("acme", "all||lifetime|usd", 9, 4, 0, 0, 0, 0, 0, None),
    AccountRow("acme", "burn||rolling@60000|usd", 9, 4, 0, 0, 0, 0, 0, 100, ((17, 4, 0, -1),)),
    RUN,
    CallRow("acme", "01", "released", 0, None, [[0, 0, 0], None, "not_sent", 4]),
    Refused("acme", "r1", 1, "02", ["r1"]),
    Spend("acme", 1, "k1", "r1", "m", "lab", {"team": "ü"}, 4, 3, 1),
    ActRow("acme", "act_1", 5, "me", "stop", "r1", ""),
    FrozenRow("acme", (("team", "a"),), 5, "me", "why"),
    Tenant("other", 5, 0),
    End(11),
)


def mappings() -> list[dict[str, Any]]:
    return [to_mapping(row) for row in ROWS]


def read(rows: Sequence[Mapping[str, object]]) -> list[Row]:
    reader = Reader()
    found = [reader.read(row) for row in rows]
    reader.finish()
    return found


def test_every_kind_of_row_comes_back_from_a_file_as_it_was() -> None:
    lines = [to_line(row) for row in mappings()]
    assert all(line.endswith(b"}\n") and line.count(b"\n") == 1 for line in lines)
    assert read(list(from_lines(iter(lines)))) == list(ROWS)


def test_spend_without_credits_is_written_as_it_always_was() -> None:
    spent = next(row for row in ROWS if isinstance(row, Spend))
    assert list(to_mapping(spent))[-3:] == ["usd", "tokens", "calls"]
    more = replace(spent, credits=3)
    assert to_mapping(more) == {**to_mapping(spent), "credits": 3}
    rows = [to_mapping(more if row is spent else row) for row in ROWS]
    assert more in read(rows)
    rows[ROWS.index(spent)]["risk_points"] = -1
    with pytest.raises(Damaged, match=r"spend\.risk_points: found -1, expected an integer, not below 0"):
        read(rows)


def test_rows_that_never_were_json_are_read_too() -> None:
    assert read(mappings()) == list(ROWS)


@pytest.mark.parametrize(
    ("line", "field", "value", "told"),
    [
        (0, "format", 2, "line 1: head.format: found 2, expected 1, the only format that is read here"),
        (1, "raises", "3", "line 2: tenant.raises: found '3', expected an integer, not below 0"),
        (2, "committed", 4.0, "line 3: account.committed: found 4.0, expected an integer"),
        (2, "committed", True, "line 3: account.committed: found True, expected an integer"),
        (2, "key", "all", "line 3: account.key: found 'all', expected an account's key: budget|scope|window|unit"),
        (2, "limit", -1, "line 3: account.limit: found -1, expected an integer, not below 0 or null"),
        (3, "buckets", [[1, 2, 3]], "line 4: account.buckets: found [[1, 2, 3]], expected an array of"),
        (4, "state", "idle", "line 5: run.state: found 'idle', expected one of active, paused, stopped"),
        (4, "raised", 0, "line 5: run.raised: found 0, expected true or false"),
        (4, "ancestry", [1], "line 5: run.ancestry: found [1], expected an array of texts"),
        (4, "recent", [["01"]], "line 5: run.recent: found [['01']], expected an array of pairs of texts"),
        (5, "closing", {}, "line 6: call.closing: found {}, expected an array or null"),
        (7, "dimensions", {"team": 1}, "line 8: spend.dimensions: found {'team': 1}, expected an object of texts"),
        (8, "who", None, "line 9: act.who: found None, expected a text"),
        (9, "tenant", "other", "line 10: frozen.tenant: found 'other', expected the tenant whose row stands before"),
        (10, "tenant", "acme", "line 11: tenant 'acme' for a second time"),
        (11, "rows", 12, "line 12: end.rows: found 12, expected 11, the rows before it"),
        (6, "kind", "refusals", "line 7: kind: found 'refusals', expected one of head, tenant, account"),
    ],
)
def test_a_damaged_row_names_its_line_and_what_was_expected(line: int, field: str, value: object, told: str) -> None:
    rows = mappings()
    rows[line][field] = value
    with pytest.raises(Damaged) as damage:
        read(rows)
    assert str(damage.value).startswith(told)


def test_a_row_has_all_its_members_and_no_others() -> None:
    rows = mappings()
    del rows[4]["owner"]
    with pytest.raises(Damaged, match="line 5: a row of kind run without 'owner'"):
        read(rows)
    rows = mappings()
    rows[4]["colour"] = "red"
    with pytest.raises(Damaged, match="line 5: found 'colour', which a row of kind run does not have"):
        read(rows)


def test_rows_stand_in_their_order() -> None:
    rows = mappings()
    for order, told in (
        ([1, 0], "line 1: a row of kind tenant, expected one head first"),
        ([0, 2], "line 2: account.tenant"),
        ([0, 1, 4, 2], "line 4: a row of kind account after one of kind run"),
        ([0, 0], "line 2: a row of kind head"),
    ):
        with pytest.raises(Damaged, match=told):
            read([rows[place] for place in order])


def test_an_export_that_was_cut_off_is_noticed() -> None:
    with pytest.raises(Damaged, match="line 11: the last row is no `end`"):
        read(mappings()[:-1])
    with pytest.raises(Damaged, match="line 13: a row of kind frozen, expected one head first and one end last"):
        read([*mappings(), mappings()[9]])
    with pytest.raises(Damaged, match="line 0"):
        read([])


def test_a_line_that_is_no_json_object_is_named() -> None:
    good = to_line(mappings()[0])
    with pytest.raises(Damaged, match="line 2: not JSON"):
        list(from_lines(iter([good, b'{"kind": "ten'])))
    with pytest.raises(Damaged, match=r"line 2: found \[1\], expected a JSON object"):
        list(from_lines(iter([good, b"[1]"])))


def test_a_long_value_is_shown_in_part() -> None:
    rows = mappings()
    rows[1]["tenant"] = ["x" * 500]
    with pytest.raises(Damaged) as damage:
        read(rows)
    assert len(str(damage.value)) < 150


async def test_whoever_loads_gets_every_row_checked_to_the_end() -> None:
    async def given(rows: Sequence[Mapping[str, object]]) -> AsyncIterator[Mapping[str, object]]:
        for row in rows:
            yield orjson.loads(to_line(row))

    assert [row async for row in read_all(given(mappings()))] == list(ROWS)
    with pytest.raises(Damaged, match="the export was cut off"):
        [row async for row in read_all(given(mappings()[:-1]))]
