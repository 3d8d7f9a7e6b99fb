"""What the ledger keeps with a reservation, a decision or an event so that the plane can tell of it again: short JSON, written here only.

with a hold          what was asked for (`Held`); of a dry run also the answer, which its record exists for
with its end         by which key it was ended, and what the client was told (`Closed`)
as a note            of an extension or a decision: see `Extended`, `Answered`
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import orjson

from gateway.core.record import record

OVERAGES: Final = {"REJECT": "r", "ALLOW_IF_AVAILABLE": "a", "ALLOW_WITH_OVERDRAFT": "o"}
_WORDS: Final = {letter: word for word, letter in OVERAGES.items()}


def digest(of: object) -> str:
    """Of a request: equal JSON has equal ones, in whatever order its members came."""
    return hashlib.sha256(orjson.dumps(of, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


@lru_cache(maxsize=4_096)
def tenant_mark(tenant: str) -> str:
    """What every id of the tenant's carries, so that an id of another's is known for one."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:8]


@record
class Held:
    """`charged`: of an event that was told to have been charged less than it cost."""

    key: str
    digest: str
    subject: Mapping[str, object]
    action: Mapping[str, object]
    unit: str
    amount: int
    ttl_ms: int = 0
    grace_ms: int = 0
    overage: str = "ALLOW_IF_AVAILABLE"
    caps: Mapping[str, object] | None = None
    metadata: Mapping[str, object] | None = None
    answer: Mapping[str, object] | None = None
    charged: int | None = None

    @property
    def text(self) -> str:
        told: dict[str, object] = {
            "k": self.key,
            "d": self.digest,
            "s": self.subject,
            "a": self.action,
            "u": self.unit,
            "n": self.amount,
            "t": self.ttl_ms,
            "g": self.grace_ms,
            "o": OVERAGES[self.overage],
        }
        if self.caps is not None:
            told["c"] = self.caps
        if self.metadata is not None:
            told["m"] = self.metadata
        if self.answer is not None:
            told["r"] = self.answer
        if self.charged is not None:
            told["x"] = self.charged
        return orjson.dumps(told).decode()


def held_of(text: str) -> Held:
    told: dict[str, Any] = orjson.loads(text)
    return Held(
        *(told["k"], told["d"], told["s"], told["a"], told["u"], told["n"], told["t"], told["g"], _WORDS[told["o"]]),
        caps=told.get("c"),
        metadata=told.get("m"),
        answer=told.get("r"),
        charged=told.get("x"),
    )


@record
class Closed:
    """A commit's or a release's. `charged`, `released`: as the client was told, in the reservation's unit."""

    commit: bool
    key: str
    digest: str
    charged: int
    released: int
    metadata: Mapping[str, object] | None = None

    @property
    def text(self) -> str:
        told: dict[str, object] = {"e": self.commit, "k": self.key, "d": self.digest, "c": self.charged, "r": self.released}
        if self.metadata is not None:
            told["m"] = self.metadata
        return orjson.dumps(told).decode()


def closed_of(text: str) -> Closed | None:
    """None: it was ended by other means than the plane's."""
    if not text:
        return None
    told: dict[str, Any] = orjson.loads(text)
    return Closed(told["e"], told["k"], told["d"], told["c"], told["r"], told.get("m"))


@record
class Extended:
    """One extension: the reservation expires then."""

    key: str
    digest: str
    expires_at_ms: int

    @property
    def text(self) -> str:
        return orjson.dumps([self.key, self.digest, self.expires_at_ms]).decode()


def extended_of(text: str) -> Extended:
    return Extended(*orjson.loads(text))


@record
class Answered:
    """A decision, as it was answered."""

    digest: str
    answer: Mapping[str, object]

    @property
    def text(self) -> str:
        return orjson.dumps([self.digest, self.answer]).decode()


def answered_of(text: str) -> Answered:
    return Answered(*orjson.loads(text))
