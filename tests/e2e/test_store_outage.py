"""A Valkey that dies, sleeps or is cut off, at every point of a call: refused in time, then at once; and afterwards the books say what the
provider billed, to the microcent, with nothing held.

One gateway and one server that keeps what it acknowledges (`appendfsync always`), with a link between them that breaks as told.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.demo.replies import Script
from gateway.ledger.redis.scripts import text_of
from tests.support.between import Between
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.load import Seen, Send, caller, chat, microcents, until
from tests.support.provider import Behaviour, FaultProvider
from tests.support.valkey import DURABLE, Server

TIMEOUT_S: Final = 2.0  # twice the longest pause before a connection is made again
AGAIN_WITHIN_S: Final = 30
STREAM: Final = Behaviour(script=Script(tokens=30), pace_s=0.02)


@dataclass(frozen=True, slots=True)
class Site:
    server: Server
    link: Between
    gateway: GatewayProcess

    @property
    def ready(self) -> Any:
        return self.gateway.admin("GET", "/readyz").json()

    @property
    def journalled(self) -> int:
        waiting: int = self.ready["ledger"]["journal"]["waiting"]
        return waiting

    def is_settled(self, *runs: str) -> bool:
        """Serves, with nothing left to be told to the ledger."""
        if not self.ready["ready"] or self.journalled:
            return False
        try:
            return all(self.gateway.run(run)["reserved_usd"] == "0.00" for run in runs)
        except AssertionError as refused:
            if "503" in str(refused):  # it has noticed only now
                return False
            raise


@pytest.fixture(scope="module")
def running_site(folder: Path, shared_provider: FaultProvider) -> Iterator[Site]:
    with Server(folder / "valkey", DURABLE) as server, Between(server.port) as link:
        ledger = {"url": link.url, "timeout": f"{TIMEOUT_S * 1000:.0f}ms"}
        setup = Setup(folder / "gateway", shared_provider.base_url, policy=policy(run_ceiling("$1000")), ledger=ledger)
        gateway = GatewayProcess(setup)
        link.refuse()  # it is not there yet when the gateway starts
        gateway.launch()
        site = Site(server, link, gateway)
        try:
            yield site
            assert "OK" in gateway.penstock("ledger", "verify")
            assert gateway.troubles == []
        finally:
            gateway.stop()


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    shared_provider.default = Behaviour(script=Script(tokens=10))
    return shared_provider


@pytest.fixture
async def site(running_site: Site, provider: FaultProvider) -> Site:
    """It serves."""
    running_site.link.accept()
    await until(lambda: lives(running_site.gateway) and running_site.ready["ready"], 60)
    return running_site


def lives(gateway: GatewayProcess) -> bool:
    try:
        return gateway.admin("GET", "/healthz").status_code == 200
    except httpx.TransportError:
        return False


def is_script(name: str) -> Callable[[Sequence[bytes]], bool]:
    sha = hashlib.sha1(text_of(name).encode(), usedforsecurity=False).hexdigest().encode()
    return lambda command: command[0] == b"EVALSHA" and command[1] == sha


def assert_charged_what_was_billed(site: Site, provider: FaultProvider, calls: int, *runs: str) -> None:
    """Each call once, and no refused one."""
    views = [site.gateway.run(run) for run in runs]
    assert sum(microcents(view["committed_usd"]) for view in views) == provider.bill.microcents > 0
    assert {(view["reserved_usd"], view["unconfirmed_usd"]) for view in views} == {("0.00", "0.00")}
    assert sum(view["calls"] for view in views) == calls == len(provider.calls)


async def refused_in_time(send: Send, run: str) -> None:
    """First when the store's time is up, from then on at once."""
    began_s = time.perf_counter()
    assert (await send(chat(max_tokens=10), run)).code == "ledger_unavailable"
    assert time.perf_counter() - began_s < TIMEOUT_S * 5
    took_s = []
    for _ in range(9):
        began_s = time.perf_counter()
        seen = await send(chat(max_tokens=10), run)
        took_s.append(time.perf_counter() - began_s)
        assert (seen.status, seen.code, seen.headers["x-should-retry"]) == (503, "ledger_unavailable", "false")
    assert sorted(took_s)[4] < TIMEOUT_S / 2, "most are refused without asking the store"


# -- at each point of a call ------------------------------------------------------------------------------------------------------


async def test_a_store_that_is_not_there_at_the_start_is_served_when_it_comes(
    running_site: Site, provider: FaultProvider, run: str
) -> None:
    await until(lambda: lives(running_site.gateway), 60)
    async with caller(running_site.gateway.url) as send:
        assert (await send(chat(max_tokens=10), run)).code == "ledger_unavailable"
        assert running_site.ready["ready"] is False
        running_site.link.accept()
        await until(lambda: running_site.ready["ready"], AGAIN_WITHIN_S)
        assert (await send(chat(max_tokens=10), run)).status == 200
    assert_charged_what_was_billed(running_site, provider, 1, run)


@pytest.mark.parametrize("how", ["frozen", "cut off", "stalled"])
async def test_a_store_that_is_away_at_a_reserve_refuses_in_time_and_keeps_nothing_held(
    site: Site, provider: FaultProvider, run: str, how: str
) -> None:
    away, back = {
        "frozen": (site.server.freeze, site.server.thaw),  # it carries out later what it was asked meanwhile
        "cut off": (site.link.refuse, site.link.accept),
        "stalled": (site.link.stall, site.link.flow),
    }[how]
    async with caller(site.gateway.url) as send:
        assert (await send(chat(max_tokens=10), run)).status == 200
        away()
        try:
            await refused_in_time(send, run)
            assert (await asyncio.to_thread(site.gateway.admin, "GET", "/readyz")).status_code == 503
        finally:
            back()
        await until(lambda: site.is_settled(run), AGAIN_WITHIN_S)
        assert (await send(chat(max_tokens=10), run)).status == 200
    assert_charged_what_was_billed(site, provider, 2, run)


@pytest.mark.parametrize("script", ["reserve", "settle"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_connection_that_breaks_at_a_step_is_nobodys_concern(
    site: Site, provider: FaultProvider, run: str, script: str, when: str
) -> None:
    cut = site.link.cut_before if when == "before" else site.link.cut_after
    async with caller(site.gateway.url) as send:
        for stream in (False, True):
            cut(is_script(script))
            assert (await send(chat(max_tokens=10, stream=stream), run)).finished
    await until(lambda: site.is_settled(run), AGAIN_WITHIN_S)
    assert_charged_what_was_billed(site, provider, 2, run)


@pytest.mark.parametrize("how", ["frozen", "cut off", "stalled"])
async def test_what_ends_while_the_store_is_away_is_charged_once_when_it_is_back(
    site: Site, provider: FaultProvider, run: str, how: str
) -> None:
    """What is frozen or stalled gets the commit twice: the one that was on its way, and the journal's."""
    away, back = {
        "frozen": (site.server.freeze, site.server.thaw),
        "cut off": (site.link.refuse, site.link.accept),
        "stalled": (site.link.stall, site.link.flow),
    }[how]
    provider.default = STREAM
    async with caller(site.gateway.url) as send:
        live = [asyncio.ensure_future(send(chat(str(number), max_tokens=50, stream=True), run)) for number in range(4)]
        await until(lambda: len(provider.calls) == 4, 10)
        away()
        try:
            assert all(seen.finished for seen in await asyncio.gather(*live)), "no client waits for the store"
            await until(lambda: site.journalled == 4, 10)
        finally:
            back()
    await until(lambda: site.is_settled(run), AGAIN_WITHIN_S)
    assert_charged_what_was_billed(site, provider, 4, run)


async def test_what_ended_while_the_store_was_away_outlives_the_gateway(site: Site, provider: FaultProvider, run: str) -> None:
    provider.default = STREAM
    async with caller(site.gateway.url) as send:
        live = [asyncio.ensure_future(send(chat(str(number), max_tokens=50, stream=True), run)) for number in range(4)]
        await until(lambda: len(provider.calls) == 4, 10)
        site.server.freeze()
        try:
            assert all(seen.finished for seen in await asyncio.gather(*live))
            await until(lambda: site.journalled == 4, 10)
            await asyncio.to_thread(site.gateway.kill)
        finally:
            site.server.thaw()
    await asyncio.to_thread(site.gateway.start)
    await until(lambda: site.is_settled(run), AGAIN_WITHIN_S)
    assert_charged_what_was_billed(site, provider, 4, run)


# -- under load -------------------------------------------------------------------------------------------------------------------


async def killed(server: Server) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


async def asleep(server: Server, seconds: float) -> None:
    server.freeze()
    try:
        await asyncio.sleep(seconds)
    finally:
        server.thaw()


HARM: Final[dict[str, Callable[[Server], Any]]] = {
    "killed": killed,
    "asleep": lambda server: asleep(server, 2),
    "asleep for long": lambda server: asleep(server, 10),
}


@pytest.mark.parametrize("harm", ["killed", "asleep", pytest.param("asleep for long", marks=pytest.mark.deep)])
async def test_under_load_it_recovers_by_itself_and_no_acknowledged_charge_is_missing(
    site: Site, provider: FaultProvider, run: str, harm: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=10), pace_s=0.01)
    lanes, over = 6, asyncio.Event()

    async def lane(number: int, send: Send) -> list[Seen]:
        """Calls one after the other, until the last one after the harm was served."""
        seen: list[Seen] = []
        while not (over.is_set() and seen[-1].status == 200):
            seen.append(await send(chat(f"call {len(seen)}", max_tokens=20, stream=len(seen) % 2 == 0), f"{run}.{number}"))
            if seen[-1].status != 200:
                await asyncio.sleep(0.05)
        return seen

    async with caller(site.gateway.url) as send:
        working = [asyncio.ensure_future(lane(number, send)) for number in range(lanes)]
        await until(lambda: len(provider.calls) > 3 * lanes, 20)
        await HARM[harm](site.server)
        over.set()
        seen = [each for done in await asyncio.wait_for(asyncio.gather(*working), 60) for each in done]
    assert {(each.status, each.code) for each in seen} <= {(200, None), (503, "ledger_unavailable")}
    assert all(each.finished for each in seen if each.status == 200)
    runs = [f"{run}.{number}" for number in range(lanes)]
    await until(lambda: site.is_settled(*runs), AGAIN_WITHIN_S)
    assert_charged_what_was_billed(site, provider, sum(each.status == 200 for each in seen), *runs)
