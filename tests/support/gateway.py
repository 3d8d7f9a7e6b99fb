"""Real gateways for tests: one as a process (`python -m gateway serve`), which can be killed and restarted on its state, and one
inside the test's own event loop.

    with GatewayProcess(Setup(tmp_path, provider.base_url)) as gateway:
        gateway.client("r1").chat.completions.create(…)      # the openai SDK, run r1
        gateway.kill(); gateway.start()                      # kill -9, and up again on the same ledger
        gateway.run("r1")["committed_usd"]
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import orjson

from gateway.ledger.contract import RunView
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.witness import Witness
from tests.support import forked
from tests.support.config import Setup
from tests.support.loopback import LOOPBACK

ADMIN_TOKEN = "test-admin-token"
CALLER_KEY = "sk-test-caller"
_ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
READY_WITHIN_S = 60  # two cores may be shared by many


@dataclass(slots=True)
class GatewayProcess:
    """Started by `with`, ended by its pid. `log` collects what all its lives wrote to stdout and stderr."""

    setup: Setup
    workers: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | forked.Forked | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.setup.port}"

    @property
    def log_path(self) -> Path:
        return self.setup.folder / "gateway.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def troubles(self) -> list[str]:
        """Lines of the log that tell of something nobody planned for."""
        signs = ("Traceback", '"event":"problem"', "Unclosed", "never retrieved", "never awaited")
        return [line for line in self.log.splitlines() if any(sign in line for sign in signs)]

    @property
    def pid(self) -> int:
        assert self.process is not None, "the gateway is not running"
        return self.process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.stop()

    def start(self) -> None:
        """Returns when /readyz answers 200. AssertionError with the log where it does not."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Only starts the process: several become ready side by side."""
        assert self.process is None, "it runs already"
        config = self.setup.write()
        argv = ["serve", "--config", str(config), "--workers", str(self.workers)]
        env = {**os.environ, "PENSTOCK_ADMIN_TOKEN": ADMIN_TOKEN, **self.env}
        if self.workers == 1 and forked.POSSIBLE and "PYTEST_VERSION" in os.environ:  # a benchmark measures the real start
            self.process = forked.Forked("gateway.cli", argv, self.log_path, env)
            return
        with self.log_path.open("ab") as log:
            command = [sys.executable, "-m", "gateway", *argv]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)

    def stop(self, within_s: float = 30) -> int:
        """SIGTERM, and the exit code."""
        process = self._no_longer_running()
        process.terminate()
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the gateway did not stop within {within_s} s:\n{self.log[-4000:]}") from None

    def kill(self) -> None:
        """SIGKILL, and its end awaited."""
        process = self._no_longer_running()
        process.kill()
        process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process is not None, "the gateway is not running"
        self.process.send_signal(number)

    def restart(self) -> None:
        """An orderly stop and a start on the same state."""
        self.stop()
        self.start()

    def penstock(self, *verb: str) -> str:
        """What a verb of the command line prints, with this gateway's config; whether or not it runs. AssertionError where it fails."""
        said = self.setup.folder / f"said-{time.monotonic_ns()}"
        argv = [*verb, "--config", str(self.setup.folder / "config.yaml")]
        code = forked.Forked("gateway.cli", argv, said).wait(60) if forked.POSSIBLE else _run(argv, said)
        assert code == 0, said.read_text()
        return said.read_text()

    def _no_longer_running(self) -> subprocess.Popen[bytes] | forked.Forked:
        assert self.process is not None, "the gateway is not running"
        process, self.process = self.process, None
        return process

    def wait_until_ready(self) -> None:
        process = self.process
        assert process is not None
        try:
            self._wait(process)
        except BaseException:
            self.kill()
            raise

    def _wait(self, process: subprocess.Popen[bytes] | forked.Forked) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            assert process.poll() is None, f"the gateway ended with code {process.returncode}:\n{self.log[-4000:]}"
            try:
                if httpx.get(f"{self.url}/readyz", headers=_ADMIN, timeout=2, **LOOPBACK).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the gateway was not ready within {READY_WITHIN_S} s:\n{self.log[-4000:]}")

    # -- talking to it -----------------------------------------------------------------------------------------------------------

    def calls_logged(self, run: str, key: str = CALLER_KEY) -> list[Any]:
        """The log's lines of the run's calls that were answered before: all of them, since one of another run comes after."""
        marker = f"marker-{time.monotonic_ns()}"
        path = f"{self.url}/run/{marker}/v1/chat/completions"
        httpx.post(path, headers={"Authorization": f"Bearer {key}"}, json={"model": "no-such-model", "messages": []}, **LOOPBACK)
        deadline = time.monotonic() + READY_WITHIN_S
        while marker not in self.log:
            assert time.monotonic() < deadline, self.log[-4000:]
            time.sleep(0.02)
        lines = [orjson.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("run") == run and "status" in line]

    def client(self, run: str | None = None, key: str = CALLER_KEY, **headers: str) -> openai.OpenAI:
        """The real SDK, unmodified; the run goes in the base URL. It keeps its own retries: a refused call has to be one POST."""
        return openai.OpenAI(base_url=base_url(self.url, run), api_key=key, default_headers=headers)

    def async_client(self, run: str | None = None, key: str = CALLER_KEY, **headers: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=base_url(self.url, run), api_key=key, default_headers=headers)

    def get(self, path: str, key: str = CALLER_KEY) -> Any:
        """JSON of a page, with the caller's key."""
        answer = httpx.get(self.url + path, headers={"Authorization": f"Bearer {key}"}, **LOOPBACK)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def admin(self, method: str, path: str, body: object = None) -> httpx.Response:
        return httpx.request(method, self.url + path, headers=_ADMIN, json=body, **LOOPBACK)

    def run(self, run: str, key: str = CALLER_KEY) -> Any:
        """`GET /budget/runs/{id}`: decimal strings `committed_usd`, `reserved_usd`, …"""
        return self.get(f"/budget/runs/{run}", key)

    def committed(self, run: str, key: str = CALLER_KEY) -> int:
        """Microcents, once nothing of the run is reserved any more: what a client has left may still be read on."""
        give_up = time.monotonic() + 30
        while (told := self.run(run, key))["reserved_usd"] != "0.00":
            assert time.monotonic() < give_up, told
            time.sleep(0.05)
        return int(Decimal(told["committed_usd"]) * 100_000_000)


def _run(argv: Sequence[str], said: Path) -> int:
    with said.open("wb") as output:
        command = [sys.executable, "-m", "gateway", *argv]
        return subprocess.run(command, stdout=output, stderr=output, timeout=60, check=False).returncode


@contextmanager
def started(*gateways: GatewayProcess) -> Iterator[Sequence[GatewayProcess]]:
    """Side by side; and ended, whatever happens."""
    try:
        for gateway in gateways:
            gateway.launch()
        for gateway in gateways:
            gateway.wait_until_ready()
        yield gateways
    finally:
        for gateway in gateways:
            if gateway.process is not None:
                gateway.stop()


async def left_behind(setup: Setup, run: str) -> RunView:
    """A run as the ledger of a gateway that has ended knows it."""
    state = Path(setup.config()["state_dir"])
    ledger = SqliteLedger(str(setup.folder / "ledger.db"), Witness(state / "witness.json"), lambda: time.time_ns() // 1_000_000)
    await ledger.start()
    try:
        view = await ledger.run("default", run)
    finally:
        await ledger.close()
    assert view is not None
    return view


def base_url(gateway: str, run: str | None) -> str:
    return f"{gateway}/v1" if run is None else f"{gateway}/run/{run}/v1"


@asynccontextmanager
async def gateway_here(setup: Setup) -> AsyncIterator[str]:
    """The same objects in the test's own event loop, through the real composition root; yields the address. For tests that need to
    reach inside (a fault in a port, a cancelled await) or that would start too many processes."""
    from gateway import app
    from gateway.events import Events, open_sink

    config, policy = app.load(setup.write())
    events = Events(open_sink(config.log))
    gateway = app.Gateway(config, policy, events)
    port = await gateway.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await gateway.stop()
        events.close()
