"""The parent of several workers, with tiny real processes in their place."""

import asyncio
import os
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.workers import STARTS, Crew, Parent, Starts, open_socket, until_orphaned

# Notes in a file of its own: its start, and each signal it gets. Ends at the first SIGTERM unless told to be stubborn.
WORKER = textwrap.dedent("""
    import os, signal, socket, sys, time
    folder, fd, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    notes = open(f"{folder}/{os.getpid()}", "a", buffering=1)
    if mode == "broken":
        notes.write("started\\n"); sys.exit(7)
    terms = 0
    def told(number, frame):
        global terms
        notes.write(signal.Signals(number).name + "\\n")
        if number == signal.SIGTERM:
            terms += 1
            if mode == "polite" or (mode == "stubborn" and terms == 2):
                sys.exit(0)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, told)
    notes.write("started " + os.environ["PROMETHEUS_MULTIPROC_DIR"] + "\\n")
    listening = socket.socket(fileno=fd)
    listening.settimeout(0.05)
    while True:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        connection.sendall(str(os.getpid()).encode()); connection.close()
""")


class Watched:
    def __init__(self, parent: Parent, folder: Path, port: int) -> None:
        self.parent = parent
        self.folder = folder
        self.port = port
        self.ended: asyncio.Future[int] | None = None

    def notes(self) -> dict[int, list[str]]:
        return {int(path.name): path.read_text().splitlines() for path in self.folder.iterdir()}

    async def until(self, condition: Callable[[dict[int, list[str]]], bool]) -> dict[int, list[str]]:
        async with asyncio.timeout(10):
            while not condition(self.notes()):  # noqa: ASYNC110 - other processes write them
                await asyncio.sleep(0.02)
        return self.notes()

    async def exit_code(self) -> int:
        assert self.ended is not None
        return await asyncio.wait_for(asyncio.shield(self.ended), 10)


def started(count: int) -> Callable[[dict[int, list[str]]], bool]:
    return lambda notes: sum(bool(lines) for lines in notes.values()) >= count


@asynccontextmanager
async def crew(tmp_path: Path, mode: str = "polite", count: int = 2) -> AsyncIterator[Watched]:
    folder, metrics_dir = tmp_path / "notes", tmp_path / "metrics"
    folder.mkdir()
    metrics_dir.mkdir()
    with open_socket("127.0.0.1", 0) as listening:
        fd = listening.fileno()
        parent = Parent(Crew((sys.executable, "-c", WORKER, str(folder), str(fd), mode), count, fd, metrics_dir))
        watched = Watched(parent, folder, listening.getsockname()[1])
        watched.ended = asyncio.ensure_future(parent.run())
        try:
            yield watched
        finally:
            if not watched.ended.done():
                parent.stop()
                parent.stop()
            await asyncio.wait_for(watched.ended, 10)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -- the rule -----------------------------------------------------------------------------------------------------------------------


def test_a_worker_that_ran_for_a_while_is_started_again_at_once_however_often() -> None:
    starts = Starts()
    assert [starts.wait_after(60.0, -signal.SIGKILL) for _ in range(10)] == [0.0] * 10


def test_a_worker_that_fails_at_its_start_is_tried_later_and_later_and_then_no_more() -> None:
    starts = Starts()
    assert [starts.wait_after(0.5, 1) for _ in range(STARTS)] == [0.2, 0.4, None]


def test_one_good_start_forgives_the_failed_ones() -> None:
    starts = Starts()
    assert starts.wait_after(0.5, 1) == 0.2
    assert starts.wait_after(60.0, 1) == 0.0
    assert starts.wait_after(0.5, 1) == 0.2


def test_a_reload_that_comes_too_early_is_no_failure() -> None:
    starts = Starts()
    assert [starts.wait_after(0.1, -signal.SIGHUP) for _ in range(10)] == [0.0] * 10


# -- real processes -----------------------------------------------------------------------------------------------------------------


async def test_all_workers_serve_one_address_and_end_together(tmp_path: Path) -> None:
    async with crew(tmp_path) as watched:
        notes = await watched.until(started(2))
        answered = set()
        for _ in range(200):
            reader, writer = await asyncio.open_connection("127.0.0.1", watched.port)
            answered.add(int(await reader.read()))
            writer.close()
            if len(answered) == 2:
                break
        assert answered == set(notes)
        assert {lines[0] for lines in notes.values()} == {f"started {tmp_path / 'metrics'}"}
        os.kill(os.getpid(), signal.SIGTERM)
        assert await watched.exit_code() == 0
        assert not any(alive(pid) for pid in notes)
        assert all(lines[1:] == ["SIGTERM"] for lines in watched.notes().values())


async def test_a_worker_that_dies_is_replaced_and_its_gauges_go(tmp_path: Path) -> None:
    async with crew(tmp_path) as watched:
        first, second = await watched.until(started(2))
        gauge = tmp_path / "metrics" / f"gauge_livesum_{first}.db"
        gauge.write_bytes(b"")
        os.kill(first, signal.SIGKILL)
        notes = await watched.until(started(3))
        assert alive(second)
        assert len(notes) == 3
        assert not gauge.exists()


async def test_a_reload_reaches_every_worker(tmp_path: Path) -> None:
    async with crew(tmp_path) as watched:
        await watched.until(started(2))
        os.kill(os.getpid(), signal.SIGHUP)
        await watched.until(lambda notes: all("SIGHUP" in lines for lines in notes.values()))


async def test_the_second_signal_is_passed_on_too(tmp_path: Path) -> None:
    async with crew(tmp_path, "stubborn") as watched:
        await watched.until(started(2))
        os.kill(os.getpid(), signal.SIGINT)
        await watched.until(lambda notes: all("SIGTERM" in lines for lines in notes.values()))
        assert watched.ended is not None
        assert not watched.ended.done()
        os.kill(os.getpid(), signal.SIGINT)
        assert await watched.exit_code() == 0
        assert all(lines[1:] == ["SIGTERM", "SIGTERM"] for lines in watched.notes().values())


async def test_a_worker_that_does_not_end_after_the_second_signal_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.workers.KILL_AFTER_S", 0.2)
    async with crew(tmp_path, "deaf", count=1) as watched:
        (pid,) = await watched.until(started(1))
        watched.parent.stop()
        watched.parent.stop()
        assert await watched.exit_code() == 0
        assert not alive(pid)


async def test_a_worker_that_cannot_start_ends_all_with_one_clear_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.workers.FIRST_WAIT_S", 0.01)
    async with crew(tmp_path, "broken", count=1) as watched:
        assert await watched.exit_code() == 1
        assert len(watched.notes()) == STARTS
    said = capfd.readouterr().err.splitlines()
    assert said[-1] == "penstock: a worker ended 3 times right after its start, last with exit code 7; giving up"


async def test_a_command_that_does_not_exist_ends_with_one_clear_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.workers.FIRST_WAIT_S", 0.01)
    with open_socket("127.0.0.1", 0) as listening:
        parent = Parent(Crew((str(tmp_path / "nothing"),), 1, listening.fileno(), tmp_path))
        assert await asyncio.wait_for(parent.run(), 5) == 1
    assert "giving up" in capfd.readouterr().err.splitlines()[-1]


async def test_a_stop_while_a_worker_waits_for_its_next_start_is_not_delayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.workers.FIRST_WAIT_S", 60.0)
    async with crew(tmp_path, "broken", count=1) as watched:
        await watched.until(started(1))
        await asyncio.sleep(0.1)
        watched.parent.stop()
        assert await watched.exit_code() == 0


async def test_an_orphan_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.workers.ORPHAN_CHECK_S", 0.01)
    parents = iter([100, 100, 100, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    await asyncio.wait_for(until_orphaned(), 1)


def test_an_address_that_is_taken_is_an_error() -> None:
    with open_socket("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        open_socket("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "family"), [("localhost", socket.AF_INET), ("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_names_and_both_families_are_bound(host: str, family: socket.AddressFamily) -> None:
    if family is socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with open_socket(host, 0) as listening:
        assert listening.family == family
