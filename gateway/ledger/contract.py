"""What a ledger promises. Every step happens in full or not at all, once, however often it is asked for.

The hot steps are plain functions that return an awaitable: the step is under way when the function returns, so a caller who is
cancelled while waiting neither loses nor doubles it. The exception is a reserve whose caller is gone: its hold is released.

A run's own limit. The charge whose ceiling says `own` is the run's ceiling. Its effective limit is

    min(policy limit, the run's limit)   where a caller set the limit (X-Run-Limit, PUT by the owner): it can only tighten
    the run's limit                      where the admin set it (`raised`): it may be above the policy's

An X-Run-Limit that says what the run's last one said is no new word: clients send it with every call, and it must not undo what
the admin has raised since.

States of a hold, and what each step does in them (`-` changes nothing and returns the outcome that stands):

    state      commit(cost)              release               expire
    unknown    record it: see below      leave a tombstone     -
    live       reserved → committed      reserved -= held      charge what is held, provisionally
    expired    correct the charge once   take it back, once    -
    committed  -                         -                     -
    released   -                         -                     -

Commit of an unknown hold changes nothing and answers `None`: there is nothing to say which accounts it was for.
A reserve with the id of a live hold returns that hold; with the id of an ended one or a tombstone it is refused (`Ended`).
An operator's settle is a commit (usage `held`) or a release that leaves a record of who and why.

A plan whose amount in an account's unit is 0 always fits there: a free model passes at $0 left.

Amounts: microcents, tokens or calls by the account's unit, all integers. Times: ms since the epoch, by the ledger's own clock.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Protocol, TypeAlias

from gateway.core.record import record
from gateway.core.scopes import Account, Amounts
from gateway.core.values import Balance, Decision, Ending, Hold, Usage


class LedgerUnavailable(Exception):
    """The store did not answer in time or cannot be written. Nothing is known to have happened: answer 503, retry later."""


class LedgerLost(Exception):
    """The store is behind what this gateway saw, or another store: refuse until `penstock ledger adopt`."""


class RunState(StrEnum):
    ACTIVE = "active"
    STOPPED = "stopped"


class HoldState(StrEnum):
    LIVE = "live"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"


@record
class Refusal:
    """No plan fits. Nothing is held; the run exists now (unless its id was issued), and the refusal is kept in its ring.

    `blocking[i]` is the first account that plan i did not fit; `balances` is every account of every plan, once each, under the
    limit of the first charge that names it.
    """

    decision: Decision
    blocking: tuple[Balance, ...]
    balances: tuple[Balance, ...]


@record
class RunRefusal:
    """The run itself takes no calls: it was stopped."""

    decision: Decision
    state: RunState


@record
class Stale:
    """What the decision assumed is not what the ledger knows. Nothing changed; decide again with these facts.

    `owner` differs from the caller's key: the run belongs to another. `now_ms` lies outside a window that was sent.
    """

    now_ms: int
    owner: str


@record
class Ended:
    """The hold with this id has ended before, or was released before it was reserved."""

    state: HoldState


Reserved: TypeAlias = Hold | Refusal | RunRefusal | Stale | Ended


@record
class Alert:
    """An account's committed amount passed a share of its limit. Returned by exactly one step, across all gateways."""

    account: Account
    threshold_ppm: int
    limit: int
    committed: int


@record
class Settlement:
    """What to charge for a hold, and what the record should say about it."""

    cost: Amounts
    usage: Usage
    ending: Ending


@record
class Settled:
    """How a hold stands after commit, release or expire. `changed` is False where it had ended before."""

    state: HoldState
    changed: bool
    charged: Amounts  # what the hold has been charged by now
    balances: tuple[Balance, ...] = ()
    alerts: tuple[Alert, ...] = ()


@record
class Expired:
    """One hold that the reaper ended."""

    hold_id: str
    run: str
    charged: Amounts
    alerts: tuple[Alert, ...] = ()


@record
class RunView:
    """A run as the budget API shows it. USD amounts in microcents. `limit` is the run's own, if one was set."""

    tenant: str
    run: str
    owner: str
    state: RunState
    limit: int | None
    raised: bool  # the limit was set by the admin
    committed: int
    reserved: int
    unconfirmed: int
    calls: int  # holds ever made for it, less those released
    first_ms: int
    last_ms: int
    accounts: tuple[Balance, ...] = ()  # those of its latest hold, with their policy limit as of then; () in listings


@record
class CallRecord:
    """The packed record of one call, unpacked: hold or receipt, or a refusal from the run's ring."""

    decision_id: str
    tenant: str
    run: str
    owner: str
    at_ms: int
    outcome: str  # core.values.Outcome's word
    state: HoldState | None  # None: a refusal
    requested_model: str
    selected_model: str
    provider: str
    held: Amounts
    charged: Amounts | None
    usage: Usage | None
    ending: str | None
    dimensions: tuple[tuple[str, str], ...]
    lines: tuple[tuple[str, int], ...]  # (account key, held in its unit)
    inputs: Mapping[str, object] = field(default_factory=dict)  # what the decision was made from, for a reader


@record
class SpendRow:
    """One group of `spend(by)`. `group` holds the values in the order of `by`."""

    group: tuple[str, ...]
    usd: int
    tokens: int
    calls: int


@record
class SetLimit:
    """PUT /budget/runs/{id}. `by_admin` may raise; anyone else may only tighten (a looser limit changes nothing)."""

    limit: int  # microcents
    by_admin: bool
    who: str


class Ledger(Protocol):
    """One tenant's slot is one atom: every step below touches one tenant only."""

    async def start(self) -> None:
        """Opens the store, checks epoch and sequence against the witness. LedgerLost / LedgerUnavailable."""

    async def close(self) -> None:
        """Finishes what is under way and writes the witness."""

    # -- the path of a call ---------------------------------------------------------------------------------------------------

    def reserve(self, decision: Decision, lease_ms: int) -> Awaitable[Reserved]:
        """Holds the first plan of the ladder that fits all its accounts. Creates the run, owned by the caller's key, if it is new;
        tightens its limit by `directives.run_limit` (also when the call is then refused: it is the owner's word)."""

    def commit(self, tenant: str, hold_id: str, settlement: Settlement) -> Awaitable[Settled | None]:
        """Replaces the hold by what it really cost. A cost above the hold is recorded too."""

    def release(self, tenant: str, hold_id: str, ending: Ending) -> Awaitable[Settled]:
        """Gives the hold back."""

    def extend(self, tenant: str, hold_id: str, lease_ms: int, more: Amounts | None = None) -> Awaitable[bool]:
        """The lease ends `lease_ms` from now; `more` is held on top, if every account has room by the rule it was reserved under
        (calls=0 in `more`: it is the same call). False: nothing changed."""

    # -- beside the path ------------------------------------------------------------------------------------------------------

    async def expire(self, at_most: int = 100) -> Sequence[Expired]:
        """Ends holds whose lease ran out, of any tenant: charged in full, provisionally."""

    async def stopped(self, tenant: str, runs: Sequence[str]) -> frozenset[str]:
        """Which of these runs take no calls any more. Reads what is committed; never waits for a step."""

    async def set_limit(self, tenant: str, run: str, owner: str, change: SetLimit) -> RunView | None:
        """Sets a run's own limit, also before its first call (which makes `owner` its owner; with "" the first caller becomes
        it). None: another owns it; the admin's change is taken whoever owns it."""

    async def stop(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        """Sticky. None: no such run."""

    async def settle(self, tenant: str, hold_id: str, cost_usd: int | None, who: str, why: str) -> Settled | None:
        """An operator says what a live or expired hold cost; `cost_usd` None: nothing, it is released. Tokens and calls are
        charged as held. None: no such hold; `changed` False: it had been settled before, and nothing is recorded."""

    # -- reading --------------------------------------------------------------------------------------------------------------

    async def run(self, tenant: str, run: str) -> RunView | None: ...

    async def runs(self, tenant: str, owner: str | None, limit: int, before: str | None = None) -> Sequence[RunView]:
        """Newest activity first; `before` is the run id that ended the page before; `owner` None: everyone's."""

    async def record(self, tenant: str, decision_id: str) -> CallRecord | None: ...

    async def balances(self, tenant: str, accounts: Sequence[Account]) -> Sequence[Balance]:
        """For `explain`: 0 where an account does not exist yet; `limit` None; nothing changes."""

    async def holds(self, tenant: str, run: str | None, limit: int) -> Sequence[CallRecord]:
        """Live and expired (unconfirmed) holds, oldest first."""

    async def spend(self, tenant: str, by: Sequence[str], from_ms: int, to_ms: int, owner: str | None) -> Sequence[SpendRow]:
        """What was committed, grouped by any of: a dimension, run, key, model, provider, day. Dearest group first. A call counts
        on the UTC day of its reserve, and each day that [from_ms, to_ms) touches counts in full."""

    def health(self) -> Mapping[str, object]:
        """For /readyz: engine, version, epoch, sequence. Raises nothing; `{"ok": False, "why": …}` when it does not serve."""
