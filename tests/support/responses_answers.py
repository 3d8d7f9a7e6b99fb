"""The scripted provider's replies as OpenAI writes them for /v1/responses, its requests as the script reads them, and what it keeps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.demo.replies import Choice, Event, Reply


def as_chat(request: Mapping[str, Any], before: list[Any]) -> dict[str, Any]:
    """The same question as a chat request: what is no text is its JSON. `before`: the messages of what it goes on with."""
    system = [{"role": "system", "content": request["instructions"]}] if request.get("instructions") else []
    given = request.get("input") or []
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    messages = [{"role": item.get("role", "tool"), "content": _text(item)} for item in items]
    tools = [{"type": "function", "function": tool} for tool in request.get("tools") or () if tool.get("type") == "function"]
    wanted = {"tool_choice": "required"} if request.get("tool_choice") == "required" else {}
    form = (request.get("text") or {}).get("format")
    if form is not None and form["type"] == "json_schema":
        wanted["response_format"] = {"type": "json_schema", "json_schema": {"name": form["name"], "schema": form["schema"]}}
    cap = {"max_tokens": request["max_output_tokens"]} if request.get("max_output_tokens") else {}
    asked = {"model": request["model"], **cap, **wanted, "messages": [*system, *before, *messages]}
    return {**asked, "tools": tools} if tools else asked


def _text(item: Mapping[str, Any]) -> str:
    content = item.get("content", item.get("output"))
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return orjson.dumps(item).decode()
    return " ".join(part["text"] if "text" in part else orjson.dumps(part).decode() for part in content)


@dataclass
class Kept:
    """What the provider keeps of its answers, and whether those in the background are finished."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: dict[str, list[Any]] = field(default_factory=dict)  # the messages up to there
    finished: bool = True

    def before(self, request: Mapping[str, Any]) -> list[Any]:
        return self.said.get(request.get("previous_response_id") or "", [])

    def keep(self, answer: dict[str, Any], chat: Mapping[str, Any], reply: Reply) -> None:
        self.answers[answer["id"]] = answer
        self.said[answer["id"]] = [*chat["messages"], {"role": "assistant", "content": reply.choices[0].text}]

    def now(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer as it stands."""
        if answer["background"] and not self.finished:
            return {**answer, "status": "in_progress", "output": [], "usage": None}
        return answer


def usage_of(reply: Reply) -> dict[str, Any]:
    return {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": reply.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": reply.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }


ZEROS = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


def answer(request: Mapping[str, Any], reply: Reply, usage: Mapping[str, Any] | None) -> dict[str, Any]:
    [choice] = reply.choices
    cut = choice.finish_reason == "length"
    return {
        **_head(request, reply),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [_item(reply, choice, choice.text, "incomplete" if cut else "completed")],
        "usage": usage,
    }


def events(request: Mapping[str, Any], reply: Reply, usage: Mapping[str, Any] | None, tokens_per_event: int) -> Iterator[Event]:
    """The last one has the whole answer."""
    [choice] = reply.choices
    whole = answer(request, reply, usage)
    [item] = whole["output"]
    begun = {**_head(request, reply), "status": "in_progress", "output": [], "usage": None}
    at = {"item_id": item["id"], "output_index": 0}
    part = {"type": "output_text", "text": choice.text, "annotations": []}
    number = iter(range(1_000_000))

    def event(kind: str, tokens: int = 0, **members: Any) -> Event:
        return Event(sse(kind, sequence_number=next(number), **members), tokens)

    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    yield event("response.output_item.added", output_index=0, item=_item(reply, choice, None, "in_progress"))
    if choice.tool is None:
        yield event("response.content_part.added", content_index=0, part={**part, "text": ""}, **at)
    for start in range(0, len(choice.pieces), tokens_per_event):
        pieces = choice.pieces[start : start + tokens_per_event]
        text, tokens = "".join(piece.text for piece in pieces), sum(piece.tokens for piece in pieces)
        if choice.tool is None:
            yield event("response.output_text.delta", tokens, delta=text, content_index=0, logprobs=[], **at)
        else:
            yield event("response.function_call_arguments.delta", tokens, delta=text, **at)
    if choice.tool is None:
        yield event("response.output_text.done", text=choice.text, content_index=0, logprobs=[], **at)
        yield event("response.content_part.done", content_index=0, part=part, **at)
    else:
        yield event("response.function_call_arguments.done", arguments=choice.text, name=choice.tool, **at)
    yield event("response.output_item.done", output_index=0, item=item)
    yield event(f"response.{whole['status']}", response=whole)


def sse(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _head(request: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    return {
        "id": reply.id.replace("chatcmpl-", "resp_"),
        "object": "response",
        "created_at": 1_767_225_600,
        "background": bool(request.get("background")),
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "metadata": request.get("metadata") or {},
        "model": reply.model,
        "parallel_tool_calls": True,
        "previous_response_id": request.get("previous_response_id"),
        "tool_choice": "auto",
        "tools": [],
    }


def _item(reply: Reply, choice: Choice, text: str | None, status: str) -> dict[str, Any]:
    """`text` None: as it begins."""
    number = reply.id.removeprefix("chatcmpl-")
    if choice.tool is not None:
        call = {"id": f"fc_{number}", "type": "function_call", "call_id": choice.tool_call_id, "name": choice.tool}
        return {**call, "arguments": text or "", "status": status}
    content = [] if text is None else [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": status, "content": content}
