"""What counting step N of a growing conversation costs: the new message, not the 50,000 tokens before it."""

import statistics
import time
from collections.abc import Sequence

import orjson

from gateway.bundled import load_encoding, load_tokenizer
from gateway.core.tokens import TokenCounter
from gateway.core.values import Part
from gateway.demo.replies import Writer

_MESSAGES = 400
_TOKENS = 125  # a message
_STEPS = 30


def table() -> str:
    """Medians over the steps of one conversation; the messages come off the wire anew each time, so no string is one seen before."""
    writer = Writer(load_encoding("o200k_base"), shortest=_TOKENS, longest=_TOKENS)
    texts = [
        writer.reply({"model": "m", "messages": [{"role": "user", "content": str(i)}]}).choices[0].text
        for i in range(_MESSAGES + _STEPS)
    ]
    counter = TokenCounter(load_tokenizer)
    counter.count_parts([Part("user", ("warm",))], "o200k_base")
    whole_us, tokens = _timed(counter, texts[:_MESSAGES])
    grown_us, alone_us = [], []
    for step in range(_MESSAGES, _MESSAGES + _STEPS):
        grown_us.append(_timed(counter, texts[: step + 1])[0])
        alone_us.append(_timed(TokenCounter(load_tokenizer), texts[step : step + 1])[0])
    rows = (
        (f"{tokens:,} tokens in {_MESSAGES} messages, never seen", whole_us),
        ("the same, grown by one message", statistics.median(grown_us)),
        ("that message alone, never seen", statistics.median(alone_us)),
    )
    lines = [f"| {what} | {microseconds:,.0f} |" for what, microseconds in rows]
    return "**Counting a conversation**\n\n| | µs |\n|---|---|\n" + "\n".join(lines)


def _timed(counter: TokenCounter, texts: Sequence[str]) -> tuple[float, int]:
    parts = [Part("user", (text,)) for text in orjson.loads(orjson.dumps(list(texts)))]
    began = time.perf_counter()
    tokens = counter.count_parts(parts, "o200k_base")
    return (time.perf_counter() - began) * 1e6, tokens
