"""The path of a call without HTTP on the client's side: a real ledger, a real upstream, and an outlet that records.

async with world(tmp_path, provider.base_url) as here:
    got = await here.ask(chat("hello"), run="r1")        # → what the client got
    await here.quiet()
    (await here.run("r1")).committed
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import orjson
from multidict import CIMultiDict, CIMultiDictProxy

from gateway import bundled, relay
from gateway.breaker import Breakers
from gateway.buffers import Buffers, Queue
from gateway.core.catalog import Catalog, Model, Rates, Route
from gateway.core.decide import Rulebook
from gateway.core.learned import Learned
from gateway.core.policy import Policy
from gateway.core.profiles import Profile
from gateway.core.tokens import TokenCounter
from gateway.core.values import Receipt
from gateway.events import CallEvent
from gateway.flow import Flow
from gateway.forwarding import Forwarding
from gateway.identity import Identity
from gateway.large import LargeWork
from gateway.ledger.contract import CallRecord, Ledger, RunView
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.witness import Witness
from gateway.metrics import Metrics
from gateway.observer import Observer
from gateway.origins import Origins
from gateway.relay import Places, Shared
from gateway.settings import Provider, Settings, SqliteSettings
from gateway.stored import StoredAnswers
from gateway.upstream import Endpoint, LeanUpstream, RetryPolicy, Upstream
from gateway.wire.chat import DIALECT as CHAT
from gateway.wire.dialect import Dialect
from gateway.wire.exchange import ClientGone, Headers, Inbound
from tests.support.clock import Clock
from tests.support.pricing import MODELS, TestModel
from tests.support.rulebooks import policy as policy_of

TENANT = "default"
KEY = "Bearer sk-test"
PROFILE = Profile("test", "max_completion_tokens", stream_options=True)


def chat(text: str = "tell me about rivers", model: str = "big-model", **fields: Any) -> bytes:
    return orjson.dumps({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 20, **fields})


def model_of(model: TestModel, **facts: Any) -> Model:
    """The catalog's entry for a model of `tests.support.pricing`, priced as the provider bills it."""
    microcents = {
        name: int(float(dollars) * 100_000_000)
        for name, dollars in (("input", model.input), ("output", model.output), ("cached", model.cached_input or model.input))
    }
    rates = Rates(microcents["input"], microcents["output"], microcents["cached"], microcents["input"])
    defaults: dict[str, Any] = {"capabilities": frozenset(model.capabilities), "encoding": model.encoding}
    return Model(model.name, "test", (rates,), model.context, model.max_output, **{**defaults, **facts})


# -- the client's side ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Client:
    """An `Outlet` that keeps what it is handed. Every method suspends once, as a slow connection would make it."""

    status: int = 0
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""
    whole: bool = False  # ended cleanly
    aborted: bool = False
    gone: bool = False
    started: bool = False
    takes_nothing: bool = False  # stays connected, but its buffers are full
    on_write: Callable[[bytes], Awaitable[None]] | None = None
    _told: list[Callable[[], None]] = field(default_factory=list)
    _put: bytes = b""  # the latest

    def leave(self) -> None:
        self.gone = True
        told, self._told = self._told, []
        for callback in told:
            callback()

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        await self._start(status, headers)
        self.body = body
        self.whole = True

    async def start(self, status: int, headers: Headers) -> None:
        await self._start(status, headers)

    async def _start(self, status: int, headers: Headers) -> None:
        await self._turn()
        assert not self.started, "one answer per request"
        self.started = True
        self.status, self.headers = status, CIMultiDict(headers)

    async def write(self, data: bytes) -> None:
        await self._turn()
        self.put(data)
        await self.room()

    def put(self, data: bytes) -> bool:
        if self.gone:
            raise ClientGone
        assert self.started
        assert not self.whole, "nothing follows the end"
        self.body += data
        self._put = data
        return self.on_write is None and not self.takes_nothing

    @property
    def waiting(self) -> int:
        return len(self._put)

    async def room(self) -> None:
        await self._turn()
        if self.on_write is not None:
            await self.on_write(self._put)
        if self.takes_nothing:
            await asyncio.Event().wait()

    async def finish(self, last: bytes = b"") -> None:
        await self.write(last)
        self.whole = True

    def abort(self) -> None:
        self.aborted = True

    def drop(self) -> None:
        self.aborted = True
        self.leave()

    def on_gone(self, told: Callable[[], None]) -> None:
        if self.gone:
            told()
        else:
            self._told.append(told)

    async def _turn(self) -> None:
        if self.gone:
            raise ClientGone
        await asyncio.sleep(0)
        if self.gone:
            raise ClientGone

    # -- reading it -----------------------------------------------------------------------------------------------------------

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The stream's data, `[DONE]` as that string."""
        data = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return ["[DONE]" if each == b"[DONE]" else orjson.loads(each) for each in data]

    @property
    def errors(self) -> list[Any]:
        return [event["error"] for event in self.events if isinstance(event, dict) and "error" in event]

    @property
    def text(self) -> str:
        """What the model wrote, as far as the client got it."""
        if not self.body.startswith((b"data:", b":")):
            return "".join(choice["message"]["content"] or "" for choice in self.json.get("choices", ())) if self.body else ""
        chunks = [event for event in self.events if isinstance(event, dict)]
        return "".join(c.get("delta", {}).get("content") or "" for event in chunks for c in event.get("choices", ()))


# -- what was told ----------------------------------------------------------------------------------------------------------------


class Told:
    """In the place of `Events`: keeps the records, writes nothing."""

    def __init__(self) -> None:
        self.calls: list[CallEvent] = []
        self.overruns: list[tuple[Receipt, str]] = []
        self.alerts: list[object] = []
        self.problems: list[tuple[str, BaseException]] = []
        self.warnings: list[tuple[str, Mapping[str, object]]] = []
        self.infos: list[tuple[str, Mapping[str, object]]] = []
        self.log = self

    def call(self, event: CallEvent) -> None:
        self.calls.append(event)

    def overrun(self, receipt: Receipt, cause: str) -> None:
        self.overruns.append((receipt, cause))

    def alert(self, alert: object) -> None:
        self.alerts.append(alert)

    def problem(self, where: str, failure: BaseException) -> None:
        self.problems.append((where, failure))

    def info(self, event: str, **fields: object) -> None:
        self.infos.append((event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.warnings.append((event, fields))


# -- the world --------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class World:
    flow: Flow
    ledger: Ledger
    clock: Clock
    told: Told
    metrics: Metrics
    settings: Settings
    shared: Shared
    stored: StoredAnswers
    identity: Identity
    asked: int = -1  # the number of the latest request
    unheard: list[Mapping[str, Any]] = field(
        default_factory=list
    )  # what nobody caught: "Task exception was never retrieved" and the like

    def inbound(self, body: bytes, run: str | None = "r1", query: str = "", dialect: Dialect = CHAT, **headers: str) -> Inbound:
        named = {"Authorization": KEY, **{name.replace("_", "-"): value for name, value in headers.items()}}
        raw = CIMultiDictProxy(CIMultiDict(named))
        self.asked = next(_numbers)
        return Inbound("POST", dialect.path, query, run, raw, body, f"req_{self.asked}")

    async def ask(
        self, body: bytes, run: str | None = "r1", client: Client | None = None, dialect: Dialect = CHAT, **more: str
    ) -> Client:
        client = client or Client()
        await self.flow.serve(dialect, self.inbound(body, run, dialect=dialect, **more), client)
        return client

    def asking(self, body: bytes, run: str | None = "r1", client: Client | None = None) -> tuple["asyncio.Task[Client]", Client]:
        """The same as a task, and its client."""
        client = client or Client()
        return asyncio.create_task(self.ask(body, run, client)), client

    async def quiet(self) -> None:
        """Every step that was under way is in the ledger and told of: two rounds, since a reserve may be given back after the first."""
        for _ in range(2):
            await self.ledger.run(TENANT, "")
            await self.ledger.expire(0)
            await asyncio.sleep(0)

    async def run(self, run: str = "r1") -> RunView:
        await self.quiet()
        view = await self.ledger.run(TENANT, run)
        assert view is not None, f"no run {run}"
        return view

    async def record(self, run: str = "r1") -> CallRecord:
        """Of the run's only call, or its latest that was told."""
        await self.quiet()
        told = [event for event in self.told.calls if event.caller.run == run and event.decision_id is not None]
        assert told, f"nothing was told of run {run}"
        assert told[-1].decision_id is not None
        record = await self.ledger.record(TENANT, told[-1].decision_id)
        assert record is not None
        return record

    async def live_holds(self, run: str) -> list[CallRecord]:
        return [each for each in await self.ledger.holds(TENANT, run, 10) if each.state == "live"]

    def reports_ending(self, ending: str) -> bool:
        self.metrics.flush()
        return f'penstock_calls_total{{ending="{ending}"}}'.encode() in self.metrics.exposition()


_numbers = count()


@asynccontextmanager
async def world(
    folder: Path,
    upstream: str,
    policy: Policy | None = None,
    models: Sequence[Model] | None = None,
    profile: Profile = PROFILE,
    ledger: Callable[[SqliteLedger], Ledger] = lambda real: real,
    provider: Mapping[str, Any] | None = None,
    wrap: Callable[[Upstream], Upstream] = lambda real: real,
    others: Mapping[str, str] | None = None,
    routes: Mapping[str, Sequence[Route]] | None = None,
    flat: Mapping[str, int] | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """`ledger` and `wrap` may put a fault before the real thing; `provider` and `settings` are laid over the defaults. `others`: further
    providers' base URLs; `routes`: of models that several serve."""
    loop, unheard = asyncio.get_running_loop(), list[Mapping[str, Any]]()
    loop.set_exception_handler(lambda _, context: unheard.append(context))
    clock, told = Clock(), Told()
    known = models or [model_of(each) for each in MODELS]
    declared = {name: tuple(each) for name, each in (routes or {}).items()}
    catalog = Catalog("prices-1", {each.name: each for each in known}, routes=declared, flat=flat or {})
    one = Provider("test", upstream, "authorization", profile, **{"accepts_caller_keys": True, "retries": 2, **(provider or {})})
    providers = {"test": one} | {name: replace(one, name=name, base_url=url) for name, url in (others or {}).items()}
    # However busy the machine is, a test sees what was settled, unless it is about the wait itself.
    patient = {"commit_wait_ms": 10_000, **settings}
    config = Settings(
        "127.0.0.1", 0, folder / "policy.yaml", SqliteSettings(folder / "ledger.db"), folder, providers, catalog, **patient
    )
    running = SqliteLedger(
        str(folder / "ledger.db"), Witness(folder / "witness.json"), clock, timeout_ms=config.ledger.timeout_ms
    )
    await running.start()
    client = LeanUpstream(Endpoint(connect_timeout_s=2, idle_timeout_s=one.idle_timeout_ms / 1000))
    metrics = Metrics(catalog.models)
    observer = Observer(told, metrics, loop.time)  # type: ignore[arg-type]
    runs = count()
    identity = Identity(config, b"secret", lambda: f"run_{next(runs)}")
    counter = TokenCounter(bundled.load_tokenizer)
    learned = Learned(counter)
    large = LargeWork()
    shared = Shared(
        ledger(running),
        dict.fromkeys(providers, wrap(client)),
        config,
        observer.alert,
        Places(config.drain.number),
        clock,
        lambda: 0.0,
        Breakers(loop.time, lambda *_: None),
        identity.answered,
        Origins(),
        learned,
        bundled.load_clients(),
        Buffers(config.max_buffered),
        Queue(max(config.max_bodies, config.max_response)),
        large,
    )
    rulebook = Rulebook(policy or policy_of(), catalog, counter, learned)
    flow = Flow(shared, identity, rulebook, observer, lambda: f"bdg_{next(_numbers):08d}")
    forwarding = Forwarding(shared, identity, lambda: rulebook)
    stored = StoredAnswers(shared, identity, lambda: rulebook, forwarding, observer)
    here = World(flow, shared.ledger, clock, told, metrics, config, shared, stored, identity, unheard=unheard)
    try:
        yield here
        await here.quiet() if not isinstance(shared.ledger, Broken) else None
    finally:
        await client.close()
        await running.close()
        large.close()
    gc.collect(1)  # what was made here; all of it would take longer than most tests
    await asyncio.sleep(0)
    assert not unheard, unheard


class Broken:
    """A ledger before which some steps fail. `steps` maps a step's name to what is done instead of it."""

    def __init__(self, real: SqliteLedger, steps: Mapping[str, Callable[..., Any]]) -> None:
        self._real = real
        self._steps = dict(steps)

    def __getattr__(self, name: str) -> Any:
        return self._steps.get(name) or getattr(self._real, name)


def quick_retries(monkeypatch: Any) -> None:
    """Waits between tries of milliseconds; how often and of what stays."""
    monkeypatch.setattr(relay, "RetryPolicy", lambda retries: replace(RetryPolicy(), retries=retries, first_wait_s=0.002))


# -- stopping at an await -----------------------------------------------------------------------------------------------------------


class Steps(Awaitable[Any]):
    """Runs a coroutine, and does something at its k-th suspension: `early`, as soon as it is suspended; else when what it waits for
    has come, but has not reached it yet."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int, early: bool) -> None:
        self._work = work
        self._at = at
        self.act: Callable[[], None] = _nothing
        self._early = early
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._steps()

    def _steps(self) -> Iterator[Any]:
        thrown: BaseException | None = None
        while True:
            try:
                waits_for = self._work.send(None) if thrown is None else self._work.throw(thrown)
            except StopIteration as stop:
                return stop.value
            thrown = None
            self.suspensions += 1
            if self.suspensions == self._at:
                if self._early or waits_for is None:
                    asyncio.get_running_loop().call_soon(self.act)
                else:
                    waits_for.add_done_callback(lambda _: self.act())
            try:
                yield waits_for
            except BaseException as failure:  # noqa: BLE001 - handed on to the coroutine
                thrown = failure

    @property
    def reached(self) -> bool:
        return self.suspensions >= self._at


def _nothing() -> None:
    pass
