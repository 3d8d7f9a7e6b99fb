"""What the gateway's own JSON pages share: who asks, what was sent, and how an answer is written."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Final, TypeVar
from urllib.parse import parse_qsl

import orjson
from multidict import CIMultiDictProxy

from gateway.core.money import Microcents, parse_usd
from gateway.identity import Principal
from gateway.ledger.contract import Impossible, LedgerLost, LedgerUnavailable
from gateway.server.routes import Page, Route
from gateway.wire.body import parse_object
from gateway.wire.exchange import Headers, Inbound, Reply
from gateway.wire.problem import Refused, bad_request, problem
from gateway.yaml_fields import A_WORD, WORD

PrincipalOf = Callable[[CIMultiDictProxy[str]], Principal]  # Refused 401 invalid_key

T = TypeVar("T")

_MAX_REASON: Final = 500
_TENANT: Final = re.compile(WORD, re.ASCII)  # as `keys` in the config names them


def json_reply(value: Mapping[str, object], status: int = 200, headers: Headers = ()) -> Reply:
    """`no-store`: balances are true for a moment, and for one caller."""
    return Reply(status, orjson.dumps(value), (("Content-Type", "application/json"), ("Cache-Control", "no-store"), *headers))


def ledger_page(method: str, path: str, page: Page) -> Route:
    """A page that needs the ledger: 503 where it does not serve, 400 where an account can't count what is asked for."""

    async def answer(inbound: Inbound, params: Mapping[str, str]) -> Reply:
        try:
            return await page(inbound, params)
        except LedgerUnavailable:
            raise Refused(problem("ledger_unavailable", "The ledger does not answer; try again in a moment.")) from None
        except LedgerLost:
            lost = "The ledger is not what this gateway saw before; see `penstock ledger adopt`."
            raise Refused(problem("ledger_lost", lost)) from None
        except Impossible as error:
            raise bad_request("bad_request", f"The amount is too large: {error}.") from None

    return Route(method, path, answer)


def not_found(what: str) -> Refused:
    """Says the same of what never was and of what belongs to another."""
    return Refused(problem("not_found", f"There is no such {what}, or it is not yours to see."))


def found(thing: T | None, what: str) -> T:
    if thing is None:
        raise not_found(what)
    return thing


def asked(principal_of: PrincipalOf, inbound: Inbound, known: Collection[str] = ()) -> tuple[Principal, dict[str, str]]:
    """Who asks, and the query. The admin acts in the tenant that `?tenant=` names; everybody else in their key's own, whatever they
    send: to them the parameter is unknown."""
    principal = principal_of(inbound.headers)
    if not principal.admin:
        return principal, query_of(inbound, known)
    query = query_of(inbound, (*known, "tenant"))
    tenant = query.pop("tenant", principal.tenant)
    if _TENANT.fullmatch(tenant) is None:
        raise bad_member("tenant", f"a tenant's name, {A_WORD}")
    return replace(principal, tenant=tenant), query


def query_of(inbound: Inbound, known: Collection[str]) -> dict[str, str]:
    """The query's parameters. One that is unknown or comes twice is refused: ignoring a misspelt `form=` would answer another question."""
    query: dict[str, str] = {}
    for name, value in parse_qsl(inbound.query, keep_blank_values=True):
        if name not in known:
            takes = ", ".join(known) or "none"
            raise bad_request("bad_request", f"Unknown parameter {name[:80]!a}; this page takes {takes}.", name[:80])
        if name in query:
            raise bad_request("bad_request", f"The parameter {name} was sent twice.", name)
        query[name] = value
    return query


def count_of(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A whole number from 1 to `most`."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= most):
        raise bad_request("bad_request", f"{name}: expected a whole number from 1 to {most}.", name)
    return int(text)


def body_of(inbound: Inbound, known: Collection[str]) -> Mapping[str, object]:
    """The JSON object that was sent; an empty body is an empty object. Unknown members are refused."""
    body: Mapping[str, object] = parse_object(inbound.body) if inbound.body else {}
    for name in body:
        if name not in known:
            raise bad_request("bad_request", f"Unknown member {name[:80]!a}; this page takes {', '.join(known)}.", name[:80])
    return body


def reason_of(body: Mapping[str, object]) -> str:
    """Why, in the words of who did it: kept with the act."""
    reason = body.get("reason", "")
    if not isinstance(reason, str) or len(reason) > _MAX_REASON:
        raise bad_member("reason", f"a text of at most {_MAX_REASON} characters")
    return reason


def usd_of(body: Mapping[str, object], name: str) -> Microcents | None:
    """An amount in USD, as a text; None where the member is missing."""
    if name not in body:
        return None
    value = body[name]
    if not isinstance(value, str):
        raise bad_member(name, 'an amount in USD as a text, such as "0.12"')
    try:
        return parse_usd(value)
    except ValueError as error:
        raise bad_request("bad_request", f"{name}: {error}.", name) from None


def whole_of(body: Mapping[str, object], name: str, most: int) -> int | None:
    """A whole number from 0 to `most`; None where the member is missing."""
    if name not in body:
        return None
    value = body[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise bad_member(name, f"a whole number from 0 to {most:,}")
    return value


def flag_of(body: Mapping[str, object], name: str) -> bool:
    """False where the member is missing."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise bad_member(name, "true or false")
    return value


def text_of(body: Mapping[str, object], name: str, pattern: re.Pattern[str], expected: str) -> str | None:
    """A text that the pattern matches in full; None where the member is missing."""
    if name not in body:
        return None
    value = body[name]
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise bad_member(name, expected)
    return value


def bad_member(name: str, expected: str) -> Refused:
    return bad_request("bad_request", f"{name}: expected {expected}.", name)
