"""One connection to a real Valkey: order, deadlines, losses, and that nothing is left behind."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.ledger.contract import LedgerUnavailable, OutcomeUnknown, Unfit
from gateway.ledger.redis.resp import Asked, Link, ServerError, _Wire
from gateway.store_url import parse
from tests.support.between import Between
from tests.support.scripted import scripted, until
from tests.support.valkey import Server

TIMEOUT_S = 20.0  # no test waits for it: machines may be slow


@pytest.fixture
def between(valkey_url: str) -> Iterator[Between]:
    with Between(urlsplit(valkey_url).port or 6379) as link:
        yield link


@asynccontextmanager
async def linked(url: str, timeout_s: float = TIMEOUT_S) -> AsyncIterator[Link]:
    """A link that is up."""
    store = parse(url)
    link = Link(store.addresses[0], store, timeout_s)
    link.start()
    try:
        await until(lambda: link.up or link.trouble)
        if link.trouble is not None:
            raise link.trouble
        yield link
    finally:
        await link.close()


def asked(link: Link, *args: str | int, within_s: float) -> "asyncio.Future[object]":
    """A command with a deadline of its own."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[object] = loop.create_future()
    assert link.send(Asked(args, future, loop.time() + within_s))
    return future


async def test_each_of_a_thousand_concurrent_calls_gets_its_own_reply(valkey_url: str) -> None:
    async with linked(valkey_url) as link:
        assert await asyncio.gather(*(link.ask("ECHO", number) for number in range(1_000))) == [
            str(number).encode() for number in range(1_000)
        ]


async def test_what_is_asked_for_in_one_turn_goes_out_in_one_write(valkey_url: str) -> None:
    writes: list[int] = []
    async with scripted(lambda _: b"+OK\r\n", writes) as url, linked(url) as link:
        writes.clear()
        await asyncio.gather(*(link.ask("ECHO", number) for number in range(50)))
        assert len(writes) == 1


async def test_a_servers_no_keeps_its_word_and_harms_nobody_else(valkey_url: str) -> None:
    async with linked(valkey_url) as link:
        good, bad, after = link.ask("SET", "a", "x"), link.ask("INCR", "a"), link.ask("GET", "a")
        assert await good == b"OK"
        with pytest.raises(ServerError) as refused:
            await bad
        assert (refused.value.code, await after) == ("ERR", b"x")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("NOSCRIPT No matching script.", "NOSCRIPT"),
        ("OOM command not allowed when used memory > 'maxmemory'. script: ab, on @user_script:1.", "OOM"),
        # As Redis 6.2 says it
        ("ERR Error running script (call to f_ab): @user_script:1: @user_script: 1: -READONLY You can't write", "READONLY"),
        ("ERR value is not an integer or out of range", "ERR"),
    ],
)
def test_the_word_of_an_error_is_known_inside_a_script_too(message: str, code: str) -> None:
    assert ServerError(message).code == code


async def test_a_late_reply_reaches_nobody_else(between: Between) -> None:
    async with linked(between.url) as link:
        between.stall()
        with pytest.raises(OutcomeUnknown):
            await asked(link, "ECHO", "late", within_s=0.02)
        prompt = link.ask("ECHO", "prompt")
        between.flow()
        assert await prompt == b"prompt"


async def test_a_server_that_says_nothing_for_the_whole_time_out_gets_a_new_connection(between: Between) -> None:
    async with linked(between.url, timeout_s=1) as link:
        between.stall()
        first, second = link.ask("ECHO", "1"), link.ask("ECHO", "2")
        for waiting in (first, second):
            with pytest.raises(OutcomeUnknown):
                await waiting
        await until(lambda: not link.up)
        between.flow()
        await until(lambda: link.up)
        assert await link.ask("ECHO", "3") == b"3"


async def test_one_impatient_caller_does_not_cost_the_others_their_connection(between: Between) -> None:
    async with linked(between.url) as link:
        between.stall()
        patient = link.ask("ECHO", "patient")
        for _ in range(3):
            with pytest.raises(OutcomeUnknown):
                await asked(link, "ECHO", "impatient", within_s=0.01)
        between.flow()
        assert await patient == b"patient"
        assert between.connections == 1


async def test_a_caller_who_left_disturbs_nobody(valkey_url: str) -> None:
    async with linked(valkey_url) as link:
        gone, here = link.ask("ECHO", "gone"), link.ask("ECHO", "here")
        gone.cancel()
        assert await here == b"here"


async def test_what_was_under_way_when_the_connection_went_is_unknown(between: Between) -> None:
    async with linked(between.url) as link:
        between.cut_before("ECHO")
        with pytest.raises(OutcomeUnknown, match="went away before it answered"):
            await link.ask("ECHO", "x")
        await until(lambda: link.up)
        assert await link.ask("ECHO", "y") == b"y"


async def test_what_was_never_sent_is_certain(between: Between) -> None:
    async with linked(between.url) as link:
        between.refuse()
        await until(lambda: not link.up)
        with pytest.raises(LedgerUnavailable) as refused:
            link.ask("ECHO", "x")
        assert not isinstance(refused.value, OutcomeUnknown)
        between.accept()
        await until(lambda: link.up)


async def test_it_comes_back_when_the_server_does(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        async with linked(server.url) as link:
            server.kill()
            await until(lambda: not link.up)
            assert str(server.port) in str(link.trouble)
            server.start()
            await until(lambda: link.up)
            assert await link.ask("PING") == b"PONG"


async def test_it_logs_in_chooses_the_database_and_says_who_it_is(tmp_path: Path) -> None:
    users = {"gateway": "on >s3cret ~* &* +@all"}
    with Server(tmp_path, users=users, password="other") as server:
        async with linked(f"redis://gateway:s3cret@127.0.0.1:{server.port}/3") as link:
            info = (await link.ask("CLIENT", "INFO")).decode()
            assert all(part in info.split() for part in ("user=gateway", "db=3", "name=penstock"))
        async with linked(f"redis://:other@127.0.0.1:{server.port}") as link:
            assert await link.ask("ACL", "WHOAMI") == b"default"


@pytest.mark.parametrize("login", [":wr0ng@", "nobody:wr0ng@"])
async def test_a_wrong_password_is_told_and_not_shown(tmp_path: Path, login: str) -> None:
    with Server(tmp_path, password="s3cret") as server:
        with pytest.raises(Unfit) as refused:
            async with linked(f"redis://{login}127.0.0.1:{server.port}"):
                pass
        assert "WRONGPASS" in str(refused.value)
        assert "wr0ng" not in str(refused.value)


async def test_it_speaks_through_a_unix_socket(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        async with linked(f"redis+unix://{server.socket_path}?db=2") as link:
            assert b"db=2" in await link.ask("CLIENT", "INFO")


async def test_it_speaks_tls_and_knows_the_server(valkey_url: str) -> None:
    with Between(urlsplit(valkey_url).port or 6379, tls=True) as between:
        async with linked(between.url) as link:
            assert await asyncio.gather(*(link.ask("ECHO", "x" * 10_000) for _ in range(50))) == [b"x" * 10_000] * 50
        by_address = between.url.replace("localhost", "127.0.0.1")
        async with linked(f"{by_address}&ssl_check_hostname=false") as link:
            assert await link.ask("PING") == b"PONG"
        with pytest.raises(LedgerUnavailable, match=r"can't be reached: .*IP address mismatch"):
            async with linked(by_address):
                pass
        with pytest.raises(LedgerUnavailable, match=r"can't be reached: .*self-signed certificate"):
            async with linked(f"rediss://localhost:{between.port}"):
                pass


async def test_a_plain_server_is_not_taken_for_one_with_tls(valkey_url: str) -> None:
    with pytest.raises(LedgerUnavailable):
        async with linked(valkey_url.replace("redis://", "rediss://"), timeout_s=2):
            pass


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n+AGAIN\r\n"])
async def test_what_is_no_reply_ends_the_connection(nonsense: bytes) -> None:
    async with scripted(lambda command: nonsense if command[0] == b"ECHO" else b"+OK\r\n") as url, linked(url) as link:
        trusted = link.ask("ECHO", "x")
        await asyncio.gather(trusted, return_exceptions=True)
        await until(lambda: not link.up)


async def test_a_name_that_the_server_does_not_take_is_no_trouble() -> None:
    async with (
        scripted(lambda command: b"-ERR unknown command\r\n" if command[0] == b"CLIENT" else b"+OK\r\n") as url,
        linked(url) as link,
    ):
        assert await link.ask("PING") == b"OK"


async def test_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match=r"127\.0\.0\.1:1 can't be reached"):
        async with linked("redis://127.0.0.1:1"):
            pass
    with pytest.raises(LedgerUnavailable, match=r"no\.sock can't be reached"):
        async with linked(f"redis+unix://{tmp_path / 'no.sock'}"):
            pass


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("when", ["up", "asked", "away", "connecting"])
async def test_nothing_is_left_when_it_is_closed(between: Between, when: str) -> None:
    store = parse(between.url)
    link = Link(store.addresses[0], store, TIMEOUT_S)
    asking: Awaitable[object] | None = None
    if when == "away":
        between.refuse()
    elif when == "connecting":
        between.stall()
    link.start()
    if when == "away":
        await until(lambda: link.trouble)
    elif when == "connecting":
        await until(lambda: between.connections)
    else:
        await until(lambda: link.up)
    if when == "asked":
        between.stall()
        asking = link.ask("ECHO", "x")
    await link.close()
    await link.close()
    if asking is not None:
        with pytest.raises(OutcomeUnknown):
            await asking
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()


async def test_a_connection_that_is_given_up_just_as_it_is_made_holds_up_nobody(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the time is up in the very turn in which the server answers: event loops differ in what they tell then."""
    store = parse(valkey_url)
    made = _Wire.connection_made

    def connection_made(wire: _Wire, transport: asyncio.BaseTransport) -> None:
        made(wire, transport)
        asking.cancel()

    monkeypatch.setattr(_Wire, "connection_made", connection_made)
    asking = asyncio.ensure_future(Link(store.addresses[0], store, TIMEOUT_S).once("PING"))
    await asyncio.wait([asking], timeout=TIMEOUT_S)
    assert asking.cancelled()
