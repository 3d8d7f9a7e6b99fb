"""`penstock run` before a real gateway: the agent's run, limit, key, signals and exit code, and what is said at the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.demo.replies import Writer
from tests.support.config import Setup, listed, opened_by, policy, run_ceiling
from tests.support.gateway import ADMIN_TOKEN, CALLER_KEY, GatewayProcess
from tests.support.pricing import price_table
from tests.support.provider import FaultProvider

CALL = "import openai; print(openai.OpenAI().chat.completions.create(model='big-model', messages=[{'role': 'user', 'content': 'Hi'}], max_tokens=20).model)"


def penstock_run(*words: str, gateway: str, command: list[str], stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "OPENAI_", "ANTHROPIC_"))}
    return subprocess.run(
        [sys.executable, "-m", "gateway", "run", "--gateway", gateway, *words, "--", *command],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=60,
        check=False,
        env={**clean, **env},
    )


@pytest.fixture(scope="module")
def provider(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, price_table()) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: FaultProvider) -> Iterator[GatewayProcess]:
    setup = Setup(tmp_path_factory.mktemp("gateway"), provider.base_url, policy=policy(run_ceiling("$1.00")))
    with GatewayProcess(setup) as running:
        yield running


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_an_agent_runs_under_its_limit_and_what_it_spent_is_said_by_model(gateway: GatewayProcess) -> None:
    done = penstock_run("--run", "r9", "--limit", "$0.50", gateway=gateway.url, command=python(CALL), OPENAI_API_KEY=CALLER_KEY)
    assert (done.returncode, done.stdout) == (0, "big-model\n")
    told = gateway.run("r9")
    assert (told["limit_usd"], told["calls"]) == ("0.50", 1)
    first, second = done.stderr.splitlines()
    assert first == f"penstock: run r9 spent ${told['committed_usd']} of $0.50"
    assert second.startswith(f"penstock:   big-model  ${told['committed_usd']}  ")
    assert second.endswith(" tokens  1 call")


def test_each_has_a_run_of_its_own_and_finds_it_in_its_environment(gateway: GatewayProcess) -> None:
    names = ("OPENAI_BASE_URL", "OPENAI_API_BASE", "ANTHROPIC_BASE_URL", "PENSTOCK_RUN_ID", "PENSTOCK_ADMIN_TOKEN")
    show = python(f"import os; print(*[os.environ.get(name) for name in {names}])")
    first, second = [
        penstock_run(gateway=address, command=show, PENSTOCK_ADMIN_TOKEN=ADMIN_TOKEN).stdout.split()
        for address in (gateway.url, f"{gateway.url}/v1/")  # which is what OPENAI_BASE_URL says
    ]
    run = first[3]
    base = f"{gateway.url}/run/{run}"
    assert first == [f"{base}/v1", f"{base}/v1", base, run, "None"]
    assert second[3] != run
    assert second[0] == first[0].replace(run, second[3])


def test_standard_input_and_the_exit_code_pass_through(gateway: GatewayProcess) -> None:
    code = "import sys; print(sys.stdin.read().upper()); print('mine', file=sys.stderr); sys.exit(7)"
    done = penstock_run(gateway=gateway.url, command=python(code), stdin="mill")
    assert (done.returncode, done.stdout) == (7, "MILL\n")
    mine, ours = done.stderr.splitlines()
    assert mine == "mine"
    assert "no call of the command is known here" in ours
    assert "`penstock runs show run_" in ours


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_the_agent_and_its_end_by_one_is_told_as_shells_do(
    gateway: GatewayProcess, number: signal.Signals
) -> None:
    code = f"import signal, time; signal.signal({int(number)}, signal.SIG_DFL); print('up', flush=True); time.sleep(60)"
    running = subprocess.Popen(
        [sys.executable, "-m", "gateway", "run", "--gateway", gateway.url, "--", *python(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # without a terminal
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - whoever runs the tests in the background may ignore it
    )
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        running.send_signal(number)
        assert running.wait(30) == 128 + number


def refused(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """Its complaint; nothing was started."""
    assert done.returncode == code, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_without_a_gateway_nothing_is_started() -> None:
    for words in ((), ("--limit", "$2")):
        done = penstock_run(*words, gateway="http://127.0.0.1:9", command=python("print('started')"))
        assert "no gateway answers at http://127.0.0.1:9" in refused(done)


@pytest.mark.parametrize(
    ("words", "command", "code", "said"),
    [
        (["--limit", "$2"], python("print('started')"), 1, "only tighten"),
        (["--limit", "much"], python("print('started')"), 1, "an amount in USD"),
        (["--run", "a b"], python("print('started')"), 1, "--run: found 'a b', expected 1 to 128"),
        ([], ["no-such-agent"], 127, "no-such-agent: no such command"),
    ],
)
def test_what_can_not_be_done_is_said_before_anything_is_started(
    gateway: GatewayProcess, words: list[str], command: list[str], code: int, said: str
) -> None:
    done = penstock_run(*words, gateway=gateway.url, command=command, PENSTOCK_ADMIN_TOKEN=ADMIN_TOKEN)
    assert said in refused(done, code)


def test_with_the_gateways_own_keys_the_agent_is_given_one(start_gateway: Callable[..., Any]) -> None:
    gateway = start_gateway(policy=policy(run_ceiling("$1.00")), **opened_by(listed("ci", "pk-ci")))
    done = penstock_run("--limit", "$0.50", gateway=gateway.url, command=python(CALL), PENSTOCK_KEY="pk-ci")
    assert (done.returncode, done.stdout) == (0, "big-model\n")
    assert " of $0.50" in done.stderr
    done = penstock_run("--limit", "$0.50", gateway=gateway.url, command=python("print('started')"))
    assert "PENSTOCK_KEY" in refused(done)
