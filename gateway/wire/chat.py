"""OpenAI chat completions. A request becomes a Call and, once a plan is held, bytes again; an answer feeds a Meter.

Every field that decides what a call costs is read strictly: a wrong type, or the same name in other letters (which some servers
would read), is refused. Whatever else the model may read is counted as text; whatever else may move the price is named in
`Call.unpriced`. All that can fail fails in `read`: after it, `encode` cannot.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.core.measures import (
    AUDIO_INPUT,
    AUDIO_OUTPUT,
    AUDIO_SECONDS,
    CACHE_WRITE_LONG,
    CACHED_AUDIO,
    CACHED_IMAGE,
    IMAGE_INPUT,
    IMAGE_OUTPUT,
    WEB_SEARCHES,
)
from gateway.core.meter import Meter
from gateway.core.profiles import Profile
from gateway.core.tokens import CHAT_MESSAGE_TOKENS, CHAT_NAME_TOKENS, CHAT_PRIMING_TOKENS, utf8_length
from gateway.core.values import ADDRESS, Attachment, Caching, Image, Part, Pieces, Plan, Usage, UsageSource
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
    ROUTED,
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

NAME: Final = "chat"
MAX_CHOICES: Final = 128

# What the format adds around a message is OpenAI's published rule: see `core.tokens`. These are bounds, not rules; the JSON of a
# tool is already longer than what the model is shown of it.
TOOL_CALL_OVERHEAD: Final = 8
TOOLS_OVERHEAD: Final = 32
TOOL_OVERHEAD: Final = 8
SCHEMA_OVERHEAD: Final = 16

_CAP_BESIDE_PREDICTION: Final = "max_tokens"  # the other one is refused there
_CAPS: Final = ("max_tokens", "max_completion_tokens")
_EACH_A_CHOICE: Final = ("n", "best_of")

# Fields that move the price in a way nothing here models: searches whose number nobody bounds, OpenRouter's and LiteLLM's choice of
# another model, llama.cpp's second output cap (which wins over the first).
_UNPRICED: Final = ROUTED | {"search_parameters", "enable_search", "n_predict"}
_CHOICES: Final = f"an integer from 1 to {MAX_CHOICES}"
# The fields that `read` looks at by one name and of one type, and the words for it. Null is as good as absent.
_KINDS: Final = {
    "stream": A_SWITCH,
    "stream_options": AN_OBJECT,
    "n": (int, _CHOICES),
    "best_of": (int, _CHOICES),
    "max_tokens": A_COUNT,
    "max_completion_tokens": A_COUNT,
    "response_format": AN_OBJECT,
    "service_tier": A_TEXT,
    "modalities": A_LIST,
    "audio": AN_OBJECT,
    "prediction": AN_OBJECT,
    "web_search_options": AN_OBJECT,
    "reasoning_effort": A_TEXT,
    "prompt_cache_retention": A_TEXT,
}
_SEARCH_SIZES: Final = ("low", "medium", "high")
_READ: Final = (
    _UNPRICED
    | _KINDS.keys()
    | {
        "model",
        "messages",
        "tools",
        "tool_choice",
        "functions",
        "function_call",
        "user",
    }
)
# Fields that no model reads as input. The texts, lists and objects in any other field are counted as if it did.
_NOT_INPUT: Final = _READ | {
    "cache_control",
    "include",
    "logit_bias",
    "metadata",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "stop",
    "stop_token_ids",
    "thinking",
    "usage",
    "verbosity",
}
# Fields that every model takes, so that they don't stand in the way of a downgrade.
_UNIVERSAL: Final = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
    }
)
# Fields that a request can differ in and still be the same one.
_NOT_MEANT: Final = frozenset({"stream", "stream_options", "metadata", "user", "safety_identifier", "prompt_cache_key", "store"})
_PLAIN_TOOLS: Final = ("function", "custom")
_PLAIN_PARTS: Final = ("refusal", "thinking", "reasoning", "input_text", "output_text", "summary_text")
_SHOWN: Final = frozenset({"role", "content", "tool_call_id", "refusal", "reasoning_content", "reasoning"})  # of a message
_TEXT_PART_KEYS: Final = frozenset({"type", "text", "cache_control"})
_TOOL_CALL_KEYS: Final = frozenset({"id", "type", "function"})
_FUNCTION_KEYS: Final = frozenset({"name", "arguments"})


# -- the request --------------------------------------------------------------------------------------------------------------


class ChatRequest(Request):
    """A chat request that was read."""

    __slots__ = ()

    def encode(self, plan: Plan, profile: Profile, takes: frozenset[str] | None = None) -> bytes:
        """Usage is asked for in streams where the provider takes that."""
        body = {**self.body, **self.fragments, "model": plan.model}
        cap_field = self.cap_field or (_CAP_BESIDE_PREDICTION if self.predicted else profile.output_cap_field)
        if takes is not None and plan.model != self.model and cap_field not in takes and profile.output_cap_field in takes:
            # A downgrade to a model that refuses the field which suited the requested one, as OpenAI's reasoning models do.
            body.pop(cap_field, None)
            cap_field = profile.output_cap_field
        body[cap_field] = plan.output_cap
        body |= usage_asked(self, profile)
        return orjson.dumps(body)


def usage_asked(request: Request, profile: Profile) -> dict[str, Any]:
    """The field that asks for usage in a stream; none where there is no stream, or a provider that refuses the field."""
    if not (request.stream and profile.stream_options):
        return {}
    return {"stream_options": {**(request.body.get("stream_options") or {}), "include_usage": True}}


def read(raw: bytes, headers: RequestHeaders) -> ChatRequest:
    """A request body → what it asks for. Refused 400: `ambiguous_request` or `output_cap_conflict`, with the field at fault."""
    del headers
    body = parse_object(raw)
    refuse_variants(body, _READ)
    refuse_other_kinds(body, _KINDS)
    fragments = encoded(body)
    facts = Facts()
    parts = [_message(message, facts) for message in objects(body, "messages", required=True)]
    parts += _tools(body, fragments, facts)
    parts += _response_format(body, fragments, facts)
    parts += _other_input(body, fragments)
    parts.append(_REPLY)
    if "audio" in (body.get("modalities") or ()):
        facts.needs.add("audio_output")
    facts.long_cache |= body.get("prompt_cache_retention") == "24h" or _is_long(body.get("cache_control"))
    cap_field, client_cap = _output_cap(body)
    present = {name for name, value in body.items() if value is not None}
    return ChatRequest(
        dialect=NAME,
        model=model_name(body),
        stream=body.get("stream") or False,
        choices=_choices(body),
        client_cap=client_cap,
        cap_field=cap_field,
        wants_usage=wants_usage(body),
        service_tier=body.get("service_tier"),
        parts=tuple(parts),
        needs=frozenset(facts.needs),
        parameters=frozenset(present - _UNIVERSAL),
        unpriced=(*sorted(present & _UNPRICED), *dict.fromkeys(facts.unpriced)),
        caching=Caching.LONG if facts.long_cache else Caching.AUTOMATIC,
        reasons=body.get("reasoning_effort") != "none",
        predicted=_predicted(body),
        pieces=_searches(body),
        body=body,
        fragments={name: orjson.Fragment(text) for name, text in fragments.items()},
        known=_READ,
        not_meant=_NOT_MEANT,
    )


def _predicted(body: Mapping[str, Any]) -> int:
    """What did not come true of a prediction is billed as output, and no cap counts it. It has no more tokens than bytes."""
    prediction = body.get("prediction")
    if prediction is None:
        return 0
    refuse_variants(prediction, frozenset({"type", "content"}), "prediction.")
    return utf8_length(text_of(prediction.get("content")))


def _searches(body: Mapping[str, Any]) -> Pieces:
    """A model that takes these options searches once a call; what that costs goes by the size."""
    options = body.get("web_search_options")
    if options is None:
        return ()
    refuse_variants(options, frozenset({"search_context_size"}), "web_search_options.")
    return ((_search(typed(options, "search_context_size", str, "a string", "web_search_options.")), 1),)


def _search(size: object) -> str:
    return f"{WEB_SEARCHES}/{size}" if size in _SEARCH_SIZES else WEB_SEARCHES


def _is_long(cache_control: Any) -> bool:
    return fields_of(cache_control).get("ttl") == "1h"


_REPLY: Final = Part("reply", (), CHAT_PRIMING_TOKENS)


def _choices(body: Mapping[str, Any]) -> int:
    choices = 1
    for name in _EACH_A_CHOICE:
        if name in body:
            wanted: int = body[name] or 1
            if wanted > MAX_CHOICES:
                raise not_a(name, _CHOICES)
            choices = max(choices, wanted)
    return choices


def _output_cap(body: Mapping[str, Any]) -> tuple[str | None, int | None]:
    caps = [name for name in _CAPS if body.get(name) is not None]
    if not caps:
        return None, None
    if len(caps) > 1:
        raise bad_request("output_cap_conflict", "max_tokens and max_completion_tokens are both set: send one of them.", _CAPS[0])
    return caps[0], body[caps[0]]


def wants_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    refuse_variants(options, frozenset({"include_usage"}), "stream_options.")
    return bool(typed(options, "include_usage", bool, "true or false", "stream_options."))


def _message(message: Mapping[str, Any], facts: Facts) -> Part:
    """One message. Fields that are not known here are counted as text: some servers show them to the model."""
    role, content = message.get("role"), message.get("content")
    if type(role) is str and type(content) is str:
        if len(message) == 2:
            return Part(role, (role, content), CHAT_MESSAGE_TOKENS)
        if len(message) == 3 and type(message.get("tool_call_id")) is str:  # half of an agent's conversation
            return Part(role, tuple(message.values()), CHAT_MESSAGE_TOKENS)
    if type(role) is not str:
        role = typed(message, "role", str, "a string", "messages.") or ""
    texts: list[str] = []
    images: list[Image] = []
    attachments: list[Attachment] = []
    overhead = CHAT_MESSAGE_TOKENS
    for name, value in message.items():
        if type(value) is str and name in _SHOWN:  # nearly every field of nearly every message
            texts.append(value)
        elif value is None or name == "cache_control":
            facts.long_cache |= _is_long(value)
        elif name == "content" and type(value) is list:
            _content_parts(value, texts, images, attachments, facts)
        elif name == "content":
            raise bad_request("ambiguous_request", "messages.content: expected a string or a list of parts.", "messages.content")
        elif name == "tool_calls" and type(value) is list:
            facts.needs.add("tools")
            overhead += TOOL_CALL_OVERHEAD * len(value)
            for call in value:
                _tool_call(call, texts)
        elif name == "audio":  # an earlier answer in sound, which the provider keeps: its length is not in the body
            facts.needs.add("audio_input")
            facts.unpriced.append("messages.audio")
        else:
            overhead += CHAT_NAME_TOKENS if name == "name" else 0
            texts.append(text_of(value))
    return Part(role, tuple(texts), overhead, tuple(images), tuple(attachments))


def _tool_call(call: Any, texts: list[str]) -> None:
    """Its id too: some chat templates show it, and where they don't it covers the function's name in the tool's reply."""
    if type(call) is dict and call.keys() <= _TOOL_CALL_KEYS:
        function = call.get("function")
        if type(function) is dict and function.keys() <= _FUNCTION_KEYS:
            texts += text_of(call.get("id")), text_of(function.get("name")), text_of(function.get("arguments"))
            return
    texts.append(text_of(call))


def _content_parts(
    content: list[Any], texts: list[str], images: list[Image], attachments: list[Attachment], facts: Facts
) -> None:
    for part in content:
        if type(part) is not dict:
            raise bad_request("ambiguous_request", "messages.content: expected a list of objects.", "messages.content")
        kind = part.get("type")
        if "cache_control" in part:
            facts.long_cache |= _is_long(part["cache_control"])
        if kind == "text" and part.keys() <= _TEXT_PART_KEYS:
            texts.append(typed(part, "text", str, "a string", "messages.content.") or "")
        elif kind == "image_url":
            facts.needs.add("vision")
            images.append(_image(part))
        elif kind == "input_audio":
            facts.needs.add("audio_input")
            audio = typed(part, "input_audio", dict, "an object", "messages.content.") or {}
            attachments.append(media.sound(typed(audio, "data", str, "a string", "messages.content.") or ""))
        elif kind == "file":
            facts.needs.add("files")
            file = typed(part, "file", dict, "an object", "messages.content.") or {}
            data = typed(file, "file_data", str, "a string", "messages.content.")
            attachments.append(ADDRESS if data is None else media.file(data))
            if data is None:  # a file that the provider keeps, or fetches
                facts.unpriced.append("messages.content.file")
        else:
            texts.append(text_of(part))
            if kind != "text" and kind not in _PLAIN_PARTS:  # a video, a document by its address …
                facts.unpriced.append("messages.content.type")


def _image(part: Mapping[str, Any]) -> Image:
    image = part.get("image_url")
    if type(image) is str:  # as some providers take it
        return media.image(image, "auto")
    if type(image) is not dict:
        raise bad_request("ambiguous_request", "messages.content.image_url: expected an object.", "messages.content.image_url")
    where = "messages.content.image_url."
    return media.image(
        typed(image, "url", str, "a string", where) or "", typed(image, "detail", str, "a string", where) or "auto"
    )


def _tools(body: Mapping[str, Any], encoded: Mapping[str, bytes], facts: Facts) -> list[Part]:
    parts = []
    for name in ("tools", "functions"):
        if name in body and (tools := objects(body, name)):
            parts.append(Part(name, (encoded[name].decode(),), TOOLS_OVERHEAD + TOOL_OVERHEAD * len(tools)))
            if any(name == "tools" and tool.get("type") not in _PLAIN_TOOLS and "function" not in tool for tool in tools):
                facts.unpriced.append("tools.type")  # a hosted tool: a search, an interpreter
    if parts or body.get("tool_choice") is not None or body.get("function_call") is not None:
        facts.needs.add("tools")
    return parts


def _response_format(body: Mapping[str, Any], encoded: Mapping[str, bytes], facts: Facts) -> list[Part]:
    wanted = body.get("response_format")
    if wanted is None:
        return []
    kind = typed(wanted, "type", str, "a string", "response_format.")
    if kind == "json_schema":
        facts.needs.add("json_schema")
    elif kind in ("text", "json_object"):
        return []
    return [Part("response_format", (encoded["response_format"].decode(),), SCHEMA_OVERHEAD)]


_CUTS_INPUT: Final = ("truncate_prompt_tokens",)


def _other_input(body: Mapping[str, Any], encoded: Mapping[str, bytes]) -> list[Part]:
    """Fields such as `documents` or `chat_template_kwargs`: this over-counts those that no model reads."""
    if body.keys() <= _NOT_INPUT:
        return []
    texts = [
        encoded[name].decode() if name in encoded else value
        for name, value in body.items()
        if name not in _NOT_INPUT and (name in encoded or type(value) is str)
    ]
    # How much of the input is read makes another call of it (vLLM's): a count made with it is none for one without.
    texts += [f"{name} {body[name]}" for name in _CUTS_INPUT if body.get(name) is not None]
    return [Part("other", tuple(texts))] if texts else []


# -- the answer ---------------------------------------------------------------------------------------------------------------


# What a report may say, sums of what else it says and how long it took included.
_PLAIN: Final = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_USAGE: Final = _PLAIN | frozenset(
    [
        "prompt_tokens_details",
        "completion_tokens_details",
        "prompt_cache_hit_tokens",
        "prompt_cache_miss_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "cached_tokens",
        "num_cached_tokens",
        "reasoning_tokens",
        "num_sources_used",
        "search_context_size",
        "server_tool_use",
        "prompt_audio_seconds",
        "input_tokens",
        "output_tokens",
        "cost",
        "cost_details",
        "cost_in_usd_ticks",
    ]
)
_PROMPT: Final = frozenset(
    [
        *("cached_tokens", "cache_write_tokens", "cached_tokens_details", "audio_tokens", "image_tokens", "text_tokens"),
        *("cache_creation_tokens", "cache_creation_token_details"),  # LiteLLM's words for Anthropic's
    ]
)
_COMPLETION: Final = frozenset(
    [
        "reasoning_tokens",
        "audio_tokens",
        "image_tokens",
        "text_tokens",
        "accepted_prediction_tokens",
        "rejected_prediction_tokens",
    ]
)
_TEXTS: Final = frozenset({"content", "refusal", "reasoning_content", "reasoning"})  # of a delta
_CACHED: Final = ("prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens", "cache_read_input_tokens")
_MEDIA: Final = (
    ("audio_tokens", AUDIO_INPUT, CACHED_AUDIO, AUDIO_OUTPUT),
    ("image_tokens", IMAGE_INPUT, CACHED_IMAGE, IMAGE_OUTPUT),
)
_MEDIA_FIELDS: Final = tuple([name for name, *_ in _MEDIA])


def read_usage(usage: Any) -> Usage | None:
    """A chat `usage` object in our classes; None where it reports nothing that can be true (absent, null, 0/0/0, negative …).

    `prompt_tokens` includes what came from a cache and what was written to one. `completion_tokens` includes reasoning, except at
    providers (xAI, Gemini) that count it only in `total_tokens`: hence the larger of both. It includes what did not come true of a
    prediction. Sound and images are parts of both. `cost` is never looked at.
    """
    if type(usage) is not dict:
        return None
    prompt, completion = tokens(usage, "prompt_tokens"), tokens(usage, "completion_tokens")
    if not prompt or completion is None:
        return None
    output = max(completion, (tokens(usage, "total_tokens") or 0) - prompt)
    if usage.keys() <= _PLAIN:
        return Usage(UsageSource.PROVIDER, prompt, 0, 0, output)
    details = fields_of(usage.get("prompt_tokens_details"))
    cached = tokens(details, "cached_tokens") or 0
    if not cached and not usage.keys().isdisjoint(_CACHED):
        cached = next((known for name in _CACHED if (known := tokens(usage, name))), 0)
    written = tokens(details, "cache_write_tokens") or tokens(usage, "cache_creation_input_tokens") or 0
    cached = min(cached, prompt)
    written = min(written, prompt - cached)
    fresh = prompt - cached - written
    others = []
    if long := min(tokens(fields_of(details.get("cache_creation_token_details")), "ephemeral_1h_input_tokens") or 0, written):
        written -= long
        others.append((CACHE_WRITE_LONG, long))
    told = fields_of(usage.get("completion_tokens_details"))
    if not (_has_media(details) or _has_media(told)):
        return Usage(UsageSource.PROVIDER, fresh, cached, written, output, tuple(others))
    of_cached = fields_of(details.get("cached_tokens_details"))
    for name, read_measure, kept_measure, output_measure in _MEDIA:
        # Where nothing says what of it was cached, as little as can be: sound and images are the dearer.
        read = min(tokens(details, name) or 0, fresh + cached)
        kept = max(min(tokens(of_cached, name) or 0, read, cached), read - fresh)
        fresh, cached = fresh - (read - kept), cached - kept
        made = min(tokens(told, name) or 0, output)
        output -= made
        others += [(read_measure, read - kept), (kept_measure, kept), (output_measure, made)]
    return Usage(UsageSource.PROVIDER, fresh, cached, written, output, tuple(sorted(each for each in others if each[1])))


def _has_media(details: Mapping[str, Any]) -> bool:
    return bool(details) and any(map(details.get, _MEDIA_FIELDS))


def take_usage(reported: Any, meter: Meter) -> None:
    """Meters a report with all that it says; what reports nothing changes nothing."""
    usage = read_usage(reported)
    if usage is not None:
        meter.report(usage)
    if type(reported) is not dict or reported.keys() <= _PLAIN:
        return
    note_unknown(meter, reported, _USAGE)
    note_unknown(meter, fields_of(reported.get("prompt_tokens_details")), _PROMPT, "usage.prompt_tokens_details.")
    note_unknown(meter, fields_of(reported.get("completion_tokens_details")), _COMPLETION, "usage.completion_tokens_details.")
    searches = tokens(reported, "num_sources_used")  # xAI bills each source of a live search
    if searches is None:
        searches = tokens(fields_of(reported.get("server_tool_use")), "web_search_requests")
    if searches is not None:
        meter.pieces[WEB_SEARCHES] = searches
    elif type(size := reported.get("search_context_size")) is str:  # Perplexity
        meter.pieces[_search(size)] = 1
    if seconds := tokens(reported, "prompt_audio_seconds"):  # Mistral
        meter.pieces[AUDIO_SECONDS] = seconds


def read_answer(body: bytes, meter: Meter) -> None:
    """Meters a whole answer. One that can't be read is metered as text: all of it, which over-counts."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if type(answer) is not dict:
        meter.text(body.decode(errors="replace"))
        return
    take_usage(answer.get("usage"), meter)
    if meter.needs_text:
        for choice in dicts(answer.get("choices")):
            _meter_output(choice.get("message"), meter)
    meter.served_at(answer.get("service_tier"))


class ChatStream(EventStream):
    """Ends with `[DONE]`. The usage-only chunk is hidden from a client that did not ask for it."""

    def __init__(self, meter: Meter, hide_usage: bool) -> None:
        super().__init__(meter)
        self._hide_usage = hide_usage
        self._finished: dict[int, bool] = {}  # choice index → it has its finish_reason
        self._last: Mapping[str, Any] = {}  # the last chunk with a choice

    @property
    def finished(self) -> bool:
        """Every choice that was seen has its finish_reason: usage and `[DONE]` may still come."""
        return bool(self._finished) and all(self._finished.values())

    def length_ending(self, problem: Problem) -> bytes:
        """Ends the stream from our side: each open choice with `finish_reason: "length"`, then the error, and no `[DONE]`."""
        head = {name: self._last[name] for name in ("id", "created", "model") if name in self._last}
        chunks = [
            orjson.dumps({**head, **self._cut_choice(index)})
            for index, finished in (self._finished or {0: False}).items()
            if not finished
        ]
        return self._event_end() + b"".join(b"data: " + chunk + b"\n\n" for chunk in chunks) + error_event(problem)

    def _failure(self, problem: Problem) -> bytes:
        return error_event(problem)

    def _meter_choice(self, choice: Mapping[str, Any]) -> None:
        _meter_output(choice.get("delta"), self._meter)

    def _cut_choice(self, index: int) -> Mapping[str, Any]:
        """What a chunk is that ends a choice for its length."""
        return {"object": "chat.completion.chunk", "choices": [{"index": index, "delta": {}, "finish_reason": "length"}]}

    def _text_alone(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
        match event.get("choices"):
            case [{"delta": dict(delta)}]:
                told = [name for name, value in delta.items() if value and name != "role"]
                if len(told) == 1 and told[0] in _TEXTS and type(delta[told[0]]) is str:
                    return delta, told[0]
        return None

    def _take_event(self, chunk: Mapping[str, Any]) -> bool:
        if chunk.get("error"):
            self.error_seen = True
        self._meter.served_at(chunk.get("service_tier"))
        finished = self._finished
        for choice in dicts(chunk.get("choices")):
            self._last = chunk
            index = choice.get("index")
            key = index if type(index) is int else 0
            if choice.get("finish_reason"):
                finished[key] = True
            elif key not in finished:
                finished[key] = False
            self._meter_choice(choice)
        return self._take_usage(chunk) and self._hide_usage and not chunk.get("choices") and not self.error_seen

    def _take_usage(self, chunk: Mapping[str, Any]) -> bool:
        """Whether the chunk has a usage object. Any report is passed on: some providers send a running total with every chunk."""
        reported = chunk.get("usage")
        if reported is None:
            reported = fields_of(chunk.get("x_groq")).get("usage")
        if type(reported) is not dict:
            return False
        take_usage(reported, self._meter)
        return True


def error_event(problem: Problem) -> bytes:
    """Raises in both OpenAI SDKs. No `event:` line: they would then look for another shape."""
    return b"data: " + orjson.dumps({"error": problem.error()}) + b"\n\n"


def _meter_output(output: Any, meter: Meter) -> None:
    """A message, or a delta of one: everything in it that the model wrote."""
    if type(output) is not dict:
        return
    content = output.get("content")
    if content:
        _meter_text(content, meter)
    if "content" in output and len(output) <= 1 + ("role" in output):
        return  # nearly every chunk
    _meter_text(output.get("refusal"), meter)
    # Two names of one thing; some servers send both.
    _meter_text(output.get("reasoning_content") or output.get("reasoning"), meter)
    for call in (*dicts(output.get("tool_calls")), {"function": output.get("function_call")}):
        function = call.get("function") or call.get("custom")
        if type(function) is dict:
            _meter_text(function.get("name"), meter)
            _meter_text(function.get("arguments") or function.get("input"), meter)
    audio = output.get("audio")
    if type(audio) is dict:
        _meter_text(audio.get("transcript"), meter)


def _meter_text(value: Any, meter: Meter) -> None:
    if value:
        meter.text(text_of(value))


DIALECT: Final = Dialect(
    NAME, "/v1/chat/completions", read, read_answer, lambda meter, request: ChatStream(meter, not request.wants_usage)
)
