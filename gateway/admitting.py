"""Decide, ask the ledger, and decide again where it knows better; and what whoever is not let in is told. For calls and for what is
spent beside the proxy alike."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from gateway.core.ceilings import fits, wait_ms
from gateway.core.decide import Unservable
from gateway.core.scopes import Caller
from gateway.core.values import Balance, Call, Charge, Decision, Plan
from gateway.ledger.contract import DEPTH, Barred, Barrier, Refusal, Stale
from gateway.wire.budget import refusal_headers
from gateway.wire.problem import Alternative, Problem, Refused, budget_refusal, problem

T = TypeVar("T")

_DECISIONS: Final = 4  # the first, and three more on new facts
# A minute; and a bucket more, because what was spent in a burst leaves a rolling minute only with the last of its buckets.
_WORTH_WAITING_MS: Final = 61_500
_LONGEST_WAIT_S: Final = 60  # SDKs do not wait for longer than that; who comes a second too soon is told to wait for that second


async def admit(
    call: Call,
    at_ms: int,
    decide: Callable[[Call, int], Decision | Unservable],
    ask: Callable[[Decision], Awaitable[T | Stale]],
) -> T:
    """What the ledger answered. Refused: there is nothing to be decided, or the run is another's."""
    caller = call.caller
    owners = {caller.owner}  # in whose name was asked
    for _ in range(_DECISIONS):
        decision = decide(call, at_ms)
        if isinstance(decision, Unservable):
            raise Refused(problem(decision.code, decision.message, decision.param))
        answer = await ask(decision)
        if isinstance(answer, Stale):
            caller = _corrected(caller, answer)
            at_ms = answer.now_ms
        elif isinstance(answer, Barred) and caller.shares and answer.owner not in ("", *owners):
            caller = replace(caller, owned_by=answer.owner)  # it comes to be a child of that key's run
        else:
            return answer
        owners.add(caller.owner)
        call = replace(call, caller=caller)
    raise Refused(problem("ledger_unavailable", "The ledger's facts changed during four decisions; try again."))


def _corrected(caller: Caller, stale: Stale) -> Caller:
    if stale.owner in ("", caller.owner):
        return replace(caller, ancestry=stale.ancestry)
    if stale.owner == caller.key or caller.shares:  # what its owner sees of its ancestry, the next answer tells
        return replace(caller, owned_by="" if stale.owner == caller.key else stale.owner)
    raise owned_by_another(caller.run)


def owned_by_another(run: str) -> Refused:
    return Refused(
        problem(
            "run_owned_by_another",
            f"The run {run} belongs to another key: choose another run id, or let the keys of a tenant share its runs (runs: {{owner: tenant}} "
            "in the policy).",
        )
    )


def over_budget(refusal: Refusal, alternatives: Sequence[Alternative] = ()) -> Refused:
    """Speaks of the plan that fits soonest, where a wait is all it takes; else of the one that was asked for."""
    decision = refusal.decision
    wait = None if refusal.paused else _shortest_wait(refusal)
    told = _told(refusal) if wait is None else wait[1]
    blocking = refusal.blocking[told]
    retry_after = None if wait is None else min(_LONGEST_WAIT_S, -(-wait[0] // 1000))
    said = budget_refusal(decision, decision.ladder[told], blocking, alternatives, retry_after, refusal.paused)
    return Refused(said, refusal_headers(decision, blocking, refusal.balances))


def _shortest_wait(refusal: Refusal) -> tuple[int, int] | None:
    """(ms, the plan's place): until one of the plans would fit all its accounts; None where that takes more than a short wait."""
    waits = [(wait, place) for place, plan in enumerate(refusal.decision.ladder) if (wait := _wait_ms(plan, refusal)) is not None]
    shortest = min(waits, default=None)
    return shortest if shortest is not None and shortest[0] <= _WORTH_WAITING_MS else None


def _wait_ms(plan: Plan, refusal: Refusal) -> int | None:
    waits = [
        wait_ms(charge, plan.held_at(charge), balance, refusal.at_ms) for charge, balance in _blocking(plan, refusal.balances)
    ]
    return None if None in waits else max((wait for wait in waits if wait is not None), default=None)


def _told(refusal: Refusal) -> int:
    """The requested plan, unless only the share kept for cheaper plans stood in its way."""
    blocking, plan = refusal.blocking[0], refusal.decision.ladder[0]
    charge = next(charge for charge in plan.charges if charge.ceiling.account == blocking.account)
    whole, amount = Charge(charge.ceiling), plan.held_at(charge)
    only_its_share = fits(whole, amount, blocking.limit, blocking.committed, blocking.reserved)
    return len(refusal.blocking) - 1 if only_its_share else 0


def first_blocking(plan: Plan, balances: Sequence[Balance]) -> Balance | None:
    """The first account that has no room for what the plan can cost; those that `balances` lacks are taken to have it."""
    return next((balance for _, balance in _blocking(plan, balances)), None)


def _blocking(plan: Plan, balances: Sequence[Balance]) -> Iterator[tuple[Charge, Balance]]:
    known = {balance.account.key: balance for balance in balances}
    for charge in plan.charges:
        account = charge.ceiling.account
        balance = known.get(account.key)
        if balance is not None and not fits(charge, plan.held_at(charge), balance.limit, balance.committed, balance.reserved):
            yield charge, balance


def barred(answer: Barred) -> Refused:
    return Refused(_said(answer), refusal_headers(answer.decision, None, ()))


def _said(answer: Barred) -> Problem:
    run, what = answer.decision.call.caller.run, answer.what
    # A run is kept from calls by what happened to it, or to one that it comes from.
    whose = f"Run {run}" if what == run else f"Run {what}, from which run {run} comes,"
    match answer.barrier:
        case Barrier.STOPPED:
            return problem("run_stopped", f"{whose} was stopped: it takes no more calls. Start another run.")
        case Barrier.PAUSED:
            return problem(
                "run_paused",
                f"{whose} is paused: it takes no calls until it is resumed (POST /budget/runs/{what}/resume) or, where its budget was "
                "used up, a limit is raised.",
            )
        case Barrier.FROZEN:
            return problem("scope_frozen", f"The operator froze {what}: it takes no calls until it is thawed.")
        case Barrier.TOO_MANY_RUNS:
            return problem(
                "too_many_runs",
                f"Run {run} would be one more than the {what} active runs that a key may have (runs.max_active_per_key): stop one, or "
                "let it be idle.",
            )
        case Barrier.LOOP:
            return problem(
                "loop_detected", f"Run {run} has sent this request {what} times of late (runs.repeat_limit): change it."
            )
        case Barrier.CYCLE:
            return _bad_parent("run_id_invalid", f"Run {run} cannot have {what} as its parent: it would come from itself.")
        case Barrier.TOO_DEEP:
            return _bad_parent(
                "run_id_invalid", f"Run {run} cannot have {what} as its parent: a run has at most {DEPTH} ancestors."
            )
        case Barrier.PARENT_CHANGED:
            return _bad_parent("run_id_invalid", f"Run {run} has another parent than {what}: a run keeps its place.")
        case Barrier.FOREIGN_PARENT:
            return _bad_parent(
                "run_owned_by_another", f"The run {what} belongs to another key: it cannot be the parent of {run}."
            )


def _bad_parent(code: str, detail: str) -> Problem:
    return problem(code, detail, "X-Parent-Run-Id")
