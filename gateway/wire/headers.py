"""Headers across the gateway: what goes upstream, what comes back, and what the caller says to the gateway itself."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy

from gateway.core.money import parse_usd
from gateway.core.values import Directives
from gateway.wire.problem import bad_request

RequestHeaders = CIMultiDict[str] | CIMultiDictProxy[str]
NO_HEADERS: Final = CIMultiDictProxy(CIMultiDict[str]())

MAX_IDENTITY_CHARS: Final = 512  # of a user, team, agent …: it becomes part of an account's key

_RUN_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)

# About one connection, not about the message (RFC 9110, 7.6.1; the older names because peers still send them).
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    }
)
_NOT_UPSTREAM: Final = _HOP_BY_HOP | {
    # The request is made anew: another host, another length, inflated, encoded again as UTF-8 JSON.
    "host",
    "content-length",
    "content-encoding",
    "content-type",
    "accept-encoding",
    "expect",
    "content-md5",
    "digest",
    "content-digest",
    "repr-digest",
    # The caller's credentials: the flow adds those of the provider.
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "x-cycles-api-key",
    "x-admin-api-key",
    "cookie",
    "cookie2",
    # A browser's, for the gateway to judge.
    "origin",
    "x-parent-run-id",
}
_NOT_RETURNED: Final = _HOP_BY_HOP | {
    "content-length",  # the server counts what it sends
    "content-encoding",  # an encoded answer was decoded to be metered
    "set-cookie",
    "set-cookie2",
    "alt-svc",  # would lead the client around the gateway
    "x-run-id",
}
_OURS: Final = ("x-run-", "x-budget-")


def forwardable(
    headers: RequestHeaders, content_type: str = "application/json", drop: frozenset[str] = frozenset()
) -> list[tuple[str, str]]:
    """The headers that go upstream, names in lower case, with the gateway's own `content-type` and `accept-encoding`; the
    flow adds the credentials. `drop` names, in lower case, those that carry identity by the policy."""
    named = _named_in_connection(headers)
    forwarded = [
        (lower, value)
        for name, value in headers.items()
        if (lower := _upstream_name(name)) is not None and lower not in drop and lower not in named
    ]
    forwarded.append(("content-type", content_type))
    forwarded.append(("accept-encoding", "identity"))
    return forwarded


@lru_cache(maxsize=1024)  # callers send the same few names with every call
def _upstream_name(name: str) -> str | None:
    """In lower case; None: it does not go upstream, whatever its value."""
    lower = name.lower()
    return None if lower in _NOT_UPSTREAM or lower.startswith(_OURS) else lower


def returnable(headers: RequestHeaders) -> list[tuple[str, str]]:
    """The provider's headers that go back to the client, as the provider wrote them."""
    named = _named_in_connection(headers)
    return [(name, value) for name, value in headers.items() if _is_returned(name) and not (named and name.lower() in named)]


@lru_cache(maxsize=1024)  # so do providers
def _is_returned(name: str) -> bool:
    lower = name.lower()
    return lower not in _NOT_RETURNED and not lower.startswith("x-budget-")


def _named_in_connection(headers: RequestHeaders) -> Iterable[str]:
    values = headers.getall("connection", ())
    if not values:
        return ()
    return {token.strip().lower() for value in values for token in value.split(",")}


def single(headers: RequestHeaders, name: str) -> str | None:
    """The value of a header that may come once. Refused 400 where it is repeated: two readers could pick different ones."""
    values = headers.getall(name, ())
    if not values:
        return None
    if len(values) > 1:
        raise bad_request("ambiguous_request", f"The header {name} was sent {len(values)} times.", name)
    return values[0]


def identity(headers: RequestHeaders, name: str) -> str | None:
    """A dimension's value from a header; None where it is missing or empty."""
    value = single(headers, name)
    return None if value is None else identity_value(value, name)


def identity_value(value: str, source: str) -> str | None:
    """A caller's word for who they are: printable (so also no lone surrogates, which stand for undecodable bytes) and short."""
    value = value.strip()
    if len(value) > MAX_IDENTITY_CHARS or not value.isprintable():
        raise bad_request("ambiguous_request", f"{source} must be printable, at most {MAX_IDENTITY_CHARS} characters.", source)
    return value or None


def run_id(raw: str, source: str = "X-Run-Id") -> str:
    """A run id as it came, or Refused 400 `run_id_invalid`. An empty one is invalid too: more likely an unset variable than a wish."""
    if not is_run_id(raw):
        raise bad_request("run_id_invalid", "A run id has 1 to 128 of the characters A-Z a-z 0-9 . _ : -", source)
    return raw


def is_run_id(text: str) -> bool:
    return _RUN_ID.fullmatch(text) is not None


def parent_run(headers: RequestHeaders) -> str | None:
    """The run that this one is a child of, if the caller says so."""
    value = single(headers, "X-Parent-Run-Id")
    return None if value is None else run_id(value, "X-Parent-Run-Id")


def directives(headers: RequestHeaders) -> Directives:
    """What the caller told the gateway. A directive that can't be read is refused: ignoring it would loosen a limit."""
    if headers.keys().isdisjoint(_DIRECTIVES):
        return _NO_DIRECTIVES
    limit = single(headers, _RUN_LIMIT)
    wrap_up = single(headers, _WRAP_UP)
    downgrade = single(headers, _DOWNGRADE)
    run_limit = None
    if limit is not None:
        try:
            run_limit = parse_usd(limit)
        except ValueError as error:
            raise bad_request("ambiguous_request", f"{_RUN_LIMIT}: {error}.", _RUN_LIMIT) from None
    if wrap_up is not None and wrap_up.strip().lower() not in ("true", "false"):
        raise bad_request("ambiguous_request", f"{_WRAP_UP}: expected true or false.", _WRAP_UP)
    if downgrade is not None and downgrade.strip().lower() != "never":
        raise bad_request("ambiguous_request", f"{_DOWNGRADE}: expected never.", _DOWNGRADE)
    return Directives(run_limit, wrap_up is not None and wrap_up.strip().lower() == "true", downgrade is None)


_RUN_LIMIT, _WRAP_UP, _DOWNGRADE = _DIRECTIVES = ("X-Run-Limit", "X-Budget-Wrap-Up", "X-Budget-Downgrade")
_NO_DIRECTIVES: Final = Directives()
