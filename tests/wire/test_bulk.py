"""What is cut out of an answer leaves the rest as it is."""

import json
import random
from typing import Any

import orjson
import pytest

from gateway.wire.bulk import parsed_without

USAGE = {"prompt_tokens": 7, "total_tokens": 7}


def emptied(value: Any) -> Any:
    """What is expected, the slow way."""
    if isinstance(value, dict):
        return {name: type(of)() if name == "bulk" and isinstance(of, str | list) else emptied(of) for name, of in value.items()}
    return [emptied(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("bulk", ["A" * 30_000, [0.25, -1e-7, 3] * 5_000, [], "", None, {"bulk": "x" * 9}, [{"no": 1}], 5])
def test_bulk_is_emptied_and_everything_else_stays(bulk: Any, separators: tuple[str, str]) -> None:
    data = [{"index": number, "bulk": bulk, "note": 'says "bulk":"x" and \\'} for number in range(3)]
    answer = {"data": data, "filling": "y" * 70_000, 'odd "bulk': "kept", "usage": USAGE}
    body = json.dumps(answer, separators=separators).encode()
    found = parsed_without("bulk", body)
    odd = found.pop('odd "bulk')
    assert odd in ("kept", "")
    del answer['odd "bulk']
    assert found == emptied(answer)


@pytest.mark.parametrize("bulk", ['a "quoted" one', "ends with \\", [[1, 2], [3]], ["a]b"]])
def test_what_is_no_bulk_after_all_is_parsed_whole(bulk: Any) -> None:
    answer = {"data": [{"bulk": bulk}], "filling": "y" * 70_000, "usage": USAGE}
    assert parsed_without("bulk", orjson.dumps(answer)) == answer


def test_a_small_answer_is_parsed_whole() -> None:
    assert parsed_without("bulk", b'{"bulk":"AAAA"}') == {"bulk": "AAAA"}


@pytest.mark.parametrize("broken", [b'{"bulk":"AAA', b'{"bulk":[1,2', b'{"bulk":[1],', b'{"bulk":"A" "B"}', b'["bulk":"A"}'])
def test_what_is_no_json_is_none_without_its_bulk(broken: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        parsed_without("bulk", b" " * 70_000 + broken)


def test_no_text_that_a_string_can_hold_hides_what_is_reported() -> None:
    draw = random.Random(3)
    pieces = ['"bulk":', '"', "\\", '\\"bulk":"', "[", "]", '"usage":{"prompt_tokens":1}', ",", "}", "x", "\n", "é"]
    for _ in range(3_000):
        texts = ["".join(draw.choices(pieces, k=draw.randrange(8))) for _ in range(4)]
        bulk: Any = draw.choice(("A" * 50, [1, 2], texts[3], [texts[3]]))
        answer = {texts[0]: texts[1], "data": [{"note": texts[2], "bulk": bulk}], "usage": USAGE, "filling": "y" * 70_000}
        assert parsed_without("bulk", orjson.dumps(answer))["usage"] == USAGE
