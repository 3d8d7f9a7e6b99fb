"""A meter that keeps what it is told, and the ways in which a stream may arrive in pieces."""

from collections.abc import Iterable, Iterator
from random import Random
from typing import Final

from gateway.core.meter import Meter
from gateway.core.tokens import TokenCounter
from gateway.core.values import Pieces, Usage, UsageSource
from tests.support.rulebooks import Words

EVERY_BYTE: Final = 4096


class Recorder(Meter):
    """`needs_text` stays true, so that all text is seen."""

    needs_text = True

    def __init__(self) -> None:
        super().__init__(TokenCounter(lambda _: Words()), "o200k_base")
        self.reports: list[Usage] = []
        self.texts: list[str] = []

    def report(self, usage: Usage) -> None:
        self.reports.append(usage)

    def text(self, piece: str) -> None:
        self.texts.append(piece)

    @property
    def written(self) -> str:
        return "".join(self.texts)

    @property
    def last(self) -> Usage | None:
        return self.reports[-1] if self.reports else None


def provider(fresh: int = 0, output: int = 0, cached: int = 0, written: int = 0, others: Pieces = ()) -> Usage:
    return Usage(UsageSource.PROVIDER, fresh, cached, written, output, others)


def chunkings(stream: bytes) -> Iterator[list[bytes]]:
    """Cut in two at every byte (of more than 4 KB: at 200 random ones, the same each time), cut at every byte, and in pieces of some odd
    sizes."""
    cuts: Iterable[int] = range(len(stream) + 1)
    if len(stream) > EVERY_BYTE:
        cuts = sorted(Random(len(stream)).sample(cuts, 200))
    for cut in cuts:
        yield [stream[:cut], stream[cut:]]
    for size in (1, 2, 3, 7, 64, 500):
        yield [stream[start : start + size] for start in range(0, len(stream), size)]
