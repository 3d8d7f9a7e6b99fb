"""How the lean client connects: addresses, TLS, proxies; whatever fails here was not sent."""

import asyncio
import base64
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from gateway.upstream import Endpoint, NotSent, UpstreamRequest
from gateway.upstream.dialing import Dialer, Proxy
from tests.support.between import CERTIFICATE
from tests.upstream.servers import OK, always_ok, lean, post, request_of, server, whole


def serving_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, Path(CERTIFICATE).with_name("key.pem"))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' certificate, as an operator would add it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))


Resolved = dict[str, list[tuple[str, int]]]


def resolve(monkeypatch: pytest.MonkeyPatch, names: Resolved) -> list[str]:
    """What look-ups answer; returns the names that were looked up."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        await asyncio.sleep(0)
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, its_port or port))
            for address, its_port in names[host]
        ]

    class Named(Dialer):
        def __init__(self, proxy: Proxy | None, loop: asyncio.AbstractEventLoop) -> None:
            super().__init__(proxy, loop)
            self._loop = _Loop(loop, getaddrinfo)  # type: ignore[assignment]

    monkeypatch.setattr("gateway.upstream.lean.Dialer", Named)
    return asked


class _Loop:
    def __init__(self, loop: asyncio.AbstractEventLoop, getaddrinfo: Any) -> None:
        self._loop = loop
        self.getaddrinfo = getaddrinfo

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def open_sockets() -> int:
    return sum(1 for each in Path("/proc/self/fd").iterdir() if _is_socket(each))


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except OSError:
        return False


# -- TLS ----------------------------------------------------------------------------------------------------------------------------


async def test_a_provider_with_a_trusted_certificate_is_asked_over_tls(trusted: None) -> None:
    seen: list[tuple[str | None, bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await request_of(reader)
            seen.append((writer.get_extra_info("ssl_object").selected_alpn_protocol(), head))
            writer.write(OK)

    async with server(talk, tls=serving_tls()) as serving, lean() as upstream:
        for _ in range(3):
            assert await whole(upstream, post(serving.port, host="localhost", scheme="https")) == b"{}"
        assert serving.connections == 1
        assert [alpn for alpn, _ in seen] == ["http/1.1"] * 3
        assert b"\r\nHost: localhost:%d\r\n" % serving.port in seen[0][1]


async def test_a_body_of_megabytes_goes_both_ways_over_tls(trusted: None) -> None:
    body = bytes(range(256)) * 20_000

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, got = await request_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(got) + got)

    async with server(talk, tls=serving_tls()) as serving, lean() as upstream:
        for _ in range(2):
            assert await whole(upstream, post(serving.port, body, host="localhost", scheme="https")) == body


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_certificate_that_is_not_trusted_or_for_another_name_is_refused(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if host != "localhost":
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        monkeypatch.setattr(ssl.SSLContext, "hostname_checks_common_name", False)
        resolve(monkeypatch, {"elsewhere.test": [("127.0.0.1", 0)]})
        host = "elsewhere.test"
    async with server(always_ok, tls=serving_tls()) as serving, lean() as upstream:
        with pytest.raises(NotSent, match="CERTIFICATE_VERIFY_FAILED"):
            await upstream.open(post(serving.port, host=host, scheme="https"))


async def test_the_name_is_said_in_the_greeting_without_its_last_dot(trusted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str | None] = []
    tls = serving_tls()
    tls.sni_callback = lambda _object, name, _context: names.append(name)
    resolve(monkeypatch, {"localhost.": [("127.0.0.1", 0)]})
    async with server(always_ok, tls=tls) as serving, lean() as upstream:
        assert await whole(upstream, post(serving.port, host="localhost.", scheme="https")) == b"{}"
    assert names == ["localhost"]


# -- names and addresses --------------------------------------------------------------------------------------------------------------


async def test_a_name_is_looked_up_once_for_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve(monkeypatch, {"provider.test": [("127.0.0.1", 0)]})
    async with server(always_ok) as serving, lean() as upstream:
        await asyncio.gather(*(whole(upstream, post(serving.port, host="provider.test")) for _ in range(20)))
        assert asked == ["provider.test"]
        assert serving.connections == 20


async def test_a_name_that_was_not_found_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    names: Resolved = {}
    asked = resolve(monkeypatch, names)
    async with server(always_ok) as serving, lean() as upstream:
        for _ in range(2):
            with pytest.raises(NotSent, match="no such name"):
                await upstream.open(post(serving.port, host="provider.test"))
        names["provider.test"] = [("127.0.0.1", 0)]
        assert await whole(upstream, post(serving.port, host="provider.test")) == b"{}"
        assert len(asked) == 3


async def test_an_address_that_refuses_leads_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()[1]
    resolve(monkeypatch, {"provider.test": [("::1", closed), ("127.0.0.1", closed), ("127.0.0.1", 0)]})
    async with server(always_ok) as serving, lean() as upstream:
        assert await whole(upstream, post(serving.port, host="provider.test")) == b"{}"


async def test_an_address_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.socket() as first, socket.socket() as second:
            for each in (first, second):  # its queue is full now: it answers nobody
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            await asyncio.sleep(0.05)
            resolve(monkeypatch, {"provider.test": [("127.0.0.1", full.getsockname()[1]), ("127.0.0.1", 0)]})
            before = open_sockets()
            async with server(always_ok) as serving, lean() as upstream:
                assert await asyncio.wait_for(whole(upstream, post(serving.port, host="provider.test")), 3) == b"{}"
            await asyncio.sleep(0.05)
            assert open_sockets() <= before, "the attempt that lost was closed"


async def test_when_no_address_answers_the_last_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()[1]
    resolve(monkeypatch, {"provider.test": [("127.0.0.1", 0), ("127.0.0.2", 0)]})
    async with lean() as upstream:
        with pytest.raises(NotSent, match="ConnectionRefusedError"):
            await upstream.open(post(closed, host="provider.test"))


async def test_ipv6_is_written_in_brackets() -> None:
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await request_of(reader))[0])
        writer.write(OK)

    try:
        async with server(talk, host="::1") as serving, lean() as upstream:
            assert await whole(upstream, post(serving.port, host="[::1]")) == b"{}"
            assert b"\r\nHost: [::1]:%d\r\n" % serving.port in heads[0]
    except OSError:
        pytest.skip("this machine has no IPv6")


async def test_a_name_beyond_ascii_is_looked_up_as_dns_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve(monkeypatch, {"xn--bcher-kva.test": [("127.0.0.1", 0)]})
    async with server(always_ok) as serving, lean() as upstream:
        assert await whole(upstream, post(serving.port, host="bücher.test")) == b"{}"
    assert asked == ["xn--bcher-kva.test"]


async def test_a_look_up_that_lasts_is_bounded_by_the_connect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, {})
    async with lean(Endpoint(connect_timeout_s=0.05)) as upstream:
        upstream._pool._dialer._loop.getaddrinfo = lambda *_, **__: asyncio.sleep(60)  # type: ignore[method-assign, assignment]
        with pytest.raises(NotSent, match=r"within 0\.05 s"):
            await upstream.open(post(80, host="provider.test"))


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_call_that_is_cancelled_while_it_connects_leaves_nothing_open(scheme: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 20)
        await reader.read(1 << 20)

    async with server(silent) as serving, lean() as upstream:
        before = open_sockets()
        for turns in range(12):
            opening = asyncio.ensure_future(upstream.open(post(serving.port, scheme=scheme)))
            for _ in range(turns):
                await asyncio.sleep(0.001)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
        assert not any(each._answer is not None for each in upstream._pool._connections)
        for _ in range(200):
            if open_sockets() <= before:
                return
            await asyncio.sleep(0.02)
        pytest.fail("a socket was left open")


# -- proxies --------------------------------------------------------------------------------------------------------------------------


async def tunnels(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[bytes], said: bytes) -> None:
    """CONNECT to a port of this machine, whatever the name."""
    head, _ = await request_of(reader)
    asked.append(head)
    port = int(head.split(b" ")[1].rpartition(b":")[2])
    if not said.startswith(b"HTTP/1.1 200"):
        writer.write(said)
        return
    from_there, to_there = await asyncio.open_connection("127.0.0.1", port)
    for at in range(len(said)):
        writer.write(said[at : at + 1])
        await writer.drain()

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    await asyncio.gather(pass_on(reader, to_there), pass_on(from_there, writer))


async def test_https_goes_through_a_proxy_in_a_tunnel(trusted: None) -> None:
    asked: list[bytes] = []
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await request_of(reader))[0])
            writer.write(OK)

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await tunnels(reader, writer, asked, b"HTTP/1.1 200 Connection established\r\nVia: p\r\n\r\n")

    async with server(talk, tls=serving_tls()) as serving, server(proxy) as between:
        async with lean(Endpoint(proxy=f"http://us%40er:p%3Aw@127.0.0.1:{between.port}")) as upstream:
            for _ in range(2):
                assert await whole(upstream, post(serving.port, host="localhost", scheme="https")) == b"{}"
        credentials = base64.b64encode(b"us@er:p:w")
        expected = b"CONNECT localhost:%d HTTP/1.1\r\nHost: localhost:%d\r\nProxy-Authorization: Basic %b\r\n\r\n"
        assert asked == [expected % (serving.port, serving.port, credentials)]
        assert heads[0].startswith(b"POST /v1/x HTTP/1.1\r\n")
        assert b"proxy" not in heads[0].lower()


async def test_http_goes_to_the_proxy_with_the_whole_url() -> None:
    heads: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await request_of(reader))[0])
            writer.write(OK)

    async with server(proxy) as between, lean(Endpoint(proxy=f"http://u:p@127.0.0.1:{between.port}")) as upstream:
        for _ in range(2):
            assert await whole(upstream, UpstreamRequest("http://provider.invalid:81/v1?a=b", "POST", [], b"{}")) == b"{}"
        assert between.connections == 1
    assert heads[0].startswith(b"POST http://provider.invalid:81/v1?a=b HTTP/1.1\r\nHost: provider.invalid:81\r\n")
    assert b"\r\nProxy-Authorization: Basic " + base64.b64encode(b"u:p") + b"\r\n" in heads[0]


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 5\r\n\r\nwho??",
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        b"HTTP/1.1 200 ok",
        b"HTTP/1.1 2000\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"",
        b"x" * 20_000,
        b"HTTP/1.1 200 OK\r\n\r\nsurplus",
    ],
)
async def test_a_tunnel_that_does_not_stand_was_not_sent(said: bytes) -> None:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(said)
        await writer.drain()

    endpoint = Endpoint(connect_timeout_s=1)
    async with (
        server(proxy) as between,
        lean(Endpoint(connect_timeout_s=endpoint.connect_timeout_s, proxy=f"http://127.0.0.1:{between.port}")) as upstream,
    ):
        with pytest.raises(NotSent):
            await upstream.open(post(9, host="provider.invalid", scheme="https"))


async def test_a_proxy_that_can_not_be_reached_was_not_sent() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()[1]
    async with lean(Endpoint(proxy=f"http://127.0.0.1:{closed}")) as upstream:
        for scheme in ("http", "https"):
            with pytest.raises(NotSent):
                await upstream.open(post(9, host="provider.invalid", scheme=scheme))


@pytest.mark.parametrize("url", ["https://proxy:3128", "socks5://proxy:1080", "proxy:3128", "http://"])
def test_a_proxy_of_another_kind_is_refused_when_the_client_is_made(url: str) -> None:
    with pytest.raises(ValueError, match="http URL"):
        Proxy.of(url)


# -- sockets --------------------------------------------------------------------------------------------------------------------------


async def test_a_socket_is_kept_alive_and_does_not_wait_to_send() -> None:
    async with server(always_ok) as serving, lean() as upstream:
        await whole(upstream, post(serving.port))
        (connection,) = upstream._pool._connections
        assert connection.transport is not None
        raw = connection.transport.get_extra_info("socket")
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
