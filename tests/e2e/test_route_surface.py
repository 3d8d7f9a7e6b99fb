"""The whole surface, route by route: what is a route exactly is metered; whatever only resembles one, and any other method on it, is refused
without a word to the provider."""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest

from gateway.wire import responses
from gateway.wire.dialects import METERED_ROUTES
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.pricing import MODELS
from tests.support.provider import Behaviour, FaultProvider
from tests.support.sound import wav

MODEL: Final = "big-model"
UNMETERED: Final = (("POST", "/v1/files"), ("GET", "/v1/files/{id}"), ("DELETE", "/v1/files/{id}/parts/{part}"))
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "PROPFIND")
# Forwarded without a hold, because they cost nothing: counts, and answers that were paid for when they were made.
FREE: Final = frozenset({"/v1/messages/count_tokens", "/v1/responses/input_tokens", *(path for _, path in responses.STORED)})
MESSAGES: Final = [{"role": "user", "content": "hi"}]


def form(**texts: str) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://h", data={"model": MODEL, **texts}, files={"file": ("a.wav", wav(0.1), "audio/wav")})
    return request.read(), request.headers["Content-Type"]


def body_of(path: str) -> tuple[bytes, str]:
    """A request that passes, so that a path which reached its handler would be forwarded."""
    given: Mapping[str, Any] = {
        "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 5},
        "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
        "/v1/messages/count_tokens": {"messages": MESSAGES},
        "/v1/responses": {"input": "hi", "max_output_tokens": 20},
        "/v1/responses/input_tokens": {"input": "hi"},
        "/v1/completions": {"prompt": "hi", "max_tokens": 5},
        "/v1/embeddings": {"input": "hi"},
        "/v1/moderations": {"input": "hi"},
        "/v1/images/generations": {"prompt": "hi", "size": "1024x1024", "quality": "low"},
        "/v1/images/edits": {"prompt": "hi", "images": [{"file_id": "f"}]},
        "/v1/images/variations": {"image": {"file_id": "f"}},
        "/v1/audio/speech": {"input": "hi", "voice": "coral"},
    }.get(path, {})
    if path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        return form()
    return orjson.dumps({"model": MODEL, **given}), "application/json"


def concrete(path: str) -> str:
    """The path with something for each of its parameters."""
    return "/".join("x1" if word.startswith("{") else word for word in path.split("/"))


def lookalikes(path: str) -> Iterator[str]:
    """What some server, proxy or client may read as the route."""
    last = path.rindex("/")
    yield from (path + "/", path + "//", "/" + path, path.replace("/v1/", "/v1//"), path[:last] + "/" + path[last:])
    yield from (path.upper(), path.replace("/v1/", "/V1/"), path[:5] + path[5].upper() + path[6:], path[:4] + path[4:].title())
    yield from (path[:last] + "%2F" + path[last + 1 :], path[:last] + "%2f" + path[last + 1 :], path.replace("/", "%2F"))
    yield from (
        path[:4] + f"%{ord(path[4]):02x}" + path[5:],
        f"/%76{path[2:]}",
        path + "%20",
        path + "%00",
        path + "%0d%0a",
        path + "%2e",
    )
    yield from (
        path + ";a=b",
        path[:last] + ";a=b" + path[last:],
        path + "\\",
        path.replace("/v1/", "/v1\\"),
        path + ".",
        path + "..",
    )
    yield from (
        path.replace("/v1/", "/v1/./"),
        f"/v1/x/..{path[3:]}",
        f"/v1/..{path}",
        f"/.{path}",
        f"/..{path}",
        path + "/.",
        path + "/x/..",
    )
    yield from (
        f"/run/a/run/b{path}",
        f"/run/{path}",
        f"/run//a{path}",
        f"/run/a/{path}",
        f"/Run/a{path}",
        f"/run{path}",
        f"/run/a/b{path}",
    )
    yield from (
        f"/run/a{path}/",
        f"/run/a{path.upper()}",
        f"/healthz{path}",
        f"/budget{path}",
        path[3:],
        path[1:],
        f"/v2{path[3:]}",
    )
    yield from (f"http://127.0.0.1{path}", f"/run/a{path}".replace("/v1/", "/v1//"), path + "é".encode().decode("latin-1"))


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Mapping[str, str]


def asked(gateway: GatewayProcess, method: str, target: str, body: bytes, kind: str, *more: str) -> Answered:
    """Over a connection of its own, the target as it is: no client tidies it up."""
    lines = (
        f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {CALLER_KEY}", "anthropic-version: 2023-06-01",
        f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more, *(() if more else ("Connection: close",)),
    )  # fmt: skip
    with socket.create_connection(("127.0.0.1", gateway.setup.port), timeout=20) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode("latin-1") + body)
        received = b""
        while b"\r\n\r\n" not in received:
            piece = connection.recv(65536)
            assert piece, f"no answer to {method} {target}"
            received += piece
    head = received.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    return Answered(int(head[0].split(" ")[1]), headers)


ROUTES: Final = (*METERED_ROUTES, *UNMETERED)
PATHS: Final = tuple(dict.fromkeys(path for _, path in ROUTES))
EXACT: Final = frozenset(concrete(path) for path in PATHS)


def setup(folder: Path, provider: FaultProvider) -> Setup:
    routes = [{"route": f"{method} {path}", "provider": "test"} for method, path in UNMETERED]
    able = [model.as_config("test") for model in MODELS]
    models = {
        model.name: {**entry, "capabilities": [*entry["capabilities"], "audio_input", "audio_output"]}
        for model, entry in zip(MODELS, able, strict=True)
    }
    return Setup(folder, provider.base_url, policy(run_ceiling("$10000")), extra={"unmetered_routes": routes, "models": models})


@pytest.fixture(scope="module")
def gateway(folder: Path, shared_provider: FaultProvider) -> Iterator[GatewayProcess]:
    shared_provider.default = Behaviour(body=b'{"id": "x1"}')
    with GatewayProcess(setup(folder, shared_provider)) as running:
        yield running
        assert running.troubles == []


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    return shared_provider


def refused(got: Answered, *statuses: int) -> None:
    assert got.status in (statuses or (400, 404, 405)), got
    assert got.headers["content-type"] == "application/problem+json"
    assert got.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", PATHS)
def test_what_resembles_a_route_is_not_one(gateway: GatewayProcess, provider: FaultProvider, path: str) -> None:
    body, kind = body_of(path)
    plain = concrete(path)
    local = path.endswith("%}")  # answered by the gateway itself, whatever the parameter is
    for target in lookalikes(plain):
        if target in EXACT:
            continue
        for method in {method for method, known in ROUTES if known == path}:
            got = asked(gateway, method, target, body, kind)
            if local and got.status != 405:
                assert got.status in (200, 400, 404), (target, got)
            elif "{" in path and target in (plain + ".", plain + ".."):
                assert got.status < 500, (target, got)  # a parameter may well end with a dot
                provider.requests.clear()
            else:
                refused(got)
            assert provider.requests == [], target


@pytest.mark.parametrize("path", PATHS)
def test_a_route_takes_its_own_methods_and_no_other(gateway: GatewayProcess, provider: FaultProvider, path: str) -> None:
    body, kind = body_of(path)
    known = {method for method, each in ROUTES if each == path}
    for prefix in ("", "/run/r1"):
        for method in METHODS:
            if method in known or (method == "HEAD" and "GET" in known):
                continue
            got = asked(gateway, method, prefix + concrete(path), body, kind)
            refused(got, *((405, 400) if method == "BREW" else (405,)))  # 400: to the parser it is no method
            assert got.status == 400 or known <= set(got.headers["allow"].split(", "))
            assert provider.requests == []
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")
        got = asked(gateway, "GET", prefix + concrete(path), b"", kind, *upgrade)
        assert got.status != 101
        assert got.status < 500
        if (path, "GET") not in {(each, method) for method, each in METERED_ROUTES}:
            refused(got, 404, 405, 426)
            assert provider.requests == []
        provider.requests.clear()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_route_with_any_query_is_held_before_it_is_forwarded(
    gateway: GatewayProcess, provider: FaultProvider, method: str, path: str
) -> None:
    body, kind = body_of(path)
    for prefix in ("", "/run/r1"):
        for query in ("", "?", "?beta=true", "?x=%2F..%2f&y=/v1/embeddings", "?a?b", "?;"):
            got = asked(gateway, method, prefix + concrete(path) + query, body, kind)
            assert got.status < 500, got
            if provider.requests and path not in FREE:
                assert got.headers["x-budget-reservation-id"].startswith("rsv_"), (query, got)
            if (method, path) in UNMETERED or (method == "POST" and "{" not in path):
                assert got.status == 200, (query, got)
                [request] = provider.requests
                assert request.request_line == f"{method} {concrete(path)}{query if query != '?' else ''} HTTP/1.1"
            provider.requests.clear()


async def test_every_route_that_the_gateway_serves_is_one_of_these(tmp_path: Path, provider: FaultProvider) -> None:
    from gateway import app
    from gateway.events import Events, open_sink

    config, rules = app.load(setup(tmp_path, provider).write())
    gateway = app.Gateway(config, rules, Events(open_sink(config.log)))
    routes = gateway._routes()
    await gateway.stop()
    plain = {(method, path) for path, methods in routes._metered.items() for method in methods}
    patterned = {(method, "/".join(words)) for words, methods in routes._metered_patterns for method in methods}
    assert plain | patterned == set(ROUTES)
