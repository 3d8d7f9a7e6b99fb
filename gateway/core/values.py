"""The records of one call, each wrapping the one before: Call → Decision → Hold → Receipt. All frozen; no dict travels."""

from dataclasses import field
from enum import StrEnum
from typing import Final

from gateway.core.measures import INPUT_TOKENS, OUTPUT_TOKENS
from gateway.core.money import Microcents
from gateway.core.record import record
from gateway.core.scopes import Account, Amounts, Caller


@record
class Image:
    """One image of a request. `detail` is the client's word (`low`, `high`, `auto`); pixels are 0 where the body does not show them."""

    detail: str
    width: int = 0
    height: int = 0
    mark: int = field(default=0, compare=False)  # keyed hash of where it is, where the body shows no more: it tells anchors apart


@record
class Attachment:
    """Sound or a file of a request: what bounds the tokens that it takes, as far as the body shows it."""

    # "audio" | "pdf" | "file" | "elsewhere": not in the body, so nothing but the context bounds it | "address": nor is it the same each time
    kind: str
    size: int  # bytes
    pages: int = 0  # of a PDF, at most; 0: not known
    duration_ms: int = 0  # of sound, at most; 0: not known
    mark: int = field(default=0, compare=False)  # keyed hash of the data, or of where it is: it tells anchors apart


ELSEWHERE: Final = Attachment("elsewhere", 0)
ADDRESS: Final = Attachment("address", 0)  # what the provider fetches: who knows what stands there by then


@record
class Part:
    """One countable piece of the input: a message, the tool list, the response format.

    `texts` are counted as tokens; `overhead_tokens` is what the format adds around them; `images` and `attachments` are bounded by rule.
    """

    role: str
    texts: tuple[str, ...]
    overhead_tokens: int = 0
    images: tuple[Image, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    mark: int = field(default=0, compare=False)  # keyed hash of what is in none of these, and makes a provider count otherwise


TOOL_RESULTS: Final = (
    "tool_results"  # the role of a part that bounds what the provider's own tools may bring; without it, nothing does
)
# Roles of the parts that are no messages, but apply to the whole request.
SETTINGS: Final = frozenset({"tools", "functions", "response_format", "instructions", TOOL_RESULTS, "other", "reply"})


@record
class Directives:
    """What the caller told the gateway itself, by `X-Run-*` and `X-Budget-*` headers."""

    run_limit: Microcents | None = None  # X-Run-Limit: tightens the run's own ceiling
    wrap_up: bool = False  # X-Budget-Wrap-Up: true
    downgrade: bool = True  # X-Budget-Downgrade: never → False


class Output(StrEnum):
    """What bounds the output that is billed."""

    CAPPED = "capped"  # a cap that is written into the request
    FIXED = "fixed"  # the request itself: `client_cap` says how much, and no field takes a cap (images)
    NONE = "none"  # nothing is written that is billed by the token (embeddings, speech)


class Caching(StrEnum):
    """What the request has its provider keep of the input, and so which of the input's rates may apply."""

    AUTOMATIC = "automatic"  # the provider decides: any but the long-lived one
    OFF = "off"  # nothing is written
    SHORT = "short"
    LONG = "long"  # `cache_write_long` may apply too


SAME_MODEL: Final = "same_model"  # a need that only the model meets which was asked for: no other can take its place

Pieces = tuple[tuple[str, int], ...]  # what is not billed by the token, or by a token's other price: (measure, how many), sorted


@record
class Call:
    """What the client asked for, as far as money and ability are concerned. The body itself stays in `wire`."""

    caller: Caller
    dialect: str  # its name: "chat", "responses", "messages" …
    model: str  # as the client wrote it
    stream: bool
    choices: int  # `n`: multiplies the output
    client_cap: int | None  # the client's own max output tokens, per choice
    parts: tuple[Part, ...]
    needs: frozenset[str] = frozenset()  # capabilities: "tools", "vision", "json_schema", "audio_input", "audio_output", "files"
    parameters: frozenset[str] = frozenset()  # top-level request parameters that are present
    service_tier: str | None = None
    unpriced: tuple[str, ...] = ()  # fields that move the price in a way nothing here models: refused in hard_gate
    directives: Directives = Directives()
    fingerprint: str = ""  # of what was asked: equal requests have equal ones; "" where nobody compares
    output: Output = Output.CAPPED
    caching: Caching = Caching.AUTOMATIC
    reasons: bool = True  # False: the request makes sure that the model does not reason unseen
    pieces: Pieces = ()  # the most that it can use of what is billed by the piece (see `core.measures`)
    continues: str | None = None  # an earlier answer, or a conversation, that the provider puts before this input
    predicted: int = 0  # output tokens that a prediction may add at most: what did not come true is billed, and no cap counts it
    # What the config reserves for those of `unpriced`, and of `pieces`' measures, that it names. Filled in by `decide`.
    flat: tuple[tuple[str, Microcents], ...] = ()
    readings: int = 1  # how often the model may read a whole context: once more after each tool that the provider itself runs
    cap_field: str = "max_tokens"  # where the request says, or could say, its output cap
    background: bool = False  # the answer comes later, to whoever asks for it: its hold lives on when this call is over
    least_cap: int = 0  # with a lower output cap, per choice, the provider refuses the request
    inputs: int = 1  # that the request brings together, each with the model's context to itself
    counted: int | None = None  # of a call that is only estimated: its input, where the caller says no more of it than its tokens


class Basis(StrEnum):
    """What a ceiling compares with its limit (besides the call itself)."""

    RESERVED_AND_COMMITTED = "reserved+committed"  # hard_gate, soft_gate
    COMMITTED = "committed"  # actuals_only: what is settled; the call's own worst case does not count
    NONE = "none"  # advisory_estimate: never blocks, but is reported when it would have


class Mode(StrEnum):
    HARD_GATE = "hard_gate"
    SOFT_GATE = "soft_gate"
    ACTUALS_ONLY = "actuals_only"
    ADVISORY_ESTIMATE = "advisory_estimate"


@record
class Ceiling:
    """The rule that one budget sets for one account: data to the ledger, which knows the effective limit.

    With `limit_eff` = the run's own limit where `own` says so (see `ledger.contract`), else `limit`, a plan of amount `a` fits when

        RESERVED_AND_COMMITTED:  reserved + committed + a <= limit_eff * share_ppm // 1_000_000 + margin
        COMMITTED:               committed < limit_eff * share_ppm // 1_000_000 + margin
        NONE:                    always; a warning when the first line would not hold

    A plan of amount 0 always fits: a free model passes at $0 left, also where an overrun put committed above the limit.
    """

    account: Account
    limit: int | None  # the policy's, in the account's unit; None: no limit but the run's own
    mode: Mode
    basis: Basis
    margin: int = 0  # soft_gate: how far above the limit a call may still start
    own: bool = False  # of the run in its scope: X-Run-Limit and PUT /budget/runs/{id} replace its limit
    alerts: tuple[int, ...] = ()  # shares of the limit in ppm, ascending; each fires once per account
    pinned_ppm: int = 0  # a share (`50% of tenant-month`): `limit` is None, and the first hold pins this part of what is left …
    pinned_to: str = ""  # … in the account with this key, which another charge of the same plan names
    pause: bool = False  # on_exhausted: pause
    wait_for_raise_ms: int = 0  # how long a call that paused its run, or found it paused, may wait for a raise
    outage_allow: bool = False  # on_outage: allow

    @property
    def own_run(self) -> str | None:
        """The run whose own limit replaces this ceiling's: the caller's, or one of its ancestors."""
        return self.account.scope[0][1] if self.own else None


@record
class Charge:
    """One ceiling as one plan meets it."""

    ceiling: Ceiling
    share_ppm: int = 1_000_000  # below 1_000_000: the rest is for cheaper plans (`downgrade_below`)
    sliced: bool = False  # what is held there is the plan's slice, not its worst case


@record
class EstimateLine:
    """One line of an estimate, as `explain` prints it."""

    what: str  # "input: 3 messages", "tools", "output: 2 × 4096 tokens"
    tokens: int
    usd: int


class InputBasis(StrEnum):
    """What an estimate of the input rests on; the metric's word."""

    ANCHORED = "anchored"  # the provider's own count for an earlier call, and a count of what is new
    COUNTED = "counted"  # the model's own tokenizer
    FACTOR = "factor"  # another tokenizer, and a factor
    BOUNDED = "bounded"  # a rule for what is no text, or all that the model takes


@record
class Slice:
    """The input and the first part of a stream's output: what is held of it in accounts that do not hold its worst case. Grows."""

    output_cap: int  # tokens per choice, at most the plan's
    cost: Amounts  # of the input and so much output; credits and risk points are the plan's: output takes none


@record
class Plan:
    """One way to serve the call, and what it can cost at most."""

    model: str  # the name sent upstream
    provider: str
    output_cap: int  # effective_max_output_tokens, per choice; written into the request
    input_tokens: int  # the estimate's
    cost_max: Amounts
    charges: tuple[Charge, ...]
    slice: Slice | None = None  # where some of the charges are sliced
    input_basis: InputBasis = InputBasis.COUNTED

    @property
    def held(self) -> Amounts:
        """The most that it holds in any account: the slice, where no charge holds the worst case."""
        if self.slice is not None and all(charge.sliced for charge in self.charges):
            return self.slice.cost
        return self.cost_max

    def held_at(self, charge: Charge) -> int:
        """What it holds in the account of that charge of it, in the account's unit."""
        amounts = self.slice.cost if charge.sliced and self.slice is not None else self.cost_max
        return amounts.of(charge.ceiling.account.unit)


@record
class Passed:
    """A model that could not become a plan, and why: for `explain` and the decision record."""

    model: str
    reason: str


@record
class RunTerms:
    """The policy's rules for runs, as far as the ledger applies them."""

    max_active: int | None = None  # runs of one key used within `idle_ms`; issued and stopped ones do not count
    idle_ms: int = 86_400_000
    same_request: int = 0  # how many of a run's last `within_calls` calls, the new one included, may be the same; 0: any number
    within_calls: int = 0


@record
class Decision:
    """The whole ladder for one call. Ids share their tail: decision `bdg_X` makes hold `rsv_X`."""

    id: str
    call: Call
    ladder: tuple[Plan, ...]  # never empty
    at_ms: int
    price_table_version: str
    passed_over: tuple[Passed, ...] = ()
    terms: RunTerms = RunTerms()
    repeatable: bool = False  # the caller chose its id and asks again where it heard no answer
    # A lease: where nobody ends its hold in time, it is taken for not used. Of calls that went out, the opposite is.
    lapses: bool = False
    note: str = ""  # what whoever asks wants to read again with the record; no ledger looks into it

    @property
    def hold_id(self) -> str:
        return "rsv_" + self.id.removeprefix("bdg_")


class Outcome(StrEnum):
    ALLOW = "allow"
    DOWNGRADE = "downgrade"
    ADVISORY_WARN = "advisory_warn"
    BLOCK = "block"


@record
class Balance:
    """An account as the ledger sees it after a step. Amounts in the account's unit."""

    account: Account
    limit: int | None  # the effective one
    committed: int
    reserved: int
    unconfirmed: int = 0  # the part of committed that was charged provisionally
    mode: Mode = Mode.HARD_GATE
    # In a Refusal, of a rolling window: (when it falls out of the window, ms; what was committed there), oldest first, 0s left out.
    aging: tuple[tuple[int, int], ...] = ()

    @property
    def remaining(self) -> int | None:
        """What is left, never below 0; None without a limit."""
        return None if self.limit is None else max(0, self.limit - self.committed - self.reserved)


@record
class Hold:
    """The worst case of one plan, or a slice of it, held against every account of it."""

    decision: Decision
    plan: Plan
    balances: tuple[Balance, ...]  # in the plan's order, this hold counted
    lease_until_ms: int
    warnings: tuple[Balance, ...] = ()  # advisory accounts that would have blocked
    again: bool = field(default=False, compare=False)  # it was held before: this reserve only asked for it once more

    @property
    def id(self) -> str:
        return self.decision.hold_id

    @property
    def outcome(self) -> Outcome:
        if self.plan.model != self.decision.ladder[0].model:
            return Outcome.DOWNGRADE
        return Outcome.ADVISORY_WARN if self.warnings else Outcome.ALLOW


class UsageSource(StrEnum):
    PROVIDER = "provider"
    COUNTED = "counted"
    HELD = "held"


@record
class Usage:
    """Tokens a call really used. Every class is disjoint from the others: `input_tokens` excludes what was read from or
    written to a cache; `output_tokens` includes reasoning."""

    source: UsageSource
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    # Of classes that few calls have (see `core.measures`). Those of tokens are in none of the four above.
    others: Pieces = ()

    @property
    def total_input_tokens(self) -> int:
        tokens = self.input_tokens + self.cached_tokens + self.cache_write_tokens
        return tokens + sum(number for measure, number in self.others if measure in INPUT_TOKENS) if self.others else tokens

    @property
    def total_output_tokens(self) -> int:
        if not self.others:
            return self.output_tokens
        return self.output_tokens + sum(number for measure, number in self.others if measure in OUTPUT_TOKENS)

    @property
    def total_tokens(self) -> int:
        return self.total_input_tokens + self.total_output_tokens


class Ending(StrEnum):
    """How a call ended; the metric's and the receipt's word."""

    COMPLETED = "completed"
    CLIENT_LEFT = "client_left"
    PROVIDER_CUT = "provider_cut"
    OUTPUT_EXCEEDED = "output_exceeded"
    RUN_STOPPED = "run_stopped"
    SCOPE_FROZEN = "scope_frozen"
    GATEWAY_STOPPED = "gateway_stopped"
    NOT_SENT = "not_sent"  # the connection was never made: released
    PROVIDER_REFUSED = "provider_refused"  # its own 4xx, 429, 500, 503 before output: released
    BACKGROUND = "background"  # its answer comes later: the hold stays until somebody asks for it, or its lease ends
    DEBITED = "debited"  # a known cost, recorded without a hold
    UNKNOWN = "unknown"  # nobody can say whether it was billed: the hold stays until its lease ends


@record
class Receipt:
    """What a hold became. `cost` is what was charged, in every unit."""

    hold: Hold
    usage: Usage
    cost: Amounts
    ending: Ending
    balances: tuple[Balance, ...] = field(default=())
