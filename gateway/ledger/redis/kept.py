"""Tenants, accounts, runs, calls and sums of spend as the scripts keep them, numbers before texts: their order stands here, and in `lua/common.lua`
and `lua/lines.lua`."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.core.scopes import Amounts
from gateway.ledger.contract import HoldState, RunState
from gateway.ledger.layout import places
from gateway.ledger.packed import NOTHING, packable_amounts
from gateway.ledger.redis.packing import NUMBER_SIZE, packed_numbers, packed_texts, unpacked_numbers, unpacked_texts
from gateway.ledger.states import STATES

NUMBERS: Final = {state: number for number, state in STATES.items()}
_RUN_STATES: Final = (RunState.ACTIVE, RunState.STOPPED, RunState.PAUSED)  # by number
VERSION: Final = 2  # lua/meta.lua has it too
_RUN_SIZE: Final = 14 * NUMBER_SIZE
_CALL_SIZE: Final = 16 * NUMBER_SIZE
_NONE: Final = -1  # of a number that there need not be
_SLICED, _MORE, LAPSES = 1, 2, 4  # marks of a call, added up. _MORE: it holds, or was charged, credits or risk points
_MORE_SIZE: Final = 4 * NUMBER_SIZE


class KeptMeta(NamedTuple):
    """What a tenant is known by."""

    sequence: int
    raises: int
    frozen: int  # scopes
    acts: int
    version: int  # of all that is kept
    epoch: str


def keep_meta(meta: KeptMeta) -> bytes:
    *numbers, epoch = meta
    return packed_numbers(*numbers) + epoch.encode()


def keep_amounts(spent: Amounts) -> bytes:
    """A sum of spend: three numbers, and two more where there are credits or risk points."""
    return packed_numbers(*packable_amounts(spent))


def read_amounts(text: bytes) -> Amounts:
    return Amounts(*unpacked_numbers(text))


def _some(number: int | None) -> int:
    return _NONE if number is None else number


def _number(kept: int) -> int | None:
    return None if kept == _NONE else kept


# -- memos --------------------------------------------------------------------------------------------------------------------------

_MEMO_ID: Final = 16


def keep_memo(text: str, until_ms: int) -> bytes:
    return packed_numbers(until_ms) + b"-" * _MEMO_ID + text.encode()


def read_memo(kept: bytes) -> tuple[str, int]:
    """Its text, and until when it stays."""
    (until_ms,) = unpacked_numbers(kept[:NUMBER_SIZE])
    return kept[NUMBER_SIZE + _MEMO_ID :].decode(), until_ms


# -- accounts -----------------------------------------------------------------------------------------------------------------------


class KeptAccount(NamedTuple):
    """An account. `buckets`: of a rolling window, (index, committed, unconfirmed, carried), of which those below `oldest` count no more."""

    reserved: int
    committed: int
    unconfirmed: int
    alerted: int
    limit: int | None
    end_ms: int
    carried: int
    adjusted: int
    oldest: int | None = None
    buckets: tuple[tuple[int, int, int, int], ...] = ()


def keep_account(account: KeptAccount) -> bytes:
    *amounts, limit, end_ms, carried, adjusted, oldest, buckets = account
    window = [] if oldest is None else [oldest, *[number for bucket in buckets for number in bucket]]
    return packed_numbers(*amounts, _some(limit), end_ms, carried, adjusted, *window)


def read_account(text: bytes) -> KeptAccount:
    reserved, committed, unconfirmed, alerted, limit, end_ms, carried, adjusted, *window = unpacked_numbers(text)
    numbers = iter(window[1:])
    return KeptAccount(
        *(reserved, committed, unconfirmed, alerted, _number(limit), end_ms, carried, adjusted),
        *(window[0] if window else None, tuple(sorted(zip(numbers, numbers, numbers, numbers, strict=True)))),
    )


# -- runs ---------------------------------------------------------------------------------------------------------------------------


class KeptRun(NamedTuple):
    """A run. `paused_no`: how many raises there were when a refusal paused it; None: an operator did, or nobody."""

    last_ms: int
    reserved: int
    committed: int
    open: int  # how many live and expired holds it has
    calls: int
    first_ms: int
    paused_no: int | None
    limit: int | None  # its own
    asked: int | None  # the last X-Run-Limit
    unconfirmed: int
    state: RunState
    raised: bool  # the limit was set by the admin
    issued: bool
    placed: bool
    owner: str
    paused_by: str
    ancestry: tuple[str, ...]
    latest: str  # the tail of its latest call, or ""

    def is_paused(self, raises: int) -> bool:
        return self.state is RunState.PAUSED and self.paused_no in (None, raises)


def keep_run(run: KeptRun) -> bytes:
    numbers = (
        *(run.last_ms, run.reserved, run.committed, run.open, run.calls, run.first_ms, _some(run.paused_no), _some(run.limit)),
        *(_some(run.asked), run.unconfirmed, _RUN_STATES.index(run.state), run.raised, run.issued, run.placed),
    )
    return packed_numbers(*numbers) + keep_run_texts(run.owner, run.paused_by, run.ancestry) + packed_texts(run.latest)


def keep_run_texts(owner: str, paused_by: str, ancestry: Sequence[str]) -> bytes:
    """What the texts of a run begin with."""
    return packed_texts(owner, paused_by, "/".join(ancestry))


def read_run(text: bytes) -> KeptRun:
    numbers = unpacked_numbers(text[:_RUN_SIZE])
    last_ms, reserved, committed, open_, calls, first_ms, paused_no, limit, asked, unconfirmed, state, *flags = numbers
    raised, issued, placed = map(bool, flags)
    owner, paused_by, ancestry, latest = [each.decode("utf-8", "surrogatepass") for each in unpacked_texts(text[_RUN_SIZE:])]
    return KeptRun(
        *(last_ms, reserved, committed, open_, calls, first_ms, _number(paused_no), _number(limit), _number(asked)),
        *(unconfirmed, _RUN_STATES[state], raised, issued, placed, owner, paused_by, read_ancestry(ancestry), latest),
    )


def read_ancestry(text: str) -> tuple[str, ...]:
    return tuple(text.split("/")) if text else ()


# -- calls --------------------------------------------------------------------------------------------------------------------------


class KeptCall(NamedTuple):
    """A call. Without lines it is a tombstone."""

    state: HoldState
    lease_ms: int
    charged: Amounts
    ended_ms: int  # 0: not yet
    closing: bytes  # b"": not yet
    at_ms: int = 0
    warned: bool = False
    plan: int = 0
    held: Amounts = NOTHING
    slices: Amounts | None = None
    lines: bytes = b""
    names: bytes = b""
    ancestry: tuple[str, ...] = ()
    group: bytes = b""
    fingerprint: str = ""
    rest: bytes = b""
    lapses: bool = False


def keep_call(call: KeptCall) -> bytes:
    charged = call.charged
    held = places(call.held, call.slices)
    more: tuple[int, ...] = (*held[6:], charged.credits, charged.risk_points)
    if not any(more):
        more = ()
    marks = (_SLICED if call.slices is not None else 0) + (_MORE if more else 0) + (LAPSES if call.lapses else 0)
    numbers = packed_numbers(
        *(NUMBERS[call.state], call.lease_ms, charged.usd, charged.tokens, charged.calls, call.ended_ms, call.at_ms, call.warned),
        *(call.plan, marks, *held[:6], *more),
    )
    texts = b""
    if call.lines:
        texts = keep_call_texts(call.lines, call.names, call.ancestry, call.group) + packed_texts(call.fingerprint, call.rest)
    return numbers + texts + (packed_texts(call.closing) if call.closing else b"")


def keep_call_texts(lines: bytes | str, names: bytes | str, ancestry: Sequence[str], group: bytes | str) -> bytes:
    """What the texts of a call begin with: the same for all calls of a run that are served alike."""
    return packed_texts(lines, names, "/".join(ancestry), group)


def read_call(text: bytes) -> KeptCall:
    state, lease_ms, usd, tokens, calls, ended_ms, at_ms, warned, plan, marks, *held = unpacked_numbers(text[:_CALL_SIZE])
    end, more = _CALL_SIZE, [0, 0, 0, 0]
    if marks & _MORE:
        end += _MORE_SIZE
        more = unpacked_numbers(text[_CALL_SIZE:end])
    texts = unpacked_texts(text[end:])
    head = (STATES[state], lease_ms, Amounts(usd, tokens, calls, *more[2:]), ended_ms)
    if not at_ms:
        return KeptCall(*head, texts[0])
    lines, names, ancestry, group, fingerprint, rest, *closing = texts
    slices = Amounts(*held[3:]) if marks & _SLICED else None
    return KeptCall(
        *(*head, closing[0] if closing else b"", at_ms, bool(warned), plan, Amounts(*held[:3], *more[:2]), slices),
        *(lines, names, read_ancestry(ancestry.decode()), group, fingerprint.decode("utf-8", "surrogatepass"), rest),
        bool(marks & LAPSES),
    )
