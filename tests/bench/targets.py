"""What is measured, by name: each started on its cores, in front of one provider, and ended by its pid whatever happens.

What cannot be had on this machine raises `Missing`, which the run reports; it is never left out silently.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.machine import Cores, pin, tree
from tests.support.config import Setup, free_port, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.pricing import TestModel
from tests.support.valkey import Server

DIRECT: Final = "direct"
NGINX: Final = "nginx, a plain proxy"
BARE: Final = "bare aiohttp proxy"
STACK: Final = "the same stack without budget work"
SQLITE: Final = "Penstock on SQLite"
VALKEY: Final = "Penstock on Valkey"
WORKERS: Final = "Penstock on SQLite, 2 workers"
PORTKEY: Final = "Portkey gateway"
LITELLM: Final = "LiteLLM proxy"

OURS: Final = (SQLITE, VALKEY, WORKERS)
READY_WITHIN_S: Final = 120.0  # a peer that imports a lot
ENDS_WITHIN_S: Final = 10.0
PEERS: Final = Path(".bench")
CONFIGS: Final = Path(__file__).parent / "peers"
MODEL: Final = TestModel("bench-model", "2.50", "10")


class Missing(Exception):
    """A target that this machine does not have, and how to get it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is called. `pids`: the roots of its process trees; `store`: those of a store it waits for, on the other core."""

    name: str
    port: int
    pids: Sequence[int] = ()
    headers: Sequence[str] = ()
    store: Sequence[int] = ()
    core: int | None = None
    troubles: Callable[[], Sequence[str]] = field(default=lambda: ())  # what it logged that nobody planned for


@dataclass(frozen=True, slots=True)
class Place:
    """Where targets are started: a folder each, the provider's port, the cores."""

    folder: Path
    upstream: int
    cores: Cores


def provider(cores: Cores) -> contextlib.AbstractContextManager[Target]:
    return _python(DIRECT, ["tests.bench.canned"], cores.rest)


@contextlib.contextmanager
def started(name: str, place: Place) -> Iterator[Target]:
    """Ready, and pinned."""
    place.folder.mkdir(parents=True)
    with _STARTS[name](place) as target:
        yield target


# -- each of them ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _penstock(name: str, place: Place, workers: int = 1, ledger: str | None = None) -> Iterator[Target]:
    # High enough that nothing is refused: what a refusal costs is another question.
    rules = policy(run_ceiling("$1000000"), runs={"max_active_per_key": 1_000_000})
    setup = Setup(place.folder, f"http://127.0.0.1:{place.upstream}/v1", policy=rules, models=(MODEL,), ledger=ledger)
    on = place.cores.two if workers > 1 else place.cores.one
    with GatewayProcess(setup, workers=workers) as gateway:
        pin(gateway.pid, on)
        yield Target(name, setup.port, (gateway.pid,), core=min(on) if len(on) == 1 else None, troubles=lambda: gateway.troubles)


def _on_sqlite(place: Place) -> contextlib.AbstractContextManager[Target]:
    return _penstock(SQLITE, place)


def _two_workers(place: Place) -> contextlib.AbstractContextManager[Target]:
    return _penstock(WORKERS, place, workers=2)


@contextlib.contextmanager
def _on_valkey(place: Place) -> Iterator[Target]:
    """The store has its own core in production; here it is the one of the provider and the load. Nothing goes to disk."""
    with Server(place.folder / "valkey") as server, _penstock(VALKEY, place, ledger=server.url) as target:
        assert server.process is not None
        pin(server.process.pid, place.cores.rest)
        yield Target(
            target.name, target.port, target.pids, store=(server.process.pid,), core=target.core, troubles=target.troubles
        )


def _stack(place: Place) -> contextlib.AbstractContextManager[Target]:
    return _python(STACK, ["tests.bench.bare", "--upstream", f"http://127.0.0.1:{place.upstream}/v1"], place.cores.one)


def _bare(place: Place) -> contextlib.AbstractContextManager[Target]:
    return _python(BARE, ["tests.bench.plain", "--upstream", f"http://127.0.0.1:{place.upstream}"], place.cores.one)


def _nginx(place: Place) -> contextlib.AbstractContextManager[Target]:
    binary = nginx_binary()
    if binary is None:
        raise Missing("nginx is neither on PATH nor in .bench: `make bench-peers`, or install it")
    names = {"FOLDER": str(place.folder), "USER": "user root;" if os.geteuid() == 0 else ""}
    config, port = _filled("nginx.conf", place, names)
    return _process(NGINX, [str(binary), "-p", str(place.folder), "-c", str(config)], place, port)


def _portkey(place: Place) -> contextlib.AbstractContextManager[Target]:
    script, node = PEERS / "portkey" / "node_modules/@portkey-ai/gateway/build/start-server.js", shutil.which("node")
    if not script.exists() or node is None:
        raise Missing("Portkey's gateway is not in .bench, or there is no node: `make bench-peers`")
    port = free_port()
    command = [node, "--require", str(CONFIGS / "loopback.cjs"), str(script.resolve()), "--headless", f"--port={port}"]
    headers = ("x-portkey-provider: openai", f"x-portkey-custom-host: http://127.0.0.1:{place.upstream}/v1")
    return _process(PORTKEY, command, place, port, {"NODE_ENV": "production"}, headers)


def _litellm(place: Place) -> contextlib.AbstractContextManager[Target]:
    binary = PEERS / "litellm" / "bin" / "litellm"
    if not binary.exists():
        raise Missing("LiteLLM is not in .bench: `make bench-peers`")
    config, port = _filled("litellm.yaml", place, {})
    command = [str(binary.resolve()), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    quiet = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True", "NO_PROXY": "*"}
    keyless = {
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"
    }  # on loopback, and a key less to check for each call
    return _process(LITELLM, command, place, port, {**quiet, **offline, **keyless})


_STARTS: Final[Mapping[str, Callable[[Place], contextlib.AbstractContextManager[Target]]]] = {
    NGINX: _nginx,
    BARE: _bare,
    STACK: _stack,
    SQLITE: _on_sqlite,
    VALKEY: _on_valkey,
    WORKERS: _two_workers,
    PORTKEY: _portkey,
    LITELLM: _litellm,
}
NAMES: Final = (DIRECT, *_STARTS)


def nginx_binary() -> Path | None:
    on_path = shutil.which("nginx")
    if on_path:
        return Path(on_path)
    unpacked = (PEERS / "nginx" / "root/usr/sbin/nginx").resolve()
    return unpacked if unpacked.exists() else None


def _filled(name: str, place: Place, names: Mapping[str, str]) -> tuple[Path, int]:
    """A peer's config file for this run, and its port."""
    port = free_port()
    text = (CONFIGS / name).read_text()
    for key, value in {**names, "PORT": str(port), "UPSTREAM": str(place.upstream)}.items():
        text = text.replace(f"@{key}@", value)
    path = place.folder / name
    path.write_text(text)
    return path, port


# -- processes ------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _python(name: str, module: Sequence[str], on: Iterable[int]) -> Iterator[Target]:
    """One of our modules, which prints its port."""
    command = [sys.executable, "-m", *module]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, _ended(process):
        pin(process.pid, on)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{module[0]} ended with code {process.wait()}"
        cores = sorted(on)
        yield Target(name, json.loads(line)["port"], (process.pid,), core=cores[0] if len(cores) == 1 else None)


@contextlib.contextmanager
def _process(
    name: str, command: Sequence[str], place: Place, port: int, env: Mapping[str, str] | None = None, headers: Sequence[str] = ()
) -> Iterator[Target]:
    """Somebody else's server; its output goes to a file."""
    log = place.folder / "output.log"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")} | dict(env or {})
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=place.folder, env=environment
        )
    with process, _ended(process):
        deadline = time.monotonic() + READY_WITHIN_S
        while not _listens(port):
            said = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"{name} ended with code {process.returncode}:\n{said}"
            assert time.monotonic() < deadline, f"{name} did not listen within {READY_WITHIN_S:g} s:\n{said}"
            time.sleep(0.1)
        pin(process.pid, place.cores.one)
        yield Target(name, port, (process.pid,), headers, core=min(place.cores.one))


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> Iterator[None]:
    """Asks a process to end; then kills it, and what it left."""
    try:
        yield
    finally:
        below = tree(process.pid)
        process.terminate()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in below:
            if pid != process.pid and _is_alive(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
