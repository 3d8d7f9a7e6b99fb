"""What happened, as one JSON line each: every call, and what operators should know. Never a key, never a prompt.

What keeps that promise: a line is made of named fields of the records (key *ids*, dimensions, amounts), never of a body or of a
header; and of an exception it says the type and the places, not the message, which may quote what it choked on.

Nothing here waits: what is told goes to a bounded buffer, and a thread of its own writes it; a call's line is made there, too. When the
sink is too slow, lines are dropped, counted, and the next line that gets through says how many. Starts a thread: make it in the process
that uses it, after any fork.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from gateway.core.money import format_usd
from gateway.core.record import record
from gateway.core.scopes import Amounts, Caller, Unit
from gateway.core.values import Receipt, Usage
from gateway.ledger.contract import Alert, Expired

MAX_BUFFERED_BYTES: Final = 16 * 1024 * 1024
_GATHER_SECONDS: Final = 0.05  # the thread wakes at most this often: waking it for every line costs more than the line
# Up to this size, a write to a pipe is not torn apart by the writes of other workers.
_ATOMIC_BYTES: Final = 4096
_CALL_BYTES: Final = (
    1024  # what a call takes in the buffer until its line is made: hardly less, with the strings that it alone holds
)

Sink = Callable[[bytes], None]


@record
class CallEvent:
    """One call, told when it is over. Amounts in microcents."""

    request_id: str
    caller: Caller
    decision_id: str | None  # None: refused before there was a decision
    outcome: str  # core.values.Outcome's word; "" without a decision
    code: str  # of the refusal or error; "" when the provider's answer went through
    requested_model: str
    selected_model: str | None
    provider: str | None
    status: int  # as the client saw it
    stream: bool
    usage: Usage | None
    held: int | None
    charged: int | None
    ending: str | None
    added_ms: float | None  # arrival → the provider called
    duration_ms: float
    beside: Amounts | None = None  # of what was charged beside the proxy: in which unit, only whoever says its cost knows


_UNITS: Final = (Unit.TOKENS, Unit.CREDITS, Unit.RISK_POINTS)


class Events:
    """Where lines go. `log` is structlog's logger, for the gateway's own messages (name the fields; no request content in them)."""

    def __init__(self, sink: Sink, max_buffered_bytes: int = MAX_BUFFERED_BYTES) -> None:
        self._writer = _Writer(sink, max_buffered_bytes)
        self.log: FilteringBoundLogger = structlog.wrap_logger(
            _Lines(self._writer),
            processors=[structlog.processors.add_log_level, _stamp, _encode_event],
            wrapper_class=structlog.make_filtering_bound_logger("info"),
        )

    def call(self, event: CallEvent) -> None:
        """Costs next to nothing here: the line is made by whoever writes it."""
        self._writer.put((time.time_ns() // 1_000_000, event), _CALL_BYTES)

    def alert(self, alert: Alert) -> None:
        account = alert.account
        usd = account.unit is Unit.USD
        self.log.warning(
            "alert",
            tenant=account.tenant,
            budget=account.name,
            scope=dict(account.scope),
            window=account.window.key,
            unit=account.unit.value,
            threshold=f"{alert.threshold_ppm / 10_000:g}%",
            limit=format_usd(alert.limit) if usd else alert.limit,
            committed=format_usd(alert.committed) if usd else alert.committed,
        )

    def overrun(self, receipt: Receipt, cause: str) -> None:
        """The call cost more than was held for it. `cause` is one of the flow's words."""
        hold = receipt.hold
        caller = hold.decision.call.caller
        self.log.warning(
            "overrun",
            tenant=caller.tenant,
            key=caller.key,
            run=caller.run,
            decision_id=hold.decision.id,
            model=hold.plan.model,
            provider=hold.plan.provider,
            held_usd=format_usd(hold.plan.held.usd),
            charged_usd=format_usd(receipt.cost.usd),
            cause=cause,
        )

    def expired(self, expired: Expired) -> None:
        if expired.lapsed:
            self.log.info("lapsed", hold_id=expired.hold_id, run=expired.run)
            return
        self.log.warning("expired", hold_id=expired.hold_id, run=expired.run, charged_usd=format_usd(expired.charged.usd))

    def policy(self, version: str, changes: Sequence[str] = ()) -> None:
        """A policy is in force. `changes` are sentences, such as a budget that starts at $0 from now."""
        self.log.info("policy", version=version, changes=list(changes))

    def policy_refused(self, version: str, mistakes: Sequence[str]) -> None:
        """The file could not be taken; the policy of that version stays in force."""
        self.log.error("policy_refused", version_kept=version, mistakes=list(mistakes))

    def problem(self, where: str, error: BaseException, request_id: str = "") -> None:
        """Something nobody planned. The innermost places come last."""
        self.log.error("problem", where=where, error=type(error).__name__, places=_places(error), request_id=request_id)

    @property
    def dropped(self) -> int:
        """Lines lost since the start, because the sink was too slow or failed."""
        return self._writer.dropped

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Writes what is buffered; a sink that is stuck is left behind after the time."""
        self._writer.close(timeout_seconds)


def open_sink(target: str) -> Sink:
    """`stderr`, `stdout`, or a file's path (appended to)."""
    if target in ("stderr", "stdout"):
        descriptor = (sys.stderr if target == "stderr" else sys.stdout).fileno()
    else:
        descriptor = os.open(Path(target), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def write(data: bytes) -> None:
        while data:
            data = data[os.write(descriptor, data) :]

    return write


_Told: TypeAlias = bytes | tuple[int, CallEvent]  # a line, or a call and when it was told: its line is still to be made


class _Writer:
    """A bounded buffer and the thread that empties it. `put` may be called from any thread."""

    def __init__(self, sink: Sink, max_bytes: int) -> None:
        self._sink = sink
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._lines: list[_Told] = []
        self._bytes = 0
        self._closing = threading.Event()
        self._waiting = threading.Event()  # there is something to write
        self._told = 0  # how many of the dropped lines have been told of
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="penstock-events", daemon=True)
        self._thread.start()

    def put(self, told: _Told, size: int) -> None:
        with self._lock:
            if self._bytes + size > self._max_bytes:
                self.dropped += 1
                return
            self._lines.append(told)
            self._bytes += size
        if not self._waiting.is_set():
            self._waiting.set()

    def close(self, timeout_seconds: float) -> None:
        self._closing.set()
        self._waiting.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._waiting.wait()
            self._closing.wait(_GATHER_SECONDS)
            self._waiting.clear()
            self._drain()
        self._drain()

    def _drain(self) -> None:
        # The bytes stay counted until they are written: what the sink has not taken is still in memory.
        with self._lock:
            lines, self._lines = self._lines, []
            size, dropped = self._bytes, self.dropped
        if dropped > self._told:
            told = {"ts": _now(), "level": "warning", "event": "lines_dropped", "lines": dropped - self._told}
            self._told = dropped
            lines.append(_encode(told))
        # One chunk after the other, so that the event loop has its turns while the lines of many calls are made.
        for chunk in _chunks(told if isinstance(told, bytes) else _line_or_problem(*told) for told in lines):
            try:
                self._sink(b"".join(chunk))
            except OSError:
                # A full disk or a closed pipe must not end the gateway, and there is nowhere to say so.
                with self._lock:
                    self.dropped += len(chunk)
        with self._lock:
            self._bytes -= size


def _chunks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Whole lines, as many as go out in one untorn write."""
    chunk: list[bytes] = []
    room = _ATOMIC_BYTES
    for line in lines:
        if chunk and len(line) > room:
            yield chunk
            chunk, room = [], _ATOMIC_BYTES
        chunk.append(line)
        room -= len(line)
    if chunk:
        yield chunk


class _Lines:
    """What structlog calls at the end of its processors: every level is written the same way."""

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer

    def msg(self, line: bytes) -> None:
        self._writer.put(line, len(line))

    info = warning = error = critical = debug = msg


def _stamp(_logger: object, _method: str, event: EventDict) -> EventDict:
    """What every line begins with."""
    return {"ts": _now(), "level": event.pop("level"), "event": event.pop("event"), **event}


def _encode_event(_logger: object, _method: str, event: EventDict) -> bytes:
    # `exc_info` would bring a message, and with it what the message quotes: say `problem` instead.
    event.pop("exc_info", None)
    return _encode(dict(event))


def _places(error: BaseException) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-8:]]


def _line_or_problem(at_ms: int, event: CallEvent) -> bytes:
    """One call that can't be told must not silence all others: the thread goes on, and says what went wrong."""
    try:
        return _line_of(at_ms, event)
    except Exception as failure:  # noqa: BLE001 - whatever nobody planned for
        problem = {"ts": _timestamp(at_ms), "level": "error", "event": "problem", "where": "the line of a call"}
        return _encode({**problem, "error": type(failure).__name__, "places": _places(failure), "request_id": event.request_id})


def _line_of(at_ms: int, event: CallEvent) -> bytes:
    caller, usage = event.caller, event.usage
    line: dict[str, object] = {
        "ts": _timestamp(at_ms),
        "level": "info",
        "event": "call",
        "request_id": event.request_id,
        "tenant": caller.tenant,
        "key": caller.key,
        "run": caller.run,
        "decision_id": event.decision_id,
        "outcome": event.outcome,
        "code": event.code,
        "requested_model": event.requested_model,
        "selected_model": event.selected_model,
        "provider": event.provider,
        "status": event.status,
        "stream": event.stream,
        "held_usd": None if event.held is None else format_usd(event.held),
        "charged_usd": None if event.charged is None else format_usd(event.charged),
        "ending": event.ending,
        "added_ms": None if event.added_ms is None else round(event.added_ms, 3),
        "duration_ms": round(event.duration_ms, 3),
        "dimensions": dict(caller.dimensions),
    }
    if event.beside is not None:
        line |= {f"charged_{unit}": amount for unit in _UNITS if (amount := event.beside.of(unit))}
    if usage is not None:
        line["input_tokens"] = usage.input_tokens
        line["cached_tokens"] = usage.cached_tokens
        line["cache_write_tokens"] = usage.cache_write_tokens
        line["output_tokens"] = usage.output_tokens
        if usage.others:
            line["others"] = dict(usage.others)
        line["usage"] = usage.source.value
    if caller.run_ignored is not None:
        line["run_ignored"] = caller.run_ignored
    return _encode(line)


def _encode(line: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        # A header's raw bytes arrive as lone surrogates, which are no UTF-8; the standard library escapes them. Of an object that
        # is no JSON at all it says the type only: what it prints as may quote a request.
        return json.dumps(line, default=lambda thing: type(thing).__name__, separators=(",", ":")).encode() + b"\n"


class _Timestamps:
    """`2026-11-30T12:00:00.123Z`. The text of a second is made once: `isoformat` for each line was a quarter of its cost."""

    __slots__ = ("_second",)

    def __init__(self) -> None:
        self._second = (0, "")  # one tuple, so that another thread sees both or neither

    def __call__(self, at_ms: int) -> str:
        second, text = self._second
        if at_ms // 1000 != second:
            second = at_ms // 1000
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = (second, text)
        return f"{text}.{at_ms % 1000:03d}Z"


_timestamp: Final = _Timestamps()


def _now() -> str:
    return _timestamp(time.time_ns() // 1_000_000)
