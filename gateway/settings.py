"""The config file and the environment → `Settings`, once, at start. Every mistake is named, all at once; no secret is ever shown."""

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from glob import escape
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field

from gateway import price_file, store_url
from gateway.core import estimate
from gateway.core.catalog import Catalog, Model, Route
from gateway.core.money import Microcents, parse_usd
from gateway.core.profiles import OnDisconnect, Profile
from gateway.core.values import Call
from gateway.price_file import PIECEWISE_CONTEXT, PIECEWISE_MAX_OUTPUT, PriceFile, Tokens
from gateway.store_url import StoreUrl, Tls
from gateway.wire.dialects import METERED_ROUTES
from gateway.wire.unmetered import UnmeteredRoute
from gateway.yaml_fields import (
    BoundDimension,
    EnvironmentName,
    Glob,
    ModelName,
    Switch,
    Word,
    duration,
    listed,
    matching,
    one_of,
    preset,
    size,
    text_of,
    whole,
)
from gateway.yaml_source import Mistakes, Place, Reader, Reads, Section, Unexpected, did_you_mean, read_document

MIN_TOKEN_LENGTH: Final = 16
SQLITE_KEEP_MS: Final = 30 * 86_400_000
REDIS_KEEP_MS: Final = 2 * 86_400_000  # memory is dearer than a disk
CAPABILITIES: Final = ("tools", "vision", "json_schema", "audio_input", "audio_output", "files")


class Auth(StrEnum):
    PASSTHROUGH = "passthrough"
    KEYS = "keys"


class StreamSummary(StrEnum):
    OFF = "off"
    COMMENT = "comment"


class Background(StrEnum):
    REFUSE = "refuse"
    ALLOW = "allow"


class Scheme(StrEnum):
    """The header in which a provider takes its key."""

    AUTHORIZATION = "authorization"
    X_API_KEY = "x-api-key"


class Synchronous(StrEnum):
    NORMAL = "NORMAL"
    FULL = "FULL"


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
    stream_summary: bool = False  # whether streams end with a comment that says what the call cost
    max_request: int = 20 << 20  # bytes, as max_response
    max_response: int = 32 << 20
    drain: Drain = Drain()
    shutdown_grace_ms: int = 30_000
    unmetered_routes: tuple[UnmeteredRoute, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)  # allowed, but seldom meant: one line each

    def lease_of(self, call: Call) -> int:
        """How long its hold lasts without a sign of life, in ms."""
        return self.background_lease_ms if call.background else self.lease_ms


# -- kinds of values that only a config has ---------------------------------------------------------------------------------------

Listen: TypeAlias = tuple[str, int]
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)
_ROUTE_PATTERN: Final = r"(?:GET|POST|PUT|PATCH|DELETE) /v1/[a-z0-9_-]{1,64}(?:/(?:[a-z0-9_-]{1,64}|\{[a-z_]{1,32}\})){0,8}"
_NOT_SHOWN: Final = "a URL with a user or password (not shown)"


def _parse_listen(value: object) -> Listen:
    match = _HOST_AND_PORT.fullmatch(text_of(value))
    if match is None or int(match[2]) > 65_535:
        raise Unexpected
    return match[1].strip("[]"), int(match[2])


def _parse_ledger(value: object) -> str | StoreUrl:
    """The path of `sqlite:///relative.db` or `sqlite:////absolute.db`, or a Redis URL's parts."""
    text = text_of(value)
    scheme, found_scheme, rest = text.partition("://")
    if found_scheme and scheme in store_url.SCHEMES:
        return store_url.parse(text)
    if scheme != "sqlite" or not found_scheme:
        found = "a URL with another scheme" if found_scheme else None
        raise Unexpected(found="something else (not shown: it may be a secret)" if "@" in text else found)
    path = rest.removeprefix("/")
    if not rest.startswith("/") or not path or path.endswith("/") or "?" in path or "\0" in path:
        raise Unexpected
    return path


def _parse_base_url(value: object) -> str:
    text = text_of(value)
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise Unexpected from None
    if url.username is not None or url.password is not None:
        raise Unexpected("a URL without a user: keys come from `api_key_env`", _NOT_SHOWN)
    if not _is_http(url, port) or not text.isascii() or not text.isprintable() or " " in text:
        raise Unexpected
    return text.rstrip("/")


def _is_http(url: SplitResult, port: int | None) -> bool:
    return url.scheme in ("http", "https") and bool(url.hostname) and port != 0 and not url.query and not url.fragment


def _parse_host(value: object) -> str:
    """A name, or an IPv6 address with or without its brackets."""
    text = text_of(value).lower()
    bare = text.removeprefix("[").removesuffix("]")
    if _HOST.fullmatch(text) is None and not (":" in bare and _is_address(bare)):
        raise Unexpected
    return bare


def _parse_route(value: object) -> tuple[str, str]:
    text = text_of(value)
    if re.fullmatch(_ROUTE_PATTERN, text, re.ASCII) is None:
        raise Unexpected
    method, _, path = text.partition(" ")
    return method, path


def _parse_cost(value: object) -> int:
    """USD → microcents, exactly."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unexpected
    try:
        return parse_usd(value if isinstance(value, str) else f"{Decimal(str(value)):f}")
    except (ValueError, InvalidOperation) as error:
        raise Unexpected from error


def _parse_capability(value: object) -> str:
    if value not in CAPABILITIES:
        raise Unexpected(f"one of {', '.join(CAPABILITIES)}{did_you_mean(value, CAPABILITIES) if isinstance(value, str) else ''}")
    return str(value)


def _parse_bound_value(value: object) -> str:
    text = text_of(value)
    if not 1 <= len(text) <= 256 or not text.isprintable():
        raise Unexpected
    return text


def _parse_log(value: object) -> str:
    text = text_of(value)
    if not text or not text.isprintable():
        raise Unexpected
    return text


_PATH: Final = matching(r"[^\x00-\x1f]{1,4096}", "a path")
_ORIGIN: Final = matching(
    r"https?://[A-Za-z0-9.\[\]:_-]{1,260}", "an origin such as https://app.example.com", "https://app.example.com"
)
_ROUTE: Final = Reads(
    _parse_route,
    "a method and a path such as GET /v1/files/{id}: lower-case words and parameters, the first one a word",
    {"type": "string", "pattern": _ROUTE_PATTERN, "examples": ["POST /v1/files", "GET /v1/files/{id}"]},
)
_COST: Final = Reads(
    _parse_cost,
    "an amount in US dollars such as 0.01",
    {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}], "examples": [0.01]},
)
FilePath = Annotated[str, _PATH]
Usd = Annotated[int, _COST]
Timeout = duration("100ms", "1h")
ProviderName = Annotated[str, matching("[A-Za-z0-9._-]{1,64}", "a provider's name: letters, digits, dots, dashes or underscores")]


# -- the file's shape -------------------------------------------------------------------------------------------------------------


class TimeoutsFile(Section):
    connect: Annotated[int, Timeout] = preset("10s", description="Name look-up, TCP and TLS together.")
    idle: Annotated[int, Timeout] = preset(
        "10m", description="The longest silence, before the first byte or between two: a model may think for minutes."
    )


class ProviderTimeoutsFile(Section):
    connect: Annotated[int, Timeout] | None = preset(None, description="Instead of `upstream.timeouts.connect`.")
    idle: Annotated[int, Timeout] | None = preset(None, description="Instead of `upstream.timeouts.idle`.")


Retries = Annotated[int, whole(0, 10)]


class UpstreamFile(Section):
    timeouts: TimeoutsFile = preset({}, description="How long a provider may take.")
    retries: Retries = preset(
        2, description="How often a call is sent again, under the same hold, after what was provably not billed."
    )


class ProviderFile(Section):
    base_url: Annotated[
        str,
        Reads(
            _parse_base_url,
            "an http or https URL such as https://api.openai.com/v1",
            {"type": "string", "pattern": "^https?://", "examples": ["https://api.openai.com/v1"]},
        ),
    ] = Field(description="Where the provider's API is, up to and with its version.")
    api_key_env: EnvironmentName | None = preset(
        None,
        description="The environment variable that holds the provider's key. It may be unset: then only callers' own keys go there.",
    )
    accepts_caller_keys: Switch = preset(
        False,
        description="With `auth: passthrough`, callers' own keys are forwarded to this provider. One provider per scheme; a key that came with "
        "`anthropic-version` is for the one of `x-api-key`, whichever header it is in.",
    )
    scheme: Annotated[Scheme, one_of(Scheme)] | None = preset(
        None,
        description="The header that carries the key. Default: `x-api-key` with the profile `anthropic`, else `authorization`.",
    )
    models: Annotated[list[Glob], BeforeValidator(listed, json_schema_input_type=Glob | list[Glob])] = preset(
        [], description="Names or patterns of the models it serves, beside those that the catalog knows as its own."
    )
    profile: Word | None = preset(
        None, description="How it wants its requests. Default: the profile with the provider's name, else `generic`."
    )
    on_disconnect: Annotated[OnDisconnect, one_of(OnDisconnect)] | None = preset(
        None,
        description="When a client leaves mid-answer: read on for the real usage (`drain`), close and charge what was relayed "
        "(`count`), or charge the whole hold (`full_hold`). Default: the profile's.",
    )
    timeouts: ProviderTimeoutsFile = preset({}, description="Other time-outs for this provider.")
    retries: Retries | None = preset(None, description="Instead of `upstream.retries`.")
    stand_in: ClassVar = {"base_url": "http://127.0.0.1"}


class RouteFile(Section):
    """`openai` is short for `{provider: openai}`."""

    provider: ProviderName = Field(description="One of `providers`.")
    model: ModelName | None = preset(
        None,
        description="The name that it has there. One that is known here, in the catalog or in `models`, brings its own price and limits; "
        "else those of this model hold.",
    )
    stand_in: ClassVar = {"provider": "-"}


def _as_provider(value: object) -> object:
    return {"provider": value} if isinstance(value, str) else value


class ModelFile(Section):
    routes: list[Annotated[RouteFile, BeforeValidator(_as_provider, json_schema_input_type=ProviderName | RouteFile)]] = preset(
        [],
        description="Providers that serve it, in the order in which they are tried: before the first byte of an answer, a failure of "
        "one moves the call on to the next. Instead of `provider`.",
    )
    provider: ProviderName | None = preset(
        None, description="One of `providers`. Required for a model that the catalog does not know."
    )
    price: PriceFile | None = preset(None, description="Prices in US dollars per million tokens. Without any, calls are refused.")
    free: Switch = preset(False, description="The model costs nothing: it needs no price, and passes with $0 left.")
    context: Tokens | None = preset(
        None, description="Tokens of input and output together. Required for a new model that bills tokens."
    )
    max_output: Tokens | None = preset(
        None, description="The most output tokens of one answer. Required for a new model that writes any."
    )
    max_input: Tokens | None = preset(None, description="The most input tokens, where that is less than the context.")
    capabilities: (
        list[
            Annotated[
                str,
                Reads(_parse_capability, f"one of {', '.join(CAPABILITIES)}", {"type": "string", "enum": list(CAPABILITIES)}),
            ]
        ]
        | None
    ) = preset(None, description="What it can do. A call is downgraded only to a model that can do what the call needs.")
    parameters: list[Word] | None = preset(None, description="Request parameters that it accepts. Default: all.")
    encoding: Annotated[str, matching("o200k_base|cl100k_base", "o200k_base or cl100k_base")] | None = preset(
        None, description="The tokenizer, where it is a public one."
    )
    reasoning: Switch | None = preset(None, description="Whether it reasons before it answers.")


class KeyFile(Section):
    name: Word = Field(description="The key's id in the ledger and in logs.")
    sha256: Annotated[
        str,
        matching("[0-9a-f]{64}", "the SHA-256 of a key in lower-case hex, as `penstock keys hash` prints it", hidden=True),
    ] = Field(description="The SHA-256 of the key, as `penstock keys hash` prints it.")
    tenant: Word = preset("default", description="Whose budgets its calls count in.")
    dimensions: dict[
        BoundDimension, Annotated[str, Reads(_parse_bound_value, "text of 1 to 256 characters", {"type": "string"})]
    ] = preset({}, description="What the key is bound to: user, team, agent … No header overrides it.")
    stand_in: ClassVar = {"name": "-", "sha256": "0" * 64}


class ReservationFile(Section):
    lease: Annotated[int, duration("1s", "24h")] = preset(
        "10m", description="How long a hold lasts without a sign of life; then it is charged in full, provisionally."
    )
    background_lease: Annotated[int, duration("1m", "30d")] = preset(
        "1h",
        description="The same for a background answer: how long it may take until somebody asks for it, and from one time to the next.",
    )
    commit_wait: Annotated[int, duration("0ms", "10s")] = preset(
        "250ms", description="How long an answer's last bytes wait for the ledger, so that the run's next call sees the refund."
    )
    flat: dict[Annotated[str, matching("[A-Za-z0-9_.-]{1,64}", "a field's name, as the refusal says it")], Usd] = preset(
        {},
        description="US dollars to set aside for each request that has a field whose cost nothing here can bound, by the field's name: "
        "`{tools.web_search: $0.25}`. It then passes a hard gate, and is charged that amount in full, or the real fee where the answer "
        "tells the number and the model has a price for it. This is a guess and NOT a bound: what the provider bills may be more.",
    )


LedgerUrl = Annotated[
    str | StoreUrl,
    Reads(
        _parse_ledger,
        "a URL such as sqlite:///var/penstock.db (three slashes: relative; four: absolute) or redis://host:6379/0",
        {"type": "string", "pattern": f"^({'|'.join(map(re.escape, ('sqlite', *store_url.SCHEMES)))})://.+$"},
    ),
]


class LedgerFile(Section):
    url: LedgerUrl = Field(
        description="`sqlite:///FILE`; or Redis 6.2 or later, or Valkey 7.2 or later: `redis://[USER[:PASSWORD]@]HOST[:PORT][/DB]`, "
        "`redis+unix:///SOCKET[?db=N]`, `redis+sentinel://HOST[:PORT],HOST…/SERVICE[/DB]`, `redis+cluster://HOST[:PORT],HOST…`. With TLS: "
        "`rediss://`, `rediss+sentinel://`, `rediss+cluster://` and, after a `?`, `ssl_ca_certs=FILE`, `ssl_check_hostname=false`, "
        "`ssl_certfile=FILE&ssl_keyfile=FILE`. A percent sign, slash, colon, @ or # in a password is percent-encoded."
    )
    timeout: Annotated[int, duration("10ms", "60s")] = preset(
        "5s", description="How long the ledger may take to answer; then the call is answered 503."
    )
    keep: Annotated[int, duration("1h", "400d")] | None = preset(
        None,
        description="How long the records of ended calls, and idempotency keys, stay in the ledger. Where that is less than 30d, the "
        "records are kept for 30d in `records.db` in `state_dir`. Default: 30d in SQLite, 48h in Redis.",
    )
    synchronous: Annotated[Synchronous, one_of(Synchronous)] | None = preset(
        None,
        description="SQLite: `NORMAL` survives a killed process; `FULL` also a power loss, and is slower. Default: `NORMAL`.",
    )
    wait_replicas: Annotated[int, whole(0, 16)] | None = preset(
        None,
        description="Redis: a step is answered when so many replicas have it (`WAIT`), which narrows what a failover can lose. Default: 0.",
    )
    password_env: EnvironmentName | None = preset(
        None,
        description="Redis: the environment variable that holds the password. The user, if it is not the default one, is in the URL.",
    )
    sentinel_password_env: EnvironmentName | None = preset(
        None, description="Redis: the same for the sentinels themselves, where they ask for a password."
    )
    stand_in: ClassVar = {"url": "sqlite:///-"}


def _as_url(value: object) -> object:
    """`ledger: URL` is short for `ledger: {url: URL}`."""
    return value if isinstance(value, dict) else {"url": value}


class LimitsFile(Section):
    max_request: Annotated[int, size("1 KB", "1 GB")] = preset(
        "20 MB", description="The largest request body, inflated; beyond it 413."
    )
    max_response: Annotated[int, size("1 KB", "1 GB")] = preset("32 MB", description="The largest answer that is not streamed.")


class DrainFile(Section):
    time: Annotated[int, duration("0s", "1h")] = preset("30s", description="For how long.")
    bytes: Annotated[int, size("0 B", "1 GB")] = preset("8 MB", description="How much of one answer.")
    number: Annotated[int, whole(1, 10_000)] = preset(64, description="How many at once.")


class UnmeteredRouteFile(Section):
    route: Annotated[tuple[str, str], _ROUTE] = Field(
        description="A method and a path below `/v1`, such as `GET /v1/files/{id}`. A parameter is one segment; the path's first word is none."
    )
    provider: ProviderName = Field(description="One of `providers`: where its calls go.")
    cost: Annotated[int, _COST] = preset(
        0,
        description="US dollars that each call is charged, whatever it really costs. Not a bound: nothing here meters the route.",
    )
    stand_in: ClassVar = {"route": "GET /v1/-", "provider": "-"}


class ShutdownFile(Section):
    grace: Annotated[int, duration("0s", "1h")] = preset(
        "30s", description="How long live streams may finish; what is left then is ended and settled."
    )


class ConfigFile(Section):
    listen: Annotated[
        Listen,
        Reads(
            _parse_listen,
            "HOST:PORT such as 127.0.0.1:8080",
            {"type": "string", "pattern": "^.+:[0-9]{1,5}$", "examples": ["127.0.0.1:8080", "[::1]:8080"]},
        ),
    ] = preset(
        "127.0.0.1:8080",
        description="Where the gateway listens. Port 0 takes a free one. Beyond loopback `auth: keys` is required.",
    )
    policy: FilePath = preset("policies/default.yaml", description="The policy file.")
    ledger: Annotated[LedgerFile, BeforeValidator(_as_url, json_schema_input_type=LedgerUrl | LedgerFile)] = preset(
        "sqlite:///var/penstock.db", description="Where balances are kept: a URL, or a section with the URL and more."
    )
    state_dir: FilePath = preset("var", description="A folder for the witness file and the install's secret.")
    auth: Annotated[Auth, one_of(Auth)] = preset(
        "passthrough",
        description="`passthrough`: callers bring their provider's key; loopback only. `keys`: callers bring a key of this gateway.",
    )
    admin_token_env: EnvironmentName = preset(
        "PENSTOCK_ADMIN_TOKEN", description="The environment variable with the admin token. Unset: nobody is the admin."
    )
    background: Annotated[Background, one_of(Background)] = preset(
        "refuse",
        description="Requests with `background: true`. `allow`: their hold stays until the answer is asked for, or for "
        "`reservation.background_lease`. `refuse`: 400.",
    )
    reservation: ReservationFile = preset({}, description="How long holds last, and answers wait for the ledger.")
    providers: dict[ProviderName, ProviderFile] = Field(description="The providers, by name. At least one.")
    models: dict[ModelName, ModelFile] = preset(
        {}, description="Adds to or overrides the bundled catalog; what an entry does not say stays as bundled."
    )
    unmetered_routes: list[UnmeteredRouteFile] = preset(
        [],
        description="Routes that nothing meters and that pass all the same (files, batches, fine-tuning …). Any other is 404. What they "
        "cost is not bounded by any budget: it is charged at the flat `cost` of each call.",
    )
    keys: list[KeyFile] = preset([], description="The keys of `auth: keys`.")
    allowed_hosts: list[Annotated[str, Reads(_parse_host, "a host name without a port", {"type": "string"})]] = preset(
        [], description="With `auth: passthrough`, host names that requests may use beside the loopback names."
    )
    allowed_origins: list[Annotated[str, _ORIGIN]] = preset(
        [], description="Web pages that may send requests, by origin. Any other `Origin` is refused."
    )
    stream_summary: Annotated[StreamSummary, one_of(StreamSummary)] = preset(
        "off",
        description="`comment`: before the last event of each streamed answer stands a comment, which clients skip, with what the call cost "
        "and what is left: `: penstock cost_usd=0.0123 remaining_usd=4.87 run=r1`.",
    )
    log: Annotated[str, Reads(_parse_log, "stderr, stdout or a file's path", {"type": "string"})] = preset(
        "stderr", description="Where the log goes, one JSON line a call: `stderr`, `stdout` or a file's path."
    )
    limits: LimitsFile = preset({}, description="How large things may be. 1 MB is 1,048,576 bytes.")
    upstream: UpstreamFile = preset({}, description="How providers are called.")
    drain: DrainFile = preset(
        {}, description="How far an answer whose client left is read on for its usage, where `on_disconnect` is `drain`."
    )
    shutdown: ShutdownFile = preset({}, description="How the gateway stops.")
    stand_in: ClassVar = {"providers": {}}


def config_schema() -> dict[str, object]:
    """The JSON Schema of the config file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ConfigFile.model_json_schema(),
        "title": "Penstock config",
        "description": "Where the gateway listens, its providers, models and keys. See docs/config.md.",
    }


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


def read(path: Path, environ: Mapping[str, str], catalog: Catalog, profiles: Mapping[str, Profile]) -> Reading:
    """As `load`, but hands over what is known beside the mistakes."""
    try:
        reader = Reader(read_document(path), ConfigFile)
    except Mistakes as mistakes:
        return Reading(None, mistakes, None)
    for place, expected in _MOVED.items():
        reader.moved(place, expected)
    folder = path.parent
    file = reader.part(ConfigFile)
    _check_access(reader, file)
    admin_token = _secret(reader, ("admin_token_env",), file.admin_token_env, environ)
    providers = _providers(reader, file, environ, profiles)
    models = _models(reader, catalog)
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
        stream_summary=file.stream_summary is StreamSummary.COMMENT,
        max_request=file.limits.max_request,
        max_response=file.limits.max_response,
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
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


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


def _models(reader: Reader, catalog: Catalog) -> dict[str, Model]:
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
        model = _model(reader, place, name, entry, bundled)
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


def _model(reader: Reader, place: Place, name: str, entry: ModelFile, bundled: Model | None) -> Model:
    """The entry over the bundled model, where there is one."""
    if bundled is None:
        if _first_provider(entry) is None and reader.sound(*place, "routes"):  # routes that can't be read are told of already
            reader.refuse((*place, "provider"), "the provider that serves it: the bundled catalog does not know this model")
        context, max_output = _limits_by_price(entry.price)
        for key, value in (("context", entry.context or context), ("max_output", entry.max_output or max_output)):
            if not value:
                reader.refuse((*place, key), "a number of tokens: the bundled catalog does not know this model")
        bundled = Model(name, _first_provider(entry) or "", (), context, max_output)
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
        reader.warn(("auth",), "`keys` is empty, so nobody can call")
    if file.auth is Auth.PASSTHROUGH and keys and reader.sound("auth"):
        reader.warn(("keys",), "not used without `auth: keys`")
    return tuple(keys)
