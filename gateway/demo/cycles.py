"""`penstock demo cycles`: a runaway agent under Cycles' own client, and the same agent with nothing but another base URL.

    simulated actions                                                 bounded only by our patience
    simulated actions, `@cycles` ← gateway, /cycles                   bounded by budgets that the admin plane made
    openai SDK → provider                                             bounded only by our patience
    openai SDK → gateway → provider                                   bounded by demo/policy.yaml, with a downgrade before the stop

The exit code is 0 only where both guarded agents were stopped as they have to be: the first at exactly a dollar, the second within one, by
the provider's own bill.
"""

import asyncio
import importlib.util
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final

import aiohttp
from rich.console import Console

from gateway.demo import stage, ticket
from gateway.demo.bill import MICROCENTS
from gateway.demo.local_model import NotStarted
from gateway.demo.stage import page, scripted
from gateway.demo.ticket import CALL_COST, CALL_S, Actions, Enough, answer_ticket
from gateway.demo.view import Reading, View, usd, view_for

CEILING: Final = MICROCENTS  # as demo/policy.yaml says, too
TENANT: Final = "demo-tenant"
AGENT: Final = "support-bot"
RUN: Final = "support-bot"
PRICES: Final = {ticket.MODEL: "15:75", "small-model": "3:15"}
MISSING: Final = "the demo's agents use the clients themselves: pip install openai runcycles"
_LOOKS_EVERY_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast actions are, and how long an agent goes on that nothing guards."""

    call_s: float = CALL_S
    event_ms: float = 4.0  # of the provider's: ten tokens each time, so some 50 ms a reply
    tokens: str = "60-200"  # of a reply
    unguarded_s: float = 6.0


@dataclass(slots=True)
class Course:
    """How one agent fared. `spent` is by whoever keeps the books: the ledger where there is one."""

    name: str
    ended: str = ""
    spent: int = 0
    reserved: int = 0
    at_s: list[float] = field(default_factory=list)  # when each call had ended, from the beginning

    @property
    def calls(self) -> int:
        return len(self.at_s)

    def ms_a_call(self, first: int | None = None) -> float:
        """Of the first so many calls; of all by default."""
        counted = self.at_s if first is None else self.at_s[:first]
        return 1000 * counted[-1] / len(counted) if counted else 0.0

    def added_ms(self, beside: "Course", only_first: int | None = None) -> float:
        """A call, over the same calls of the agent that nothing guards."""
        first = min(len(self.at_s), len(beside.at_s), only_first or len(self.at_s))
        return self.ms_a_call(first) - beside.ms_a_call(first)


def main() -> int:
    """Returns the exit code."""
    if any(importlib.util.find_spec(name) is None for name in ("openai", "runcycles")):
        return _fail(MISSING)
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    try:
        return asyncio.run(play(Pace(), view_for(console), console, folder))
    except NotStarted as failure:
        return _fail(str(failure))
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fail(message: str) -> int:
    Console(stderr=True).print(f"penstock: {message}", markup=False, highlight=False, soft_wrap=True)
    return 1


async def play(pace: Pace, view: View, console: Console, folder: Path) -> int:
    """All four, the table and the verdict, with every process ended; returns the exit code."""
    admin_token = secrets.token_urlsafe(24)
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            with scripted(PRICES, pace.tokens, pace.event_ms, tokens_per_event=10) as base_url:
                told = stage.config(folder, base_url, PRICES, "openai", 128_000, "o200k_base")
                async with stage.gateway(told, session, folder, admin_token) as address:
                    key = await _opened(session, address, admin_token)
                    told_by = _Books(session, address, base_url.removesuffix("/v1"), key)
                    simulated = await _simulated(pace, view)
                    under_cycles = await _under_cycles(pace, view, told_by)
                    straight = await _straight(pace, view, told_by, base_url)
                    proxied = await _proxied(view, told_by)
    finally:
        view.end()
    for line in _table(simulated, under_cycles, straight, proxied):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return _verdict(console, under_cycles, proxied)


# -- the books ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Books:
    """Where it stands what was spent: the gateway's ledger by its own pages and by Cycles' balances, and the provider's bill."""

    session: aiohttp.ClientSession
    gateway: str
    provider: str
    key: str

    async def cycles(self) -> tuple[int, int]:
        """Spent and reserved of the tenant's budget, in microcents."""
        headers = {"X-Cycles-API-Key": self.key}
        async with self.session.get(
            f"{self.gateway}/cycles/v1/balances?tenant={TENANT}&agent={AGENT}", headers=headers
        ) as answer:
            balances = (await answer.json())["balances"]
        [balance] = [each for each in balances if each["scope_path"] == f"tenant:{TENANT}/agent:{AGENT}"]
        return int(balance["spent"]["amount"]), int(balance["reserved"]["amount"])

    async def spent_at_cycles(self) -> int:
        return (await self.cycles())[0]

    async def billed(self) -> int:
        return sum(int(str(line["microcents"])) for line in await self.bill())

    async def bill(self) -> list[dict[str, object]]:
        """The provider's, a line a call."""
        async with self.session.get(f"{self.provider}/__bill") as answer:
            return list((await answer.json())["calls"])

    async def clear_bill(self) -> None:
        async with self.session.delete(f"{self.provider}/__bill"):
            pass


async def _opened(session: aiohttp.ClientSession, address: str, admin_token: str) -> str:
    """A tenant, its key and two budgets of a dollar, made by the admin plane as Cycles' own demo does; the key's secret."""

    async def made(path: str, body: dict[str, object]) -> dict[str, object]:
        headers = {"X-Admin-API-Key": admin_token}
        async with session.post(f"{address}/cycles/v1/admin/{path}", json=body, headers=headers) as answer:
            if answer.status >= 300:
                raise NotStarted(f"{path}: {answer.status} {await answer.text()}")
            return dict(await answer.json())

    await made("tenants", {"tenant_id": TENANT, "name": "Demo"})
    dollar = {"unit": "USD_MICROCENTS", "amount": CEILING}
    for scope in (f"tenant:{TENANT}", f"tenant:{TENANT}/agent:{AGENT}"):
        await made("budgets", {"tenant_id": TENANT, "scope": scope, "unit": "USD_MICROCENTS", "allocated": dollar})
    return str((await made("api-keys", {"tenant_id": TENANT, "name": "demo"}))["key_secret"])


# -- the four -----------------------------------------------------------------------------------------------------------------


async def _simulated(pace: Pace, view: View) -> Course:
    view.begin("Unguarded: simulated actions, a cent each")
    course = Course("simulated actions")

    async def spent() -> int:
        return course.calls * CALL_COST

    course.ended = await _watched(course, view, lambda: ticket.Simulated(pace.call_s), spent, bound_s=pace.unguarded_s)
    course.spent = await spent()
    return course


async def _under_cycles(pace: Pace, view: View, books: _Books) -> Course:
    from runcycles import BudgetExceededError, CyclesClient, CyclesConfig

    view.begin(f"Guarded: the same actions under @cycles, base_url at a gateway, {usd(CEILING)} on tenant and agent")
    course = Course("under @cycles at Penstock")
    config = CyclesConfig(
        base_url=f"{books.gateway}/cycles", api_key=books.key, tenant=TENANT, agent=AGENT, journal_enabled=False
    )
    with CyclesClient(config) as client:
        actions = ticket.decorated(ticket.Simulated(pace.call_s), client)
        course.ended = await _watched(course, view, lambda: actions, books.spent_at_cycles, BudgetExceededError, CEILING)
    course.spent, course.reserved = await books.cycles()
    return course


async def _straight(pace: Pace, view: View, books: _Books, base_url: str) -> Course:
    view.begin("Unguarded: the openai SDK, straight to a scripted provider")
    course = Course("openai SDK")
    course.ended = await _watched(course, view, _asked(base_url), books.billed, bound_s=pace.unguarded_s)
    course.spent = await books.billed()
    await books.clear_bill()
    return course


@dataclass(frozen=True, slots=True)
class Proxied:
    """`downgraded_at`: so many calls were served before the first by the cheaper model."""

    course: Course
    billed: int
    downgraded_at: int | None


async def _proxied(view: View, books: _Books) -> Proxied:
    import openai

    view.begin(f"Guarded: the same agent, OPENAI_BASE_URL at the gateway, ceiling {usd(CEILING)}")
    course = Course("through Penstock, undecorated")
    asked = _asked(f"{books.gateway}/run/{RUN}/v1")
    course.ended = await _watched(course, view, asked, books.billed, openai.APIStatusError, CEILING)
    run = await page(books.session, f"{books.gateway}/budget/runs/{RUN}") or {}
    course.spent, course.reserved = (_microcents(run.get(f"{which}_usd", 0)) for which in ("committed", "reserved"))
    bill = await books.bill()
    cheaper = [number for number, line in enumerate(bill) if line["model"] != ticket.MODEL]
    return Proxied(course, await books.billed(), cheaper[0] if cheaper else None)


def _asked(base_url: str) -> Callable[[], Actions]:
    import openai

    return lambda: ticket.Asked(openai.OpenAI(base_url=base_url, api_key=stage.KEY))


async def _watched(
    course: Course,
    view: View,
    actions: Callable[[], Actions],
    spent: Callable[[], Awaitable[int]],
    stopped: type[Exception] = Enough,
    ceiling: int | None = None,
    bound_s: float | None = None,
) -> str:
    """Lets the agent loose, in a thread as its client blocks; says what ended it. `stopped`: the only exception that may."""
    made = await asyncio.to_thread(actions)
    began = time.monotonic()

    def acted() -> None:
        at_s = time.monotonic() - began
        course.at_s.append(at_s)
        if bound_s is not None and at_s >= bound_s:
            raise Enough

    agent = asyncio.create_task(asyncio.to_thread(answer_ticket, made, acted))
    while not agent.done():
        view.update(Reading(time.monotonic() - began, await spent(), 0, course.calls, course.name, ceiling))
        await asyncio.wait({agent}, timeout=_LOOKS_EVERY_S)
    seconds = time.monotonic() - began
    try:
        agent.result()
    except Enough:
        ended = "the demo's patience"
    except stopped as refused:
        ended = _said(refused)
    else:
        ended = "the work was good enough"
    view.update(Reading(seconds, await spent(), 0, course.calls, course.name, ceiling))
    view.say(f"stopped by {ended}")
    return ended


def _said(refused: Exception) -> str:
    """The code first, as programs tell refusals apart by it."""
    code = getattr(refused, "error_code", None) or getattr(refused, "code", None)
    status = getattr(refused, "status", None) or getattr(refused, "status_code", None)
    return f"{status} {code}"


# -- the end ------------------------------------------------------------------------------------------------------------------


def _table(simulated: Course, under_cycles: Course, straight: Course, proxied: Proxied) -> Sequence[str]:
    """Guarded courses under those of the same agent that nothing guards."""
    until = proxied.downgraded_at
    rows = [("", f"ceiling {usd(CEILING)}", "stopped by", "calls", "spent", "ms a call", "added")]
    for course, beside, first in (
        (simulated, None, None),
        (under_cycles, simulated, None),
        (straight, None, None),
        (proxied.course, straight, until),
    ):
        added = "" if beside is None else f"{course.added_ms(beside, first):.1f}"
        told = (course.ended, str(course.calls), f"${exact(course.spent)}", f"{course.ms_a_call():.1f}", added)
        rows.append(("" if beside is None else "  ", course.name, *told))
    lines = [
        f"{indent}{name:<{33 - len(indent)}}{ended:<22}{calls:>5}  {spent:>11}  {ms:>9}  {added:>5}"
        for indent, name, ended, calls, spent, ms, added in rows
    ]
    if until is not None:
        lines += ["", f"Through Penstock, {ticket.MODEL} served {until} calls; then the cheaper model did, until the stop."]
    return ["", *lines, "Changed in the agent: 3 decorators and 1 except for @cycles; a base URL for the proxy."]


def _verdict(console: Console, under_cycles: Course, proxied: Proxied) -> int:
    course = proxied.course
    wrong = []
    if (under_cycles.calls, under_cycles.spent) != (CEILING // CALL_COST, CEILING):
        wrong.append(f"under @cycles: {under_cycles.calls} calls for ${exact(under_cycles.spent)}")
    if not under_cycles.ended.startswith("409 BUDGET_EXCEEDED"):
        wrong.append(f"under @cycles: stopped by {under_cycles.ended}")
    if max(course.spent, proxied.billed) > CEILING:
        wrong.append(f"through the gateway: ${exact(proxied.billed)} billed")
    if course.spent != proxied.billed:
        wrong.append(f"the ledger has ${exact(course.spent)}, the provider's bill ${exact(proxied.billed)}")
    if not course.ended.startswith("402 "):
        wrong.append(f"through the gateway: stopped by {course.ended}")
    if proxied.downgraded_at is None:
        wrong.append("through the gateway: no downgrade before the stop")
    wrong += [f"${exact(reserved)} is still held" for reserved in (under_cycles.reserved, course.reserved) if reserved]
    for what in wrong:
        console.print(f"FAILED: {what}", markup=False, highlight=False, soft_wrap=True)
    return 1 if wrong else 0


def exact(microcents: int) -> str:
    return f"{Decimal(microcents) / MICROCENTS:.8f}"


def _microcents(usd_text: object) -> int:
    return int(Decimal(str(usd_text)) * MICROCENTS)
