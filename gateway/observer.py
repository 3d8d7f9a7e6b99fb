"""What is told of each call, once it is over for the client and for the ledger: one log line, and the metrics."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from gateway.core.money import format_usd
from gateway.core.record import record
from gateway.core.scopes import NO_VALUE, Amounts, Caller
from gateway.core.values import Decision, Ending, Hold, Outcome, Receipt, Usage
from gateway.events import CallEvent, Events
from gateway.ledger.contract import Alert, CallRecord
from gateway.metrics import OTHER, Metrics

_TELL_AGAIN_S: Final = 60.0
_UNPRICED_AT_MOST: Final = 100  # different things; what comes later is `other`
_PLAIN: Final = re.compile(r"[a-z0-9_.]{1,64}", re.ASCII)
OUTSIDE: Final = "outside"  # the cause of an overrun that no estimate of the gateway's made
_NOBODY = Caller("", "", "", "")


@record
class Outside:
    """What was spent, or given back, beside the proxy: by whoever says what it cost. `charged` None: nothing."""

    request_id: str
    caller: Caller
    decision_id: str
    outcome: str
    name: str  # of what was done
    status: int
    ending: Ending
    held: Amounts | None  # None: it was not held before
    charged: Amounts | None
    usage: Usage | None
    began_s: float  # by the observer's clock, when the request came


class Observer:
    """Opens a story for each call."""

    def __init__(self, events: Events, metrics: Metrics, clock_s: Callable[[], float]) -> None:
        self.events = events
        self.metrics = metrics
        self.clock_s = clock_s  # monotonic
        self._away = ("", -_TELL_AGAIN_S)  # why the ledger was away, and when that was told last
        self._away_told = False
        self._unpriced: dict[tuple[str, str], float] = {}  # (provider, what) → when it was told last

    def story(self, request_id: str) -> "Story":
        return Story(self, request_id)

    def outside(self, told: Outside) -> None:
        """The same receipt as a settled call's: one log line, the metrics."""
        held, charged = told.held, told.charged
        self.metrics.outside(told.ending, told.usage, 0 if charged is None else charged.usd)
        if held is not None and charged is not None and not charged.within(held):
            self.metrics.overrun(OUTSIDE)
            self.events.log.warning(
                "overrun",
                tenant=told.caller.tenant,
                key=told.caller.key,
                run=told.caller.run,
                decision_id=told.decision_id,
                model=told.name,
                provider=NO_VALUE,
                held_usd=format_usd(held.usd),
                charged_usd=format_usd(charged.usd),
                cause=OUTSIDE,
            )
        self.events.call(
            CallEvent(
                request_id=told.request_id,
                caller=told.caller,
                decision_id=told.decision_id,
                outcome=told.outcome,
                code="",
                requested_model=told.name,
                selected_model=told.name,
                provider=NO_VALUE,
                status=told.status,
                stream=False,
                usage=told.usage if told.usage is not None and told.usage.total_tokens else None,
                held=None if held is None else held.usd,
                charged=None if charged is None else charged.usd,
                ending=told.ending,
                added_ms=None,
                duration_ms=(self.clock_s() - told.began_s) * 1000,
                beside=charged,
            )
        )

    def refused_outside(self, request_id: str, caller: Caller, decision_id: str, name: str, code: str, status: int) -> None:
        """Told as a refused call is."""
        self.metrics.decided(Outcome.BLOCK, code)
        self.events.call(
            CallEvent(
                request_id=request_id,
                caller=caller,
                decision_id=decision_id,
                outcome=Outcome.BLOCK,
                code=code,
                requested_model=name,
                selected_model=None,
                provider=None,
                status=status,
                stream=False,
                usage=None,
                held=None,
                charged=None,
                ending=None,
                added_ms=None,
                duration_ms=0.0,
            )
        )

    def alert(self, alert: Alert) -> None:
        self.events.alert(alert)
        self.metrics.alert(alert)

    def unpriced(self, provider: str, model: str, what: Sequence[str]) -> None:
        """Counted each time, told once a minute for each."""
        now_s = self.clock_s()
        for each in what:
            named = self._unpriced_label(provider, each)
            self.metrics.unpriced_usage(provider, named)
            if now_s - self._unpriced.get((provider, named), -_TELL_AGAIN_S) >= _TELL_AGAIN_S:
                self._unpriced[provider, named] = now_s
                self.events.log.warning("unpriced_usage", provider=provider, model=model, what=each)

    def _unpriced_label(self, provider: str, what: str) -> str:
        """A provider that makes up field names without end must not make up label values."""
        known = (provider, what) in self._unpriced or (len(self._unpriced) < _UNPRICED_AT_MOST and _PLAIN.fullmatch(what))
        return what if known else OTHER

    def settled_later(self, hold: CallRecord, provider: str, usage: Usage, cost: Amounts) -> None:
        """A background answer was asked for, and has settled the hold of its call."""
        self.metrics.settled_later(hold.selected_model, provider, usage, cost.usd)
        self.events.log.info(
            "background_settled",
            hold_id=hold.hold_id,
            run=hold.run,
            charged_usd=format_usd(cost.usd),
        )

    # -- what the ledger tells of itself --------------------------------------------------------------------------------------

    def ledger_serves(self, why_not: str | None) -> None:
        """Each time that changes, or the reason does. A store that can be read but not written comes and goes: told once a minute."""
        self.metrics.ledger_serves(serves=why_not is None)
        if why_not is None:
            if self._away_told:
                self.events.log.info("ledger_back")
            self._away_told = False
            return
        why, told_s = self._away
        now_s = self.clock_s()
        if why_not != why or now_s - told_s >= _TELL_AGAIN_S:
            self._away, self._away_told = (why_not, now_s), True
            self.events.log.warning("ledger_away", why=why_not)

    def journalled(self, step: str) -> None:
        self.metrics.journalled(step)

    def kept_aside(self, what: str, why: str) -> None:
        self.events.log.error("journal_kept_aside", what=what, why=why)

    def problem(self, where: str, error: BaseException) -> None:
        self.events.problem(where, error)


class Story:
    """One call, as it becomes known. Told when both the client has its answer and the ledger has the settlement, which may be
    in either order: a drain settles long after its client left."""

    __slots__ = (
        *("_added_s", "_code", "_decision_id", "_ending", "_hold", "_let_through", "_model", "_observer", "_open"),
        *("_receipt", "_start_s", "_status", "_stream", "caller", "request_id"),
    )

    def __init__(self, observer: Observer, request_id: str) -> None:
        self._observer = observer
        self.request_id = request_id
        self._start_s = observer.clock_s()
        self._open = 1  # what is still to come: the answer, and with a hold its settlement
        self.caller = _NOBODY
        self._model = ""  # as the client asked for it
        self._stream = False
        self._decision_id: str | None = None
        self._hold: Hold | None = None
        self._let_through = False  # nothing is held, whatever `_hold` says
        self._receipt: Receipt | None = None
        self._ending: Ending | None = None
        self._added_s: float | None = None
        self._status = 0
        self._code = ""

    # -- as it goes -----------------------------------------------------------------------------------------------------------

    def asked(self, model: str, stream: bool) -> None:
        self._model, self._stream = model, stream

    @property
    def streams(self) -> bool:
        """The call asked for a stream, as far as it was read."""
        return self._stream

    def called_by(self, caller: Caller) -> None:
        self.caller = caller

    def decided(self, decision: Decision) -> None:
        self._decision_id = decision.id

    def let_through(self, decision: Decision, why: str) -> None:
        """Nothing holds it: the ledger is away, and its budgets allow that."""
        self._let_through = True
        self._observer.metrics.let_through()
        self._observer.events.log.warning("let_through", run=self.caller.run, decision_id=decision.id, why=why)

    def reserved(self, seconds: float) -> None:
        self._observer.metrics.ledger("reserve", seconds)

    def held(self, hold: Hold) -> None:
        self._open += 1
        self._hold, self._receipt, self._ending = hold, None, None  # a call that goes on elsewhere may have had one before
        self._observer.metrics.decided(hold.outcome)

    def moved(self, hold: Hold) -> None:
        """Another provider serves it than the one that it was held for."""
        self._hold = hold

    def sent(self) -> None:
        """The provider is being called: what went before is what the gateway added."""
        self._added_s = self._observer.clock_s() - self._start_s
        self._observer.metrics.added(self._added_s)

    def refused(self, code: str, status: int) -> None:
        """An answer of the gateway's own."""
        self._code, self._status = code, status
        if self._hold is None:
            self._observer.metrics.decided(Outcome.BLOCK, code)

    def provider_failed(self, provider: str, kind: str) -> None:
        self._observer.metrics.provider_error(provider, kind)

    def unpriced(self, provider: str, model: str, what: Sequence[str]) -> None:
        """The provider billed, by its own report, what the table has no price for."""
        self._observer.unpriced(provider, model, what)

    # -- its two ends ---------------------------------------------------------------------------------------------------------

    def answered(self, status: int) -> None:
        """The client has what it gets. `status` 0: it left before, and the line keeps the status of what was meant for it."""
        self._status = status or self._status
        self._close()

    def settled(self, receipt: Receipt, seconds: float) -> None:
        if self._hold is None or self._hold is receipt.hold or self._hold.id == receipt.hold.id:
            self._receipt = receipt
        metrics = self._observer.metrics
        released = receipt.ending in (Ending.NOT_SENT, Ending.PROVIDER_REFUSED)
        metrics.ledger("release" if released else "commit", seconds)
        if released:
            metrics.ended(receipt.ending)
        else:
            metrics.settled(receipt)
        self._check_overrun(receipt)
        self._close()

    def entrusted(self) -> None:
        """The hold stays for an answer that comes later."""
        self._ending = Ending.BACKGROUND
        self._observer.metrics.ended(Ending.BACKGROUND)
        self._close()

    def unsettled(self, ending: Ending, why: str) -> None:
        """The hold was left to its lease: an unknown ending, or a ledger that did not answer."""
        assert self._hold is not None
        self._ending = ending
        self._observer.metrics.ended(ending)
        self._observer.events.log.warning(
            "unsettled", hold_id=self._hold.id, run=self.caller.run, ending=ending.value, why=why, request_id=self.request_id
        )
        self._close()

    def _check_overrun(self, receipt: Receipt) -> None:
        plan = receipt.hold.plan
        held = plan.cost_max if plan.slice is None else plan.slice.cost  # the least that is held anywhere
        if receipt.cost.usd <= held.usd and receipt.cost.tokens <= held.tokens:
            return
        usage = receipt.usage
        beyond_input = usage.total_input_tokens > plan.input_tokens
        cause = "input" if beyond_input else "output" if receipt.cost.tokens > held.tokens else "price"
        self._observer.metrics.overrun(cause)
        self._observer.events.overrun(receipt, cause)

    def _close(self) -> None:
        self._open -= 1
        if self._open:
            return
        hold, receipt = self._hold, self._receipt
        ending = receipt.ending if receipt is not None else self._ending
        if hold is not None:
            outcome: str = hold.outcome
        else:
            outcome = "" if self._decision_id is None else Outcome.BLOCK
        self._observer.events.call(
            CallEvent(
                request_id=self.request_id,
                caller=self.caller,
                decision_id=self._decision_id,
                outcome=outcome,
                code=self._code,
                requested_model=self._model,
                selected_model=hold.plan.model if hold is not None else None,
                provider=hold.plan.provider if hold is not None else None,
                status=self._status,
                stream=self._stream,
                usage=receipt.usage if receipt is not None and (receipt.usage.total_tokens or receipt.usage.others) else None,
                held=hold.plan.held.usd if hold is not None and not self._let_through else None,
                charged=receipt.cost.usd if receipt is not None else None,
                ending=ending,
                added_ms=None if self._added_s is None else self._added_s * 1000,
                duration_ms=(self._observer.clock_s() - self._start_s) * 1000,
            )
        )
