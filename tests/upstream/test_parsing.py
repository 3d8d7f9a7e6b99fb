"""Answers cut at every byte, bent at random, and read beside a plain reading of HTTP/1.1."""

import gc
import random
import weakref

import pytest

from gateway.upstream.parsing import HEAD_MAX, AnswerParser, Malformed
from tests.upstream.answers import BROKEN, REFUSED_BY_LEAN, WHOLE, Raw, Read, chunked, plainly_read

CORPUS = {**WHOLE, **BROKEN, **REFUSED_BY_LEAN}
# What is in it is not the parser's to say.
AS_FRAMED = {name: raw for name, raw in CORPUS.items() if b"content-encoding" not in raw.written.lower()}


def read(pieces: list[bytes], raw: Raw) -> tuple[Read, list[tuple[str, str]], bool]:
    """What the parser makes of it, the headers, and whether the connection could be used again."""
    parser = AnswerParser(head_only=raw.method == "HEAD")
    body = b""
    try:
        for piece in pieces:
            if parser.ended:
                parser.surplus = True  # as the connection has it: nobody asked
                break
            parser.feed(piece)
            body += parser.taken()
        if raw.closes and not parser.ended:
            parser.close()
    except Malformed:
        pass
    reused = parser.ended and parser.keeps and not parser.surplus
    return Read(parser.status, body if parser.ended else None), list(parser.headers.items()), reused


@pytest.mark.parametrize("name", AS_FRAMED)
def test_an_answer_is_the_same_however_it_is_cut(name: str) -> None:
    raw = AS_FRAMED[name]
    whole = read([raw.written], raw)
    assert whole[0] == raw.read
    assert whole[2] == (raw.reused and raw.read.body is not None)
    cuts = range(1, len(raw.written), 1 if len(raw.written) < 4_000 else len(raw.written) // 200)
    for cut in cuts:
        assert read([raw.written[:cut], raw.written[cut:]], raw) == whole, cut
    assert read([raw.written[at : at + 1] for at in range(len(raw.written))], raw) == whole


@pytest.mark.parametrize("name", AS_FRAMED)
def test_the_plain_reading_reads_the_corpus_as_it_is_meant(name: str) -> None:
    raw = AS_FRAMED[name]
    if name not in REFUSED_BY_LEAN:
        assert plainly_read(raw.written, closes=raw.closes, head_only=raw.method == "HEAD").body == raw.read.body


@pytest.mark.parametrize("surplus", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"x", b"{}", b"0\r\n\r\n", b"\x00"])
@pytest.mark.parametrize("name", [name for name, raw in AS_FRAMED.items() if raw.read.body is not None and not raw.closes])
def test_what_follows_an_answer_changes_nothing_of_it_and_ends_its_connection(name: str, surplus: bytes) -> None:
    raw = AS_FRAMED[name]
    answer, headers, _ = read([raw.written], raw)
    for cut in (len(raw.written), len(raw.written) - 1, len(raw.written) + 1):
        written = raw.written + surplus
        assert read([written[:cut], written[cut:]] if cut < len(written) else [written], raw) == (answer, headers, False)
    assert read([raw.written + surplus], raw) == (answer, headers, False)


def test_a_head_has_its_bound_in_one_piece_or_many() -> None:
    fits = b"HTTP/1.1 200 OK\r\nX-A: " + b"x" * (HEAD_MAX - 200) + b"\r\nContent-Length: 0\r\n\r\n"
    large = b"HTTP/1.1 200 OK\r\nX-A: " + b"x" * HEAD_MAX + b"\r\nContent-Length: 0\r\n\r\n"
    for written, expected in ((fits, Read(200, b"")), (large, Read(0, None))):
        for size in (1 << 20, 4096, 100):
            assert read([written[at : at + size] for at in range(0, len(written), size)], Raw(written, expected))[0] == expected


def test_hints_without_end_are_a_head_without_end() -> None:
    parser = AnswerParser()
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    for _ in range(HEAD_MAX // len(hint)):
        parser.feed(hint)
    with pytest.raises(Malformed, match="longer"):
        parser.feed(hint)


def test_a_large_body_behind_a_small_head_is_no_large_head() -> None:
    raw = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000, Read(200, b"x" * 200_000))
    assert read([raw.written], raw)[0] == raw.read


@pytest.mark.parametrize("name", ["json", "chunks", "half a body", "no HTTP", "the answer to a HEAD"])
def test_an_answer_that_is_over_is_freed_without_the_garbage_collector(name: str) -> None:
    class Watched(AnswerParser):
        __slots__ = ("__weakref__",)

    gc.disable()
    try:
        parser = Watched(head_only=CORPUS[name].method == "HEAD")
        try:
            parser.feed(CORPUS[name].written)
            if not parser.ended:
                parser.close()
        except Malformed as failure:
            failure.__traceback__ = failure.__cause__ = failure.__context__ = None
        seen = weakref.ref(parser)
        del parser
        assert seen() is None
    finally:
        gc.enable()


# -- bent at random -----------------------------------------------------------------------------------------------------------------

_BITS = [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"0", b"1", b"f", b"\x00", b"\xff", b"-", b";", b",", b"\r\n\r\n", b"0\r\n\r\n",
         b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 C\r\n\r\n",
         b"Upgrade: x\r\n", b"chunked", b"gzip, "]  # fmt: skip


def bent(written: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(written) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            written = written[:at] + chance.choice(_BITS) + written[at:]
        elif kind == 1:
            written = written[:at] + written[at + chance.randint(1, 8) :]
        elif kind == 2:
            written = written[:at] + bytes([chance.randrange(256)]) + written[at + 1 :]
        elif kind == 3:
            other = chance.randrange(len(written) + 1)
            written = written[:at] + written[other : other + chance.randint(1, 40)] + written[at:]
        else:
            written = written[:at]
    return written


def bend_and_read(seed: int, rounds: int) -> int:
    """How many of the bent answers were read to their end."""
    chance = random.Random(seed)
    seeds = [raw for raw in AS_FRAMED.values() if 0 < len(raw.written) < 1500]
    seeds.append(
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"some text", (3, 1)), Read(200, b"some text"))
    )
    whole = 0
    for _ in range(rounds):
        raw = chance.choice(seeds)
        written = bent(raw.written, chance)
        raw = Raw(written, raw.read, chance.random() < 0.5, method=raw.method)
        first = read([written], raw)
        cuts = sorted(chance.sample(range(len(written) + 1), min(3, len(written))))
        pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True) if a < b]
        assert read(pieces, raw)[:2] == first[:2], (written, pieces)
        if first[0].body is not None:
            whole += 1
            assert plainly_read(written, closes=raw.closes, head_only=raw.method == "HEAD") == first[0], (written, raw.closes)
    return whole


def test_no_bent_answer_is_read_as_another_than_it_is() -> None:
    assert bend_and_read(1, 4_000) > 250


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(2, 12))
def test_no_bent_answer_is_read_as_another_than_it_is_for_long(seed: int) -> None:
    assert bend_and_read(seed, 60_000) > 4_000
