"""The scripted provider's replies as Anthropic writes them, and its requests as the script reads them."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from gateway.demo.replies import Choice, Event, Reply

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def as_chat(request: Mapping[str, Any]) -> dict[str, Any]:
    """The same question as a chat request: what is no text is its JSON."""
    system = [{"role": "system", "content": _text(request["system"])}] if request.get("system") else []
    messages = [{"role": each["role"], "content": _text(each["content"])} for each in request["messages"]]
    tools = [
        {"type": "function", "function": {"name": tool["name"], "parameters": tool.get("input_schema", {})}}
        for tool in request.get("tools") or ()
    ]
    wanted = {"tool_choice": "required"} if (request.get("tool_choice") or {}).get("type") in ("any", "tool") else {}
    kept = {name: request[name] for name in ("model", "max_tokens") if name in request}
    return {**kept, **wanted, "messages": [*system, *messages], **({"tools": tools} if tools else {})}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(block["text"] if "text" in block else orjson.dumps(block).decode() for block in content)


def usage_of(reply: Reply) -> dict[str, Any]:
    return {
        "input_tokens": reply.prompt_tokens - reply.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reply.cached_tokens,
        "output_tokens": reply.completion_tokens,
        "service_tier": "standard",
    }


ZEROS = {"input_tokens": 0, "output_tokens": 0}


def answer(reply: Reply, usage: Mapping[str, Any] | None) -> dict[str, Any]:
    [choice] = reply.choices
    block: dict[str, Any] = {"type": "text", "text": choice.text}
    if choice.tool is not None:
        block = {**_first_block(choice), "input": orjson.loads(choice.text or "{}")}
    reason = {"stop_reason": STOP_REASONS[choice.finish_reason], "stop_sequence": None}
    return {**_head(reply), "content": [block], **reason, **({} if usage is None else {"usage": usage})}


def events(reply: Reply, usage: Mapping[str, Any] | None, tokens_per_event: int) -> Iterator[Event]:
    """`usage` at the start without the output's tokens, at the end with them. The last event is `message_stop`."""
    [choice] = reply.choices
    at_start = {} if usage is None else {"usage": {**usage, "output_tokens": min(1, usage["output_tokens"])}}
    nothing = {"content": [], "stop_reason": None, "stop_sequence": None}
    yield Event(sse("message_start", message={**_head(reply), **nothing, **at_start}))
    yield Event(sse("content_block_start", index=0, content_block=_first_block(choice)))
    yield Event(sse("ping"))
    for start in range(0, len(choice.pieces), tokens_per_event):
        pieces = choice.pieces[start : start + tokens_per_event]
        text = "".join(piece.text for piece in pieces)
        delta = (
            {"type": "text_delta", "text": text} if choice.tool is None else {"type": "input_json_delta", "partial_json": text}
        )
        yield Event(sse("content_block_delta", index=0, delta=delta), sum(piece.tokens for piece in pieces))
    yield Event(sse("content_block_stop", index=0))
    at_end = {} if usage is None else {"usage": {"output_tokens": usage["output_tokens"]}}
    reason = {"stop_reason": STOP_REASONS[choice.finish_reason], "stop_sequence": None}
    yield Event(sse("message_delta", delta=reason, **at_end))
    yield Event(sse("message_stop"))


def error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def sse(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _head(reply: Reply) -> dict[str, Any]:
    return {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model}


def _first_block(choice: Choice) -> dict[str, Any]:
    if choice.tool is None:
        return {"type": "text", "text": ""}
    return {"type": "tool_use", "id": choice.tool_call_id, "name": choice.tool, "input": {}}
