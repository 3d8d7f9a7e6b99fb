"""The config file's shape: its sections, their keys and what each may hold. What it comes to is `settings`'."""

import ipaddress
import re
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, ClassVar, Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field

from gateway import store_url
from gateway.core.money import parse_usd
from gateway.core.profiles import OnDisconnect
from gateway.core.scopes import BOOKKEEPING
from gateway.price_file import PriceFile, Tokens
from gateway.store_url import StoreUrl
from gateway.yaml_fields import (
    A_WORD,
    WORD,
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
from gateway.yaml_source import Reads, Section, Unexpected, did_you_mean

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


class HttpClient(StrEnum):
    """What speaks HTTP to a provider."""

    LEAN = "lean"
    AIOHTTP = "aiohttp"


class Synchronous(StrEnum):
    NORMAL = "NORMAL"
    FULL = "FULL"


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
    if _HOST.fullmatch(text) is None and not (":" in bare and is_address(bare)):
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


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


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
    client: Annotated[HttpClient, one_of(HttpClient)] = preset(
        HttpClient.LEAN,
        description="What speaks HTTP/1.1 to providers: `lean`, which is the gateway's own and costs the least CPU, or `aiohttp`, "
        "for an endpoint whose HTTP the first can't read.",
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
    client: Annotated[HttpClient, one_of(HttpClient)] | None = preset(None, description="Instead of `upstream.client`.")
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


TenantName = Annotated[str, matching(rf"(?!{BOOKKEEPING}$){WORD}", f"{A_WORD}, but not {BOOKKEEPING}")]


class KeyFile(Section):
    name: Word = Field(description="The key's id in the ledger and in logs.")
    sha256: Annotated[
        str,
        matching("[0-9a-f]{64}", "the SHA-256 of a key in lower-case hex, as `penstock keys hash` prints it", hidden=True),
    ] = Field(description="The SHA-256 of the key, as `penstock keys hash` prints it.")
    tenant: TenantName = preset("default", description="Whose budgets its calls count in.")
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


class CyclesFile(Section):
    trace_id_in_errors: bool = preset(
        False,
        description="Whether errors under `/cycles` carry `trace_id` in their body, as the specification has it. The Python client 0.5.3 then "
        "loses the error's request id and details, and sends a refused commit twice. The header X-Cycles-Trace-Id has it in any case.",
    )
    newer_members: bool = preset(
        False,
        description="Whether reservations are shown with the members that the specification gained last (`committed`, `finalized_at_ms` in "
        "lists, `committed_metadata`), which the Python client 0.5.3 takes for mistakes.",
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
    max_bodies: Annotated[int, size("1 MB", "1024 GB")] = preset(
        "512 MB",
        description="How much of all requests above 64 KB together is kept, in each worker, and as much again of all answers that are not "
        "streamed. Beyond it large requests are refused (503), by their head or while they come, and providers wait with large answers. At least one of the "
        "largest (`max_request`, `max_response`) always has room.",
    )
    max_buffered: Annotated[int, size("1 MB", "1024 GB")] = preset(
        "256 MB",
        description="How much of all answers together is kept, in each worker, for clients that read more slowly than their provider writes. "
        "A stream that would need more is ended as if its client had left.",
    )
    max_connections: Annotated[int, whole(1, 1_000_000)] = preset(
        10_000, description="How many connections each worker has at once. One more is answered 503 `overloaded` and closed."
    )
    max_calls: Annotated[int, whole(1, 1_000_000)] = preset(
        5_000,
        description="How many requests to model routes each worker has under way at once. One more is answered 503 `overloaded`; the gateway's "
        "own pages still answer.",
    )


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
    cycles: CyclesFile = preset({}, description="What the Cycles protocol's clients are told, under `/cycles`.")
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


class WithoutProviders(ConfigFile):
    """The same file for a process that calls no provider itself."""

    providers: dict[ProviderName, ProviderFile] = preset({}, description="The providers, by name.")


def config_schema() -> dict[str, object]:
    """The JSON Schema of the config file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ConfigFile.model_json_schema(),
        "title": "Penstock config",
        "description": "Where the gateway listens, its providers, models and keys. See docs/config.md.",
    }
