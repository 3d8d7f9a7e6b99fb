"""What a model's tokenizer makes of text, where it is not public: the reference's count times a factor, learned from settled calls.

A factor belongs to one model, one tenant and one kind of text: what one tenant sends never changes another's holds, and much
text of one kind says nothing about another. Kinds are told apart by script (bytes a character) and density (characters a token):
measured with Gemma's tokenizer, the factor lies between 1.0 and 1.36 for code and English, and between 0.5 and 0.8 for others.

It starts at 7/4, and stays there until samples of 300 tokens in all are in. Then it is the largest of the last 1,000 to 2,000 samples and a margin, which is
wide while they are few: it rises at once and falls slowly. Of samples alike, a new one passes the largest of the last n in one case
of n + 1: with 1,000, in one of 1,000. A flood of text that compresses well fills the window only with its own kind.
"""

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Final, TypeAlias

from gateway.core.recent import Recent
from gateway.core.record import record
from gateway.core.tokens import FACTOR, utf8_length
from gateway.core.values import Part

# Ratios are in thousandths. No tokenizer in use lies outside these limits for text that is worth a sample.
LEAST: Final = 400
MOST: Final = 3_000
WINDOW: Final = 1_000  # samples
TOKENS_AT_LEAST: Final = 300  # of the reference, in all samples of a kind, before its factor moves
SAMPLE_TOKENS: Final = 48  # what is shorter says more about the frame of a message than about text

# What is added for a message's frame beyond OpenAI's rule, by the templates of open models: `<|start_header_id|>` and the like.
MESSAGE_TOKENS: Final = 4

_START: Final = 1_000 * FACTOR[0] // FACTOR[1]
_MARGIN: Final = 40
_MARGIN_WHILE_FEW: Final = 250  # divided by the square root of the number of samples
_ELSEWHERE: Final = 1_250  # a kind not seen yet, in a script that was: the largest of the others times this
_MAIN_SHARE: Final = 600  # thousandths of a sample that must be of one script for it to teach about that
_DENSITIES: Final = (1_500, 2_500, 3_500, 6_000)  # characters a thousand reference tokens
_SCRIPTS: Final = (1_120, 1_500)  # bytes a thousand characters: Latin, mixed or accented, other


Count: TypeAlias = Callable[[Sequence[Part]], int]


@record
class Kind:
    """Of text: two small numbers."""

    script: int
    density: int

    @classmethod
    def of(cls, parts: Sequence[Part], reference_tokens: int) -> "Kind":
        chars = size = 0
        for part in parts:
            for text in part.texts:
                chars += len(text)
                size += utf8_length(text)
        wide = 1000 * size // max(1, chars)
        dense = 1000 * chars // max(1, reference_tokens)
        return cls(sum(wide > bound for bound in _SCRIPTS), sum(dense > bound for bound in _DENSITIES))


class _Largest:
    """The largest of the last one to two windows of samples."""

    __slots__ = ("before", "largest", "samples", "tokens", "within")

    def __init__(self) -> None:
        self.samples = 0
        self.tokens = 0
        self.within = 0  # samples in this window
        self.largest = 0
        self.before = 0  # in the window before

    def take(self, ratio: int, tokens: int) -> None:
        if self.within >= WINDOW:
            self.before, self.largest, self.within = self.largest, 0, 0
        self.samples += 1
        self.within += 1
        self.tokens += tokens
        self.largest = max(self.largest, ratio)

    @property
    def known(self) -> bool:
        return self.tokens >= TOKENS_AT_LEAST

    @property
    def value(self) -> int:
        return max(self.largest, self.before) * (1000 + _MARGIN + _MARGIN_WHILE_FEW // max(1, isqrt(self.samples))) // 1000


class Factor:
    """Of one model and tenant. A new one knows nothing. `count` gives the reference's count of parts."""

    __slots__ = ("_by_kind",)

    def __init__(self) -> None:
        self._by_kind: dict[Kind, _Largest] = {}

    def scaled(self, parts: Sequence[Part], count: Count) -> int:
        """What to reckon with for the parts' texts. Rounds up."""
        if not self._by_kind:
            return -(-count(parts) * _START // 1000)
        tokens = MESSAGE_TOKENS * len(parts)
        for group in _by_script(parts):
            reference = count(group)
            tokens += -(-reference * self._ratio(Kind.of(group, reference)) // 1000)
        return tokens

    def learn(self, tokens: int, parts: Sequence[Part], count: Count) -> bool:
        """From what the provider counted for the parts. False: that can't be a tokenizer's doing, and nothing is learned."""
        groups = sorted(((count(group), group) for group in _by_script(parts)), key=lambda pair: -pair[0])
        reference = sum(pair[0] for pair in groups)
        ratio = -(-tokens * 1000 // max(1, reference))
        if reference < SAMPLE_TOKENS:
            return ratio <= MOST or tokens <= SAMPLE_TOKENS
        if not LEAST <= ratio <= MOST:
            return False
        main, group = groups[0]
        if main * 1000 >= reference * _MAIN_SHARE:
            # What stands beside it in another script takes what that has taken so far; nothing of it is credited to the main one.
            beside = sum(other * min(ratio, self._seen(Kind.of(texts, other))) for other, texts in groups[1:])
            ratio = max(ratio, -(-(tokens * 1000 - beside) // main))
            self._by_kind.setdefault(Kind.of(group, main), _Largest()).take(min(ratio, MOST), main)
        return True

    def _seen(self, kind: Kind) -> int:
        own = self._by_kind.get(kind)
        return MOST if own is None else own.largest

    def _ratio(self, kind: Kind) -> int:
        own = self._by_kind.get(kind)
        if own is not None and own.known:
            return own.value
        seen = self._by_kind.copy()  # something may be learned meanwhile, on another thread
        others = [each.value for other, each in seen.items() if other.script == kind.script and each.known]
        least = own.largest if own is not None else 0  # what was seen once already is no guess
        return max(least, max(others) * _ELSEWHERE // 1000 if others else _START)


def _by_script(parts: Sequence[Part]) -> Sequence[Sequence[Part]]:
    """The parts, each script's by themselves; mostly all of them are of one."""
    groups: dict[int, list[Part]] = {}
    for part in parts:
        groups.setdefault(Kind.of((part,), 1).script, []).append(part)
    return tuple(groups.values()) if len(groups) > 1 else (parts,)


class Factors:
    """Of all models and tenants lately seen."""

    def __init__(self, entries: int = 4_096) -> None:
        self._known: Recent[tuple[str, str], Factor] = Recent(entries)

    def of(self, tenant: str, model: str) -> Factor:
        """To read."""
        return self._known.get((tenant, model)) or UNKNOWN

    def learning(self, tenant: str, model: str) -> Factor:
        """To write."""
        known = self._known.get((tenant, model))
        if known is None:
            known = Factor()
            self._known.put((tenant, model), known)
        return known


UNKNOWN: Final = Factor()
