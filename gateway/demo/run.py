"""`penstock demo`: the same runaway agent twice, first straight to a provider, then through a gateway that gives its run one dollar.

    provider process ← agent                      bounded only by our patience
    provider process ← gateway process ← agent    bounded by demo/policy.yaml

The exit code is 0 only where the guarded run stayed within its ceiling, by the provider's own bill and by the gateway's ledger.
"""

import asyncio
import contextlib
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
from rich.console import Console

from gateway.demo import local_model
from gateway.demo.bill import MICROCENTS, Bill, Price
from gateway.demo.local_model import NotStarted
from gateway.demo.stage import config, gateway, page, scripted
from gateway.demo.view import Reading, View, usd, view_for

if TYPE_CHECKING:
    import openai

    from gateway.demo.agent import Work

RUN: Final = "demo"
CEILING: Final = MICROCENTS  # as demo/policy.yaml says
_UNBOUNDED: Final = 10_000  # steps: what guards the run is the gateway
POLL_S: Final = 0.2
NO_SDK: Final = "the demo's agent uses the openai SDK: pip install openai"


@dataclass(frozen=True, slots=True)
class Scene:
    """Which provider the demo plays before, and what its models cost there (dollars per million tokens, input:output)."""

    prices: Mapping[str, str]
    profile: str
    encoding: str | None
    context: int
    source_lines: int
    max_tokens: int
    sub_agents: int
    steps: int  # of each sub-agent, while nothing guards it
    seconds: float  # the most that either phase may take
    event_ms: float  # the scripted provider's pace: six tokens each time
    note: str  # what the unguarded agent talks to


SCRIPTED: Final = Scene(
    prices={"big-model": "15:75", "small-model": "3:15"},
    profile="openai",
    encoding="o200k_base",
    context=200_000,
    source_lines=320,
    max_tokens=1000,
    sub_agents=3,
    steps=9,
    seconds=20,
    event_ms=8,
    note="a scripted provider, at a large model's prices",
)
# A small model on one thread makes some 20 tokens a second: it has to be dear to run away within a minute.
LOCAL: Final = Scene(
    prices={"big-model": "2500:10000", "small-model": "500:2000"},
    profile="llama.cpp",
    encoding=None,  # no public tokenizer: the gateway estimates with a margin
    context=4096,
    source_lines=0,
    max_tokens=20,
    sub_agents=2,
    steps=6,
    seconds=18,
    event_ms=0,
    note=f"{local_model.MODEL} on this machine; its prices are made up",
)


@dataclass(frozen=True, slots=True)
class ScriptedInvoice:
    """The scripted provider keeps its own bill."""

    session: aiohttp.ClientSession
    url: str

    async def microcents(self) -> int:
        async with self.session.get(f"{self.url}/__bill") as answer:
            return int((await answer.json())["microcents"])

    async def clear(self) -> None:
        async with self.session.delete(f"{self.url}/__bill"):
            pass


@dataclass(frozen=True, slots=True)
class Stage:
    """The provider that runs, and how to learn what it is owed. None: it keeps no bill, the usage it reported is all there is."""

    base_url: str
    invoice: ScriptedInvoice | None


@dataclass(slots=True)
class Onlooker:
    """What the demo learns from the agent itself: replies, their usage, and why it gave up."""

    view: View
    bill: Bill
    model: str
    refusals: list[str] = field(default_factory=list)
    replies: int = 0

    def replied(self, usage: "openai.types.CompletionUsage | None") -> None:
        self.replies += 1
        if usage is not None:
            self.bill.add(self.model, usage.prompt_tokens, 0, usage.completion_tokens, "whole")

    def gave_up(self, topic: str, error: "openai.OpenAIError") -> None:
        self.refusals.append(str(error))
        self.view.say(f"{topic}: {type(error).__name__}: {_message(error)}")


def main(model: str) -> int:
    """`model`: `scripted` or `local`. Returns the exit code."""
    console = Console()
    scene = {"scripted": SCRIPTED, "local": LOCAL}.get(model)
    problem = None
    if scene is None:
        problem = f"found --model {model}, expected scripted or local"
    elif importlib.util.find_spec("openai") is None:
        problem = NO_SDK
    elif scene is LOCAL and not local_model.installed():
        problem = local_model.MISSING
    if problem is not None or scene is None:
        return _fail(str(problem))
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    try:
        return asyncio.run(play(scene, view_for(console), console, folder))
    except NotStarted as failure:
        return _fail(str(failure))
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fail(message: str) -> int:
    Console(stderr=True).print(f"penstock: {message}", markup=False, highlight=False, soft_wrap=True)
    return 1


async def play(scene: Scene, view: View, console: Console, folder: Path) -> int:
    """Both phases and the verdict, with every process ended; returns the exit code."""
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            with _provider(scene) as base_url:
                invoice = ScriptedInvoice(session, base_url.removesuffix("/v1")) if scene.profile == SCRIPTED.profile else None
                stage = Stage(base_url, invoice)
                unguarded = await _unguarded(scene, stage, view)
                guarded = await _guarded(scene, stage, view, session, folder)
    finally:
        view.end()
    return _verdict(console, unguarded, guarded)


# -- the two phases -----------------------------------------------------------------------------------------------------------


async def _unguarded(scene: Scene, stage: Stage, view: View) -> int:
    """What the agent costs where nothing stops it but the demo's own bounds."""
    view.begin(f"Unguarded: straight to {scene.note}")
    onlooker = Onlooker(view, Bill(_prices(scene)), "big-model")

    async def look() -> Reading:
        spent = onlooker.bill.microcents if stage.invoice is None else await stage.invoice.microcents()
        return Reading(spent=spent, calls=onlooker.replies, model=onlooker.model)

    last = await _watched(stage.base_url, _work(scene, scene.steps), onlooker, view, look)
    view.say(f"stopped by the demo, not by anything else: {usd(last.spent)} for {last.calls} calls")
    view.update(last)
    if stage.invoice is not None:
        await stage.invoice.clear()
    return last.spent


@dataclass(frozen=True, slots=True)
class Guarded:
    """How the guarded run ended. `billed` is None where the provider keeps no bill."""

    committed: int
    reserved: int
    billed: int | None
    refusals: tuple[str, ...]


async def _guarded(scene: Scene, stage: Stage, view: View, session: aiohttp.ClientSession, folder: Path) -> Guarded:
    view.begin(f"Guarded: the same agent, OPENAI_BASE_URL at a gateway, ceiling {usd(CEILING)}")
    onlooker = Onlooker(view, Bill(_prices(scene)), "big-model")
    async with _gateway(scene, stage, session, folder) as address:
        seen: dict[str, int] = {}

        async def look() -> Reading:
            return await _ledger_reading(session, address, seen, view)

        last = await _watched(f"{address}/run/{RUN}/v1", _work(scene, _UNBOUNDED), onlooker, view, look)
        billed = None if stage.invoice is None else await stage.invoice.microcents()
        return Guarded(last.spent, last.held, billed, tuple(onlooker.refusals))


async def _ledger_reading(session: aiohttp.ClientSession, address: str, seen: dict[str, int], view: View) -> Reading:
    """The run as the gateway's own API tells it. `seen`: calls per model so far, to notice which one is in use."""
    run = await page(session, f"{address}/budget/runs/{RUN}")
    if run is None:
        return Reading(ceiling=CEILING)  # before its first call
    spend = await page(session, f"{address}/budget/spend?by=model") or {}
    rows = spend.get("rows")
    for row in rows if isinstance(rows, list) else ():
        name, calls = str(row["model"]), int(row["calls"])
        if seen and name not in seen:
            view.say(f"budget runs low: the gateway serves {name} instead")
        if calls > seen.get(name, 0):
            seen.pop(name, None)  # the model in use is the last one
            seen[name] = calls
    return Reading(
        spent=_microcents(run["committed_usd"]),
        held=_microcents(run["reserved_usd"]),
        calls=int(str(run["calls"])),
        model=next(reversed(seen), ""),
        ceiling=CEILING,
    )


async def _watched(
    base_url: str, work: "Work", onlooker: Onlooker, view: View, look: Callable[[], Awaitable[Reading]]
) -> Reading:
    """Lets the agent loose and looks at the money meanwhile; returns the last reading, taken after its end."""
    from gateway.demo.agent import run_amok

    began = time.monotonic()

    async def reading() -> Reading:
        now = await look()
        return Reading(time.monotonic() - began, now.spent, now.held, now.calls, now.model, now.ceiling)

    agent = asyncio.create_task(run_amok(base_url, work, onlooker))
    while not agent.done():
        view.update(await reading())
        await asyncio.wait({agent}, timeout=POLL_S)
    agent.result()
    last = await reading()
    view.update(last)
    return last


def _work(scene: Scene, steps: int) -> "Work":
    from gateway.demo.agent import Work

    topics = ("the upper gate", "the old mill", "the lower pool")[: scene.sub_agents]
    return Work("big-model", topics, scene.source_lines, scene.max_tokens, steps, scene.seconds)


# -- the processes ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _provider(scene: Scene) -> Iterator[str]:
    """The base URL of a provider that runs as long as the block."""
    if scene.profile == LOCAL.profile:
        with local_model.running() as model:
            yield model.base_url
        return
    with scripted(scene.prices, "300-1000", scene.event_ms, tokens_per_event=6) as base_url:
        yield base_url


def _gateway(
    scene: Scene, stage: Stage, session: aiohttp.ClientSession, folder: Path
) -> contextlib.AbstractAsyncContextManager[str]:
    return gateway(config(folder, stage.base_url, scene.prices, scene.profile, scene.context, scene.encoding), session, folder)


# -- the end ------------------------------------------------------------------------------------------------------------------


def _verdict(console: Console, unguarded: int, guarded: Guarded) -> int:
    billed = guarded.committed if guarded.billed is None else guarded.billed
    lines = [
        "",
        f"unguarded   {_exact(unguarded)}",
        f"guarded     {_exact(billed)}   (by the gateway's ledger {_exact(guarded.committed)}, ceiling {_exact(CEILING)})",
    ]
    wrong = []
    if max(billed, guarded.committed) > CEILING:
        wrong.append("the guarded run spent more than its ceiling")
    if guarded.billed is not None and guarded.billed != guarded.committed:
        wrong.append("the provider's bill and the gateway's ledger differ")
    if guarded.reserved:
        wrong.append(f"{_exact(guarded.reserved)} is still held")
    if not guarded.refusals:
        wrong.append("nothing stopped the guarded run")
    lines.extend(f"FAILED: {what}" for what in wrong)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 1 if wrong else 0


def _exact(microcents: int) -> str:
    return f"${Decimal(microcents) / MICROCENTS:.8f}"


def _prices(scene: Scene) -> dict[str, Price]:
    return {name: Price.parse(price) for name, price in scene.prices.items()}


def _microcents(usd_text: object) -> int:
    return int(Decimal(str(usd_text)) * MICROCENTS)


def _message(error: "openai.OpenAIError") -> str:
    """What the provider or the gateway said, without the SDK's wrapping."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error)
