"""What the scripted provider answers, and how many tokens that is. Pure: the same seed, request and script give the same reply.

Tokens are counted as OpenAI documents it for chat: 3 per message, the role and every text in it, 1 for a name, and 3 that prime the
reply. What OpenAI does not publish has a rule of our own here: tools and response formats count as their JSON, an image 85 (`low`) or
765. A generated word is always exactly one token, so a piece of the reply is a token.
"""

import codecs
import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import orjson

Object: TypeAlias = Mapping[str, object]


class Encoding(Protocol):
    """The part of a tiktoken encoding that is used here."""

    def encode_ordinary(self, text: str) -> list[int]: ...
    def decode_single_token_bytes(self, token: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk of a stream carries: some text, and the tokens it took to make it."""

    text: str
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class Choice:
    """One alternative. With a tool name, the pieces are the call's arguments."""

    pieces: tuple[Piece, ...]
    finish_reason: str
    tool: str | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `cached_tokens` are part of `prompt_tokens`, as OpenAI reports them."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    prompt_tokens: int
    cached_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    def usage(self, generated: int | None = None) -> dict[str, object]:
        """OpenAI's usage object; `generated` replaces the completion's tokens for a reply that was cut."""
        completion = self.completion_tokens if generated is None else generated
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Directions for one reply. What is None is left to the request and the seed."""

    text: str | None = None
    tokens: int | None = None  # the length, before the request's cap
    tool: str | None = None  # answer with a call of this tool
    arguments: str | None = None  # … with these arguments; None: made from its schema
    cached_tokens: int = 0
    ignores_cap: bool = False


AS_ASKED: Final = Script()


class BadRequest(Exception):
    """The provider would answer 400; the message says why."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


_WORDS: Final = [
    "the",
    "river",
    "runs",
    "past",
    "old",
    "stone",
    "houses",
    "and",
    "a",
    "quiet",
    "market",
    "where",
    "people",
    "trade",
    "bread",
    "salt",
    "water",
    "light",
    "paper",
    "iron",
    "glass",
    "wood",
    "over",
    "time",
    "each",
    "small",
    "change",
    "in",
    "level",
    "shows",
    "on",
    "the",
    "wall",
    "near",
    "the",
    "gate",
    "while",
    "boats",
    "wait",
    "below",
    "for",
    "rain",
    "to",
    "lift",
    "them",
    "into",
    "the",
    "upper",
    "pool",
    "again",
    "so",
    "work",
    "goes",
    "on",
    "day",
    "after",
    "day",
    "without",
    "any",
    "rush",
    "because",
    "the",
    "flow",
    "is",
    "measured",
    "and",
    "what",
    "is",
    "left",
    "is",
    "known",
    "to",
    "all",
    "who",
    "use",
    "it",
    "for",
    "power",
    "or",
    "for",
    "food",
]


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes replies with one tokenizer. Lengths vary evenly between `shortest` and `longest` tokens, by the seed and the messages."""

    encoding: Encoding
    seed: int = 0
    shortest: int = 40
    longest: int = 400
    _words: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        # Only words that are one token after a space: then the length of a text is the number of its words.
        words = tuple(f" {word}" for word in dict.fromkeys(_WORDS) if len(self.encoding.encode_ordinary(f" {word}")) == 1)
        assert words, "an encoding that splits every common English word"
        object.__setattr__(self, "_words", words)

    def reply(self, request: Object, script: Script = AS_ASKED, serial: int = 0) -> Reply:
        """`serial` only makes the id differ. BadRequest where the request has no messages or a cap that is no positive integer."""
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("'messages' must be a list with at least one message.", "messages")
        model = request.get("model")
        if not isinstance(model, str):
            raise BadRequest("you must provide a model parameter", "model")
        count = _positive(request, "n") or 1
        # What the seed makes of a request depends on what was said, not on the cap or the stream flag around it.
        said = hashlib.sha256(orjson.dumps([self.seed, messages])).hexdigest()
        chance = random.Random(said)  # noqa: S311 - lengths and words, no secrets
        cap = None if script.ignores_cap else _cap(request)
        return Reply(
            id=f"chatcmpl-{said[:20]}{serial:08d}",
            model=model,
            choices=tuple(self._choice(request, script, cap, chance) for _ in range(count)),
            prompt_tokens=self.prompt_tokens(request),
            cached_tokens=script.cached_tokens,
        )

    def prompt_tokens(self, request: Object) -> int:
        messages = request.get("messages")
        assert isinstance(messages, list)
        tokens = 3
        for message in messages:
            if not isinstance(message, dict):
                raise BadRequest("each message must be an object", "messages")
            tokens += 3 + sum(self._message_part(key, value) for key, value in message.items())
        for key in ("tools", "response_format"):
            if request.get(key):
                tokens += self._count(orjson.dumps(request[key]).decode())
        return tokens

    def _message_part(self, key: str, value: object) -> int:
        if value is None:
            return 0
        if isinstance(value, str):
            return self._count(value) + (1 if key == "name" else 0)
        if key == "content" and isinstance(value, list):
            return sum(self._content_part(part) for part in value if isinstance(part, dict))
        return self._count(orjson.dumps(value).decode())

    def _content_part(self, part: Object) -> int:
        image = part.get("image_url")
        if isinstance(image, dict):
            return 85 if image.get("detail") == "low" else 765
        text = part.get("text")
        return self._count(text) if isinstance(text, str) else 0

    def _count(self, text: str) -> int:
        return len(self.encoding.encode_ordinary(text))

    def _choice(self, request: Object, script: Script, cap: int | None, chance: random.Random) -> Choice:
        tool = script.tool or _wanted_tool(request)
        if tool is not None:
            arguments = script.arguments
            if arguments is None:
                arguments = orjson.dumps(sample(_tool_schema(request, tool))).decode()
            pieces, whole = _within(self._pieces(arguments), cap)
            return Choice(pieces, "tool_calls" if whole else "length", tool, f"call_{chance.getrandbits(96):024x}")
        text = script.text if script.text is not None else _wanted_json(request)
        if text is not None:
            pieces, whole = _within(self._pieces(text), cap)
        else:
            pieces, whole = _within(self._prose(script.tokens or chance.randint(self.shortest, self.longest), chance), cap)
        return Choice(pieces, "stop" if whole else "length")

    def _prose(self, tokens: int, chance: random.Random) -> Iterator[Piece]:
        return (Piece(word) for word in chance.choices(self._words, k=tokens))

    def _pieces(self, text: str) -> Iterator[Piece]:
        """Cuts a text at its tokens; where a character spans several of them, they are one piece."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        waiting = 0
        for token in self.encoding.encode_ordinary(text):
            waiting += 1
            if decoded := decoder.decode(self.encoding.decode_single_token_bytes(token)):
                yield Piece(decoded, waiting)
                waiting = 0


def _within(pieces: Iterable[Piece], cap: int | None) -> tuple[tuple[Piece, ...], bool]:
    """The pieces that fit the cap, and whether that is all of them."""
    fitting: list[Piece] = []
    used = 0
    for piece in pieces:
        used += piece.tokens
        if cap is not None and used > cap:
            return tuple(fitting), False
        fitting.append(piece)
    return tuple(fitting), True


def _positive(request: Object, key: str) -> int | None:
    value = request.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"'{key}' must be a positive integer.", key)
    return value


def _cap(request: Object) -> int | None:
    old, new = _positive(request, "max_tokens"), _positive(request, "max_completion_tokens")
    if old is not None and new is not None:
        raise BadRequest("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.", "max_tokens")
    return old if new is None else new


def _wanted_tool(request: Object) -> str | None:
    """The tool that the request insists on: a named one, or the first where any will do (`required`)."""
    choice = request.get("tool_choice")
    if isinstance(choice, dict):
        named = choice.get("function")
        return str(named["name"]) if isinstance(named, dict) and "name" in named else None
    if choice != "required":
        return None
    return next(_functions(request), (None, {}))[0]


def _tool_schema(request: Object, tool: str) -> Object:
    return next((schema for name, schema in _functions(request) if name == tool), {})


def _functions(request: Object) -> Iterator[tuple[str, Object]]:
    tools = request.get("tools")
    for entry in tools if isinstance(tools, list) else ():
        function = entry.get("function") if isinstance(entry, dict) else None
        if isinstance(function, dict):
            parameters = function.get("parameters")
            yield str(function.get("name")), parameters if isinstance(parameters, dict) else {}


def _wanted_json(request: Object) -> str | None:
    """The JSON text that the response format asks for; None for plain text."""
    wanted = request.get("response_format")
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_object":
        return '{"answer":"yes"}'
    named = wanted.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if wanted.get("type") != "json_schema" or not isinstance(schema, dict):
        return None
    return orjson.dumps(sample(schema)).decode()


def sample(schema: Object, root: Object | None = None) -> object:
    """A value that a JSON schema allows: every property, the first of every choice. Patterns and formats are not honoured."""
    root = schema if root is None else root
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return sample(_resolve(reference, root), root)
    for key in ("const", "enum", "anyOf", "oneOf", "allOf"):
        value = schema.get(key)
        if key == "const" and key in schema:
            return value
        if isinstance(value, list) and value:
            return value[0] if key == "enum" else sample(value[0], root)
    return _sample_of_type(schema, root)


def _sample_of_type(schema: Object, root: Object) -> object:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties")
        return {name: sample(inner, root) for name, inner in properties.items()} if isinstance(properties, dict) else {}
    if kind == "array":
        items, least = schema.get("items"), schema.get("minItems", 1)
        return [sample(items if isinstance(items, dict) else {}, root)] * (least if isinstance(least, int) else 1)
    if kind in ("integer", "number"):
        return schema.get("minimum", 7)
    return {"boolean": True, "null": None}.get(str(kind), "penstock")


def _resolve(reference: str, root: Object) -> Object:
    found: object = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            found = found.get(step) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


# -- as bytes -----------------------------------------------------------------------------------------------------------------


def json_answer(reply: Reply, created: int, usage: Mapping[str, object] | None) -> bytes:
    """The body of an answer that is not streamed."""
    return orjson.dumps(
        {
            "id": reply.id,
            "object": "chat.completion",
            "created": created,
            "model": reply.model,
            "choices": [
                {"index": index, "message": _message(choice), "logprobs": None, "finish_reason": choice.finish_reason}
                for index, choice in enumerate(reply.choices)
            ],
            **({} if usage is None else {"usage": usage}),
        }
    )


def _message(choice: Choice) -> dict[str, object]:
    if choice.tool is None:
        return {"role": "assistant", "content": choice.text, "refusal": None}
    function = {"name": choice.tool, "arguments": choice.text}
    call = {"id": choice.tool_call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}


@dataclass(frozen=True, slots=True)
class Event:
    """One SSE event, and the completion tokens that it hands over."""

    data: bytes
    tokens: int = 0


def stream_events(
    reply: Reply, created: int, *, ask_usage: bool, tokens_per_event: int = 1, usage_on_finish: bool = False
) -> Iterator[Event]:
    """The events of a streamed answer without `[DONE]`: choices in turn, a finish for each, and the usage where it was asked for.
    As OpenAI does, every event has `usage: null` then. `usage_on_finish`: as some others do, on the last finish event instead."""
    head = {"id": reply.id, "object": "chat.completion.chunk", "created": created, "model": reply.model}
    blank: dict[str, object] = {"usage": None} if ask_usage else {}
    usage = {"usage": reply.usage()}

    def event(index: int, delta: Object, finish: str | None, tokens: int = 0, more: Object = blank) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return Event(sse({**head, "choices": [choice], **more}), tokens)

    for index, choice in enumerate(reply.choices):
        yield event(index, _first_delta(choice), None)
        for start in range(0, len(choice.pieces), tokens_per_event):
            pieces = choice.pieces[start : start + tokens_per_event]
            yield event(index, _delta(choice, pieces), None, sum(piece.tokens for piece in pieces))
    last = len(reply.choices) - 1
    for index, choice in enumerate(reply.choices):
        yield event(index, {}, choice.finish_reason, more=usage if usage_on_finish and index == last else blank)
    if ask_usage and not usage_on_finish:
        yield Event(sse({**head, "choices": [], **usage}))


DONE: Final = Event(b"data: [DONE]\n\n")


def sse(payload: Object) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def _first_delta(choice: Choice) -> dict[str, object]:
    if choice.tool is None:
        return {"role": "assistant", "content": "", "refusal": None}
    function = {"name": choice.tool, "arguments": ""}
    call = {"index": 0, "id": choice.tool_call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _delta(choice: Choice, pieces: Sequence[Piece]) -> dict[str, object]:
    text = "".join(piece.text for piece in pieces)
    if choice.tool is None:
        return {"content": text}
    return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
