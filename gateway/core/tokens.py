"""Counts tokens: exactly where the tokenizer is public, never knowingly low, in time that grows with the text and no faster.

Text longer than a piece is cut where no public tokenizer can join across: between a non-space and a space, or between a letter or
digit and a newline. Where no such place is near (CJK, base64, a million spaces), the cut is forced and one token is added for it.
Where the tokenizer fails on a piece, the piece's UTF-8 length stands in: a byte-level tokenizer never makes more tokens than bytes.

Counts of messages are remembered, so that a conversation costs only what is new in it. What is remembered is a keyed hash of the
text (Python's own SipHash, whose key is random in each process) and its length, never the text: prompts don't outlive their call.
Measured per MB on one core: SipHash 0.35 ms, SHA-1 0.95, SHA-256 1.1, BLAKE2b 1.5, tokenizing 85 to 400 (tiktoken). And strings remember
their SipHash, so the second model of a ladder looks up for next to nothing.

Nothing here does I/O: the tokenizers come through the constructor. Everything may be called from several threads at once.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.core.record import record
from gateway.core.values import Part

# OpenAI's published rule for chat: each message, each `name`, and once per request what opens the answer.
CHAT_MESSAGE_TOKENS: Final = 3
CHAT_NAME_TOKENS: Final = 1
CHAT_PRIMING_TOKENS: Final = 3

# Models without a public tokenizer are counted with the weaker of OpenAI's two, times a factor. The factor is not a bound: bytes
# would be one, at three to four times the truth, which starves every other call of the run. Published measurements: Claude
# before Opus 4.7 makes 1.1 (prose) to 1.25 (code) times the tokens of cl100k_base, Opus 4.7 up to 1.47 times that on English;
# 1.7 was the most seen on ordinary text. cl100k_base rather than o200k_base because it is as poor outside Latin script as most are.
# And each digit for itself, as many of them have it, where OpenAI's take three at once: the one thing in which tokenizers differ by
# more than a third (measured with Gemma's: 1.3 to 1.85 times on data full of numbers, 1.0 to 1.1 so counted).
REFERENCE_ENCODING: Final = "cl100k_base"
REFERENCE: Final = "reference"  # the name of that count among those of encodings
FACTOR: Final = (7, 4)  # until one is learned: see `factors`

_PIECE_CHARS: Final = 16_384  # about 1.5 ms of ordinary text, 6 ms of the worst; far below what makes the tokenizer panic
_CUT_WITHIN_CHARS: Final = 2_048
_SURE_CUT: Final = re.compile(r"(?<=\S) |(?<=[^\W_])\n")
_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_DIGITS: Final = re.compile(r"[0-9]{2,3}")  # as many as are one token of the reference encoding


class Tokenizer(Protocol):
    """Of one encoding."""

    def count(self, text: str) -> int:
        """Exactly. May raise whatever it likes on text that it can't read, and may be slow on text without end: see `_PIECE_CHARS`."""


class PartsCounter(Protocol):
    """Counts a call's parts: a `TokenCounter`, or what one decision has counted already."""

    def count_parts(self, parts: Sequence[Part], encoding: str | None) -> int: ...


@record
class Tally:
    """What is known about the parts of a call without tokenizing anything, and what is not."""

    encoding: str | None
    tokens: int  # of the parts that were counted before, and all overhead; not yet scaled
    pending: tuple[Part, ...]
    pending_chars: int  # how much text `finish` would tokenize: above some 50,000, do it in a thread


def scaled(reference_tokens: int, encoding: str | None) -> int:
    """What to reckon with where the reference encoding only stands in for the model's own. Rounds up."""
    if encoding is not None:
        return reference_tokens
    numerator, denominator = FACTOR
    return -(-reference_tokens * numerator // denominator)


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def last_sure_cut(text: str) -> int:
    """The last place near the end where text that is still growing can be cut without changing its count; 0: there is none."""
    cut = 0
    for match in _SURE_CUT.finditer(text, max(1, len(text) - _CUT_WITHIN_CHARS)):
        cut = match.start()
    return cut


class TokenCounter:
    """`tokenizers` gives that of an encoding by its name (and may be slow the first time: ask it beforehand)."""

    def __init__(self, tokenizers: Callable[[str], Tokenizer], cache_entries: int = 32_768) -> None:
        self._tokenizers = tokenizers
        self._counts: dict[str, Callable[[str], int]] = {}
        self._roles: dict[tuple[str, str], int] = {}  # (encoding, one of `_ROLES`) → tokens
        # The least recently used go first, roughly: what is used moves to the young generation; when that is full, the old one
        # is dropped whole. Unlike an ordered dict it needs no lock, and a look-up of something recent changes nothing.
        self._generation_entries = max(1, cache_entries // 2)
        self._young: dict[tuple[str, int, int], int] = {}
        self._old: dict[tuple[str, int, int], int] = {}

    # -- messages -------------------------------------------------------------------------------------------------------------

    def look_up(self, parts: Sequence[Part], encoding: str | None) -> Tally:
        """Never tokenizes: cheap on the event loop whatever comes in."""
        name = encoding or REFERENCE
        young = self._young
        tokens = pending_chars = 0
        pending = []
        for part in parts:
            tokens += part.overhead_tokens
            texts = part.texts
            if not texts:
                continue
            chars = sum(map(len, texts))
            key = (name, hash(texts), chars)
            known = young.get(key)
            if known is None and (known := self._old.get(key)) is not None:
                self._remember(key, known)
            if known is None:
                pending.append(part)
                pending_chars += chars
            else:
                tokens += known
        return Tally(encoding, tokens, tuple(pending), pending_chars)

    def finish(self, tally: Tally) -> int:
        """Tokenizes what is pending, remembers it, and returns the whole count."""
        name = tally.encoding or REFERENCE
        tokens = tally.tokens
        for part in tally.pending:
            texts, counted = part.texts, 0
            for text in texts:
                counted += self._role(text, name) if text in _ROLES else self._count(text, name)
            self._remember((name, hash(texts), sum(map(len, texts))), counted)
            tokens += counted
        return scaled(tokens, tally.encoding)

    def count_parts(self, parts: Sequence[Part], encoding: str | None) -> int:
        """Texts and overhead of all parts, times the factor where `encoding` is None (`REFERENCE`: without it). Images and attachments
        are `estimate`'s."""
        return self.finish(self.look_up(parts, encoding))

    def _remember(self, key: tuple[str, int, int], tokens: int) -> None:
        if len(self._young) >= self._generation_entries:
            self._old, self._young = self._young, {}
        self._young[key] = tokens

    def _role(self, role: str, name: str) -> int:
        """Every message has one: the tokenizer is asked once for each."""
        tokens = self._roles.get((name, role))
        if tokens is None:
            tokens = self._roles[name, role] = self._count(role, name)
        return tokens

    # -- text -----------------------------------------------------------------------------------------------------------------

    def count(self, text: str, encoding: str | None) -> int:
        """One text, not remembered."""
        return scaled(self._count(text, encoding or REFERENCE), encoding)

    def _count(self, text: str, name: str) -> int:
        if not text:
            return 0
        if name == REFERENCE:
            return self._count(text, REFERENCE_ENCODING) + sum(len(digits) - 1 for digits in _DIGITS.findall(text))
        count = self._counts.get(name)
        if count is None:
            count = self._counts[name] = self._tokenizers(name).count
        tokens = start = 0
        while len(text) - start > _PIECE_CHARS:
            end = start + _PIECE_CHARS
            cut = _SURE_CUT.search(text, end - _CUT_WITHIN_CHARS, end)
            if cut is None:
                tokens += 1
            else:
                end = cut.start()
            tokens += _count_piece(count, text[start:end])
            start = end
        return tokens + _count_piece(count, text[start:] if start else text)


def _count_piece(count: Callable[[str], int], piece: str) -> int:
    try:
        return count(piece)
    except BaseException as failure:
        # An estimate that fails must not become zero, so whatever the tokenizer raises is met here. Rust's panics reach Python
        # as a BaseException whose class can't be imported; anything else of that kind (an interrupt, an exit, a cancellation)
        # is not the tokenizer's and goes on.
        if not isinstance(failure, Exception) and type(failure).__name__ != "PanicException":
            raise
        return utf8_length(piece)
