"""A running gateway's budget API, for the command line. Blocking, standard library only: it makes one request and ends."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT_S = 10


class RemoteError(Exception):
    """The gateway refused, or is not there: the message is for the user. `status`: None where there was no answer of a gateway; `code`:
    the gateway's word for why it refused."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Remote:
    """`url` without a path: `http://127.0.0.1:8080`. `token`: the admin token, or a caller's own key. `tenant`: the one that the admin
    acts on. `headers`: what a caller says of itself with each request."""

    url: str
    token: str | None = field(default=None, repr=False)
    tenant: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def get(self, path: str, member: str, **query: str | None) -> dict[str, Any]:
        """`member`: what a gateway's answer has, and another server's has not."""
        return self.ask("GET", path, member, None, query)

    def put(self, path: str, member: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.ask("PUT", path, member, body)

    def post(self, path: str, member: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.ask("POST", path, member, body)

    def ask(
        self, method: str, path: str, member: str, body: Mapping[str, Any] | None, query: Mapping[str, str | None] | None = None
    ) -> dict[str, Any]:
        if not self.url.startswith(("http://", "https://")):
            raise RemoteError(f"--gateway: found {self.url!r}, expected an address such as http://127.0.0.1:8080")
        given = {name: value for name, value in {**(query or {}), "tenant": self.tenant}.items() if value is not None}
        target = f"{path}?{urllib.parse.urlencode(given)}" if given else path
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked above
            self.url.rstrip("/") + target, method=method, data=None if body is None else json.dumps(body).encode()
        )
        for name, value in self.headers.items():
            request.add_header(name, value)
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            # The environment's proxies are not for a gateway that is usually on this machine.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                told = _json(answer.read())
        except urllib.error.HTTPError as refusal:
            raise _refused(refusal) from None
        except (OSError, ValueError, http.client.HTTPException) as failure:
            why = getattr(failure, "reason", failure)
            raise RemoteError(
                f"no gateway answers at {self.url} ({why}); start one with `penstock serve`, or name another with --gateway"
            ) from None
        if not isinstance(told, dict) or member not in told:
            raise RemoteError(f"{self.url} is not a Penstock gateway")
        return told


def quoted(name: str) -> str:
    """A run's id or an account's key as one part of a path."""
    return urllib.parse.quote(name, safe="")


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _refused(refusal: urllib.error.HTTPError) -> RemoteError:
    try:
        told = _json(refusal.read())
    except (OSError, http.client.HTTPException):
        told = None
    said = told if isinstance(told, dict) else {}
    detail, code = said.get("detail"), said.get("code")
    if not isinstance(detail, str):
        detail = f"{refusal.url} answered HTTP {refusal.code}"
    if refusal.code in (401, 403):
        detail += " (the admin token is read from PENSTOCK_ADMIN_TOKEN, a caller's key from PENSTOCK_KEY)"
    return RemoteError(detail, refusal.code, code if isinstance(code, str) else None)
