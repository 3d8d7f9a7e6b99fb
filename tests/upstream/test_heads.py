"""What a request's head says, beside what aiohttp would write."""

import asyncio

import pytest

from gateway.upstream import AiohttpUpstream, Endpoint, NotSent, Upstream, UpstreamRequest
from gateway.upstream.heads import Origin, request_head, target
from tests.upstream.servers import lean, request_of, server


@pytest.mark.parametrize(
    ("url", "origin", "path", "host"),
    [
        ("https://api.openai.com/v1/x", Origin("https", "api.openai.com", 443), "/v1/x", "api.openai.com"),
        ("http://API.example:8080/v1", Origin("http", "api.example", 8080), "/v1", "api.example:8080"),
        ("https://h:80/x", Origin("https", "h", 80), "/x", "h:80"),
        ("http://h:80/x", Origin("http", "h", 80), "/x", "h"),
        ("http://h", Origin("http", "h", 80), "/", "h"),
        ("http://h?a", Origin("http", "h", 80), "/?a", "h"),
        ("http://h/x?a=%2F&b=%20#f", Origin("http", "h", 80), "/x?a=%2F&b=%20", "h"),
        ("http://h/x?#f?", Origin("http", "h", 80), "/x?", "h"),
        ("http://h//x/../y", Origin("http", "h", 80), "//x/../y", "h"),
        ("http://[::1]:81/x", Origin("http", "::1", 81), "/x", "[::1]:81"),
        ("http://bücher.test/é", Origin("http", "xn--bcher-kva.test", 80), "/é", "xn--bcher-kva.test"),
    ],
)
def test_a_url_says_who_is_asked_and_for_what(url: str, origin: Origin, path: str, host: str) -> None:
    found = target("POST", url, None)
    assert found.origin == origin
    assert found.opening == f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\n"


def test_what_a_proxy_is_told_is_told_over_http_only() -> None:
    assert target("GET", "http://h/x", "Proxy-A: b\r\n").opening == (
        "GET http://h/x HTTP/1.1\r\nHost: h\r\nAccept-Encoding: identity\r\nProxy-A: b\r\n"
    )
    assert target("GET", "https://h/x", "Proxy-A: b\r\n").opening == "GET /x HTTP/1.1\r\nHost: h\r\nAccept-Encoding: identity\r\n"


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("PO ST", "http://h/"),
        ("GET\r\n", "http://h/"),
        ("", "http://h/"),
        ("GET", "http://h/a b"),
        ("GET", "http://h/a\r\nX: y"),
        ("GET", "http://h\t/"),
        ("GET", "http://h/\udcff"),
        ("GET", "http://user:word@h/"),
        ("GET", "http://h:65536/"),
        ("GET", "http://a..b/"),
        ("GET", "http://[::1/"),
        ("GET", "ws://h/"),
        ("GET", "//h/"),
        ("GET", "http:///x"),
    ],
)
def test_what_can_not_be_asked_is_not_sent(method: str, url: str) -> None:
    with pytest.raises(NotSent):
        target(method, url, None)


@pytest.mark.parametrize("name", ["", "X A", "X:A", "X\r\nA", "Ä", "X\x00"])
def test_a_name_that_is_none_is_not_sent(name: str) -> None:
    with pytest.raises(NotSent):
        request_head("GET", "", [(name, "a")], 0)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_both_clients_write_the_same_request(method: str, body: bytes) -> None:
    seen: list[tuple[list[bytes], bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, got = await request_of(reader)
        first, *lines = head.rstrip(b"\r\n").split(b"\r\n")
        seen.append(([first, *sorted(lines)], got))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def asks(upstream: Upstream, port: int) -> None:
        headers = [("content-type", "application/json"), ("X-A", "é"), ("X-B", ""), ("Host", "other")]
        (await upstream.open(UpstreamRequest(f"http://127.0.0.1:{port}/v1/x?q=%20", method, headers, body))).release()

    aiohttp = AiohttpUpstream(Endpoint())
    async with server(talk) as serving, lean() as upstream:
        await asks(upstream, serving.port)
        await asks(aiohttp, serving.port)
    await aiohttp.close()
    assert seen[0] == seen[1]
