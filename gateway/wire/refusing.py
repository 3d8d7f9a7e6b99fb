"""How a refusal is written for the client that reads it. Pure: which client needs what is data (`data/clients.yaml`)."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from gateway.core.record import record
from gateway.wire.dialect import Dialect
from gateway.wire.problem import Problem

_UNAUTHORIZED = 401  # clients know what to do about a key
_WORD_JOINER = "\u2060"  # nobody sees it


@record
class Reader:
    """One client that would try a refused call again, or hide its text. What the fields mean stands in the file."""

    client: str
    user_agent: str  # in lower case
    status: int | None = None
    in_stream: bool = False
    misread: str | None = None


@record
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Readers:
    """What each client is told. A User-Agent is looked up once, as long as it is among those that were met last."""

    def __init__(self, readers: Sequence[Reader] = ()) -> None:
        self._readers = tuple(readers)
        self._of = lru_cache(maxsize=1024)(self._find)

    def answer(self, said: Problem, dialect: Dialect, user_agent: str, stream: bool) -> Answer:
        """`stream`: the call asked for one, as far as it was read."""
        final = 400 <= said.status < 500 and said.status != _UNAUTHORIZED and not said.retryable
        reader = self._of(user_agent) if final else None
        if reader is None:
            return Answer(said.status, said.headers(), said.body(dialect.shape))
        if reader.misread is not None:
            said = _unmistakable(said, reader.misread)
        if reader.in_stream and stream and dialect.refused_in_stream is not None:
            headers = [(name, value) for name, value in said.headers() if name != "content-type"]
            return Answer(200, [("content-type", dialect.streamed_types[0]), *headers], dialect.refused_in_stream(said))
        return Answer(reader.status or said.status, said.headers(), said.body(dialect.shape))

    def _find(self, user_agent: str) -> Reader | None:
        lower = user_agent.lower()
        return next((reader for reader in self._readers if reader.user_agent in lower), None)


def _unmistakable(said: Problem, misread: str) -> Problem:
    """No member of it, and no text, has what the expression matches: a person reads the same."""
    detail = re.sub(misread, lambda found: found[0][:1] + _WORD_JOINER + found[0][1:], said.detail)
    return replace(said, detail=detail, budget=None, alternatives=())
