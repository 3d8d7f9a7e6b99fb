"""What an answer used: the provider's word where it gave one, else what was seen, counted."""

from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.bundled import load_encoding, load_tokenizer
from gateway.core.meter import Meter
from gateway.core.tokens import TokenCounter
from gateway.core.values import Usage, UsageSource

COUNTER = TokenCounter(load_tokenizer)
PROSE = "The mill turns, and the gate says how much water passes. It doesn't stop the river.\n\nnext_line = 12345\n"


def truth(text: str) -> int:
    return len(load_encoding("o200k_base").encode_ordinary(text))


def meter(*pieces: str, encoding: str | None = "o200k_base", covers_all_choices: bool = True) -> Meter:
    made = Meter(COUNTER, encoding, covers_all_choices)
    for piece in pieces:
        made.text(piece)
    return made


def reported(input_tokens: int = 10, output_tokens: int = 5, cached: int = 0) -> Usage:
    return Usage(UsageSource.PROVIDER, input_tokens, cached, 0, output_tokens)


def counted(input_tokens: int, output_tokens: int) -> Usage:
    return Usage(UsageSource.COUNTED, input_tokens, output_tokens=output_tokens)


# -- usage --------------------------------------------------------------------------------------------------------------------


def test_the_providers_usage_is_the_usage() -> None:
    relayed = meter("some text")
    relayed.report(reported(10, 5, cached=3))
    assert relayed.reported
    assert relayed.usage(999) == reported(10, 5, cached=3)


def test_a_later_report_replaces_an_earlier_one() -> None:
    relayed = meter()
    relayed.report(reported(10, 1))
    relayed.report(reported(10, 7))
    assert relayed.usage(999) == reported(10, 7)


def test_without_a_report_the_input_estimate_and_the_relayed_text_are_charged() -> None:
    relayed = meter("Hello", " world", "!")
    assert not relayed.reported
    assert relayed.usage(42) == counted(42, truth("Hello world!"))


def test_nothing_relayed_and_nothing_reported_is_the_input_alone() -> None:
    assert meter().usage(42) == counted(42, 0)


@pytest.mark.parametrize("pieces", [("Hello",), ()])
def test_a_report_of_zeros_counts_as_none(pieces: tuple[str, ...]) -> None:
    relayed = meter(*pieces)
    relayed.report(reported(0, 0))
    assert not relayed.reported
    assert relayed.usage(42) == counted(42, len(pieces))


def test_a_report_without_the_relayed_output_is_good_for_its_input() -> None:
    relayed = meter("Hello world")
    relayed.report(reported(10, 0, cached=90))
    assert not relayed.reported
    assert relayed.usage(999) == Usage(UsageSource.COUNTED, 10, 90, 0, 2)


def test_a_report_of_input_alone_is_believed_where_no_output_came() -> None:
    relayed = meter()
    relayed.report(reported(10, 0))
    assert relayed.reported
    assert relayed.usage(999) == reported(10, 0)


def test_where_the_report_covers_one_choice_of_several_the_larger_of_it_and_the_count_is_charged() -> None:
    output = truth(PROSE * 2)
    for said, expected in (
        (output - 1, Usage(UsageSource.COUNTED, 10, output_tokens=output)),
        (output + 1, reported(10, output + 1)),
    ):
        relayed = meter(PROSE, PROSE, covers_all_choices=False)
        relayed.report(reported(10, said))
        assert relayed.usage(999) == expected


def test_without_a_public_tokenizer_the_count_is_scaled_but_not_above_what_was_held() -> None:
    text = "word " * 100  # 101 tokens of the reference
    assert meter(text, encoding=None).usage(1).output_tokens == 177
    assert meter(text, encoding=None).usage(1, output_held=1_000).output_tokens == 177
    assert meter(text, encoding=None).usage(1, output_held=150).output_tokens == 150
    assert meter(text, encoding=None).usage(1, output_held=50).output_tokens == 101


def test_a_count_by_the_models_own_tokenizer_is_not_cut_to_what_was_held() -> None:
    assert meter(PROSE).usage(1, output_held=3).output_tokens == truth(PROSE)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 40))
def test_however_the_text_is_cut_into_chunks_the_count_is_the_same(sizes: list[int], repeats: int) -> None:
    text, at, pieces = PROSE * 8 * repeats, 0, []
    while at < len(text):
        pieces.append(text[at : at + sizes[len(pieces) % len(sizes)]])
        at += len(pieces[-1])
    assert meter(*pieces).usage(0).output_tokens == truth(text)


# -- bounded ------------------------------------------------------------------------------------------------------------------


class Counting:
    """The real tokenizer, and how much text it was given."""

    def __init__(self) -> None:
        self.chars = 0

    def count(self, text: str) -> int:
        self.chars += len(text)
        return load_tokenizer("o200k_base").count(text)


def test_short_output_is_not_tokenized_until_someone_asks() -> None:
    tokenizer = Counting()
    relayed = Meter(TokenCounter(lambda _: tokenizer), "o200k_base")
    for _ in range(50):
        relayed.text(PROSE)
        assert not relayed.exceeds(8192)
    relayed.report(reported(10, 1200))
    relayed.usage(10)
    assert tokenizer.chars == 0


@pytest.mark.parametrize("piece", [" water", "水", "a", "\n", " "])
def test_a_long_stream_keeps_little_text_and_tokenizes_each_about_once(piece: str) -> None:
    tokenizer = Counting()
    relayed = Meter(TokenCounter(lambda _: tokenizer), "o200k_base")
    for _ in range(100_000):
        relayed.text(piece)
        assert relayed._tail_chars <= 16_384 + len(piece)
    assert tokenizer.chars <= 1.1 * len(piece) * 100_000
    # Compared with a tenth of the text, which the tokenizer takes in one.
    assert truth(piece * 10_000) * 10 * 0.99 <= relayed.usage(0).output_tokens <= truth(piece * 10_000) * 10 * 1.05


def test_the_bytes_relayed_are_summed_as_utf8() -> None:
    assert meter("naïve", " 水", "\ud800").relayed_bytes == 6 + 4 + 3


# -- the cap ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [" water", " naïve", "水", "!", "\n", "aaaa"])
@pytest.mark.parametrize("cap", [1, 10, 300, 4_000])
def test_output_within_its_cap_never_exceeds_it_and_output_beyond_is_noticed_soon(piece: str, cap: int) -> None:
    within = bisect_right(range(200_000), cap, key=lambda times: truth(piece * times)) - 1
    relayed = meter()
    for _ in range(within):
        relayed.text(piece)
        assert not relayed.exceeds(cap)
    beyond = 0
    while not relayed.exceeds(cap):
        relayed.text(piece)
        beyond += 1
        assert beyond < 50_000
    # Noticed at the latest with the next check, 256 bytes after what is sure.
    assert truth(piece * (within + beyond)) <= cap + cap // 64 + 256


def test_with_an_unknown_tokenizer_only_twice_the_cap_is_sure() -> None:
    relayed = meter("word " * 180, encoding=None)
    assert not relayed.exceeds(100)
    relayed.text("word " * 100)
    assert relayed.exceeds(100)


def test_a_cap_that_was_raised_is_exceeded_later() -> None:
    relayed = meter("word " * 400)
    assert relayed.exceeds(300)
    assert relayed.exceeds(300), "asked again, it says the same"
    assert not relayed.exceeds(812)
    relayed.text("word " * 500)
    assert relayed.exceeds(812)


def test_asking_for_every_chunk_tokenizes_little() -> None:
    tokenizer = Counting()
    relayed = Meter(TokenCounter(lambda _: tokenizer), "o200k_base")
    for _ in range(4_000):
        relayed.text(" water")
        assert not relayed.exceeds(4_000)
    assert tokenizer.chars <= 3 * 4_000 * len(" water")
