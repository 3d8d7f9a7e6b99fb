"""OpenAI responses. A request becomes a Call and, once a plan is held, bytes again; an answer feeds a Meter.

Every field that decides what a call costs is read strictly, as in `chat`. Two things are not in the body, and are bounded instead:
what the provider keeps (an earlier answer, a conversation, a file), by the context window; and what its own tools bring, by one more
reading of a whole context for each of `max_tool_calls`. A hosted tool without that bound is named in `Call.unpriced`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from gateway.core import measures
from gateway.core.meter import Meter
from gateway.core.profiles import Profile
from gateway.core.tokens import CHAT_MESSAGE_TOKENS, CHAT_PRIMING_TOKENS
from gateway.core.values import ADDRESS, ELSEWHERE, SAME_MODEL, Attachment, Caching, Image, Part, Pieces, Plan, Usage, UsageSource
from gateway.wire import media
from gateway.wire.body import parse_object
from gateway.wire.dialect import Dialect
from gateway.wire.headers import RequestHeaders
from gateway.wire.problem import Problem, bad_request
from gateway.wire.reading import (
    A_COUNT,
    A_LIST,
    A_SWITCH,
    A_TEXT,
    AN_OBJECT,
    Facts,
    dicts,
    encoded,
    fields_of,
    model_name,
    not_a,
    note_unknown,
    objects,
    refuse_other_kinds,
    refuse_variants,
    text_of,
    tokens,
    typed,
)
from gateway.wire.request import Request
from gateway.wire.streaming import EventStream

NAME: Final = "responses"
# Of answers that the provider keeps: what costs nothing.
STORED: Final = (
    ("GET", "/v1/responses/{id}"),
    ("DELETE", "/v1/responses/{id}"),
    ("POST", "/v1/responses/{id}/cancel"),
    ("GET", "/v1/responses/{id}/input_items"),
)
CAP_FIELD: Final = "max_output_tokens"
HOLD_KEY: Final = "penstock_hold"  # of `metadata`: where a background answer keeps the mark of its hold
MAX_TOOL_CALLS: Final = 1_000
MAX_METADATA: Final = 16  # keys; the API's own limit

# As in `chat`: bounds, not rules. A call's JSON is already longer than what the model is shown of it.
ITEM_OVERHEAD: Final = 8
TOOLS_OVERHEAD: Final = 32
TOOL_OVERHEAD: Final = 8
SCHEMA_OVERHEAD: Final = 16
BUILT_IN_OVERHEAD: Final = 1_024  # what the provider tells the model of a tool that it knows by name. This over-counts most.
# Encrypted reasoning is text to the model; real text has more than 2 bytes a token, and encryption makes it no shorter.
_ENCRYPTED_BYTES_PER_TOKEN: Final = 2

# Fields that move the price in a way nothing here models: a prompt kept by the provider brings its own tools and model settings;
# compaction is a pass of its own; the rest are other dialects' words, which a server that translates may read.
_UNPRICED: Final = frozenset(
    {
        "prompt",
        "context_management",
        "max_tokens",
        "max_completion_tokens",
        "n_predict",
        "n",
        "best_of",
        "web_search_options",
        "search_parameters",
        "models",
        "route",
        "provider",
        "plugins",
        "transforms",
        "preset",
        "fallbacks",
    }
)
# The fields that `read` looks at by one name and of one type, and the words for it. Null is as good as absent.
_KINDS: Final = {
    "stream": A_SWITCH,
    "stream_options": AN_OBJECT,
    "background": A_SWITCH,
    "instructions": A_TEXT,
    CAP_FIELD: A_COUNT,
    "previous_response_id": A_TEXT,
    "metadata": AN_OBJECT,
    "text": AN_OBJECT,
    "reasoning": AN_OBJECT,
    "service_tier": A_TEXT,
    "include": A_LIST,
    "prompt_cache_options": AN_OBJECT,
}
_READ: Final = (
    _UNPRICED | _KINDS.keys() | {"model", "input", "tools", "tool_choice", "max_tool_calls", "conversation", "truncation", "user"}
)
# Fields that no model reads as input. The texts, lists and objects in any other field are counted as if it did.
_NOT_INPUT: Final = _READ | {
    "access_programs",
    "client_metadata",  # Codex's, and another in each call: as text it would end every anchor
    "background_options",
    "image",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "store",
}
# Fields that every model takes, so that they don't stand in the way of a downgrade.
_UNIVERSAL: Final = frozenset(
    {
        "model",
        "input",
        "instructions",
        "stream",
        "stream_options",
        CAP_FIELD,
        "max_tool_calls",
        "background",
        "previous_response_id",
        "conversation",
        "include",
        "truncation",
        "user",
        "client_metadata",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "text",
        "reasoning",
    }
)
# Fields that a request can differ in and still be the same one.
_NOT_MEANT: Final = frozenset(
    {"stream", "stream_options", "metadata", "client_metadata", "user", "safety_identifier", "prompt_cache_key", "store"}
)

_TEXT_KINDS: Final = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal"})
_IMAGE_KINDS: Final = frozenset({"input_image", "computer_screenshot"})
# Beside the texts of items and their parts: ids, states, and what only the client reads.
_NOT_SHOWN: Final = frozenset(
    {
        "type",
        "id",
        "status",
        "annotations",
        "logprobs",
        "prompt_cache_breakpoint",
        "cache_control",
        "phase",
        "acknowledged_safety_checks",
        "pending_safety_checks",
        "internal_chat_message_metadata_passthrough",  # Codex's
    }
)
_ITEMS: Final = frozenset(
    {
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "reasoning",
        "computer_call",
        "computer_call_output",
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "shell_call",
        "shell_call_output",
        "apply_patch_call",
        "apply_patch_call_output",
        "mcp_list_tools",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "tool_search_call",
        "tool_search_output",
        "additional_tools",
        "configuration_update",
        "compaction",
        "program",
        "program_output",
    }
)
# Of these another model may understand nothing: its makers' signatures and screens.
_ONE_MODELS: Final = frozenset({"reasoning", "compaction", "computer_call", "computer_call_output", "program", "program_output"})
# Items that bring tools with them.
_WITH_TOOLS: Final = frozenset({"additional_tools", "tool_search_output"})

# Tools that the client runs: their calls are output like any other, and end the answer.
_FUNCTIONS: Final = frozenset({"function", "custom"})
_RUN_BY_CLIENT: Final = frozenset({"apply_patch", "local_shell", "computer", "computer_use_preview"})
# Tools that the provider runs before it goes on, billed by the piece where `max_tool_calls` says how many at most.
_METERED_TOOLS: Final = {
    "web_search": measures.WEB_SEARCHES,
    "web_search_2025_08_26": measures.WEB_SEARCHES,
    "web_search_preview": measures.WEB_SEARCHES,
    "web_search_preview_2025_03_11": measures.WEB_SEARCHES,
    "file_search": measures.FILE_SEARCHES,
    "code_interpreter": measures.CODE_SESSIONS,
}
# … and those whose cost nothing bounds: `max_tool_calls` is not said to count them, or another model's tokens are billed.
_UNBOUNDED_TOOLS: Final = frozenset({"mcp", "image_generation", "shell", "tool_search", "programmatic_tool_calling"})
_TOOL_WORDS: Final = {
    "web_search_2025_08_26": "web_search",
    "web_search_preview": "web_search",
    "web_search_preview_2025_03_11": "web_search",
}


# -- the request --------------------------------------------------------------------------------------------------------------


class ResponsesRequest(Request):
    """A responses request that was read."""

    __slots__ = ()

    def encode(self, plan: Plan, profile: Profile, takes: frozenset[str] | None = None) -> bytes:
        """A background answer is given the mark of its hold, by which whoever polls it settles it."""
        del profile, takes
        body = {**self.body, **self.fragments, "model": plan.model, CAP_FIELD: plan.output_cap}
        if self.mark is not None:
            body["metadata"] = {**(self.body.get("metadata") or {}), HOLD_KEY: self.mark}
        return orjson.dumps(body)


def read(raw: bytes, headers: RequestHeaders) -> ResponsesRequest:
    """A request body → what it asks for. Refused 400 `ambiguous_request`, with the field at fault."""
    del headers
    body = parse_object(raw)
    refuse_variants(body, _READ)
    refuse_other_kinds(body, _KINDS)
    fragments = encoded(body)
    facts = Facts()
    parts = []
    if body.get("instructions"):
        parts.append(Part("instructions", ("developer", body["instructions"]), CHAT_MESSAGE_TOKENS))
    tool_calls = _max_tool_calls(body)
    allowed = _Tools(facts, tool_calls)
    parts += _input(body, facts, allowed)
    parts += _tools(body, fragments, facts, allowed)
    parts += _text_format(body, fragments, facts)
    parts += _other_input(body, fragments)
    parts.append(_REPLY)
    continues = _continues(body)
    if continues is not None:
        facts.needs.add(SAME_MODEL)
    _check_metadata(body)
    present = {name for name, value in body.items() if value is not None}
    effort = _effort(body)
    return ResponsesRequest(
        dialect=NAME,
        model=model_name(body),
        stream=body.get("stream") or False,
        client_cap=body.get(CAP_FIELD),
        cap_field=CAP_FIELD,
        service_tier=body.get("service_tier"),
        parts=tuple(parts),
        needs=frozenset(facts.needs),
        parameters=frozenset(present - _UNIVERSAL) | _as_chat_has_them(body, present),
        unpriced=(*sorted(present & _UNPRICED), *dict.fromkeys(facts.unpriced)),
        caching=_caching(body),
        reasons=effort != "none",
        pieces=allowed.pieces,
        readings=1 + tool_calls if allowed.pieces and tool_calls else 1,
        continues=continues,
        background=body.get("background") or False,
        body=body,
        fragments={name: orjson.Fragment(text) for name, text in fragments.items()},
        known=_READ,
        not_meant=_NOT_MEANT,
    )


_REPLY: Final = Part("reply", (), CHAT_PRIMING_TOKENS)


def _max_tool_calls(body: Mapping[str, Any]) -> int | None:
    expected = f"an integer from 0 to {MAX_TOOL_CALLS}"
    calls: int | None = typed(body, "max_tool_calls", int, expected)
    if calls is not None and not 0 <= calls <= MAX_TOOL_CALLS:
        raise not_a("max_tool_calls", expected)
    return calls


def _continues(body: Mapping[str, Any]) -> str | None:
    """The earlier answer, or the conversation, that the provider puts before the input."""
    previous: str | None = body.get("previous_response_id")
    conversation = body.get("conversation")
    if conversation is None:
        return previous or None
    if previous is not None:
        raise bad_request(
            "ambiguous_request", "previous_response_id and conversation are both set: send one of them.", "conversation"
        )
    if type(conversation) is dict:
        refuse_variants(conversation, frozenset({"id"}), "conversation.")
        conversation = conversation.get("id")
    if type(conversation) is not str or not conversation:
        raise not_a("conversation", "an id, or an object with its id")
    return conversation


def _check_metadata(body: Mapping[str, Any]) -> None:
    metadata = body.get("metadata") or {}
    if any(name.casefold() == HOLD_KEY for name in metadata):
        raise bad_request("ambiguous_request", f"metadata.{HOLD_KEY} is the gateway's own: leave it out.", f"metadata.{HOLD_KEY}")
    if body.get("background") and len(metadata) >= MAX_METADATA:
        raise bad_request(
            "ambiguous_request",
            f"metadata: a background answer can have {MAX_METADATA - 1} keys here, as the gateway adds one of its own.",
            "metadata",
        )


def _effort(body: Mapping[str, Any]) -> str | None:
    reasoning = body.get("reasoning")
    if reasoning is None:
        return None
    refuse_variants(reasoning, frozenset({"effort"}), "reasoning.")
    effort: str | None = typed(reasoning, "effort", str, "a string", "reasoning.")
    return effort


def _caching(body: Mapping[str, Any]) -> Caching:
    options = body.get("prompt_cache_options")
    if options is None:
        return Caching.AUTOMATIC
    refuse_variants(options, frozenset({"ttl"}), "prompt_cache_options.")
    ttl = typed(options, "ttl", str, "a string", "prompt_cache_options.")
    return Caching.AUTOMATIC if ttl in (None, "30m") else Caching.LONG


def _as_chat_has_them(body: Mapping[str, Any], present: set[str]) -> set[str]:
    """The parameters that the catalog knows by their names in chat."""
    named = set()
    include = body.get("include") or ()
    if "reasoning" in present or "reasoning.encrypted_content" in include:
        named.add("reasoning_effort")
    text = body.get("text") or {}
    if text.get("verbosity") is not None:
        named.add("verbosity")
    if text.get("format") is not None:
        named.add("response_format")
    return named


# -- what the model is shown --------------------------------------------------------------------------------------------------


def _input(body: Mapping[str, Any], facts: Facts, allowed: "_Tools") -> list[Part]:
    given = body.get("input")
    if given is None:  # a conversation, or a prompt that the provider keeps
        return []
    if type(given) is str:
        return [Part("user", ("user", given), CHAT_MESSAGE_TOKENS)]
    if type(given) is not list or not all(type(item) is dict for item in given):
        raise not_a("input", "a string or a list of objects")
    return [_item(item, facts, allowed) for item in given]


def _item(item: Mapping[str, Any], facts: Facts, allowed: "_Tools") -> Part:
    """One item. Fields that are not known here are counted as text: some servers show them to the model."""
    role, content = item.get("role"), item.get("content")
    if type(role) is str and type(content) is str and len(item) == 2:
        return Part(role, (role, content), CHAT_MESSAGE_TOKENS)
    kind = typed(item, "type", str, "a string", "input.")
    if kind is None:
        kind = "message" if "role" in item or "content" in item else "item_reference"
    if kind == "item_reference":
        facts.needs.add(SAME_MODEL)
        return Part(kind, (text_of(item.get("id")),), ITEM_OVERHEAD, attachments=(ELSEWHERE,))
    if kind not in _ITEMS:  # one that asks for a pass of its own, or that nobody has told us of
        facts.unpriced.append("input.type")
    if kind in _ONE_MODELS:
        facts.needs.add(SAME_MODEL)
    if kind in _WITH_TOOLS:
        facts.needs.add("tools")
        for tool in objects(item, "tools"):
            allowed.add(tool)
    elif kind != "message" and kind != "reasoning":
        facts.needs.add("tools")
    typed(item, "role", str, "a string", "input.")
    reading = _Reading(facts)
    for name, value in item.items():
        reading.field(kind, name, value)
    overhead = (CHAT_MESSAGE_TOKENS if kind == "message" else ITEM_OVERHEAD) + reading.overhead
    return Part(role or kind, tuple(reading.texts), overhead, tuple(reading.images), tuple(reading.attachments), reading.mark)


class _Reading:
    """What the model is shown of one item."""

    __slots__ = ("_facts", "attachments", "images", "mark", "overhead", "texts")

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.texts: list[str] = []
        self.images: list[Image] = []
        self.attachments: list[Attachment] = []
        self.overhead = 0
        self.mark = 0

    def field(self, kind: str, name: str, value: Any) -> None:
        if value is None or name in _NOT_SHOWN:
            return
        if name == "encrypted_content":
            size = media.decoded_size(typed({name: value}, name, str, "a string", "input.") or "")
            self.overhead += -(-size // _ENCRYPTED_BYTES_PER_TOKEN)
            self.mark = hash((self.mark, value))
        elif kind == "image_generation_call" and name == "result":
            self._facts.needs.add("vision")
            self.images.append(media.image(text_of(value), "auto"))
        elif name == "content" and type(value) is not str and type(value) is not list:
            raise bad_request("ambiguous_request", "input.content: expected a string or a list of parts.", "input.content")
        elif name in ("content", "output", "summary", "results") and type(value) is list:
            for part in value:
                self._part(part)
        elif name == "output" and type(value) is dict:
            self._part(value)
        else:
            self.texts.append(text_of(value))

    def _part(self, part: Any) -> None:
        if type(part) is not dict:
            raise bad_request("ambiguous_request", "input.content: expected a list of objects.", "input.content")
        kind = typed(part, "type", str, "a string", "input.content.")
        if kind in _TEXT_KINDS:
            for name, value in part.items():
                if name not in _NOT_SHOWN:
                    self.texts.append(
                        typed(part, name, str, "a string", "input.content.") or "" if name == "text" else text_of(value)
                    )
        elif kind in _IMAGE_KINDS:
            self._facts.needs.add("vision")
            url = typed(part, "image_url", str, "a string", "input.content.") or text_of(part.get("file_id"))
            detail = typed(part, "detail", str, "a string", "input.content.") or "auto"
            self.images.append(media.image(url, detail))
        elif kind == "input_audio":
            self._facts.needs.add("audio_input")
            sound = typed(part, "input_audio", dict, "an object", "input.content.") or {}
            self.attachments.append(media.sound(typed(sound, "data", str, "a string", "input.content.") or ""))
        elif kind == "input_file":
            self._facts.needs.add("files")
            data = typed(part, "file_data", str, "a string", "input.content.")
            self.texts.append(text_of(part.get("filename")))
            self.attachments.append(_file_elsewhere(part) if data is None else media.file(data))
        else:
            self.texts.append(text_of(part))
            # What a tool gave (a search's results, a shell's output) has parts without a type, or with one of its own.
            if kind is not None and kind not in ("logs", "program_output"):
                self._facts.unpriced.append("input.content.type")


def _file_elsewhere(part: Mapping[str, Any]) -> Attachment:
    """What the provider keeps under an id does not change; what it fetches may."""
    file_id = part.get("file_id")
    return replace(ELSEWHERE, mark=hash(file_id)) if type(file_id) is str and part.get("file_url") is None else ADDRESS


# -- tools --------------------------------------------------------------------------------------------------------------------


class _Tools:
    """What the tools of one request can cost beside tokens. `calls` bounds those that the provider runs; None: nothing does."""

    __slots__ = ("_calls", "_facts", "_kinds", "built_in")

    def __init__(self, facts: Facts, calls: int | None) -> None:
        self._facts = facts
        self._calls = calls
        self._kinds: set[str] = set()
        self.built_in = 0

    def add(self, tool: Mapping[str, Any]) -> None:
        kind = typed(tool, "type", str, "a string", "tools.")
        if kind == "function":
            return
        if kind == "namespace":
            for inner in objects(tool, "tools"):
                self.add(inner)
            return
        word = _TOOL_WORDS.get(kind, kind) if kind in _METERED_TOOLS or kind in _UNBOUNDED_TOOLS else "type"
        # Which models know it by name, no catalog says: no other than the one that was asked for is tried.
        self._facts.needs.add(SAME_MODEL)
        self.built_in += kind != "custom"
        if kind in _METERED_TOOLS:
            piece = _METERED_TOOLS[kind] + _container_kind(tool)
            if self._calls is None:
                self._facts.unpriced.append(f"tools.{word}")
            elif self._calls:
                self._kinds.add(piece)
        elif kind not in _RUN_BY_CLIENT and kind not in _FUNCTIONS and not _client_runs(kind, tool):
            self._facts.unpriced.append(f"tools.{word}")

    @property
    def pieces(self) -> Pieces:
        """Each call may be to any of the tools, so each is bounded by all of them."""
        return tuple((kind, self._calls or 0) for kind in sorted(self._kinds))


def _container_kind(tool: Mapping[str, Any]) -> str:
    """The price of a code interpreter's session goes by its memory: `code_sessions/4g`."""
    container = tool.get("container")
    if type(container) is not dict:
        return ""
    memory = typed(container, "memory_limit", str, "a string", "tools.container.")
    return f"/{memory}" if memory else ""


def _client_runs(kind: str | None, tool: Mapping[str, Any]) -> bool:
    """Tools that say themselves who runs them."""
    if kind == "tool_search":
        return tool.get("execution") == "client"
    return kind == "shell" and fields_of(tool.get("environment")).get("type") == "local"


def _tools(body: Mapping[str, Any], encoded: Mapping[str, bytes], facts: Facts, allowed: _Tools) -> list[Part]:
    given = objects(body, "tools")
    for tool in given:
        allowed.add(tool)
    if given or body.get("tool_choice") is not None:
        facts.needs.add("tools")
    if not given:
        return []
    overhead = TOOLS_OVERHEAD + TOOL_OVERHEAD * len(given) + BUILT_IN_OVERHEAD * allowed.built_in
    return [Part("tools", (encoded["tools"].decode(),), overhead)]


def _text_format(body: Mapping[str, Any], encoded: Mapping[str, bytes], facts: Facts) -> list[Part]:
    text = body.get("text")
    if text is None:
        return []
    refuse_variants(text, frozenset({"format"}), "text.")
    wanted = typed(text, "format", dict, "an object", "text.")
    kind = None if wanted is None else typed(wanted, "type", str, "a string", "text.format.")
    if kind in (None, "text", "json_object"):
        return []
    facts.needs.add("json_schema")
    return [Part("response_format", (encoded["text"].decode(),), SCHEMA_OVERHEAD)]


def _other_input(body: Mapping[str, Any], encoded: Mapping[str, bytes]) -> list[Part]:
    """Fields that are not known here: this over-counts those that no model reads."""
    texts = [
        encoded[name].decode() if name in encoded else value
        for name, value in body.items()
        if name not in _NOT_INPUT and (name in encoded or type(value) is str)
    ]
    return [Part("other", tuple(texts))] if texts else []


# -- the answer ---------------------------------------------------------------------------------------------------------------

_FINAL: Final = frozenset({"completed", "incomplete", "failed", "cancelled"})  # of a response's `status`
_LAST: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_SNAPSHOTS: Final = _LAST | {"response.created", "response.queued", "response.in_progress"}
# Deltas of what the model did not write: base64 sound (its transcript has deltas of its own), and what a tool said.
_NOT_WRITTEN: Final = frozenset({"response.audio.delta", "response.shell_call_output_content.delta"})
# Of an output item, what the model wrote. An item of a kind that is not known here is counted whole.
_WRITTEN: Final = (
    "content",
    "summary",
    "name",
    "arguments",
    "input",
    "code",
    "action",
    "actions",
    "operation",
    "queries",
    "revised_prompt",
)
_NAMED: Final = frozenset({"function_call", "custom_tool_call", "mcp_call", "mcp_approval_request"})


# What a report may say, sums of what else it says included.
_USAGE: Final = frozenset(
    ["input_tokens", "output_tokens", "total_tokens", "input_tokens_details", "output_tokens_details", "cost", "cost_details"]
)
_INPUT: Final = frozenset(["cached_tokens", "cache_write_tokens", "cache_write_tokens_details", "text_tokens"])
_OUTPUT: Final = frozenset(["reasoning_tokens", "text_tokens"])


def read_usage(usage: Any) -> Usage | None:
    """A responses `usage` object in our classes; None where it reports nothing that can be true (absent, null, 0/0/0, negative …).

    `input_tokens` includes what came from a cache and what was written to one; `output_tokens` includes reasoning, except at providers
    that count it only in `total_tokens`: hence the larger of both.
    """
    if type(usage) is not dict:
        return None
    given, output = tokens(usage, "input_tokens"), tokens(usage, "output_tokens")
    if not given or output is None:
        return None
    details = fields_of(usage.get("input_tokens_details"))
    cached = min(tokens(details, "cached_tokens") or 0, given)
    written = min(tokens(details, "cache_write_tokens") or 0, given - cached)
    long_lived = min(tokens(fields_of(details.get("cache_write_tokens_details")), "ttl_12h_tokens") or 0, written)
    output = max(output, (tokens(usage, "total_tokens") or 0) - given)
    others: Pieces = ((measures.CACHE_WRITE_LONG, long_lived),) if long_lived else ()
    return Usage(UsageSource.PROVIDER, given - cached - written, cached, written - long_lived, output, others)


def read_answer(body: bytes, meter: Meter) -> None:
    """Meters a whole answer. One that can't be read is metered as text: all of it, which over-counts."""
    answer = response_of(body)
    if answer is None:
        meter.text(body.decode(errors="replace"))
        return
    read_response(answer, meter)


def read_response(response: Mapping[str, Any], meter: Meter) -> None:
    _meter_response(response, meter)
    if meter.needs_text:
        for item in dicts(response.get("output")):
            _meter_item(item, meter)


def response_of(body: bytes) -> dict[str, Any] | None:
    """The response object of a whole answer; None where there is none."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return answer if type(answer) is dict else None


def is_final(response: Mapping[str, Any]) -> bool:
    """Nothing more will be done for it."""
    status = response.get("status")
    return type(status) is str and status in _FINAL


def hold_mark(response: Mapping[str, Any]) -> str | None:
    """The mark that the gateway left in a background answer."""
    mark = fields_of(response.get("metadata")).get(HOLD_KEY)
    return mark if type(mark) is str else None


def _meter_response(response: Mapping[str, Any], meter: Meter) -> None:
    """Everything of a response object but its text."""
    meter.served_at(response.get("service_tier"))
    if type(answer_id := response.get("id")) is str:
        meter.answer_id = answer_id
        conversation = fields_of(response.get("conversation")).get("id")
        meter.conversation_id = conversation if type(conversation) is str else None
    reported = fields_of(response.get("usage"))
    usage = read_usage(reported)
    if usage is not None:
        meter.report(usage)
        note_unknown(meter, reported, _USAGE)
        note_unknown(meter, fields_of(reported.get("input_tokens_details")), _INPUT, "usage.input_tokens_details.")
        note_unknown(meter, fields_of(reported.get("output_tokens_details")), _OUTPUT, "usage.output_tokens_details.")
    meter.pending = response.get("status") in ("queued", "in_progress")
    if is_final(response):
        meter.pieces.update(_pieces(response))
        if tokens(fields_of(fields_of(response.get("tool_usage")).get("image_gen")), "total_tokens"):
            meter.unknown.add("tool_usage.image_gen")


def _pieces(response: Mapping[str, Any]) -> dict[str, int]:
    """What the provider's own tools did. Its own count of searches leaves out those that cost nothing."""
    searches = files = 0
    containers: dict[str, int] = {}
    for item in dicts(response.get("output")):
        kind = item.get("type")
        if kind == "web_search_call":
            searches += fields_of(item.get("action")).get("type", "search") == "search"
        elif kind == "file_search_call":
            files += 1
        elif kind == "code_interpreter_call":
            containers[text_of(item.get("container_id"))] = 1
    reported = tokens(fields_of(fields_of(response.get("tool_usage")).get("web_search")), "num_requests")
    memories = {
        f"/{memory}" if type(memory := fields_of(tool.get("container")).get("memory_limit")) is str else ""
        for tool in dicts(response.get("tools"))
        if tool.get("type") == "code_interpreter"
    } or {""}
    counted = {
        measures.WEB_SEARCHES: searches if reported is None else reported,
        measures.FILE_SEARCHES: files,
    }
    return counted | {measures.CODE_SESSIONS + memory: len(containers) for memory in memories}


def _meter_item(item: Mapping[str, Any], meter: Meter) -> None:
    kind = item.get("type")
    if type(kind) is not str or kind not in _ITEMS:
        meter.text(text_of(item))
        return
    for name in _WRITTEN:
        value = item.get(name)
        if type(value) is list and name in ("content", "summary"):
            for part in dicts(value):
                _meter_text(part.get("text") or part.get("refusal") or part.get("transcript"), meter)
        else:
            _meter_text(value, meter)


def _meter_text(value: Any, meter: Meter) -> None:
    if value:
        meter.text(text_of(value))


class ResponsesStream(EventStream):
    """Ends with the event that has the final response. Some servers send `[DONE]` behind it."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(meter)
        self._number = -1  # the last sequence_number
        self._streamed: set[int] = set()  # output items whose text was metered
        self.response: dict[str, Any] = {}  # as it was last seen

    def length_ending(self, problem: Problem) -> bytes:
        """`response.incomplete`, as the API itself ends an answer at its cap, then our reason."""
        response = {**self._snapshot(), "status": "incomplete", "incomplete_details": {"reason": CAP_FIELD}}
        return self._event_end() + self._event("response.incomplete", {"response": response}) + self._error(problem)

    def _failure(self, problem: Problem) -> bytes:
        """`response.failed`, which Codex reads, then an error, at which SDKs raise."""
        return self._event("response.failed", {"response": _failed(self._snapshot(), problem)}) + self._error(problem)

    def _error(self, problem: Problem) -> bytes:
        """The API's own `error` event. SDKs yield it, and raise only because it also has the `error` object that they look for."""
        error = problem.error()
        return self._event("error", {"code": error["code"], "message": error["message"], "param": error["param"], "error": error})

    def _snapshot(self) -> dict[str, Any]:
        return {**_NOTHING_YET, **self.response}

    def _event(self, kind: str, members: Mapping[str, Any]) -> bytes:
        self._number += 1
        return _event(kind, self._number, members)

    def _take_event(self, event: Mapping[str, Any]) -> bool:
        number = event.get("sequence_number")
        if type(number) is int:
            self._number = max(self._number, number)
        kind = event.get("type")
        if type(kind) is not str:
            self.error_seen = self.error_seen or bool(event.get("error"))
        elif kind.endswith(".delta"):
            if type(delta := event.get("delta")) is str and kind not in _NOT_WRITTEN:
                self._meter.text(delta)
                self._mark_streamed(event)
        elif kind in _SNAPSHOTS:
            self._take_response(kind, fields_of(event.get("response")))
        elif kind == "error":
            self.error_seen = True
        elif kind == "response.output_item.added":
            item = fields_of(event.get("item"))
            if type(named := item.get("type")) is str and named in _NAMED:
                _meter_text(item.get("name"), self._meter)
        elif kind == "response.output_item.done":
            self._take_item(event, fields_of(event.get("item")))
        return False

    def _mark_streamed(self, event: Mapping[str, Any]) -> bool:
        """Whether it had not been."""
        index = event.get("output_index")
        key = index if type(index) is int else 0
        known = key in self._streamed
        self._streamed.add(key)
        return not known

    def _take_item(self, event: Mapping[str, Any], item: Mapping[str, Any]) -> None:
        """One whose text did not come in deltas."""
        if self._mark_streamed(event) and self._meter.needs_text:
            _meter_item(item, self._meter)

    def _take_response(self, kind: str, response: Mapping[str, Any]) -> None:
        if response:
            self.response = dict(response)
            _meter_response(response, self._meter)
        if kind in _LAST:
            self.done = True
            self.error_seen = self.error_seen or kind == "response.failed"
            if self._meter.needs_text:
                for index, item in enumerate(dicts(response.get("output"))):
                    self._take_item({"output_index": index}, item)


_NOTHING_YET: Final = {"id": "", "object": "response", "output": []}


def _failed(response: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    # Codex tries again after any code but a few; this one it takes as final, and shows the text.
    code = "server_error" if problem.status >= 500 else "invalid_prompt"
    return {**response, "status": "failed", "error": {"code": code, "message": problem.detail}}


def _event(kind: str, number: int, members: Mapping[str, Any]) -> bytes:
    data = orjson.dumps({"type": kind, "sequence_number": number, **members})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def refused_in_stream(problem: Problem) -> bytes:
    """For Codex, which reads no more than this of a refusal."""
    return _event("response.failed", 0, {"response": _failed(_NOTHING_YET, problem)})


DIALECT: Final = Dialect(
    NAME,
    "/v1/responses",
    read,
    read_answer,
    lambda meter, _: ResponsesStream(meter),
    refused_in_stream=refused_in_stream,
)
