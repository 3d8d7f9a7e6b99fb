"""Who is asking: from a request's headers to a Principal, and with its run and dimensions to a Caller (design: section 7)."""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from multidict import CIMultiDictProxy

from gateway.core.policy import Policy, Source, Untagged
from gateway.core.scopes import NO_VALUE, Caller
from gateway.settings import Provider, Settings, StaticKey
from gateway.wire.exchange import Inbound
from gateway.wire import headers as wire_headers
from gateway.wire.headers import single
from gateway.wire.problem import Refused, bad_request, problem

DEFAULT_TENANT: Final = "default"
ANONYMOUS: Final = "anonymous"
VALUES_PER_DIMENSION: Final = 10_000
# How a caller presents a key: the scheme's header, in the order they are looked at.
SCHEMES: Final = ("authorization", "x-api-key")


@dataclass(frozen=True, slots=True)
class Principal:
    """A request's credential, understood. `key` is an id, never the key itself."""

    tenant: str
    key: str
    admin: bool = False
    bound: tuple[tuple[str, str], ...] = ()  # dimensions that the key fixes: no header overrides them
    credential: tuple[str, str] | None = field(default=None, repr=False)  # (scheme, header value): what passthrough forwards


class Identity:
    """`auth: passthrough`: a key's id is an HMAC of it with the install's secret. `auth: keys`: only keys that are listed."""

    def __init__(self, settings: Settings, secret: bytes, new_run_id: Callable[[], str]) -> None:
        self._providers = settings.providers
        self._keys: Mapping[str, StaticKey] | None = None
        if settings.auth == "keys":
            self._keys = {key.sha256: key for key in settings.keys}
        self._admin = settings.admin_token.encode() if settings.admin_token else None
        self._secret = secret
        self._new_run_id = new_run_id
        self._seen: dict[tuple[str, str], set[str]] = {}
        self._ids: dict[str, str] = {}  # credential → key id: an HMAC a call is 5 µs that need not be spent

    # -- who --------------------------------------------------------------------------------------------------------------------

    def principal(self, headers: CIMultiDictProxy[str], *, model_route: bool = False) -> Principal:
        """Refused 401 `invalid_key` where `auth: keys` knows no such key. The admin token opens no model route."""
        credential = _credential(headers)
        secret = _bare(credential)
        if self._admin is not None and secret is not None and hmac.compare_digest(secret.encode(), self._admin):
            if model_route:
                raise Refused(problem("invalid_key", "The admin token opens no model route: use a caller's key."))
            return Principal(DEFAULT_TENANT, "admin", admin=True)
        if self._keys is not None:
            return self._listed(secret)
        if credential is None or secret is None:
            return Principal(DEFAULT_TENANT, ANONYMOUS)
        return Principal(DEFAULT_TENANT, self._key_id(secret), credential=credential)

    def _listed(self, secret: str | None) -> Principal:
        """Looked up by digest, so nothing about a key's text can be learned from how long the answer takes."""
        assert self._keys is not None
        digest = hashlib.sha256((secret or "").encode()).hexdigest()
        key = self._keys.get(digest)
        if secret is None or key is None or not hmac.compare_digest(key.sha256, digest):
            raise Refused(problem("invalid_key", "This gateway takes its own keys (pk-…) as the API key, and knows no such key."))
        return Principal(key.tenant, key.name, bound=key.dimensions)

    def _key_id(self, secret: str) -> str:
        known = self._ids.get(secret)
        if known is None:
            if len(self._ids) >= VALUES_PER_DIMENSION:
                self._ids.clear()
            known = "key_" + hmac.new(self._secret, secret.encode(), hashlib.sha256).hexdigest()[:16]
            self._ids[secret] = known
        return known

    # -- for whom ---------------------------------------------------------------------------------------------------------------

    def caller(
        self, principal: Principal, inbound: Inbound, body_field: Callable[[str], str | None], policy: Policy, at_ms: int
    ) -> Caller:
        """The principal with the run and the dimensions of this call."""
        run = self._run_id(inbound, policy)
        issued = run is None
        if run is None:
            if policy.runs.untagged is Untagged.REFUSE:
                raise bad_request("run_id_required", "Every call needs a run id here: set X-Run-Id, or put /run/RUN_ID before /v1.")
            run = self._new_run_id()
        run_scope = run
        if issued and policy.runs.untagged is Untagged.SHARED:
            # "/" is in no run id, so no caller can name this account.
            run_scope = f"untagged/{principal.key}/{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d}"
        return Caller(principal.tenant, principal.key, run, run_scope, issued, self._dimensions(principal, inbound, body_field, policy))

    def _run_id(self, inbound: Inbound, policy: Policy) -> str | None:
        runs = policy.runs
        header = single(inbound.headers, runs.id_header) if runs.id_header else None
        path = inbound.path_run if runs.id_from_path else None
        run = (path if path is not None else header) if runs.path_first else (header if header is not None else path)
        return None if run is None else wire_headers.run_id(run)

    def _dimensions(
        self, principal: Principal, inbound: Inbound, body_field: Callable[[str], str | None], policy: Policy
    ) -> tuple[tuple[str, str], ...]:
        values = dict(principal.bound)
        for name, sources in policy.identity:
            if name in values:
                continue
            for source in sources:
                value = _read(source, inbound, body_field)
                if value:
                    values[name] = self._bounded(principal.key, name, value)
                    break
        return tuple(sorted(values.items()))

    def _bounded(self, key: str, dimension: str, value: str) -> str:
        """A caller that makes up values without end gets `-` from the 10,001st on."""
        seen = self._seen.setdefault((key, dimension), set())
        if value not in seen:
            if len(seen) >= VALUES_PER_DIMENSION:
                return NO_VALUE
            seen.add(value)
        return value

    # -- with what --------------------------------------------------------------------------------------------------------------

    def served(self, principal: Principal) -> frozenset[str]:
        """The providers that this caller's calls can reach."""
        return frozenset(name for name, provider in self._providers.items() if self._reaches(principal, provider))

    def credential_for(self, principal: Principal, provider: Provider) -> tuple[str, str] | None:
        """The header that goes to the provider: the caller's own where it is the one that takes it, else the gateway's. The
        caller's key never goes anywhere else."""
        if provider.accepts_caller_keys and principal.credential is not None and principal.credential[0] == provider.scheme:
            return principal.credential
        if provider.api_key is None:
            return None
        return (provider.scheme, f"Bearer {provider.api_key}" if provider.scheme == "authorization" else provider.api_key)

    def _reaches(self, principal: Principal, provider: Provider) -> bool:
        needs_key = provider.api_key_env is not None or provider.accepts_caller_keys
        return not needs_key or self.credential_for(principal, provider) is not None


def _credential(headers: CIMultiDictProxy[str]) -> tuple[str, str] | None:
    for scheme in SCHEMES:
        value = single(headers, scheme)
        if value:
            return scheme, value
    return None


def _bare(credential: tuple[str, str] | None) -> str | None:
    """The key without `Bearer `."""
    if credential is None:
        return None
    scheme, value = credential
    if scheme == "authorization":
        kind, _, rest = value.partition(" ")
        return (rest.strip() if kind.lower() == "bearer" else value) or None
    return value


def _read(source: Source, inbound: Inbound, body_field: Callable[[str], str | None]) -> str | None:
    if source.kind == "header":
        return wire_headers.identity(inbound.headers, source.name)
    value = body_field(source.name)
    return None if value is None else wire_headers.identity_value(value, source.name)
