"""Decide, ask the ledger, and decide again where it knows better; and what whoever is not let in is told. For calls and for what is
spent beside the proxy alike."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from gateway.core.ceilings import wait_ms
from gateway.core.decide import Unservable
from gateway.core.values import Call, Decision
from gateway.ledger.contract import DEPTH, Barred, Barrier, Refusal, Stale
from gateway.wire.budget import refusal_headers
from gateway.wire.problem import Alternative, Problem, Refused, budget_refusal, problem

T = TypeVar("T")

_DECISIONS: Final = 3  # the first, and two more on new facts
_WORTH_WAITING_MS: Final = 60_000


async def admit(
    call: Call,
    at_ms: int,
    decide: Callable[[Call, int], Decision | Unservable],
    ask: Callable[[Decision], Awaitable[T | Stale]],
) -> T:
    """What the ledger answered. Refused: there is nothing to be decided, or the run is another's."""
    caller = call.caller
    for _ in range(_DECISIONS):
        decision = decide(call, at_ms)
        if isinstance(decision, Unservable):
            raise Refused(problem(decision.code, decision.message, decision.param))
        answer = await ask(decision)
        if not isinstance(answer, Stale):
            return answer
        if answer.owner not in ("", caller.key):
            raise Refused(problem("run_owned_by_another", f"The run {caller.run} belongs to another key: choose another run id."))
        at_ms, call = answer.now_ms, replace(call, caller=replace(caller, ancestry=answer.ancestry))
    raise Refused(problem("ledger_unavailable", "The ledger's facts changed during three decisions; try again."))


def over_budget(refusal: Refusal, told: int = 0, alternatives: Sequence[Alternative] = ()) -> Refused:
    """`told`: the plan that the answer speaks of."""
    decision, blocking = refusal.decision, refusal.blocking[told]
    plan = decision.ladder[told]
    charge = next(charge for charge in plan.charges if charge.ceiling.account == blocking.account)
    wait = wait_ms(charge, plan.cost_max.of(blocking.account.unit), blocking, refusal.at_ms)
    retry_after = -(-wait // 1000) if wait is not None and wait <= _WORTH_WAITING_MS else None
    said = budget_refusal(decision, plan, blocking, alternatives, retry_after)
    return Refused(said, refusal_headers(decision, blocking, refusal.balances))


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
                "run_paused", f"{whose} is paused: it takes no calls until it is resumed (POST /budget/runs/{what}/resume)."
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
            return _bad_parent("ambiguous_request", f"Run {run} has another parent than {what}: a run keeps its place.")
        case Barrier.FOREIGN_PARENT:
            return _bad_parent(
                "run_owned_by_another", f"The run {what} belongs to another key: it cannot be the parent of {run}."
            )


def _bad_parent(code: str, detail: str) -> Problem:
    return problem(code, detail, "X-Parent-Run-Id")
