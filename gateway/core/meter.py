"""Measures one answer while it is relayed: the provider's own usage if it reports one, else what was seen, counted.

Cheap by default: a piece of output costs the sum of its length. Tokens are counted only where 16 KB have gathered (which bounds
memory), where the output may have passed its cap, and at the end if the provider reported nothing.
"""

from dataclasses import replace
from typing import Final

from gateway.core.tokens import REFERENCE_ENCODING, TokenCounter, last_sure_cut, scaled, utf8_length
from gateway.core.values import Usage, UsageSource

_TAIL_CHARS: Final = 16_384
_LONGEST_UNCUT_CHARS: Final = 4_096  # longer text without a sure cut is cut anywhere
_CHECK_EVERY_BYTES: Final = 256


class Meter:
    """`covers_all_choices` is False where the call asks for several choices and the provider reports the tokens of one."""

    __slots__ = (
        "_bytes",
        "_checked_bytes",
        "_checked_tokens",
        "_counted",
        "_counter",
        "_covers",
        "_encoding",
        "_report",
        "_tail",
        "_tail_chars",
        "answer_id",
        "conversation_id",
        "pending",
        "pieces",
        "service_tier",
        "unknown",
        "unseen",
    )

    def __init__(self, counter: TokenCounter, encoding: str | None, covers_all_choices: bool = True) -> None:
        self._counter = counter
        self._encoding = encoding
        self._covers = covers_all_choices
        self._report: Usage | None = None
        self._bytes = 0
        self._counted = 0  # reference tokens of what is no longer in the tail
        self._tail: list[str] = []
        self._tail_chars = 0
        self._checked_bytes = 0  # at the last exact count …
        self._checked_tokens = 0  # … and what it gave
        self.answer_id: str | None = None  # by which a later request may continue this one
        self.conversation_id: str | None = None  # the same of all that has been said in it, also elsewhere
        self.service_tier: str | None = None  # the one that the provider says it served the call at
        # What was told or seen of what is billed by the piece. 0 tells that there was none; what is not here was not told.
        self.pieces: dict[str, int] = {}
        self.pending = False  # the answer says that it is still being made
        self.unknown: set[str] = set()  # fields of the report that nobody here can read, and that may be billed
        # Whether more may be billed by now than was seen: reasoning that is not shown, the results of the provider's tools. None: the
        # answer does not tell.
        self.unseen: bool | None = None

    # -- what the wire tells --------------------------------------------------------------------------------------------------

    def report(self, usage: Usage) -> None:
        """The provider's own usage so far; a later one replaces it. One without output tokens is good for its input only."""
        self._report = usage

    def text(self, piece: str) -> None:
        """Output as it passes: text, reasoning, refusals, names and arguments of tool calls, of all choices."""
        self._tail.append(piece)
        self._tail_chars += len(piece)
        self._bytes += utf8_length(piece)
        if self._tail_chars >= _TAIL_CHARS:
            self._fold()

    def served_at(self, service_tier: object) -> None:
        """The provider's word; what is none changes nothing."""
        if type(service_tier) is str:
            self.service_tier = service_tier

    # -- what the flow asks ---------------------------------------------------------------------------------------------------

    @property
    def relayed_bytes(self) -> int:
        return self._bytes

    @property
    def reported(self) -> bool:
        """The provider has said what the call used. Zeros say nothing: no call uses nothing, and no relayed output is free."""
        usage = self._report
        if usage is None:
            return False
        return usage.total_output_tokens > 0 or (usage.total_input_tokens > 0 and self._bytes == 0 and not self.unseen)

    @property
    def needs_text(self) -> bool:
        """False once the provider's report stands by itself, whatever output is still to be seen."""
        return self._report is None or self._report.total_output_tokens == 0 or not self._covers

    def exceeds(self, cap_tokens: int) -> bool:
        """Whether the output seen has surely passed the cap (of all choices together). Called for every chunk."""
        # Surely: another tokenizer may need half the reference's tokens, and cutting text into pieces adds a few.
        sure = 2 * cap_tokens if self._encoding is None else cap_tokens + cap_tokens // 128 + 1
        # There are never more tokens than bytes; after an exact count the same holds for the bytes since.
        since = self._bytes - self._checked_bytes
        if self._checked_tokens + since <= sure:
            return False
        if self._checked_tokens > sure:
            return True
        if since < min(_CHECK_EVERY_BYTES, cap_tokens):
            return False
        self._checked_tokens = self._reference_tokens()
        self._checked_bytes = self._bytes
        return self._checked_tokens > sure

    def within(self, tokens: int) -> bool:
        """Whether what is charged for the output seen is at most so much (of all choices together). Called for every chunk of a stream
        of which no more than that is held: unlike `exceeds` it gives the provider no benefit of a doubt."""
        report = self._report
        if report is not None and report.total_output_tokens > tokens:
            return False
        if scaled(self._checked_tokens + self._bytes - self._checked_bytes, self._encoding) <= tokens:
            return True
        self._checked_tokens = self._reference_tokens()
        self._checked_bytes = self._bytes
        return scaled(self._checked_tokens, self._encoding) <= tokens

    @property
    def charged_tokens(self) -> int:
        """The most that was charged for the output seen as of the last exact count: `within` makes one before it says no."""
        told = 0 if self._report is None else self._report.total_output_tokens
        return max(told, scaled(self._checked_tokens, self._encoding))

    @property
    def tokens_seen(self) -> int:
        """Of all choices together, as of the last exact count: `exceeds` makes one before it says yes."""
        return self._checked_tokens

    def usage(self, input_estimate: int, output_held: int | None = None) -> Usage:
        """What the call used, by the provider's word if it gave one. `output_held` is the cap of all choices together: the factor
        for a tokenizer that is not public does not lift a count above it."""
        report = self._report
        if self.reported and self._covers:
            assert report is not None
            return report
        counted = self._reference_tokens()
        output = scaled(counted, self._encoding)
        if output_held is not None:
            output = min(output, max(counted, output_held))
        if report is None or report.total_tokens == 0:
            return Usage(UsageSource.COUNTED, input_tokens=input_estimate, output_tokens=output)
        if report.total_output_tokens >= output:
            return report
        return replace(report, source=UsageSource.COUNTED, output_tokens=output)

    # -- counting -------------------------------------------------------------------------------------------------------------

    def _reference_tokens(self) -> int:
        if self._tail_chars > _CHECK_EVERY_BYTES:
            self._fold()
        tail = "".join(self._tail)
        self._tail = [tail]
        return self._counted + self._counter.count(tail, self._encoding or REFERENCE_ENCODING)

    def _fold(self) -> None:
        """Counts the tail up to its last sure cut and forgets that text."""
        text = "".join(self._tail)
        cut = last_sure_cut(text)
        if cut == 0 and len(text) >= _LONGEST_UNCUT_CHARS:
            cut = len(text)
            self._counted += 1
        if cut:
            self._counted += self._counter.count(text[:cut], self._encoding or REFERENCE_ENCODING)
            text = text[cut:]
        self._tail = [text]
        self._tail_chars = len(text)
