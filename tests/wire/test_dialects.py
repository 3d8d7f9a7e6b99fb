"""Who reads refusals in which shape is known from the path and the headers, before there is a route."""

import pytest
from multidict import CIMultiDict

from gateway.wire.dialects import DIALECTS, METERED_ROUTES, shape_for
from gateway.wire.headers import NO_HEADERS
from gateway.wire.problem import Shape

ANTHROPICS = CIMultiDict({"Anthropic-Version": "2023-06-01"})


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/messages", Shape.ANTHROPIC),
        ("/run/r1/v1/messages", Shape.ANTHROPIC),
        ("/v1/messages/", Shape.ANTHROPIC),
        ("/v1/messages/count_tokens", Shape.ANTHROPIC),
        ("/run/r1/v1/messages/batches/b1", Shape.ANTHROPIC),
        ("/v1/messagesandmore", Shape.OPENAI),
        ("/run/v1/messages", Shape.OPENAI),  # a run by the name of v1
        ("/V1/Messages", Shape.OPENAI),
        ("/v1/models", Shape.OPENAI),
        ("/run", Shape.OPENAI),
        ("/", Shape.OPENAI),
        ("", Shape.OPENAI),
    ],
)
def test_the_path_says_how_a_refusal_is_read(path: str, shape: Shape) -> None:
    assert shape_for(path, NO_HEADERS) is shape


@pytest.mark.parametrize("path", ["/v1/models", "/v1/files", "/V1/Messages", "/run/r1/v1/models"])
def test_where_the_path_says_nothing_an_anthropic_client_is_known_by_its_version(path: str) -> None:
    assert shape_for(path, ANTHROPICS) is Shape.ANTHROPIC


def test_on_another_dialects_route_the_route_counts() -> None:
    assert shape_for("/v1/chat/completions", ANTHROPICS) is Shape.OPENAI


def test_every_dialect_has_a_route_and_a_name_of_its_own() -> None:
    assert len({dialect.name for dialect in DIALECTS}) == len({dialect.path for dialect in DIALECTS}) == len(DIALECTS)
    assert len(set(METERED_ROUTES)) == len(METERED_ROUTES)
