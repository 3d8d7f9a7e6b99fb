"""What a provider counts in its report, and nobody here knows, is told in every dialect: it may be billed."""

from typing import Any

import orjson
import pytest

from gateway.wire.dialects import DIALECTS
from tests.support.recorder import Recorder

PLAIN: dict[str, dict[str, Any]] = {
    "chat": {"prompt_tokens": 9, "completion_tokens": 9},
    "completions": {"prompt_tokens": 9, "completion_tokens": 9},
    "responses": {"input_tokens": 9, "output_tokens": 9, "total_tokens": 18},
    "messages": {"input_tokens": 9, "output_tokens": 9},
    "embeddings": {"prompt_tokens": 9, "total_tokens": 9},
    "images": {"input_tokens": 9, "output_tokens": 9, "total_tokens": 18},
    "transcriptions": {"type": "tokens", "input_tokens": 9, "output_tokens": 9, "total_tokens": 18},
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_count_that_nobody_knows_is_told(name: str) -> None:
    dialect = next(each for each in DIALECTS if each.name == name)
    plain, odd = Recorder(), Recorder()
    dialect.read_answer(orjson.dumps({"usage": PLAIN[name]}), plain)
    dialect.read_answer(orjson.dumps({"usage": {**PLAIN[name], "scent_tokens": 3}}), odd)
    assert plain.unknown == set()
    assert {each.removeprefix("usage.") for each in odd.unknown} == {"scent_tokens"}
    assert odd.reports == plain.reports
