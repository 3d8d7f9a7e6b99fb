"""What a ledger promises. Every step happens in full or not at all, once, however often it is asked for.

The hot steps are plain functions that return an awaitable: the step is under way when the function returns, so a caller who is
cancelled while waiting neither loses nor doubles it. The exception is a reserve whose caller is gone: its hold is released.

Effective limits. An account's is the one stored with it (pinned by a first hold, or set by an operator), else its ceiling's. The
ceiling that says `own` is a run's own; with the limit of that run (`Ceiling.own_run`) its effective limit is

    min(the account's, the run's)   where a caller set the run's (X-Run-Limit, PUT by the owner): it can only tighten
    the run's                       where the admin set it (`raised`): it may be above the policy's

An X-Run-Limit that says what the run's last one said is no new word: clients send it with every call, and it must not undo what
the admin has raised since. A ceiling with `pinned_ppm` whose account stores no limit stands at that part of what is left in the
account `pinned_to` (its effective limit - committed - reserved, at least 0, before this hold; no limit there: none here), rounded
down; the first hold on the account stores it, as the account's first charge says. Where it was taken away since, it has none until the
next hold (settling, views, extend).
A ceiling whose `own_run` is the caller's `run_scope` is the caller's run's, also where its id was issued. Any other is the own of that run
or of one of the caller's ancestors, as `core.ceilings` makes them for every ancestry anew: of a third run, nothing here says its limit.

Reserve, in this order; whatever it answers before `The ladder` changes nothing but the ring:

    the id is known         live: the same Hold again, if its fingerprint is the call's too; else, or ended, or a tombstone: Ended
    another's run           its owner is neither "" nor the caller's (`Caller.owner`): Stale
    the tree                see below: Barred, or Stale where the caller's ancestry is not the ledger's
    windows                 the clock is outside a window of any charge: Stale
    stopped, paused         the run, then its ancestors, the nearest first; each first for a stop, then for a pause: Barred (what: that run)
    frozen                  the first frozen scope (by its text) that the caller matches: Barred (what: its text)
    too many runs           the run is not issued and not active, and `max_active` others of its owner are: Barred (what: max_active).
                            Active: placed, not stopped, used less than `idle_ms` ago, and its latest call that got here not issued
    a loop                  `same_request` of its last `within_calls - 1` holds have this fingerprint: Barred (what: how many have).
                            Its holds are those made under such terms, of which each hold keeps the last `within_calls`, itself
                            included; a release takes its own out, and no older one comes back. "" is never compared
    the ladder              the first plan that fits: Hold. None: Refusal; if a blocking charge says `pause`, the run (unless issued)
                            is paused from now on, until a raise. Both create the run (a refusal only one that is not issued), its
                            place in the tree and the parent it names; both mark the run and its ancestors as used now. A refusal
                            of an issued run leaves nothing but its place in the ring

A refusal, and a Barred by stop, pause, freeze or loop of a run that exists, is kept in the ring of the caller's `run_scope`.
Stale tells the run's ancestry as the ledger sees it; () where the run is another's.

The tree. A run's place is fixed by its first reserve that is not barred (`placed`); until then (a limit was set before) it is open.

    an open place, or a new run     no parent named: a root. A parent that is the run itself or has it as an ancestor: CYCLE. A parent
                                    that is another's: FOREIGN_PARENT. Else its ancestors are the parent and the parent's ancestors (a
                                    parent that is not known or still open becomes a root, placed, and the caller's owner's unless it
                                    has an owner); more than DEPTH: TOO_DEEP
    a placed run                    no parent named: as it was. A parent other than its own: PARENT_CHANGED

Whose run. A run has one owner, the key that opened it, and so has its parent. Only who comes in its name (`Caller.owner`) may use it.
Where the policy shares the runs of a tenant (`runs.owner: tenant`), a caller of another key comes in the owner's name (`Caller.owned_by`),
which Stale and FOREIGN_PARENT tell: so the run counts among its owner's active runs, whoever uses it. Records and spend name the key that
called.

A pause that a refusal set ends with the next raise in the tenant (set_limit by the admin, set_account_limit, adjust, reset that
changed something, fund that gave room): the run is active again, and a call that still does not fit pauses it anew. An operator's pause
ends with resume; it takes the place of one that a refusal set, and of another operator's.

Acts. Each of the operators' steps that changed something is kept once; one that changed nothing (stopped before, the same limit, frozen
already, a reset with nothing to forget and no alert that had fired) leaves nothing. `act` is the method's name, `what` its object, and
after a space its amount where it has one: `set_limit` "r1 500", `set_account_limit` "KEY 500" or "KEY none", `adjust` "KEY -20",
`settle` "rsv_X 70" or "rsv_X none"; `freeze` the scope's text; `fund` "KEY " and `Fund.text`. An owner's set_limit is one too;
X-Run-Limit is none. A fund that is done is kept in any case, since its id must count once.

Funding moves the limit that is stored with an account, and makes the account where there is none (at a limit of 0). Looked at in this order:

    the act's id is known   REPLAYED: nothing changes; `before` and `after` are the account as it stands
    the new limit           the limit (none stored: 0) + `by`, or `to`. Below 0: TOO_LITTLE. Above MOST: TOO_MUCH
    the new committed       unconfirmed + `committed`, where that is given, booked as an adjustment, and alerts may fire again; above MOST:
                            TOO_MUCH. Else it stays, and so does what has fired
    `at_least_free`         limit - committed - reserved would be below 0: TOO_LITTLE
    else                    DONE. A raise, if there was no limit, or limit - committed has grown

What was refused leaves nothing, not even the account: `after` is then as `before`, or an account of nothing. A rolling window's account
can't be funded. An account with a lifetime window stays for good, unless its scope names a run.

Documents are small texts by name, a tenant's. `number` is another one after every change; 0: there never was a document. Memos are texts by
name that somebody wrote first, until their time is over: whoever comes second reads what the first one wrote. The tenant
`core.scopes.BOOKKEEPING` is nobody's: no key can be of it.

Rolling windows. `committed` and `unconfirmed` of such an account are sums over the buckets that count now (`Window.oldest_bucket`);
what a step commits lands in the bucket of that step, and a correction takes the provisional charge out of the bucket of its expiry
(if that still counts). What is reserved counts while it is held. An alert of such an account fires once, like any other. `carried` and
`adjusted` are 0 there.

States of a hold, and what each step does in them (`-` changes nothing and returns the outcome that stands):

    state      commit(cost)              release               expire
    unknown    record it: see below      leave a tombstone     -
    live       reserved → committed      reserved -= held      charge what is held, provisionally; of one that lapses: nothing
    expired    correct the charge once   take it back, once    -
    committed  -                         -                     -
    released   -                         -                     -

Commit of an unknown hold changes nothing and answers `None`: there is nothing to say which accounts it was for.
A reserve with the id of a live hold returns that hold; with the id of an ended one or a tombstone, or of a live one that was made
for something else (another fingerprint), it is refused (`Ended`, with that hold's state). A record's `inputs` keep the `fingerprint`
of its call where it has one.
An operator's settle is a commit (usage `held`) or a release that leaves a record of who and why.

A hold that lapses (`Decision.lapses`) is of work that may never begin: at the end of its lease what is held goes back, it is charged
nothing (`Amounts(0, 0, 0)`), and nothing is unconfirmed. Else it is an expired hold like any other: a late commit is its one correction.

A debit is a reserve and its commit in one step; its record is a committed hold's. ALWAYS passes stops, pauses, freezes, too many runs,
loops and the ladder, not the tree. REPLAY passes all of it: an open or new run takes its place where the tree allows it, else none, as
does another's; an owner that is known stays, and X-Run-Limit counts only for the caller's own run; its record (and the day it is spent on) is of now.

A plan whose amount in an account's unit is 0 always fits there: a free model passes at $0 left, and a call of a model, which takes no
credits and no risk points, is in the way of no budget in those.

Slices. What a plan holds in the account of a charge that is `sliced` is its slice, elsewhere its worst case (charges on one account
agree). What fits, what is held, what an extension adds and what any end gives back is that amount, account by account. Credits and risk
points are held in full there too, since no part of an output costs any. The run counts (and the record tells as `held`) the most that is held in any account: the slice, where every charge is sliced.
Expiry charges each account what is held there, and never more: a slice is the part of the output that can have been seen, and to charge
the worst case would break a ceiling with money that nobody saw spent. The record and the run are charged the `held` of the record, so
what the run says is at least what any of its accounts does. Whoever knows more corrects it, in every account alike. (No charge of a JSON
answer is sliced, nor of a model that may reason unseen: see `core.decide`.)

Always true: an account's `reserved` is the sum of what live holds hold there; its `committed` = what receipts and debits charged there
(an expired hold: what was held there, or nothing where it lapses) + `carried` (what retired ones had charged) + `adjusted` (by operators); nothing is below zero,
and `unconfirmed` <= `committed`.

Amounts: microcents, tokens, calls, credits or risk points by the account's unit, all integers. Times: ms since the epoch, by the ledger's own clock.
"""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias
from urllib.parse import quote

from gateway.core.record import record
from gateway.core.scopes import Account, Amounts, Caller
from gateway.core.values import Balance, Decision, Ending, Hold, Usage

DEPTH: Final = 8  # ancestors of a run, at most
MOST: Final = 2**53 - 1  # that any account can count, or be limited to
NO_MORE: Final[Mapping[str, int]] = MappingProxyType({})  # of `extend`: no account may pass what its rule allows


class LedgerUnavailable(Exception):
    """The store did not answer in time or cannot be written. Nothing is known to have happened: answer 503, retry later."""


class OutcomeUnknown(LedgerUnavailable):
    """The step was sent and may have happened. Asking again with the same id makes it certain, and never doubles it."""


class LedgerLost(Exception):
    """The store is behind what this gateway saw, or another store: refuse until `penstock ledger adopt`."""


class Unfit(LedgerUnavailable):
    """The store must not be used as it is set up. Somebody has to mend it: the message says how."""


class Impossible(Exception):
    """The step would break the books: a balance below zero, which is our bug, or beyond what the store counts exactly (2^53 in Redis,
    2^63 in SQLite). Nothing happened, and asking again will not help."""


class RunState(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    STOPPED = "stopped"


class Barrier(StrEnum):
    """Why a call is refused whatever its cost."""

    STOPPED = "stopped"
    PAUSED = "paused"
    FROZEN = "frozen"
    TOO_MANY_RUNS = "too_many_runs"
    LOOP = "loop"
    CYCLE = "cycle"
    PARENT_CHANGED = "parent_changed"
    FOREIGN_PARENT = "foreign_parent"
    TOO_DEEP = "too_deep"


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
    at_ms: int
    paused: bool = False  # the run waits from now on


@record
class Barred:
    """Refused before the ladder was looked at. `what`: the run (the caller's, or an ancestor), the scope, the parent, or the number.
    `owner`: whose a foreign parent is."""

    decision: Decision
    barrier: Barrier
    what: str
    owner: str = ""


@record
class Stale:
    """What the decision assumed is not what the ledger knows. Nothing changed; decide again with these facts.

    `owner` differs from the caller's: the run belongs to another. Else `ancestry` differs from the caller's, or `now_ms` lies
    outside a window that was sent.
    """

    now_ms: int
    owner: str
    ancestry: tuple[str, ...] = ()


@record
class Ended:
    """The hold with this id has ended before, or was released before it was reserved."""

    state: HoldState


Reserved: TypeAlias = Hold | Refusal | Barred | Stale | Ended


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
    note: str = ""  # kept with the record; see `Decision.note`


class Debiting(StrEnum):
    """How a debit that may not fit is taken."""

    ASK = "ask"  # like a reserve: it may be refused
    ALWAYS = "always"  # recorded though it does not fit, or the run takes no calls; Stale as ever
    REPLAY = "replay"  # recorded whatever: windows, owner and ancestry are those of the time when it happened


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
    lapsed: bool = False  # nothing was charged, as its decision had said


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
    ancestry: tuple[str, ...] = ()  # its parent first
    paused_by: str = ""  # `who` of the latest pause, while it stands; "" where a refusal set it


@record
class CallRecord:
    """The packed record of one call, unpacked: hold or receipt, or a refusal from the run's ring."""

    decision_id: str
    tenant: str
    run: str
    owner: str  # the key that made it, whoever owns the run
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
    lease_until_ms: int = 0  # of a live hold
    lapses: bool = False  # see `Decision.lapses`
    ended_ms: int = 0  # when it came to the state that it is in; 0: it is live
    note: str = ""  # the decision's
    end_note: str = ""  # of the step that ended it

    @property
    def hold_id(self) -> str:
        return "rsv_" + self.decision_id.removeprefix("bdg_")


@record
class SpendRow:
    """One group of `spend(by)`. `group` holds the values in the order of `by`."""

    group: tuple[str, ...]
    usd: int
    tokens: int
    calls: int
    credits: int = 0
    risk_points: int = 0


@record
class SetLimit:
    """PUT /budget/runs/{id}. `by_admin` may raise; anyone else may only tighten (a looser limit changes nothing)."""

    limit: int  # microcents
    by_admin: bool
    who: str


@record
class AccountView:
    """An account as operators see it. `limit`: the one stored with it, if any."""

    balance: Balance
    carried: int
    adjusted: int


class Adjusting(StrEnum):
    DONE = "done"
    REPLAYED = "replayed"  # an act with this id was done before
    BELOW_ZERO = "below_zero"  # it would take away more than is confirmed there
    ROLLING = "rolling"  # a rolling window forgets by itself: reset it


class Funding(StrEnum):
    DONE = "done"
    REPLAYED = "replayed"  # an act with this id was done before
    TOO_LITTLE = "too_little"  # there would be less than nothing
    TOO_MUCH = "too_much"  # more than can be counted


@record
class Fund:
    """How an account's limit moves, in its unit: by so much, or to so much. `committed`: what is confirmed as committed from now on."""

    by: int = 0
    to: int | None = None
    committed: int | None = None
    at_least_free: bool = False  # only where nothing is held or spent that the new limit does not cover

    def __post_init__(self) -> None:
        assert self.to is None or (self.by == 0 and 0 <= self.to <= MOST), self
        assert abs(self.by) <= MOST, self
        assert self.committed is None or 0 <= self.committed <= MOST, self

    @property
    def text(self) -> str:
        """`+50`, `-50`, `500`, `+0 spent 20`."""
        moved = f"{self.by:+}" if self.to is None else str(self.to)
        return moved if self.committed is None else f"{moved} spent {self.committed}"


@record
class Funded:
    """`before` None: there was no such account."""

    outcome: Funding
    before: AccountView | None
    after: AccountView


@record
class Documents:
    """A tenant's, all of them, by name."""

    number: int
    texts: Mapping[str, str]


@record
class Act:
    """What somebody did by hand. `what` names its object: a run, an account's key, a scope's text, a hold's id, and the amount."""

    id: str
    at_ms: int
    who: str
    act: str
    what: str
    why: str


@record
class Frozen:
    """A scope that takes no calls. `scope` is sorted by dimension; () is the whole tenant, whose text is `tenant`."""

    scope: tuple[tuple[str, str], ...]
    at_ms: int
    who: str
    why: str

    @property
    def text(self) -> str:
        return scope_text(self.scope)

    def takes(self, caller: Caller) -> bool:
        """Whether the caller is of this scope."""
        return caller.has(self.scope)


def scope_text(scope: Sequence[tuple[str, str]]) -> str:
    """`agent=a1,team=research`; values are percent-encoded as in account keys."""
    return ",".join(f"{name}={quote(value, safe='', errors='surrogatepass')}" for name, value in sorted(scope)) or "tenant"


@record
class Keep:
    """How long things stay, in ms since they were last of use (`then + keep <= now`: it may go). Never removed: live holds, and what
    they count in. `RunView.accounts` is () once the latest hold is retired.

    An account goes when its window has ended `records_ms` ago, or with its run; and only when nothing on record counts there any more
    (reserved = 0, committed = carried + adjusted; of a rolling one: no bucket that still counts has more than its carried part). A run
    goes `runs_ms` after its last use, but not within `records_ms` of it, not while a call of it is live or expired, and only together
    with all accounts whose scope names it. The shared accounts of calls without a run id go like a run that was last used at the end
    of their day. An act goes `spend_ms` after it was done, or once its tenant has `acts_at_most` newer ones, the oldest first; an
    adjustment's id, and a funding's, is known for as long. A memo goes when its time is over; a document never does by itself.
    """

    records_ms: int  # ended calls, tombstones, refusals; what expired and was never confirmed counts as confirmed then
    runs_ms: int  # forget_after: runs with their own accounts, stop, limit and place
    spend_ms: int = 400 * 86_400_000  # and `records_ms` on top: a day's spend never goes before its receipts
    acts_at_most: int = 100_000


class Ledger(Protocol):
    """One tenant's slot is one atom: every step below touches one tenant only."""

    async def start(self) -> None:
        """Opens the store, checks epoch and sequence against the witness. LedgerLost / LedgerUnavailable."""

    async def close(self) -> None:
        """Finishes what is under way and writes the witness."""

    # -- the path of a call ---------------------------------------------------------------------------------------------------

    def reserve(self, decision: Decision, lease_ms: int) -> Awaitable[Reserved]:
        """Holds the first plan of the ladder that fits all its accounts. Creates the run, owned by the caller's owner, if it is new;
        tightens its limit by `directives.run_limit` (also when the call is then refused: it is the owner's word)."""

    def commit(self, tenant: str, hold_id: str, settlement: Settlement) -> Awaitable[Settled | None]:
        """Replaces the hold by what it really cost. A cost above the hold is recorded too."""

    def release(self, tenant: str, hold_id: str, ending: Ending, note: str = "") -> Awaitable[Settled]:
        """Gives the hold back. `note`: as a settlement's."""

    def extend(
        self,
        tenant: str,
        hold_id: str,
        lease_ms: int | None,
        held: Amounts | None = None,
        slices: Amounts | None = None,
        over: Mapping[str, int] = NO_MORE,
    ) -> Awaitable[bool]:
        """The lease ends `lease_ms` from now; None: when it did. `held` is what is to be held in all, and `slices` where the hold has a
        slice (None: `held` there too): it grows to that, if every account has room by the rule it was reserved under. `over`: the key of
        an account and by how much that may pass what the rule allows, for this growth only. What is held beyond that stays, so asking
        again holds no more. All of it or nothing. False: nothing changed."""

    def debit(self, decision: Decision, settlement: Settlement, how: Debiting) -> Awaitable["Settled | Refusal | Barred | Stale"]:
        """Charges a known cost: the amounts of the decision's only plan are what must fit, the settlement's what is charged. The
        same id again: as it stands, `changed` False. No debit lapses."""

    # -- beside the path ------------------------------------------------------------------------------------------------------

    async def expire(self, at_most: int = 100) -> Sequence[Expired]:
        """Ends holds whose lease ran out, of any tenant: charged in full, provisionally, or not at all where they lapse."""

    async def halted(self, tenant: str, callers: Sequence[Caller]) -> Sequence[Barrier | None]:
        """For each caller of a live call: STOPPED (its run or an ancestor), FROZEN (a scope it matches), or None: it may go on, also
        where its run is paused. Ancestors: as the caller says. Reads what is committed; never waits for a step."""

    async def set_limit(self, tenant: str, run: str, owner: str, change: SetLimit) -> RunView | None:
        """Sets a run's own limit, also before its first call (which makes `owner` its owner; with "" the first caller becomes
        it). None: another owns it; the admin's change is taken whoever owns it."""

    async def stop(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        """Sticky. None: no such run."""

    async def pause(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        """An active run takes no calls until it is resumed; live ones finish. A stopped one stays stopped. None: no such run."""

    async def resume(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        """Ends a pause of either kind. A stopped run stays stopped. None: no such run."""

    async def freeze(self, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        """Callers with all these values (`Caller.value`) are refused from now on. False: it was frozen."""

    async def thaw(self, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        """False: it was not frozen."""

    async def set_account_limit(self, tenant: str, key: str, limit: int | None, who: str, why: str) -> AccountView | None:
        """Stores a limit with the account; None: the policy's counts again (a share is pinned anew). None: no such account."""

    async def adjust(
        self, tenant: str, key: str, amount: int, act_id: str, who: str, why: str
    ) -> tuple[Adjusting, AccountView] | None:
        """Adds to committed (below zero: takes away, of what is confirmed). The same act id again changes nothing. None: no such
        account. Looked at in this order: the account, the act id, rolling, below zero. Fires no alert: the next settling does."""

    async def reset(self, tenant: str, key: str, who: str, why: str) -> AccountView | None:
        """Committed becomes what is unconfirmed; alerts may fire again. None: no such account."""

    async def fund(self, account: Account, change: Fund, act_id: str, who: str, why: str) -> Funded:
        """See `Funding moves the limit`. Fires no alert: the next settling does."""

    async def put_document(self, tenant: str, name: str, text: str | None, expected: str | None) -> bool:
        """Writes it (None: removes it), if what stands there is `expected` (None: nothing). False: it is not, and nothing changed."""

    async def remember(self, tenant: str, name: str, text: str, keep_ms: int) -> str | None:
        """Writes a memo that stays so long. Where there is one, nothing changes, and it is returned."""

    async def settle(self, tenant: str, hold_id: str, cost_usd: int | None, who: str, why: str) -> Settled | None:
        """An operator says what a live or expired hold cost; `cost_usd` None: nothing, it is released. All else is charged
        as held. None: no such hold; `changed` False: it had been settled before, and nothing is recorded."""

    # -- reading --------------------------------------------------------------------------------------------------------------

    async def run(self, tenant: str, run: str) -> RunView | None: ...

    async def runs(self, tenant: str, owner: str | None, limit: int, before: str | None = None) -> Sequence[RunView]:
        """Newest activity first, to the second (then by id, the greatest first); `before` is the run id that ended the page before;
        `owner` None: everyone's."""

    async def record(self, tenant: str, decision_id: str) -> CallRecord | None: ...

    async def balances(self, tenant: str, accounts: Sequence[Account]) -> Sequence[Balance]:
        """For `explain`: 0 where an account does not exist yet; `limit` None; nothing changes."""

    async def account(self, tenant: str, key: str) -> AccountView | None: ...

    async def documents(self, tenant: str, known: int = 0) -> Documents | None:
        """None: their number is `known`, so whoever has read that one has them all."""

    async def recall(self, tenant: str, name: str) -> str | None:
        """The memo; None: there is none, or its time is over."""

    async def frozen(self, tenant: str) -> Sequence[Frozen]:
        """By text."""

    async def acts(self, tenant: str, limit: int, before: str | None = None) -> Sequence[Act]:
        """Newest first; `before` is the act id that ended the page before."""

    async def leases(self, tenant: str, limit: int, before: str | None = None) -> Sequence[CallRecord]:
        """Holds that lapse, in every state, for as long as their records are kept: the latest reserved first, then by decision id, the
        greatest first. `before`: the decision id that ended the page before."""

    async def holds(self, tenant: str, run: str | None, limit: int) -> Sequence[CallRecord]:
        """Live and expired (unconfirmed) holds, oldest first."""

    async def spend(self, tenant: str, by: Sequence[str], from_ms: int, to_ms: int, owner: str | None) -> Sequence[SpendRow]:
        """What was committed, grouped by any of: a dimension, run, key, model, provider, day. Dearest group first. A call counts
        on the UTC day of its reserve, and each day that [from_ms, to_ms) touches counts in full."""

    # -- keeping --------------------------------------------------------------------------------------------------------------

    async def aged(self, keep: Keep, at_most: int) -> Sequence[CallRecord]:
        """Ended calls (tombstones left out) that may be retired, the longest ended first, of any tenant. Nothing changes."""

    async def retire(self, tenant: str, decision_ids: Sequence[str], keep: Keep) -> int:
        """Removes those of these calls that `aged` would still name, and carries what they charged forward in their accounts, in the
        same step. Returns how many."""

    async def sweep(self, keep: Keep, at_most: int) -> int:
        """Removes what needs no record: tombstones, refusals, accounts whose window has ended that long ago, forgotten runs with the
        accounts whose scope names them, spend of old days. Returns how many things; 0: there is nothing more."""

    def dump(self) -> AsyncIterator[Mapping[str, object]]:
        """Everything, as rows that any ledger can load (`ledger.rows`), as of one instant per tenant."""

    async def load(self, rows: AsyncIterator[Mapping[str, object]]) -> int:
        """Into an empty ledger; its rows, as `dump` gave them. LedgerUnavailable where it is not empty. Returns how many."""

    def health(self) -> Mapping[str, object]:
        """For /readyz: engine, version, epoch, sequence. Raises nothing; `{"ok": False, "why": …}` when it does not serve."""
