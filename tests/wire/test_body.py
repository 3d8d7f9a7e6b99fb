"""Bodies are inflated within a limit and parsed so that nobody can read them in another way."""

import gzip
import zlib

import orjson
import pytest

from gateway.wire.body import inflate, parse_object
from gateway.wire.problem import Refused

BODY = b'{"model":"gpt-5","messages":[]}' * 20


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        (BODY, None),
        (BODY, ""),
        (BODY, "identity"),
        (gzip.compress(BODY, mtime=0), "gzip"),
        (gzip.compress(BODY, mtime=0), "GZIP"),
        (gzip.compress(BODY, mtime=0), "x-gzip"),
        (gzip.compress(BODY[:100], mtime=0) + gzip.compress(BODY[100:], mtime=0), "gzip"),
        (zlib.compress(BODY), "deflate"),
        (bare_deflate(BODY), "deflate"),
        (gzip.compress(zlib.compress(BODY), mtime=0), "deflate, gzip"),
        (gzip.compress(BODY, mtime=0), "identity, gzip"),
    ],
)
def test_a_body_is_inflated_to_what_the_client_meant(raw: bytes, encoding: str | None) -> None:
    assert inflate(raw, encoding, len(BODY)) == BODY


@pytest.mark.parametrize(
    ("raw", "encoding", "status", "code"),
    [
        (b"x", "zstd", 415, "unsupported_encoding"),
        (b"x", "br", 415, "unsupported_encoding"),
        (gzip.compress(BODY, mtime=0), "gzip, zstd", 415, "unsupported_encoding"),
        (b"x", "gzip, gzip, gzip, gzip, gzip", 415, "unsupported_encoding"),
        (gzip.compress(BODY, mtime=0)[:-3], "gzip", 400, "ambiguous_request"),
        (gzip.compress(BODY, mtime=0)[:20], "gzip", 400, "ambiguous_request"),
        (zlib.compress(BODY)[:-5], "deflate", 400, "ambiguous_request"),
        (gzip.compress(BODY, mtime=0) + b"junk", "gzip", 400, "ambiguous_request"),
        (zlib.compress(BODY) + b"junk", "deflate", 400, "ambiguous_request"),
        (BODY, "gzip", 400, "ambiguous_request"),
        (b"", "gzip", 400, "ambiguous_request"),
        (b"", "deflate", 400, "ambiguous_request"),
        (gzip.compress(b"", mtime=0) * 17, "gzip", 400, "ambiguous_request"),
        (b"x" * 1001, None, 413, "request_too_large"),
        (gzip.compress(b"x" * 1001, mtime=0), "gzip", 413, "request_too_large"),
        (gzip.compress(b"x" * 600, mtime=0) * 2, "gzip", 413, "request_too_large"),
        (zlib.compress(b"x" * 1001), "deflate", 413, "request_too_large"),
        (gzip.compress(gzip.compress(b"\0" * 10_000_000, mtime=0), mtime=0), "gzip, gzip", 413, "request_too_large"),
    ],
)
def test_a_body_that_cannot_be_inflated_is_refused(raw: bytes, encoding: str | None, status: int, code: str) -> None:
    with pytest.raises(Refused) as refused:
        inflate(raw, encoding, 20_000 if encoding == "gzip, gzip" else 1000)
    assert (refused.value.problem.status, refused.value.problem.code) == (status, code)


@pytest.mark.parametrize("size", [999, 1000])
def test_a_body_of_exactly_the_limit_passes(size: int) -> None:
    assert inflate(gzip.compress(b"x" * size, mtime=0), "gzip", 1000) == b"x" * size


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "empty"),
        (b"model=gpt-5", "not valid JSON"),
        (b"[1]", "not an object"),
        (b'"text"', "not an object"),
        (b"null", "not an object"),
        (b'{"a":1}{"a":2}', "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":Infinity}', "not valid JSON"),
        (b'{"a":1e999}', "not valid JSON"),
        (b'{"a":01}', "not valid JSON"),
        (b'{"a":"\\ud800"}', "not valid JSON"),
        (b'{"a":"\\udc00\\ud800"}', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (b'{"a":"\xed\xa0\x80"}', "not valid JSON"),
        (b'\xef\xbb\xbf{"a":1}', "not valid JSON"),
        ('{"a":1}'.encode("utf-16"), "not valid JSON"),
        (b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "not valid JSON"),
        (b'{"a":18446744073709551616}', "64 bits"),
        (b'{"a":-9223372036854775809}', "64 bits"),
        (b'{"a":[{"b":1180591620717411303424}]}', "64 bits"),
        (b'{"a":' + b"9" * 300 + b"}", "64 bits"),
        (b'{"id":"1234567890123456789012","a":[1,\n\t1234567890123456789012 ]}', "64 bits"),
        (b'{"a": 1234567890123456789012}', "64 bits"),
        (b'{"a":' + b"[" * 1000 + b"9" * 25 + b"]" * 1000 + b"}", "The request body "),
    ],
)
def test_a_body_that_can_be_read_in_two_ways_is_refused_and_told_why(raw: bytes, said: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_object(raw)
    assert refused.value.problem.code == "ambiguous_request"
    assert refused.value.problem.status == 400
    assert said in refused.value.problem.detail


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a":18446744073709551615}', 2**64 - 1),
        (b'{"a":"1234567890123456789012"}', "1234567890123456789012"),
        (b'{"a":"at 1234567890123456789012, then"}', "at 1234567890123456789012, then"),
        (b'{"a":-9223372036854775808}', -(2**63)),
        (b'{"a":0.12345678901234567890}', 0.12345678901234567890),
        (b'{"a":12345678901234567890.5}', 12345678901234567890.5),
        (b'{"a":"118059162071741130342400"}', "118059162071741130342400"),
        (b'{"a":"\\"1180591620717411303424, 1180591620717411303424"}', '"1180591620717411303424, 1180591620717411303424'),
        (b'{"a":1,"a":2}', 2),
    ],
)
def test_long_digits_are_fine_where_they_mean_one_thing_and_the_last_duplicate_counts(raw: bytes, value: object) -> None:
    assert parse_object(raw) == {"a": value}


def test_what_was_parsed_is_what_orjson_writes_again() -> None:
    body = b'{"a":[1,2.5,null,true,"\\u00e9 \\ud83c\\udf0d"],"b":{"c":{}}}'
    assert orjson.loads(orjson.dumps(parse_object(body))) == orjson.loads(body)
