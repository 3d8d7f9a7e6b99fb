"""Bytes that are no HTTP/1.1 request, or could be read as two: refused in our shape, the connection closed, nothing forwarded."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson
import pytest

from tests.support.config import Setup
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.load import chat
from tests.support.provider import FaultProvider


@pytest.fixture(scope="module")
def gateway(folder: Path, shared_provider: FaultProvider) -> Iterator[GatewayProcess]:
    with GatewayProcess(Setup(folder, shared_provider.base_url)) as running:
        yield running
        assert running.troubles == []
        assert running.admin("GET", "/budget/runs").json()["runs"] == []


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    return shared_provider


BODY: Final = orjson.dumps(chat(max_tokens=5))
HOST: Final = b"Host: 127.0.0.1\r\n"
KEY: Final = f"Authorization: Bearer {CALLER_KEY}\r\n".encode()
POST: Final = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + KEY
# What a smuggler wants served: were it read as a request of its own, it would be a call.
HIDDEN: Final = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def exchange(gateway: GatewayProcess, sent: bytes, more_follows: bool = False) -> list[tuple[int, bytes]]:
    """What came back until the gateway closed the connection: (status, body) of each answer."""
    with socket.create_connection(("127.0.0.1", gateway.setup.port), timeout=20) as connection:
        connection.sendall(sent)
        if not more_follows:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = next(int(line[16:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: "))
        answers.append((int(head.split(b" ")[1]), rest[:length]))
        received = rest[length:]
    return answers


def assert_one_refusal(answers: list[tuple[int, bytes]]) -> None:
    assert len(answers) == 1
    [(status, body)] = answers
    assert 400 <= status < 500
    told = orjson.loads(body)
    assert told["status"] == status
    assert told["error"]["code"] == told["code"]


NO_REQUESTS: Final[dict[str, bytes]] = {
    "words": b"hello, is anybody there?\r\n\r\n",
    "zeros": bytes(512),
    "every byte": bytes(range(256)) * 4 + b"\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "a proxy's line": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + HIDDEN,
    "HTTP/2 from the start": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET /healthz HTTP/9.9\r\n" + HOST + b"\r\n",
    "no version": b"GET /healthz\r\n" + HOST + b"\r\n",
    "no path": b"POST  HTTP/1.1\r\n" + HOST + b"\r\n",
    "a NUL in a header": POST + b"X-A: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "a NUL in a header's name": POST + b"X\x00A: b\r\nContent-Length: 0\r\n\r\n",
    "a bare CR in a header": POST + b"X-A: a\rContent-Length: 5\r\n\r\n",
    "a folded header": POST + b"X-A: a\r\n Content-Length: 5\r\n\r\n",
    "a header without a colon": POST + b"Content-Length 5\r\n\r\n",
    "a header without a name": POST + b": 5\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : %d\r\n\r\n" % len(BODY) + BODY,
    "a space before the coding's colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a length below nothing": POST + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length with a sign": POST + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY,
    "a length in hex": POST + b"Content-Length: 0x10\r\n\r\n" + BODY,
    "a length that is a list": POST + b"Content-Length: 5, 5\r\n\r\n" + BODY,
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999999999\r\n\r\n" + BODY,
    "two lengths": POST + b"Content-Length: %d\r\nContent-Length: 0\r\n\r\n" % len(BODY) + BODY,
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunks, not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a chunk size that is none": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + HIDDEN,
    "a chunk size below nothing": POST + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n" + HIDDEN,
    "a chunk size in 0x": POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n" + HIDDEN,
    "a chunk size beyond 64 bits": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n" + HIDDEN,
    "a chunk longer than it says": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n" + HIDDEN,
    "a chunk size and a bare LF": POST + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n" + HIDDEN,
    "a chunk size and a space": POST + b"Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n" + HIDDEN,
    "no Host": b"POST /v1/chat/completions HTTP/1.1\r\n" + KEY + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "two Hosts": POST + HOST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "another's address": b"GET http://example.com/healthz HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
    "an address for a proxy": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
    "a path of everything": b"GET /" + bytes(range(0x80, 0x100)) + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    "an endless line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "an expectation nobody knows": POST + b"Expect: 200-maybe\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("what", NO_REQUESTS)
def test_what_is_no_clear_request_is_refused_and_forwards_nothing(
    gateway: GatewayProcess, provider: FaultProvider, what: str
) -> None:
    assert_one_refusal(exchange(gateway, NO_REQUESTS[what], more_follows=True))
    assert provider.requests == []


def test_a_tls_hello_ends_the_connection(gateway: GatewayProcess, provider: FaultProvider) -> None:
    context = ssl._create_unverified_context()
    with socket.create_connection(("127.0.0.1", gateway.setup.port), timeout=10) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)
    assert provider.requests == []


@pytest.mark.parametrize("sent", [1, 20, len(POST) - 3, len(POST) + 30, len(HIDDEN) - 5])
def test_a_client_that_goes_in_mid_request_leaves_nothing(gateway: GatewayProcess, provider: FaultProvider, sent: int) -> None:
    with socket.create_connection(("127.0.0.1", gateway.setup.port), timeout=10) as connection:
        connection.sendall(HIDDEN[:sent])
    assert gateway.get("/healthz") == {"status": "ok"}
    assert provider.requests == []


def test_requests_sent_in_one_piece_are_answered_in_order(gateway: GatewayProcess, provider: FaultProvider) -> None:
    healthz = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    nowhere = b"GET /v1/nowhere HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    answers = exchange(gateway, healthz * 3 + nowhere, more_follows=True)
    assert [status for status, _ in answers] == [200, 200, 200, 404]


def test_after_all_of_this_a_call_is_served(gateway: GatewayProcess, provider: FaultProvider) -> None:
    """Without a run id, so that the list of named runs stays empty."""
    body = BODY.replace(b"big-model", b"no-such-model")
    sent = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    [(status, told)] = exchange(gateway, sent, more_follows=True)
    assert (status, orjson.loads(told)["code"]) == (400, "model_not_priced")
