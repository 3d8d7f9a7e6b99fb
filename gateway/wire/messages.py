"""Anthropic messages. A request becomes a Call and, once a plan is held, bytes again; an answer feeds a Meter.

As in `chat`, every field that decides what a call costs is read strictly, whatever else the model may read is counted as text, and
whatever moves the price in a way that nothing models is named in `Call.unpriced`. All that can fail fails in `read`.

Of the `anthropic-beta` header no value moves a price by itself: each opens a field (`speed`, `fallbacks`, a tool, a longer `ttl`), and
it is the field that is looked at. What `context-1m` opens is priced by the tiers of the price table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.core.measures import CACHE_WRITE_LONG, WEB_SEARCHES
from gateway.core.meter import Meter
from gateway.core.tokens import CHAT_MESSAGE_TOKENS, CHAT_PRIMING_TOKENS
from gateway.core.values import ADDRESS, TOOL_RESULTS, Attachment, Caching, Image, Output, Part, Pieces, Usage, UsageSource
from gateway.wire import media
from gateway.wire.body import parse_object
from gateway.wire.dialect import Dialect
from gateway.wire.headers import RequestHeaders
from gateway.wire.problem import Problem, Shape, bad_request
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
    objects,
    refuse_other_kinds,
    refuse_variants,
    text_of,
    tokens,
    typed,
)
from gateway.wire.request import Request
from gateway.wire.streaming import EventStream

NAME: Final = "messages"
CAP: Final = "max_tokens"
SHAPE: Final = Shape.ANTHROPIC

# What the format adds around a message and a block is not published: these are bounds, as those of `chat`.
BLOCK_OVERHEAD: Final = 3
TOOL_CALL_OVERHEAD: Final = 8
TOOLS_OVERHEAD: Final = 32
TOOL_OVERHEAD: Final = 8
SCHEMA_OVERHEAD: Final = 16
# What reads as (a sealed text's bytes) ÷ 4 here is scaled like all text of a model whose tokenizer is not public: one token for each 2.3
# bytes, the densest that text was found to be.
SEALED_BYTES_PER_TOKEN: Final = 4

# Tools whose schema is Anthropic's own and not in the request: (how their type begins, the tokens it takes at most). Published: 245
# for bash, 700 for the text editor, 735 and a prompt of 499 for computer use; not for the toolsets, which list some twenty tools.
_OWN_TOOLS: Final = (
    ("bash_", 245),
    ("text_editor_", 700),
    ("computer_toolset_", 4_000),
    ("browser_toolset_", 6_000),
    ("computer_", 1_234),
    ("memory_", 1_000),
    ("tool_search_tool_", 500),
    ("web_search_", 500),
    ("web_fetch_", 500),
)
# A search's results: not published. Anthropic's own example has 5,300 tokens; what is more than this is an overrun.
SEARCH_RESULT_TOKENS: Final = 10_000
# Anthropic runs its own tools in a loop that reads the whole input again each time, and pauses the turn after so many rounds.
MAX_ROUNDS: Final = 10

# Fields that move the price in a way nothing here models: another model as well, a summary that is billed beside the answer, tools that
# bring input of any length.
_UNPRICED: Final = frozenset({"fallbacks", "compaction", "mcp_servers"})
_KINDS: Final = {
    "stream": A_SWITCH,
    "thinking": AN_OBJECT,
    "service_tier": A_TEXT,
    "speed": A_TEXT,
    "inference_geo": A_TEXT,
    "metadata": AN_OBJECT,
    "tool_choice": AN_OBJECT,
    "output_config": AN_OBJECT,
    "output_format": AN_OBJECT,
    "context_management": AN_OBJECT,
    "cache_control": AN_OBJECT,
    "thread": AN_OBJECT,
    "mcp_servers": A_LIST,
}
_READ: Final = _UNPRICED | _KINDS.keys() | {CAP, "model", "messages", "system", "tools", "container"}
# Fields that no model reads as input. The texts, lists and objects in any other field are counted as if it did.
_NOT_INPUT: Final = _READ | {
    "anthropic_version",
    "anthropic_beta",
    "betas",
    "billing_policy",
    "diagnostics",
    "fallback_credit_token",
    "stop_sequences",
    "user_profile_id",
    "workspace_id",
}
# What the price table calls a field that not every model takes: it knows OpenAI's names.
_PARAMETERS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_p",
    "thinking": "reasoning_effort",
    "stop_sequences": "stop",
    "tools": "tools",
    "tool_choice": "tool_choice",
    "service_tier": "service_tier",
}
# Fields that a request can differ in and still be the same one.
_NOT_MEANT: Final = frozenset({"stream", "metadata", "diagnostics", "user_profile_id", "workspace_id"})

# Blocks of which all that counts is text, somewhere in them.
_TEXT_BLOCKS: Final = frozenset(
    {
        "advisor_tool_result",
        "bash_code_execution_tool_result",
        "browser_state",
        "code_execution_tool_result",
        "compaction",
        "container_upload",
        "fallback",
        "mcp_tool_listing",
        "mcp_tool_result",
        "mcp_tool_use",
        "search_result",
        "server_tool_use",
        "text",
        "text_editor_code_execution_tool_result",
        "thinking",
        "tool_addition",
        "tool_reference",
        "tool_removal",
        "tool_search_tool_result",
        "tool_use",
        "web_fetch_tool_result",
        "web_search_tool_result",
    }
)
_TEXT_BLOCK_KEYS: Final = frozenset({"type", "text", "cache_control"})
_CALLS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})

# In JSON as orjson writes it, where no text can look like a key: the end of a text is quoted otherwise.
_CACHES: Final = b'"cache_control":{'
_CACHES_LONG: Final = re.compile(rb'"cache_control":\{[^}]*"ttl":(?!"5m")')


# -- the request --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found(Facts):
    """And what Anthropic's own tools can do at most."""

    searches: int = 0
    uses: list[tuple[int, int]] = field(default_factory=list)  # (the tokens that one brings at most, how often)

    @property
    def rounds(self) -> int:
        """How often the model may read its input again."""
        return min(sum(number for _, number in self.uses), MAX_ROUNDS)


def read(raw: bytes, headers: RequestHeaders) -> Request:
    """A request body → what it asks for. Refused 400: `ambiguous_request` or `output_cap_conflict`, with the field at fault."""
    body = parse_object(raw)
    refuse_variants(body, _READ)
    refuse_other_kinds(body, _KINDS)
    fragments = encoded(body)
    facts = _Found()
    parts = _system(body, facts)
    parts += [_message(message, facts) for message in objects(body, "messages", required=True)]
    client_cap = _output_cap(body)
    parts += _tools(body, fragments, facts)
    parts += _tool_results(facts, client_cap)
    parts += _output_format(body, facts)
    parts += _other_input(body, fragments)
    parts += _left_out(body, fragments)
    parts.append(_REPLY)
    thinking, least_cap = _thinking(body, headers, client_cap)
    present = {name for name, value in body.items() if value is not None}
    return Request(
        dialect=NAME,
        model=model_name(body),
        stream=body.get("stream") or False,
        client_cap=client_cap,
        cap_field=CAP,
        service_tier=body.get("service_tier"),
        parts=tuple(parts),
        needs=frozenset(facts.needs),
        parameters=frozenset(_PARAMETERS[name] for name in present & _PARAMETERS.keys()),
        unpriced=(*sorted(present & _UNPRICED), *_unpriced_settings(body), *dict.fromkeys(facts.unpriced)),
        # A cap of 0 writes the prompt into the cache, and nothing else.
        output=Output.NONE if client_cap == 0 else Output.CAPPED,
        caching=_caching(fragments),
        reasons=thinking,
        pieces=((WEB_SEARCHES, facts.searches),) if facts.searches else (),
        least_cap=least_cap,
        readings=1 + facts.rounds,
        continues=_continues(body),
        body=body,
        fragments={name: orjson.Fragment(text) for name, text in fragments.items()},
        known=_READ,
        not_meant=_NOT_MEANT,
    )


_REPLY: Final = Part("reply", (), CHAT_PRIMING_TOKENS)


def _output_cap(body: Mapping[str, Any]) -> int | None:
    cap = body.get(CAP)
    if cap is not None and (type(cap) is not int or cap < 0):
        raise not_a(CAP, "an integer of at least 0")
    return cap


def _thinking(body: Mapping[str, Any], headers: RequestHeaders, client_cap: int | None) -> tuple[bool, int]:
    """Whether the model may reason, and the least output cap that Anthropic takes with so much reasoning. Some models reason unless
    they are told not to."""
    thinking = body.get("thinking")
    if thinking is None:
        return True, 0
    refuse_variants(thinking, frozenset({"type", "budget_tokens"}), "thinking.")
    kind = typed(thinking, "type", str, "a string", "thinking.")
    budget = _count(thinking, "budget_tokens", "thinking.")
    if budget is None or kind == "disabled":
        return kind != "disabled", 0
    if body.get("tools") and any("interleaved-thinking" in value for value in headers.getall("anthropic-beta", ())):
        return True, 0  # the budget is then for a whole turn of several calls, and may be above the cap of one
    if client_cap is not None and client_cap <= budget:
        raise bad_request(
            "output_cap_conflict",
            f"max_tokens ({client_cap}) must be greater than thinking.budget_tokens ({budget}): raise the first or lower the second.",
            CAP,
        )
    return True, budget + 1


def _count(fields: Mapping[str, Any], name: str, where: str) -> int | None:
    count: int | None = typed(fields, name, *A_COUNT, where)
    if count is not None and count < 1:
        raise not_a(where + name, A_COUNT[1])
    return count


def _caching(fragments: Mapping[str, bytes]) -> Caching:
    """Whatever looks like a wish to cache counts as one, also where it is only an argument of a tool."""
    asked = [text for text in fragments.values() if _CACHES in text]
    top = fragments.get("cache_control")
    if top is not None:
        asked.append(b'"cache_control":' + top)
    if not asked:
        return Caching.OFF
    return Caching.LONG if any(_CACHES_LONG.search(text) for text in asked) else Caching.SHORT


def _continues(body: Mapping[str, Any]) -> str | None:
    thread = body.get("thread") or {}
    previous: str | None = typed(thread, "previous_message_id", str, "a string", "thread.")
    return previous


def _unpriced_settings(body: Mapping[str, Any]) -> list[str]:
    """Fields of which only some values move the price."""
    names = []
    if body.get("speed") not in (None, "standard"):
        names.append("speed")
    if body.get("inference_geo") not in (None, "global"):
        names.append("inference_geo")  # one tenth more in the United States, with newer models
    if any("compact" in text_of(edit.get("type")) for edit in dicts((body.get("context_management") or {}).get("edits"))):
        names.append("context_management.edits")  # a summary: billed beside the answer, and capped by nothing
    container = body.get("container")
    if type(container) is dict and container.get("skills"):
        names.append("container.skills")  # texts that are not in the request
    return names


# -- its messages -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Content:
    """What a message is made of, as its blocks are read."""

    facts: _Found
    texts: list[str] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)
    overhead: int = CHAT_MESSAGE_TOKENS
    sealed: int = 0  # bytes of text that only Anthropic can read …
    mark: int = 0  # … and its keyed hash

    def part(self, role: str) -> Part:
        overhead = self.overhead - (-self.sealed // SEALED_BYTES_PER_TOKEN)
        return Part(role, (role, *self.texts), overhead, tuple(self.images), tuple(self.attachments), self.mark)

    def seal(self, text: str) -> None:
        self.sealed += len(text)
        self.mark = hash((self.mark, text))


def _system(body: Mapping[str, Any], facts: _Found) -> list[Part]:
    system = body.get("system")
    if system is None:
        return []
    content = _Content(facts)
    _read_content(system, "system", content)
    return [content.part("system")]


def _message(message: Mapping[str, Any], facts: _Found) -> Part:
    """One message. Fields that are not known here are counted as text."""
    role, content = message.get("role"), message.get("content")
    if type(role) is str and type(content) is str and len(message) == 2:
        return Part(role, (role, content), CHAT_MESSAGE_TOKENS)
    role = typed(message, "role", str, "a string", "messages.") or ""
    read_here = _Content(facts)
    for name, value in message.items():
        if name == "content":
            _read_content(value, "messages.content", read_here)
        elif name != "role" and value is not None:
            read_here.texts.append(text_of(value))
    return read_here.part(role)


def _read_content(content: Any, where: str, into: _Content) -> None:
    """Text, or a list of blocks."""
    if content is None:
        return
    if type(content) is str:
        into.texts.append(content)
        return
    if type(content) is not list:
        raise bad_request("ambiguous_request", f"{where}: expected a string or a list of blocks.", where)
    for block in content:
        if type(block) is not dict:
            raise bad_request("ambiguous_request", f"{where}: expected a list of objects.", where)
        _read_block(block, where, into)


def _read_block(block: Mapping[str, Any], where: str, into: _Content) -> None:
    kind = typed(block, "type", str, "a string", f"{where}.") or ""
    into.overhead += BLOCK_OVERHEAD
    if kind == "text" and block.keys() <= _TEXT_BLOCK_KEYS:
        into.texts.append(typed(block, "text", str, "a string", f"{where}.") or "")
    elif kind == "image":
        into.facts.needs.add("vision")
        into.images.append(_image(_source(block, where), where))
    elif kind == "document":
        into.facts.needs.add("files")
        _read_document(block, where, into)
    elif kind == "tool_result":
        into.facts.needs.add("tools")
        into.overhead += TOOL_CALL_OVERHEAD
        into.texts.append(text_of(block.get("tool_use_id")))
        _read_content(block.get("content"), f"{where}.content", into)
    elif kind == "redacted_thinking":
        into.seal(text_of(block.get("data")))
    elif kind == "web_fetch_tool_result" and _fetched(block) is not None:
        _read_block(_fetched(block) or {}, where, into)
    else:
        if kind in _CALLS:
            into.facts.needs.add("tools")
            into.overhead += TOOL_CALL_OVERHEAD
        elif kind == "tool_addition":
            tool = fields_of(fields_of(block.get("tool")).get("definition"))
            into.overhead += _read_tool(tool, into.facts)
        elif kind not in _TEXT_BLOCKS:  # what it stands for may be elsewhere
            into.facts.unpriced.append("messages.content.type")
        shown = {
            name: value if name == "input" else _plain(value, into)
            for name, value in block.items()
            if _is_read(name, value, into)
        }
        shown.pop("cache_control", None)
        into.texts.append(text_of(shown))


def _fetched(block: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document that a fetch brought."""
    document = fields_of(block.get("content")).get("content")
    return document if type(document) is dict and document.get("type") == "document" else None


def _is_read(name: str, value: Any, into: _Content) -> bool:
    """False: only Anthropic can read it. What a signature or a sealed text stands for is as long as that, at most."""
    if type(value) is not str or (name != "signature" and not name.startswith("encrypted_")):
        return True
    into.seal(value)
    return False


def _plain(value: Any, into: _Content) -> Any:
    """The value without what is sealed in it."""
    if type(value) is dict:
        return {name: _plain(inner, into) for name, inner in value.items() if _is_read(name, inner, into)}
    return [_plain(inner, into) for inner in value] if type(value) is list else value


def _source(block: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    source = block.get("source")
    if type(source) is not dict:
        raise not_a(f"{where}.source", "an object")
    return source


def _image(source: Mapping[str, Any], where: str) -> Image:
    """One that is kept or fetched by the provider is bounded like any other: by the largest."""
    data = typed(source, "data", str, "a string", f"{where}.source.")
    if data is None:
        return media.image(text_of(source), "auto")
    return media.image(f"data:{text_of(source.get('media_type'))};base64,{data}", "auto")


def _read_document(block: Mapping[str, Any], where: str, into: _Content) -> None:
    source = _source(block, where)
    kind = source.get("type")
    into.texts += [text_of(block.get("title")), text_of(block.get("context"))]
    if kind == "text":
        into.texts.append(typed(source, "data", str, "a string", f"{where}.source.") or "")
    elif kind == "content":
        _read_content(source.get("content"), f"{where}.source.content", into)
    else:
        data = typed(source, "data", str, "a string", f"{where}.source.")
        into.attachments.append(ADDRESS if data is None else media.file(data))
        if data is None:  # one that the provider keeps, or fetches
            into.facts.unpriced.append("messages.content.source")


# -- its tools ----------------------------------------------------------------------------------------------------------------


def _tools(body: Mapping[str, Any], fragments: Mapping[str, bytes], facts: _Found) -> list[Part]:
    tools = objects(body, "tools")
    if tools or body.get("tool_choice") is not None:
        facts.needs.add("tools")
    if not tools:
        return []
    overhead = TOOLS_OVERHEAD + sum(_read_tool(tool, facts) for tool in tools)
    return [Part("tools", (fragments["tools"].decode(),), overhead)]


def _tool_results(facts: _Found, client_cap: int | None) -> list[Part]:
    """Each round reads what those before it brought and wrote. At most: one result comes in each but the first, the smallest last, and
    all others at once, which is what the readings together are shared out over."""
    rounds = facts.rounds
    if not rounds:
        return []
    read = rounds * sum(tokens * number for tokens, number in facts.uses)
    missed = rounds - 1  # of the readings, by the result that comes last
    for tokens_each, number in sorted(facts.uses):
        for _ in range(min(number, missed)):
            read -= tokens_each * missed
            missed -= 1
    return [Part(TOOL_RESULTS, (), -(-read // (rounds + 1)) + (client_cap or 0))]


def _read_tool(tool: Mapping[str, Any], facts: _Found) -> int:
    """The tokens that it takes beside its JSON."""
    kind = typed(tool, "type", str, "a string", "tools.")
    if kind is None or kind == "custom":
        return TOOL_OVERHEAD
    if kind.startswith("web_search_"):
        uses = _count(tool, "max_uses", "tools.")
        if uses is None:
            facts.unpriced.append("tools.web_search")
        else:
            facts.searches += uses
            facts.uses.append((SEARCH_RESULT_TOKENS, uses))
    elif kind.startswith("web_fetch_"):
        uses, most = _count(tool, "max_uses", "tools."), _count(tool, "max_content_tokens", "tools.")
        if uses is None or most is None:
            facts.unpriced.append("tools.web_fetch")
        else:
            # A bound for pages; Anthropic does not cut PDFs by it.
            facts.uses.append((most, uses))
    elif kind.startswith("tool_search_tool_"):
        facts.uses.append((0, MAX_ROUNDS))  # what it finds stands in the request already
    elif kind.startswith("code_execution_"):
        facts.unpriced.append("tools.code_execution")  # by the hour, and it may print anything
    elif not kind.startswith(tuple(name for name, _ in _OWN_TOOLS)):
        facts.unpriced.append("tools.type")  # another model's advice, a server of somebody else …
    return TOOL_OVERHEAD + next((most for name, most in _OWN_TOOLS if kind.startswith(name)), 0)


def _output_format(body: Mapping[str, Any], facts: _Found) -> list[Part]:
    wanted = body.get("output_format") or typed(body.get("output_config") or {}, "format", dict, "an object", "output_config.")
    if not wanted:
        return []
    facts.needs.add("json_schema")
    return [Part("response_format", (text_of(wanted),), SCHEMA_OVERHEAD)]


def _other_input(body: Mapping[str, Any], fragments: Mapping[str, bytes]) -> list[Part]:
    texts = [
        fragments[name].decode() if name in fragments else value
        for name, value in body.items()
        if name not in _NOT_INPUT and (name in fragments or type(value) is str)
    ]
    return [Part("other", tuple(texts))] if texts else []


def _left_out(body: Mapping[str, Any], fragments: Mapping[str, bytes]) -> list[Part]:
    """What has Anthropic leave out some of the messages: a count that was made with it is none of the same messages without it."""
    edits = fragments.get("context_management")
    disabled = (body.get("thinking") or {}).get("type") == "disabled"  # then earlier thinking is not read either
    return [Part("other", (), mark=hash((edits, disabled)))] if edits or disabled else []


# -- the answer ---------------------------------------------------------------------------------------------------------------


# What a report may say, and what of it is free: anything else may be billed.
_REPORTED: Final = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "cache_creation",
        "output_tokens_details",
        "iterations",
        "fallback_credit",
        "server_tool_use",
        "service_tier",
        "inference_geo",
        "speed",
    }
)
_TOOL_USES: Final = frozenset({"web_search_requests", "web_fetch_requests", "tool_search_requests"})
_SETTINGS: Final = {"inference_geo": ("global", "not_available"), "speed": ("standard",)}  # where the price is the table's


def read_usage(usage: Any) -> Usage | None:
    """Anthropic's `usage` in our classes; None where it reports nothing that can be true. `input_tokens` excludes what came from a cache
    or was written to one; `output_tokens` includes reasoning, and is 0 here where it is absent."""
    if type(usage) is not dict:
        return None
    fresh, cached, short, long, output = _counts(usage)
    for beside in dicts(usage.get("iterations")):
        if beside.get("type") == "compaction":  # billed, but in none of the totals
            more = _counts(beside)
            fresh, cached, short, long, output = (
                fresh + more[0],
                cached + more[1],
                short + more[2],
                long + more[3],
                output + more[4],
            )
    if fresh + cached + short + long == 0:
        return None
    return Usage(UsageSource.PROVIDER, fresh, cached, short, output, ((CACHE_WRITE_LONG, long),) if long else ())


def _counts(usage: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
    """Fresh input, read from a cache, written to it for 5 minutes and for an hour, output."""
    by_life = fields_of(usage.get("cache_creation"))
    long = tokens(by_life, "ephemeral_1h_input_tokens") or 0
    short = tokens(by_life, "ephemeral_5m_input_tokens") or 0
    written = max(tokens(usage, "cache_creation_input_tokens") or 0, long + short)
    if long and not short:
        long = written  # what came later lives as long
    return (
        tokens(usage, "input_tokens") or 0,
        tokens(usage, "cache_read_input_tokens") or 0,
        written - long,
        long,
        tokens(usage, "output_tokens") or 0,
    )


def read_answer(body: bytes, meter: Meter) -> None:
    """Meters a whole answer. One that can't be read is metered as text: all of it, which over-counts."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if type(answer) is not dict:
        meter.text(body.decode(errors="replace"))
        return
    reported = fields_of(answer.get("usage"))
    usage = read_usage(reported)
    if usage is not None:
        meter.report(usage)
    for block in dicts(answer.get("content")):
        _count_search(block, meter)
        if meter.needs_text:
            _meter_block(block, meter)
    _meter_beside(reported, meter)
    meter.answer_id = _text(answer.get("id"))


def _count_search(block: Mapping[str, Any], meter: Meter) -> None:
    if block.get("type") == "server_tool_use" and block.get("name") == "web_search":
        meter.pieces[WEB_SEARCHES] = meter.pieces.get(WEB_SEARCHES, 0) + 1


def _meter_beside(usage: Mapping[str, Any], meter: Meter) -> None:
    """What a report says beside tokens. Without a word of searches it was as many as were seen."""
    searches = tokens(fields_of(usage.get("server_tool_use")), "web_search_requests")
    meter.pieces[WEB_SEARCHES] = meter.pieces.get(WEB_SEARCHES, 0) if searches is None else searches
    meter.served_at(usage.get("service_tier"))
    meter.unknown |= {name for name, value in usage.items() if value and name not in _REPORTED}
    meter.unknown |= {name for name, value in fields_of(usage.get("server_tool_use")).items() if value and name not in _TOOL_USES}
    for name, ordinary in _SETTINGS.items():
        if type(usage.get(name)) is str and usage[name] not in ordinary:
            meter.unknown.add(name)


def _meter_block(block: Mapping[str, Any], meter: Meter) -> None:
    """What the model wrote of a block. Results of Anthropic's tools are input."""
    kind = text_of(block.get("type"))
    if kind in _CALLS:
        _meter_text(block.get("name"), meter)
        _meter_text(block.get("input"), meter)
    elif not kind.endswith("_tool_result"):
        _meter_text(block.get("text"), meter)
        _meter_text(block.get("thinking"), meter)
        _meter_text(block.get("content"), meter)


class MessagesStream(EventStream):
    """Ends with `message_stop`. Anthropic tells the input's tokens at the start, the output's only at the end: what is told at the start
    counts for the input alone."""

    def __init__(self, meter: Meter, asked: Pieces = ()) -> None:
        super().__init__(meter)
        self._started = False
        self._stopped = False  # the reason why it ends has come
        self._open: dict[int, None] = {}  # indices of blocks that have not ended
        self._usage: dict[str, Any] = {}  # what was reported so far
        meter.unseen = False
        meter.pieces.update((measure, 0) for measure, _ in asked)  # each use passes here

    @property
    def finished(self) -> bool:
        return self._stopped

    def length_ending(self, problem: Problem) -> bytes:
        """Each open block ends, then the message with `stop_reason: "max_tokens"`, then comes the error; no `message_stop`."""
        events = []
        if self._started:
            events = [_event({"type": "content_block_stop", "index": index}) for index in self._open]
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            usage = {"output_tokens": self._meter.tokens_seen}
            events.append(_event({"type": "message_delta", "delta": delta, "usage": usage}))
        return self._event_end() + b"".join(events) + error_event(problem)

    def _failure(self, problem: Problem) -> bytes:
        return error_event(problem)

    def _text_alone(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
        match event:
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": str(text)} as delta} if text:
                return delta, "text"
        return None

    def _take_event(self, event: Mapping[str, Any]) -> bool:
        kind = event.get("type")
        if kind == "content_block_delta":
            _meter_delta(fields_of(event.get("delta")), self._meter)
        elif kind == "content_block_start":
            self._block_starts(event)
        elif kind == "content_block_stop":
            self._open.pop(_index(event), None)
        elif kind == "message_start":
            message = fields_of(event.get("message"))
            self._started = True
            self._meter.answer_id = _text(message.get("id"))
            self._take_usage(message.get("usage"), with_output=False)
        elif kind == "message_delta":
            self._take_usage(event.get("usage"), with_output=True)
            self._stopped = self._stopped or bool(fields_of(event.get("delta")).get("stop_reason"))
        elif kind == "message_stop":
            self.done = True
        elif kind == "error" or event.get("error"):
            self.error_seen = True
        return False

    def _block_starts(self, event: Mapping[str, Any]) -> None:
        block = fields_of(event.get("content_block"))
        kind = text_of(block.get("type"))
        self._open[_index(event)] = None
        if "thinking" in kind or kind == "compaction" or kind.endswith("_tool_result"):
            # Of reasoning a summary is shown, or nothing; and a tool's result has the whole input read again.
            self._meter.unseen = True
        _count_search(block, self._meter)
        _meter_block(block, self._meter)

    def _take_usage(self, reported: Any, *, with_output: bool) -> None:
        """A later report may leave out what an earlier one told."""
        told = {name: value for name, value in fields_of(reported).items() if value is not None}
        if not with_output:
            told.pop("output_tokens", None)  # the first token or so: no count of what follows
        self._usage |= told
        usage = read_usage(self._usage)
        if usage is not None:
            self._meter.report(usage)
        if with_output:
            _meter_beside(self._usage, self._meter)


def error_event(problem: Problem) -> bytes:
    """Raises in Anthropic's SDKs."""
    return b"event: error\ndata: " + orjson.dumps({"type": "error", "error": problem.error(SHAPE)}) + b"\n\n"


def _event(event: Mapping[str, Any]) -> bytes:
    return b"event: " + text_of(event["type"]).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


def _meter_delta(delta: Mapping[str, Any], meter: Meter) -> None:
    """Of one block. Signatures and citations are not billed."""
    kind = delta.get("type")
    if kind == "text_delta":
        _meter_text(delta.get("text"), meter)
    elif kind == "input_json_delta":
        _meter_text(delta.get("partial_json"), meter)
    elif kind == "thinking_delta":
        _meter_text(delta.get("thinking"), meter)
    elif kind not in ("signature_delta", "citations_delta"):
        _meter_text(delta.get("content"), meter)


def _index(event: Mapping[str, Any]) -> int:
    index = event.get("index")
    return index if type(index) is int else 0


def _text(value: Any) -> str | None:
    return value if type(value) is str else None


def _meter_text(value: Any, meter: Meter) -> None:
    if value:
        meter.text(text_of(value))


DIALECT: Final = Dialect(
    NAME, "/v1/messages", read, read_answer, lambda meter, request: MessagesStream(meter, request.pieces), SHAPE
)
