"""`penstock`: one short function a verb. An error that a user can mend is one line on stderr and exit code 1, never a traceback."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

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
runs_app = typer.Typer(help="Runs of a running gateway: list, show, stop, limit, settle.", no_args_is_help=True)
keys_app = typer.Typer(help="Keys for `auth: keys`.", no_args_is_help=True)
ledger_app = typer.Typer(help="The ledger itself.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")
app.add_typer(keys_app, name="keys")
app.add_typer(ledger_app, name="ledger")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The config file; default: config.yaml, else config.example.yaml.", show_default=False),
]
GatewayOption = Annotated[str, typer.Option("--gateway", help="A running gateway's address.", envvar="PENSTOCK_GATEWAY")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the gateway's answer as it is.")]
HERE = "http://127.0.0.1:8080"


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
    from gateway import policy_file, settings

    if schema:
        print(json.dumps({"config": settings.config_schema(), "policy": policy_file.policy_schema()}, indent=2))
        return
    loaded, policy = _load(_config_path(config))
    print(
        f"ok: {len(policy.budgets)} budgets, policy {policy.version}, {len(loaded.providers)} providers, prices {loaded.catalog.version}"
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
) -> None:
    """Says which budgets apply to a request, what it may cost line by line, the ladder, and the decision. Makes no call."""
    from gateway import app as gateway_app
    from gateway.ledger.contract import LedgerLost, LedgerUnavailable
    from gateway.wire.problem import Refused

    lines = [*(header or ()), *([] if run is None else [f"X-Run-Id: {run}"])]
    for line in lines:
        if ":" not in line:
            _fail(f"--header: found {line!r}, expected a name, a colon and a value")
    loaded, policy = _load(_config_path(config))
    try:
        body = sys.stdin.buffer.read() if request == "-" else Path(request).read_bytes()
    except OSError as error:
        _fail(f"{request}: {error.strerror}")
    try:
        explained = gateway_app.explain(loaded, policy, body, lines)
    except Refused as refusal:
        _fail(f"refused {refusal.problem.status} {refusal.problem.code}: {refusal.problem.detail}")
    except (LedgerLost, LedgerUnavailable, OSError) as failure:
        _fail(f"the ledger: {failure}")
    for line in explained.lines():
        print(line)


@app.command()
def demo(model: Annotated[str, typer.Option(help="scripted, or local: a real model server.")] = "scripted") -> None:
    """A runaway agent, first unguarded, then under a $1.00 ceiling."""
    from gateway.demo import run as demo_run

    sys.exit(demo_run.main(model))


# -- a running gateway's runs ---------------------------------------------------------------------------------------------------


@runs_app.command("list")
def runs_list(gateway: GatewayOption = HERE, limit: int = 50, as_json: JsonOption = False) -> None:
    """The runs with the latest activity."""
    told = _remote(gateway).get("/budget/runs", "runs", limit=str(limit))
    if as_json:
        _print_json(told)
        return
    columns = ("run_id", "state", "limit_usd", "committed_usd", "reserved_usd", "remaining_usd", "calls")
    _print_table(columns, told["runs"])
    if not told["runs"] and _token() is None:
        print("No run is shown to a caller without a key: set PENSTOCK_KEY to the runs' own key, or PENSTOCK_ADMIN_TOKEN.")


@runs_app.command("show")
def runs_show(run: str, gateway: GatewayOption = HERE, as_json: JsonOption = False) -> None:
    """One run with every account that its calls count in."""
    _print_run(_remote(gateway).get(f"/budget/runs/{quoted(run)}", "run_id"), as_json)


@runs_app.command("stop")
def runs_stop(run: str, gateway: GatewayOption = HERE, reason: str = "", as_json: JsonOption = False) -> None:
    """Stops a run for good: live calls end, later ones are refused."""
    _print_run(_remote(gateway).post(f"/budget/runs/{quoted(run)}/stop", "run_id", {"reason": reason} if reason else {}), as_json)


@runs_app.command("limit")
def runs_limit(
    run: str,
    limit: Annotated[str, typer.Argument(help='Such as "$2.00".')],
    gateway: GatewayOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Sets a run's own ceiling. Raising it needs the admin token."""
    _print_run(_remote(gateway).put(f"/budget/runs/{quoted(run)}", "run_id", {"limit": limit}), as_json)


@runs_app.command("settle")
def runs_settle(
    hold: Annotated[str, typer.Argument(help="A hold's id: rsv_…")],
    cost: Annotated[str | None, typer.Argument(help="What it really cost, in USD, such as 0.12.")] = None,
    release: Annotated[bool, typer.Option("--release", help="It cost nothing.")] = False,
    gateway: GatewayOption = HERE,
    reason: str = "",
) -> None:
    """Settles a hold that is still open, or that was charged provisionally. Needs the admin token."""
    if (cost is None) is not release:
        _fail("name either what the hold cost, or --release")
    body: dict[str, Any] = {"release": True} if release else {"cost_usd": (cost or "").removeprefix("$")}
    _print_json(
        _remote(gateway).post(
            f"/admin/holds/{quoted(hold)}/settle", "reservation_id", body | ({"reason": reason} if reason else {})
        )
    )


@app.command()
def spend(
    by: Annotated[str, typer.Option(help="Any of: a dimension, run, key, model, provider, day; several with commas.")] = "model",
    from_: Annotated[str | None, typer.Option("--from", help="A date, such as 2026-11-01. Default: 30 days.")] = None,
    to: Annotated[str | None, typer.Option(help="A date; that day is included. Default: today.")] = None,
    gateway: GatewayOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """What was spent, and on what."""
    told = _remote(gateway).get("/budget/spend", "rows", by=by, to=to, **{"from": from_})
    if as_json:
        _print_json(told)
        return
    total = {**dict.fromkeys(told["by"], ""), told["by"][0]: "total", **told["total"]}
    _print_table((*told["by"], "usd", "tokens", "calls"), [*told["rows"], total])


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


@app.command()
def version() -> None:
    """The version."""
    print(__version__)


# -- helpers --------------------------------------------------------------------------------------------------------------------


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


def _remote(gateway: str) -> Remote:
    return Remote(gateway, _token())


def _print_json(told: dict[str, Any]) -> None:
    print(json.dumps(told, indent=2))


def _print_run(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(told)
        return
    for name in ("run_id", "state", "limit_usd", "committed_usd", "reserved_usd", "remaining_usd", "unconfirmed_usd", "calls"):
        print(f"{name:<16} {told.get(name)}")
    _print_table(("name", "scope", "window", "limit", "committed", "reserved", "remaining", "mode"), told.get("accounts", []))


def _print_table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if row.get(column) is None else str(row.get(column)) for column in columns))
    # Values are callers' words: `[bold]` and `:smile:` in them are text.
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False, highlight=False).print(table)
