"""What the gateway would do with a request, and why: budgets, estimate, ladder, decision. No call is made, nothing is held."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from zoneinfo import ZoneInfo

from gateway.core import estimate
from gateway.core.ceilings import WHOLE, exceeds, fits
from gateway.core.decide import Rulebook
from gateway.core.money import format_usd
from gateway.core.scopes import Account, Caller, Unit
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Plan
from gateway.core.windows import Window, WindowKind
from gateway.ledger.contract import Frozen, Ledger, RunState, RunView


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows of a call's accounts (by key; `limit` is the one stored with it, if any) and of its run and the run's
    ancestors (by id). What it does not know yet is not there."""

    balances: Mapping[str, Balance] = field(default_factory=dict)
    runs: Mapping[str, RunView] = field(default_factory=dict)
    frozen: Sequence[Frozen] = ()


async def placed(ledger: Ledger, caller: Caller) -> Caller:
    """The caller with the run's ancestors, as a call would place it."""
    view = await ledger.run(caller.tenant, caller.run)
    ancestry = () if view is None else view.ancestry
    if not ancestry and caller.parent is not None:
        parent = await ledger.run(caller.tenant, caller.parent)
        ancestry = (caller.parent, *(parent.ancestry if parent else ()))
    return replace(caller, ancestry=ancestry)


async def known(ledger: Ledger, decision: Decision) -> Known:
    caller = decision.call.caller
    keys = {charge.ceiling.account.key for plan in decision.ladder for charge in plan.charges}
    accounts = [await ledger.account(caller.tenant, key) for key in sorted(keys)]
    runs = [await ledger.run(caller.tenant, run) for run in (caller.run, *caller.ancestry)]
    return Known(
        {view.balance.account.key: view.balance for view in accounts if view is not None},
        {view.run: view for view in runs if view is not None},
        await ledger.frozen(caller.tenant),
    )


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a reserve would answer by what is known. The run's latest calls and its place in the tree are not looked into: a loop, too
    many runs, a parent that can't be."""

    decision: Decision
    rulebook: Rulebook
    known: Known

    def lines(self) -> Iterator[str]:
        """The explanation as text, for a terminal."""
        yield from self._budgets()
        for place, plan in enumerate(self.decision.ladder, start=1):
            yield ""
            yield from self._plan(place, plan)
        for passed in self.decision.passed_over:
            yield f"not in the ladder: {passed.model}: {passed.reason}"
        yield ""
        yield self._outcome()

    def _budgets(self) -> Iterator[str]:
        caller = self.decision.call.caller
        dimensions = "".join(f", {name} {value}" for name, value in caller.dimensions)
        yield f"caller    tenant {caller.tenant}, key {caller.key}, run {caller.run}{dimensions}"
        plan = self.decision.ladder[0]
        charges = plan.charges
        yield "budgets   that apply to the requested model" if charges else "budgets   none applies: nothing limits this call"
        for charge in charges:
            account, balance = charge.ceiling.account, self._balance(charge)
            words = (
                f"{account.name:<18} {_scope(account)}",
                _window(account.window),
                self._limit_words(charge, plan),
                charge.ceiling.mode.value,
                f"committed {_amount(balance.committed, account.unit)}, reserved {_amount(balance.reserved, account.unit)}",
            )
            yield "  " + " · ".join(words)

    def _plan(self, place: int, plan: Plan) -> Iterator[str]:
        call = self.decision.call
        model = self.rulebook.route(plan).model
        cost = format_usd(plan.cost_max.usd)
        yield f"plan {place}    {plan.model} at {plan.provider}, at most {plan.output_cap} output tokens: up to ${cost}"
        for line in estimate.explain(call, model, self.rulebook.counter, plan.output_cap):
            yield f"  {line.what:<32} {line.tokens:>9,} tokens  ${format_usd(line.usd)}"
        if plan.slice is not None:
            names = ", ".join(charge.ceiling.account.name for charge in plan.charges if charge.sliced)
            yield (
                f"  held at first in {names}: ${format_usd(plan.slice.cost.usd)}, the input and {plan.slice.output_cap:,} tokens of output"
            )
        blocking = self._blocking(plan)
        yield "  fits" if blocking is None else f"  does not fit {blocking.ceiling.account.name}{self._share(blocking, plan)}"

    def _limit_words(self, charge: Charge, plan: Plan) -> str:
        ceiling, unit = charge.ceiling, charge.ceiling.account.unit
        limit = self._limit(charge, plan)
        if limit is None:
            return "no limit"
        if not ceiling.pinned_ppm:
            return _amount(limit, unit)
        return f"{_amount(limit, unit)} ({_percent(ceiling.pinned_ppm)} of {_pinned_to(ceiling, plan).ceiling.account.name})"

    def _share(self, charge: Charge, plan: Plan) -> str:
        """Why the plan may not use the whole limit."""
        if charge.share_ppm == WHOLE:
            return ""
        as_last = self.decision.ladder[-1].charges[
            plan.charges.index(charge)
        ]  # every plan has the same budgets in the same order
        rest = "for cheaper ones" if charge.share_ppm < as_last.share_ppm else "kept for calls that wrap up"
        return f" (this plan may use {_percent(charge.share_ppm)} of it: the rest is {rest})"

    def _barred(self) -> str | None:
        """Why the run takes no call, whatever it costs."""
        caller = self.decision.call.caller
        for run in (caller.run, *caller.ancestry):
            view = self.known.runs.get(run)
            if view is not None and view.state is not RunState.ACTIVE:
                return f"the run {run} was stopped" if view.state is RunState.STOPPED else f"the run {run} is paused"
        for frozen in self.known.frozen:
            if frozen.takes(caller):
                return f"{frozen.text} is frozen"
        return None

    def _outcome(self) -> str:
        ladder, barred = self.decision.ladder, self._barred()
        if barred is not None:
            return f"decision  block: {barred}"
        plan = next((plan for plan in ladder if self._blocking(plan) is None), None)
        if plan is None:
            return "decision  block: no plan fits"
        if plan.model != ladder[0].model:
            return f"decision  downgrade: {plan.model} would be called"
        warned = self._warned(plan)
        if warned is not None:
            return f"decision  advisory_warn: {plan.model} would be called, above what {warned.ceiling.account.name} advises"
        return f"decision  allow: {plan.model} would be called"

    def _blocking(self, plan: Plan) -> Charge | None:
        """As the ledger would judge it with these balances."""
        for charge in plan.charges:
            balance, amount = self._balance(charge), plan.held_at(charge)
            if not fits(charge, amount, self._limit(charge, plan), balance.committed, balance.reserved):
                return charge
        return None

    def _warned(self, plan: Plan) -> Charge | None:
        """The advisory charge that the plan would exceed, if any."""
        for charge in plan.charges:
            if charge.ceiling.basis is not Basis.NONE:
                continue
            balance, limit, amount = (
                self._balance(charge),
                self._limit(charge, plan),
                plan.held_at(charge),
            )
            if limit is not None and amount and exceeds(charge, amount, limit, balance.committed, balance.reserved):
                return charge
        return None

    def _limit(self, charge: Charge, plan: Plan) -> int | None:
        """The effective limit. A run's own tightens the account's, or replaces it where the admin set it; a limit that comes with
        the call tightens the run's. (Unless the run has heard it before and the admin has raised it since: that only the ledger knows.)"""
        ceiling = charge.ceiling
        limit = self._account_limit(charge, plan)
        if not ceiling.own:
            return limit
        run = self.known.runs.get(ceiling.own_run or "")
        own = None if run is None else run.limit
        if run is not None and run.raised and own is not None:
            return own
        asked = self.decision.call.directives.run_limit if ceiling.own_run == self.decision.call.caller.run else None
        return min((each for each in (limit, own, asked) if each is not None), default=None)

    def _account_limit(self, charge: Charge, plan: Plan) -> int | None:
        """The limit stored with the account, else the policy's; of a share, what its first hold would pin now."""
        ceiling = charge.ceiling
        stored = self._balance(charge).limit
        if stored is not None or not ceiling.pinned_ppm:
            return ceiling.limit if stored is None else stored
        other = _pinned_to(ceiling, plan)
        whole, balance = self._limit(other, plan), self._balance(other)
        return None if whole is None else max(0, whole - balance.committed - balance.reserved) * ceiling.pinned_ppm // WHOLE

    def _balance(self, charge: Charge) -> Balance:
        account = charge.ceiling.account
        return self.known.balances.get(account.key) or Balance(account, None, 0, 0)


def _pinned_to(ceiling: Ceiling, plan: Plan) -> Charge:
    return next(charge for charge in plan.charges if charge.ceiling.account.key == ceiling.pinned_to)


def _scope(account: Account) -> str:
    return ", ".join(f"{name} {value}" for name, value in account.scope) or account.scope_name


def _window(window: Window) -> str:
    """`lifetime`, `rolling 10m`, `day from 2026-11-22 00:00 (Europe/Berlin)`."""
    if window.kind in (WindowKind.LIFETIME, WindowKind.ROLLING):
        return window.name
    start = datetime.fromtimestamp(window.start_ms / 1000, ZoneInfo(window.timezone))
    return f"{window.name} from {start:%Y-%m-%d %H:%M} ({window.timezone})"


def _amount(amount: int, unit: Unit) -> str:
    return f"${format_usd(amount)}" if unit is Unit.USD else f"{amount:,} {unit.words}"


def _percent(ppm: int) -> str:
    return f"{ppm / 10_000:g}%"
