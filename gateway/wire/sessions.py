"""Runs in what clients send for their own sake: session ids, trace ids, and the words that a conversation opens with.

Nobody wrote these to be run ids, so none is refused: what is no run id as it stands is mapped to one, always to the same.
"""

import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

import orjson

from gateway.core.values import Part
from gateway.wire.headers import is_run_id

# `metadata.user_id`, as Claude Code wrote it first; later versions write JSON with a `session_id`.
_CLAUDE_SESSION: Final = re.compile(r"_session_([0-9A-Za-z-]{8,64})\Z", re.ASCII)
_TRACE: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.ASCII)
_NO_TRACE: Final = "0" * 32
_SPOKEN: Final = frozenset({"user", "assistant"})
CONVERSATION_OBJECT: Final = "conv_"  # how the ids begin of conversations that a provider keeps


def as_run_id(value: str) -> str | None:
    """The value, or `h_` and its hash where it is no run id; None where it is empty."""
    if not value or is_run_id(value):
        return value or None
    return "h_" + blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def claude_code(body: Mapping[str, Any]) -> str | None:
    """The session in `metadata.user_id`: `user_…_account_…_session_UUID`, or JSON that has a `session_id`."""
    metadata = body.get("metadata")
    user = metadata.get("user_id") if type(metadata) is dict else None
    if type(user) is not str:
        return None
    if user.startswith("{"):
        try:
            session = orjson.loads(user).get("session_id")
        except orjson.JSONDecodeError:
            return None
        return as_run_id(session) if type(session) is str else None
    match = _CLAUDE_SESSION.search(user)
    return match[1] if match else None


def trace_id(traceparent: str) -> str | None:
    """W3C Trace Context: the part that all calls of one trace share."""
    match = _TRACE.fullmatch(traceparent.strip().lower())
    return match[1] if match and match[1] != _NO_TRACE else None


def body_field(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    return as_run_id(value) if type(value) is str else None


def conversation(owner: tuple[str, str], parts: Iterable[Part]) -> str | None:
    """A run id for the calls of `owner` (tenant and key) that open with the same words: everything up to the first message of a user,
    and that message. None where no user speaks.

    What the system prompt and the tools say is left out. Agents write the time of day and the state of their work there, and a call
    that got a run of its own by that would have a ceiling of its own.
    """
    digest = blake2b(orjson.dumps(owner), digest_size=16)
    for part in parts:
        if part.role not in _SPOKEN:
            continue
        for text in (part.role, *part.texts):
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(encoded))
            digest.update(encoded)
        digest.update(b"%d,%d;" % (len(part.images), len(part.attachments)))
        if part.role == "user":
            return "c_" + digest.hexdigest()
    return None
