"""Streams in budgets that hold slices: what is held stays ahead of what is seen, and a stream for which no more can be held ends whole."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from gateway.core.money import price_of
from gateway.core.scopes import Amounts
from gateway.core.slices import FIRST, ON_THE_WAY
from gateway.demo.replies import Script
from gateway.ledger.contract import CallRecord, HoldState, OutcomeUnknown
from gateway.ledger.sqlite.ledger import SqliteLedger
from tests.support.flow import TENANT, Broken, Client, World, chat, model_of, world
from tests.support.pricing import BIG
from tests.support.provider import Behaviour, FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

INPUT_TOKENS: Final = 11
CAP: Final = 8_000
RUN: Final = "run-ceiling|run=r1|lifetime|usd"
MONTH: Final = "month||lifetime|usd"


def cost(output_tokens: int) -> int:
    """Of a call of `big-model` with so much output."""
    return price_of(INPUT_TOKENS, 250_000_000) + price_of(output_tokens, 1_000_000_000)


def long(tokens: int) -> Behaviour:
    """So slowly that few events come at once: what has come was billed, whatever is held."""
    return Behaviour(script=Script(tokens=tokens), tokens_per_event=10, pace_s=0.002)


def stream(**fields: Any) -> bytes:
    return chat(stream=True, max_tokens=CAP, **fields)


@asynccontextmanager
async def slicing(folder: Path, provider: FaultProvider, limit: int = 5 * USD, **more: Any) -> AsyncIterator[World]:
    rules = policy(budget("run-ceiling", "run", limit=limit, sliced=True), budget("month", limit=100 * USD))
    async with world(folder, provider.base_url, rules, **more) as here:
        yield here


async def settled(here: World) -> CallRecord:
    record = await here.record()
    assert (await reserved(here), await reserved(here, MONTH)) == (0, 0)
    return record


async def reserved(here: World, key: str = RUN) -> int:
    found = await here.ledger.account(TENANT, key)
    return 0 if found is None else found.balance.reserved


class Gate:
    """A ledger whose extensions wait, and may be refused."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.refuses = 0  # so many of them, the first
        self.asked = 0

    def before(self, real: SqliteLedger) -> Any:
        async def extend(*asked: Any) -> bool:
            self.asked += 1
            number = self.asked
            await self.open.wait()
            return False if number <= self.refuses else await real.extend(*asked)

        return Broken(real, {"extend": extend})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(0.005)


def watched(client: Client, look: Callable[[int], Awaitable[None]]) -> Client:
    async def on_write(_: bytes) -> None:
        await look(len(client.text.split()))

    client.on_write = on_write
    return client


# -- while there is room ------------------------------------------------------------------------------------------------------------


async def test_a_stream_holds_its_first_slice_where_the_budget_says_so_and_its_worst_case_elsewhere(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with slicing(tmp_path, provider) as here:
        provider.next(Behaviour(stall_after_events=3))
        asking, client = here.asking(stream())
        await until(lambda: bool(client.text))
        assert (await reserved(here), await reserved(here, MONTH)) == (cost(FIRST), cost(CAP))
        assert client.headers["X-Budget-Remaining-USD"] == "4.9897325"
        here.flow.run_stopped(TENANT, "r1")
        await asking


async def test_what_is_held_is_never_less_than_what_was_relayed(tmp_path: Path, provider: FaultProvider) -> None:
    async with slicing(tmp_path, provider) as here:
        held: list[tuple[int, int, int]] = []

        async def look(words: int) -> None:
            if here.flow._live and not client.whole:
                held.append((words, await reserved(here), await reserved(here, MONTH)))

        client = Client()
        watched(client, look)
        provider.next(long(6_000))
        asking, _ = here.asking(stream(), client=client)
        await asking
        record = await settled(here)
        assert len(client.text.split()) == 6_000
        assert (record.charged.usd, record.ending, record.usage.source) == (cost(6_000), "completed", "provider")
        live = [each for each in held if each[1]]
        assert len(live) > 200
        assert all(sliced >= cost(words) for words, sliced, _ in live)
        assert {whole for _, _, whole in live} == {cost(CAP)}
        assert len({sliced for _, sliced, _ in live}) < 8, "few extensions, each larger than the one before"
        assert here.told.overruns == []


async def test_an_answer_shorter_than_half_its_slice_asks_for_nothing_more(tmp_path: Path, provider: FaultProvider) -> None:
    gate = Gate()
    async with slicing(tmp_path, provider, ledger=gate.before) as here:
        provider.next(long(400))
        got = await here.ask(stream())
        assert got.whole
        assert gate.asked == 0
        assert (await settled(here)).charged.usd == cost(400)


async def test_what_cannot_be_metered_as_it_comes_is_held_whole(tmp_path: Path, provider: FaultProvider) -> None:
    for body, models in ((chat(max_tokens=CAP), None), (stream(), [model_of(BIG, reasoning=True)])):
        async with slicing(tmp_path / str(bool(models)), provider, models=models) as here:
            provider.next(Behaviour(silent=True))
            asking, _ = here.asking(body)
            await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
            assert await reserved(here) == cost(CAP)
            here.flow.shut_down()
            await asking
            provider.forget()


async def test_the_stream_goes_on_while_more_is_asked_for_and_waits_only_where_it_has_come_to_what_is_held(
    tmp_path: Path, provider: FaultProvider
) -> None:
    gate = Gate()
    async with slicing(tmp_path, provider, ledger=gate.before) as here:
        provider.next(long(3_000))
        asking, client = here.asking(stream())
        await until(lambda: client.body.count(b"\n\n") >= (FIRST - ON_THE_WAY) // 10)
        await asyncio.sleep(0.1)
        assert gate.asked == 1
        assert len(client.text.split()) <= FIRST
        gate.open.set()
        await asking
        assert len(client.text.split()) == 3_000
        assert (await settled(here)).charged.usd == cost(3_000)


async def test_a_stream_that_waited_for_all_that_it_may_have_goes_on_when_it_is_granted(
    tmp_path: Path, provider: FaultProvider
) -> None:
    gate = Gate()
    async with slicing(tmp_path, provider, ledger=gate.before) as here:
        provider.next(long(1_500))
        asking, client = here.asking(
            chat(stream=True, max_tokens=1_600)
        )  # less than a second slice: the first extension is the last
        await until(lambda: client.body.count(b"\n\n") >= (FIRST - ON_THE_WAY) // 10)
        await asyncio.sleep(0.1)  # it waits by now; if not, this test sees less, and is none the worse
        gate.open.set()
        await asking
        assert (client.whole, client.errors, len(client.text.split())) == (True, [], 1_500)
        assert (await settled(here)).ending == "completed"


async def test_a_tokenizer_that_is_not_public_is_held_for_by_what_would_be_charged(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with slicing(tmp_path, provider, limit=cost(1_400), models=[model_of(BIG, encoding=None)]) as here:
        provider.next(long(6_000))
        got = await here.ask(stream())
        record = await settled(here)
        assert record.ending == "output_exceeded"
        assert len(got.errors) == 1
        assert record.charged.usd <= cost(1_400)
        assert record.usage.output_tokens > len(got.text.split())


async def test_a_provider_that_ignores_the_cap_is_held_for_beyond_it_in_every_account(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with slicing(tmp_path, provider) as here:
        provider.next(Behaviour(script=Script(tokens=5_000, ignores_cap=True), tokens_per_event=20, pace_s=0.001))
        got = await here.ask(chat(stream=True, max_tokens=2_000))
        record = await settled(here)
        assert len(got.text.split()) == 5_000
        held = dict(record.lines)
        assert held[RUN] == held[MONTH] > cost(4_000)
        assert record.charged.usd == cost(5_000)


# -- without room -------------------------------------------------------------------------------------------------------------------


async def test_a_stream_for_which_no_more_can_be_held_ends_for_its_length_under_the_ceiling(
    tmp_path: Path, provider: FaultProvider
) -> None:
    limit = cost(2_000)
    async with slicing(tmp_path, provider, limit=limit) as here:
        provider.next(long(6_000))
        got = await here.ask(stream(stream_options={"include_usage": True}))
        record = await settled(here)
        words = len(got.text.split())
        assert FIRST < words <= 2_000
        assert got.whole
        assert [event["choices"][0]["finish_reason"] for event in got.events if event.get("choices")][-1] == "length"
        [error] = got.errors
        assert error["code"] == "budget_exceeded"
        assert "run-ceiling" in error["message"]
        assert (record.ending, record.charged.usd) == ("output_exceeded", cost(words))
        assert record.charged.usd <= limit
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.left) == 1)  # nobody reads on


async def test_a_smaller_step_is_taken_where_a_large_one_has_no_room(tmp_path: Path, provider: FaultProvider) -> None:
    async with slicing(tmp_path, provider, limit=cost(FIRST + 300)) as here:
        provider.next(long(6_000))
        got = await here.ask(stream())
        assert FIRST < len(got.text.split()) <= FIRST + 300
        assert (await settled(here)).ending == "output_exceeded"


async def test_room_that_comes_back_in_time_keeps_the_stream_going(tmp_path: Path, provider: FaultProvider) -> None:
    gate = Gate()
    gate.refuses = 2  # what is asked for ahead of need: the large step, and the small one
    async with slicing(tmp_path, provider, ledger=gate.before) as here:
        provider.next(long(1_500))
        asking, client = here.asking(stream())
        await until(lambda: client.body.count(b"\n\n") >= (FIRST - ON_THE_WAY) // 10)
        gate.open.set()
        await asking
        assert len(client.text.split()) == 1_500
        assert not client.errors


async def test_parallel_streams_share_a_ceiling_that_one_worst_case_would_fill(tmp_path: Path, provider: FaultProvider) -> None:
    limit = cost(CAP) + cost(2_000)
    async with slicing(tmp_path, provider, limit=limit) as here:
        provider.default = long(500)
        done = await asyncio.gather(*[here.ask(stream(user=f"u{number}"), run="r1") for number in range(8)])
        assert all(len(each.text.split()) == 500 and not each.errors for each in done)
        await here.quiet()
        assert (await here.run("r1")).committed == 8 * cost(500) <= limit


# -- without its client, its run, its gateway ----------------------------------------------------------------------------------------


async def test_an_answer_whose_client_left_is_read_on_as_far_as_more_can_be_held(tmp_path: Path, provider: FaultProvider) -> None:
    for limit, ending, committed in ((cost(4_000), "client_left", cost(3_000)), (cost(1_100), "client_left", None)):
        provider.forget()
        async with slicing(tmp_path / str(limit), provider, limit=limit) as here:
            provider.next(long(3_000))
            asking, client = here.asking(stream())
            await until(lambda client=client: bool(client.text))  # type: ignore[misc]
            client.leave()
            await asking
            record = await settled(here)
            assert record.ending == ending
            if committed is not None:
                assert record.charged.usd == committed
            assert record.charged.usd <= limit


async def test_a_call_of_which_nobody_knows_what_it_cost_is_charged_in_each_account_what_it_holds_there(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with slicing(tmp_path, provider) as here:
        provider.next(Behaviour(silent=True))
        asking, _ = here.asking(stream())
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
        here.flow.run_stopped(TENANT, "r1")
        await asking
        [left] = await here.ledger.holds(TENANT, "r1", 10)
        assert left.state is HoldState.LIVE
        here.clock.now_ms += here.settings.lease_ms
        assert len(await here.ledger.expire(10)) == 1
        charged = [await here.ledger.account(TENANT, key) for key in (RUN, MONTH)]
        assert [each.balance.committed for each in charged if each] == [cost(FIRST), cost(CAP)]


async def test_an_extension_that_is_under_way_when_the_stream_ends_leaves_nothing_held(
    tmp_path: Path, provider: FaultProvider
) -> None:
    gate = Gate()
    async with slicing(tmp_path, provider, ledger=gate.before) as here:
        provider.next(long(700))
        got = await here.ask(stream())
        assert got.whole
        assert gate.asked == 1
        gate.open.set()
        await here.quiet()
        assert (await reserved(here), await reserved(here, MONTH)) == (0, 0)
        assert (await settled(here)).charged.usd == cost(700)


async def test_extensions_whose_answers_are_lost_hold_no_more_than_the_worst_case(
    tmp_path: Path, provider: FaultProvider
) -> None:
    asked: list[Amounts] = []

    def lossy(real: SqliteLedger) -> Any:
        async def extend(*given: Any) -> bool:
            extended = await real.extend(*given)
            asked.append(given[4])
            if len(asked) % 2:
                raise OutcomeUnknown("the connection broke")
            return extended

        return Broken(real, {"extend": extend})

    async with slicing(tmp_path, provider, ledger=lossy) as here:
        most = 0

        async def look(_: int) -> None:
            nonlocal most
            most = max(most, await reserved(here))

        provider.next(long(CAP - 100))
        asking, client = here.asking(stream(), client=watched(Client(), look))
        await asking
        assert len(client.text.split()) == CAP - 100
        assert len(asked) > 2
        assert most == cost(CAP)
        await settled(here)
