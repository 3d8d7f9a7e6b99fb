"""The composition root: settings → objects → a gateway that serves; start and stop. Nothing else reads the environment or the clock."""

import asyncio
import contextlib
import gc
import itertools
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop
from multidict import CIMultiDict, CIMultiDictProxy

from gateway import __version__, bundled, policy_file, settings, workers
from gateway import explain as explaining
from gateway.breaker import Breakers
from gateway.buffers import Buffers, Queue
from gateway.config_file import HttpClient
from gateway.core.decide import Reach, Rulebook, Unservable
from gateway.core.learned import Learned
from gateway.core.policy import Policy
from gateway.core.scopes import Caller
from gateway.core.tokens import TokenCounter
from gateway.core.values import Decision
from gateway.events import Events, open_sink
from gateway.flow import Flow
from gateway.forwarding import Forwarding
from gateway.identity import ANONYMOUS, DEFAULT_TENANT, Identity, Principal
from gateway.keeper import Keeper
from gateway.large import LargeWork
from gateway.ledger import opening
from gateway.ledger.archive import KEEP_MS as ARCHIVE_KEEP_MS
from gateway.ledger.archive import Archive
from gateway.ledger.contract import Expired, Keep, Ledger, LedgerLost, LedgerUnavailable
from gateway.ledger.journal import Journal
from gateway.ledger.resilient import ResilientLedger
from gateway.metrics import Metrics
from gateway.observer import Observer
from gateway.origins import Origins
from gateway.reaper import Reaper
from gateway.relay import Places, Shared
from gateway.server.accepting import allow_files
from gateway.server.admin import Admin
from gateway.server.budget_api import BudgetApi
from gateway.server.edge import Edge, Limits
from gateway.server.events_api import EventsApi
from gateway.server.external import External
from gateway.server.guards import LOOPBACK_HOSTS, Guards
from gateway.server.models import ModelList
from gateway.server.ops import Ops, Serving
from gateway.server.reservations_api import ReservationsApi
from gateway.server.routes import Routes
from gateway.settings import Settings
from gateway.stored import StoredAnswers
from gateway.upstream import AiohttpUpstream, Endpoint, LeanUpstream, Upstream
from gateway.wire import messages, responses
from gateway.wire.dialect import Dialect
from gateway.wire.dialects import DIALECTS
from gateway.wire.exchange import Inbound
from gateway.wire.headers import directives
from gateway.wire.problem import Refused, problem
from gateway.yaml_source import Mistakes

T = TypeVar("T")

_REAP_EVERY_MS: Final = 1_000
_TELL_AGAIN_MS: Final = 60_000
_OTHER_FILES: Final = 256  # beside clients' connections and those to providers: the ledger, the log, idle connections
_FLUSH_EVERY_S: Final = 1.0
_LOOK_EVERY_S: Final = 1.0
_JOURNAL: Final = "journal"
_ARCHIVE: Final = "records.db"
_KEY_FILE: Final = "secret"  # its name in the state folder
_CLIENTS: Final[dict[HttpClient, Callable[[Endpoint], Upstream]]] = {
    HttpClient.LEAN: LeanUpstream,
    HttpClient.AIOHTTP: AiohttpUpstream,
}


class Gateway:
    """The objects of one process, wired, and their life."""

    def __init__(self, config: Settings, policy: Policy, events: Events) -> None:
        self.config = config
        self.events = events
        self.metrics = Metrics(config.catalog.models, _multiprocess_dir())
        self.observer = Observer(events, self.metrics, time.perf_counter)
        journal = Journal(config.state_dir / _JOURNAL)
        self.ledger = ResilientLedger(
            lambda: opening.ledger_of(config.ledger, config.state_dir, clock_ms), journal, config.commit_wait_ms, self.observer
        )
        self.metrics.journal_entries = lambda: journal.waiting
        self._counter = TokenCounter(bundled.load_encoding)
        self._learned = Learned(self._counter)
        self._policy_error: str | None = None
        self._told_ms: dict[str, int] = {}  # of troubles that last: when each was last told
        self._tasks: set[asyncio.Task[None]] = set()
        self._identity = Identity(config, install_secret(config.state_dir), lambda: "run_" + secrets.token_hex(12))
        self._upstreams = {name: _CLIENTS[provider.client](_endpoint(provider)) for name, provider in config.providers.items()}
        self._large = LargeWork()
        shared = Shared(
            ledger=self.ledger,
            upstreams=self._upstreams,
            settings=config,
            alert=self.observer.alert,
            drains=Places(config.drain.number),
            clock_ms=clock_ms,
            jitter=random.random,
            breakers=Breakers(time.monotonic, self._provider_rests),
            answered=self._identity.answered,
            origins=Origins(),
            learned=self._learned,
            readers=bundled.load_clients(),
            buffers=Buffers(config.max_buffered),
            answers=Queue(max(config.max_bodies, config.max_response)),
            large=self._large,
        )
        rulebook = Rulebook(policy, config.catalog, self._counter, self._learned)
        self.flow = Flow(shared, self._identity, rulebook, self.observer, Ids())
        self._forwarding = Forwarding(shared, self._identity, lambda: self.flow.rulebook)
        self._stored = StoredAnswers(shared, self._identity, lambda: self.flow.rulebook, self._forwarding, self.observer)
        self._reaper = Reaper(self.ledger, _REAP_EVERY_MS, self._expired, self._reaping_failed)
        # A ledger that keeps its records as long as an archive would needs none.
        self._archive = Archive(config.state_dir / _ARCHIVE) if config.ledger.keep_ms < ARCHIVE_KEEP_MS else None
        self._keeper = Keeper(self.ledger, self._keep, self._archive, clock_ms, self._keeping_failed)
        limits = Limits(
            config.max_request,
            max_connections=config.max_connections,
            max_calls=config.max_calls,
            max_bodies=config.max_bodies,
        )
        self._edge = Edge(self._routes(), limits, self._guards(), events.problem, self.metrics.shed)

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def start(self, listening: socket.socket | None = None) -> int:
        """Listens; returns the port. OSError where the address can't be had, LedgerUnavailable where nothing could be remembered of a
        ledger that is away. A ledger that is away or lost does not stand in the way: its calls are refused until it serves."""
        await self.ledger.start()
        for encoding in ("o200k_base", "cl100k_base"):
            await asyncio.to_thread(bundled.load_encoding, encoding)  # half a second that no call should wait for
        self.background(self.flow.watch())
        self.background(self._reaper.run())
        self.background(self._keeper.run())
        self.background(self._flush_metrics())
        self.events.policy(self.flow.rulebook.policy.version)
        if listening is not None:
            return await self._edge.listen_on(listening)
        return await self._edge.listen(self.config.listen_host, self.config.listen_port)

    async def stop(self) -> None:
        """Live streams may finish, for as long as `shutdown.grace` says; then they are ended and settled. Nothing is left unsettled
        but what the ledger no longer takes."""
        self.flow.wait_no_more()
        await self._edge.drain(self.config.shutdown_grace_ms / 1000, self.flow.shut_down)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.ledger.close()
        if self._archive is not None:
            await self._archive.close()
        for upstream in self._upstreams.values():
            await upstream.close()
        self.metrics.flush()
        self._large.close()

    def background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that lives as long as the gateway, unless it ends before."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.events.problem("a background task failed", failure)

    # -- the policy -----------------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Reads the policy again. One with mistakes changes nothing but what /readyz and the log say."""
        in_force = self.flow.rulebook.policy
        read = policy_file.reload(in_force, self.config.policy_path, self.config.catalog)
        if isinstance(read, Mistakes):
            self._policy_error = "; ".join(str(mistake) for mistake in read.mistakes)
            self.metrics.policy_reload(ok=False)
            self.events.policy_refused(in_force.version, [str(mistake) for mistake in read.mistakes])
            return
        self._policy_error = None
        if read.version == in_force.version:
            return
        self.flow.rulebook = Rulebook(read, self.config.catalog, self._counter, self._learned)
        self.metrics.policy_reload(ok=True)
        self.events.policy(read.version, policy_file.changed_identities(in_force, read))

    async def watch_policy(self) -> None:
        """Reloads when the file changes. Looking once a second costs nothing; being told of it cost a thread that woke for every write
        to a ledger in the same folder."""
        seen = _stamp(self.config.policy_path)
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            found = _stamp(self.config.policy_path)
            if found != seen:
                seen = found
                self.reload()

    # -- wiring ---------------------------------------------------------------------------------------------------------------

    def _routes(self) -> Routes:
        principal_of = self._identity.principal
        archived = None if self._archive is None else self._archive.find
        budget_api = BudgetApi(self.ledger, principal_of, self._run_ceiling, self.flow.run_stopped, clock_ms, archived)
        unset_token_env = self.config.admin_token_env if self.config.admin_token is None else None
        admin = Admin(self.ledger, principal_of, unset_token_env, self._dimensions, self.flow.scope_frozen)
        external = External(self.ledger, self._identity, lambda: self.flow.rulebook, self.observer.alert, clock_ms)
        events_api, reservations_api = EventsApi(external), ReservationsApi(external, self.config.lease_ms)
        asked = principal_of if self.config.auth == "keys" else None
        ops = Ops(self.ledger, self.metrics, self._serving, asked, lambda: self._edge.shedding)
        models = ModelList(self._identity, lambda: self.flow.rulebook)
        return Routes(
            {
                **{("POST", dialect.path): partial(self.flow.serve, dialect) for dialect in DIALECTS},
                ("GET", "/v1/models"): models.serve,
                ("GET", "/v1/models/{name%}"): models.serve,
                ("POST", "/v1/messages/count_tokens"): partial(self._forwarding.serve, messages.DIALECT),
                ("POST", "/v1/responses/input_tokens"): partial(self._forwarding.serve, responses.DIALECT),
                **dict.fromkeys(responses.STORED, self._stored.serve),
                **{(route.method, route.path): partial(self.flow.pass_on, route) for route in self.config.unmetered_routes},
            },
            [*budget_api.routes(), *events_api.routes(), *reservations_api.routes(), *admin.routes(), *ops.routes()],
        )

    def _guards(self) -> Guards:
        hosts = None if self.config.auth == "keys" else LOOPBACK_HOSTS | frozenset(self.config.allowed_hosts)
        return Guards(hosts, frozenset(self.config.allowed_origins))

    def _serving(self) -> Serving:
        rulebook = self.flow.rulebook
        unmetered = tuple(route.name for route in self.config.unmetered_routes)
        return Serving(rulebook.policy, self._policy_error, rulebook.catalog.version, __version__, unmetered)

    def _run_ceiling(self, principal: Principal, run: str) -> int | None:
        return self.flow.rulebook.run_ceiling(Caller(principal.tenant, principal.key, run, run, dimensions=principal.bound))

    def _dimensions(self) -> set[str]:
        """Those that a caller can have here."""
        bound = {name for key in self.config.keys for name, _ in key.dimensions}
        return bound | {name for name, _ in self.flow.rulebook.policy.identity}

    def _keep(self) -> Keep:
        return Keep(self.config.ledger.keep_ms, self.flow.rulebook.policy.runs.forget_after_ms)

    def _expired(self, expired: Expired) -> None:
        self.events.expired(expired)
        self.metrics.expired(expired)
        for alert in expired.alerts:
            self.observer.alert(alert)

    def _reaping_failed(self, failure: Exception) -> None:
        if not self._may_tell("reaping", failure):
            return
        if isinstance(failure, LedgerUnavailable | LedgerLost):
            self.events.log.warning("holds_wait_for_the_ledger", why=str(failure))
        else:
            self.events.problem("ending holds whose lease ran out", failure)

    def _keeping_failed(self, failure: Exception) -> None:
        if not self._may_tell("keeping", failure):
            return
        if isinstance(failure, LedgerUnavailable | LedgerLost):
            self.events.log.warning("old_records_wait_for_the_ledger", why=str(failure))
        else:
            self.events.problem("keeping the ledger small", failure)

    def _may_tell(self, work: str, failure: Exception) -> bool:
        """It may last, and then comes every few seconds."""
        trouble, now_ms = f"{work}: {type(failure).__name__}", clock_ms()
        told = now_ms - self._told_ms.get(trouble, 0) < _TELL_AGAIN_MS
        if not told:
            self._told_ms[trouble] = now_ms
        return not told

    def _provider_rests(self, provider: str, seconds: float) -> None:
        self.metrics.provider_rests(provider)
        self.events.log.warning("provider_rests", provider=provider, seconds=seconds)

    async def _flush_metrics(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            self.metrics.flush()


# -- processes --------------------------------------------------------------------------------------------------------------------


def load(config: Path) -> tuple[Settings, Policy]:
    """Reads both files. Mistakes has those of both."""
    reading = settings.read(config, os.environ, bundled.load_catalog(), bundled.load_profiles())
    mistakes = [] if reading.mistakes is None else [*reading.mistakes.mistakes]
    policy: Policy | None = None
    if reading.policy_path is not None:
        try:
            policy = policy_file.load(reading.policy_path, None if reading.settings is None else reading.settings.catalog)
        except Mistakes as found:
            mistakes += found.mistakes
    if mistakes:
        raise Mistakes(mistakes)
    assert reading.settings is not None
    assert policy is not None
    return reading.settings, policy


def serve(config: Path, worker_count: int, listen_fd: int | None) -> int:
    """`penstock serve`: returns the exit code. With several workers this process only watches over them."""
    try:
        loaded, policy = load(config)
    except Mistakes as mistakes:
        for mistake in mistakes.mistakes:
            print(mistake, file=sys.stderr)
        return 1
    if worker_count > 1 and listen_fd is None:
        return workers.run(worker_count, config, loaded.listen_host, loaded.listen_port, loaded.state_dir)
    listening = None if listen_fd is None else socket.socket(fileno=listen_fd)
    return uvloop.run(_serve(loaded, policy, listening))


async def _serve(config: Settings, policy: Policy, listening: socket.socket | None) -> int:
    allow_files(config.max_connections + config.max_calls + _OTHER_FILES)
    events = Events(open_sink(config.log))
    gateway = Gateway(config, policy, events)
    try:
        port = await gateway.start(listening)
    except (OSError, LedgerUnavailable) as failure:
        print(f"penstock: cannot serve: {failure}", file=sys.stderr)
        await gateway.stop()
        return 1
    ledger = gateway.ledger.health()
    if not ledger["ok"]:
        print(f"penstock: every call is refused for now: {ledger['why']}", file=sys.stderr, flush=True)
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_stop, asked_to_stop)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload)
    gateway.background(gateway.watch_policy())
    if listening is not None:
        gateway.background(_stop_when_orphaned(asked_to_stop))
    # What lives as long as the process need not be looked through at every collection.
    gc.collect()
    gc.freeze()
    # A call leaves hundreds of objects and hardly a cycle: looking for those after every 700 objects costs a tenth to a fifth of it.
    gc.set_threshold(20_000, 50, 100)
    if listening is None:
        address = f"http://{config.listen_host}:{port}"
        print(f"penstock {__version__} serves on {address}; set OPENAI_BASE_URL={address}/v1", file=sys.stderr, flush=True)
    await asked_to_stop.wait()
    await gateway.stop()
    events.close()
    return 0


async def _stop_when_orphaned(asked_to_stop: asyncio.Event) -> None:
    await workers.until_orphaned()
    asked_to_stop.set()


def _on_stop(asked: asyncio.Event) -> None:
    """The second time, somebody is in a hurry: what is held then is charged when its lease ends."""
    if asked.is_set():
        os._exit(1)
    asked.set()


def explain(
    config: Settings, policy: Policy, dialect: Dialect, body: bytes, header_lines: Sequence[str]
) -> explaining.Explanation:
    """What would be done with the request. Refused: what it would be answered."""
    return asyncio.run(_explain(config, policy, dialect, body, header_lines))


async def _explain(
    config: Settings, policy: Policy, dialect: Dialect, body: bytes, header_lines: Sequence[str]
) -> explaining.Explanation:
    pairs = [line.partition(":") for line in header_lines]
    headers = CIMultiDictProxy(CIMultiDict((name.strip(), value.strip()) for name, _, value in pairs))
    identity = Identity(config, install_secret(config.state_dir), lambda: "run_explain")
    principal = (
        identity.principal(headers, model_route=True) if config.auth == "passthrough" else Principal(DEFAULT_TENANT, ANONYMOUS)
    )
    inbound = Inbound("POST", dialect.path, "", None, headers, body, "req_explain")
    request = dialect.read(body, headers)
    caller = identity.caller(principal, inbound, request, policy, clock_ms())
    rulebook = Rulebook(policy, config.catalog, TokenCounter(bundled.load_encoding))

    def decided(caller: Caller) -> Decision:
        # As if the caller had a key for every provider: whether it has one is not what is asked here.
        served, at_ms = frozenset(config.providers), clock_ms()
        decision = rulebook.decide(request.call(caller, directives(headers)), Reach(served), at_ms, "bdg_explain")
        if isinstance(decision, Unservable):
            raise Refused(problem(decision.code, decision.message, decision.param))
        return decision

    if opening.never_used(config.ledger):
        return explaining.Explanation(decided(caller), rulebook, explaining.Known())
    ledger = opening.ledger_of(config.ledger, config.state_dir, clock_ms)
    await ledger.start()
    try:
        decision = decided(await explaining.placed(ledger, caller))
        return explaining.Explanation(decision, rulebook, await explaining.known(ledger, decision))
    finally:
        await ledger.close()


def adopt(config: Settings) -> str:
    """`penstock ledger adopt`: what the store says from now on is taken for the truth."""
    return f"adopted {config.ledger} as it is, {asyncio.run(opening.adopt(config.ledger, config.state_dir))}"


def on_ledger(config: Settings, work: Callable[[Ledger], Awaitable[T]]) -> T:
    """Opens the config's ledger for one piece of work beside the gateways. LedgerLost, LedgerUnavailable."""
    return asyncio.run(_on_ledger(config, work))


async def _on_ledger(config: Settings, work: Callable[[Ledger], Awaitable[T]]) -> T:
    ledger = opening.ledger_of(config.ledger, config.state_dir, clock_ms)
    await ledger.start()
    try:
        return await work(ledger)
    finally:
        await ledger.close()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Differs when the file was written or replaced; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Ids:
    """Ids of decisions: the time first, so that records are written side by side, then what is this process's alone. No system call
    each: that costs as much as deciding, and nothing hangs on an id's being a secret."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(6)
        self._serial = itertools.count()

    def __call__(self) -> str:
        return f"bdg_{clock_ms():011x}{self._process}{next(self._serial) & 0xFFFFFF:06x}"


def install_secret(state_dir: Path) -> bytes:
    """What callers' keys are hashed with: made once per install, readable by its owner only. Several workers may make it at once:
    the file appears whole, and the first one counts."""
    path = state_dir / _KEY_FILE
    if not path.exists():
        state_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=state_dir) as made:  # opened with mode 0600
            made.write(secrets.token_bytes(32))
            made.flush()
            with contextlib.suppress(FileExistsError):
                os.link(made.name, path)
    return path.read_bytes()


def _multiprocess_dir() -> Path | None:
    """Set by the parent of several workers."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(directory) if directory else None


def _endpoint(provider: settings.Provider) -> Endpoint:
    return Endpoint(provider.connect_timeout_ms / 1000, provider.idle_timeout_ms / 1000)
