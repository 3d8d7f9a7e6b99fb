"""Which server is asked, and what is asked again: one server, a master that sentinels name, or a cluster.

Asked again, within the deadline, is what certainly did not run: the server said that it is elsewhere (MOVED, ASK), not yet (TRYAGAIN,
LOADING, BUSY, CLUSTERDOWN, MASTERDOWN), not any more (READONLY), or that it does not know the script (NOSCRIPT: it is told). What may have
run, because the connection was lost, only where the caller says that it is idempotent; that also waits for a connection.
"""

import asyncio
import contextlib
import re
from abc import ABC, abstractmethod
from binascii import crc_hqx
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from hashlib import sha1
from typing import Any, Final

from gateway.core.record import record
from gateway.ledger.contract import Impossible, LedgerUnavailable, OutcomeUnknown, Unfit
from gateway.ledger.redis.resp import IMPOSSIBLE, Argument, Asked, Command, Link, ServerError
from gateway.store_url import Address, StoreUrl, Topology, shown

SLOTS: Final = 16_384
OLDEST: Final = {"redis": (6, 2), "valkey": (7, 2)}
MEND_POLICY: Final = (
    "run `CONFIG SET maxmemory-policy noeviction` there and write it into its config, or set it where your provider lets you"
)

_LATER: Final = frozenset({"TRYAGAIN", "LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "READONLY"})
_REPLICA_NOW: Final = frozenset({"READONLY", "MASTERDOWN"})
_LOOK_AGAIN_S: Final = 0.02  # at what could not be sent yet
_FIND_AGAIN_S: Final = 0.25
_FIND_ANYWAY_S: Final = 5.0  # a master that nobody follows any more may not know
_SAY_WITHIN_S: Final = 1.0  # or the next one is asked
_REDIRECTIONS: Final = 3  # followed at once; then the servers may agree first
_TELLINGS: Final = 3


@record
class Facts:
    """What a server says of itself."""

    engine: str  # redis or valkey
    version: str


class _Call(Asked):
    """One call, on its way from server to server if need be."""

    __slots__ = ("idempotent", "key", "otherwise", "redirections", "replicated", "servers", "tellings", "unknown", "why")

    def __init__(
        self,
        servers: "Servers",
        key: str,
        args: Command,
        deadline: float,
        future: "asyncio.Future[Any]",
        otherwise: Callable[[], Command] | None,
        *,
        idempotent: bool,
        replicated: bool,
    ) -> None:
        self.servers = servers
        self.key = key
        self.args = args
        self.deadline = deadline
        self.future = future
        self.otherwise = otherwise
        self.idempotent = idempotent
        self.replicated = replicated
        self.redirections = 0
        self.tellings = 0  # of its script
        self.unknown = False  # an earlier attempt may have run
        self.why: LedgerUnavailable | None = None  # the last attempt failed

    def answered(self, reply: object) -> None:
        if self.otherwise is not None and type(reply) is int:
            self.args, self.otherwise = self.otherwise(), None
            self.servers.send(self)  # also where nobody waits any more: what was asked for is not done yet
        elif not self.future.done():  # cancelled, or out of time
            self.future.set_result(reply)

    def failed(self, error: LedgerUnavailable, where: Address) -> None:
        self.servers.failed(self, error, where)

    def gave_up(self, error: LedgerUnavailable) -> None:
        if self.unknown and not isinstance(error, OutcomeUnknown):
            error = OutcomeUnknown(f"{error} (and a first attempt may have been carried out)")
        Asked.gave_up(self, error)


class Servers(ABC):
    """The store behind a URL. Belongs to the event loop that starts it."""

    def __init__(self, url: StoreUrl, timeout_ms: int, wait_replicas: int = 0) -> None:
        self.url = url
        self.facts: Facts | None = None  # of the server that was verified last
        self._timeout_s = timeout_ms / 1000
        self._wait_replicas = wait_replicas
        self._scripts: dict[str, str] = {}
        self._parked: list[_Call] = []  # wait for a server
        self._looking: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._open = False

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when the store can be asked. LedgerUnavailable where it can't within the time-out; Unfit where it must not."""
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._begin()
        try:
            async with asyncio.timeout(self._timeout_s):
                while not self._ready():
                    self._changed.clear()
                    await self._changed.wait()
                    trouble = self.trouble
                    if isinstance(trouble, Unfit):
                        raise trouble
        except BaseException as error:
            trouble = self.trouble
            await self.close()
            if isinstance(error, TimeoutError):
                raise trouble or LedgerUnavailable(f"{self.url} did not answer within {self._timeout_s:g} s") from None
            raise

    async def close(self) -> None:
        """Idempotent. What is asked for from now on is refused; what is under way may end within its deadline."""
        if not self._open:
            return
        self._open = False
        give_up = self._loop.time() + self._timeout_s
        # Looked at now and then: to be told would cost every call something, for what happens once.
        while (self._parked or any(link.under_way for link in self._links())) and self._loop.time() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await self._end()
        parked, self._parked = self._parked, []
        for call in parked:
            call.gave_up(LedgerUnavailable("the ledger is being closed"))
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    @property
    def trouble(self) -> LedgerUnavailable | None:
        """Why something can't be asked right now. No secret is in it."""
        return next((link.trouble for link in self._links() if link.trouble is not None), None)

    def health(self) -> Mapping[str, object]:
        """For /readyz."""
        if not self._open:
            return {"ok": False, "url": str(self.url), "why": "the ledger is not open"}
        trouble = self.trouble
        facts: dict[str, object] = {"ok": self._ready(), "url": str(self.url)}
        if self.facts is not None:
            facts |= {"engine": self.facts.engine, "version": self.facts.version}
        if trouble is not None:
            facts["why" if not facts["ok"] else "trouble"] = str(trouble)
        return facts

    @abstractmethod
    def _begin(self) -> None:
        """Starts to connect."""

    @abstractmethod
    async def _end(self) -> None:
        """Ends every connection and task."""

    @abstractmethod
    def _links(self) -> Iterable[Link]: ...

    @abstractmethod
    def _ready(self) -> bool: ...

    @abstractmethod
    def _route(self, key: str) -> Link | None:
        """Who has this key, as far as is known."""

    def _doubt(self, where: Address) -> None:
        """This server is no master any more: who is, is to be found out again."""
        for link in self._links():
            if link.address == where:
                link.reconnect()

    # -- asking ---------------------------------------------------------------------------------------------------------------

    def script(self, text: str) -> str:
        """Its SHA-1, for EVALSHA. A server that does not know it is told by itself."""
        sha = sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._scripts[sha] = text
        return sha

    def call(
        self,
        key: str,
        *args: Argument,
        idempotent: bool = False,
        replicated: bool = False,  # answered when `wait_replicas` replicas have it
        timeout_ms: int | None = None,
    ) -> "asyncio.Future[Any]":
        """Asks the server that has `key`. Under way when it returns. ServerError, LedgerUnavailable, OutcomeUnknown."""
        return self.ask(key, args, idempotent=idempotent, replicated=replicated, timeout_ms=timeout_ms)

    def ask(
        self,
        key: str,
        args: Command,
        otherwise: Callable[[], Command] | None = None,
        *,
        idempotent: bool = False,
        replicated: bool = False,
        timeout_ms: int | None = None,
    ) -> "asyncio.Future[Any]":
        """As `call`. `otherwise`: what is asked instead where the answer is a number, within the same deadline."""
        if not self._open:
            raise LedgerUnavailable("the ledger is not open")
        loop = self._loop
        future: asyncio.Future[Any] = loop.create_future()
        deadline = loop.time() + (self._timeout_s if timeout_ms is None else timeout_ms / 1000)
        call = _Call(self, key, args, deadline, future, otherwise, idempotent=idempotent, replicated=replicated)
        link = self._route(key)
        if link is None or not link.send(call, replicated=replicated):
            self.failed(call, LedgerUnavailable(str(self.trouble or f"{self.url} is not connected")), self.url.addresses[0])
        return future

    def failed(self, call: _Call, error: LedgerUnavailable, where: Address) -> None:
        """An attempt failed: again, later, or the end."""
        call.why = error
        if call.deadline <= self._loop.time():
            call.gave_up(error)
        elif isinstance(error, ServerError):
            self._refused(call, error, where)
        elif call.idempotent:
            call.unknown |= isinstance(error, OutcomeUnknown)
            self._park(call)
        else:
            call.gave_up(error)

    def _refused(self, call: _Call, error: ServerError, where: Address) -> None:
        if error.code in ("MOVED", "ASK"):
            self._redirected(call, error, where)
        elif error.code == "NOSCRIPT" and call.tellings < _TELLINGS and _sha_of(call.args) in self._scripts:
            call.tellings += 1
            for link in self._links():
                if link.address == where:  # in a cluster whose slots move, not always the one that the key leads to
                    link.tell("SCRIPT", "LOAD", self._scripts[_sha_of(call.args)])
            self.send(call)
        elif error.code in _LATER:
            if error.code in _REPLICA_NOW:
                self._doubt(where)
            self._park(call)
        elif error.code == IMPOSSIBLE:
            if not call.future.done():
                call.future.set_exception(Impossible(str(error).partition("impossible: ")[2].partition(" script:")[0]))
        else:
            call.gave_up(error)

    def send(self, call: _Call) -> None:
        """Again, now or when it can be sent."""
        link = self._route(call.key)
        if link is None or not link.send(call, replicated=call.replicated):
            self._park(call)

    def _redirected(self, call: _Call, error: ServerError, where: Address) -> None:  # noqa: ARG002 - only a cluster redirects
        call.gave_up(Unfit(_WRONG_TOPOLOGY.format(where=shown(where))))

    # -- what waits for a server ------------------------------------------------------------------------------------------------

    def _park(self, call: _Call) -> None:
        self._parked.append(call)
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_AGAIN_S, self._look_at_parked)

    def _look_at_parked(self) -> None:
        self._looking = None
        parked, self._parked = self._parked, []
        now = self._loop.time()
        for call in parked:
            if call.deadline <= now:
                assert call.why is not None, "only what has failed is parked"
                call.gave_up(call.why)
            else:
                self.send(call)

    # -- which server is fit ----------------------------------------------------------------------------------------------------

    def _data_link(self, address: Address) -> Link:
        return Link(address, self.url, self._timeout_s, self._verify, self._on_change, self._wait_replicas)

    def _on_change(self) -> None:
        """A connection came or went."""
        self._changed.set()

    async def _verify(self, link: Link) -> None:
        """At every connection: what a failover leads to may be set up differently."""
        where = shown(link.address)
        try:
            info = read_info(await link.ask("INFO"))
        except ServerError as error:
            raise Unfit(f"{where} does not say what it is: {error}; the ledger's user must be allowed INFO") from None
        engine = "valkey" if "valkey_version" in info else "redis"
        version = info.get(f"{engine}_version", "?")
        match = re.match(r"([0-9]+)\.([0-9]+)", version)
        if match is None or (int(match[1]), int(match[2])) < OLDEST[engine]:
            oldest = ".".join(map(str, OLDEST[engine]))
            raise Unfit(f"{where} is {engine} {version}: {oldest} is the oldest that can keep a ledger")
        policy = info.get("maxmemory_policy", "that it does not tell")
        if policy != "noeviction":
            raise Unfit(f"{where} may evict balances (maxmemory-policy {policy}): {MEND_POLICY}")
        wants_cluster = self.url.topology is Topology.CLUSTER
        if (info.get("cluster_enabled") == "1") != wants_cluster:
            raise Unfit(f"{where} is not part of a cluster" if wants_cluster else _WRONG_TOPOLOGY.format(where=where))
        if info.get("role") != "master":
            raise LedgerUnavailable(f"{where} is a replica")
        self.facts = Facts(engine, version)


_WRONG_TOPOLOGY: Final = "{where} is part of a cluster: write redis+cluster://{where} as the ledger's URL"


def _sha_of(command: Command) -> str:
    """Of an EVALSHA."""
    return command.split(b"\r\n", 5)[4].decode() if isinstance(command, bytes) else str(command[1])


def read_info(reply: bytes) -> dict[str, str]:
    """`name:value` lines."""
    lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines() if line[:1] != "#")
    return {name: value for name, _, value in lines if name}


# -- one server -------------------------------------------------------------------------------------------------------------------


class Standalone(Servers):
    """One address, whoever is behind it: one that has become a replica is left, and looked up again."""

    def _begin(self) -> None:
        self._link = self._data_link(self.url.addresses[0])
        self._link.start()

    async def _end(self) -> None:
        await self._link.close()

    def _links(self) -> Iterable[Link]:
        return (self._link,)

    def _ready(self) -> bool:
        return self._link.up

    def _route(self, key: str) -> Link | None:  # noqa: ARG002
        return self._link


# -- found out, and found out again -----------------------------------------------------------------------------------------------


class _Found(Servers):
    """Servers that others name. They are asked again whenever something is away or was doubted."""

    def _begin(self) -> None:
        self._in_doubt = asyncio.Event()
        self._not_found: LedgerUnavailable | None = None
        self._askable = list(self.url.addresses)
        self._forget()
        self._finding = self._loop.create_task(self._keep_finding())

    async def _end(self) -> None:
        self._finding.cancel()
        await asyncio.gather(self._finding, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links()))

    @property
    def trouble(self) -> LedgerUnavailable | None:
        return super().trouble or self._not_found

    def _on_change(self) -> None:
        super()._on_change()
        if not self._ready():
            self._in_doubt.set()

    def _doubt(self, where: Address) -> None:
        super()._doubt(where)
        self._in_doubt.set()

    async def _keep_finding(self) -> None:
        while True:
            self._in_doubt.clear()
            try:
                await self._find()
                self._not_found = None
            except LedgerUnavailable as error:
                self._not_found = error
                self._changed.set()
            await asyncio.sleep(_FIND_AGAIN_S)
            if self._ready():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_FIND_ANYWAY_S):
                        await self._in_doubt.wait()

    async def _ask(self, url: StoreUrl, *args: Argument) -> tuple[Address, Any]:
        """The first answer from any of those who can say, on a connection of its own; next time another is asked first: what this one
        says may be out of date."""
        trouble: LedgerUnavailable | None = None
        for address in tuple(self._askable):
            self._askable.append(self._askable.pop(0))
            try:
                return address, await Link(address, url, min(self._timeout_s, _SAY_WITHIN_S)).once(*args)
            except LedgerUnavailable as error:
                trouble = error
        raise trouble or LedgerUnavailable(f"{self.url} names no server")

    @abstractmethod
    def _forget(self) -> None:
        """Nothing is known."""

    @abstractmethod
    async def _find(self) -> None:
        """Finds out who serves what, and connects to them. LedgerUnavailable."""


class Sentinels(_Found):
    """The master of a service, as its sentinels name it; that it is one is verified."""

    def _forget(self) -> None:
        self._master: Link | None = None
        self._login = replace(self.url, user="", password=self.url.sentinel_password, db=0)

    def _links(self) -> Iterable[Link]:
        return () if self._master is None else (self._master,)

    def _ready(self) -> bool:
        return self._master is not None and self._master.up

    def _route(self, key: str) -> Link | None:  # noqa: ARG002
        return self._master

    async def _find(self) -> None:
        sentinel, named = await self._ask(self._login, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.url.service)
        if named is None:
            raise LedgerUnavailable(f"the sentinel {shown(sentinel)} knows no service {self.url.service}")
        address = (named[0].decode(), int(named[1]))
        before = self._master
        if before is not None and before.address == address:
            return
        self._master = self._data_link(address)
        self._master.start()
        if before is not None:
            await before.close()


class Cluster(_Found):
    """Every master of a cluster, by slot. A key's slot is that of the part between its first braces."""

    def _forget(self) -> None:
        self._nodes: dict[Address, Link] = {}
        self._owners: list[Link | None] = [None] * SLOTS
        self._whole = False  # every slot has an owner

    def _links(self) -> Iterable[Link]:
        return tuple(self._nodes.values())

    def _ready(self) -> bool:
        return bool(self._nodes) and self._whole and all(node.up for node in self._nodes.values())

    def _route(self, key: str) -> Link | None:
        return self._owners[slot_of(key)]

    def _node(self, address: Address) -> Link:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = self._data_link(address)
            node.start()
        return node

    def _redirected(self, call: _Call, error: ServerError, where: Address) -> None:
        _, slot, target = str(error).split(" ")[:3]
        host, _, port = target.rpartition(":")
        node = self._node((_host(host.strip("[]"), where), int(port)))
        call.redirections += 1
        if error.code == "MOVED":
            self._owners[int(slot)] = node
            self._in_doubt.set()
        before = ("ASKING",) if error.code == "ASK" else None
        if call.redirections > _REDIRECTIONS or not node.send(call, before, replicated=call.replicated):
            self._park(call)

    async def _find(self) -> None:
        asked, ranges = await self._ask(self.url, "CLUSTER", "SLOTS")
        owners: list[Link | None] = [None] * SLOTS
        gone = dict(self._nodes)
        for first, last, master, *_ in ranges:
            address = (_host((master[0] or b"").decode(), asked), master[1])
            gone.pop(address, None)
            owners[first : last + 1] = [self._node(address)] * (last + 1 - first)
        self._owners = owners
        self._whole = None not in owners
        self._askable = [*self._nodes, *(seed for seed in self.url.addresses if seed not in self._nodes)]
        for address in gone:
            del self._nodes[address]
        await asyncio.gather(*(node.close() for node in gone.values()))


def _host(named: str, by: Address) -> str:
    """A node that does not know its own address means: the one under which you found me."""
    return by[0] if named in ("", "?") else named


def slot_of(key: str) -> int:
    """CRC16 of the part between the first braces, or of the whole key."""
    start = key.find("{")
    end = key.find("}", start + 1)
    tag = key[start + 1 : end] if 0 <= start < end - 1 else key
    return crc_hqx(tag.encode(), 0) % SLOTS


def servers(url: StoreUrl, timeout_ms: int, wait_replicas: int = 0) -> Servers:
    """Those behind the URL, not started."""
    kinds: dict[Topology, type[Standalone | Sentinels | Cluster]] = {
        Topology.STANDALONE: Standalone,
        Topology.SENTINEL: Sentinels,
        Topology.CLUSTER: Cluster,
    }
    return kinds[url.topology](url, timeout_ms, wait_replicas)
