"""Addresses of Redis and Valkey stores."""

import pytest

from gateway.store_url import Address, StoreUrl, Tls, Topology, parse
from gateway.yaml_source import Unexpected


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("redis://h", StoreUrl(Topology.STANDALONE, (("h", 6379),))),
        ("redis://h:1/", StoreUrl(Topology.STANDALONE, (("h", 1),))),
        ("redis://h:1/3", StoreUrl(Topology.STANDALONE, (("h", 1),), db=3)),
        ("redis://[::1]:7/3", StoreUrl(Topology.STANDALONE, (("::1", 7),), db=3)),
        ("redis://:p%40%2F%3A%23@h", StoreUrl(Topology.STANDALONE, (("h", 6379),), password="p@/:#")),
        ("redis://u%40x:p:q@h", StoreUrl(Topology.STANDALONE, (("h", 6379),), user="u@x", password="p:q")),
        ("redis+unix:///run/a%20b.sock?db=2", StoreUrl(Topology.STANDALONE, (("/run/a b.sock", 0),), db=2)),
        ("redis+unix://u:p@/run/s", StoreUrl(Topology.STANDALONE, (("/run/s", 0),), user="u", password="p")),
        ("rediss://h", StoreUrl(Topology.STANDALONE, (("h", 6379),), tls=Tls())),
        (
            "rediss://h?ssl_check_hostname=false&ssl_ca_certs=a/b.pem&ssl_certfile=c&ssl_keyfile=k",
            StoreUrl(Topology.STANDALONE, (("h", 6379),), tls=Tls("a/b.pem", False, "c", "k")),
        ),
        ("redis+cluster://a,b:2,[::1]", StoreUrl(Topology.CLUSTER, (("a", 6379), ("b", 2), ("::1", 6379)))),
        ("rediss+cluster://a", StoreUrl(Topology.CLUSTER, (("a", 6379),), tls=Tls())),
        ("redis+sentinel://a,b:2/main", StoreUrl(Topology.SENTINEL, (("a", 26379), ("b", 2)), service="main")),
        ("redis+sentinel://a/main/4", StoreUrl(Topology.SENTINEL, (("a", 26379),), service="main", db=4)),
    ],
)
def test_a_url_is_read(text: str, url: StoreUrl) -> None:
    assert parse(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "redis://",
        "redis://h/one",
        "redis://h/1/2",
        "redis://h:0",
        "redis://h:x",
        "redis://a,b",
        "redis://h?db=1",
        "redis://h#x",
        "redis://a b",
        "redis+unix://h/x",
        "redis+unix:///",
        "redis+unix:///s?db=x",
        "redis+cluster://a/1",
        "redis+cluster://a,,b",
        "redis+sentinel://a",
        "redis+sentinel://a/main/x",
        "rediss://h?ssl_check_hostname=maybe",
        "rediss://h?ssl_cert_reqs=none",
        "rediss://h?x",
        "redis://[::1",
    ],
)
def test_what_is_none_is_refused_and_never_shown(text: str) -> None:
    with pytest.raises(Unexpected) as refused:
        parse(text.replace("://", "://me:secret@"))
    assert refused.value.found == "another URL (not shown: it may hold a password)"


@pytest.mark.parametrize(
    ("text", "address"), [("redis://u:secret@h/2", "redis://h:6379/2"), ("redis+unix://u:secret@/run/s", "redis+unix:///run/s")]
)
def test_as_text_it_has_no_secret(text: str, address: Address) -> None:
    url = parse(text)
    assert str(url) == address
    assert "secret" not in repr(url)
