"""Asks for a raise: a run's owner says how much more it wants, and why; operators see it until they raise something. Grants nothing.

A run has one open ask at most, replaced by a newer one. Each is a document of its tenant in the ledger (`ask/RUN`), so that every gateway
knows it. What stands there is the caller's words: nothing is decided by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.core.record import record
from gateway.core.scopes import Unit
from gateway.ledger.contract import Ledger, LedgerUnavailable

KEPT_MS: Final = 30 * 86_400_000  # nobody has answered by then
AT_MOST: Final = 1_000  # of a tenant: the oldest gives way
_PREFIX: Final = "ask/"
_ATTEMPTS: Final = 8
_TENANTS: Final = 1_000  # whose asks are remembered


@record
class Ask:
    """`account` is the key of the run's tightest account in that unit when it asked, "" where none limits it; `limit` its limit then."""

    run: str
    owner: str
    unit: Unit
    amount: int  # so much more
    reason: str
    at_ms: int
    account: str = ""
    limit: int | None = None

    def same(self, other: "Ask") -> bool:
        """Whether it asks for nothing new."""
        return (self.unit, self.amount, self.reason, self.limit) == (other.unit, other.amount, other.reason, other.limit)


@dataclass(slots=True)
class Asks:
    """What it remembers is looked at anew with each question; what has not changed since is not read again. `on_asked`: is told, with its
    tenant, of what was not asked before."""

    ledger: Ledger
    on_asked: Callable[[str, Ask], None]
    _seen: dict[str, tuple[int, Mapping[str, str]]] = field(default_factory=dict)  # by tenant: (number, texts by name)

    async def open(self, tenant: str, now_ms: int) -> Mapping[str, Ask]:
        """By run, the oldest first."""
        asks = [_read(text) for name, text in (await self._texts(tenant)).items() if name.startswith(_PREFIX)]
        return {ask.run: ask for ask in sorted(asks, key=lambda ask: ask.at_ms) if ask.at_ms + KEPT_MS > now_ms}

    async def put(self, tenant: str, ask: Ask) -> None:
        """Nothing happens where the same was asked before, and is still open."""
        for _ in range(_ATTEMPTS):
            texts = await self._texts(tenant)
            present = texts.get(_PREFIX + ask.run)
            if present is not None and _read(present).same(ask):
                return
            if await self.ledger.put_document(tenant, _PREFIX + ask.run, _written(ask), present):
                self.on_asked(tenant, ask)
                await self._make_room(tenant, ask.at_ms)
                return
        raise LedgerUnavailable("others asked at the same time, time and again")

    async def raised(self, tenant: str, run: str, limit: int) -> None:
        """An operator has set the run's own limit, in microcents."""
        await self._answer(tenant, lambda ask: ask.run == run and (ask.limit is None or limit > ask.limit))

    async def given_room(self, tenant: str, account: str, limit: int | None = None) -> None:
        """An operator has given an account more room; `limit`: its new one, where that is how."""

        def answers(ask: Ask) -> bool:
            return ask.account == account and (limit is None or ask.limit is None or limit > ask.limit)

        await self._answer(tenant, answers)

    async def _answer(self, tenant: str, answered: Callable[[Ask], bool]) -> None:
        for name, text in (await self._texts(tenant)).items():
            if name.startswith(_PREFIX) and answered(_read(text)):
                # One that was replaced meanwhile asks for more than this: it stays.
                await self.ledger.put_document(tenant, name, None, text)

    async def _make_room(self, tenant: str, now_ms: int) -> None:
        asks = {name: _read(text).at_ms for name, text in (await self._texts(tenant)).items() if name.startswith(_PREFIX)}
        newest_first = sorted(asks, key=lambda name: -asks[name])
        for place, name in enumerate(newest_first):
            if place >= AT_MOST or asks[name] + KEPT_MS <= now_ms:
                await self.ledger.put_document(tenant, name, None, (await self._texts(tenant)).get(name))

    async def _texts(self, tenant: str) -> Mapping[str, str]:
        number, texts = self._seen.get(tenant, (0, {}))
        found = await self.ledger.documents(tenant, number)
        if found is not None:
            texts = found.texts
            if len(self._seen) >= _TENANTS:
                self._seen.clear()
            self._seen[tenant] = (found.number, texts)
        return texts


def _written(ask: Ask) -> str:
    return orjson.dumps(
        {
            "run": ask.run,
            "owner": ask.owner,
            "unit": ask.unit.value,
            "amount": ask.amount,
            "reason": ask.reason,
            "at_ms": ask.at_ms,
            "account": ask.account,
            "limit": ask.limit,
        }
    ).decode()


def _read(text: str) -> Ask:
    told: Any = orjson.loads(text)
    return Ask(**{**told, "unit": Unit(told["unit"])})
