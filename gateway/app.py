"""The composition root: settings → objects → a gateway that serves; start and stop. Nothing else reads the environment or the clock."""

import asyncio
import gc
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import uvloop
from multidict import CIMultiDict, CIMultiDictProxy

from gateway import __version__, bundled, policy_file, settings, workers
from gateway import explain as explaining
from gateway.asks import Ask, Asks
from gateway.breaker import Breakers
from gateway.buffers import Buffers, Queue
from gateway.config_file import HttpClient
from gateway.core.decide import Reach, Rulebook, Unservable
from gateway.core.policy import Policy, RunOwner
from gateway.core.scopes import Caller
from gateway.core.tokens import TokenCounter
from gateway.core.values import Decision
from gateway.cycles.answering import Answering
from gateway.cycles.governance import plane as governing
from gateway.cycles.ground import Ground
from gateway.cycles.plane import Plane
from gateway.events import Events, open_sink
from gateway.flow import Flow
from gateway.forwarding import Forwarding
from gateway.identity import ANONYMOUS, DEFAULT_TENANT, Identity, Principal
from gateway.large import LargeWork
from gateway.ledger import opening
from gateway.ledger.contract import Ledger, LedgerUnavailable
from gateway.office import Ids, Office, clock_ms, install_secret
from gateway.origins import Origins
from gateway.outlook import Known, known, placed
from gateway.registry import Registry
from gateway.relay import Places, Shared
from gateway.server.accepting import allow_files
from gateway.server.admin import Admin
from gateway.server.budget_api import BudgetApi
from gateway.server.edge import Edge, Limits
from gateway.server.estimate_api import EstimateApi
from gateway.server.events_api import EventsApi
from gateway.server.external import External
from gateway.server.guards import LOOPBACK_HOSTS, Guards
from gateway.server.models import ModelList
from gateway.server.ops import Ops, Serving
from gateway.server.reservations_api import ReservationsApi
from gateway.server.routes import Route, Routes
from gateway.settings import Settings
from gateway.stored import StoredAnswers
from gateway.upstream import AiohttpUpstream, Endpoint, LeanUpstream, Upstream
from gateway.wire import messages, responses
from gateway.wire.dialect import Dialect
from gateway.wire.dialects import DIALECTS
from gateway.wire.exchange import Inbound
from gateway.wire.headers import directives
from gateway.wire.problem import Refused, amount_text, problem
from gateway.yaml_source import Mistakes

T = TypeVar("T")

_OTHER_FILES: Final = 256  # beside clients' connections and those to providers: the ledger, the log, idle connections
_CLIENTS: Final[dict[HttpClient, Callable[[Endpoint], Upstream]]] = {
    HttpClient.LEAN: LeanUpstream,
    HttpClient.AIOHTTP: AiohttpUpstream,
}


class Gateway:
    """The objects of one process, wired, and their life."""

    def __init__(self, config: Settings, policy: Policy, events: Events) -> None:
        self.config = config
        self.events = events
        self.office = office = Office(config, policy, events, _multiprocess_dir())
        self.metrics = office.metrics
        self.observer = office.observer
        self.ledger = office.ledger
        self._identity = office.identity
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
            learned=office.learned,
            readers=bundled.load_clients(),
            buffers=Buffers(config.max_buffered),
            answers=Queue(max(config.max_bodies, config.max_response)),
            large=self._large,
        )
        self.flow = Flow(shared, self._identity, office.rulebook, self.observer, Ids())
        office.on_rulebook = self._follow
        self._forwarding = Forwarding(shared, self._identity, lambda: self.flow.rulebook)
        self._stored = StoredAnswers(shared, self._identity, lambda: self.flow.rulebook, self._forwarding, self.observer)
        limits = Limits(
            config.max_request,
            max_connections=config.max_connections,
            max_calls=config.max_calls,
            max_bodies=config.max_bodies,
        )
        self._cycles = Answering(config.cycles.trace_id_in_errors)
        self._edge = Edge(self._routes(), limits, self._guards(), events.problem, self.metrics.shed, self._cycles.refusal)

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def start(self, listening: socket.socket | None = None) -> int:
        """Listens; returns the port. OSError where the address can't be had, LedgerUnavailable where nothing could be remembered of a
        ledger that is away. A ledger that is away or lost does not stand in the way: its calls are refused until it serves."""
        await self.office.open()
        self.office.background(self.flow.watch())
        if listening is not None:
            return await self._edge.listen_on(listening)
        return await self._edge.listen(self.config.listen_host, self.config.listen_port)

    async def stop(self) -> None:
        """Live streams may finish, for as long as `shutdown.grace` says; then they are ended and settled. Nothing is left unsettled
        but what the ledger no longer takes."""
        self.flow.wait_no_more()
        await self._edge.drain(self.config.shutdown_grace_ms / 1000, self.flow.shut_down)
        await self.office.close()
        for upstream in self._upstreams.values():
            await upstream.close()
        self._large.close()

    def _follow(self, rulebook: Rulebook) -> None:
        self.flow.rulebook = rulebook

    # -- wiring ---------------------------------------------------------------------------------------------------------------

    def _routes(self) -> Routes:
        principal_of = self._identity.principal
        archived = None if self.office.archive is None else self.office.archive.find
        asks = Asks(self.ledger, self._raise_asked)
        budget_api = BudgetApi(
            self.ledger, principal_of, self._shared, self._run_ceiling, self.flow.run_stopped, clock_ms, asks, archived
        )
        unset_token_env = self.config.admin_token_env if self.config.admin_token is None else None
        admin = Admin(self.ledger, principal_of, unset_token_env, self._dimensions, self.flow.scope_frozen, asks, clock_ms)
        external = External(self.ledger, self._identity, lambda: self.flow.rulebook, self.observer, clock_ms)
        events_api, reservations_api = EventsApi(external), ReservationsApi(external, self.config.lease_ms)
        estimate_api = EstimateApi(self.flow, external, self._large)
        ground = Ground(
            *(self.ledger, self._identity, self.office.registry, lambda: self.flow.rulebook, self.observer, clock_ms),
            self._tenants(),
        )
        governance = governing.pages(self.ledger, self._identity, self.office.registry, asks, clock_ms)
        cycles = Plane.over(ground, self._cycles, newer_members=self.config.cycles.newer_members)
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
            [
                *(*budget_api.routes(), *events_api.routes(), *reservations_api.routes(), *estimate_api.routes()),
                *(*admin.routes(), *ops.routes()),
                *[Route(*page) for page in (*cycles.pages(), *governance)],
            ],
        )

    def _tenants(self) -> Sequence[str]:
        """Those that the config names."""
        return tuple(dict.fromkeys([DEFAULT_TENANT, *(key.tenant for key in self.config.keys)]))

    def _guards(self) -> Guards:
        hosts = None if self.config.auth == "keys" else LOOPBACK_HOSTS | frozenset(self.config.allowed_hosts)
        return Guards(hosts, frozenset(self.config.allowed_origins))

    def _serving(self) -> Serving:
        rulebook = self.flow.rulebook
        unmetered = tuple(route.name for route in self.config.unmetered_routes)
        return Serving(
            rulebook.policy, self.office.policy_error, rulebook.catalog.version, __version__, unmetered, rulebook.grants
        )

    def _shared(self) -> bool:
        return self.flow.rulebook.policy.runs.owner is RunOwner.TENANT

    def _run_ceiling(self, principal: Principal, run: str) -> int | None:
        return self.flow.rulebook.run_ceiling(Caller(principal.tenant, principal.key, run, run, dimensions=principal.bound))

    def _dimensions(self) -> set[str]:
        """Those that a caller can have here."""
        bound = {name for key in self.config.keys for name, _ in key.dimensions}
        return bound | {name for name, _ in self.flow.rulebook.policy.identity}

    def _raise_asked(self, tenant: str, ask: Ask) -> None:
        # Not why: that is the caller's text.
        wanted = amount_text(ask.amount, ask.unit)
        self.events.log.warning("raise_asked", tenant=tenant, run=ask.run, key=ask.owner, wanted=wanted, account=ask.account)

    def _provider_rests(self, provider: str, seconds: float) -> None:
        self.metrics.provider_rests(provider)
        self.events.log.warning("provider_rests", provider=provider, seconds=seconds)


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
    loop.add_signal_handler(signal.SIGHUP, gateway.office.reload)
    gateway.office.background(gateway.office.watch_policy())
    if listening is not None:
        gateway.office.background(_stop_when_orphaned(asked_to_stop))
    # What lives as long as the process need not be looked through at every collection.
    gc.collect()
    gc.freeze()
    # A call leaves hundreds of objects and hardly a cycle: looking for those after every 700 objects costs a tenth to a fifth of it.
    gc.set_threshold(20_000, 50, 100)
    if listening is None:
        address = f"http://{config.listen_host}:{port}"
        # In one write, also where nothing is buffered: the log may go to the same file.
        told = f"penstock {__version__} serves on {address}; set OPENAI_BASE_URL={address}/v1\n"
        print(told, end="", file=sys.stderr, flush=True)
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
    rulebook = Rulebook(policy, config.catalog, TokenCounter(bundled.load_tokenizer))

    def decided(caller: Caller) -> Decision:
        # As if the caller had a key for every provider: whether it has one is not what is asked here.
        served, at_ms = frozenset(config.providers), clock_ms()
        decision = rulebook.decide(request.call(caller, directives(headers)), Reach(served), at_ms, "bdg_explain")
        if isinstance(decision, Unservable):
            raise Refused(problem(decision.code, decision.message, decision.param))
        return decision

    if opening.never_used(config.ledger):
        return explaining.Explanation(decided(caller), rulebook, Known())
    ledger = opening.ledger_of(config.ledger, config.state_dir, clock_ms)
    await ledger.start()
    try:
        registry = Registry(ledger, clock_ms, lambda _: None, lambda _: None)
        await registry.look()
        rulebook = rulebook.beside(registry.grants)
        decision = decided(await placed(ledger, caller))
        return explaining.Explanation(decision, rulebook, await known(ledger, decision))
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


def _multiprocess_dir() -> Path | None:
    """Set by the parent of several workers."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(directory) if directory else None


def _endpoint(provider: settings.Provider) -> Endpoint:
    return Endpoint(provider.connect_timeout_ms / 1000, provider.idle_timeout_ms / 1000)
