"""`GET /v1/reservations`: those of a tenant, the newest first unless another order is asked for."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.core.grants import LEVELS, filters
from gateway.cycles import cursors
from gateway.cycles.asking import RESERVATION, decision_id
from gateway.cycles.faults import Fault, invalid
from gateway.cycles.ground import Ground, given_back
from gateway.cycles.kept import held_of
from gateway.cycles.reading import Query
from gateway.cycles.reservations import Reservations
from gateway.cycles.telling import Json, Row
from gateway.identity import Principal
from gateway.ledger.contract import CallRecord

_PAGE: Final = 200
_SORTED_AT_MOST: Final = 10_000  # rows that an order other than by time is made of

_NUMBERS: Final = frozenset({"reserved", "created_at_ms", "expires_at_ms"})
_KEYS: Final[Mapping[str, Callable[[Row], Any]]] = {
    "reservation_id": lambda row: row.reservation_id,
    "tenant": lambda row: row.record.tenant,
    "scope_path": lambda row: row.scopes[-1],
    "status": lambda row: row.status,
    "reserved": lambda row: row.held.amount,
    "created_at_ms": lambda row: row.record.at_ms,
    "expires_at_ms": lambda row: row.expires_at_ms,
}


@dataclass(frozen=True, slots=True)
class Listing:
    """`newer`: rows have the members that the specification gained lately."""

    ground: Ground
    reservations: Reservations
    newer: bool

    async def rows(self, principal: Principal, query: Query) -> Json:
        tenant = self._tenant(principal, query)
        if not principal.admin:
            self.ground.registry.require(principal, "reservations:list")
        question = cursors.mark(
            *(tenant, query.filters, query.key, query.status, query.created, query.expires, query.finalized),
            *(query.sort_by, query.ascending),
        )
        if query.key is not None:
            rows = await self._by_key(principal, tenant, query)
            return {"reservations": [self._told(row, query) for row in rows], "has_more": False}
        if query.sort_by is None and not query.ascending:
            return await self._newest(principal, tenant, query, question, cursors.read(query.cursor, question, str))
        by = query.sort_by or "created_at_ms"
        after = cursors.read(query.cursor, question, int if by in _NUMBERS else str, str)
        return await self._sorted(principal, tenant, query, question, after)

    def _tenant(self, principal: Principal, query: Query) -> str:
        told = dict(query.filters).get("tenant")
        if principal.admin:
            if told is None:
                raise invalid("tenant", "tenant query parameter is required when using admin key authentication")
            return told
        if told is not None and told != principal.tenant:
            raise Fault("FORBIDDEN", f"tenant: this key is of another tenant than {told}", {"field": "tenant"})
        return principal.tenant

    async def _by_key(self, principal: Principal, tenant: str, query: Query) -> list[Row]:
        assert query.key is not None
        found = await self.ground.found_again(tenant, decision_id(RESERVATION, tenant, query.key))
        if found is None or held_of(found.note).answer is not None:
            return []
        row = await self.reservations.row(found)
        return [row] if self._matches(principal, row, query) else []

    async def _newest(self, principal: Principal, tenant: str, query: Query, question: str, after: Any) -> Json:
        rows: list[Row] = []
        async for row in self._rows(tenant, None if after is None else after[0]):
            if self._matches(principal, row, query):
                rows.append(row)
                if len(rows) > query.limit:
                    break
        return self._page(rows, query, question, lambda row: [row.record.decision_id])

    async def _sorted(self, principal: Principal, tenant: str, query: Query, question: str, after: Any) -> Json:
        """All that match, put in order for each page: of more than that, the newest."""
        key = _KEYS[query.sort_by or "created_at_ms"]
        rows: list[Row] = []
        async for row in self._rows(tenant, None):
            if self._matches(principal, row, query):
                rows.append(row)
                if len(rows) >= _SORTED_AT_MOST:
                    break

        def order(row: Row) -> list[Any]:
            return [key(row), row.reservation_id]

        rows.sort(key=order, reverse=not query.ascending)
        if after is not None:
            rows = [row for row in rows if (order(row) > after if query.ascending else order(row) < after)]
        return self._page(rows, query, question, order)

    def _page(self, rows: list[Row], query: Query, question: str, order: Callable[[Row], list[Any]]) -> Json:
        page = rows[: query.limit]
        answer: Json = {"reservations": [self._told(row, query) for row in page]}
        if len(rows) > len(page):
            answer["next_cursor"] = cursors.write(question, order(page[-1]))
        answer["has_more"] = len(rows) > len(page)
        return answer

    async def _rows(self, tenant: str, before: str | None) -> AsyncIterator[Row]:
        while True:
            page = await self.ground.ledger.leases(tenant, _PAGE, before)
            for row in await asyncio.gather(*(self.reservations.row(record) for record in page if _is_listed(record))):
                yield row
            if len(page) < _PAGE:
                return
            before = page[-1].decision_id

    def _matches(self, principal: Principal, row: Row, query: Query) -> bool:
        subject = row.held.subject
        levels = [(level, str(subject[level])) for level in LEVELS if level in subject]
        for level, value in query.filters:
            if level != "tenant" and subject.get(level) != value:
                return False
        if principal.registered is not None and not filters(
            principal.registered.scope_filter, tuple((level, value.lower()) for level, value in levels)
        ):
            return False
        if query.status not in (None, row.status):
            return False
        return (
            _within(row.record.at_ms, query.created)
            and _within(row.expires_at_ms, query.expires)
            and _within(row.finalized_at_ms, query.finalized)
        )

    def _told(self, row: Row, query: Query) -> Json:
        wanted = query.include
        return row.json(newer=self.newer, metadata="metadata" in wanted, committed_metadata="committed_metadata" in wanted)


def _is_listed(record: CallRecord) -> bool:
    return bool(record.note) and not given_back(record)


def _within(at_ms: int | None, window: tuple[int | None, int | None]) -> bool:
    first, last = window
    if first is None and last is None:
        return True
    return at_ms is not None and (first is None or at_ms >= first) and (last is None or at_ms <= last)
