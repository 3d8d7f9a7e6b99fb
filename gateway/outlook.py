"""What a reserve would answer, by balances that were read before: which plan fits, and what stands in the way of the others.

Holds nothing, and promises nothing: another call may take what is left a moment later. The rule of what fits is the ledger's own
(`core.ceilings`); only the ledger's step decides.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.core.ceilings import WHOLE, exceeds, fits
from gateway.core.scopes import Caller
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Outcome, Plan
from gateway.ledger.contract import Frozen, Ledger, RunState, RunView

_AT_ONCE: Final = 32  # accounts that are read side by side


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


async def known(ledger: Ledger, decision: Decision, beside: Sequence[Plan] = ()) -> Known:
    """Of the accounts of the decision's plans, and of those beside."""
    caller = decision.call.caller
    keys = sorted({charge.ceiling.account.key for plan in (*decision.ladder, *beside) for charge in plan.charges})
    balances: dict[str, Balance] = {}
    for first in range(0, len(keys), _AT_ONCE):
        views = await asyncio.gather(*(ledger.account(caller.tenant, key) for key in keys[first : first + _AT_ONCE]))
        balances |= {view.balance.account.key: view.balance for view in views if view is not None}
    runs = [await ledger.run(caller.tenant, run) for run in (caller.run, *caller.ancestry)]
    return Known(balances, {view.run: view for view in runs if view is not None}, await ledger.frozen(caller.tenant))


@dataclass(frozen=True, slots=True)
class Outlook:
    """The run's latest calls and its place in the tree are not looked into: a loop, too many runs, a parent that can't be."""

    decision: Decision
    known: Known

    @property
    def chosen(self) -> Plan | None:
        """The plan that would be held; None: the call would be refused."""
        if self.barred() is not None:
            return None
        return next((plan for plan in self.decision.ladder if self.blocking(plan) is None), None)

    @property
    def outcome(self) -> Outcome:
        plan = self.chosen
        if plan is None:
            return Outcome.BLOCK
        if plan.model != self.decision.ladder[0].model:
            return Outcome.DOWNGRADE
        return Outcome.ALLOW if self.warned(plan) is None else Outcome.ADVISORY_WARN

    def barred(self) -> str | None:
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

    def blocking(self, plan: Plan) -> Charge | None:
        """The first account that has no room, as the ledger would judge it with these balances."""
        return next((charge for charge in plan.charges if not self.fits(charge, plan)), None)

    def fits(self, charge: Charge, plan: Plan) -> bool:
        balance = self.balance(charge)
        return fits(charge, plan.held_at(charge), self.limit(charge, plan), balance.committed, balance.reserved)

    def warned(self, plan: Plan) -> Charge | None:
        """The advisory charge that the plan would exceed, if any."""
        for charge in plan.charges:
            if charge.ceiling.basis is not Basis.NONE:
                continue
            balance, limit, amount = self.balance(charge), self.limit(charge, plan), plan.held_at(charge)
            if limit is not None and amount and exceeds(charge, amount, limit, balance.committed, balance.reserved):
                return charge
        return None

    def limit(self, charge: Charge, plan: Plan) -> int | None:
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

    def balance(self, charge: Charge) -> Balance:
        """As it is kept: its limit is the one stored with the account, if any."""
        account = charge.ceiling.account
        return self.known.balances.get(account.key) or Balance(account, None, 0, 0)

    def effective(self, charge: Charge, plan: Plan) -> Balance:
        """The same under the limit and in the mode that count for the call."""
        return replace(
            self.balance(charge), account=charge.ceiling.account, limit=self.limit(charge, plan), mode=charge.ceiling.mode
        )

    def _account_limit(self, charge: Charge, plan: Plan) -> int | None:
        """The limit stored with the account, else the policy's; of a share, what its first hold would pin now."""
        ceiling = charge.ceiling
        stored = self.balance(charge).limit
        if stored is not None or not ceiling.pinned_ppm:
            return ceiling.limit if stored is None else stored
        other = pinned_to(ceiling, plan)
        whole, balance = self.limit(other, plan), self.balance(other)
        return None if whole is None else max(0, whole - balance.committed - balance.reserved) * ceiling.pinned_ppm // WHOLE


def pinned_to(ceiling: Ceiling, plan: Plan) -> Charge:
    """The charge that a share is a part of."""
    return next(charge for charge in plan.charges if charge.ceiling.account.key == ceiling.pinned_to)
