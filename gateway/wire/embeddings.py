"""OpenAI embeddings. Nothing is written that is billed: the input is counted, and the provider's count of it is what is charged.

Another model's vectors are of no use beside these, so no call is downgraded.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.core.meter import Meter
from gateway.core.values import Output, Part, Usage, UsageSource
from gateway.wire.body import parse_object
from gateway.wire.bulk import parsed_without
from gateway.wire.dialect import Dialect
from gateway.wire.headers import RequestHeaders
from gateway.wire.inputs import inputs
from gateway.wire.passed import passed
from gateway.wire.reading import (
    A_COUNT,
    A_TEXT,
    ROUTED,
    encoded,
    fields_of,
    model_name,
    note_unknown,
    other_texts,
    refuse_other_kinds,
    refuse_variants,
    tokens,
)
from gateway.wire.request import Request

NAME: Final = "embeddings"

# A tokenizer may put a mark before and after each input.
INPUT_OVERHEAD: Final = 2

_KINDS: Final = {"dimensions": A_COUNT, "encoding_format": A_TEXT}
_READ: Final = ROUTED | _KINDS.keys() | {"model", "input", "user"}
_NOT_INPUT: Final = _READ | {"input_type", "output_dtype", "truncate", "embedding_types"}
_NOT_MEANT: Final = frozenset({"user", "encoding_format"})


def read(raw: bytes, headers: RequestHeaders) -> Request:
    """A request body → what it asks for. Refused 400 `ambiguous_request`, with the field at fault."""
    del headers
    body = parse_object(raw)
    refuse_variants(body, _READ)
    refuse_other_kinds(body, _KINDS)
    fragments = encoded(body)
    given = inputs(body, "input", INPUT_OVERHEAD)
    others = other_texts(body, fragments, _NOT_INPUT)
    present = {name for name, value in body.items() if value is not None}
    return Request(
        dialect=NAME,
        model=model_name(body),
        parts=(given.part, Part("other", others)) if others else (given.part,),
        unpriced=tuple(sorted(present & ROUTED)),
        output=Output.NONE,
        inputs=len(given.lengths),
        replaceable=False,
        reasons=False,
        body=body,
        fragments={name: orjson.Fragment(text) for name, text in fragments.items()},
        known=_READ,
        not_meant=_NOT_MEANT,
    )


_USAGE: Final = frozenset(["prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details", "cost"])


def read_usage(usage: Any) -> Usage | None:
    """None where it reports nothing that can be true. Some count only a total."""
    fields: Mapping[str, Any] = fields_of(usage)
    read_tokens = tokens(fields, "prompt_tokens") or tokens(fields, "total_tokens")
    return Usage(UsageSource.PROVIDER, read_tokens) if read_tokens else None


def read_answer(body: bytes, meter: Meter) -> None:
    """One that can't be read has used what was estimated."""
    try:
        answer = parsed_without("embedding", body)
    except orjson.JSONDecodeError:
        return
    reported = fields_of(fields_of(answer).get("usage"))
    usage = read_usage(reported)
    if usage is not None:
        meter.report(usage)
    note_unknown(meter, reported, _USAGE)


DIALECT: Final = Dialect(NAME, "/v1/embeddings", read, read_answer, passed, streamed_types=())
