"""Holds under another server's hooks: on a real ledger, without that server."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import app
from gateway.core.scopes import Caller
from gateway.core.values import Directives, Ending
from gateway.events import Events
from gateway.integrations.attempts import Door, Session, Wanted
from gateway.integrations.exchanges import CURRENT, Exchange, Exchanges
from gateway.ledger.contract import RunView
from gateway.office import Office
from gateway.wire import chat
from gateway.wire.headers import NO_HEADERS
from gateway.wire.problem import Refused, problem
from gateway.wire.refusing import Answer
from tests.support.config import Setup, ladder, policy, run_ceiling

CALLER = Caller("default", "key", "r1", "r1")
SERVED = ("big-model", "small-model")
ONE = 22_750  # microcents: 11 tokens in and 20 out of big-model, or less in


class Here:
    def __init__(self, office: Office) -> None:
        self.office = office
        self.door = Door(office)

    def session(self, served: Collection[str] = SERVED, downgrade: bool = True) -> Session:
        return self.door.session(CALLER, Directives(downgrade=downgrade), "req", lambda: served)

    async def run(self) -> RunView:
        view = await self.office.ledger.run("default", "r1")
        assert view is not None
        return view


@asynccontextmanager
async def here(folder: Path, **sections: Any) -> AsyncIterator[Here]:
    rules = policy(*sections.pop("budgets", [run_ceiling("$1")]), **sections)
    config, read = app.load(Setup(folder, "http://127.0.0.1:9/v1", rules).write())
    lines: list[bytes] = []
    events = Events(lines.append)
    office = Office(config, read, events)
    await office.open()
    try:
        yield Here(office)
    finally:
        await office.close()
        events.close()


def wanted(cap: int = 20, model: str = "big-model", stream: bool = False, **more: Any) -> Wanted:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "tell me about rivers"}],
        "max_tokens": cap,
        "stream": stream,
        **more,
    }
    raw = orjson.dumps(body)
    return Wanted(chat.DIALECT, chat.DIALECT.read(raw, NO_HEADERS), model, len(raw))


def answer(prompt: int = 11, completion: int = 20) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return orjson.dumps({"choices": [], "usage": usage})


def event(text: str = "", **more: Any) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}}], **more}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


# -- attempts ---------------------------------------------------------------------------------------------------------------------


async def test_the_first_attempt_takes_the_requests_hold_over(tmp_path: Path) -> None:
    async with here(tmp_path) as h:
        session = h.session()
        plan = await session.admit(wanted())
        assert (plan.model, plan.output_cap) == ("big-model", 20)
        attempt = await session.begin(wanted())
        assert (await h.run()).calls == 1
        await attempt.answered(answer())
        session.over(200)
        view = await h.run()
        assert (view.committed, view.reserved) == (ONE, 0)


async def test_an_attempt_that_may_cost_more_than_is_held_has_a_hold_of_its_own(tmp_path: Path) -> None:
    async with here(tmp_path) as h:
        session = h.session()
        await session.admit(wanted(20))
        await session.begin(wanted(200))
        view = await h.run()
        assert view.reserved > 200 * 1_000
        assert view.calls == 1, "the one of the request was given back"


async def test_an_attempt_at_a_cheaper_model_is_charged_as_that_model(tmp_path: Path) -> None:
    async with here(tmp_path) as h:
        session = h.session()
        await session.admit(wanted())
        attempt = await session.begin(wanted(model="small-model"))
        await attempt.answered(answer())
        assert (await h.run()).committed == 11 * 15 + 20 * 60


async def test_an_attempt_in_other_accounts_has_a_hold_of_its_own(tmp_path: Path) -> None:
    budgets = [run_ceiling("$1"), {"name": "by-model", "scope": "model", "limit": "$1", "window": "day"}]
    async with here(tmp_path, budgets=budgets) as h:
        session = h.session()
        await session.admit(wanted())
        attempt = await session.begin(wanted(model="small-model"))
        assert "by-model|model=small-model" in "".join(charge.ceiling.account.key for charge in attempt.plan.charges)
        assert (await h.run()).calls == 1


async def test_an_attempt_after_one_that_may_have_been_billed_is_a_second_hold(tmp_path: Path) -> None:
    async with here(tmp_path) as h:
        session = h.session()
        await session.admit(wanted())
        (await session.begin(wanted())).broke_off()
        second = await session.begin(wanted())
        view = await h.run()
        assert (view.calls, view.reserved) == (2, 2 * second.plan.cost_max.usd)


async def test_an_attempt_that_nobody_ended_is_ended_by_the_next(tmp_path: Path) -> None:
    async with here(tmp_path) as h:
        session = h.session()
        await session.admit(wanted(stream=True))
        first = await session.begin(wanted(stream=True))
        first.relay(event("two words"))
        second = await session.begin(wanted(stream=True))
        await first.written()
        assert (first.live, second.live) == (False, True)
        assert 0 < (await h.run()).committed < ONE


async def test_what_was_refused_or_never_sent_is_given_back(tmp_path: Path) -> None:
    async with here(tmp_path) as h:
        session = h.session()
        await session.admit(wanted())
        for end in ("refused", "not_sent"):
            attempt = await session.begin(wanted())
            getattr(attempt, end)()
            await attempt.written()
        view = await h.run()
        assert (view.committed, view.reserved, view.calls) == (0, 0, 0)


async def test_a_stream_is_charged_by_the_usage_in_it(tmp_path: Path) -> None:
    async with here(tmp_path) as h:
        session = h.session()
        await session.admit(wanted(stream=True))
        attempt = await session.begin(wanted(stream=True))
        attempt.relay(event("words"))
        attempt.relay(event(usage={"prompt_tokens": 11, "completion_tokens": 20, "total_tokens": 31}))
        attempt.end(Ending.COMPLETED)
        await attempt.written()
        assert (await h.run()).committed == ONE


async def test_a_stream_holds_its_whole_worst_case_where_budgets_are_sliced(tmp_path: Path) -> None:
    async with here(tmp_path, budgets=[run_ceiling("$1", reservation={"basis": "sliced"})]) as h:
        plan = await h.session().admit(wanted(8_000, stream=True))
        assert plan.slice is None
        assert (await h.run()).reserved == plan.cost_max.usd


async def test_more_output_than_is_held_is_noticed(tmp_path: Path) -> None:
    async with here(tmp_path) as h:
        session = h.session()
        await session.admit(wanted(stream=True))
        attempt = await session.begin(wanted(stream=True))
        attempt.relay(event("river " * 15))
        assert not attempt.exceeds
        attempt.relay(event("river " * 15))
        assert attempt.exceeds


async def test_a_call_of_another_kind_that_serves_an_attempt_has_no_hold(tmp_path: Path) -> None:
    async with here(tmp_path) as h:
        session = h.session()
        await session.admit(wanted())
        attempt = await session.begin(wanted())
        assert not attempt.is_served_by(chat.DIALECT, "small-model", lambda *_: True)
        assert attempt.is_served_by(chat.DIALECT, "big-model", lambda *_: True)
        assert not attempt.is_served_by(chat.DIALECT, "big-model", lambda *_: True), "once"


# -- before it starts -------------------------------------------------------------------------------------------------------------


async def test_a_downgrade_goes_only_to_what_the_server_has(tmp_path: Path) -> None:
    sections = {"budgets": [run_ceiling("$0.01")], "models": ladder(**{"big-model": ["small-model"]})}
    async with here(tmp_path, **sections) as h:
        assert (await h.session().admit(wanted(2_000))).model == "small-model"
        with pytest.raises(Refused) as refused:
            await h.session(served=("big-model",)).admit(wanted(2_000))
        assert refused.value.problem.alternatives == ()


async def test_whatever_await_is_cancelled_nothing_stays_held(tmp_path: Path) -> None:
    async with here(tmp_path) as h:
        for turns in range(40):
            session = h.session()

            async def request(session: Session = session) -> None:
                await session.admit(wanted())
                attempt = await session.begin(wanted(200))
                attempt.not_sent()

            task = asyncio.create_task(request())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            for attempt in session.live:
                attempt.not_sent()
            session.over(0)
        for _ in range(200):
            if (await h.run()).reserved == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(await h.run())


# -- exchanges --------------------------------------------------------------------------------------------------------------------


class Served:
    """An ASGI server's side of one exchange."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def take(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    def headers(self, name: bytes) -> list[bytes]:
        return [value for known, value in self.sent[0]["headers"] if known == name]


async def exchanged(application: Any) -> Served:
    served = Served()

    async def nothing() -> Any:
        return {"type": "http.disconnect"}

    await Exchanges(application)({"type": "http"}, nothing, served.take)
    return served


def says(status: int, *bodies: bytes, whole: bool = True, before: Any = None) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        exchange = CURRENT.get()
        assert exchange is not None
        if before is not None:
            await before(exchange)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"9"), (b"x-budget-decision", b"forged")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for place, body in enumerate(bodies):
            await send({"type": "http.response.body", "body": body, "more_body": not whole or place < len(bodies) - 1})

    return application


async def refused(exchange: Exchange) -> None:
    said = problem("call_exceeds_limit", "Too much.")
    exchange.answer = Answer(402, said.headers(), said.body())


async def test_a_refusal_takes_the_place_of_what_the_server_says_went_wrong() -> None:
    served = await exchanged(says(500, b"its own", b" words", before=refused))
    assert (served.status, orjson.loads(served.body)["code"]) == (402, "call_exceeds_limit")
    assert served.headers(b"content-type") == [b"application/problem+json"]
    assert served.headers(b"content-length") == [b"%d" % len(served.body)]
    assert served.headers(b"x-should-retry") == [b"false"]


async def test_an_answer_that_came_all_the_same_stays() -> None:
    served = await exchanged(says(200, b"an answer", before=refused))
    assert (served.status, served.body) == (200, b"an answer")


@pytest.mark.parametrize(("whole", "charged"), [(True, False), (False, True)])
async def test_the_end_of_an_exchange_ends_what_is_still_held(tmp_path: Path, whole: bool, charged: bool) -> None:
    async with here(tmp_path) as h:

        async def begin(exchange: Exchange) -> None:
            exchange.session = h.session()
            await exchange.session.admit(wanted())
            if charged:
                await exchange.session.begin(wanted())

        served = await exchanged(says(200, b"some", whole=whole, before=begin))
        assert served.headers(b"x-budget-decision") == [b"allow"]
        assert served.headers(b"x-run-id") == [b"r1"]
        for _ in range(200):
            view = await h.run()
            if view.reserved == 0:
                break
            await asyncio.sleep(0.01)
        assert (view.reserved, view.committed > 0) == (0, charged)


async def test_exchanges_know_nothing_of_each_other() -> None:
    await exchanged(says(200, b"x"))
    assert CURRENT.get() is None
