"""`penstock`: one short function a verb. An error that a user can mend is one line on stderr and exit code 1, never a traceback."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TextIO

import typer
from rich.console import Console
from rich.table import Table

from gateway import __version__
from gateway.remote import Remote, RemoteError, quoted

app = typer.Typer(
    name="penstock",
    help="A reverse proxy that gives every AI agent run a hard spending ceiling.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
runs_app = typer.Typer(help="Runs of a running gateway, and the budgets that they count in.", no_args_is_help=True)
account_app = typer.Typer(help="An account by its key, as `runs show` prints it. Needs the admin token.", no_args_is_help=True)
keys_app = typer.Typer(help="Keys for `auth: keys`.", no_args_is_help=True)
ledger_app = typer.Typer(help="The ledger itself.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")
runs_app.add_typer(account_app, name="account")
app.add_typer(keys_app, name="keys")
app.add_typer(ledger_app, name="ledger")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The config file; default: config.yaml, else config.example.yaml.", show_default=False),
]


def _address(gateway: str) -> str:
    """What is at hand is often OPENAI_BASE_URL, which ends with the API's version."""
    return gateway.rstrip("/").removesuffix("/v1")


GatewayOption = Annotated[
    str, typer.Option("--gateway", help="A running gateway's address.", envvar="PENSTOCK_GATEWAY", callback=_address)
]
TenantOption = Annotated[
    str | None, typer.Option(help="The tenant acted on, with the admin token; default: default.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the gateway's answer as it is.")]
ScopeArgument = Annotated[list[str], typer.Argument(help='Such as team=research agent=a1; the word "tenant" is all of it.')]
KeyArgument = Annotated[str, typer.Argument(help='Such as "run-ceiling|run=r42|lifetime|usd".')]
HERE = "http://127.0.0.1:8080"
TENANT = "tenant"


# Click's: typer brings it along, under a name of its own that changed with its versions.
_UsageError: Final[Any] = typer.BadParameter.__base__


def main() -> None:
    """The command's entry point."""
    try:
        sys.exit(app(prog_name="penstock", standalone_mode=False))
    except _UsageError as error:
        message = error.format_message().rstrip(".")
        if not message:  # no verb was named, and the help is printed already
            sys.exit(2)
        _fail(f"{message}; see `{'penstock' if error.ctx is None else error.ctx.command_path} --help`", 2)
    except RemoteError as error:
        _fail(str(error))
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:  # `penstock runs list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


# -- the gateway ----------------------------------------------------------------------------------------------------------------


@app.command()
def serve(
    config: ConfigOption = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that serve; one per core.")] = 1,
    listen_fd: Annotated[int | None, typer.Option(hidden=True, help="A worker's: the socket that its parent opened.")] = None,
) -> None:
    """Serves until SIGTERM or ctrl-c; live streams may then finish."""
    from gateway import app as gateway_app

    sys.exit(gateway_app.serve(_config_path(config), workers, listen_fd))


@app.command()
def check(
    config: ConfigOption = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of both files instead, for editors.")] = False,
    against_running: Annotated[
        str | None,
        typer.Option("--against-running", metavar="URL", help="Also say which budgets would start at $0 in this gateway."),
    ] = None,
) -> None:
    """Checks the config and its policy, and prints every mistake at once."""
    from gateway import config_file, policy_file

    if schema:
        print(json.dumps({"config": config_file.config_schema(), "policy": policy_file.policy_schema()}, indent=2))
        return
    loaded, policy = _load(_config_path(config))
    print(
        f"ok: {_counted(len(policy.budgets), 'budget')}, policy {policy.version}, {_counted(len(loaded.providers), 'provider')}, "
        f"prices {loaded.catalog.version}"
    )
    for warning in (*loaded.warnings, *policy.warnings):
        print(f"warning: {warning}")
    if against_running is not None:
        gates = _remote(against_running).get("/readyz", "gates")["gates"]
        for change in policy_file.changes_against(gates, policy):
            print(change)


@app.command()
def explain(
    request: Annotated[str, typer.Argument(help="A file with the request's JSON body; - for standard input.")],
    config: ConfigOption = None,
    run: Annotated[str | None, typer.Option(help="The run id.")] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help='A request header, such as "X-Agent-Id: a1".')
    ] = None,
    route: Annotated[str, typer.Option(help="Where it would be sent, such as /v1/messages.")] = "/v1/chat/completions",
) -> None:
    """Says which budgets apply to a request, what it may cost line by line, the ladder, and the decision. Makes no call."""
    from gateway import app as gateway_app
    from gateway.ledger.contract import LedgerLost, LedgerUnavailable
    from gateway.wire.dialects import DIALECTS
    from gateway.wire.problem import Refused

    dialect = next((each for each in DIALECTS if each.path == route), None)
    if dialect is None:
        _fail(f"--route: found {route!r}, expected one of {', '.join(each.path for each in DIALECTS)}")
    lines = [*(header or ()), *([] if run is None else [f"X-Run-Id: {run}"])]
    _headers(header)
    loaded, policy = _load(_config_path(config))
    try:
        body = sys.stdin.buffer.read() if request == "-" else Path(request).read_bytes()
    except OSError as error:
        _fail(f"{request}: {error.strerror}")
    try:
        explained = gateway_app.explain(loaded, policy, dialect, body, lines)
    except Refused as refusal:
        as_what = f" (read as a request to {route}; --route names another)"
        _fail(f"refused {refusal.problem.status} {refusal.problem.code}: {refusal.problem.detail}{as_what}")
    except (LedgerLost, LedgerUnavailable, OSError) as failure:
        _fail(f"the ledger: {failure}")
    for line in explained.lines():
        print(line)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(help="What to start, after --, with its arguments.", show_default=False)],
    limit: Annotated[str | None, typer.Option(help='The run\'s own ceiling, such as "$2.00".', show_default=False)] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="The run's id; default: a new one.", show_default=False)] = None,
    gateway: GatewayOption = HERE,
) -> None:
    """Starts an agent under a run of its own, with the base URLs of OpenAI's and Anthropic's SDKs set, and says what it spent."""
    from gateway import launch
    from gateway.wire.headers import is_run_id

    if not launch.found(command[0]):
        _fail(f"{command[0]}: no such command", launch.NOT_FOUND)
    if run_id is not None and not is_run_id(run_id):
        _fail(f"--run: found {run_id!r}, expected 1 to 128 of the characters A-Z a-z 0-9 . _ : -")
    prepared = launch.for_gateway(gateway, run_id, os.environ)
    prepared.prepare(limit)
    try:
        code = launch.start(command, prepared.environment(os.environ))
    except OSError as error:
        _fail(f"{command[0]}: {error.strerror}", launch.NOT_EXECUTABLE)
    launch.say(prepared.summary(os.environ))
    sys.exit(code)


@app.command()
def mcp(
    run: Annotated[
        str | None,
        typer.Option(help="The run that is meant where a call names none.", envvar="PENSTOCK_RUN_ID", show_default=False),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", help='What the agent\'s calls say of themselves, such as "X-Agent-Id: a1".'),
    ] = None,
    listen: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="PORT", help="Serve streamable HTTP on this port of loopback instead.")
    ] = None,
    gateway: GatewayOption = HERE,
) -> None:
    """Serves MCP on standard input and output: an agent sees what its run has left, and steers by it. The key is PENSTOCK_KEY."""
    try:
        from gateway import mcp_server
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("mcp", "mcp_types"):
            raise
        _fail("`penstock mcp` needs the package mcp, version 2 or later: pip install 'penstock-gateway[mcp]'")
    from gateway.wire.headers import is_run_id

    if run is not None and not is_run_id(run):
        _fail(f"--run: found {run!r}, expected 1 to 128 of the characters A-Z a-z 0-9 . _ : -")
    # Never the admin token: it could raise what the agent is held to.
    remote = Remote(gateway, os.environ.get("PENSTOCK_KEY") or None, headers=_headers(header))
    server = mcp_server.server(remote, run)
    if listen is None:
        server.run("stdio")
    else:
        print(f"penstock: MCP at http://127.0.0.1:{listen}/mcp", file=sys.stderr, flush=True)
        server.run("streamable-http", host="127.0.0.1", port=listen)


@app.command()
def demo(
    which: Annotated[
        str, typer.Argument(help="run, or cycles: an agent under Cycles' own client, and the same without it.")
    ] = "run",
    model: Annotated[str, typer.Option(help="scripted, or local: a real model server. For run.")] = "scripted",
) -> None:
    """A runaway agent, first unguarded, then under a $1.00 ceiling."""
    from gateway.demo import cycles as demo_cycles
    from gateway.demo import run as demo_run

    if which not in ("run", "cycles"):
        _fail(f"found demo {which}, expected run or cycles")
    sys.exit(demo_cycles.main() if which == "cycles" else demo_run.main(model))


# -- a running gateway's runs ---------------------------------------------------------------------------------------------------


@runs_app.command("list")
def runs_list(gateway: GatewayOption = HERE, tenant: TenantOption = None, limit: int = 50, as_json: JsonOption = False) -> None:
    """The runs with the latest activity."""
    told = _remote(gateway, tenant).get("/budget/runs", "runs", limit=str(limit))
    if as_json:
        _print_json(told)
        return
    columns = ("run_id", "state", "limit_usd", "committed_usd", "reserved_usd", "remaining_usd", "calls")
    _print_table(columns, told["runs"])
    if not told["runs"] and _token() is None:
        print("No run is shown to a caller without a key: set PENSTOCK_KEY to the runs' own key, or PENSTOCK_ADMIN_TOKEN.")


@runs_app.command("show")
def runs_show(run: str, gateway: GatewayOption = HERE, tenant: TenantOption = None, as_json: JsonOption = False) -> None:
    """One run with every account that its calls count in."""
    _print_run(_remote(gateway, tenant).get(f"/budget/runs/{quoted(run)}", "run_id"), as_json)


@runs_app.command("stop")
def runs_stop(
    run: str, gateway: GatewayOption = HERE, tenant: TenantOption = None, reason: str = "", as_json: JsonOption = False
) -> None:
    """Stops a run for good: live calls end, later ones are refused."""
    _print_run(_remote(gateway, tenant).post(f"/budget/runs/{quoted(run)}/stop", "run_id", _why(reason)), as_json)


@runs_app.command("pause")
def runs_pause(
    run: str, gateway: GatewayOption = HERE, tenant: TenantOption = None, reason: str = "", as_json: JsonOption = False
) -> None:
    """A run takes no calls until it is resumed; live ones finish."""
    _print_run(_remote(gateway, tenant).post(f"/budget/runs/{quoted(run)}/pause", "run_id", _why(reason)), as_json)


@runs_app.command("resume")
def runs_resume(
    run: str, gateway: GatewayOption = HERE, tenant: TenantOption = None, reason: str = "", as_json: JsonOption = False
) -> None:
    """Ends a pause. One that the admin or a budget set needs the admin token."""
    _print_run(_remote(gateway, tenant).post(f"/budget/runs/{quoted(run)}/resume", "run_id", _why(reason)), as_json)


@runs_app.command("limit")
def runs_limit(
    run: str,
    limit: Annotated[str, typer.Argument(help='Such as "$2.00".')],
    gateway: GatewayOption = HERE,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sets a run's own ceiling. Raising it needs the admin token."""
    _print_run(_remote(gateway, tenant).put(f"/budget/runs/{quoted(run)}", "run_id", {"limit": limit}), as_json)


@runs_app.command("asks")
def runs_asks(gateway: GatewayOption = HERE, tenant: TenantOption = None, as_json: JsonOption = False) -> None:
    """The raises that runs ask for, the oldest first. Needs the admin token."""
    told = _remote(gateway, tenant).get("/admin/asks", "asks")
    if as_json:
        _print_json(told)
        return
    rows = [
        {**ask, "amount": _amount(ask["amount"], ask["unit"]), "limit": _amount(ask["limit"], ask["unit"])}
        for ask in told["asks"]
    ]
    _print_table(("run_id", "amount", "limit", "account", "key", "at", "reason"), rows)


@runs_app.command("raise")
def runs_raise(
    run: str,
    amount: Annotated[str | None, typer.Argument(help='So much more, such as "$2.00"; left out: what the run asked for.')] = None,
    gateway: GatewayOption = HERE,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Raises a run's own ceiling by an amount, and so answers its ask. Needs the admin token."""
    from gateway.core.money import format_usd, parse_usd

    remote, path = _remote(gateway, tenant), f"/budget/runs/{quoted(run)}"
    told = remote.get(path, "run_id")
    ask = told["ask"]
    if amount is None:
        if ask is None:
            _fail(f"run {run} asks for nothing: name an amount")
        if ask["unit"] != "usd" or (ask["account"] is not None and told["limit_usd"] != ask["limit"]):
            _fail(f"run {run} asks for room in {ask['account']}: `penstock runs account limit` gives it")
        amount = ask["amount"]
    if told["limit_usd"] is None:
        _fail(
            f"run {run} has no ceiling of its own: `penstock runs limit` sets one, `penstock runs account limit` another budget's"
        )
    try:
        limit = parse_usd(told["limit_usd"]) + parse_usd(amount)
    except ValueError as error:
        _fail(f"{amount}: {error}")
    _print_run(remote.put(path, "run_id", {"limit": format_usd(limit)}), as_json)


@runs_app.command("settle")
def runs_settle(
    hold: Annotated[str, typer.Argument(help="A hold's id: rsv_…")],
    cost: Annotated[str | None, typer.Argument(help="What it really cost, in USD, such as 0.12.")] = None,
    release: Annotated[bool, typer.Option("--release", help="It cost nothing.")] = False,
    gateway: GatewayOption = HERE,
    tenant: TenantOption = None,
    reason: str = "",
) -> None:
    """Settles a hold that is still open, or that was charged provisionally. Needs the admin token."""
    if (cost is None) is not release:
        _fail("name either what the hold cost, or --release")
    body: dict[str, Any] = {"release": True} if release else {"cost_usd": (cost or "").removeprefix("$")}
    _print_json(_remote(gateway, tenant).post(f"/admin/holds/{quoted(hold)}/settle", "reservation_id", body | _why(reason)))


@runs_app.command("freeze")
def runs_freeze(scope: ScopeArgument, gateway: GatewayOption = HERE, tenant: TenantOption = None, reason: str = "") -> None:
    """Whoever has all these values takes no more calls, and live ones end. Needs the admin token."""
    _print_json(_remote(gateway, tenant).post("/admin/freeze", "frozen", {"scope": _scope(scope)} | _why(reason)))


@runs_app.command("thaw")
def runs_thaw(scope: ScopeArgument, gateway: GatewayOption = HERE, tenant: TenantOption = None, reason: str = "") -> None:
    """Ends the freeze of that scope. Needs the admin token."""
    _print_json(_remote(gateway, tenant).post("/admin/thaw", "frozen", {"scope": _scope(scope)} | _why(reason)))


@runs_app.command("frozen")
def runs_frozen(gateway: GatewayOption = HERE, tenant: TenantOption = None, as_json: JsonOption = False) -> None:
    """What is frozen now. Needs the admin token."""
    told = _remote(gateway, tenant).get("/admin/frozen", "frozen")
    if as_json:
        _print_json(told)
        return
    rows = [
        {**row, "scope": " ".join(f"{name}={value}" for name, value in row["scope"].items()) or TENANT} for row in told["frozen"]
    ]
    _print_table(("scope", "at", "who", "reason"), rows)


@runs_app.command("acts")
def runs_acts(gateway: GatewayOption = HERE, tenant: TenantOption = None, limit: int = 50, as_json: JsonOption = False) -> None:
    """What was done by hand, newest first: who, when, why. Needs the admin token."""
    told = _remote(gateway, tenant).get("/admin/acts", "acts", limit=str(limit))
    if as_json:
        _print_json(told)
        return
    _print_table(("at", "who", "act", "what", "amount", "reason"), told["acts"])


@account_app.command("show")
def account_show(
    key: KeyArgument, gateway: GatewayOption = HERE, tenant: TenantOption = None, as_json: JsonOption = False
) -> None:
    """What is committed, reserved and adjusted there."""
    _print_account(_remote(gateway, tenant).get(f"/admin/accounts/{quoted(key)}", "account"), as_json)


@account_app.command("limit")
def account_limit(
    key: KeyArgument,
    limit: Annotated[str, typer.Argument(help='Such as "$10.00", "200k tokens", "500 credits"; none: as the policy says.')],
    gateway: GatewayOption = HERE,
    tenant: TenantOption = None,
    reason: str = "",
    as_json: JsonOption = False,
) -> None:
    """Sets the limit of one account, whatever the policy says."""
    body = {"limit": None if limit == "none" else limit} | _why(reason)
    _print_account(_remote(gateway, tenant).post(f"/admin/accounts/{quoted(key)}/limit", "account", body), as_json)


@account_app.command("adjust", context_settings={"ignore_unknown_options": True})  # or -1.50 would be an option
def account_adjust(
    key: KeyArgument,
    amount: Annotated[str, typer.Argument(help="What is added: 1.50 in USD, or 500 of what else it counts; -1.50 takes away.")],
    reason: Annotated[str, typer.Option(help="Why; kept with it.")],
    gateway: GatewayOption = HERE,
    tenant: TenantOption = None,
    act_id: Annotated[str | None, typer.Option("--id", help="The same id again changes nothing.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Adds to what was committed in an account, or takes away."""
    given: Any = amount.replace("$", "") if key.endswith("|usd") else _whole(amount)
    body = {"amount": given, "reason": reason} | ({} if act_id is None else {"id": act_id})
    _print_account(_remote(gateway, tenant).post(f"/admin/accounts/{quoted(key)}/adjust", "account", body), as_json)


@account_app.command("reset")
def account_reset(
    key: KeyArgument, gateway: GatewayOption = HERE, tenant: TenantOption = None, reason: str = "", as_json: JsonOption = False
) -> None:
    """Forgets what was committed there. What is held stays held."""
    _print_account(_remote(gateway, tenant).post(f"/admin/accounts/{quoted(key)}/reset", "account", _why(reason)), as_json)


@app.command()
def spend(
    by: Annotated[str, typer.Option(help="Any of: a dimension, run, key, model, provider, day; several with commas.")] = "model",
    from_: Annotated[str | None, typer.Option("--from", help="A date, such as 2026-11-01. Default: 30 days.")] = None,
    to: Annotated[str | None, typer.Option(help="A date; that day is included. Default: today.")] = None,
    gateway: GatewayOption = HERE,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """What was spent, and on what."""
    told = _remote(gateway, tenant).get("/budget/spend", "rows", by=by, to=to, **{"from": from_})
    if as_json:
        _print_json(told)
        return
    total = {**dict.fromkeys(told["by"], ""), told["by"][0]: "total", **told["total"]}
    more = [name for name in ("credits", "risk_points") if name in total]
    rows = [{**dict.fromkeys(more, 0), **row} for row in (*told["rows"], total)]
    _print_table((*told["by"], "usd", "tokens", "calls", *more), rows)


# -- keys and the ledger --------------------------------------------------------------------------------------------------------


@keys_app.command("hash")
def keys_hash(
    key: Annotated[
        str | None, typer.Argument(help="The key; left out, it is read from standard input, which no history keeps.")
    ] = None,
) -> None:
    """The SHA-256 of a key, as `keys` in the config wants it."""
    secret = key if key is not None else sys.stdin.readline().strip()
    if not secret:
        _fail("found no key, expected one as the argument or on standard input")
    print(hashlib.sha256(secret.encode()).hexdigest())


@ledger_app.command("adopt")
def ledger_adopt(config: ConfigOption = None) -> None:
    """Accepts the ledger as it is, after `ledger_lost`: what it does not know was spent is forgotten."""
    from gateway import app as gateway_app
    from gateway.ledger.contract import LedgerLost, LedgerUnavailable

    loaded, _ = _load(_config_path(config))
    try:
        print(gateway_app.adopt(loaded))
    except (LedgerLost, LedgerUnavailable, OSError) as failure:
        _fail(f"the ledger: {failure}")


@ledger_app.command("verify")
def ledger_verify(config: ConfigOption = None) -> None:
    """Recomputes every balance from receipts, debits, holds, adjustments and what was carried forward. Gateways may run meanwhile."""
    from gateway.ledger.verify import verify_ledger

    _print_verdict(_on_ledger(config, lambda ledger: verify_ledger(ledger.dump())), "OK")


@ledger_app.command("export")
def ledger_export(
    file: Annotated[str, typer.Argument(help="Where to; - for standard output.")], config: ConfigOption = None
) -> None:
    """Writes the whole ledger into a file, live holds included. To move it, stop the gateways first."""
    from gateway.ledger.moving import export_to

    if file == "-":
        _print_verdict(_on_ledger(config, lambda ledger: export_to(ledger, sys.stdout.buffer)), "exported", sys.stderr)
        return
    draft = Path(f"{file}.part")
    try:
        with draft.open("wb") as opened:
            verdict = _on_ledger(config, lambda ledger: export_to(ledger, opened))
        draft.replace(file)
    except OSError as error:
        _fail(f"{file}: {error.strerror}")
    finally:
        with suppress(OSError):
            draft.unlink()  # of an export that failed, also where it ended in _fail
    _print_verdict(verdict, "exported")


@ledger_app.command("import")
def ledger_import(
    file: Annotated[str, typer.Argument(help="What `export` wrote; - for standard input.")], config: ConfigOption = None
) -> None:
    """Loads an export into an empty ledger: SQLite or Redis, wherever it came from. All of it, or nothing."""
    from gateway.ledger.moving import import_from

    try:
        with tempfile.TemporaryFile() if file == "-" else Path(file).open("rb") as opened:
            if file == "-":  # it is read twice: to verify it, and to load it
                shutil.copyfileobj(sys.stdin.buffer, opened)
                opened.seek(0)
            verdict = _on_ledger(config, lambda ledger: import_from(ledger, opened))
    except OSError as error:
        _fail(f"{file}: {error.strerror}")
    _print_verdict(verdict, "imported")


@app.command()
def version() -> None:
    """The version."""
    print(__version__)


# -- helpers --------------------------------------------------------------------------------------------------------------------


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _fail(message: str, code: int = 1) -> NoReturn:
    print(f"penstock: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _config_path(given: Path | None) -> Path:
    if given is not None:
        return given
    return next((path for path in (Path("config.yaml"), Path("config.example.yaml")) if path.exists()), Path("config.yaml"))


def _load(config: Path) -> Any:
    """(Settings, Policy), or every mistake of both files on stderr and exit code 1."""
    from gateway import app as gateway_app
    from gateway.yaml_source import Mistakes

    try:
        return gateway_app.load(config)
    except Mistakes as mistakes:
        for mistake in mistakes.mistakes:
            print(mistake, file=sys.stderr)
        sys.exit(1)


def _token() -> str | None:
    return os.environ.get("PENSTOCK_ADMIN_TOKEN") or os.environ.get("PENSTOCK_KEY")


def _remote(gateway: str, tenant: str | None = None) -> Remote:
    return Remote(gateway, _token(), tenant)


def _on_ledger(config: Path | None, work: Callable[[Any], Awaitable[Any]]) -> Any:
    """What the work answers that was done on the config's ledger."""
    from gateway import app as gateway_app
    from gateway.ledger.contract import LedgerLost, LedgerUnavailable
    from gateway.ledger.moving import Unbalanced
    from gateway.ledger.rows import Damaged

    loaded, _ = _load(_config_path(config))
    try:
        return gateway_app.on_ledger(loaded, work)
    except (LedgerLost, LedgerUnavailable) as failure:
        _fail(f"the ledger: {failure}")
    except Damaged as damage:
        _fail(f"{damage}; nothing was changed")
    except Unbalanced as unbalanced:
        for difference in unbalanced.verdict.differences:
            print(difference, file=sys.stderr)
        _fail(f"{unbalanced}; nothing was loaded")


def _print_verdict(verdict: Any, done: str, out: TextIO | None = None) -> None:
    """Exit code 1 where balances differ: each difference is a line, then how many there are."""
    for difference in verdict.differences:
        print(difference, file=out)
    if verdict.different:
        _fail(f"{verdict.different} balances are not what the records say, in {verdict.counts}")
    print(f"{done}: {verdict.counts}; every balance is what its records say", file=out)


def _headers(lines: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines or ():
        name, colon, value = line.partition(":")
        if not colon:
            _fail(f"--header: found {line!r}, expected a name, a colon and a value")
        found[name.strip()] = value.strip()
    return found


def _why(reason: str) -> dict[str, Any]:
    return {"reason": reason} if reason else {}


def _scope(words: list[str]) -> dict[str, str]:
    if words == [TENANT]:
        return {}
    scope: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            _fail(f"found {word!r}, expected a dimension and its value such as team=research, or the word tenant alone")
        scope[name] = value
    return scope


def _amount(amount: str | int | None, unit: str) -> str | None:
    if amount is None:
        return None
    return f"${amount}" if unit == "usd" else f"{amount:,} {unit.replace('_', ' ')}"


def _whole(amount: str) -> int:
    try:
        return int(amount)
    except ValueError:
        _fail(f"found {amount!r}, expected a whole number, as this account counts no USD")


def _print_json(told: dict[str, Any]) -> None:
    print(json.dumps(told, indent=2))


def _print_run(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(told)
        return
    for name in ("run_id", "state", "limit_usd", "committed_usd", "reserved_usd", "remaining_usd", "unconfirmed_usd", "calls"):
        print(f"{name:<16} {'-' if told.get(name) is None else told[name]}")
    ask = told.get("ask")
    asks = None if ask is None else f"{_amount(ask['amount'], ask['unit'])} more, at {ask['at']}: {ask['reason']}"
    for name, value in (
        *(("paused_by", told.get("paused_by")), ("ancestry", ", ".join(told.get("ancestry", ()))), ("asks for", asks)),
    ):
        if value:
            print(f"{name:<16} {value}")
    _print_table(("account", "limit", "committed", "reserved", "remaining", "mode"), told.get("accounts", []))


def _print_account(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(told)
        return
    for name in ("account", "limit", "committed", "reserved", "remaining", "unconfirmed", "carried", "adjusted"):
        print(f"{name:<16} {told.get(name)}")


def _print_table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if row.get(column) is None else str(row.get(column)) for column in columns))
    # Values are callers' words: `[bold]` and `:smile:` in them are text.
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False, highlight=False).print(table)
