"""Whatever happens at whichever await of a call: its hold ends once, is charged for what the client got, and is told of once.

Each test runs one call again and again. The first time something happens at its first suspension, the next time at its second, and so
on until the call is over before it happens; then the same a moment later, when what the call waits for has come.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from gateway import relay, streaming
from gateway.core.catalog import Rates, Route
from gateway.core.money import price_of
from gateway.demo.replies import Script
from gateway.ledger.contract import LedgerUnavailable
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.wire.chat import DIALECT as CHAT
from tests.support.config import free_port
from tests.support.flow import TENANT, Broken, Client, Steps, World, chat, model_of, quick_retries, world
from tests.support.pricing import BIG
from tests.support.provider import Behaviour, FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

ENOUGH: Final = 200  # more suspensions than any of these calls has


@dataclass(frozen=True)
class Scenario:
    behaviours: tuple[Behaviour, ...] = ()
    stream: bool = False
    reachable: bool = True
    limit: int = 5 * USD
    outage: bool = False  # the ledger is away, and the budget allows the call
    elsewhere: int = 0  # another provider serves the model too, at so many times the price
    sliced: bool = False

    @property
    def body(self) -> bytes:
        return chat(stream=self.stream, **({"max_tokens": 4_000} if self.sliced else {}))


SLICES: Final = Behaviour(script=Script(tokens=1_500), tokens_per_event=250)

SCENARIOS: Final = {
    "a JSON answer": Scenario(),
    "a stream": Scenario(stream=True),
    "a refusal": Scenario(limit=10),
    "the provider's own error": Scenario((Behaviour(status=400),)),
    "an error from in between": Scenario((Behaviour(status=502),)),
    "a second try": Scenario((Behaviour(status=429), Behaviour())),
    "a provider that resets": Scenario((Behaviour(reset=True),)),
    "a stream that is cut": Scenario((Behaviour(cut_after_events=8),), stream=True),
    "a provider that cannot be reached": Scenario(reachable=False),
    "another provider, under the same hold": Scenario((Behaviour(status=503), Behaviour()), elsewhere=1),
    "another provider, under a hold of its own": Scenario((Behaviour(status=503), Behaviour()), elsewhere=3),
    "another provider, after one that may have billed it": Scenario(
        (Behaviour(reset=True), Behaviour()), stream=True, elsewhere=1
    ),
    "a stream that is held for slice by slice": Scenario((SLICES,), stream=True, sliced=True),
    "a stream for which no more can be held": Scenario((SLICES,), stream=True, sliced=True, limit=1_400_000),
    "a stream without a hold": Scenario(stream=True, outage=True),
    "an error from in between, without a hold": Scenario((Behaviour(status=502),), outage=True),
}


def away(real: SqliteLedger) -> Any:
    """It takes no reserve."""

    def reserve(*_: object) -> Any:
        raise LedgerUnavailable("away")

    return Broken(real, {"reserve": reserve})


def worlds(folder: Path, provider: FaultProvider, scenario: Scenario) -> AbstractAsyncContextManager[World]:
    upstream = provider.base_url if scenario.reachable else f"http://127.0.0.1:{free_port()}/v1"
    ceiling = budget("run-ceiling", "run", limit=scenario.limit, sliced=scenario.sliced)
    ceiling = replace(ceiling, terms=replace(ceiling.terms, outage_allow=scenario.outage))
    ledger = away if scenario.outage else lambda real: real
    if not scenario.elsewhere:
        return world(folder, upstream, policy(ceiling), ledger=ledger)
    here = model_of(BIG)
    [rates] = here.tiers
    dearer = Rates(*(scenario.elsewhere * rate for rate in (rates.input, rates.output, rates.cached_input, rates.cache_write)))
    routes = {here.name: (Route("test", here), Route("second", replace(here, tiers=(dearer,))))}
    return world(folder, upstream, policy(ceiling), ledger=ledger, others={"second": upstream}, routes=routes)


@dataclass(frozen=True)
class Happening:
    """What happens: the gateway's server cancels the call, its run is stopped, the gateway shuts down, the client leaves."""

    word: str

    def to(self, here: World, run: str, client: Client, task: "asyncio.Task[None]") -> Callable[[], None]:
        acts: Mapping[str, Callable[[], object]] = {
            "cancelled": task.cancel,
            "stopped": lambda: here.flow.run_stopped(TENANT, run),
            "shut down": here.flow.shut_down,
            "left by its client": client.leave,
        }
        act = acts[self.word]
        return lambda: (act(), None)[1]


@pytest.mark.parametrize("word", ["cancelled", "stopped", "shut down", "left by its client"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_call_may_end_at_any_await(
    scenario: str, word: str, tmp_path: Path, provider: FaultProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_retries(monkeypatch)
    told = SCENARIOS[scenario]
    async with worlds(tmp_path, provider, told) as here:
        await here.ask(chat(), run="warm-up")
        for early in (True, False):
            for at in range(1, ENOUGH):
                run = f"{'early' if early else 'late'}-{at}"
                provider.forget()
                provider.next(*told.behaviours)
                here.shared.breakers.answered("test")
                happened = await _call(here, told, Happening(word), run, at, early)
                await _check(here, told, run)
                if not happened:
                    break
            else:
                raise AssertionError("the call never ends")


CLIENTS: Final[dict[str, Client]] = {}


async def _call(here: World, scenario: Scenario, happening: Happening, run: str, at: int, early: bool) -> bool:
    """Whether the call came so far that it happened."""
    before = asyncio.all_tasks()
    client = CLIENTS[run] = Client()
    serving = here.flow.serve(CHAT, here.inbound(scenario.body, run), client)
    steps = Steps(serving, at, early)

    async def call() -> None:
        await steps

    task = asyncio.create_task(call())
    steps.act = happening.to(here, run, client, task)
    await asyncio.wait({task}, timeout=10)
    assert task.done(), f"hangs at {steps.suspensions}"
    if not task.cancelled():
        assert task.exception() is None, f"raised at {at}: {task.exception()!r}"
    else:
        assert happening.word == "cancelled", f"cancelled at {at}"
    await here.quiet()
    for _ in range(50):
        if asyncio.all_tasks() <= before | {task}:
            break
        await asyncio.sleep(0.01)
    assert asyncio.all_tasks() <= before | {task}, "a task was left behind"
    return steps.reached


async def _check(here: World, told: Scenario, run: str) -> None:
    client = CLIENTS.pop(run)
    stories = [event for event in here.told.calls if event.request_id == f"req_{here.asked}"]
    assert len(stories) == 1, f"{run}: told {len(stories)} times"
    view = await here.ledger.run(TENANT, run)
    if view is None:
        assert not client.text
        return
    if left := await here.live_holds(run):
        # Of the call itself, if nobody knows how it ended; else of a provider that it was not served by.
        assert stories[0].ending == "unknown" or SCENARIOS["another provider, after one that may have billed it"] is told
        here.clock.now_ms += here.settings.lease_ms
        expired = await here.ledger.expire(10)
        assert {each.hold_id for each in expired} == {"rsv_" + hold.decision_id.removeprefix("bdg_") for hold in left}
        view = await here.run(run)
    assert view.reserved == 0, f"{run}: {stories[0]}"
    words = len(client.text.split())
    if words:
        assert view.committed >= price_of(11, 250_000_000) + price_of(words, 1_000_000_000), f"{run}: {stories[0]}"
    for account in view.accounts:
        assert account.reserved == 0
        assert account.committed == view.committed


# -- bugs -------------------------------------------------------------------------------------------------------------------------


class Bug(Exception):
    pass


# A bug in these is one in the ending of the hold itself: then it is left to its lease.
_ENDING_ITSELF: Final = frozenset({"run", "_end", "_settle"})
_RELAYING: Final = frozenset({relay.__file__, streaming.__file__})


class BugAt:
    """Raises at the k-th line that the relay runs, its stream's included, counted over its whole call."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.lines = 0
        self.function = ""

    def trace(self, frame: FrameType, event: str, _: object) -> "Callable[..., Any] | None":
        # Raised between the body of `async with` and its end, which no code can do, it would leave a timer behind: not in `read_out`.
        if frame.f_code.co_filename not in _RELAYING or frame.f_code.co_name == "read_out":
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._at:
                self.function = frame.f_code.co_name
                raise Bug(f"{self.function}:{frame.f_lineno}")
        return self.trace


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_bug_at_any_line_of_the_relay_leaks_no_hold(
    scenario: str, tmp_path: Path, provider: FaultProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_retries(monkeypatch)
    told = SCENARIOS[scenario]
    tracing = sys.gettrace()
    async with worlds(tmp_path, provider, told) as here:
        for at in range(1, 2_000):
            run, client, bug = f"line-{at}", Client(), BugAt(at)
            provider.forget()
            provider.next(*told.behaviours)
            here.shared.breakers.answered("test")
            CLIENTS[run] = client
            sys.settrace(bug.trace)
            try:
                await here.flow.serve(CHAT, here.inbound(told.body, run), client)
            except Bug:
                pass
            finally:
                sys.settrace(tracing)
            await here.quiet()
            live = await here.live_holds(run)
            left_behind = told.behaviours[:1] == (Behaviour(reset=True),) and told.elsewhere
            if live and here.told.calls[-1].ending != "unknown" and not left_behind:
                assert bug.function in _ENDING_ITSELF, bug.function
            if live:
                here.clock.now_ms += here.settings.lease_ms
                assert len(await here.ledger.expire(10)) == len(live)
            view = await here.ledger.run(TENANT, run)
            assert view is None or view.reserved == 0, bug.function
            words = len(client.text.split())
            # What came at once beyond a slice, with no room for it, is charged by whoever settles; the lease's end knows only what is held.
            if words and view is not None and not (live and told.sliced):
                assert view.committed >= price_of(11, 250_000_000) + price_of(words, 1_000_000_000), bug.function
            assert not here.flow._live
            if not bug.function:
                break
