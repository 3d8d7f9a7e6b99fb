"""Several processes behind one address: a parent opens the socket, starts workers on it, and watches over them (ADR 3).

The parent serves nothing and holds nothing. What it is told, it passes on: SIGHUP (reload), the first SIGTERM or SIGINT (finish what is
under way, then end), the second (end now). A worker that dies is started again; one that can't start ends them all with one clear line.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway import __version__
from gateway.metrics import prepare_workers, worker_died

BACKLOG: Final = 2048
START_S: Final = 10.0  # a worker that lives for less has failed to start
STARTS: Final = 3  # in a row, by one worker
FIRST_WAIT_S: Final = 0.2  # before a failed start is tried again; doubled each time
KILL_AFTER_S: Final = 5.0  # after the second signal
ORPHAN_CHECK_S: Final = 1.0


class Starts:
    """What to do when one worker's process has ended. Pure."""

    def __init__(self) -> None:
        self._failed = 0

    def wait_after(self, ran_s: float, exit_code: int) -> float | None:
        """Seconds to wait before it is started again; None: it can't be started. A process that was told to reload before it could
        listen for that ends by the signal, and has not failed: the next one reads the new files."""
        if ran_s >= START_S or exit_code == -signal.SIGHUP:
            self._failed = 0
            return 0.0
        self._failed += 1
        return None if self._failed >= STARTS else FIRST_WAIT_S * 2 ** (self._failed - 1)


@dataclass(frozen=True, slots=True)
class Crew:
    """What to start, how often, and on which socket. `metrics_dir` is where the workers' counts are added up."""

    command: Sequence[str]
    count: int
    listening_fd: int
    metrics_dir: Path


class Parent:
    """The watch over one crew, from `run` to its end."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._processes: set[asyncio.subprocess.Process] = set()
        self._stopping = asyncio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        """Returns the exit code, when every worker has ended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._tell, signal.SIGHUP)
        await asyncio.gather(*(self._keep() for _ in range(self._crew.count)))
        return self._exit_code

    def stop(self) -> None:
        """The first time, workers may finish; the second time, they get no say."""
        self._tell(signal.SIGTERM)
        if self._stopping.is_set():
            asyncio.get_running_loop().call_later(KILL_AFTER_S, self._tell, signal.SIGKILL)
        self._stopping.set()

    async def _keep(self) -> None:
        """One worker, from process to process."""
        starts = Starts()
        while not self._stopping.is_set():
            ran_s, exit_code = await self._one_life()
            if self._stopping.is_set():
                return
            wait_s = starts.wait_after(ran_s, exit_code)
            if wait_s is None:
                _say(f"a worker ended {STARTS} times right after its start, last with {_ending(exit_code)}; giving up")
                self._exit_code = 1
                self.stop()
                return
            _say(f"a worker ended with {_ending(exit_code)}; starting another")
            await self._sleep_or_stop(wait_s)

    async def _one_life(self) -> tuple[float, int]:
        """Starts a process and waits for its end → how long it ran, and its exit code (negative: the signal that ended it)."""
        crew = self._crew
        try:
            process = await asyncio.create_subprocess_exec(
                *crew.command,
                pass_fds=(crew.listening_fd,),
                stdin=asyncio.subprocess.DEVNULL,
                # Its own session: ctrl-c reaches the terminal's whole group, and a worker that gets it twice would end at once.
                start_new_session=True,
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(crew.metrics_dir)},
            )
        except OSError as failure:
            _say(f"a worker can't be started: {failure}")
            return 0.0, 1
        started = time.monotonic()
        self._processes.add(process)
        if self._stopping.is_set():  # asked while it was being started
            process.terminate()
        try:
            exit_code = await process.wait()
        finally:
            self._processes.discard(process)
            worker_died(crew.metrics_dir, process.pid)
        return time.monotonic() - started, exit_code

    async def _sleep_or_stop(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _tell(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.send_signal(number)


def run(count: int, config: Path, host: str, port: int, state_dir: Path) -> int:
    """`penstock serve --workers N` → the exit code."""
    metrics_dir = state_dir / "metrics"
    prepare_workers(metrics_dir)
    try:
        listening = open_socket(host, port)
    except OSError as failure:
        _say(f"cannot listen on {host}:{port}: {failure}")
        return 1
    with listening:
        fd = listening.fileno()
        command = (sys.executable, "-m", "gateway", "serve", "--config", str(config), "--listen-fd", str(fd))
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        _say(f"{__version__} serves on {address} with {count} workers; set OPENAI_BASE_URL={address}/v1")
        return asyncio.run(_watch(Crew(command, count, fd, metrics_dir)))


async def _watch(crew: Crew) -> int:
    return await Parent(crew).run()


def open_socket(host: str, port: int) -> socket.socket:
    """Bound and listening. A name that has several addresses is bound to one, IPv4 first. OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


async def until_orphaned() -> None:
    """For a worker: returns when its parent is no more. Without this, workers of a killed parent would keep the address."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(ORPHAN_CHECK_S)


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def _say(what: str) -> None:
    sys.stderr.write(f"penstock: {what}\n")
    sys.stderr.flush()
