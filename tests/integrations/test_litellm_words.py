"""LiteLLM's words in ours, without LiteLLM."""

import hashlib
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from gateway import bundled
from gateway.core.catalog import Catalog, Model, Rates
from gateway.core.meter import Meter
from gateway.core.policy import Source
from gateway.core.tokens import TokenCounter
from gateway.integrations import litellm_words as words
from gateway.integrations.litellm_words import Billing, Deployment, Names
from gateway.settings import StaticKey
from gateway.wire import chat, completions, messages, responses
from gateway.wire.problem import Refused
from tests.support.rulebooks import policy


def owned(name: str) -> bool:
    return name in ("litellm_call_id", "api_base", "proxy_server_request", "model_info", "fallbacks", "secret_fields")


# -- calls ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call_type", "dialect"),
    [
        ("acompletion", chat.DIALECT),
        ("completion", chat.DIALECT),
        ("anthropic_messages", messages.DIALECT),
        ("aresponses", responses.DIALECT),
        ("atext_completion", completions.DIALECT),
    ],
)
def test_what_asks_a_model_is_read_by_its_dialect(call_type: str, dialect: object) -> None:
    assert words.dialect_of(call_type) is dialect


@pytest.mark.parametrize(
    "call_type",
    [
        "aget_responses",
        "alist_batches",
        "adelete_responses",
        "afile_content",
        "acreate_file",
        "call_mcp_tool",
        "avideo_list",
        "get_thread",
    ],
)
def test_what_asks_no_model_costs_nothing(call_type: str) -> None:
    assert words.dialect_of(call_type) is None


@pytest.mark.parametrize(
    "call_type",
    [
        *(
            "pass_through_endpoint",
            "arerank",
            "_arealtime",
            "acreate_batch",
            "avideo_generation",
            "atranscription",
            "arun_thread",
        ),
        *("aimage_edit", "allm_passthrough_route", "acompact_responses", "avector_store_search", "unknown", "asearch"),
    ],
)
def test_what_nothing_meters_has_no_place_under_a_budget(call_type: str) -> None:
    with pytest.raises(Refused) as refused:
        words.dialect_of(call_type)
    assert refused.value.problem.code == "route_not_metered"


def test_a_call_is_served_by_one_of_another_kind_only_among_conversations() -> None:
    assert words.is_same_call(messages.DIALECT, chat.DIALECT)
    assert not words.is_same_call(chat.DIALECT, chat.DIALECT)


# -- requests ---------------------------------------------------------------------------------------------------------------------


def test_only_what_a_provider_could_be_sent_is_read() -> None:
    data = {
        "model": "alias",
        "messages": [],
        "temperature": 0.5,
        "top_k": 3,
        "litellm_call_id": "1",
        "metadata": {"a": 1},
        "litellm_logging_obj": object(),
        "fallbacks": ["other"],
        "_litellm_x": "y",
        "client": object(),
        "api_base": "http://x",
    }
    assert words.body_of(data, owned) == {"model": "alias", "messages": [], "temperature": 0.5, "top_k": 3}


def test_extra_body_is_read_as_part_of_the_request() -> None:
    assert words.body_of({"model": "m", "extra_body": {"service_tier": "priority"}}, owned) == {
        "model": "m",
        "service_tier": "priority",
    }


@pytest.mark.parametrize("name", ["model", "max_tokens", "n", "messages", "stream"])
def test_extra_body_changes_nothing_that_was_read(name: str) -> None:
    with pytest.raises(Refused, match=f"extra_body.{name}"):
        words.body_of({"model": "m", "extra_body": {name: 1}}, owned)


def test_a_deployments_cap_gives_way_to_the_requests_own() -> None:
    data: dict[str, Any] = {"max_tokens": 100, "max_completion_tokens": 9}
    assert words.body_of(data, owned) == {"max_completion_tokens": 9}
    words.write_cap(data, "max_completion_tokens", 8)
    assert data == {"max_completion_tokens": 8}


def test_each_dialect_has_its_own_field_for_the_cap() -> None:
    assert words.cap_field(responses.DIALECT, None) == "max_output_tokens"
    assert words.cap_field(chat.DIALECT, None) == "max_tokens"
    assert words.cap_field(chat.DIALECT, "max_completion_tokens") == "max_completion_tokens"


# -- callers ----------------------------------------------------------------------------------------------------------------------


def data_of(headers: dict[str, str], metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"proxy_server_request": {"headers": headers}, "metadata": {"requester_metadata": metadata or {}}}


def test_metadata_says_what_no_header_does() -> None:
    rules = policy(identity=(("agent", (Source("header", "X-Agent-Id"),)),))
    headers = words.headers_of(data_of({"x-agent-id": "a1"}, {"run_id": "r1", "run_limit": "$2", "agent": "a2"}), rules)
    assert (headers["X-Run-Id"], headers["X-Run-Limit"], headers["X-Agent-Id"]) == ("r1", "$2", "a1")


def test_a_run_named_in_a_header_goes_before_metadata_and_litellms_session() -> None:
    headers = words.headers_of(data_of({"x-run-id": "r0", "x-litellm-session-id": "s"}, {"run_id": "r1"}), policy())
    assert headers.getall("X-Run-Id") == ["r0"]


def test_litellms_session_is_the_run_of_who_names_none() -> None:
    assert words.headers_of(data_of({"x-litellm-session-id": "s-1"}), policy())["X-Run-Id"] == "s-1"
    assert words.headers_of(data_of({"x-litellm-session-id": "has spaces"}), policy())["X-Run-Id"].startswith("h_")


def test_a_virtual_key_is_known_by_its_hash_and_its_team_and_user_are_bound() -> None:
    auth = SimpleNamespace(api_key="ab" * 32, team_alias="research", team_id="t-1", user_id="u-1", org_id=None)
    principal = words.principal_of(auth, {}, {})
    assert (principal.tenant, principal.key) == ("default", "litellm_abababababababab")
    assert principal.bound == (("team", "research"), ("user", "u-1"))


def test_the_holder_of_the_master_key_is_nobody_in_particular() -> None:
    auth = SimpleNamespace(
        api_key="litellm_proxy_master_key", team_alias=None, team_id=None, user_id="default_user_id", org_id=None
    )
    assert words.principal_of(auth, {}, {}).bound == ()
    assert words.principal_of(SimpleNamespace(api_key=None), {}, {}).key == "anonymous"


def test_a_key_that_the_config_lists_means_what_it_means_at_the_gateway() -> None:
    secret = "pk-shared"
    key = StaticKey("ci", hashlib.sha256(secret.encode()).hexdigest(), "acme", (("team", "core"),))
    shown = {"secret_fields": {"raw_headers": {"authorization": f"Bearer {secret}"}}}
    principal = words.principal_of(SimpleNamespace(api_key="x", user_id="u"), shown, {key.sha256: key})
    assert (principal.tenant, principal.key, principal.bound) == ("acme", "ci", (("team", "core"),))


# -- models -----------------------------------------------------------------------------------------------------------------------

_RATES = (Rates(1, 1, 1, 1),)
BUNDLED = bundled.load_catalog()
OWN = {name: Model(name, "litellm", _RATES, 1000, 100) for name in ("house", "azure/ours")}
NAMES = Names(Catalog("1", {**BUNDLED.models, **OWN}), BUNDLED)


@pytest.mark.parametrize(
    ("deployment", "name"),
    [
        (Deployment("openai/gpt-5"), "gpt-5"),
        (Deployment("gpt-5"), "gpt-5"),
        (Deployment("gpt-5", provider="openai"), "gpt-5"),
        (Deployment("anthropic/claude-haiku-4-5"), "claude-haiku-4-5"),
        (Deployment("vertex_ai/gemini-2.5-pro"), "gemini-2.5-pro"),
        (Deployment("groq/openai/gpt-oss-120b"), "openai/gpt-oss-120b"),
        (Deployment("hosted_vllm/house"), "house"),
        (Deployment("azure/ours"), "azure/ours"),
        (Deployment("azure/prod-1", base_model="azure/gpt-5"), "gpt-5"),
        (Deployment("azure/prod-1", base_model="gpt-5"), "gpt-5"),
    ],
)
def test_a_deployment_is_priced_by_the_model_behind_it(deployment: Deployment, name: str) -> None:
    assert NAMES.of(deployment) == name


@pytest.mark.parametrize(
    "model",
    [
        "fireworks_ai/deepseek-v3",  # another seller of it, at another price
        "azure/prod-1",
        "bedrock/anthropic.claude-3-5-sonnet-20240620-v1:0",
        "openai/gpt-oss-120b",  # bundled by that name, of groq
        "openai/claude-haiku-4-5",
        "vertex_ai/claude-haiku-4-5",
    ],
)
def test_what_nobody_knows_the_price_of_keeps_litellms_name(model: str) -> None:
    assert NAMES.of(Deployment(model)) == model


def test_an_entry_of_the_model_list_tells_its_model_and_its_own_cap() -> None:
    entry = {"litellm_params": {"model": "azure/x", "max_tokens": 50}, "model_info": {"base_model": "gpt-5"}}
    assert words.deployment_of(entry, "g") == Deployment("azure/x", "gpt-5", None, 50)
    assert words.deployment_of({"litellm_params": {"model": "openai/*"}}, "openai/gpt-5").model == "openai/gpt-5"


# -- answers ----------------------------------------------------------------------------------------------------------------------


class Pydantic:
    def __init__(self, plain: dict[str, Any]) -> None:
        self._plain = plain

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return self._plain


def test_litellms_usage_for_anthropic_tells_what_was_kept_for_an_hour() -> None:
    usage = {
        "prompt_tokens": 1_000,
        "completion_tokens": 10,
        "total_tokens": 1_010,
        "prompt_tokens_details": {
            "cached_tokens": 100,
            "cache_creation_tokens": 300,
            "cache_creation_token_details": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
        },
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 100,
    }
    meter = Meter(TokenCounter(bundled.load_tokenizer), None)
    chat.read_answer(words.answer_of(Pydantic({"choices": [], "usage": usage})), meter)
    read = meter.usage(0)
    assert (read.input_tokens, read.cached_tokens, read.cache_write_tokens, read.output_tokens) == (600, 100, 100, 10)
    assert dict(read.others) == {"cache_write_long": 200}
    assert read.total_input_tokens == 1_000
    assert meter.unknown == set()


def test_a_piece_of_a_stream_is_an_event_whatever_it_comes_as() -> None:
    assert words.event_of(b"data: x\n\n") == b"data: x\n\n"
    assert words.event_of("data: x\n\n") == b"data: x\n\n"
    assert words.event_of(Pydantic({"choices": []})) == b'data: {"choices":[]}\n\n'
    assert words.event_of({"type": "message_stop"}) == b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    assert words.event_of(object()) == b""


def test_usage_that_litellm_hides_is_found() -> None:
    chunk = SimpleNamespace(_hidden_params={"usage": Pydantic({"prompt_tokens": 3})})
    assert words.usage_in(chunk) == {"prompt_tokens": 3}
    assert words.usage_in(SimpleNamespace()) is None


def test_an_answer_out_of_litellms_cache_is_known() -> None:
    assert words.from_cache(SimpleNamespace(_hidden_params={"cache_hit": True}))
    assert words.from_cache({"_hidden_params": {"cache_hit": True}})
    assert words.from_cache(SimpleNamespace(custom_llm_provider="cached_response"))
    assert not words.from_cache(SimpleNamespace(_hidden_params={}))


def test_what_is_no_json_is_read_as_text() -> None:
    assert orjson.loads(words.encoded({"a": SimpleNamespace})) == {"a": str(SimpleNamespace)}


# -- failures ---------------------------------------------------------------------------------------------------------------------


def failure(*chain: BaseException) -> BaseException:
    """Each is the cause of the one before."""
    for outer, inner in pairwise(chain):
        outer.__cause__ = inner
    return chain[0]


def made(name: str, module: str = "httpx", status: int | None = None, response: int | None = None) -> BaseException:
    error: BaseException = type(name, (Exception,), {"__module__": module})("x")
    if status is not None:
        error.status_code = status  # type: ignore[attr-defined]
    if response is not None:
        error.response = SimpleNamespace(status_code=response)  # type: ignore[attr-defined]
    return error


def litellms(name: str, status: int) -> BaseException:
    return made(name, "litellm.exceptions", status, status)


@pytest.mark.parametrize(
    ("chain", "billing"),
    [
        ([litellms("InternalServerError", 500), made("InternalServerError", "openai", 500, 500)], Billing.REFUSED),
        ([litellms("ServiceUnavailableError", 503), made("HTTPStatusError", response=503)], Billing.REFUSED),
        ([litellms("RateLimitError", 429), made("RateLimitError", "openai", 429, 429)], Billing.REFUSED),
        ([litellms("BadRequestError", 400)], Billing.REFUSED),
        ([litellms("BadGatewayError", 502), made("InternalServerError", "openai", 502, 502)], Billing.UNKNOWN),
        ([litellms("Timeout", 504), made("HTTPStatusError", response=504)], Billing.UNKNOWN),
        ([litellms("InternalServerError", 500)], Billing.UNKNOWN),
        ([litellms("InternalServerError", 500), made("ConnectError"), ConnectionRefusedError()], Billing.NOT_SENT),
        (
            [
                litellms("InternalServerError", 500),
                made("ConnectError"),
                made("ClientOSError", "aiohttp"),
                ConnectionResetError(),
            ],
            Billing.UNKNOWN,
        ),
        ([litellms("Timeout", 408), made("ReadTimeout")], Billing.UNKNOWN),
        ([ValueError("a bug")], Billing.UNKNOWN),
    ],
)
def test_what_can_be_said_of_the_bill_of_a_failed_attempt(chain: list[BaseException], billing: Billing) -> None:
    assert words.billing_of(failure(*chain)) is billing


def test_an_earlier_attempts_failure_says_nothing_of_this_ones() -> None:
    earlier = failure(litellms("InternalServerError", 500), made("ConnectError"))
    assert words.billing_of(failure(litellms("InternalServerError", 500), made("ReadError"), earlier)) is Billing.UNKNOWN
