"""`penstock mcp`: an MCP server by which an agent sees what its run has left, and steers by it.

Stands before a running gateway, with the key of the agent's own calls: it can do what that key can, and grants nothing. Needs the extra
`mcp`, so only the verb imports it. What goes wrong is told in words that the agent can act on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from gateway import __version__
from gateway.remote import Remote, RemoteError, quoted

_INSTRUCTIONS: Final = (
    "Your model calls pass through a gateway that gives this run a hard spending ceiling: a call whose worst case does not fit is refused. "
    "Look at budget_left before long work and now and then during it. Where little is left, choose a cheaper model (models_that_fit), lower "
    "the output cap, or finish what you have. ask_for_raise asks a person; it grants nothing by itself. Record what tools cost with record_cost."
)
# What an agent can do about a refusal, beyond what the gateway says of it.
_WAYS: Final = {
    "not_found": "A run is known from its first call on, to the key that made it: see run_id, and PENSTOCK_KEY of this server.",
    "model_not_served": "models_that_fit lists those that are.",
    "model_not_priced": "models_that_fit lists those that have a price.",
    "idempotency_conflict": "Use a new key for another cost.",
}
_READS: Final = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_WRITES: Final = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

Amount = str | int | None  # USD as a decimal text, else a number; None: no limit

RunId = Annotated[str | None, Field(description="The run; left out: the one that this server was started for.")]
INPUT_TOKENS: Final = Field(ge=0, description="How many tokens the call sends, tools and history included.")
OutputCap = Annotated[int | None, Field(ge=1, description="max_tokens of the call; left out: the policy's default.")]


# -- what the tools answer --------------------------------------------------------------------------------------------------------


class Budget(BaseModel):
    """One budget that the run's calls count in."""

    name: str
    scope: str
    unit: str
    limit: Amount
    committed: Amount
    reserved: Amount = Field(description="Held by calls under way.")
    remaining: Amount
    window: str
    window_ends: str | None
    mode: str = Field(description="advisory_estimate never blocks.")


class Ask(BaseModel):
    """An open ask for a raise."""

    unit: str
    amount: Amount
    reason: str
    at: str


class BudgetLeft(BaseModel):
    run_id: str
    takes_calls: bool
    why_not: str | None
    remaining_usd: str | None = Field(description="In the tightest budget; null: nothing limits USD.")
    budgets: list[Budget]
    open_ask: Ask | None


class Blocked(BaseModel):
    """A budget without room for a plan."""

    name: str
    unit: str
    needs: Amount
    room: Amount


class Choice(BaseModel):
    """A model as it would serve the call."""

    model: str
    provider: str
    input_tokens: int
    max_output_tokens: int
    cost_max_usd: str = Field(description="The worst case. What the call really cost is charged afterwards.")
    held_usd: str = Field(description="Held until then; less than the worst case for a stream that is held by slices.")
    fits: bool
    blocked_by: list[Blocked]


class Estimate(BaseModel):
    run_id: str
    decision: Literal["allow", "downgrade", "advisory_warn", "block"]
    selected_model: str | None = Field(description="The model that would serve the call; null: it would be refused.")
    reason: str | None
    remaining_usd: str | None
    ladder: list[Choice] = Field(description="The requested model, then the cheaper ones that the policy would take instead.")


class Fitting(BaseModel):
    run_id: str
    takes_calls: bool
    why_not: str | None
    remaining_usd: str | None
    models: list[Choice] = Field(description="Those that fit, the dearest first.")
    left_out: int = Field(description="How many more there are.")


class Asked(BaseModel):
    run_id: str
    open_ask: Ask
    limit_usd: str | None
    remaining_usd: str | None


class Recorded(BaseModel):
    run_id: str
    name: str
    charged_usd: str
    charged_tokens: int
    replayed: bool = Field(description="This key was recorded before: nothing was charged again.")
    remaining_usd: str | None


# -- the tools --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tools:
    """Blocking: the server runs each call in a thread. `run`: the one that is meant where a call names none."""

    remote: Remote
    run: str | None

    def budget_left(self, run_id: RunId = None) -> Annotated[CallToolResult, BudgetLeft]:
        """What this run may still spend: what is left in each budget that its calls count in, whether it takes calls at all, and whether
        an ask for a raise is open. Costs nothing."""
        told = self._estimate({}, run_id)
        left = BudgetLeft(
            run_id=told["run_id"],
            takes_calls=told["reason"] is None,
            why_not=told["reason"],
            remaining_usd=told["remaining_usd"],
            budgets=[Budget(**_of(Budget, each)) for each in told["budgets"]],
            open_ask=self._open_ask(told["run_id"]),
        )
        lines = [f"Run {left.run_id}: {_left(left.remaining_usd)}."]
        if run_id is None and self.run is None:
            lines.append("No run was named, so that is what a call without one would find: name yours by run_id.")
        if left.why_not is not None:
            lines.append(f"It takes no calls: {left.why_not}.")
        lines += [_line(budget) for budget in left.budgets if budget.limit is not None]
        if left.open_ask is not None:
            lines.append(
                f"An ask for {_words(left.open_ask.amount, left.open_ask.unit)} more is open; nobody has answered it yet."
            )
        return _result(left, *lines)

    def estimate_call(
        self,
        model: Annotated[str, Field(description="The model that the call would name.")],
        messages: Annotated[
            list[dict[str, Any]] | None, Field(description="The call's messages, as they would be sent; or name input_tokens.")
        ] = None,
        input_tokens: Annotated[int | None, INPUT_TOKENS] = None,
        max_output_tokens: OutputCap = None,
        run_id: RunId = None,
    ) -> Annotated[CallToolResult, Estimate]:
        """What a model call could cost at most and whether it fits this run's budgets, before you make it. Nothing is called or held."""
        if (messages is None) is (input_tokens is None):
            raise ToolError("Name either messages or input_tokens.")
        if messages is not None:
            body: dict[str, Any] = {"model": model, "messages": messages}
            cap = "max_tokens"
        else:
            body, cap = {"model": model, "input_tokens": input_tokens}, "max_output_tokens"
        if max_output_tokens is not None:
            body[cap] = max_output_tokens
        told = self._estimate(body, run_id)
        estimate = Estimate(**_of(Estimate, told) | {"ladder": _choices(told["ladder"])})
        first = estimate.ladder[0]
        size = f"{first.input_tokens:,} tokens in, at most {first.max_output_tokens:,} out"
        lines = [f"{first.model}: up to ${first.cost_max_usd} ({size}); {_left(estimate.remaining_usd)}."]
        if estimate.selected_model is None:
            lines.append(f"It would be refused: {estimate.reason}.")
        elif estimate.selected_model != first.model:
            lines.append(f"{estimate.selected_model} would serve it instead: {estimate.reason}.")
        else:
            lines.append("It fits." if estimate.reason is None else f"It would pass, with a warning: {estimate.reason}.")
        return _result(estimate, *lines)

    def models_that_fit(
        self,
        input_tokens: Annotated[int, INPUT_TOKENS],
        max_output_tokens: OutputCap = None,
        needs: Annotated[
            list[Literal["tools", "vision", "json_schema", "files", "audio_input", "audio_output"]] | None,
            Field(description="What the model has to be able to do."),
        ] = None,
        at_most: Annotated[int, Field(ge=1, le=200, description="How many models to list.")] = 10,
        run_id: RunId = None,
    ) -> Annotated[CallToolResult, Fitting]:
        """Which models could serve a call of this size within what this run has left, the dearest first. Nothing is called or held."""
        body: dict[str, Any] = {"input_tokens": input_tokens, "needs": needs or []}
        if max_output_tokens is not None:
            body["max_output_tokens"] = max_output_tokens
        told = self._estimate(body, run_id, models="all", limit="1000")
        fitting = [choice for choice in _choices(told["others"]) if choice.fits]
        found = Fitting(
            run_id=told["run_id"],
            takes_calls=told["reason"] is None,
            why_not=told["reason"],
            remaining_usd=told["remaining_usd"],
            models=fitting[:at_most],
            left_out=max(0, len(fitting) - at_most),
        )
        lines = [f"{len(fitting)} {'model fits' if len(fitting) == 1 else 'models fit'}; {_left(found.remaining_usd)}."]
        if found.why_not is not None:
            lines.append(f"But the run takes no calls: {found.why_not}.")
        lines += [
            f"{each.model}: up to ${each.cost_max_usd}, at most {each.max_output_tokens:,} tokens out" for each in found.models
        ]
        if found.left_out:
            lines.append(f"and {found.left_out} cheaper ones")
        return _result(found, *lines)

    def ask_for_raise(
        self,
        amount: Annotated[str, Field(description='How much more than now: "$2.00", "200k tokens" or "60 calls".')],
        reason: Annotated[
            str, Field(min_length=1, max_length=500, description="What it is for, in a sentence: a person decides by it.")
        ],
        run_id: RunId = None,
    ) -> Annotated[CallToolResult, Asked]:
        """Asks a person to raise this run's limit. Grants nothing: go on within what is left, and look at budget_left later. A run has one
        open ask; a newer one takes its place."""
        told = self._ask("POST", f"/budget/runs/{quoted(self._run(run_id))}/ask", "ask", {"amount": amount, "reason": reason})
        if told["ask"] is None:
            raise ToolError("A raise was granted in the same moment: see budget_left.")
        of_all = {"remaining_usd": _tightest_usd(told["accounts"])}  # the run itself tells what is left of its own limit alone
        asked = Asked(**_of(Asked, told) | of_all, open_ask=Ask(**_of(Ask, told["ask"])))
        words = _words(asked.open_ask.amount, asked.open_ask.unit)
        return _result(
            asked, f"Asked for {words} more for run {asked.run_id}. Nothing is granted yet; {_left(asked.remaining_usd)}."
        )

    def record_cost(
        self,
        name: Annotated[str, Field(description="What it was, one word such as web_search; it stands in reports.")],
        idempotency_key: Annotated[
            str, Field(description="Of this one cost, such as the tool call's id: the same key again counts once.")
        ],
        usd: Annotated[str | None, Field(description='In USD, as a text: "0.12".')] = None,
        tokens: Annotated[int | None, Field(ge=0, description="In tokens.")] = None,
        credits: Annotated[int | None, Field(ge=0, description="In credits.")] = None,  # noqa: A002 - the unit's name
        risk_points: Annotated[int | None, Field(ge=0, description="In risk points.")] = None,
        already_spent: Annotated[
            bool,
            Field(description="The money is gone: record it even if it does not fit, and the budget may stand above its limit."),
        ] = False,
        run_id: RunId = None,
    ) -> Annotated[CallToolResult, Recorded]:
        """Charges what a tool cost to this run's budgets, once. Refused where it does not fit, as a model call would be: so record a cost
        before you incur it, or set already_spent."""
        if usd is None and tokens is None and credits is None and risk_points is None:
            raise ToolError("What did it cost? Name usd, tokens, credits or risk_points.")
        run = run_id or self.run
        given = {"cost_usd": usd, "tokens": tokens, "credits": credits, "risk_points": risk_points, "run_id": run}
        body = {name: value for name, value in given.items() if value is not None}
        body |= {"name": name, "idempotency_key": idempotency_key, "record_always": already_spent}
        recorded = Recorded(**_of(Recorded, self._ask("POST", "/budget/events", "charged_usd", body)))
        again = " before; nothing was charged again" if recorded.replayed else ""
        return _result(
            recorded, f"{recorded.name} was recorded{again}: ${recorded.charged_usd}; {_left(recorded.remaining_usd)}."
        )

    # -- the gateway ----------------------------------------------------------------------------------------------------------

    def _estimate(self, body: Mapping[str, Any], run_id: str | None, **query: str) -> dict[str, Any]:
        return self._ask("POST", "/budget/estimate", "ladder", body, run_id=run_id or self.run, **query)

    def _open_ask(self, run: str) -> Ask | None:
        try:
            told = self.remote.get(f"/budget/runs/{quoted(run)}", "run_id")
        except RemoteError as refusal:
            if refusal.status == 404:  # no call of it has come yet
                return None
            raise _in_words(refusal) from None
        return None if told["ask"] is None else Ask(**_of(Ask, told["ask"]))

    def _ask(self, method: str, path: str, member: str, body: Mapping[str, Any], **query: str | None) -> dict[str, Any]:
        try:
            return self.remote.ask(method, path, member, body, query)
        except RemoteError as refusal:
            raise _in_words(refusal) from None

    def _run(self, run_id: str | None) -> str:
        run = run_id or self.run
        if run is None:
            raise ToolError("Which run? Name it by run_id, or start this server with --run or PENSTOCK_RUN_ID.")
        return run


def server(remote: Remote, run: str | None) -> MCPServer:
    tools = Tools(remote, run)
    made = MCPServer("penstock", title="Penstock", instructions=_INSTRUCTIONS, version=__version__, log_level="WARNING")
    reads: Sequence[Callable[..., CallToolResult]] = (tools.budget_left, tools.estimate_call, tools.models_that_fit)
    writes: Sequence[Callable[..., CallToolResult]] = (tools.ask_for_raise, tools.record_cost)
    for tool in reads:
        made.add_tool(tool, annotations=_READS)
    for tool in writes:
        made.add_tool(tool, annotations=_WRITES)
    return made


# -- in words ---------------------------------------------------------------------------------------------------------------------


def _result(structured: BaseModel, *lines: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text="\n".join(lines))], structured_content=structured.model_dump())


def _in_words(refusal: RemoteError) -> ToolError:
    """What the model reads: no other exception's message gets through to it."""
    way = _WAYS.get(refusal.code or "")
    return ToolError(str(refusal) if way is None else f"{refusal} {way}")


def _of(model: type[BaseModel], told: Mapping[str, Any]) -> dict[str, Any]:
    """The members that the answer and the model have in common."""
    return {name: told[name] for name in model.model_fields if name in told}


def _choices(told: Sequence[Mapping[str, Any]]) -> list[Choice]:
    return [
        Choice(**_of(Choice, each) | {"blocked_by": [Blocked(**_of(Blocked, block)) for block in each["blocked_by"]]})
        for each in told
    ]


def _tightest_usd(accounts: Sequence[Mapping[str, Any]]) -> str | None:
    left = [each["remaining"] for each in accounts if each["unit"] == "usd" and each["remaining"] is not None]
    return min(left, key=Decimal, default=None)


def _left(remaining_usd: str | None) -> str:
    return "nothing limits what it may spend in USD" if remaining_usd is None else f"${remaining_usd} is left"


def _line(budget: Budget) -> str:
    used, held = _words(budget.committed, budget.unit), _words(budget.reserved, budget.unit)
    until = "" if budget.window_ends is None else f", until {budget.window_ends}"
    return f"{budget.name} ({budget.scope}): {used} of {_words(budget.limit, budget.unit)} spent, {held} held{until}"


def _words(amount: Amount, unit: str) -> str:
    return f"${amount}" if unit == "usd" else f"{amount:,} {unit.replace('_', ' ')}"
