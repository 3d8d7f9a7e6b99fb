"""Input that is one text or many, or tokens instead of text: the forms that completions and embeddings share."""

from collections.abc import Mapping
from typing import Any, Final

from gateway.core.record import record
from gateway.core.values import Part
from gateway.wire.reading import not_a

MAX_INPUTS: Final = 4_096
_FORMS: Final = f"a text, a list of 1 to {MAX_INPUTS:,} texts, a list of tokens, or a list of such lists"


@record
class Inputs:
    """`part` has all of them. `lengths`: the characters of each; None for one that came as tokens."""

    part: Part
    lengths: tuple[int | None, ...]


def inputs(body: Mapping[str, Any], name: str, overhead_tokens: int = 0) -> Inputs:
    """Refused where the field has none of the forms. `overhead_tokens`: of each. A token that came as such counts one, whatever its
    number: it is read by the model's own tokenizer."""
    value = body.get(name)
    if type(value) is str:
        return Inputs(Part(name, (value,), overhead_tokens), (len(value),))
    if type(value) is not list or not len(value) > 0:
        raise not_a(name, _FORMS)
    kinds = set(map(type, value))
    if kinds == {int}:
        return Inputs(Part(name, (), overhead_tokens + len(value)), (None,))
    if len(value) > MAX_INPUTS:
        raise not_a(name, _FORMS)
    overhead_tokens *= len(value)
    if kinds == {str}:
        return Inputs(Part(name, tuple(value), overhead_tokens), tuple(map(len, value)))
    if kinds == {list} and all(set(map(type, tokens)) <= {int} for tokens in value):
        return Inputs(Part(name, (), overhead_tokens + sum(map(len, value))), (None,) * len(value))
    raise not_a(name, _FORMS)
