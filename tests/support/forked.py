"""Processes of ours that need not read the code again: they are forked off one process per test process that has, which saves each of them
a second of CPU. From `main()` on it is as in a process of its own: pid, signals, environment, files, exit code.

Run as a program (`python -m tests.support.forked`) this is that process. It reads an order a line and answers each with a line:

    {"start": "gateway.cli", "argv": […], "env": {…}, "stdin": path, "output": path}  → the pid of a child that calls that module's `main`
    {"wait": pid}   → the child's return code, as subprocess tells it; it has ended, or is about to
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).parents[2]
POSSIBLE: Final = hasattr(os, "pidfd_open")


class Forked:
    """What tests use of `subprocess.Popen`. What it writes, on stderr too, is appended to `output`."""

    def __init__(
        self, module: str, argv: Sequence[str], output: Path, env: Mapping[str, str] = os.environ, stdin: str | Path = os.devnull
    ) -> None:
        order = {"start": module, "argv": list(argv), "env": dict(env), "stdin": str(stdin), "output": str(output)}
        self.pid = int(_nursery().asked(order))
        self.returncode: int | None = None
        self._ended = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(None if timeout is None else timeout * 1000)
        if code is None:
            raise subprocess.TimeoutExpired("penstock", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._ended, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, within_ms: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._ended, select.POLLIN)
            if poll.poll(within_ms):
                self.returncode = int(_nursery().asked({"wait": self.pid}))
        return self.returncode

    def __del__(self) -> None:
        os.close(self._ended)


class Spoken(Forked):
    """One that is spoken to: its stdin and stdout are pipes, as text."""

    def __init__(self, module: str, argv: Sequence[str], pipes: Path) -> None:
        given, written = pipes / "stdin", pipes / "stdout"
        os.mkfifo(given)
        os.mkfifo(written)
        super().__init__(module, argv, written, stdin=given)
        self.stdin, self.stdout = given.open("w"), written.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdin.close()
        self.stdout.close()
        self.wait()


@contextmanager
def talking(module: str, argv: Sequence[str]) -> Iterator[Spoken | subprocess.Popen[str]]:
    """A process that is spoken to, and has ended afterwards."""
    if not POSSIBLE:
        command = [sys.executable, "-m", module, *argv]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield process
        return
    with tempfile.TemporaryDirectory() as pipes, Spoken(module, argv, Path(pipes)) as spoken:
        yield spoken


class Nursery:
    """The process that forks, as seen from the tests. It ends with them: its orders end."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.support.forked"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._one_at_a_time = threading.Lock()

    def asked(self, order: Mapping[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._one_at_a_time:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        assert answer, "the process that forks gateways has ended"
        return answer


@cache
def _nursery() -> Nursery:
    return Nursery()


def _read_the_code() -> None:
    """What is started here, what `serve` imports, and the table that takes longest."""
    for module in ("gateway.cli", "gateway.app", "gateway.remote", "tests.ledger.worker"):
        import_module(module)
    import_module("gateway.bundled").load_encoding("o200k_base")


def _main() -> None:
    _read_the_code()
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _become(order)
            return
        print(pid, flush=True)


def _become(order: Mapping[str, Any]) -> None:
    """In the child: what starting a program does."""
    given = os.open(order["stdin"], os.O_RDONLY)
    written = os.open(order["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for source, target in ((given, 0), (written, 1), (written, 2)):
        os.dup2(source, target)
    os.close(given)
    os.close(written)
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = [order["start"], *order["argv"]]
    import_module(order["start"]).main()


if __name__ == "__main__":
    _main()
