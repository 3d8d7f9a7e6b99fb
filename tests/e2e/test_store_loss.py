"""A Valkey that came back with less than it had admits no call, of any tenant or run, until somebody adopts what is there.

The gateway runs on throughout: it notices by itself, and serves again without a restart.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.support.config import Setup, listed, opened_by, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.load import chat, microcents
from tests.support.loopback import LOOPBACK
from tests.support.provider import FaultProvider
from tests.support.valkey import Server

KEY: Final = "pk-house-11aa"
ANOTHER_TENANTS: Final = "pk-acme-90cd"  # who has never made a call


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "valkey") as running:
        yield running


@pytest.fixture
def gateway(tmp_path: Path, provider: FaultProvider, server: Server) -> Iterator[GatewayProcess]:
    setup = Setup(
        tmp_path / "gateway",
        provider.base_url,
        policy=policy(run_ceiling("$1")),
        ledger=server.url,
        **opened_by(listed("house", KEY), listed("acme", ANOTHER_TENANTS, tenant="acme")),
    )
    with GatewayProcess(setup) as running:
        yield running
        assert running.troubles == []


def ask(gateway: GatewayProcess, run: str, key: str = KEY) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}", "X-Run-Id": run}
    url = f"{gateway.url}/v1/chat/completions"
    return httpx.post(url, json=chat(max_tokens=20), headers=headers, **LOOPBACK, timeout=30)


def emptied(server: Server) -> None:
    server.command("FLUSHALL")


def killed_with_nothing_on_disk(server: Server) -> None:
    server.kill()
    server.start()


def killed_with_an_old_snapshot(server: Server) -> None:
    server.kill()
    snapshot = server.folder / "dump.rdb"
    shutil.copy2(server.folder / "old.rdb", snapshot)
    server.start()


LOSSES: Final = (emptied, killed_with_nothing_on_disk, killed_with_an_old_snapshot)
FIRST: Final = ("a new tenant", "a new run", "the same run")  # who asks first, when nobody has noticed yet


@pytest.mark.parametrize(
    ("loss", "first"),
    [
        pytest.param(loss, first, marks=[] if LOSSES.index(loss) == FIRST.index(first) else pytest.mark.deep)
        for loss in LOSSES
        for first in FIRST
    ],
)
def test_after_a_loss_nobody_is_admitted_until_it_is_adopted(
    gateway: GatewayProcess, provider: FaultProvider, server: Server, loss: Callable[[Server], None], first: str
) -> None:
    old = 0
    for number in range(4):
        assert ask(gateway, "r1").status_code == 200
        if number == 1:
            server.command("SAVE")
            shutil.copy2(server.folder / "dump.rdb", server.folder / "old.rdb")
            (server.folder / "dump.rdb").unlink()
            old = provider.bill.microcents
    seen = gateway.get("/readyz", KEY)["ledger"]["sequence"]
    loss(server)

    callers = {"the same run": ("r1", KEY), "a new run": ("r2", KEY), "a new tenant": ("r1", ANOTHER_TENANTS)}
    for run, key in (callers[first], *callers.values()):
        refused = ask(gateway, run, key)
        assert refused.status_code == 503, refused.text
        while refused.json()["code"] == "ledger_unavailable":  # while the connection is made again
            refused = ask(gateway, run, key)
        assert (refused.status_code, refused.json()["code"]) == (503, "ledger_lost"), (run, key)
        assert "penstock ledger adopt" in refused.json()["error"]["message"]
        assert refused.headers["x-should-retry"] == "false"
    ready = gateway.admin("GET", "/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    # What was seen last is not forgotten when the gateway looks again, though it was never written down before.
    provider.wait_for(lambda: witnessed(gateway) == seen)
    assert ask(gateway, "r1").json()["code"] == "ledger_lost"
    assert len(provider.calls) == 4
    pid = gateway.pid

    adopted = gateway.penstock("ledger", "adopt")
    assert "adopted" in adopted
    gateway.wait_until_ready()
    known = old if loss is killed_with_an_old_snapshot else 0
    provider.bill.calls.clear()
    for run, key in callers.values():
        assert ask(gateway, run, key).status_code == 200
    assert gateway.pid == pid
    [first_bill, *_] = provider.bill.calls
    assert microcents(gateway.run("r1", KEY)["committed_usd"]) == known + first_bill.microcents
    assert "OK" in gateway.penstock("ledger", "verify")


def witnessed(gateway: GatewayProcess) -> int:
    told = json.loads((gateway.setup.folder / "state" / "witness.json").read_bytes())
    return sum(sequence for _, sequence in told["tenants"].values())
