"""`/budget/*`: what a caller may know of its calls, runs and spend; how it tightens a run, stops or pauses one, or asks for more.

A caller sees and changes only its own key's runs, or, where the policy shares them (`runs.owner: tenant`), all of its tenant's: another's
are 404, as are those that never were. The admin sees all of the tenant that `?tenant=` names, and alone may raise a limit.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Final

from gateway.asks import Ask, Asks
from gateway.core.money import format_usd
from gateway.core.policy import Limit
from gateway.identity import ANONYMOUS, Principal
from gateway.ledger.contract import CallRecord, Ledger, RunState, RunView, SetLimit, SpendRow
from gateway.policy_file import parse_amount
from gateway.server.pages import (
    PrincipalOf,
    asked,
    bad_member,
    body_of,
    count_of,
    found,
    json_reply,
    ledger_page,
    not_found,
    reason_of,
    usd_of,
)
from gateway.server.routes import Route
from gateway.server.views import Json, ask_json, record_json, run_json
from gateway.wire.exchange import Inbound, Reply
from gateway.wire.headers import run_id
from gateway.wire.problem import Refused, problem
from gateway.yaml_source import Unexpected

_DAY_MS: Final = 86_400_000
_DEFAULT_DAYS: Final = 30
_MAX_GROUPS: Final = 6
_DECISION: Final = re.compile(r"(?:bdg|rsv)_([A-Za-z0-9_-]{1,128})", re.ASCII)
_DIMENSION: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}", re.ASCII)
_COLUMNS: Final = ("usd", "tokens", "calls")  # of a spend row, beside its group


@dataclass(frozen=True, slots=True)
class BudgetApi:
    """`shared`: whether the policy in force shares the runs of a tenant. `run_ceiling`: its own ceiling for a run of this principal, in
    microcents, or None. `on_stopped`: ends the live calls of (tenant, run) in this process. `archived`: finds, by tenant and decision id,
    what the ledger has retired."""

    ledger: Ledger
    principal_of: PrincipalOf
    shared: Callable[[], bool]
    run_ceiling: Callable[[Principal, str], int | None]
    on_stopped: Callable[[str, str], None]
    now_ms: Callable[[], int]
    asks: Asks
    archived: Callable[[str, str], Awaitable[CallRecord | None]] | None = None

    def routes(self) -> Sequence[Route]:
        return (
            ledger_page("GET", "/budget/decisions/{id}", self.decision),
            ledger_page("GET", "/budget/runs", self.runs),
            ledger_page("GET", "/budget/runs/{id}", self.run),
            ledger_page("PUT", "/budget/runs/{id}", self.set_limit),
            ledger_page("POST", "/budget/runs/{id}/stop", self.stop),
            ledger_page("POST", "/budget/runs/{id}/pause", self.pause),
            ledger_page("POST", "/budget/runs/{id}/resume", self.resume),
            ledger_page("POST", "/budget/runs/{id}/ask", self.ask),
            ledger_page("GET", "/budget/spend", self.spend),
        )

    # -- reading --------------------------------------------------------------------------------------------------------------

    async def decision(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """By decision id (`bdg_…`) or by the id of its hold (`rsv_…`)."""
        principal, _ = asked(self.principal_of, inbound)
        match = _DECISION.fullmatch(params["id"])
        record = await self._record(principal.tenant, f"bdg_{match.group(1)}") if match else None
        if record is None or not self._may_see(principal, record.owner):
            raise not_found("decision")
        return json_reply(record_json(record))

    async def _record(self, tenant: str, decision_id: str) -> CallRecord | None:
        record = await self.ledger.record(tenant, decision_id)
        if record is None and self.archived is not None:
            return await self.archived(tenant, decision_id)
        return record

    async def runs(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """Newest activity first. `next` is the `before` of the next page, null on the last one."""
        del params
        principal, query = asked(self.principal_of, inbound, ("limit", "before"))
        limit = count_of(query, "limit", 50, 200)
        before = run_id(query["before"]) if "before" in query else None
        owner = self._whose(principal)
        listed = await self.ledger.runs(principal.tenant, owner, limit + 1, before)
        # The listing has no accounts, and without them a run's limit is not known: one more read a run, of a page.
        views = await asyncio.gather(*(self.ledger.run(principal.tenant, view.run) for view in listed[:limit]))
        asks = await self.asks.open(principal.tenant, self.now_ms())
        page = [_told(view, asks.get(view.run)) for view in views if view is not None]
        following = listed[limit - 1].run if len(listed) > limit else None
        return json_reply({"runs": page, "next": following})

    async def run(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        principal, _ = asked(self.principal_of, inbound)
        return await self._reply(await self._run(principal, run_id(params["id"])))

    async def spend(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`by`: dimensions, run, key, model, provider, day, in this order in each row. The ledger adds up whole UTC days: `from` and
        `to` (both included) name the days that were counted. `run`: only that one's."""
        del params
        principal, query = asked(self.principal_of, inbound, ("by", "from", "to", "limit", "run"))
        by = _groups(query.get("by", "model"))
        of_run = run_id(query["run"]) if "run" in query else None
        most = count_of(query, "limit", 1_000, 10_000)
        today = _day(self.now_ms())
        last = _last_day(query["to"]) if "to" in query else today
        first = _instant("from", query["from"]).date() if "from" in query else last - timedelta(days=_DEFAULT_DAYS - 1)
        if first > last:
            raise bad_member("from", f"a time before `to` ({last})")
        owner = self._whose(principal)
        grouping = by if of_run is None else ("run", *by)
        rows = await self.ledger.spend(principal.tenant, grouping, _start_ms(first), _start_ms(last) + _DAY_MS, owner)
        if of_run is not None:
            rows = [replace(row, group=row.group[1:]) for row in rows if row.group[0] == of_run]
        return json_reply(
            {
                "by": by,
                "from": first.isoformat(),
                "to": last.isoformat(),
                "rows": [_row(by, row) for row in rows[:most]],
                "rows_left_out": max(0, len(rows) - most),
                "total": _sums(rows),
            }
        )

    # -- acting ---------------------------------------------------------------------------------------------------------------

    async def set_limit(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"limit": "$2.00"}`, also before the run's first call. The answer is the run as it stands then."""
        principal, _ = asked(self.principal_of, inbound)
        run = run_id(params["id"])
        limit = usd_of(body_of(inbound, ("limit",)), "limit")
        if limit is None:
            raise bad_member("limit", 'an amount in USD as a text, such as "$2.00"')
        change = SetLimit(limit, principal.admin, principal.key)
        for _ in range(2):  # somebody may open it between the two questions, and own it then
            view = None if principal.admin else await self.ledger.run(principal.tenant, run)
            if not principal.admin:
                self._check_tightens(principal, run, view, limit)
            limited = await self.ledger.set_limit(principal.tenant, run, self._limits_as(principal, view), change)
            if limited is not None:
                if principal.admin:
                    await self.asks.raised(principal.tenant, run, limit)
                return await self._reply(limited)
        raise not_found("run")

    def _limits_as(self, principal: Principal, view: RunView | None) -> str:
        """In whose name. A run that is limited before its first call, by the admin, or by somebody on this machine who shows no key, or
        where keys share their runs, belongs to nobody until someone uses it: the calls may come with another key, and would else find
        another's run."""
        if self.shared() and view is not None:
            return view.owner
        return "" if principal.admin or principal.key == ANONYMOUS or self.shared() else principal.key

    async def ask(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"amount": "$2.00", "reason": "two chapters are left"}`: so much more than it has. Kept for operators to see, in the place of what
        the run asked before; it grants nothing, and ends with a raise."""
        principal, _ = asked(self.principal_of, inbound)
        view = await self._run(principal, run_id(params["id"]))
        body = body_of(inbound, ("amount", "reason"))
        wanted, reason = _more_in(body), reason_of(body)
        if not reason:
            raise bad_member("reason", "why, as a text: it is what an operator decides by")
        limited = [each for each in view.accounts if each.account.unit is wanted.unit and each.remaining is not None]
        tightest = min(limited, key=lambda balance: balance.remaining or 0, default=None)
        account, ceiling = ("", None) if tightest is None else (tightest.account.key, tightest.limit)
        ask = Ask(view.run, principal.key, wanted.unit, wanted.amount, reason, self.now_ms(), account, ceiling)
        await self.asks.put(principal.tenant, ask)
        return await self._reply(view)

    async def stop(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """Sticky. The body may say why: `{"reason": "…"}`."""
        principal, run, reason = self._act_on(inbound, params)
        await self._run(principal, run)
        view = found(await self.ledger.stop(principal.tenant, run, principal.key, reason), "run")
        self.on_stopped(principal.tenant, run)
        return await self._reply(view)

    async def pause(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """Until it is resumed; live calls finish. The body may say why."""
        principal, run, reason = self._act_on(inbound, params)
        view = await self._run(principal, run)
        # Where it is paused already, a caller's pause would take the place of the admin's, and could then be resumed by the caller.
        if principal.admin or view.state is not RunState.PAUSED:
            view = found(await self.ledger.pause(principal.tenant, run, principal.key, reason), "run")
        return await self._reply(view)

    async def resume(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """A caller ends the pauses that it set itself; the admin ends any. A stopped run stays stopped."""
        principal, run, reason = self._act_on(inbound, params)
        view = await self._run(principal, run)
        if not principal.admin and view.state is not RunState.PAUSED:
            # There is nothing to resume. The ledger is not asked, for it would also end a pause that the admin sets meanwhile.
            return await self._reply(view)
        if not principal.admin and view.paused_by != principal.key:
            by = f"by {view.paused_by}" if view.paused_by else "because a budget has no room"
            way = "resume it" if view.paused_by else "raise that budget for it, or resume it"
            raise Refused(problem("admin_required", f"Run {run} was paused {by}: only the admin token can {way}."))
        return await self._reply(found(await self.ledger.resume(principal.tenant, run, principal.key, reason), "run"))

    async def _reply(self, view: RunView) -> Reply:
        return json_reply(_told(view, (await self.asks.open(view.tenant, self.now_ms())).get(view.run)))

    def _act_on(self, inbound: Inbound, params: Mapping[str, str]) -> tuple[Principal, str, str]:
        """Who acts, on which run, and why."""
        principal, _ = asked(self.principal_of, inbound)
        return principal, run_id(params["id"]), reason_of(body_of(inbound, ("reason",)))

    async def _run(self, principal: Principal, run: str) -> RunView:
        view = await self.ledger.run(principal.tenant, run)
        if view is None or not self._may_see(principal, view.owner):
            raise not_found("run")
        return view

    def _may_see(self, principal: Principal, owner: str) -> bool:
        return principal.admin or owner == principal.key or self.shared()

    def _whose(self, principal: Principal) -> str | None:
        """Whose runs and spend it is shown; None: everybody's."""
        return None if principal.admin or self.shared() else principal.key

    def _check_tightens(self, principal: Principal, run: str, view: RunView | None, limit: int) -> None:
        if view is not None and view.owner and not self._may_see(principal, view.owner):
            raise not_found("run")
        set_by_admin = view is not None and view.raised
        ceilings = [] if set_by_admin else [self.run_ceiling(principal, run)]
        if view is not None:
            ceilings.append(view.limit)
        ceiling = min((each for each in ceilings if each is not None), default=None)
        if ceiling is not None and limit > ceiling:
            raise Refused(
                problem(
                    "admin_required",
                    f"Run {run} has a limit of ${format_usd(ceiling)}. A caller may only tighten it; raising it to "
                    f"${format_usd(limit)} needs the admin token.",
                    "limit",
                )
            )


def _told(view: RunView, ask: Ask | None) -> Json:
    return {**run_json(view), "ask": ask_json(ask)}


def _more_in(body: Mapping[str, object]) -> Limit:
    given = body.get("amount")
    try:
        wanted = parse_amount(given) if isinstance(given, str) else None
    except Unexpected:
        wanted = None
    if wanted is None or wanted.amount == 0:
        raise bad_member("amount", 'how much more, such as "$2.00", "200k tokens" or "60 calls"')
    return wanted


def _groups(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if _DIMENSION.fullmatch(name) is None or name in _COLUMNS:
            raise bad_member("by", "names of dimensions, or run, key, model, provider, day, separated by commas")
    if len(set(names)) != len(names) or len(names) > _MAX_GROUPS:
        raise bad_member("by", f"at most {_MAX_GROUPS} names, each once")
    return names


def _row(by: Sequence[str], row: SpendRow) -> dict[str, object]:
    group: dict[str, object] = dict(zip(by, row.group, strict=True))
    return group | _sums([row])


def _sums(rows: Sequence[SpendRow]) -> dict[str, object]:
    """Credits and risk points only where there are any."""
    sums: dict[str, object] = {name: sum(getattr(row, name) for row in rows) for name in ("tokens", "calls")}
    more = {name: sum(getattr(row, name) for row in rows) for name in ("credits", "risk_points")}
    return {"usd": format_usd(sum(row.usd for row in rows))} | sums | {name: each for name, each in more.items() if each}


def _instant(name: str, text: str) -> datetime:
    """A date is its first instant in UTC; a time says its own offset."""
    try:
        # In a query, "+" means a space: `…T00:00:00+02:00` arrives without it.
        instant = datetime.fromisoformat(text.replace(" ", "+"))
        if len(text) == len("2026-11-30"):
            instant = instant.replace(tzinfo=UTC)
        if instant.tzinfo is not None:
            return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise bad_member(name, "a UTC date (2026-11-30) or an RFC 3339 time (2026-11-30T12:00:00Z)")


def _last_day(text: str) -> date:
    """The last day that `to` reaches into: a date means the whole day, a time excludes itself."""
    to = _instant("to", text)
    return to.date() if len(text) == len("2026-11-30") else (to - timedelta(microseconds=1)).date()


def _day(at_ms: int) -> date:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date()


def _start_ms(day: date) -> int:
    return (day - date(1970, 1, 1)).days * _DAY_MS
