"""The ledger was lost or set back while the gateway was down: nothing is spent on a guess. 503 `ledger_lost` until somebody adopts it."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, READY_WITHIN_S, GatewayProcess
from tests.support.load import chat
from tests.support.loopback import LOOPBACK
from tests.support.provider import FaultProvider


@pytest.fixture(scope="module")
def used(folder: Path, shared_provider: FaultProvider) -> GatewayProcess:
    """A gateway with a history, stopped; in its folder `snapshot` the ledger as it was before the last calls. While it still ran, its
    ledger was deleted."""
    gateway = GatewayProcess(Setup(folder / "used", shared_provider.base_url, policy=policy(run_ceiling("$0.01"))))
    with gateway:
        ask(gateway)
        snapshot(gateway.setup.folder, gateway.setup.folder / "snapshot")
        assert ask(gateway).status_code == 200
        seen_by_witness(gateway)
        deleted(gateway.setup.folder)
        shared_provider.wait_for(lambda: code(ask(gateway)) == "ledger_lost", 10)
        assert gateway.admin("GET", "/readyz").status_code == 503
    return gateway


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    return shared_provider


def ask(gateway: GatewayProcess, run: str = "r1") -> httpx.Response:
    headers = {"Authorization": f"Bearer {CALLER_KEY}", "X-Run-Id": run}
    body = chat(max_tokens=50)
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, **LOOPBACK, timeout=30)


def ledger_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("ledger.db*"))


def snapshot(source: Path, target: Path) -> None:
    target.mkdir()
    for path in ledger_files(source):
        shutil.copy2(path, target)


def deleted(folder: Path) -> None:
    for path in ledger_files(folder):
        path.unlink()


def emptied(folder: Path) -> None:
    deleted(folder)
    (folder / "ledger.db").touch()


def set_back(folder: Path) -> None:
    deleted(folder)
    for path in ledger_files(folder / "snapshot"):
        shutil.copy2(path, folder)


def test_a_ledger_that_was_set_back_refuses_every_call_until_it_is_adopted(used: GatewayProcess, provider: FaultProvider) -> None:
    # What is adopted counts: the run goes on from the older balance, not from zero.
    assert calls_after_adoption(used, provider, set_back) == 2


@pytest.mark.parametrize("loss", [deleted, emptied])
@pytest.mark.deep
def test_a_ledger_that_is_gone_refuses_every_call_until_a_new_one_is_adopted(
    used: GatewayProcess, provider: FaultProvider, loss: Callable[[Path], None]
) -> None:
    assert calls_after_adoption(used, provider, loss) == 1


def calls_after_adoption(gateway: GatewayProcess, provider: FaultProvider, loss: Callable[[Path], None]) -> int:
    """Refused until then; the count is the run's, with one call after it."""
    loss(gateway.setup.folder)
    gateway.launch()
    try:
        ready = _until_it_answers(gateway)
        assert ready.status_code == 503
        assert ready.json()["ready"] is False
        assert "adopt" in ready.json()["ledger"]["why"]
        refused = ask(gateway)
        assert (refused.status_code, refused.json()["code"]) == (503, "ledger_lost")
        assert refused.headers["x-should-retry"] == "false"
        assert "penstock ledger adopt" in refused.json()["error"]["message"]
        with pytest.raises(openai.InternalServerError, match="ledger adopt"):
            gateway.client("r2").chat.completions.create(**chat())
        assert gateway.admin("GET", "/budget/runs/r1").json()["code"] == "ledger_lost"
        assert gateway.admin("GET", "/healthz").status_code == 200
        assert "ledger adopt" in gateway.log
        assert provider.calls == []

        assert "adopted" in gateway.penstock("ledger", "adopt")
        gateway.wait_until_ready()  # without a restart
        assert ask(gateway).status_code == 200
        assert len(provider.calls) == 1
        calls: int = gateway.run("r1")["calls"]
    finally:
        assert gateway.stop() == 0
    assert gateway.troubles == []
    return calls


def seen_by_witness(gateway: GatewayProcess) -> None:
    """The witness is written now and then, and at an orderly end."""
    sequence = gateway.get("/readyz")["ledger"]["sequence"]
    witness = gateway.setup.folder / "state" / "witness.json"
    for _ in range(100):
        if json.loads(witness.read_bytes())["sequence"] >= sequence:
            return
        time.sleep(0.05)
    raise AssertionError("the witness did not see the last call")


def code(answer: httpx.Response) -> str | None:
    return None if answer.status_code == 200 else str(answer.json()["code"])


def _until_it_answers(gateway: GatewayProcess) -> httpx.Response:
    """Not ready, but there."""
    until_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until_s:
        try:
            return gateway.admin("GET", "/readyz")
        except httpx.TransportError:
            assert gateway.process is not None
            assert gateway.process.poll() is None, gateway.log[-2000:]
            time.sleep(0.02)
    raise AssertionError
