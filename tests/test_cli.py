"""`penstock`: every verb does what it says; what a user can mend is one line on stderr, never a traceback."""

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import apsw
import pytest
import yaml

from gateway import __version__, app, cli
from gateway.ledger.contract import Ledger
from tests.ledger.builders import LEASE_MS, charge, decision, plan
from tests.support.config import Setup, ladder, policy, run_ceiling
from tests.support.valkey import shared_url

if TYPE_CHECKING:
    from tests.support.gateway import GatewayProcess


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of a command that failed."""
        assert self.code == 1, self
        (line,) = self.err.splitlines()
        return line


@pytest.fixture
def penstock(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs the command in this process."""

    def run(*arguments: object, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["penstock", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    for name in ("PENSTOCK_ADMIN_TOKEN", "PENSTOCK_KEY", "PENSTOCK_GATEWAY"):
        monkeypatch.delenv(name, raising=False)
    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    models = ladder(**{"big-model": ["small-model"]})
    rules = policy(
        run_ceiling("$1.00", downgrade_below="25%"), {"name": "tenant-month", "scope": "tenant", "limit": "$100"}, models=models
    )
    return Setup(tmp_path, "http://127.0.0.1:1/v1", policy=rules).write()


REQUEST = {"model": "big-model", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 1000}


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(REQUEST))
    return path


# -- the command itself -----------------------------------------------------------------------------------------------------------


def test_it_runs_as_a_module_and_says_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "gateway", "version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


def test_without_a_verb_it_shows_its_help(penstock: Callable[..., Done]) -> None:
    done = penstock()
    assert done.code == 2
    assert done.err == ""
    for verb in ("serve", "check", "explain", "runs", "spend", "keys", "ledger", "demo"):
        assert verb in done.out


def test_help_is_no_failure(penstock: Callable[..., Done]) -> None:
    assert penstock("runs", "--help").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "No such command 'bogus'; see `penstock --help`"),
        (["runs", "show"], "see `penstock runs show --help`"),
        (["spend", "--nope"], "--nope"),
        (["serve", "--workers", "0"], "--workers"),
    ],
)
def test_a_command_that_was_mistyped_is_told_in_one_line(penstock: Callable[..., Done], arguments: list[str], words: str) -> None:
    done = penstock(*arguments)
    (line,) = done.err.splitlines()
    assert done.code == 2
    assert line.startswith("penstock: ")
    assert words in line


# -- check ------------------------------------------------------------------------------------------------------------------------


def test_check_says_what_it_read(penstock: Callable[..., Done], config: Path) -> None:
    done = penstock("check", "--config", config)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("ok: 2 budgets, policy ")


def test_check_tells_every_mistake_of_both_files_at_once(penstock: Callable[..., Done], config: Path) -> None:
    config.write_text(config.read_text().replace("listen:", "lisen:") + "auth: maybe\n")
    rules = config.parent / "policy.yaml"
    rules.write_text(rules.read_text().replace("$1.00", "one dollar").replace("small-model", "smal-model"))
    done = penstock("check", "-c", config)
    assert (done.code, done.out) == (1, "")
    lines = done.err.splitlines()
    assert [Path(line.partition(":")[0]).name for line in lines] == ["config.yaml", "config.yaml", "policy.yaml"]
    for words in ("lisen", "auth", "one dollar"):
        assert words in done.err
    # With a config that is wrong nobody knows its models; once it is right, the policy's are looked up.
    config.write_text(config.read_text().replace("lisen:", "listen:").replace("auth: maybe\n", ""))
    assert "smal-model" in penstock("check", "-c", config).err


def test_check_prints_a_schema_for_each_file(penstock: Callable[..., Done]) -> None:
    schemas = json.loads(penstock("check", "--schema").out)
    assert schemas["config"]["properties"].keys() >= {"listen", "providers", "models"}
    assert schemas["policy"]["properties"].keys() >= {"budgets", "models", "runs"}


@pytest.mark.parametrize("verb", [["check"], ["serve"], ["explain", "-"], ["ledger", "adopt"]], ids=lambda verb: verb[0])
def test_a_config_that_is_not_there_is_one_line(penstock: Callable[..., Done], tmp_path: Path, verb: list[str]) -> None:
    assert "no such file" in penstock(*verb, "-c", tmp_path / "none.yaml", stdin="{}").complaint


def test_without_a_config_named_the_one_in_the_folder_is_taken(
    penstock: Callable[..., Done], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    assert penstock("check").code == 0
    config.rename(config.with_name("config.example.yaml"))
    assert penstock("check").code == 0


# -- explain ----------------------------------------------------------------------------------------------------------------------


def test_explain_shows_budgets_estimate_ladder_and_decision(
    penstock: Callable[..., Done], config: Path, request_file: Path
) -> None:
    done = penstock("explain", request_file, "-c", config, "--run", "r42", "-H", "X-Agent-Id: a1")
    assert (done.code, done.err) == (0, "")
    assert "run r42, agent a1" in done.out
    assert "run-ceiling        run r42 · lifetime · $1.00 · hard_gate" in done.out
    assert "input: 1 message" in done.out
    assert "output: 1000 tokens" in done.out
    assert "plan 1    big-model at test, at most 1000 output tokens" in done.out
    assert "plan 2    small-model at test" in done.out
    assert done.out.splitlines()[-1] == "decision  allow: big-model would be called"


def test_explain_reads_standard_input_and_other_headers(penstock: Callable[..., Done], config: Path) -> None:
    done = penstock(
        "explain", "-", "-c", config, "-H", "X-Budget-Downgrade: never", "-H", "X-Run-Limit: $0.001", stdin=json.dumps(REQUEST)
    )
    assert "plan 2" not in done.out
    assert done.out.splitlines()[-1] == "decision  block: no plan fits"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "refused 400 ambiguous_request"),
        (json.dumps({**REQUEST, "model": "unheard-of"}), "refused 400 model_not_priced"),
        (json.dumps({**REQUEST, "max_completion_tokens": 5}), "refused 400 output_cap_conflict"),
    ],
    ids=["not JSON", "unknown model", "two caps"],
)
def test_explain_says_what_a_request_would_be_refused_for(
    penstock: Callable[..., Done], config: Path, body: str, words: str
) -> None:
    complaint = penstock("explain", "-", "-c", config, stdin=body).complaint
    assert words in complaint
    assert "(read as a request to /v1/chat/completions; --route names another)" in complaint


def test_explain_reads_a_request_as_its_route_would(penstock: Callable[..., Done], config: Path) -> None:
    body = json.dumps({**REQUEST, "system": "Be brief.", "thinking": {"type": "enabled", "budget_tokens": 99_999}})
    refused = penstock("explain", "-", "-c", config, "--route", "/v1/messages", stdin=body).complaint
    assert "output_cap_conflict" in refused
    assert "thinking.budget_tokens (99999)" in refused
    assert "decision" in penstock("explain", "-", "-c", config, "--route", "/v1/messages", stdin=json.dumps(REQUEST)).out
    assert "expected one of /v1/chat/completions, " in penstock("explain", "-", "-c", config, "--route", "/v1/nowhere").complaint


def test_explain_needs_its_file_and_whole_headers(penstock: Callable[..., Done], config: Path, request_file: Path) -> None:
    assert "No such file" in penstock("explain", config.parent / "none.json", "-c", config).complaint
    assert "expected a name, a colon and a value" in penstock("explain", request_file, "-c", config, "-H", "X-Agent-Id").complaint


def test_a_ledger_that_cannot_be_opened_is_one_line(penstock: Callable[..., Done], config: Path, request_file: Path) -> None:
    (config.parent / "ledger.db").write_bytes(b"not a database, but long enough to be taken for a damaged one" * 50)
    assert "the ledger: " in penstock("explain", request_file, "-c", config).complaint


# -- keys -------------------------------------------------------------------------------------------------------------------------


def test_keys_hash_prints_what_the_config_wants(penstock: Callable[..., Done]) -> None:
    digest = hashlib.sha256(b"pk-house").hexdigest()
    assert penstock("keys", "hash", "pk-house").out == f"{digest}\n"
    assert penstock("keys", "hash", stdin="pk-house\n").out == f"{digest}\n"
    assert "found no key" in penstock("keys", "hash").complaint


# -- the ledger -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spent(config: Path) -> Path:
    """The config of a ledger with a live hold in it."""

    async def hold(ledger: Ledger) -> None:
        await ledger.reserve(decision(plan(charge())), LEASE_MS)

    app.on_ledger(app.load(config)[0], hold)
    return config


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The config of a ledger that has never been used."""
    folder = tmp_path / "other"
    folder.mkdir()
    return Setup(folder, "http://127.0.0.1:1/v1").write()


def test_a_ledger_is_verified_exported_imported_and_verified_again(
    penstock: Callable[..., Done], spent: Path, other: Path, tmp_path: Path
) -> None:
    counts = "1 tenants, 1 accounts, 1 runs, 1 calls, 1 live holds; every balance is what its records say\n"
    file = tmp_path / "ledger.jsonl"
    assert penstock("ledger", "verify", "-c", spent) == Done(0, f"OK: {counts}", "")
    assert penstock("ledger", "export", file, "-c", spent) == Done(0, f"exported: {counts}", "")
    assert not file.with_name("ledger.jsonl.part").exists()
    assert penstock("ledger", "import", file, "-c", other) == Done(0, f"imported: {counts}", "")
    assert penstock("ledger", "verify", "-c", other) == Done(0, f"OK: {counts}", "")
    assert "is not empty (tenant 'acme')" in penstock("ledger", "import", file, "-c", other).complaint


def test_a_ledger_moves_to_redis_and_back_once_the_other_one_is_adopted(
    penstock: Callable[..., Done], spent: Path, tmp_path: Path
) -> None:
    file = tmp_path / "ledger.jsonl"

    def config_of(ledger: str) -> Path:
        path = spent.with_name("moved.yaml")
        path.write_text(yaml.safe_dump({**yaml.safe_load(spent.read_text()), "ledger": ledger}))
        return path

    penstock("ledger", "export", file, "-c", spent)
    for target in (shared_url(), f"sqlite:///{tmp_path / 'back.db'}"):
        moved = config_of(target)
        assert "penstock ledger adopt" in penstock("ledger", "import", file, "-c", moved).complaint
        assert penstock("ledger", "adopt", "-c", moved).code == 0
        assert "1 calls, 1 live holds" in penstock("ledger", "import", file, "-c", moved).out
        assert "1 calls, 1 live holds" in penstock("ledger", "export", file, "-c", moved).out
        assert penstock("ledger", "verify", "-c", moved).code == 0


def test_a_ledger_moves_through_a_pipe(spent: Path, other: Path) -> None:
    command = [sys.executable, "-m", "gateway", "ledger"]
    exported = subprocess.run([*command, "export", "-", "-c", spent], capture_output=True, check=True)
    assert json.loads(exported.stdout.splitlines()[-1])["kind"] == "end"
    assert exported.stderr.startswith(b"exported: 1 tenants")
    imported = subprocess.run([*command, "import", "-", "-c", other], input=exported.stdout, capture_output=True, check=True)
    assert imported.stdout.startswith(b"imported: 1 tenants")


def test_every_balance_that_is_not_what_its_records_say_is_a_line(penstock: Callable[..., Done], spent: Path) -> None:
    with apsw.Connection(str(spent.parent / "ledger.db")) as database:
        database.execute("UPDATE account_sums SET reserved = 7")
    done = penstock("ledger", "verify", "-c", spent)
    assert done.out == "acme: all||lifetime|usd: reserved = live holds: expected 10, found 7\n"
    assert "1 balances are not what the records say" in done.complaint


def test_an_export_that_was_damaged_is_not_imported(
    penstock: Callable[..., Done], spent: Path, other: Path, tmp_path: Path
) -> None:
    file = tmp_path / "ledger.jsonl"
    penstock("ledger", "export", file, "-c", spent)
    whole = file.read_text()
    file.write_text(whole.replace('"reserved":10', '"reserved":"10"', 1))
    assert (
        "line 3: account.reserved: found '10', expected an integer; nothing was"
        in penstock("ledger", "import", file, "-c", other).complaint
    )
    file.write_text(whole.replace('"reserved":10', '"reserved":11', 1))
    done = penstock("ledger", "import", file, "-c", other)
    assert done.code == 1
    assert done.err.startswith("acme: all||lifetime|usd: reserved = live holds: expected 10, found 11\n")
    assert done.err.endswith("nothing was loaded\n")
    assert "0 tenants" in penstock("ledger", "verify", "-c", other).out


def test_a_file_that_is_not_there_is_one_line(penstock: Callable[..., Done], config: Path, tmp_path: Path) -> None:
    assert "No such file" in penstock("ledger", "import", tmp_path / "none", "-c", config).complaint
    assert "No such file" in penstock("ledger", "export", tmp_path / "none" / "x", "-c", config).complaint


def test_a_ledger_that_was_lost_is_neither_verified_nor_exported(penstock: Callable[..., Done], spent: Path) -> None:
    (spent.parent / "ledger.db").unlink()
    file = spent.parent / "export.jsonl"
    for verb in (["verify"], ["export", "-"], ["export", file]):
        assert "the ledger: the ledger file" in penstock("ledger", *verb, "-c", spent).complaint
    assert not list(spent.parent.glob("export.jsonl*"))


def test_an_export_that_failed_halfway_leaves_nothing_behind_and_the_one_before_as_it_was(
    penstock: Callable[..., Done], spent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(ledger: object, out: BinaryIO) -> None:
        out.write(b"a part of it")
        raise OSError(28, "No space left on device")

    file = spent.parent / "export.jsonl"
    file.write_text("the one before")
    monkeypatch.setattr("gateway.ledger.moving.export_to", broken)
    assert "No space left on device" in penstock("ledger", "export", file, "-c", spent).complaint
    assert file.read_text() == "the one before"
    assert list(spent.parent.glob("export.jsonl*")) == [file]


# -- a running gateway ------------------------------------------------------------------------------------------------------------


def test_runs_and_spend_of_a_running_gateway(
    penstock: Callable[..., Done],
    start_gateway: "Callable[..., GatewayProcess]",
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from tests.support.gateway import ADMIN_TOKEN

    gateway = start_gateway(policy=policy(run_ceiling("$1.00")))
    gateway.client("r42").chat.completions.create(model="big-model", messages=[{"role": "user", "content": "Hi"}], max_tokens=20)
    monkeypatch.setenv("PENSTOCK_GATEWAY", gateway.url)
    monkeypatch.setenv("PENSTOCK_ADMIN_TOKEN", ADMIN_TOKEN)

    listed = penstock("runs", "list")
    assert "run_id" in listed.out
    assert "r42" in listed.out
    assert json.loads(penstock("runs", "list", "--json").out)["runs"][0]["run_id"] == "r42"

    shown = penstock("runs", "show", "r42")
    assert "limit_usd        1.00" in shown.out
    assert "run-ceiling" in shown.out
    assert "limit_usd        2.00" in penstock("runs", "limit", "r42", "$2.00").out

    spent = penstock("spend", "--by", "model,run")
    assert "big-model" in spent.out
    assert spent.out.splitlines()[-1].split()[0] == "total"
    assert json.loads(penstock("spend", "--by", "model", "--json").out)["total"]["calls"] == 1

    assert "state            stopped" in penstock("runs", "stop", "r42", "--reason", "enough").out
    assert "not" in penstock("runs", "show", "never-was").complaint
    assert "--release" in penstock("runs", "settle", "rsv_1").complaint
    assert "$" in penstock("runs", "limit", "r42", "much").complaint
    assert penstock("runs", "settle", "rsv_unknown", "--release").complaint

    again = penstock("check", "-c", gateway.setup.folder / "config.yaml", "--against-running", gateway.url)
    assert again.code == 0
    assert "starts at" not in again.out
    # A copy is changed: the gateway would sooner or later read its own file again.
    draft = shutil.copytree(gateway.setup.folder, tmp_path / "draft", ignore=shutil.ignore_patterns("*.db*", "state"))
    rules, config = draft / "policy.yaml", draft / "config.yaml"
    rules.write_text(rules.read_text().replace("scope: run", "scope: agent"))
    config.write_text(config.read_text().replace(str(gateway.setup.folder / "policy.yaml"), str(rules)))
    changed = penstock("check", "-c", config, "--against-running", gateway.url)
    assert "run-ceiling starts at $0 from now: its scope changed from run to agent" in changed.out

    monkeypatch.setenv("PENSTOCK_ADMIN_TOKEN", "")
    assert "PENSTOCK_ADMIN_TOKEN" in penstock("runs", "settle", "rsv_1", "--release").complaint


def test_an_operators_acts_on_a_running_gateway(
    penstock: Callable[..., Done], start_gateway: "Callable[..., GatewayProcess]", monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.gateway import ADMIN_TOKEN

    gateway = start_gateway(policy=policy(run_ceiling("$1.00"), {"name": "steps", "scope": "run", "limit": "60 calls"}))
    for name, more in (("r41", {}), ("r42", {"X-Parent-Run-Id": "r41"})):
        client = gateway.client(name, **more)
        client.chat.completions.create(model="big-model", messages=[{"role": "user", "content": "Hi"}], max_tokens=20)
    monkeypatch.setenv("PENSTOCK_GATEWAY", gateway.url)
    monkeypatch.setenv("PENSTOCK_ADMIN_TOKEN", ADMIN_TOKEN)
    usd, steps = "run-ceiling|run=r42|lifetime|usd", "steps|run=r42|lifetime|calls"

    shown = penstock("runs", "show", "r42").out
    assert "ancestry         r41" in shown
    assert usd in shown
    paused = penstock("runs", "pause", "r42", "--reason", "a look").out
    assert "state            paused" in paused
    assert "paused_by        admin" in paused
    assert "state            active" in penstock("runs", "resume", "r42").out

    assert json.loads(penstock("runs", "freeze", "team=research", "agent=a=1").out)["scope"] == {
        "agent": "a=1",
        "team": "research",
    }
    assert json.loads(penstock("runs", "freeze", "tenant", "--reason", "a leak").out)["scope"] == {}
    frozen = penstock("runs", "frozen").out
    assert "agent=a=1 team=research" in frozen
    assert "a leak" in frozen
    assert json.loads(penstock("runs", "thaw", "tenant").out)["changed"] is True
    assert "expected a dimension and its value" in penstock("runs", "freeze", "research").complaint

    assert "limit            8.00" in penstock("runs", "account", "limit", usd, "$8.00").out
    assert "limit            None" in penstock("runs", "account", "limit", usd, "none").out
    assert "adjusted         1.50" in penstock("runs", "account", "adjust", usd, "1.50", "--reason", "a bill", "--id", "b1").out
    assert "adjusted         1.50" in penstock("runs", "account", "adjust", usd, "1.50", "--reason", "a bill", "--id", "b1").out
    assert "adjusted         1.00" in penstock("runs", "account", "adjust", usd, "-0.50", "--reason", "a credit").out
    assert "committed        6" in penstock("runs", "account", "adjust", steps, "5", "--reason", "by hand").out
    assert "whole number" in penstock("runs", "account", "adjust", steps, "1.5", "--reason", "x").complaint
    assert "committed        0.00" in penstock("runs", "account", "reset", usd, "--reason", "anew").out
    assert json.loads(penstock("runs", "account", "show", steps, "--json").out)["committed"] == 6
    assert "no such account" in penstock("runs", "account", "show", "nonsense").complaint

    assert "no such account" in penstock("runs", "account", "show", steps, "--tenant", "acme").complaint
    assert "no such run" in penstock("runs", "show", "r42", "--tenant", "acme").complaint
    assert json.loads(penstock("spend", "--tenant", "acme", "--json").out)["rows"] == []
    assert "tenant" in penstock("runs", "frozen", "--tenant", "a b").complaint

    acts = penstock("runs", "acts", "--limit", "3").out
    assert [line.split()[2] for line in acts.splitlines()[1:]] == ["reset", "adjust", "adjust"]
    assert "anew" in acts


def test_a_gateway_that_is_not_there_is_one_line_with_the_way_out(penstock: Callable[..., Done]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    said = penstock("runs", "list", "--gateway", address).complaint
    assert address in said
    assert "penstock serve" in said
    assert "expected an address such as" in penstock("runs", "list", "--gateway", "somewhere").complaint


class Stranger(BaseHTTPRequestHandler):
    """A server that is no gateway."""

    said: tuple[int, bytes] = (200, b"<html>")

    def do_GET(self) -> None:
        status, body = self.said
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture
def stranger() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((200, b"<html>"), "is not a Penstock gateway"),
        ((200, b"[]"), "is not a Penstock gateway"),
        ((200, b"{}"), "is not a Penstock gateway"),
        ((502, b"<html>"), "answered HTTP 502"),
        ((401, b'{"detail": "No such key."}'), "No such key. (the admin token is read from PENSTOCK_ADMIN_TOKEN"),
    ],
)
@pytest.mark.parametrize("verb", [["runs", "list"], ["spend"], ["runs", "show", "r1"]], ids=" ".join)
def test_another_server_is_no_gateway(
    penstock: Callable[..., Done],
    stranger: str,
    monkeypatch: pytest.MonkeyPatch,
    verb: list[str],
    said: tuple[int, bytes],
    words: str,
) -> None:
    monkeypatch.setattr(Stranger, "said", said)
    assert words in penstock(*verb, "--gateway", stranger).complaint


def test_a_server_that_speaks_no_http_is_no_gateway(penstock: Callable[..., Done]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-nothing\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert "no gateway answers" in penstock("runs", "list", "--gateway", address).complaint


def test_what_callers_named_themselves_is_shown_as_it_is(
    penstock: Callable[..., Done], stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"agent": "[/red] :smile: [bold]x", "usd": "1.00", "tokens": 2, "calls": 1}]
    told = {"by": ["agent"], "rows": rows, "total": {"usd": "1.00", "tokens": 2, "calls": 1}}
    monkeypatch.setattr(Stranger, "said", (200, json.dumps(told).encode()))
    assert "[/red] :smile: [bold]x" in penstock("spend", "--by", "agent", "--gateway", stranger).out


def test_a_reader_that_has_seen_enough_ends_it_quietly(stranger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"runs": [{"run_id": f"r{number}"} for number in range(20_000)]}
    monkeypatch.setattr(Stranger, "said", (200, json.dumps(told).encode()))
    reading, writing = os.pipe()
    command = subprocess.Popen(
        [sys.executable, "-m", "gateway", "runs", "list", "--json", "--gateway", stranger], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    os.read(reading, 10)
    os.close(reading)
    _, complaint = command.communicate(timeout=30)
    assert complaint == b""
