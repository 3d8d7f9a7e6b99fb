"""Large requests and answers: which thread works on them, and that small calls pass."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.meter import Meter
from gateway.core.policy import RunsPolicy
from gateway.core.profiles import OnDisconnect, Profile
from gateway.core.tokens import Tally, TokenCounter
from gateway.core.values import RunTerms
from gateway.large import HUGE_BYTES
from gateway.wire.chat import DIALECT as CHAT
from gateway.wire.dialect import Dialect
from gateway.wire.headers import RequestHeaders
from gateway.wire.request import Request
from tests.support.flow import TENANT, Client, World, chat, world
from tests.support.provider import Behaviour, FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

COUNT = Profile("count", "max_tokens", stream_options=True, on_disconnect=OnDisconnect.COUNT)
MAIN = threading.main_thread().name


class Places:
    """On which thread each step of a call was done: by the first word of its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        self.dialect = replace(CHAT, read=self.noting("read", CHAT.read), read_answer=self.noting("answer", CHAT.read_answer))
        monkeypatch.setattr(TokenCounter, "finish", self.noting("count", TokenCounter.finish))
        monkeypatch.setattr(Request, "fingerprint", self.noting("fingerprint", Request.fingerprint))

    def noting(self, step: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            tokenizes = not isinstance(args[-1], Tally) or args[-1].pending_chars
            if tokenizes:
                self.seen.append((step, threading.current_thread().name.partition("-")[0]))
            return real(*args)

        return noted

    def of(self, step: str) -> set[str]:
        return {place for each, place in self.seen if each == step}


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    return Places(monkeypatch)


def words(size: int) -> str:
    return "lorem ipsum " * (size // 12)


@pytest.mark.parametrize(("size", "place"), [(500_000, "long"), (5_000_000, "huge")])
async def test_a_large_body_is_read_hashed_and_counted_in_threads_for_such(
    size: int, place: str, places: Places, tmp_path: Path, provider: FaultProvider
) -> None:
    repeats = policy(runs=RunsPolicy(terms=RunTerms(same_request=5, within_calls=20)))
    async with world(tmp_path, provider.base_url, repeats) as here:
        got = await here.ask(chat(words(size)), dialect=places.dialect)
        assert got.status in (200, 400), got.body  # read and counted; above a million tokens no model takes it
        for step in ("read", "fingerprint", "count"):
            assert places.of(step) == {place}, step


async def test_a_small_call_takes_no_other_thread(places: Places, tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        assert (await here.ask(chat(words(5_000)), dialect=places.dialect)).status == 200
        for step in ("read", "count", "answer"):
            assert places.of(step) == {MAIN.partition("-")[0]}, step


async def test_what_a_refusal_counts_for_its_alternatives_is_counted_there_too(
    places: Places, tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, policy(budget("run-ceiling", "run", limit=1))) as here:
        got = await here.ask(chat(words(300_000)), dialect=places.dialect)
        assert got.status == 402, got.body
        assert got.json["alternatives"]
        assert places.of("count") == {"long"}


async def test_a_large_answer_is_metered_in_threads_for_such(places: Places, tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        for padding, place in ((300_000, "long"), (3_000_000, "huge")):
            provider.next(Behaviour(padding=padding))
            got = await here.ask(chat(), dialect=places.dialect)
            assert got.status == 200
            assert len(got.body) > padding
            assert places.of("answer") == {place}
            places.seen.clear()


def held(by: threading.Event, entered: list[int]) -> Dialect:
    """Reading takes until the event."""

    def read(raw: bytes, headers: RequestHeaders) -> Request:
        entered.append(len(raw))
        assert by.wait(60)
        return CHAT.read(raw, headers)

    return replace(CHAT, read=read)


async def test_small_and_long_calls_pass_huge_ones_that_take_their_time(tmp_path: Path, provider: FaultProvider) -> None:
    event, entered = threading.Event(), list[int]()
    slow = held(event, entered)
    async with world(tmp_path, provider.base_url) as here:
        huge = [asyncio.create_task(here.ask(chat(words(HUGE_BYTES + 100)), run="huge", dialect=slow)) for _ in range(4)]
        try:
            assert [(await here.ask(chat(words(size)), run="small")).status for size in (10, 100_000, 10, 500_000)] == [200] * 4
            assert len(entered) == 1, "one at a time"
        finally:
            event.set()
        assert [got.status for got in await asyncio.gather(*huge)] == [200] * 4


async def test_too_many_huge_ones_are_refused_before_they_are_read(tmp_path: Path, provider: FaultProvider) -> None:
    event, entered = threading.Event(), list[int]()
    slow, body = held(event, entered), chat(words(HUGE_BYTES + 100))
    roomy = policy(budget("run-ceiling", "run", limit=1_000 * USD))

    async def asked(here: World) -> Client:
        return await here.ask(body, run="huge", dialect=slow)

    async with world(tmp_path, provider.base_url, roomy) as here:
        huge = [asyncio.create_task(asked(here)) for _ in range(32)]
        await asyncio.sleep(0)
        try:
            refused = await asked(here)
            assert (refused.status, refused.json["code"]) == (503, "overloaded")
            here.metrics.flush()
            assert b'penstock_shed_total{reason="huge"} 1.0' in here.metrics.exposition()
            assert (await here.ask(chat(words(500_000)))).status == 200
        finally:
            event.set()
        assert {got.status for got in await asyncio.gather(*huge)} == {200}
        assert (await asked(here)).status == 200


async def test_a_gateway_that_meters_a_large_answer_when_its_client_leaves_still_settles_it_once(
    tmp_path: Path, provider: FaultProvider
) -> None:
    event, entered = threading.Event(), threading.Event()

    def read_answer(body: bytes, meter: Meter) -> None:
        entered.set()
        assert event.wait(60)
        CHAT.read_answer(body, meter)

    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(padding=300_000))
        client = Client()
        task = asyncio.create_task(here.ask(chat(), client=client, dialect=replace(CHAT, read_answer=read_answer)))
        await asyncio.to_thread(entered.wait, 60)
        client.leave()
        event.set()
        await task
        view = await here.run()
        assert view.reserved == 0
        assert view.committed == provider.bill.microcents


@pytest.mark.parametrize("why", ["its run is stopped", "the gateway shuts down", "its client leaves"])
async def test_an_answer_that_is_there_in_full_is_charged_what_it_cost_though_the_call_is_ended_while_it_is_metered(
    why: str, tmp_path: Path, provider: FaultProvider
) -> None:
    event, entered = threading.Event(), threading.Event()

    def read_answer(body: bytes, meter: Meter) -> None:
        entered.set()
        assert event.wait(60)
        CHAT.read_answer(body, meter)

    async with world(tmp_path, provider.base_url, profile=COUNT) as here:
        provider.next(Behaviour(padding=300_000))
        client = Client()
        asked = here.ask(chat(max_tokens=900), client=client, dialect=replace(CHAT, read_answer=read_answer))
        task = asyncio.create_task(asked)
        await asyncio.to_thread(entered.wait, 60)
        if why == "its run is stopped":
            here.flow.run_stopped(TENANT, "r1")
        elif why == "the gateway shuts down":
            here.flow.shut_down()
        else:
            client.leave()
        await asyncio.sleep(0)
        event.set()
        await task
        view = await here.run()
        assert (view.reserved, view.committed) == (0, provider.bill.microcents)


# -- what is kept -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400])
async def test_once_the_provider_answers_nothing_of_a_large_request_is_kept_but_its_texts(
    status: int, tmp_path: Path, provider: FaultProvider
) -> None:
    provider.next(Behaviour(status=None if status == 200 else status))
    kept: list[tuple[int, int, int, int]] = []

    async with world(tmp_path, provider.base_url) as here:
        inbound = here.inbound(chat(words(300_000), stream=status == 200))
        client = Client()

        async def noted(data: bytes) -> None:
            del data
            [relay] = here.flow._live
            errand = relay._errand
            kept.append((len(inbound.body), len(errand.request.body), len(errand.asked.body), len(errand.asked.fragments)))
            client.leave()

        client.on_write = noted
        await here.flow.serve(CHAT, inbound, client)
        assert len(provider.requests[-1].body) > 300_000
        assert len(inbound.body) == 0
        assert kept == ([(0, 0, 0, 0)] if status == 200 else [])
        assert client.status == status


async def test_a_large_request_is_sent_again_as_long_as_nobody_answered_it(tmp_path: Path, provider: FaultProvider) -> None:
    """The provider refuses it once for its load: the second attempt has the whole of it."""
    provider.next(Behaviour(status=503))
    async with world(tmp_path, provider.base_url) as here:
        assert (await here.ask(chat(words(300_000)))).status == 200
    first, second = provider.requests
    assert first.body == second.body
    assert len(second.body) > 300_000
