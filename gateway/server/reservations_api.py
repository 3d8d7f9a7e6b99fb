"""`/budget/reservations`: money held for work that does not pass through the proxy (a tool, another SDK), and then charged or given back.

A hold from outside lives as those of calls do: it ends once, and is charged in full if its time runs out before anybody says what it
cost. Only its own key may end it, or one that shares its runs (`runs.owner: tenant`); the admin settles any hold by `/admin/holds`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.core.money import format_usd
from gateway.core.scopes import OF_CALLS, Amounts, Caller, Unit
from gateway.core.values import Balance, Ending, Hold, Mode, Usage, UsageSource
from gateway.identity import Principal
from gateway.ledger.contract import Barrier, CallRecord, Ended, HoldState, RunView, Settled, Settlement
from gateway.policy_file import MAX_COUNT
from gateway.server.external import COMMON, COUNTS, External, amounts_of, spent
from gateway.server.pages import bad_member, body_of, found, ledger_page, not_found, query_of, usd_of, whole_of
from gateway.server.routes import Route
from gateway.server.views import expiry, more_json, tightest_usd
from gateway.settling import beyond
from gateway.wire.exchange import Inbound, Reply
from gateway.wire.problem import BudgetFacts, Refused, amount_text, problem
from gateway.yaml_fields import parse_duration

_ONE_CALL: Final = Amounts(0, 0, 1)
_ID: Final = re.compile(r"rsv_(ext_[0-9a-f]{32}(?:_[1-9])?)", re.ASCII)
_ATTEMPTS: Final = 10
_SHORTEST_MS: Final = 1_000
_LONGEST_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class ReservationsApi:
    """`lease_ms`: how long a hold lives that names no `ttl`."""

    external: External
    lease_ms: int

    def routes(self) -> Sequence[Route]:
        return (
            ledger_page("POST", "/budget/reservations", self.reserve),
            ledger_page("GET", "/budget/reservations/{id}", self.reservation),
            ledger_page("POST", "/budget/reservations/{id}/commit", self.commit),
            ledger_page("POST", "/budget/reservations/{id}/release", self.release),
            ledger_page("POST", "/budget/reservations/{id}/extend", self.extend),
        )

    async def reserve(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"run_id": "r1", "estimate_usd": "0.50", "ttl": "5m", "name": "render"}`, with an idempotency key: holds that much in every
        budget that applies, or is refused. Asked again, it shows the same hold, as it stands by then."""
        del params
        external = self.external
        body = body_of(inbound, (*COMMON, "estimate_usd", *COUNTS, "ttl"))
        cost, lease_ms = amounts_of(body, "estimate_usd", _ONE_CALL), self._ttl(body)
        order = external.order(inbound, body, "ext")
        for attempt in range(_ATTEMPTS):
            this = order.again(attempt)
            answer: Hold | Ended | None = None
            now = await external.recorded(this)
            if now is None:
                answer = await external.admitted(this, cost, lambda decision: external.ledger.reserve(decision, lease_ms))
                now = await external.recorded(this)
            if now is None or _given_back(now):
                continue
            if isinstance(answer, Hold):
                return _reply(now, tightest_usd(answer.balances), status=201)
            # The id was known, also where another process got there first; the record says that it was for the same.
            return _reply(now, await external.left(now), replayed=True, status=201)
        raise Refused(problem("ledger_unavailable", "The ledger gave back what was reserved, time and again; try again later."))

    async def reservation(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        query_of(inbound, ())
        record = await self._own(self.external.principal(inbound.headers), params["id"])
        return _reply(record, await self.external.left(record))

    async def commit(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"cost_usd": "0.31"}`: what it really cost, also where that is more than was held; what the body leaves out is charged as held.
        Once: the same cost again changes nothing, another one is refused."""
        began_s, principal = self.external.observer.clock_s(), self.external.principal(inbound.headers)
        record = await self._own(principal, params["id"])
        cost = amounts_of(body_of(inbound, ("cost_usd", *COUNTS)), "cost_usd", record.held)
        settlement = Settlement(cost, Usage(UsageSource.COUNTED), Ending.COMPLETED)
        settled = found(await self.external.ledger.commit(record.tenant, params["id"], settlement), "reservation")
        if not settled.changed and (settled.state, settled.charged) != (HoldState.COMMITTED, cost):
            raise _ended(params["id"], settled.state, settled.charged)
        self.external.settled(inbound.request_id, record, settled, principal.key, began_s)
        return self._after(record, settled)

    async def release(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """It cost nothing: what was held is given back."""
        began_s, principal = self.external.observer.clock_s(), self.external.principal(inbound.headers)
        record = await self._own(principal, params["id"])
        body_of(inbound, ())
        settled = await self.external.ledger.release(record.tenant, params["id"], Ending.COMPLETED)
        if settled.state is not HoldState.RELEASED:
            raise _ended(params["id"], settled.state, settled.charged)
        self.external.settled(inbound.request_id, record, settled, principal.key, began_s)
        return self._after(record, settled)

    async def extend(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"ttl": "10m"}`: it lives that long from now. `estimate_usd`, `tokens`, `credits` and `risk_points` say what is to be held in
        all, where that is more than is held: asked again, it holds no more. Not where a live call would be ended."""
        external = self.external
        record = await self._own(external.principal(inbound.headers), params["id"])
        body = body_of(inbound, ("ttl", "estimate_usd", "tokens", "credits", "risk_points"))
        tokens, credits_, risk_points = [whole_of(body, name, MAX_COUNT) or 0 for name in ("tokens", "credits", "risk_points")]
        wanted = Amounts(usd_of(body, "estimate_usd") or 0, tokens, 0, credits_, risk_points)
        if record.state is HoldState.LIVE:
            await self._check_goes_on(record)
        extended = await external.ledger.extend(record.tenant, params["id"], self._ttl(body), wanted)
        now = found(await external.ledger.record(record.tenant, record.decision_id), "reservation")
        view = found(await external.ledger.run(record.tenant, record.run), "run")
        if extended:
            return _reply(now, tightest_usd(view.accounts))
        if now.state is not HoldState.LIVE:
            raise _ended(params["id"], now.state, now.charged)
        raise _no_room(view, now, beyond(wanted, now.held))

    async def _own(self, principal: Principal, hold_id: str) -> CallRecord:
        """One that the caller may end; whatever else there is, or is not, is not found."""
        match = _ID.fullmatch(hold_id)
        record = await self.external.ledger.record(principal.tenant, f"bdg_{match[1]}") if match else None
        if record is None or record.state is None or not self.external.may_end(principal, record):
            raise not_found("reservation")
        return record

    async def _check_goes_on(self, record: CallRecord) -> None:
        """Refused run_stopped, scope_frozen: it can still be committed or released, but not live on."""
        view = found(await self.external.ledger.run(record.tenant, record.run), "run")
        caller = Caller(record.tenant, record.owner, record.run, record.run, dimensions=record.dimensions, ancestry=view.ancestry)
        [barrier] = await self.external.ledger.halted(record.tenant, [caller])
        if barrier is not None:
            code, what = ("scope_frozen", "was frozen") if barrier is Barrier.FROZEN else ("run_stopped", "was stopped")
            raise Refused(
                problem(code, f"Run {record.run} {what}: commit or release what is held, which can be extended no more.")
            )

    def _after(self, record: CallRecord, settled: Settled) -> Reply:
        now = replace(record, state=settled.state, charged=settled.charged)  # the ledger may take it only later
        return _reply(now, tightest_usd(settled.balances), replayed=not settled.changed)

    def _ttl(self, body: Mapping[str, object]) -> int:
        if "ttl" not in body:
            return self.lease_ms
        ttl = body["ttl"]
        ms = parse_duration(ttl) if isinstance(ttl, str) else None
        if ms is None or not _SHORTEST_MS <= ms <= _LONGEST_MS:
            raise bad_member("ttl", 'a duration from 1s to 24h, such as "10m"')
        return ms


def _reply(of: CallRecord, left: str | None, *, replayed: bool = False, status: int = 200) -> Reply:
    held = {
        "reservation_id": of.hold_id,
        "held_usd": format_usd(of.held.usd),
        "held_tokens": of.held.tokens,
        "held_calls": of.held.calls,
        **more_json("held", of.held),
        "expires_at": expiry(of),
    }
    return spent(of, left, held, replayed, status)


def _given_back(record: CallRecord) -> bool:
    """By the gateway itself, which did not hear the ledger's answer in time: whoever asked was told that there is no hold."""
    return record.state is HoldState.RELEASED and record.ending == Ending.NOT_SENT.value


def _ended(hold_id: str, state: HoldState | None, charged: Amounts | None) -> Refused:
    if state is HoldState.COMMITTED and charged is not None:
        amounts = [amount_text(charged.of(unit), unit) for unit in Unit if charged.of(unit) or unit in OF_CALLS]
        how = f"was committed before, at {', '.join(amounts[:-1])} and {amounts[-1]}"
    elif state is HoldState.RELEASED:
        how = "was released before: what it cost after all can be recorded by POST /budget/events"
    else:
        how = "has run out, and was charged in full until it is committed or released"
    return Refused(problem("idempotency_conflict", f"The reservation {hold_id} {how}."))


def _no_room(view: RunView, record: CallRecord, more: Amounts) -> Refused:
    """Which account stood in the way, by the balances as they were just read."""
    blocking = next((balance for balance in view.accounts if _blocks(balance, more)), None)
    if blocking is None:  # it has room by now, or an account that the run's latest call does not count in stood in the way
        return Refused(problem("run_ceiling_reached", f"Run {record.run} has no room to hold more; what was held stays held."))
    account, limit, remaining = blocking.account, blocking.limit, blocking.remaining
    assert limit is not None
    assert remaining is not None
    wanted = more.of(account.unit)
    facts = BudgetFacts(
        name=account.name,
        scope=account.scope_name,
        run_id=record.run,
        unit=account.unit,
        limit=limit,
        committed=blocking.committed,
        reserved=blocking.reserved,
        remaining=remaining,
        estimate=wanted,
        effective_max_output_tokens=0,
        client_requested_max_output_tokens=None,
        price_table_version=str(record.inputs.get("price_table_version", "")),
    )
    said = problem(
        f"{account.scope_name.replace('+', '_')}_ceiling_reached",
        f"Run {record.run} has no room to hold {amount_text(wanted, account.unit)} more: {amount_text(remaining, account.unit)} of "
        f"{amount_text(limit, account.unit)} are left in the budget {account.name}. What was held stays held.",
    )
    return Refused(replace(said, budget=facts))


def _blocks(balance: Balance, more: Amounts) -> bool:
    gates = balance.mode in (Mode.HARD_GATE, Mode.SOFT_GATE)
    return gates and balance.remaining is not None and balance.remaining < more.of(balance.account.unit)
