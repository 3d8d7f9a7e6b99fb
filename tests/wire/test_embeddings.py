"""An embeddings request is counted in all its forms; what it cost is what the provider says it read."""

from typing import Any

import orjson
import pytest

from gateway.core.measures import TOKENS
from gateway.core.profiles import Profile
from gateway.core.scopes import Amounts, Caller
from gateway.core.values import Directives, Output, Part, Plan
from gateway.wire.embeddings import INPUT_OVERHEAD, read, read_answer
from gateway.wire.headers import NO_HEADERS
from gateway.wire.problem import Refused
from gateway.wire.request import Request
from tests.support.recorder import Recorder, provider

SMALL: dict[str, Any] = {"model": "text-embedding-3-small", "input": "the food was delicious"}
PROFILE = Profile("openai", "max_completion_tokens", stream_options=True)


def asked(**fields: Any) -> Request:
    return read(orjson.dumps(SMALL | fields), NO_HEADERS)


def test_the_request_goes_on_as_it_came_but_for_its_model_and_no_cap_is_written() -> None:
    body = SMALL | {"dimensions": 256, "encoding_format": "base64", "user": "u", "truncate_prompt_tokens": 8}
    sent = asked(**body).encode(Plan("other", "openai", 0, 1, Amounts(1, 1), ()), PROFILE)
    assert orjson.loads(sent) == body | {"model": "other"}


def test_every_input_is_counted_and_nothing_is_written() -> None:
    assert asked().parts == (Part("input", ("the food was delicious",), INPUT_OVERHEAD),)
    many = asked(input=["a", "b", "c"])
    assert (many.parts, many.inputs) == ((Part("input", ("a", "b", "c"), 3 * INPUT_OVERHEAD),), 3)
    assert asked(input=[[1, 2, 3], [4]]).parts == (Part("input", (), 4 + 2 * INPUT_OVERHEAD),)
    assert asked(instruction="Represent this").parts[1] == Part("other", ("Represent this",))
    assert (many.output, many.choices, many.stream, many.reasons) == (Output.NONE, 1, False, False)


def test_no_other_model_stands_in_whatever_the_caller_allows() -> None:
    caller = Caller("default", "key", "r1", "r1")
    assert asked().call(caller, Directives(wrap_up=True)).directives == Directives(wrap_up=True, downgrade=False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"), ({"input": {"text": "a"}}, "input"), ({"model": None}, "model"), ({"model": 1}, "model"),
        ({"dimensions": 0}, "dimensions"), ({"dimensions": "256"}, "dimensions"), ({"encoding_format": 1}, "encoding_format"),
        ({"Input": "b"}, "input"), ({"MODEL": "b"}, "model"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        asked(**fields)
    assert (refused.value.problem.code, refused.value.problem.param) == ("ambiguous_request", param)


def test_a_field_that_chooses_another_model_has_no_price() -> None:
    assert asked(models=["a", "b"], provider={"order": ["x"]}).unpriced == ("models", "provider")


@pytest.mark.parametrize(
    ("usage", "read_tokens"),
    [
        ({"prompt_tokens": 8, "total_tokens": 8}, 8),  # OpenAI, Gemini, vLLM
        ({"prompt_tokens": 15, "completion_tokens": 0, "total_tokens": 15}, 15),  # Mistral
        ({"total_tokens": 6}, 6),  # Voyage
        ({"prompt_tokens": 5, "total_tokens": 5, "cost": 0.1}, 5),  # OpenRouter
    ],
)
def test_the_provider_s_own_count_is_what_was_used(usage: dict[str, Any], read_tokens: int) -> None:
    meter = Recorder()
    read_answer(orjson.dumps({"object": "list", "data": [{"embedding": [0.1, 0.2]}], "usage": usage}), meter)
    assert (meter.reports, meter.texts) == ([provider(read_tokens)], [])
    assert not TOKENS & meter.pieces.keys()


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"nonsense", b"{}", b'{"usage": null}', b'{"usage": {"prompt_tokens": 0}}', b'{"usage": {"prompt_tokens": -1}}'],
)
def test_an_answer_without_a_count_reports_nothing(answer: bytes) -> None:
    meter = Recorder()
    read_answer(answer, meter)
    assert (meter.reports, meter.texts) == ([], [])
