"""Run ids out of what clients send for their own sake: the forms they really send, and words that are none."""

from typing import Any

import orjson
import pytest

from gateway.core.values import Part
from gateway.wire import sessions
from gateway.wire.dialects import DIALECTS
from gateway.wire.headers import NO_HEADERS

UUID = "257b8480-c038-4979-a482-146f6e4a9631"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OWNER = ("default", "key_a")


@pytest.mark.parametrize(
    ("user", "session"),
    [
        (f"user_{'ab' * 32}_account_0f3c0a4e-1111-4a77-9b1f-8d2f3d1f0001_session_{UUID}", UUID),
        (f"user_{'ab' * 32}_account__session_{UUID}", UUID),
        (f'{{"device_id":"80","account_uuid":"","session_id":"{UUID}"}}', UUID),
        ('{"session_id":"a session"}', sessions.as_run_id("a session")),
        ('{"session_id":7}', None),
        ('{"session_id":"', None),
        ("{}", None),
        ("somebody@example.com", None),
        (f"user_1_session_{UUID}/../x", None),
        ("", None),
        (7, None),
    ],
)
def test_claude_codes_session_is_read_in_both_its_forms(user: Any, session: str | None) -> None:
    assert sessions.claude_code({"metadata": {"user_id": user}}) == session


@pytest.mark.parametrize("body", [{}, {"metadata": None}, {"metadata": []}, {"metadata": {}}])
def test_a_body_without_metadata_has_no_session(body: Any) -> None:
    assert sessions.claude_code(body) is None


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f" 00-{TRACE.upper()}-00F067AA0BA902B7-00 ", TRACE),
        (f"01-{TRACE}-00f067aa0ba902b7-01-more", TRACE),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", None),
        (f"FF-{TRACE}-00f067aa0ba902b7-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE[1:]}-00f067aa0ba902b7-01", None),
        ("", None),
    ],
)
def test_a_trace_is_known_by_its_id(header: str, trace: str | None) -> None:
    assert sessions.trace_id(header) == trace


@pytest.mark.parametrize("value", ["r1", "a" * 128, "a:b.c_d-e"])
def test_a_value_that_is_a_run_id_stays_as_it_is(value: str) -> None:
    assert sessions.as_run_id(value) == value


@pytest.mark.parametrize("value", ["a b", "a" * 129, "ü", "/", "untagged/key/2026-11-22", "\udcff"], ids=ascii)
def test_any_other_value_becomes_one_that_is_always_the_same(value: str) -> None:
    mapped = sessions.as_run_id(value)
    assert mapped is not None
    assert mapped == sessions.as_run_id(value)
    assert sessions.as_run_id(mapped) == mapped
    assert len(mapped) == 34


def test_an_empty_value_is_none() -> None:
    assert sessions.as_run_id("") is None
    assert sessions.body_field({"k": ""}, "k") is None
    assert sessions.body_field({"k": ["a"]}, "k") is None


def part(role: str, *texts: str) -> Part:
    return Part(role, (role, *texts))


def test_a_conversation_is_known_by_its_opening_whatever_the_system_says_and_the_tools_are() -> None:
    opening = [part("assistant", "How can I help?"), part("user", "mend the mill")]
    run = sessions.conversation(OWNER, opening)
    assert run is not None
    steps = [part("assistant", "done"), part("tool", "ok"), part("user", "go on")]
    assert sessions.conversation(OWNER, [*opening, *steps]) == run
    for role in ("system", "developer", "tools", "instructions", "other"):
        assert sessions.conversation(OWNER, [part(role, "it is 12:03"), *opening]) == run


def test_another_opening_is_another_conversation() -> None:
    openings = [
        [part("user", "mend the mill")],
        [part("user", "mend", "the mill")],
        [part("assistant", "Hello"), part("user", "mend the mill")],
        [part("user", "mend the wheel")],
    ]
    runs = {sessions.conversation(owner, opening) for owner in (OWNER, ("acme", "key_a")) for opening in openings}
    assert len(runs) == 8


def test_where_no_user_speaks_there_is_no_conversation() -> None:
    assert sessions.conversation(OWNER, [part("system", "s"), part("assistant", "a"), part("prompt", "p")]) is None
    assert sessions.conversation(OWNER, []) is None


# -- as the dialects read it --------------------------------------------------------------------------------------------------------

TEXT = {"type": "text", "text": "mend the mill"}
INPUT_TEXT = {"type": "input_text", "text": "mend the mill"}
TOOL = {"name": "saw", "input_schema": {"type": "object"}}
# Of each dialect, steps of one conversation as clients really send them: the first, and later ones.
STEPS: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"messages": [{"role": "user", "content": "mend the mill"}]},
        {"messages": [{"role": "system", "content": "it is 12:03"}, {"role": "user", "content": [TEXT]}]},
        {
            "messages": [
                {"role": "developer", "content": "it is 12:04"},
                {"role": "user", "content": [{**TEXT, "cache_control": {"type": "ephemeral"}}]},
                {"role": "assistant", "content": "done"},
                {"role": "user", "content": "go on"},
            ],
            "tools": [{"type": "function", "function": {"name": "saw"}}],
        },
    ],
    "responses": [
        {"input": "mend the mill"},
        {"input": [{"role": "user", "content": "mend the mill"}], "instructions": "it is 12:03"},
        {
            "input": [
                {"type": "message", "role": "developer", "content": "it is 12:04"},
                {"type": "message", "role": "user", "content": [INPUT_TEXT]},
                {"type": "function_call", "call_id": "c1", "name": "saw", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "ok"},
            ],
            "tools": [{"type": "function", "name": "saw", "parameters": {}}],
        },
    ],
    "messages": [
        {"messages": [{"role": "user", "content": "mend the mill"}]},
        {"messages": [{"role": "user", "content": [TEXT]}], "system": "it is 12:03"},
        {
            "messages": [
                {"role": "user", "content": [{**TEXT, "cache_control": {"type": "ephemeral"}}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "saw", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "ok"}]},
            ],
            "system": [{"type": "text", "text": "it is 12:04"}],
            "tools": [TOOL],
        },
    ],
}


@pytest.mark.parametrize("name", STEPS)
def test_the_steps_of_a_conversation_have_one_opening_in_every_dialect(name: str) -> None:
    [dialect] = [each for each in DIALECTS if each.name == name]

    def run(step: dict[str, Any]) -> str | None:
        body = orjson.dumps({"model": "m", "max_tokens" if name != "responses" else "max_output_tokens": 100, **step})
        return sessions.conversation(OWNER, dialect.read(body, NO_HEADERS).parts)

    [known] = {run(step) for step in STEPS[name]}
    assert known is not None
    other = orjson.loads(orjson.dumps(STEPS[name][-1]).replace(b"mend the mill", b"mend the wheel"))
    assert run(other) not in (None, known)
