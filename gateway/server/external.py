"""What is spent beside the proxy, and comes in by `POST /budget/…`: whose it is, what it amounts to, and that it counts once.

A caller's idempotency key makes the decision's id, so the ledger itself knows a repetition. The id says where it came from
(`bdg_evt_…`, `bdg_ext_…`), which no id of a proxied call can: what is held for one of those is out of reach here.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import orjson
from multidict import CIMultiDictProxy

from gateway.admitting import admit, barred, over_budget
from gateway.core.decide import Rulebook, Unservable
from gateway.core.money import format_usd
from gateway.core.policy import RUN_HEADER, Policy, RunOwner
from gateway.core.record import record
from gateway.core.scopes import Amounts, Caller
from gateway.core.values import Call, Decision, Ending, Usage, UsageSource
from gateway.identity import Identity, Principal
from gateway.ledger.contract import Barred, CallRecord, HoldState, Ledger, Refusal, Settled, Stale
from gateway.observer import Observer, Outside
from gateway.policy_file import MAX_COUNT
from gateway.server.pages import bad_member, json_reply, text_of, usd_of, whole_of
from gateway.server.views import Json, instant, more_json, tightest_usd
from gateway.wire.exchange import Inbound, Reply
from gateway.wire.headers import directives, run_id, single
from gateway.wire.problem import Refused, bad_request, problem

T = TypeVar("T")

MAX_CALLS: Final = 1_000_000
COMMON: Final = ("run_id", "name", "idempotency_key")  # members of every body
COUNTS: Final = ("tokens", "calls", "credits", "risk_points")  # amounts, besides that in USD

_KEY: Final = re.compile(r"[\x21-\x7e]{1,200}", re.ASCII)
_COUNTS: Final = tuple((name, MAX_CALLS if name == "calls" else MAX_COUNT) for name in COUNTS)
_NAME: Final = re.compile(r"[^\s\x00-\x1f\x7f]{1,200}")


@record
class Order:
    """What was asked for. The same key and the same words make the same id and the same fingerprint."""

    call: Call
    decision_id: str
    at_ms: int
    request_id: str

    def again(self, attempt: int) -> "Order":
        """The same under an id of its own, where what the ones before had reserved was given back before anybody heard of it."""
        return replace(self, decision_id=f"{self.decision_id}_{attempt}") if attempt else self


@dataclass(frozen=True, slots=True)
class External:
    """What both APIs stand on. `rulebook`: the policy in force."""

    ledger: Ledger
    identity: Identity
    rulebook: Callable[[], Rulebook]
    observer: Observer
    now_ms: Callable[[], int]

    def principal(self, headers: CIMultiDictProxy[str]) -> Principal:
        """A caller: what is spent has to be somebody's, so the admin token opens nothing here."""
        return self.identity.principal(headers, model_route=True)

    def order(self, inbound: Inbound, body: Mapping[str, object], kind: str) -> Order:
        """`kind`: `evt` or `ext`."""
        principal = self.principal(inbound.headers)
        key = _idempotency_key(inbound.headers, body)
        policy, at_ms = self.rulebook().policy, self.now_ms()
        named = named_run(inbound, body, policy)
        # Dimensions come from headers and keys here: the body is the gateway's own.
        caller = self.identity.caller(principal, inbound, None, policy, at_ms, named)
        tail = f"{kind}_{_digest([principal.tenant, principal.key, key])}"
        said = {name: value for name, value in body.items() if name not in ("run_id", "idempotency_key")}
        fingerprint = _digest([tail, None if caller.run_issued else caller.run, said])
        name = text_of(body, "name", _NAME, "1 to 200 characters without spaces") or "external"
        call = Call(
            caller=_as_before(caller, tail),
            dialect=kind,
            model=name,
            stream=False,
            choices=1,
            client_cap=None,
            parts=(),
            directives=directives(inbound.headers),
            fingerprint=fingerprint,
        )
        return Order(call, f"bdg_{tail}", at_ms, inbound.request_id)

    async def recorded(self, order: Order) -> CallRecord | None:
        """What became of the order before; None: nothing, or it was refused, which may be tried again. Refused 409: the key was used
        for something else."""
        found = await self.ledger.record(order.call.caller.tenant, order.decision_id)
        if found is None or found.state is None:
            return None
        if found.inputs.get("fingerprint") != order.call.fingerprint:
            raise Refused(
                problem("idempotency_conflict", "This idempotency key was used before, with another body or run: use a new one.")
            )
        return found

    async def admitted(
        self,
        order: Order,
        cost: Amounts,
        ask: Callable[[Decision], Awaitable[T | Refusal | Barred | Stale]],
        *,
        spent: bool = False,
    ) -> T:
        """What the ledger says to the order; Refused where it is refused, as a call would be. `spent`: it has been spent already."""
        await self.identity.ready()
        rulebook = self.rulebook()

        def decide(call: Call, at_ms: int) -> Decision | Unservable:
            return rulebook.for_cost(call, cost, at_ms, order.decision_id, spent=spent)

        answer: T | Refusal | Barred = await admit(order.call, order.at_ms, decide, ask)
        if isinstance(answer, Refusal | Barred):
            refused = over_budget(answer) if isinstance(answer, Refusal) else barred(answer)
            said, asked = refused.problem, answer.decision.call
            self.observer.refused_outside(order.request_id, asked.caller, order.decision_id, asked.model, said.code, said.status)
            raise refused
        return answer

    def settled(self, request_id: str, record: CallRecord, settled: Settled, key: str, began_s: float) -> None:
        """Tells of it where it is new. `record`: as it was before; `key`: whose request it was."""
        for alert in settled.alerts:
            self.observer.alert(alert)
        if not settled.changed:
            return
        debited, released = record.ending == Ending.DEBITED.value, settled.state is HoldState.RELEASED
        caller = Caller(record.tenant, key, record.run, record.run, dimensions=record.dimensions)
        self.observer.outside(
            Outside(
                request_id=request_id,
                caller=caller,
                decision_id=record.decision_id,
                outcome=record.outcome,
                name=record.selected_model,
                status=200,
                ending=Ending.DEBITED if debited else Ending.COMPLETED,
                held=None if debited else record.held,
                charged=None if released else settled.charged,
                usage=None if released else Usage(UsageSource.COUNTED),
                began_s=began_s,
            )
        )

    def may_end(self, principal: Principal, record: CallRecord) -> bool:
        """Whether it is the caller's own, or one that the policy lets it share."""
        return record.owner == principal.key or self.rulebook().policy.runs.owner is RunOwner.TENANT

    async def left(self, of: CallRecord) -> str | None:
        """What is left now in the tightest USD account of the run."""
        view = await self.ledger.run(of.tenant, of.run)
        return None if view is None else tightest_usd(view.accounts)


def amounts_of(body: Mapping[str, object], usd_name: str, otherwise: Amounts) -> Amounts:
    """The amounts that the body names, and those of `otherwise` for what it leaves out; one at least has to be named."""
    usd = usd_of(body, usd_name)
    counts = [whole_of(body, name, most) for name, most in _COUNTS]
    if usd is None and counts == [None] * len(counts):
        raise bad_request("bad_request", f"Expected {usd_name}, tokens, calls, credits or risk_points.", usd_name)
    others = (otherwise.tokens, otherwise.calls, otherwise.credits, otherwise.risk_points)
    return Amounts(
        otherwise.usd if usd is None else usd,
        *[other if count is None else count for count, other in zip(counts, others, strict=True)],
    )


def spent(of: CallRecord, left: str | None, more: Json, replayed: bool = False, status: int = 200) -> Reply:
    """The answer about a debit or a hold, as it stands, with `more` that is told of its kind."""
    told: Json = {
        "decision_id": of.decision_id,
        "run_id": of.run,
        "name": of.selected_model,
        "state": None if of.state is None else of.state.value,
        "at": instant(of.at_ms),
        **more,
        "charged_usd": None if of.charged is None else format_usd(of.charged.usd),
        "charged_tokens": None if of.charged is None else of.charged.tokens,
        "charged_calls": None if of.charged is None else of.charged.calls,
        **more_json("charged", of.charged),
        "remaining_usd": left,
        "replayed": replayed,
    }
    headers = [("X-Budget-Decision", of.outcome), ("X-Budget-Decision-Id", of.decision_id), ("X-Run-Id", of.run)]
    if left is not None:
        headers.append(("X-Budget-Remaining-USD", left))
    if replayed:
        headers.append(("Idempotent-Replayed", "true"))
    return json_reply(told, status, headers)


def _idempotency_key(headers: CIMultiDictProxy[str], body: Mapping[str, object]) -> str:
    expected = "1 to 200 printable ASCII characters without spaces"
    header = single(headers, "Idempotency-Key")
    if header is not None and _KEY.fullmatch(header) is None:
        raise bad_member("Idempotency-Key", expected)
    member = text_of(body, "idempotency_key", _KEY, expected)
    if header is not None and member is not None and header != member:
        raise bad_request("ambiguous_request", "Idempotency-Key and idempotency_key differ.", "Idempotency-Key")
    key = header or member
    if key is None:
        raise bad_request(
            "bad_request",
            "This has to count once, however often it is sent: name it by the header Idempotency-Key, or by idempotency_key.",
            "Idempotency-Key",
        )
    return key


def named_run(inbound: Inbound, told: Mapping[str, object], policy: Policy) -> str | None:
    """The run that the body or the query names: no other source is looked at then, but X-Run-Id must not name another."""
    if "run_id" not in told:
        return None
    given = told["run_id"]
    if not isinstance(given, str):
        raise bad_member("run_id", "a run id, as a text")
    run = run_id(given)
    for source in policy.runs.id_from:
        if source.name == RUN_HEADER and single(inbound.headers, RUN_HEADER) not in (None, run):
            raise bad_request("ambiguous_request", f"run_id and {RUN_HEADER} name two runs.", "run_id")
    return run


def _as_before(caller: Caller, tail: str) -> Caller:
    """A caller without a run id gets the same one when it asks again."""
    if not caller.run_issued:
        return caller
    run = f"run_{tail}"
    return replace(caller, run=run, run_scope=run if caller.run_scope == caller.run else caller.run_scope)


def _digest(of: object) -> str:
    return hashlib.sha256(orjson.dumps(of, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]
