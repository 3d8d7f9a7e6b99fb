"""The config file and the environment → `Settings`, once, at start. Every mistake is named, all at once; no secret is ever shown."""

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

from gateway import price_file, store_url
from gateway.config_file import (
    Auth,
    Background,
    ConfigFile,
    HttpClient,
    KeyFile,
    LedgerFile,
    ModelFile,
    ProviderFile,
    RouteFile,
    Scheme,
    StreamSummary,
    Synchronous,
    UnmeteredRouteFile,
    UpstreamFile,
    WithoutProviders,
    is_address,
)
from gateway.core import estimate
from gateway.core.catalog import Catalog, Model, Route
from gateway.core.money import Microcents
from gateway.core.profiles import Profile
from gateway.core.values import Call
from gateway.price_file import PIECEWISE_CONTEXT, PIECEWISE_MAX_OUTPUT, PriceFile
from gateway.store_url import StoreUrl, Tls
from gateway.wire.dialects import METERED_ROUTES
from gateway.wire.unmetered import UnmeteredRoute
from gateway.yaml_source import Mistakes, Place, Reader, did_you_mean, read_document

MIN_TOKEN_LENGTH: Final = 16
SQLITE_KEEP_MS: Final = 30 * 86_400_000
REDIS_KEEP_MS: Final = 2 * 86_400_000  # memory is dearer than a disk


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider, as the config describes it."""

    name: str
    base_url: str  # without a trailing slash
    scheme: Literal["authorization", "x-api-key"]
    profile: Profile
    accepts_caller_keys: bool = False
    api_key_env: str | None = None
    api_key: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ()  # globs of the names it serves
    connect_timeout_ms: int = 10_000
    idle_timeout_ms: int = 600_000
    retries: int = 2
    client: HttpClient = HttpClient.LEAN

    def url(self, path: str) -> str:
        """Of a route that starts with `/v1`, which most providers' base URL ends with."""
        if self.profile.versioned_base or self.base_url.endswith("/v1"):
            path = path.removeprefix("/v1")
        return self.base_url + path


@dataclass(frozen=True, slots=True)
class StaticKey:
    """A Penstock key that the config lists: its SHA-256 in lower-case hex, and what it is bound to."""

    name: str
    sha256: str
    tenant: str = "default"
    dimensions: tuple[tuple[str, str], ...] = ()  # sorted


@dataclass(frozen=True, slots=True)
class Drain:
    """How far streams whose client left are read on: in time, bytes and number at once."""

    time_ms: int = 30_000
    bytes: int = 8 << 20
    number: int = 64


@dataclass(frozen=True, slots=True)
class CyclesSettings:
    """What the Cycles protocol's clients are told beyond what the oldest of them can read."""

    trace_id_in_errors: bool = False
    newer_members: bool = False


@dataclass(frozen=True, slots=True)
class SqliteSettings:
    """A ledger in a file."""

    path: Path
    timeout_ms: int = 5_000
    keep_ms: int = SQLITE_KEEP_MS
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """A ledger on Redis or Valkey."""

    url: StoreUrl
    timeout_ms: int = 5_000
    keep_ms: int = REDIS_KEEP_MS
    wait_replicas: int = 0

    def __str__(self) -> str:
        return str(self.url)


LedgerSettings: TypeAlias = SqliteSettings | RedisSettings  # as text: where it is, without a secret


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the config says, read and checked."""

    listen_host: str
    listen_port: int
    policy_path: Path
    ledger: LedgerSettings
    state_dir: Path
    providers: Mapping[str, Provider]
    catalog: Catalog  # bundled, with the config's models over it
    auth: Literal["passthrough", "keys"] = "passthrough"
    admin_token_env: str = "PENSTOCK_ADMIN_TOKEN"  # noqa: S105 - a variable's name
    admin_token: str | None = field(default=None, repr=False)
    keys: tuple[StaticKey, ...] = ()
    allowed_hosts: tuple[str, ...] = ()  # beside the loopback names; lower case, without port or brackets
    allowed_origins: tuple[str, ...] = ()
    log: str = "stderr"  # or stdout, or a file's path
    lease_ms: int = 600_000
    background_lease_ms: int = 3_600_000
    background: bool = False  # whether calls may be answered in the background
    commit_wait_ms: int = 250
    cycles: CyclesSettings = CyclesSettings()
    stream_summary: bool = False  # whether streams end with a comment that says what the call cost
    max_request: int = 20 << 20  # bytes, as max_response
    max_response: int = 32 << 20
    max_bodies: int = 512 << 20
    max_buffered: int = 256 << 20
    max_connections: int = 10_000  # of a worker, as max_calls
    max_calls: int = 5_000
    drain: Drain = Drain()
    shutdown_grace_ms: int = 30_000
    unmetered_routes: tuple[UnmeteredRoute, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)  # allowed, but seldom meant: one line each

    def lease_of(self, call: Call) -> int:
        """How long its hold lasts without a sign of life, in ms."""
        return self.background_lease_ms if call.background else self.lease_ms


# -- reading ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """A config as far as it could be read. `policy_path` is known for most broken configs too, so that the mistakes of both
    files can be told at once."""

    settings: Settings | None
    mistakes: Mistakes | None
    policy_path: Path | None


def load(path: Path, environ: Mapping[str, str], catalog: Catalog, profiles: Mapping[str, Profile]) -> Settings:
    """Reads the config, or raises Mistakes. `catalog` and `profiles` are the bundled ones. Paths are relative to the file's folder."""
    reading = read(path, environ, catalog, profiles)
    if reading.mistakes is not None:
        raise reading.mistakes
    assert reading.settings is not None
    return reading.settings


def read(
    path: Path, environ: Mapping[str, str], catalog: Catalog, profiles: Mapping[str, Profile], *, elsewhere: str | None = None
) -> Reading:
    """As `load`, but hands over what is known beside the mistakes. `elsewhere`: what calls the providers in the gateway's place; then the
    file need name none, and what it says of no model's provider is this one."""
    try:
        reader = Reader(read_document(path), ConfigFile if elsewhere is None else WithoutProviders)
    except Mistakes as mistakes:
        return Reading(None, mistakes, None)
    for place, expected in _MOVED.items():
        reader.moved(place, expected)
    folder = path.parent
    file = reader.part(ConfigFile if elsewhere is None else WithoutProviders)
    if elsewhere is None:
        _check_access(reader, file)
    admin_token = _secret(reader, ("admin_token_env",), file.admin_token_env, environ)
    providers = _providers(reader, file, environ, profiles)
    models = _models(reader, catalog, elsewhere)
    ledger = _ledger(reader, file.ledger, folder, environ)
    keys = _keys(reader, file)
    unmetered_routes = _unmetered_routes(reader, providers)
    if admin_token is not None and len(admin_token) < MIN_TOKEN_LENGTH:
        reader.warn(("admin_token_env",), f"the admin token is shorter than {MIN_TOKEN_LENGTH} characters")
    policy_path = folder / file.policy
    if reader.mistakes:
        return Reading(None, Mistakes(reader.mistakes), policy_path)
    host, port = file.listen
    settings = Settings(
        listen_host=host,
        listen_port=port,
        policy_path=policy_path,
        ledger=ledger,
        state_dir=folder / file.state_dir,
        providers=providers,
        catalog=_overlaid(catalog, models, providers, file, reader),
        auth=file.auth.value,
        admin_token_env=file.admin_token_env,
        admin_token=admin_token,
        keys=keys,
        allowed_hosts=tuple(file.allowed_hosts),
        allowed_origins=tuple(file.allowed_origins),
        log=file.log if file.log in ("stderr", "stdout") else str(folder / file.log),
        lease_ms=file.reservation.lease,
        background_lease_ms=file.reservation.background_lease,
        background=file.background is Background.ALLOW,
        commit_wait_ms=file.reservation.commit_wait,
        cycles=CyclesSettings(file.cycles.trace_id_in_errors, file.cycles.newer_members),
        stream_summary=file.stream_summary is StreamSummary.COMMENT,
        max_request=file.limits.max_request,
        max_response=file.limits.max_response,
        max_bodies=file.limits.max_bodies,
        max_buffered=file.limits.max_buffered,
        max_connections=file.limits.max_connections,
        max_calls=file.limits.max_calls,
        drain=Drain(file.drain.time, file.drain.bytes, file.drain.number),
        shutdown_grace_ms=file.shutdown.grace,
        unmetered_routes=unmetered_routes,
        warnings=tuple(reader.warnings),
    )
    return Reading(settings, None, policy_path)


# What was elsewhere once.
_MOVED: Final[Mapping[Place, str]] = {
    ("sqlite",): "`synchronous` in the section of the ledger: `ledger: {url: sqlite:///…, synchronous: FULL}`",
    ("reservation", "ledger_timeout"): "`timeout` in the section of the ledger: `ledger: {url: …, timeout: 5s}`",
}


def _check_access(reader: Reader, file: ConfigFile) -> None:
    host, _ = file.listen
    if not is_loopback(host) and file.auth is not Auth.KEYS and reader.sound("auth"):
        reader.refuse(
            ("listen",), "a loopback address such as 127.0.0.1:8080, or `auth: keys`: anyone who reaches it could spend"
        )
    if not file.providers and reader.sound("providers"):
        reader.refuse(("providers",), "at least one provider")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _secret(reader: Reader, place: Place, name: str, environ: Mapping[str, str]) -> str | None:
    """A secret from the environment. It goes into a header, so it must be able to."""
    value = environ.get(name, "").strip()
    if not value:
        return None
    if not value.isascii() or not value.isprintable() or " " in value:
        reader.refuse(place, "a variable whose value is one word of printable ASCII", f"{name} with another value (not shown)")
        return None
    return value


# -- the ledger -------------------------------------------------------------------------------------------------------------------


def _ledger(reader: Reader, file: LedgerFile, folder: Path, environ: Mapping[str, str]) -> LedgerSettings:
    place: Place = ("ledger",)
    if not isinstance(file.url, StoreUrl):
        for key in ("wait_replicas", "password_env", "sentinel_password_env"):
            if reader.has("ledger", key):
                reader.refuse((*place, key), "a Redis URL beside it: a file has none", "a key that is Redis's")
        synchronous = file.synchronous or Synchronous.NORMAL
        keep_ms = SQLITE_KEEP_MS if file.keep is None else file.keep
        return SqliteSettings(folder / file.url, file.timeout, keep_ms, synchronous.value)
    if file.synchronous is not None:
        reader.refuse(
            (*place, "synchronous"),
            "a sqlite:/// URL beside it: Redis has `appendfsync` in its own config",
            "a key that is SQLite's",
        )
    url = _with_secrets(reader, file, file.url, environ)
    if url.tls is not None:
        url = replace(url, tls=_with_files(reader, url.tls, folder))
    elif (url.password or url.sentinel_password) and not all(port == 0 or is_loopback(host) for host, port in url.addresses):
        reader.warn(place, "the password goes there in plain text, readable on the way: rediss:// has TLS")
    keep_ms = REDIS_KEEP_MS if file.keep is None else file.keep
    return RedisSettings(url, file.timeout, keep_ms, file.wait_replicas or 0)


def _with_secrets(reader: Reader, file: LedgerFile, url: StoreUrl, environ: Mapping[str, str]) -> StoreUrl:
    password, sentinel_password = url.password, ""
    if password and file.password_env is not None:
        reader.refuse(("ledger", "password_env"), "one password: the URL has one", "another one")
    elif password:
        reader.warn(("ledger",), "the password stands in the file: `password_env` keeps it out")
    elif file.password_env is not None:
        password = _password(reader, "password_env", file.password_env, environ)
    if file.sentinel_password_env is not None:
        if url.topology is not store_url.Topology.SENTINEL:
            reader.refuse(
                ("ledger", "sentinel_password_env"), "a redis+sentinel:// URL beside it", "a key that is the sentinels'"
            )
        sentinel_password = _password(reader, "sentinel_password_env", file.sentinel_password_env, environ)
    return replace(url, password=password, sentinel_password=sentinel_password)


def _password(reader: Reader, key: str, name: str, environ: Mapping[str, str]) -> str:
    """As it stands: a password may be any text."""
    if not environ.get(name):
        reader.warn(("ledger", key), f"{name} is not set, so no password is sent")
    return environ.get(name, "")


def _with_files(reader: Reader, tls: Tls, folder: Path) -> Tls:
    """Paths are relative to the config's folder."""

    def existing(name: str, path: str | None) -> str | None:
        if path is None:
            return None
        if not (folder / path).is_file():
            reader.refuse(("ledger",), f"an existing file as {name}", f"no file {folder / path}")
        return str(folder / path)

    return Tls(
        existing("ssl_ca_certs", tls.ca_certs),
        tls.check_hostname,
        existing("ssl_certfile", tls.certfile),
        existing("ssl_keyfile", tls.keyfile),
    )


# -- providers --------------------------------------------------------------------------------------------------------------------


def _providers(
    reader: Reader, file: ConfigFile, environ: Mapping[str, str], profiles: Mapping[str, Profile]
) -> dict[str, Provider]:
    providers: dict[str, Provider] = {}
    first_of_scheme: dict[str, str] = {}
    for name in reader.names("providers"):
        place: Place = ("providers", name)
        if reader.refused(*place):
            continue
        entry = reader.part(ProviderFile, *place)
        provider = _provider(reader, place, name, entry, file.upstream, environ, profiles)
        providers[name] = provider
        if provider.accepts_caller_keys:
            first = first_of_scheme.setdefault(provider.scheme, name)
            if first != name:
                expected = f"one provider that accepts callers' keys in `{provider.scheme}`: {first} does already"
                reader.refuse((*place, "accepts_caller_keys"), expected)
        _warn_about_provider(reader, place, provider, file.auth)
    return providers


def _provider(
    reader: Reader,
    place: Place,
    name: str,
    entry: ProviderFile,
    upstream: UpstreamFile,
    environ: Mapping[str, str],
    profiles: Mapping[str, Profile],
) -> Provider:
    if entry.profile is not None and entry.profile not in profiles:
        known = ", ".join(sorted(profiles))
        reader.refuse((*place, "profile"), f"one of {known}{did_you_mean(entry.profile, profiles)}")
    profile = profiles.get(entry.profile or name) or profiles["generic"]
    scheme = entry.scheme or (Scheme.X_API_KEY if profile.name == "anthropic" else Scheme.AUTHORIZATION)
    api_key = None
    if entry.api_key_env is not None:
        api_key = _secret(reader, (*place, "api_key_env"), entry.api_key_env, environ)
    timeouts = entry.timeouts
    return Provider(
        name=name,
        base_url=entry.base_url,
        scheme=scheme.value,
        profile=profile if entry.on_disconnect is None else replace(profile, on_disconnect=entry.on_disconnect),
        accepts_caller_keys=entry.accepts_caller_keys,
        api_key_env=entry.api_key_env,
        api_key=api_key,
        models=tuple(entry.models),
        connect_timeout_ms=upstream.timeouts.connect if timeouts.connect is None else timeouts.connect,
        idle_timeout_ms=upstream.timeouts.idle if timeouts.idle is None else timeouts.idle,
        retries=upstream.retries if entry.retries is None else entry.retries,
        client=upstream.client if entry.client is None else entry.client,
    )


def _warn_about_provider(reader: Reader, place: Place, provider: Provider, auth: Auth) -> None:
    url = urlsplit(provider.base_url)
    keyed = provider.accepts_caller_keys or provider.api_key_env is not None
    if url.scheme == "http" and keyed and not is_loopback(url.hostname or ""):
        reader.warn((*place, "base_url"), "keys go there over plain http, readable on the way")
    serves_callers = auth is Auth.PASSTHROUGH and provider.accepts_caller_keys
    if provider.api_key_env is not None and provider.api_key is None and not serves_callers:
        reader.warn((*place, "api_key_env"), f"{provider.api_key_env} is not set, so its models are refused")


# -- models -----------------------------------------------------------------------------------------------------------------------


def _models(reader: Reader, catalog: Catalog, elsewhere: str | None) -> dict[str, Model]:
    models: dict[str, Model] = {}
    providers = reader.names("providers")
    for name in reader.names("models"):
        place: Place = ("models", name)
        if reader.refused(*place):
            continue
        entry = reader.part(ModelFile, *place)
        bundled = catalog.find(name) or _other_name(catalog, name, entry)
        if entry.provider is not None and entry.provider not in providers:
            reader.refuse(
                (*place, "provider"), f"one of `providers`: {', '.join(providers)}{did_you_mean(entry.provider, providers)}"
            )
        if entry.free and reader.has(*place, "price"):
            reader.refuse((*place, "free"), "either a price or `free: true`, not both")
        _check_routes(reader, place, entry, providers)
        if reader.has(*place, "price") and not reader.refused(*place, "price"):
            price = reader.part(PriceFile, *place, "price")
            writes = bool(entry.max_output) or (bundled is not None and estimate.output_billed(bundled))
            known = bundled is not None and bool(bundled.tiers)
            price_file.check(reader, (*place, "price"), price, known=known, writes=writes)
        model = _model(reader, place, name, entry, bundled, elsewhere)
        if not model.priced and reader.sound(*place):
            reader.warn(place, "no price and not `free: true`, so its calls are refused")
        models[name] = model
    return models


def _check_routes(reader: Reader, place: Place, entry: ModelFile, providers: Sequence[str]) -> None:
    if entry.routes and entry.provider is not None:
        reader.refuse((*place, "provider"), "either a provider or `routes`, not both")
    taken: set[str] = set()
    for i, route in enumerate(entry.routes):
        if route.provider not in providers:
            expected = f"one of `providers`: {', '.join(providers)}{did_you_mean(route.provider, providers)}"
            reader.refuse((*place, "routes", i), expected, f'"{route.provider}"')
        elif route.provider in taken:
            reader.refuse((*place, "routes", i), "each provider once", f'"{route.provider}"')
        taken.add(route.provider)


def _other_name(catalog: Catalog, name: str, entry: ModelFile) -> Model | None:
    """A model that is only another name for one that the catalog knows, by its first route."""
    known = catalog.find(entry.routes[0].model or "") if entry.routes else None
    return None if known is None else replace(known, name=name)


def _first_provider(entry: ModelFile) -> str | None:
    return entry.routes[0].provider if entry.routes else entry.provider


def _model(reader: Reader, place: Place, name: str, entry: ModelFile, bundled: Model | None, elsewhere: str | None) -> Model:
    """The entry over the bundled model, where there is one."""
    if bundled is None:
        if (
            _first_provider(entry) is None and elsewhere is None and reader.sound(*place, "routes")
        ):  # routes that can't be read are told of already
            reader.refuse((*place, "provider"), "the provider that serves it: the bundled catalog does not know this model")
        context, max_output = _limits_by_price(entry.price)
        for key, value in (("context", entry.context or context), ("max_output", entry.max_output or max_output)):
            if not value:
                reader.refuse((*place, key), "a number of tokens: the bundled catalog does not know this model")
        bundled = Model(name, _first_provider(entry) or elsewhere or "", (), context, max_output)
    if entry.free:
        bundled = replace(bundled, tiers=(), service_tiers=(), fees=(), free=True)
    elif entry.price is not None:
        bundled = price_file.priced(bundled, entry.price)
    return replace(
        bundled,
        provider=_first_provider(entry) or bundled.provider,
        context=entry.context or bundled.context,
        max_output=entry.max_output or bundled.max_output,
        max_input=entry.max_input or bundled.max_input,
        capabilities=(bundled.capabilities if entry.capabilities is None else frozenset(entry.capabilities))
        | (frozenset() if entry.price is None else entry.price.implies),
        parameters=bundled.parameters if entry.parameters is None else frozenset(entry.parameters),
        encoding=entry.encoding or bundled.encoding,
        reasoning=bundled.reasoning if entry.reasoning is None else entry.reasoning,
    )


def _limits_by_price(price: PriceFile | None) -> tuple[int, int]:
    """Context and largest output of a model that is new, as far as its prices tell: what writes no tokens needs no room for them."""
    if price is not None and price.input is None and price.output is None and price.by_the_piece:
        return PIECEWISE_CONTEXT, PIECEWISE_MAX_OUTPUT
    return 0, PIECEWISE_MAX_OUTPUT if price is not None and price.output is None else 0


def _overlaid(
    catalog: Catalog, models: Mapping[str, Model], providers: Mapping[str, Provider], file: ConfigFile, reader: Reader
) -> Catalog:
    """An exact name in `models` goes before any provider's pattern; patterns go before the bundled catalog."""
    exact = [(escape(name), provider) for name, entry in file.models.items() if (provider := _first_provider(entry)) is not None]
    patterns = [(glob, name) for name, provider in file.providers.items() for glob in provider.models]
    spoken = {name: dialects for name, provider in providers.items() if (dialects := provider.profile.dialects) is not None}
    version = catalog.version
    flat = {name: Microcents(amount) for name, amount in file.reservation.flat.items()}
    if models or flat:
        own = hashlib.sha256(repr((reader.plain("models"), flat)).encode()).hexdigest()
        version = f"{version}+{own[:8]}"
    known = {**catalog.models, **models}
    return Catalog(version, known, (*exact, *patterns), spoken, _routes(known, file), flat)


def _routes(known: Mapping[str, Model], file: ConfigFile) -> dict[str, tuple[Route, ...]]:
    def there(name: str, route: RouteFile) -> Model:
        return known.get(route.model or name) or replace(known[name], name=route.model or name)

    return {
        name: tuple(Route(route.provider, there(name, route)) for route in entry.routes)
        for name, entry in file.models.items()
        if entry.routes
    }


# -- routes that nothing meters ---------------------------------------------------------------------------------------------------


def _unmetered_routes(reader: Reader, providers: Mapping[str, Provider]) -> tuple[UnmeteredRoute, ...]:
    routes: list[UnmeteredRoute] = []
    seen = {_shape(method, path) for method, path in METERED_ROUTES}
    metered = frozenset(seen)
    for i in reader.indexes("unmetered_routes"):
        place: Place = ("unmetered_routes", i)
        if reader.refused(*place):
            continue
        entry = reader.part(UnmeteredRouteFile, *place)
        method, path = entry.route
        shape = _shape(method, path)
        if shape in seen:
            reader.refuse(
                (*place, "route"),
                "a route that nothing meters: this one is metered" if shape in metered else "each route once",
                f"{method} {path}",
            )
        seen.add(shape)
        if entry.provider not in providers:
            known = ", ".join(providers)
            reader.refuse((*place, "provider"), f"one of `providers`: {known}{did_you_mean(entry.provider, providers)}")
        routes.append(UnmeteredRoute(method, path, entry.provider, entry.cost))
    return tuple(routes)


def _shape(method: str, path: str) -> tuple[str, tuple[str, ...]]:
    """What makes two routes the same: a parameter's name does not."""
    return method, tuple("{}" if word.startswith("{") else word for word in path.split("/"))


# -- keys -------------------------------------------------------------------------------------------------------------------------


NOBODYS_NAMES: Final = ("admin", "anonymous", "budget")  # who acted, where no key of the config did


def _keys(reader: Reader, file: ConfigFile) -> tuple[StaticKey, ...]:
    keys: list[StaticKey] = []
    for i in reader.indexes("keys"):
        place: Place = ("keys", i)
        if reader.refused(*place):
            continue
        entry = reader.part(KeyFile, *place)
        if entry.name in NOBODYS_NAMES:
            reader.refuse((*place, "name"), f"another name: {', '.join(NOBODYS_NAMES)} stand for others in the records")
        for key, known in (("name", [key.name for key in keys]), ("sha256", [key.sha256 for key in keys])):
            if reader.plain(*place, key) in known:
                reader.refuse((*place, key), "each key once")
        keys.append(StaticKey(entry.name, entry.sha256, entry.tenant, tuple(sorted(entry.dimensions.items()))))
    if file.auth is Auth.KEYS and not keys and reader.sound("keys"):
        reader.warn(("auth",), "`keys` is empty, so only keys that the Cycles admin plane makes can call")
    if file.auth is Auth.PASSTHROUGH and keys and reader.sound("auth"):
        reader.warn(("keys",), "not used without `auth: keys`")
    return tuple(keys)
