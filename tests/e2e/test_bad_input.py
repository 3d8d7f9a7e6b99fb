"""Input that can't be taken: a clear 4xx in our shape, nothing reserved, nothing forwarded, no traceback, no 5xx; and sizes at the edge."""

import contextlib
import gzip
import http.client
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.load import chat
from tests.support.provider import FaultProvider

MB: Final = 2**20


@pytest.fixture(scope="module")
def gateway(folder: Path, shared_provider: FaultProvider) -> Iterator[GatewayProcess]:
    ceilings = policy(run_ceiling("$1000"), identity={"agent": "header:X-Agent-Id", "user": "body:user"})
    with GatewayProcess(Setup(folder, shared_provider.base_url, policy=ceilings)) as running:
        yield running
        # After all the tests of this module: whatever was refused left nothing behind.
        assert running.troubles == []
        assert '"status":500' not in running.log
        assert running.admin("GET", "/admin/holds").json() == {"holds": []}


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    return shared_provider


Answer = tuple[int, Mapping[str, str], bytes]


def ask(gateway: GatewayProcess, method: str, path: str, body: bytes | None, headers: list[tuple[str, str]]) -> Answer:
    """Through the standard library, which sends headers as they are: repeated ones too."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.setup.port, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        if body is not None and ("Transfer-Encoding", "chunked") not in headers:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        if body:
            with contextlib.suppress(OSError):  # refused before it was read: the answer is there
                connection.send(body)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def post(gateway: GatewayProcess, body: bytes, run: str, *more: tuple[str, str]) -> Answer:
    headers = [("Authorization", f"Bearer {CALLER_KEY}"), ("Content-Type", "application/json"), ("X-Run-Id", run), *more]
    return ask(gateway, "POST", "/v1/chat/completions", body, headers)


def assert_refused(answer: Answer, status: int, code: str) -> None:
    """In the shape that RFC 9457 and the SDKs read alike, and never to be tried again."""
    told, headers, raw = answer
    assert (told, headers["content-type"]) == (status, "application/problem+json"), raw[:300]
    body = orjson.loads(raw)
    assert (body["status"], body["code"], body["error"]["code"]) == (status, code, code)
    assert body["detail"] == body["error"]["message"] != ""
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers
    assert headers["x-request-id"]


def assert_left_nothing(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    assert provider.requests == []
    assert gateway.admin("GET", f"/budget/runs/{run}").status_code == 404


def with_fields(**fields: Any) -> bytes:
    return json.dumps(chat() | fields).encode()


def raw(text: str) -> bytes:
    """A body with `text` as a further member."""
    return f'{{"model": "big-model", "messages": [{{"role": "user", "content": "hi"}}], {text}}}'.encode()


def content(value: Any) -> bytes:
    return json.dumps({"model": "big-model", "messages": [{"role": "user", "content": value}]}).encode()


@dataclass(frozen=True)
class Bad:
    body: bytes
    code: str = "ambiguous_request"
    status: int = 400
    headers: tuple[tuple[str, str], ...] = field(default=())


GOOD: Final = with_fields(max_tokens=5)
BAD: Final[dict[str, Bad]] = {
    "nothing": Bad(b""),
    "not JSON": Bad(b"model=big-model"),
    "half of it": Bad(GOOD[:-5]),
    "two bodies in one": Bad(GOOD + GOOD),
    "a list": Bad(b"[1, 2]"),
    "a text": Bad(b'"hello"'),
    "null": Bad(b"null"),
    "UTF-16": Bad(GOOD.decode().encode("utf-16")),
    "a byte order mark": Bad(b"\xef\xbb\xbf" + GOOD),
    "bytes that are not UTF-8": Bad(GOOD.replace(b"penstock", b"\xff\xfe")),
    "NaN": Bad(raw('"temperature": NaN')),
    "Infinity": Bad(raw('"temperature": -Infinity')),
    "a number beyond floats": Bad(raw('"temperature": 1e999')),
    "a 70-bit integer": Bad(raw(f'"seed": {2**70}')),
    "a 70-bit cap": Bad(raw(f'"max_tokens": {2**70}')),
    "a negative 70-bit integer": Bad(raw(f'"seed": {-(2**70)}')),
    "a 10,000-digit integer": Bad(raw('"seed": ' + "9" * 10_000)),
    "a lone surrogate": Bad(raw('"user": "\\ud800"')),
    "a lone surrogate in a message": Bad(GOOD.replace(b"penstock", b"\\udfff")),
    "10,000 levels deep": Bad(raw('"metadata": ' + "[" * 10_000 + "]" * 10_000)),
    "10,000 objects deep": Bad(raw('"metadata": ' + '{"a":' * 10_000 + "1" + "}" * 10_000)),
    "900 levels deep": Bad(raw('"metadata": ' + "[" * 900 + "]" * 900)),
    "no model": Bad(json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()),
    "a model that is a number": Bad(with_fields(model=5)),
    "a model without a name": Bad(with_fields(model="")),
    "a model with a line break": Bad(with_fields(model="big-model\nX: y")),
    "a model of 10,000 characters": Bad(with_fields(model="m" * 10_000)),
    "no messages": Bad(b'{"model": "big-model"}'),
    "messages that are a text": Bad(with_fields(messages="hi")),
    "messages that are an object": Bad(with_fields(messages={"role": "user", "content": "hi"})),
    "a message that is a text": Bad(with_fields(messages=["hi"])),
    "a message that is null": Bad(with_fields(messages=[None])),
    "a role that is a number": Bad(with_fields(messages=[{"role": 5, "content": "hi"}])),
    "a content that is a number": Bad(content(5)),
    "a content that is true": Bad(content(True)),
    "a content that is an object": Bad(content({"type": "text", "text": "hi"})),
    "a part that is a text": Bad(content(["hi"])),
    "a part whose text is a number": Bad(content([{"type": "text", "text": 5}])),
    "an image that is a number": Bad(content([{"type": "image_url", "image_url": 5}])),
    "an image whose detail is a list": Bad(content([{"type": "image_url", "image_url": {"url": "x", "detail": []}}])),
    "stream as a text": Bad(with_fields(stream="true")),
    "stream as a number": Bad(with_fields(stream=1)),
    "stream_options as a list": Bad(with_fields(stream=True, stream_options=[])),
    "include_usage as a text": Bad(with_fields(stream=True, stream_options={"include_usage": "false"})),
    "n as a text": Bad(with_fields(n="2")),
    "n as a fraction": Bad(with_fields(n=1.5)),
    "n as true": Bad(with_fields(n=True)),
    "n of nothing": Bad(with_fields(n=0)),
    "n below nothing": Bad(with_fields(n=-1)),
    "n beyond reason": Bad(with_fields(n=10**9)),
    "best_of as a list": Bad(with_fields(best_of=[2])),
    "max_tokens as a text": Bad(with_fields(max_tokens="5")),
    "max_tokens as a float": Bad(with_fields(max_tokens=5.0)),
    "max_tokens below nothing": Bad(with_fields(max_tokens=-5)),
    "max_tokens of nothing": Bad(with_fields(max_tokens=0)),
    "both caps": Bad(with_fields(max_tokens=5, max_completion_tokens=5), "output_cap_conflict"),
    "MAX_TOKENS beside max_tokens": Bad(with_fields(max_tokens=5, MAX_TOKENS=5_000)),
    "a long s in ſtream": Bad(raw('"ſtream": true')),
    "Model beside model": Bad(with_fields(Model="small-model")),
    "a Kelvin sign in toKens": Bad(raw('"max_to\u212aens": 5')),
    "tools as an object": Bad(with_fields(tools={"type": "function"})),
    "tools of texts": Bad(with_fields(tools=["search"])),
    "a response format that is a text": Bad(with_fields(response_format="json")),
    "a service tier that is a number": Bad(with_fields(service_tier=1)),
    "an unknown service tier": Bad(with_fields(service_tier="gold"), "not_estimable"),
    "modalities as a text": Bad(with_fields(modalities="audio")),
    "a user that is an object": Bad(with_fields(user={"id": 1})),
    "a user of control characters": Bad(with_fields(user="a\u0000b")),
    "web search, whose price is not known": Bad(with_fields(web_search_options={}), "not_estimable"),
    "other models to choose from": Bad(with_fields(models=["small-model"]), "not_estimable"),
    "an unknown model": Bad(with_fields(model="no-such-model"), "model_not_priced"),
    "a second output cap": Bad(with_fields(n_predict=100_000), "not_estimable"),
    "zstd": Bad(b"\x28\xb5\x2f\xfd" + GOOD, "unsupported_encoding", 415, (("Content-Encoding", "zstd"),)),
    "brotli": Bad(GOOD, "unsupported_encoding", 415, (("Content-Encoding", "br"),)),
    "gzip that is none": Bad(GOOD, "ambiguous_request", 400, (("Content-Encoding", "gzip"),)),
    "gzip cut short": Bad(gzip.compress(GOOD)[:-9], "ambiguous_request", 400, (("Content-Encoding", "gzip"),)),
    "a gzip bomb": Bad(gzip.compress(bytes(64 * MB)), "request_too_large", 413, (("Content-Encoding", "gzip"),)),
    "a bomb in a bomb": Bad(
        gzip.compress(gzip.compress(bytes(64 * MB))), "request_too_large", 413, (("Content-Encoding", "gzip, gzip"),)
    ),
    "a run id with a space": Bad(GOOD, "run_id_invalid", 400, (("x-run-id", "r 1"),)),
    "a limit that is no money": Bad(GOOD, headers=(("X-Run-Limit", "lots"),)),
    "a limit below nothing": Bad(GOOD, headers=(("X-Run-Limit", "-1"),)),
    "two limits": Bad(GOOD, headers=(("X-Run-Limit", "$1"), ("X-Run-Limit", "$2"))),
    "a downgrade wish that is none": Bad(GOOD, headers=(("X-Budget-Downgrade", "sometimes"),)),
    "two agents": Bad(GOOD, headers=(("X-Agent-Id", "a"), ("X-Agent-Id", "b"))),
    "an agent of control characters": Bad(GOOD, headers=(("X-Agent-Id", "a\tb"),)),
    "an agent of 10,000 characters": Bad(GOOD, headers=(("X-Agent-Id", "a" * 5_000),)),
    "two parents": Bad(GOOD, headers=(("X-Parent-Run-Id", "r0"), ("X-Parent-Run-Id", "r00"))),
    "two keys": Bad(GOOD, headers=(("Authorization", "Bearer sk-other"),)),
}


@pytest.mark.parametrize("what", BAD)
def test_what_can_be_read_in_two_ways_or_not_at_all_is_refused(
    gateway: GatewayProcess, provider: FaultProvider, run: str, what: str
) -> None:
    bad = BAD[what]
    if any(name == "x-run-id" for name, _ in bad.headers):
        headers = [("Authorization", f"Bearer {CALLER_KEY}"), *bad.headers]
        answer = ask(gateway, "POST", "/v1/chat/completions", bad.body, headers)
    else:
        answer = post(gateway, bad.body, run, *bad.headers)
    assert_refused(answer, bad.status, bad.code)
    assert_left_nothing(gateway, provider, run)


def test_two_run_ids_are_refused_even_where_they_agree(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    assert_refused(post(gateway, GOOD, run, ("x-run-id", run)), 400, "ambiguous_request")
    assert_refused(post(gateway, GOOD, run, ("X-Run-ID", "another")), 400, "ambiguous_request")
    assert_left_nothing(gateway, provider, run)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("BREW", "/v1/chat/completions", 400, "bad_request"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/batches", 404, "route_not_metered"),
        ("POST", "/v1/fine_tuning/jobs", 404, "route_not_metered"),
        ("POST", "/v1/chat/completions/", 404, "route_not_metered"),
        ("POST", "/v1//chat/completions", 404, "route_not_metered"),
        ("POST", "/V1/Chat/Completions", 404, "not_found"),
        ("POST", "/v1/chat%2Fcompletions", 404, "route_not_metered"),
        ("POST", "/v1/chat/../chat/completions", 404, "route_not_metered"),
        ("POST", "//v1/chat/completions", 404, "not_found"),
        ("POST", "/run//v1/chat/completions", 404, "route_not_metered"),
        ("POST", "/run/a/b/v1/chat/completions", 404, "not_found"),
        ("POST", "/run/r%201/v1/chat/completions", 400, "run_id_invalid"),
        ("POST", "/chat/completions", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/admin", 404, "not_found"),
        ("GET", "/budget/runs/" + "r" * 200, 400, "run_id_invalid"),
        ("GET", "/budget/runs/no-such-run", 404, "not_found"),
        ("GET", "/budget/runs?limit=-1", 400, "bad_request"),
        ("GET", "/budget/spend?by=usd", 400, "bad_request"),
        ("GET", "/admin/holds", 403, "admin_required"),
        ("POST", "/admin/holds/rsv_x/settle", 403, "admin_required"),
    ],
)
def test_what_nothing_serves_is_refused_by_its_path_and_method(
    gateway: GatewayProcess, provider: FaultProvider, method: str, path: str, status: int, code: str
) -> None:
    body = None if method == "GET" else GOOD
    answer = ask(gateway, method, path, body, [("Authorization", f"Bearer {CALLER_KEY}")])
    assert_refused(answer, status, code)
    assert provider.requests == []
    if status == 405:
        assert answer[1]["allow"]


def test_headers_beyond_what_is_read_are_refused(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    for headers in ([("X-Long", "x" * 100_000)], [(f"X-{number}", "x" * 1_000) for number in range(1_000)]):
        status, told, body = post(gateway, GOOD, run, *headers)
        assert (status, told["content-type"]) in ((431, "application/problem+json"), (400, "application/problem+json"))
        assert orjson.loads(body)["error"]["message"]
    assert_left_nothing(gateway, provider, run)


def test_of_duplicate_keys_the_last_counts_and_only_it_is_forwarded(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    twice = raw('"max_tokens": 99999, "max_tokens": 7, "model": "small-model", "metadata": {"a": 1, "a": 2}')
    assert post(gateway, twice, run)[0] == 200
    [call] = provider.calls
    assert (call.json["model"], call.json["max_tokens"], call.json["metadata"]) == ("small-model", 7, {"a": 2})
    for name in (b'"max_tokens"', b'"model"', b'"metadata"', b'"a"'):
        assert call.body.count(name) == 1
    assert gateway.run(run)["calls"] == 1


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_request_is_read_and_forwarded_plain(
    gateway: GatewayProcess, provider: FaultProvider, run: str, coding: str
) -> None:
    packed = gzip.compress(GOOD) if coding == "gzip" else zlib.compress(GOOD)
    assert post(gateway, packed, run, ("Content-Encoding", coding))[0] == 200
    [call] = provider.calls
    assert call.header("Content-Encoding") is None
    assert call.json["messages"] == orjson.loads(GOOD)["messages"]


def sized(size: int) -> bytes:
    """A request of exactly that many bytes, most of it an image."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,", "detail": "low"}}
    body = chat(max_tokens=5) | {"messages": [{"role": "user", "content": [image]}]}
    image["image_url"]["url"] += "A" * (size - len(orjson.dumps(body)))  # type: ignore[index, operator]
    return orjson.dumps(body)


def test_a_request_of_20_mb_passes_and_one_byte_more_is_413(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    largest = sized(20 * MB)
    assert len(largest) == 20 * MB
    assert post(gateway, largest, run)[0] == 200
    assert provider.calls[0].json["messages"] == orjson.loads(largest)["messages"]
    provider.forget()
    beyond = sized(20 * MB + 1)
    assert_refused(post(gateway, beyond, run), 413, "request_too_large")
    assert_refused(post(gateway, gzip.compress(beyond, 1), run, ("Content-Encoding", "gzip")), 413, "request_too_large")
    assert_refused(post(gateway, chunked(beyond), run, ("Transfer-Encoding", "chunked")), 413, "request_too_large")
    assert provider.requests == []
    assert gateway.run(run)["calls"] == 1


def chunked(body: bytes) -> bytes:
    pieces = [body[start : start + MB] for start in range(0, len(body), MB)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
