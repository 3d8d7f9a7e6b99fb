"""OpenAI completions, the older surface: a text is continued. Many prompts in one request are so many answers."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.core.meter import Meter
from gateway.core.profiles import Profile
from gateway.core.tokens import utf8_length
from gateway.core.values import Part, Plan
from gateway.wire.body import parse_object
from gateway.wire.chat import MAX_CHOICES, ChatStream, take_usage, usage_asked, wants_usage
from gateway.wire.dialect import Dialect
from gateway.wire.headers import RequestHeaders
from gateway.wire.inputs import Inputs, inputs
from gateway.wire.reading import (
    A_COUNT,
    A_SWITCH,
    A_TEXT,
    AN_OBJECT,
    ROUTED,
    dicts,
    encoded,
    model_name,
    not_a,
    other_texts,
    refuse_other_kinds,
    refuse_variants,
)
from gateway.wire.request import Request

NAME: Final = "completions"

# Some servers put a mark before each prompt; between prompt and suffix, models that fill in have up to three.
PROMPT_OVERHEAD: Final = 1
SUFFIX_OVERHEAD: Final = 3

# llama.cpp's second output cap, which wins over the first, and vLLM's prompts that are not text.
_UNPRICED: Final = ROUTED | {"n_predict", "prompt_embeds"}
_CHOICES: Final = (int, f"an integer from 1 to {MAX_CHOICES}")
_KINDS: Final = {
    "stream": A_SWITCH,
    "stream_options": AN_OBJECT,
    "n": _CHOICES,
    "best_of": _CHOICES,
    "max_tokens": A_COUNT,
    "suffix": A_TEXT,
    "echo": A_SWITCH,
    "service_tier": A_TEXT,
}
_READ: Final = _UNPRICED | _KINDS.keys() | {"model", "prompt", "user"}
_NOT_INPUT: Final = _READ | {"logit_bias", "metadata", "stop", "stop_token_ids", "prompt_cache_key", "safety_identifier"}
_UNIVERSAL: Final = frozenset({"model", "prompt", "stream", "stream_options", "max_tokens", "user", "metadata"})
_NOT_MEANT: Final = frozenset({"stream", "stream_options", "metadata", "user"})


class CompletionRequest(Request):
    """A completion request that was read."""

    __slots__ = ("each", "echoed")

    echoed: tuple[int, ...]  # the characters that come before each prompt's answer; () where none do
    each: int  # answers to one prompt

    def encode(self, plan: Plan, profile: Profile, takes: frozenset[str] | None = None) -> bytes:
        """The cap is always written: the provider's own default would be 16 tokens at one, and the whole context at another."""
        del takes
        body = {**self.body, **self.fragments, "model": plan.model, "max_tokens": plan.output_cap}
        body |= usage_asked(self, profile)
        return orjson.dumps(body)


def read(raw: bytes, headers: RequestHeaders) -> CompletionRequest:
    """A request body → what it asks for. Refused 400 `ambiguous_request`, with the field at fault."""
    del headers
    body = parse_object(raw)
    refuse_variants(body, _READ)
    refuse_other_kinds(body, _KINDS)
    fragments = encoded(body)
    given = inputs(body, "prompt", PROMPT_OVERHEAD) if body.get("prompt") is not None else _NO_PROMPT
    prompts = len(given.lengths)
    parts = [given.part]
    if suffix := body.get("suffix"):
        # Read with each prompt, but tokenized once: a small request could else have gigabytes counted. The others by their bytes, a bound.
        again = (prompts - 1) * utf8_length(suffix)
        parts += [Part("suffix", (suffix,), SUFFIX_OVERHEAD * prompts + again)]
    if others := other_texts(body, fragments, _NOT_INPUT):
        parts.append(Part("other", others))
    wanted, best_of = _choices(body, "n"), _choices(body, "best_of")
    if body.get("stream") and best_of > wanted:
        # What is written and not sent would be billed unseen. OpenAI refuses it, too.
        raise not_a("best_of", "at most n in a stream")
    present = {name for name, value in body.items() if value is not None}
    request = CompletionRequest(
        dialect=NAME,
        model=model_name(body),
        stream=body.get("stream") or False,
        choices=prompts * max(wanted, best_of),
        client_cap=body.get("max_tokens"),
        cap_field="max_tokens",
        wants_usage=wants_usage(body),
        service_tier=body.get("service_tier"),
        parts=tuple(parts),
        parameters=frozenset(present - _UNIVERSAL),
        unpriced=tuple(sorted(present & _UNPRICED)),
        inputs=prompts,
        body=body,
        fragments={name: orjson.Fragment(text) for name, text in fragments.items()},
        known=_READ,
        not_meant=_NOT_MEANT,
    )
    # What tokens stand for is not known here: their echo counts as output, which over-counts.
    request.echoed = tuple(length or 0 for length in given.lengths) if body.get("echo") else ()
    request.each = wanted
    return request


_NO_PROMPT: Final = Inputs(Part("prompt", (), PROMPT_OVERHEAD), (0,))


def _choices(body: Mapping[str, Any], name: str) -> int:
    wanted: int = body.get(name) or 1
    if wanted > MAX_CHOICES:
        raise not_a(name, _CHOICES[1])
    return wanted


# -- the answer ---------------------------------------------------------------------------------------------------------------


def read_answer(body: bytes, meter: Meter) -> None:
    """Meters a whole answer. One that can't be read is metered as text: all of it, which over-counts."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if type(answer) is not dict:
        meter.text(body.decode(errors="replace"))
        return
    take_usage(answer.get("usage"), meter)
    if meter.needs_text:
        for choice in dicts(answer.get("choices")):
            text = choice.get("text")
            if type(text) is str:
                meter.text(text)
    meter.served_at(answer.get("service_tier"))


class CompletionStream(ChatStream):
    """As of a chat; a choice's text is its own."""

    def __init__(self, meter: Meter, request: Request) -> None:
        super().__init__(meter, not request.wants_usage)
        assert isinstance(request, CompletionRequest)
        self._each = request.each
        self._echo = dict(enumerate(request.echoed))  # prompt → characters of it that are still to come, for each of its choices
        self._left: dict[int, int] = {}  # the same by choice

    def _meter_choice(self, choice: Mapping[str, Any]) -> None:
        text, index = choice.get("text"), choice.get("index")
        if type(text) is not str:
            return
        if self._echo and type(index) is int:
            left = self._left.get(index, self._echo.get(index // self._each, 0))
            self._left[index] = max(0, left - len(text))
            text = text[left:]
        if text:
            self._meter.text(text)

    def _text_alone(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
        match event.get("choices"):
            case [{"text": str(text)} as choice] if text and not self._echo:
                return choice, "text"
        return None

    def _cut_choice(self, index: int) -> Mapping[str, Any]:
        choice = {"index": index, "text": "", "logprobs": None, "finish_reason": "length"}
        return {"object": "text_completion", "choices": [choice]}


DIALECT: Final = Dialect(NAME, "/v1/completions", read, read_answer, CompletionStream)
