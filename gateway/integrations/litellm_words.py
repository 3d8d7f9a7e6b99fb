"""LiteLLM's words in ours: which of its calls are metered and as what, what a request asks for, whose it is, which model it is served by,
and what an answer says. Pure, and without LiteLLM: whatever of it is needed comes as an argument.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum, auto
from typing import Any, Final

import orjson
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.core.catalog import Catalog
from gateway.core.policy import RUN_HEADER, Policy
from gateway.core.record import record
from gateway.identity import ANONYMOUS, DEFAULT_TENANT, Principal
from gateway.settings import StaticKey
from gateway.wire import chat, completions, embeddings, images, messages, moderations, responses, sessions, speech
from gateway.wire.dialect import Dialect
from gateway.wire.headers import identity_value
from gateway.wire.problem import Refused, bad_request, problem

# -- calls ------------------------------------------------------------------------------------------------------------------------

# LiteLLM's `call_type`, which some of its routes give by the name of the asynchronous function and some by the other's.
_METERED: Final[Mapping[str, Dialect]] = {
    **dict.fromkeys(("completion", "acompletion"), chat.DIALECT),
    **dict.fromkeys(("text_completion", "atext_completion"), completions.DIALECT),
    **dict.fromkeys(("anthropic_messages", "aanthropic_messages"), messages.DIALECT),
    **dict.fromkeys(("responses", "aresponses"), responses.DIALECT),
    **dict.fromkeys(("embedding", "aembedding", "embeddings"), embeddings.DIALECT),
    **dict.fromkeys(("moderation", "amoderation"), moderations.DIALECT),
    **dict.fromkeys(("image_generation", "aimage_generation"), images.DIALECT),
    **dict.fromkeys(("speech", "aspeech"), speech.DIALECT),
}
# What asks a model for nothing: lists, looks up, deletes; and tools of MCP servers, which LiteLLM only passes on.
_FREE: Final = re.compile(
    r"_?a?((list|get|retrieve|delete|cancel)_\w+|\w+_(list|get|retrieve|delete|cancel)(_\w+)?|file_\w+|(create|upload)_file|add_message"
    r"|vector_store_file_(content|update)|vector_store_update|count_tokens)|a_add_message|call_mcp_tool|mcp_call|apply_guardrail"
)
_CONVERSING: Final = (chat.DIALECT, messages.DIALECT, responses.DIALECT, completions.DIALECT)


def dialect_of(call_type: str) -> Dialect | None:
    """How such a call is read; None: it costs nothing. Refused 404: nothing here knows what it costs."""
    dialect = _METERED.get(call_type)
    if dialect is None and _FREE.fullmatch(call_type) is None:
        raise Refused(
            problem("route_not_metered", f"Nothing here meters what LiteLLM calls {call_type!r}: it has no place under a budget.")
        )
    return dialect


def is_same_call(outer: Dialect, inner: Dialect) -> bool:
    """Whether LiteLLM may make a call of the one kind to serve one of the other, at the same model."""
    return outer is not inner and outer in _CONVERSING and inner in _CONVERSING


# -- requests ---------------------------------------------------------------------------------------------------------------------

# Fields of LiteLLM's own that are not among those which it lists as such, and that no provider is sent.
_CARRIED: Final = frozenset(
    [
        *(
            "additional_drop_params",
            "content_policy_fallbacks",
            "contents",
            "context_window_fallbacks",
            "deployment",
            "disable_fallbacks",
        ),
        *(
            "drop_params",
            "extra_body",
            "extra_headers",
            "include_fallback_errors",
            "litellm_disabled_callbacks",
            "litellm_logging_obj",
        ),
        *("metadata", "original_function", "router_settings_override", "specific_deployment", "timeout", "user_config"),
    ]
)
# What decides the price, or is written here: in `extra_body` it would win over what was read.
_DECIDING: Final = frozenset(
    [
        *("model", "messages", "input", "prompt", "system", "stream", "n", "best_of", "max_tokens", "max_completion_tokens"),
        *("max_output_tokens", "previous_response_id", "background"),
    ]
)
_JSON: Final = (str, int, float, bool, list, dict)
CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def body_of(data: Mapping[str, Any], owned: Callable[[str], bool]) -> dict[str, Any]:
    """What a provider could be sent of a request as LiteLLM carries it. `owned`: the fields that LiteLLM keeps for itself. Fallbacks are
    its own too: each of them is a call that is asked about for itself."""
    body = {
        name: value
        for name, value in data.items()
        if name not in _CARRIED and isinstance(value, _JSON) and not name.startswith("_") and not owned(name)
    }
    extra = data.get("extra_body")
    if isinstance(extra, dict) and extra:
        if forced := sorted(extra.keys() & _DECIDING):
            raise bad_request("ambiguous_request", f"extra_body.{forced[0]}: name it outside of extra_body.", "extra_body")
        body |= extra
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        del body["max_tokens"]  # the deployment's default beside the request's own: `write_cap` takes it out of the request too
    return body


def encoded(body: Mapping[str, Any]) -> bytes:
    """As our dialects read it. What is no JSON stands there as text, which over-counts it."""
    try:
        return orjson.dumps(body, default=str)
    except orjson.JSONEncodeError:
        raise bad_request("ambiguous_request", "The request is nested too deeply, or has numbers beyond 64 bits.") from None


def cap_field(dialect: Dialect, asked: str | None) -> str:
    """Where a request of that dialect says its output cap. LiteLLM itself knows what each model wants it to be called."""
    return asked or ("max_output_tokens" if dialect is responses.DIALECT else "max_tokens")


def write_cap(data: dict[str, Any], field: str, cap: int) -> None:
    for other in CAPS:
        if other != field:
            data.pop(other, None)
    data[field] = cap


# -- callers ----------------------------------------------------------------------------------------------------------------------

# What a client may say in `metadata`, where it does not say it in a header.
_SAID: Final = {"run_id": RUN_HEADER, "parent_run_id": "X-Parent-Run-Id", "run_limit": "X-Run-Limit"}
_SESSION_HEADERS: Final = ("x-litellm-session-id", "x-litellm-trace-id")
_KEY_HEADERS: Final = ("x-litellm-api-key", "authorization", "x-api-key", "api-key")
_NOBODY: Final = frozenset({"default_user_id"})  # LiteLLM's word for whoever holds the master key
_HEX_64: Final = re.compile(r"[0-9a-f]{64}")


def metadata_of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The client's own."""
    for name in ("metadata", "litellm_metadata"):
        carried = data.get(name)
        if isinstance(carried, Mapping) and isinstance(said := carried.get("requester_metadata"), Mapping):
            return said
    return {}


def headers_of(data: Mapping[str, Any], policy: Policy) -> CIMultiDictProxy[str]:
    """The request's headers, and as headers what its metadata says of the run and of who is calling. LiteLLM's session is the run of a
    client that names none."""
    request = data.get("proxy_server_request")
    received = request.get("headers") if isinstance(request, Mapping) else None
    headers: CIMultiDict[str] = CIMultiDict()
    if isinstance(received, Mapping):
        headers.extend((str(name), str(value)) for name, value in received.items())
    extra = data.get("extra_headers")
    if isinstance(extra, Mapping):
        headers.extend((str(name), str(value)) for name, value in extra.items() if str(name) not in headers)
    metadata = metadata_of(data)
    for said, header in (*_SAID.items(), *_dimensions(policy)):
        value = metadata.get(said)
        if header not in headers and isinstance(value, str) and value:
            headers[header] = value
    if RUN_HEADER not in headers:
        session = next((headers[name] for name in _SESSION_HEADERS if headers.get(name)), None)
        if session is not None and (run := sessions.as_run_id(session)) is not None:
            headers[RUN_HEADER] = run
    return CIMultiDictProxy(headers)


def _dimensions(policy: Policy) -> Iterable[tuple[str, str]]:
    for name, sources in policy.identity:
        header = next((source.name for source in sources if source.kind == "header"), None)
        if header is not None:
            yield name, header


def principal_of(auth: Any, data: Mapping[str, Any], keys: Mapping[str, StaticKey]) -> Principal:
    """Whom LiteLLM let in. A key that the config lists too, by its SHA-256, means what it means at the gateway; of any other, the team and
    the user are what LiteLLM says, and no header changes them."""
    for digest in _presented(data) if keys else ():
        if (listed := keys.get(digest)) is not None:
            return Principal(listed.tenant, listed.name, bound=listed.dimensions)
    key = getattr(auth, "api_key", None)
    if not isinstance(key, str) or not key:
        return Principal(DEFAULT_TENANT, ANONYMOUS)
    digest = key if _HEX_64.fullmatch(key) else _digest(key)
    told = {"team": _word(auth, "team_alias", "team_id"), "user": _word(auth, "user_id"), "organization": _word(auth, "org_id")}
    bound = tuple(sorted((name, value) for name, value in told.items() if value is not None))
    return Principal(DEFAULT_TENANT, f"litellm_{digest[:16]}", bound=bound)


def _presented(data: Mapping[str, Any]) -> Iterable[str]:
    """The digests of what the client showed: LiteLLM has its own name for the master key."""
    kept = data.get("secret_fields")
    raw = kept.get("raw_headers") if isinstance(kept, Mapping) else None
    if not isinstance(raw, Mapping):
        return
    for name in _KEY_HEADERS:
        value = raw.get(name)
        if isinstance(value, str) and value:
            yield _digest(value[7:].strip() if value[:7].lower() == "bearer " else value)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _word(auth: Any, *names: str) -> str | None:
    for name in names:
        value = getattr(auth, name, None)
        if isinstance(value, str) and value and value not in _NOBODY:
            return identity_value(value, name)
    return None


# -- models -----------------------------------------------------------------------------------------------------------------------

# Whose list prices hold for models that a provider of LiteLLM's serves by the same names. Any other name is priced by the config alone.
_SAME_AS: Final[Mapping[str, frozenset[str]]] = {
    "openai": frozenset({"openai"}),
    "text-completion-openai": frozenset({"openai"}),
    "azure": frozenset({"openai"}),
    "anthropic": frozenset({"anthropic"}),
    "gemini": frozenset({"gemini"}),
    "vertex_ai": frozenset({"gemini"}),
    "mistral": frozenset({"mistral"}),
    "codestral": frozenset({"mistral"}),
    "xai": frozenset({"xai"}),
    "groq": frozenset({"groq"}),
    "deepseek": frozenset({"deepseek"}),
    "cohere": frozenset({"cohere"}),
    "cohere_chat": frozenset({"cohere"}),
    "perplexity": frozenset({"perplexity"}),
}


@record
class Deployment:
    """One way in which LiteLLM may serve a model group: of its `litellm_params` and `model_info`, what is looked at here."""

    model: str  # "openai/gpt-5-mini"
    base_model: str | None = None
    provider: str | None = None  # `custom_llm_provider`, where it is said
    cap: int | None = None  # its own default for `max_tokens`


def deployment_of(entry: Mapping[str, Any], group: str) -> Deployment:
    """An entry of the router's model list."""
    params, info = entry.get("litellm_params"), entry.get("model_info")
    params = params if isinstance(params, Mapping) else {}
    info = info if isinstance(info, Mapping) else {}
    model = _text(params, "model") or group
    caps = [value for name in CAPS if type(value := params.get(name)) is int and value > 0]
    base_model = _text(info, "base_model") or _text(params, "base_model")
    return Deployment(group if "*" in model else model, base_model, _text(params, "custom_llm_provider"), min(caps, default=None))


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) and value else None


class Names:
    """`catalog`: with the config's own models; `bundled`: without them."""

    def __init__(self, catalog: Catalog, bundled: Catalog) -> None:
        self._catalog = catalog
        self._bundled = bundled

    def of(self, deployment: Deployment) -> str:
        """The name by which its price is known; LiteLLM's own where nobody knows it. The config may name a model as LiteLLM does
        (`azure/our-deployment`) or without its provider; the operator's `base_model` goes before the name of what is deployed."""
        provider = deployment.provider
        tried = (
            self._named(deployment.model, provider),
            None if deployment.base_model is None else self._named(deployment.base_model, None),
            self._named(deployment.base_model.partition("/")[2], deployment.base_model.partition("/")[0])
            if deployment.base_model
            else None,
            self._named(deployment.model.partition("/")[2], provider or deployment.model.partition("/")[0]),
        )
        return next((name for name in tried if name is not None), deployment.model)

    def _named(self, name: str, provider: str | None) -> str | None:
        if not name or self._catalog.find(name) is None:
            return None
        shipped = self._bundled.find(name)
        if shipped is None or provider is None or shipped.provider in _SAME_AS.get(provider, ()):
            # A name with a slash that is bundled is another provider's own word (`openai/gpt-oss-120b` at groq).
            return None if shipped is not None and provider is None and "/" in name else name
        return None


# -- answers ----------------------------------------------------------------------------------------------------------------------


def answer_of(response: Any) -> bytes:
    """A whole answer, as our dialects read it; b"" where it is no JSON."""
    if isinstance(response, bytes):
        return response
    plain = _plain(response)
    return b"" if plain is None else orjson.dumps(plain, default=str)


def event_of(chunk: Any, *, without_usage: bool = False) -> bytes:
    """A piece of a stream, as bytes of an event stream."""
    if isinstance(chunk, bytes):
        return chunk
    if isinstance(chunk, str):
        return chunk.encode("utf-8", "surrogatepass")
    plain = _plain(chunk)
    if plain is None:
        return b""
    if without_usage:
        plain = {name: value for name, value in plain.items() if name != "usage"}
    data = orjson.dumps(plain, default=str)
    kind = plain.get("type")
    named = b"event: %b\n" % kind.encode() if type(kind) is str and kind.isprintable() else b""
    return b"%bdata: %b\n\n" % (named, data)


def _plain(value: Any) -> dict[str, Any] | None:
    """A dict, or what pydantic makes one of."""
    if isinstance(value, dict):
        return value
    dump = getattr(value, "model_dump", None)
    if dump is None:
        return None
    plain = dump(mode="json", exclude_none=True, warnings=False)
    return plain if isinstance(plain, dict) else None


def usage_in(chunk: Any) -> Mapping[str, Any] | None:
    """The usage that LiteLLM hides from a client that did not ask for it, where a chunk has it."""
    hidden = getattr(chunk, "_hidden_params", None)
    usage = hidden.get("usage") if isinstance(hidden, Mapping) else None
    return None if usage is None else _plain(usage)


def is_its_own_count(stream: Any) -> bool:
    """Whether the usage that LiteLLM tells at the end of a stream is its own count: no chunk that it collected had any."""
    chunks = getattr(stream, "chunks", None)
    return isinstance(chunks, list) and not any(getattr(chunk, "usage", None) is not None for chunk in chunks)


_CACHED: Final = "cached_response"  # LiteLLM's word for the provider of such a stream


def from_cache(response: Any) -> bool:
    """LiteLLM answers it from its cache, or plays a stream from there."""
    if getattr(response, "custom_llm_provider", None) == _CACHED:
        return True
    hidden = getattr(response, "_hidden_params", None)
    if hidden is None and isinstance(response, Mapping):
        hidden = response.get("_hidden_params")
    return isinstance(hidden, Mapping) and hidden.get("cache_hit") is True


# -- failures ---------------------------------------------------------------------------------------------------------------------


class Billing(Enum):
    """What can be said of the bill for an attempt that failed."""

    NOT_SENT = auto()
    REFUSED = auto()  # by the provider, before any output
    UNKNOWN = auto()


# Names of exceptions, of the HTTP clients that LiteLLM has: of a connection that was never made, …
_NEVER_SENT: Final = frozenset(
    [
        *(
            "ConnectError",
            "ConnectTimeout",
            "PoolTimeout",
            "UnsupportedProtocol",
            "InvalidURL",
            "ConnectionRefusedError",
            "gaierror",
        ),
        *("ClientConnectorError", "ClientConnectorDNSError", "ClientConnectorSSLError", "ConnectionTimeoutError"),
    ]
)
# … and of one that broke, or was given up, when the request may have been read.
_BROKE_OFF: Final = frozenset(
    [
        *(
            "ReadError",
            "ReadTimeout",
            "WriteError",
            "WriteTimeout",
            "RemoteProtocolError",
            "LocalProtocolError",
            "ConnectionResetError",
        ),
        *(
            "ServerDisconnectedError",
            "ClientPayloadError",
            "ClientOSError",
            "SocketTimeoutError",
            "ServerTimeoutError",
            "APITimeoutError",
        ),
        *("Timeout", "CancelledError", "MidStreamFallbackError", "IncompleteRead"),
    ]
)
_REFUSED_BY: Final = frozenset({500, 503})  # the provider's own, where it said so itself
_NOT_SAID: Final = frozenset({408, 499})


def billing_of(failure: BaseException) -> Billing:
    """By the deepest of the exceptions that led to it which says anything: LiteLLM's transport makes one error of connections that were not
    made and of those that broke. What can't be told apart may have been billed."""
    found: Billing | None = None
    for each in _chain(failure):
        found = _told_by(each) or found
    if found is not None:
        return found
    status = getattr(failure, "status_code", None)
    return Billing.REFUSED if type(status) is int and 400 <= status < 500 and status not in _NOT_SAID else Billing.UNKNOWN


def _told_by(failure: BaseException) -> Billing | None:
    name = type(failure).__name__
    if name in _NEVER_SENT:
        return Billing.NOT_SENT
    if name in _BROKE_OFF:
        return Billing.UNKNOWN
    status = None if _is_litellms(failure) else getattr(getattr(failure, "response", None), "status_code", None)
    if type(status) is not int:
        return None
    refused = status in _REFUSED_BY or (400 <= status < 500 and status not in _NOT_SAID)
    return Billing.REFUSED if refused else Billing.UNKNOWN


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """Those of this attempt: where it was made while an earlier one's failure was handled, that one follows, and it begins with an exception
    of LiteLLM's."""
    seen: set[int] = set()
    each: BaseException | None = failure
    among_others = False
    while each is not None and id(each) not in seen and not (among_others and _is_litellms(each)):
        seen.add(id(each))
        among_others |= not _is_litellms(each)
        yield each
        each = each.__cause__ or each.__context__


def _is_litellms(failure: BaseException) -> bool:
    """One whose response LiteLLM makes up."""
    return type(failure).__module__.startswith("litellm.")
