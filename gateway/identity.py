"""Who is asking: from a request's headers to a Principal, and with its run and dimensions to a Caller (design: section 7)."""

import contextlib
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from multidict import CIMultiDictProxy

from gateway.core.grants import scope_for
from gateway.core.policy import RUN_HEADER, Policy, RunOwner, RunsPolicy, Source, Untagged
from gateway.core.record import record
from gateway.core.scopes import NO_VALUE, Caller
from gateway.ledger.contract import LedgerLost, LedgerUnavailable
from gateway.registry import KEY_MARK, TENANT_CLOSED, KeyDoc, Registry
from gateway.settings import Provider, Settings, StaticKey
from gateway.wire import headers as wire_headers
from gateway.wire import sessions
from gateway.wire.exchange import Inbound
from gateway.wire.headers import single
from gateway.wire.problem import Refused, bad_request, problem
from gateway.wire.request import Request

DEFAULT_TENANT: Final = "default"
ANONYMOUS: Final = "anonymous"
VALUES_PER_DIMENSION: Final = 10_000
# How many (key, dimension) pairs are watched for that, and how many credentials' ids are remembered; the oldest go first.
_REMEMBERED: Final = 4_096
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
# How a caller presents a key: the scheme's header, in the order they are looked at.
SCHEMES: Final = ("authorization", "x-api-key")
CYCLES_KEY: Final = "x-cycles-api-key"
CYCLES_ADMIN: Final = "x-admin-api-key"


@record
class Principal:
    """A request's credential, understood. `key` is an id, never the key itself."""

    tenant: str
    key: str
    admin: bool = False
    bound: tuple[tuple[str, str], ...] = ()  # dimensions that the key fixes: no header overrides them
    credential: tuple[str, str] | None = field(default=None, repr=False)  # (scheme, header value): what passthrough forwards …
    scheme: str = ""  # … and the scheme of the one provider that it is for
    registered: KeyDoc | None = None  # the key, where the Cycles admin plane made it


class Identity:
    """`auth: passthrough`: a key's id is an HMAC of it with the install's secret. `auth: keys`: only keys that are listed.

    What it remembers between calls is a hint, and its own process's: forgetting it only costs work, or lets some more values through.
    """

    def __init__(
        self, settings: Settings, secret: bytes, new_run_id: Callable[[], str], registry: Registry | None = None
    ) -> None:
        self._providers = settings.providers
        self._anthropic_takes_keys = any(
            provider.accepts_caller_keys and provider.scheme == "x-api-key" for provider in settings.providers.values()
        )
        self._keys: Mapping[str, StaticKey] | None = None
        if settings.auth == "keys":
            self._keys = {key.sha256: key for key in settings.keys}
        self._admin = None if settings.admin_token is None else _digest(settings.admin_token)
        self._secret = secret
        self._new_run_id = new_run_id
        self._registry = registry  # of the keys that the Cycles admin plane makes
        self._seen: dict[tuple[str, str], set[int]] = {}  # hashes of the values
        self._answers: dict[tuple[str, str, str], str] = {}  # (tenant, key, answer's id) → its run
        # (credential, whether it is Anthropic's SDK that sent it) → who that is, and (has a credential, its scheme) → what it reaches: what a
        # key means, and which providers there are, changes with the config alone, which this was made from.
        self._principals: dict[tuple[tuple[str, str] | None, bool], Principal] = {}
        self._served: dict[tuple[bool, str], frozenset[str]] = {}

    # -- who --------------------------------------------------------------------------------------------------------------------

    def principal(self, headers: CIMultiDictProxy[str], *, model_route: bool = False) -> Principal:
        """Refused 401 `invalid_key` where `auth: keys` knows no such key. The admin token opens no model route."""
        shown = (_credential(headers), "anthropic-version" in headers)
        principal = self._principals.get(shown)
        if principal is None:
            principal = self._understood(*shown)
            if principal.registered is None:  # such a key may be revoked, or expire
                _make_room(self._principals)
                self._principals[shown] = principal
        if principal.admin and model_route:
            raise Refused(problem("invalid_key", "The admin token opens no model route: use a caller's key."))
        return principal

    async def admitted(self, headers: CIMultiDictProxy[str]) -> Principal:
        """The same for a model route, also where the key was made a moment ago, elsewhere."""
        await self.ready()
        try:
            return self.principal(headers, model_route=True)
        except Refused:
            credential = _credential(headers)
            secret = None if credential is None else _bare(*credential)
            if self._registry is None or self._keys is None or secret is None or not secret.startswith(KEY_MARK):
                raise
        with contextlib.suppress(LedgerUnavailable, LedgerLost):
            await self._registry.look()
        return self.principal(headers, model_route=True)

    async def ready(self) -> None:
        """Where the ledger was away when this gateway started, what operators made is looked for once more before a call is refused as it
        is not known."""
        if self._registry is not None and self._registry.grants.unread is not None:
            with contextlib.suppress(LedgerUnavailable, LedgerLost):
                await self._registry.look()

    def _understood(self, credential: tuple[str, str] | None, by_anthropic: bool) -> Principal:
        secret = None if credential is None else _bare(*credential)
        if self._admin is not None and secret is not None and hmac.compare_digest(_digest(secret), self._admin):
            return Principal(DEFAULT_TENANT, "admin", admin=True)
        if self._keys is not None:
            return self._listed(secret)
        if secret is None:
            return Principal(DEFAULT_TENANT, ANONYMOUS)
        assert credential is not None
        if secret.startswith(KEY_MARK):  # which must not go to a provider
            opens = "A key of the Cycles plane opens /cycles here, by X-Cycles-API-Key; as an API key it needs `auth: keys`."
            raise Refused(problem("invalid_key", opens))
        scheme = credential[0]
        if by_anthropic and self._anthropic_takes_keys:
            # Anthropic's newer SDKs send their key in the header of all the others. It must not go to one of those.
            scheme = "x-api-key"
        key = "key_" + hmac.new(self._secret, secret.encode(), hashlib.sha256).hexdigest()[:16]
        return Principal(DEFAULT_TENANT, key, credential=credential, scheme=scheme)

    def _listed(self, secret: str | None) -> Principal:
        """Looked up by digest, so nothing about a key's text can be learned from how long the answer takes."""
        assert self._keys is not None
        digest = "" if secret is None else _digest(secret)
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(key.sha256, digest):
            principal = self._registered(secret)
            if principal is None:
                unknown = "This gateway takes its own keys (pk-…, cyc_live_…) as the API key, and knows no such key."
                raise Refused(problem("invalid_key", unknown))
            return principal
        return Principal(key.tenant, key.name, bound=key.dimensions)

    def _registered(self, secret: str | None, *, finishing: bool = False) -> Principal | None:
        """Whose key of the Cycles admin plane it is. One that has ended may finish what it began."""
        if self._registry is None or secret is None or not secret.startswith(KEY_MARK):
            return None
        key = self._registry.key(secret)
        if key is None:
            return None
        if self._registry.status(key) != "ACTIVE" and not finishing:
            return None
        return Principal(key.tenant, key.id, registered=key)

    def of_cycles(self, headers: CIMultiDictProxy[str], *, finishing: bool = False) -> Principal | None:
        """Who shows `X-Cycles-API-Key`: a key of the Cycles admin plane in either mode, with `auth: keys` also one of the config. None: no
        such key. `finishing`: what is asked for ends what was begun before."""
        secret = single(headers, CYCLES_KEY)
        if not secret:
            return None
        if self._keys is not None:
            digest = _digest(secret)
            key = self._keys.get(digest)
            if key is not None and hmac.compare_digest(key.sha256, digest):
                return Principal(key.tenant, key.name, bound=key.dimensions)
        # One whose tenant was closed is known, so that it is told why, and reads.
        found = self._registry.key(secret) if self._registry is not None and secret.startswith(KEY_MARK) else None
        closed = found is not None and found.revoked_ms > 0 and found.revoked_reason == TENANT_CLOSED
        return self._registered(secret, finishing=finishing or closed)

    def no_cycles_key(self, headers: CIMultiDictProxy[str]) -> str:
        """Why the request is nobody's, and what would help."""
        takes = "a key of the Cycles admin plane (POST /cycles/v1/admin/api-keys)"
        if self._keys is not None:
            takes += " or of the config"
        wrong = "this key is not known here, has expired or was revoked" if CYCLES_KEY in headers else "there is none"
        return f"X-Cycles-API-Key: {wrong}; it takes {takes}"

    def no_admin(self) -> str:
        """Why the request is not the admin's, and what would help."""
        if self._admin is None:
            return "This gateway has no admin token: name the variable that holds one as `admin_token_env` in its config, and set it."
        return "This needs the gateway's admin token, as X-Admin-API-Key."

    def of_admin(self, headers: CIMultiDictProxy[str]) -> Principal | None:
        """Whoever shows the admin token as `X-Admin-API-Key`."""
        secret = single(headers, CYCLES_ADMIN)
        if self._admin is None or not secret or not hmac.compare_digest(_digest(secret), self._admin):
            return None
        return Principal(DEFAULT_TENANT, "admin", admin=True)

    # -- whose hold ---------------------------------------------------------------------------------------------------------------

    def hold_mark(self, tenant: str, hold_id: str, flat: int) -> str:
        """What a background answer carries, by which any process of this install knows the hold of its call. `flat`: microcents that were
        reserved flat for it."""
        told = f"{hold_id}.{flat}"
        return f"{told}.{self._signed(tenant, told)}"

    def marked(self, tenant: str, mark: str) -> tuple[str, int] | None:
        """The hold's id and the flat reserve; None: the mark was not made here, or for another tenant."""
        told, _, signature = mark.rpartition(".")
        if not mark.isascii() or not hmac.compare_digest(signature, self._signed(tenant, told)):
            return None
        hold_id, _, flat = told.partition(".")
        return hold_id, int(flat)

    def _signed(self, tenant: str, told: str) -> str:
        return hmac.new(self._secret, f"hold {tenant} {told}".encode(), hashlib.sha256).hexdigest()[:32]

    # -- for whom ---------------------------------------------------------------------------------------------------------------

    def caller(
        self,
        principal: Principal,
        inbound: Inbound,
        request: Request | None,
        policy: Policy,
        at_ms: int,
        named: str | None = None,
    ) -> Caller:
        """The principal with the run and the dimensions of this call. `request` None: the body says nothing of who is calling. `named`:
        the run, where it was named otherwise than the policy tells."""
        run, ignored = (named, None) if named is not None else self._run_ids(principal, inbound, request, policy.runs)
        parent = wire_headers.parent_run(inbound.headers)
        issued = run is None
        if run is None:
            if parent is not None:
                raise bad_request(
                    "run_id_required",
                    "X-Parent-Run-Id says whose child this run is: name the run too, with X-Run-Id, or by /run/RUN_ID before /v1.",
                )
            if policy.runs.untagged is Untagged.REFUSE:
                raise bad_request(
                    "run_id_required", "Every call needs a run id here: set X-Run-Id, or put /run/RUN_ID before /v1."
                )
            run = self._new_run_id()
        run_scope = run
        if issued and policy.runs.untagged is Untagged.SHARED:
            run_scope = _shared_scope(principal.key, at_ms)
        dimensions = self._dimensions(principal, inbound, request, policy)
        shares = policy.runs.owner is RunOwner.TENANT
        caller = Caller(principal.tenant, principal.key, run, run_scope, issued, dimensions, ignored, parent, shares=shares)
        if principal.registered is not None and self._registry is not None:
            self._registry.require(principal, "reservations:create", scope_for(caller))
        return caller

    def acting(self, principal: Principal, run: str, values: Mapping[str, str], runs: RunsPolicy) -> Caller:
        """The principal as the caller that its own request names, in a protocol where the body says so. `run` "": it names none. Whose key
        the Cycles admin plane made shares the runs of its tenant: that plane knows no other owner."""
        bound = dict(principal.bound)
        told = {name: self._bounded(principal, name, value) for name, value in values.items() if name not in bound}
        shares = principal.registered is not None or runs.owner is RunOwner.TENANT
        dimensions = tuple(sorted({**told, **bound}.items()))
        return Caller(principal.tenant, principal.key, run, run, dimensions=dimensions, shares=shares)

    def issued(self, caller: Caller, run: str, runs: RunsPolicy, at_ms: int) -> Caller:
        """The same with a run of the gateway's making."""
        run_scope = _shared_scope(caller.key, at_ms) if runs.untagged is Untagged.SHARED else run
        return replace(caller, run=run, run_scope=run_scope, run_issued=True)

    def _run_ids(
        self, principal: Principal, inbound: Inbound, request: Request | None, runs: RunsPolicy
    ) -> tuple[str | None, str | None]:
        """(the run id that counts, another that disagrees with it or stands where the policy does not look). Only the path and X-Run-Id
        are meant as run ids: they are checked, and told of where they don't count."""
        run = ignored = None
        for source in runs.id_from:
            if source.kind == "path":
                found = inbound.path_run
            elif source.name == RUN_HEADER:
                found = single(inbound.headers, RUN_HEADER)
            else:
                run = self._session(source, principal, inbound, request) if run is None else run
                continue
            if run is None and found is not None:
                run = wire_headers.run_id(found)
            elif found != run:
                ignored = ignored or found
        if inbound.path_run != run:
            ignored = ignored or inbound.path_run
        # Not checked, as it does not count, and goes into a log line: short, and escaped.
        return run, None if ignored is None else ascii(ignored[:128])[1:-1]

    def _session(self, source: Source, principal: Principal, inbound: Inbound, request: Request | None) -> str | None:
        """A run's id from what a client sends for its own sake."""
        if source.kind == "header":
            return sessions.as_run_id(single(inbound.headers, source.name) or "")
        if source.kind == "traceparent":
            return sessions.trace_id(single(inbound.headers, "traceparent") or "")
        if request is None:
            return None
        if source.kind == "body":
            return sessions.body_field(request.body, source.name)
        if source.kind == "claude-code":
            return sessions.claude_code(request.body)
        owner = (principal.tenant, principal.key)
        if request.continues is None:
            return sessions.conversation(owner, request.parts)
        if request.continues.startswith(sessions.CONVERSATION_OBJECT):
            return sessions.as_run_id(request.continues)
        return self._answers.get((*owner, request.continues))

    def answered(self, caller: Caller, answer_id: str) -> None:
        """A later call that continues this answer, and shows no more of the conversation than that, is of the same run."""
        if not caller.run_issued:
            key = (caller.tenant, caller.key, answer_id)
            self._answers.pop(key, None)
            _make_room(self._answers)
            self._answers[key] = caller.run

    def _dimensions(
        self, principal: Principal, inbound: Inbound, request: Request | None, policy: Policy
    ) -> tuple[tuple[str, str], ...]:
        values = dict(principal.bound)
        told = not inbound.headers.keys().isdisjoint(policy.identity_headers)  # else none need be asked for
        for name, sources in policy.identity:
            if name in values:
                continue
            for source in sources:
                value = _read(source, inbound, request) if told or source.kind != "header" else None
                if value:
                    values[name] = self._bounded(principal, name, value)
                    break
        return tuple(sorted(values.items()))

    def _bounded(self, principal: Principal, dimension: str, value: str) -> str:
        """A caller that makes up values without end gets `-` from the 10,001st on, but for those that a grant is for: it counts in that."""
        watched = (principal.key, dimension)
        seen = self._seen.get(watched)
        if seen is None:
            _make_room(self._seen)
            seen = self._seen[watched] = set()
        hashed = hash(value)
        if hashed not in seen:
            if len(seen) >= VALUES_PER_DIMENSION:
                granted = self._registry is not None and self._registry.grants.name(principal.tenant, dimension, value)
                return value if granted else NO_VALUE
            seen.add(hashed)
        return value

    # -- with what --------------------------------------------------------------------------------------------------------------

    def served(self, principal: Principal) -> frozenset[str]:
        """The providers that this caller's calls can reach."""
        by = (principal.credential is not None, principal.scheme)
        served = self._served.get(by)
        if served is None:
            served = frozenset(name for name, provider in self._providers.items() if self._reaches(principal, provider))
            self._served[by] = served
        return served

    def credential_for(self, principal: Principal, provider: Provider) -> tuple[str, str] | None:
        """The header that goes to the provider: the caller's own where it is the one that takes it, else the gateway's. The
        caller's key never goes anywhere else."""
        if provider.accepts_caller_keys and principal.credential is not None and principal.scheme == provider.scheme:
            return principal.credential
        if provider.api_key is None:
            return None
        return (provider.scheme, f"Bearer {provider.api_key}" if provider.scheme == "authorization" else provider.api_key)

    def _reaches(self, principal: Principal, provider: Provider) -> bool:
        needs_key = provider.api_key_env is not None or provider.accepts_caller_keys
        return not needs_key or self.credential_for(principal, provider) is not None


def _credential(headers: CIMultiDictProxy[str]) -> tuple[str, str] | None:
    """The first scheme's that is there. Only this one says who is calling, so only this one may be forwarded: with a second, a
    caller could change the first as it likes, and with it the accounts that its calls count in."""
    for scheme in SCHEMES:
        value = single(headers, scheme)
        if value:
            if not value.isascii() or not value.isprintable():
                raise Refused(problem("invalid_key", f"The header {scheme} has characters that are in no key."))
            return scheme, value
    return None


def _bare(scheme: str, value: str) -> str | None:
    """The key without `Bearer `."""
    if scheme == "authorization":
        kind, _, rest = value.partition(" ")
        return (rest.strip() if kind.lower() == "bearer" else value) or None
    return value


def _shared_scope(key: str, at_ms: int) -> str:
    """What the day's calls without a run id share. "/" is in no run id, so no caller can name this account."""
    return f"untagged/{key}/{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _make_room(remembered: dict[_Key, _Value]) -> None:
    if len(remembered) >= _REMEMBERED:
        del remembered[next(iter(remembered))]


def _read(source: Source, inbound: Inbound, request: Request | None) -> str | None:
    if source.kind == "header":
        return wire_headers.identity(inbound.headers, source.name)
    value = None if request is None else request.text_field(source.name)
    return None if value is None else wire_headers.identity_value(value, source.name)
