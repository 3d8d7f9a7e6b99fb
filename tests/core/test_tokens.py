"""Counting is exact where it can be, never low, bounded in time, and paid once per message."""

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.bundled import load_encoding, load_tokenizer
from gateway.core import tokens
from gateway.core.tokens import REFERENCE, TokenCounter, Tokenizer, last_sure_cut
from gateway.core.values import Part

ENCODINGS = ["o200k_base", "cl100k_base"]
MILLION = 1_000_000

PROSE = (
    "A penstock is the gate that meters the water into a mill. It doesn't stop the river; it says how much of it passes.\n\n"
    "\tdef price_of(tokens: int, rate: int) -> int:\n        return -(-tokens * rate // 1_000_000)  # rounds up\n"
    '{"id": "bdg_42", "usd": "4.91", "tags": ["a", "b"]}\r\n  Größe: 1234567 m², naïve café, 東京は夜の七時。 😀 👩‍👩‍👧   end   \n'
)


def truth(text: str, encoding: str) -> int:
    return len(load_encoding(encoding).encode_ordinary(text))


def parts(*texts: str, overhead: int = 0) -> tuple[Part, ...]:
    return tuple(Part("user", (text,), overhead) for text in texts)


class Words:
    """A tokenizer of one token per word that remembers what it was asked for, or raises."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.asked: list[str] = []
        self.failure = failure

    def count(self, text: str) -> int:
        self.asked.append(text)
        if self.failure is not None:
            raise self.failure
        return len(text.split())

    def counter(self, cache_entries: int = 1000) -> TokenCounter:
        return TokenCounter(lambda _: self, cache_entries)


# -- exact --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("text", ["", "hello", PROSE, "<|endoftext|>", PROSE * 300])
def test_text_is_counted_exactly_however_long(text: str, encoding: str) -> None:
    assert TokenCounter(load_tokenizer).count(text, encoding) == truth(text, encoding)


# Letters, digits, punctuation, apostrophes, marks, spaces of several kinds and line ends: all that pretokenizers tell apart.
mixed = st.text(st.sampled_from("aBzÉß1٣9 .,'/_-#sttrevelld\n\r\t\u00a0\u3000\u200b\u0301\x1c\x1d東京ก😀\ud800"), max_size=80)


@settings(max_examples=400)
@given(mixed, st.sampled_from(ENCODINGS))
def test_a_sure_cut_never_changes_a_count(text: str, encoding: str) -> None:
    for cut in tokens._SURE_CUT.finditer(text):
        assert truth(text[: cut.start()], encoding) + truth(text[cut.start() :], encoding) == truth(text, encoding)


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["word", " word", " ", "\n", "東京", "aaaa", "    ", "12345", "!!", "😀", "é"]), max_size=120).map(
        "".join
    )
)
def test_a_forced_cut_never_counts_low(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_PIECE_CHARS", 32)
        patch.setattr(tokens, "_CUT_WITHIN_CHARS", 8)
        assert TokenCounter(load_tokenizer).count(text, "o200k_base") >= truth(text, "o200k_base")


def test_text_that_is_still_growing_is_cut_where_what_follows_cannot_matter() -> None:
    assert last_sure_cut("one two thr") == len("one two")
    assert last_sure_cut("one\n") == 3
    assert [last_sure_cut(text) for text in ("", "one", " one", "   ", "!\n")] == [0, 0, 0, 0, 0]


# -- bounded ------------------------------------------------------------------------------------------------------------------


def random_unicode(length: int) -> str:
    draw = random.Random(7)
    return "".join(chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])) for _ in range(length))


@pytest.mark.parametrize(
    ("name", "text", "at_least"),
    [
        ("spaces", " " * MILLION, MILLION // 128),
        ("letters", "a" * MILLION, MILLION // 8),
        ("newlines", "\n" * MILLION, MILLION // 16),
        ("lone surrogates", "\ud800" * 100_000, 100_000 // 8),
        ("random unicode", random_unicode(250_000), 250_000),
        ("a word without end", "ab" * (MILLION // 2), MILLION // 8),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "",
)
def test_hostile_text_is_counted_soon_and_not_low(name: str, text: str, at_least: int) -> None:
    began = time.perf_counter()
    counted = TokenCounter(load_tokenizer).count(text, "o200k_base")
    assert time.perf_counter() - began < 8  # measured: 0.3; leaves room for a busy machine
    assert at_least <= counted <= len(text.encode("utf-8", "surrogatepass")) + len(text) // 16_384 + 1


class PanicException(BaseException):
    """What tiktoken raises when its regex engine gives up, by name: the real class can't be imported."""


@pytest.mark.parametrize("failure", [PanicException(), ValueError(), RecursionError(), MemoryError()], ids=repr)
def test_where_the_tokenizer_fails_the_bytes_are_counted(failure: BaseException) -> None:
    assert Words(failure).counter().count("naïve\ud800", "o200k_base") == 9


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), SystemExit(), asyncio.CancelledError(), GeneratorExit()], ids=repr)
def test_what_is_not_the_tokenizers_failure_goes_on(failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        Words(failure).counter().count("hello", "o200k_base")


def test_only_the_piece_that_fails_is_counted_in_bytes() -> None:
    class FailsOnce(Words):
        def count(self, text: str) -> int:
            if not self.asked:
                self.asked.append(text)
                raise PanicException
            return super().count(text)

    words = FailsOnce()
    counted = words.counter().count("word " * 8_000, "o200k_base")
    assert len(words.asked) == 3
    assert counted == len(words.asked[0]) + sum(len(piece.split()) for piece in words.asked[1:])


# -- remembered ---------------------------------------------------------------------------------------------------------------


def test_a_conversation_that_grew_by_one_message_costs_only_that_message() -> None:
    words = Words()
    counter = words.counter()
    history = [f"message {n}" for n in range(100)]
    counter.count_parts(parts(*history), "o200k_base")
    words.asked.clear()
    assert counter.count_parts(parts(*history, "one more"), "o200k_base") == 202
    assert words.asked == ["one more"]


def test_what_is_pending_is_told_beforehand_and_looking_up_tokenizes_nothing() -> None:
    words = Words()
    counter = words.counter()
    counter.count_parts(parts("known text"), "o200k_base")
    words.asked.clear()
    tally = counter.look_up(parts("known text", "new text here", overhead=3), "o200k_base")
    assert (tally.tokens, tally.pending_chars, len(tally.pending)) == (8, len("new text here"), 1)
    assert words.asked == []
    assert counter.finish(tally) == 11
    assert counter.look_up(parts("known text", "new text here"), "o200k_base").pending == ()


def test_each_encoding_has_its_own_counts() -> None:
    counter = TokenCounter(load_tokenizer)
    text = "東京は夜の七時。" * 20
    assert [counter.count_parts(parts(text), encoding) for encoding in ENCODINGS] == [
        truth(text, encoding) for encoding in ENCODINGS
    ]


def test_overhead_is_not_remembered_with_the_text() -> None:
    counter = TokenCounter(load_tokenizer)
    assert counter.count_parts(parts("hello", overhead=3), "o200k_base") == 4
    assert counter.count_parts(parts("hello", overhead=7), "o200k_base") == 8


def test_texts_that_differ_only_in_where_they_end_are_told_apart() -> None:
    words = Words()
    counter = words.counter()
    assert counter.count_parts([Part("user", ("a b", "c"))], "o200k_base") == 3
    assert counter.count_parts([Part("user", ("a", " bc"))], "o200k_base") == 2


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    words = Words()
    counter = words.counter(cache_entries=20)
    counter.count_parts(parts("used", "unused"), "o200k_base")
    for n in range(200):
        counter.count_parts(parts(f"passing {n}", "used"), "o200k_base")
    words.asked.clear()
    counter.count_parts(parts("used"), "o200k_base")
    assert words.asked == []
    counter.count_parts(parts("unused", *(f"passing {n}" for n in range(200))), "o200k_base")
    assert "unused" in words.asked
    assert len(words.asked) >= 181


def test_a_tokenizer_is_asked_for_once() -> None:
    asked: list[str] = []

    def tokenizers(name: str) -> Tokenizer:
        asked.append(name)
        return Words()

    counter = TokenCounter(tokenizers)
    for n in range(3):
        counter.count_parts(parts(f"message {n}"), "o200k_base")
    assert asked == ["o200k_base"]


def test_several_threads_count_the_same() -> None:
    counter = TokenCounter(load_tokenizer, cache_entries=64)
    conversations = [parts(*(f"{PROSE[n:]} {m}" for n in range(20))) for m in range(8)]
    expected = [sum(truth(part.texts[0], "o200k_base") for part in each) for each in conversations]
    with ThreadPoolExecutor(8) as pool:
        counted = list(pool.map(lambda each: counter.count_parts(each, "o200k_base"), conversations * 8))
    assert counted == expected * 8


def test_a_long_known_conversation_is_looked_up_and_not_counted() -> None:
    words = Words()
    counter = words.counter()
    texts = [f"{n} {PROSE * 5}" for n in range(100)]
    first = counter.count_parts(parts(*texts), "o200k_base")
    asked = len(words.asked)
    # Fresh strings, as a parser makes them.
    assert counter.count_parts(parts(*(text[:-1] + text[-1] for text in texts)), "o200k_base") == first
    assert len(words.asked) == asked


# -- no public tokenizer ------------------------------------------------------------------------------------------------------


def test_without_a_public_tokenizer_the_reference_counts_times_a_factor() -> None:
    counter = TokenCounter(load_tokenizer)
    # Each digit for itself: "42", "4.91" and the "1_000_000" and "1234567" of the text, which the reference takes three at once.
    reference = truth(PROSE, "cl100k_base") + 1 + 1 + (2 + 2) + (2 + 2)
    assert counter.count(PROSE, REFERENCE) == reference
    assert counter.count(PROSE, None) == -(-reference * 7 // 4)
    # The whole sum is scaled and rounded once, overhead included.
    assert counter.count_parts(parts(PROSE, "hello", overhead=3), None) == -(-(reference + 1 + 6) * 7 // 4)
