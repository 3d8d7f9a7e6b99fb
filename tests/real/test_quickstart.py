"""docs/quickstart.md, followed to the letter against the real model: what it shows is what happens, but for the words and the numbers."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Final

import pytest
import yaml
from typer.testing import CliRunner

from gateway import cli
from gateway.demo import local_model
from tests.support.examples import Example, examples, masked
from tests.support.gateway import GatewayProcess
from tests.support.shipped import ROOT, Shipped, default_policy

pytestmark = [pytest.mark.deep, pytest.mark.skipif(not local_model.installed(), reason=local_model.MISSING)]

STEP: Final = re.compile(r"step (\d+) +(allow|downgrade) +(\S+) +(\d+) \+ (\d+) tokens +\$([\d.]+) left", re.ASCII)


def shown(lang: str, name: str) -> Example:
    return next(example for example in examples(lang) if example.page == "docs/quickstart.md" and example.name == name)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """As shipped: the page's edit of the policy comes later, while it runs."""
    with local_model.running() as model:
        setup = Shipped(tmp_path_factory.mktemp("quickstart"), model.base_url, policy=default_policy())
        with GatewayProcess(setup) as running:
            yield running


@pytest.fixture(scope="module")
def session(gateway: GatewayProcess) -> str:
    """What examples/quickstart.py prints, after the edit was taken over."""
    part = yaml.safe_load(shown("yaml", "part").text)
    (gateway.setup.folder / "policy.yaml").write_text(yaml.safe_dump(default_policy(part)))
    deadline = time.monotonic() + 10
    while gateway.log.count('"event":"policy"') < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    command = [sys.executable, str(ROOT / "examples/quickstart.py")]
    env = {**os.environ, "OPENAI_BASE_URL": f"{gateway.url}/v1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, check=True).stdout


def test_the_policy_is_taken_over_as_the_page_says(gateway: GatewayProcess, session: str) -> None:
    assert gateway.log.count('"event":"policy"') == 2


@pytest.mark.parametrize("where", ["the page", "here"])
def test_steps_are_allowed_then_downgraded_then_refused(where: str, session: str) -> None:
    text = session if where == "here" else shown("text", "session").text
    *steps, refusal, message = text.strip().splitlines()
    found = [STEP.match(step) for step in steps]
    assert all(found), steps
    served = [(step[2], step[3]) for step in found if step is not None]
    assert set(served) == {("allow", "gemma-3-270m"), ("downgrade", "gemma-3-270m-small")}
    assert served == sorted(served), "first the model that was asked for, then the cheaper one"
    assert re.fullmatch(rf"step {len(steps) + 1} +402 budget_exceeded", refusal)
    assert message.startswith("Run quickstart has reached its ceiling: limit $0.006 (budget run-ceiling; spent $0.00")


def test_the_ledger_has_exactly_what_the_server_counted(gateway: GatewayProcess, session: str) -> None:
    run = gateway.run("quickstart", key="none")
    steps = [step for step in map(STEP.match, session.splitlines()) if step is not None]
    assert run["calls"] == len(steps)
    models = gateway.setup.config()["models"]
    # Both models charge cached input as input.
    spent = sum(
        Decimal(int(step[4])) * Decimal(str(models[step[3]]["price"]["input"]))
        + Decimal(int(step[5])) * Decimal(str(models[step[3]]["price"]["output"]))
        for step in steps
    )
    assert Decimal(run["committed_usd"]) == spent / 1_000_000
    assert spent / 1_000_000 <= Decimal("0.006")
    assert run["reserved_usd"] == "0.00"


@pytest.mark.parametrize(("name", "command"), [("show", "runs show quickstart"), ("spend", "spend --by run,model")])
def test_the_books_look_as_on_the_page(
    name: str, command: str, gateway: GatewayProcess, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_KEY", "none")
    monkeypatch.delenv("PENSTOCK_ADMIN_TOKEN", raising=False)
    told = CliRunner().invoke(cli.app, [*command.split(), "--gateway", gateway.url])
    assert told.exit_code == 0, told.output
    assert {" ".join(line.split()) for line in masked(told.output)} == {
        " ".join(line.split()) for line in masked(shown("text", name).text)
    }


def test_the_gateway_says_what_the_page_says(gateway: GatewayProcess) -> None:
    assert {line for line in masked(gateway.log) if line.startswith("penstock")} == masked(shown("text", "gateway").text)
