"""What the scripted provider answers: lengths, caps, counts, and the shapes that clients read."""

from typing import Any

import orjson
import pytest

from gateway.demo.replies import BadRequest, Script, Writer, json_answer, sample, stream_events

HELLO = [{"role": "user", "content": "hello"}]


def asked(**keys: Any) -> dict[str, Any]:
    return {"model": "big-model", "messages": HELLO, **keys}


def test_the_prompt_is_counted_as_openai_documents_it(writer: Writer) -> None:
    # 3 for the reply + 3 for the message + "user" + "hello"
    assert writer.prompt_tokens(asked()) == 8
    # a name costs one more than its text
    assert writer.prompt_tokens(asked(messages=[{"role": "user", "content": "hello", "name": "bob"}])) == 10


def test_every_token_of_a_reply_is_one_for_the_tokenizer_too(writer: Writer) -> None:
    reply = writer.reply(asked(), Script(tokens=300))
    assert reply.completion_tokens == 300
    assert len(writer.encoding.encode_ordinary(reply.choices[0].text)) == 300


def test_the_same_request_gets_the_same_text_and_another_id(writer: Writer) -> None:
    one, two = writer.reply(asked(), serial=1), writer.reply(asked(stream=True), serial=2)
    assert one.choices == two.choices
    assert one.id != two.id


def test_lengths_vary_within_their_bounds(writer: Writer) -> None:
    lengths = {writer.reply(asked(messages=[{"role": "user", "content": str(i)}])).completion_tokens for i in range(30)}
    assert len(lengths) > 10
    assert min(lengths) >= writer.shortest
    assert max(lengths) <= writer.longest


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_cap_ends_the_reply_with_length(writer: Writer, name: str) -> None:
    choice = writer.reply(asked(**{name: 5})).choices[0]
    assert (choice.tokens, choice.finish_reason) == (5, "length")
    assert writer.reply(asked(**{name: 5}), Script(tokens=9, ignores_cap=True)).completion_tokens == 9


@pytest.mark.parametrize(
    "keys",
    [
        {"messages": []},
        {"messages": "hello"},
        {"messages": ["hello"]},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"n": "2"},
        {"max_tokens": 5, "max_completion_tokens": 5},
    ],
)
def test_what_openai_would_refuse_is_refused(writer: Writer, keys: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        writer.reply(asked(**keys))


def test_each_of_n_choices_has_its_own_text_and_the_cap(writer: Writer) -> None:
    reply = writer.reply(asked(n=3, max_tokens=20))
    assert len({choice.text for choice in reply.choices}) == 3
    assert reply.completion_tokens == 60


def test_text_that_was_scripted_is_cut_at_its_tokens(writer: Writer) -> None:
    text = "héllo 🦞 wörld, how are you? 好"
    reply = writer.reply(asked(), Script(text=text))
    assert reply.choices[0].text == text
    assert reply.completion_tokens == len(writer.encoding.encode_ordinary(text))


def test_a_tool_is_called_when_the_request_insists(writer: Writer) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    choice = writer.reply(asked(tools=tools, tool_choice="required")).choices[0]
    assert (choice.tool, choice.finish_reason) == ("weather", "tool_calls")
    assert orjson.loads(choice.text) == {"city": "penstock", "days": 1}
    assert writer.reply(asked(tools=tools)).choices[0].tool is None


def test_a_json_schema_gets_an_object_that_it_allows(writer: Writer) -> None:
    schema = {
        "type": "object",
        "$defs": {"step": {"type": "object", "properties": {"ok": {"type": "boolean"}}}},
        "properties": {
            "steps": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/step"}},
            "kind": {"enum": ["a", "b"]},
            "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        },
    }
    assert sample(schema) == {"steps": [{"ok": True}, {"ok": True}], "kind": "a", "note": None}
    wanted = {"type": "json_schema", "json_schema": {"name": "plan", "schema": schema}}
    assert orjson.loads(writer.reply(asked(response_format=wanted)).choices[0].text) == sample(schema)


def test_an_image_costs_by_its_detail(writer: Writer) -> None:
    def prompt(detail: str) -> int:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": detail}}
        return writer.prompt_tokens(asked(messages=[{"role": "user", "content": [image]}]))

    assert prompt("high") - prompt("low") == 765 - 85


def test_a_stream_says_what_the_whole_answer_says(writer: Writer) -> None:
    reply = writer.reply(asked(n=2))
    whole = orjson.loads(json_answer(reply, 0, reply.usage()))
    payloads = [orjson.loads(e.data.removeprefix(b"data: ")) for e in stream_events(reply, 0, ask_usage=True, tokens_per_event=7)]
    texts = ["", ""]
    for payload in payloads[:-1]:
        assert payload["usage"] is None
        texts[payload["choices"][0]["index"]] += payload["choices"][0]["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert payloads[-1]["choices"] == []
    assert payloads[-1]["usage"] == whole["usage"]


def test_the_tokens_of_its_events_are_the_tokens_of_the_reply(writer: Writer) -> None:
    reply = writer.reply(asked())
    events = list(stream_events(reply, 0, ask_usage=False))
    assert sum(event.tokens for event in events) == reply.completion_tokens
    assert not any(b'"usage"' in event.data for event in events)
