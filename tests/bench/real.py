"""How far the estimate of the input lies from what a real model server counts. Needs the extra `local`."""

import json
import urllib.request
from typing import Final

import orjson

from gateway.bundled import load_tokenizer
from gateway.core.catalog import Model
from gateway.core.estimate import input_tokens
from gateway.core.scopes import Caller
from gateway.core.tokens import TokenCounter
from gateway.core.values import Directives
from gateway.demo import local_model
from gateway.wire import chat
from gateway.wire.headers import NO_HEADERS

_MODEL: Final = Model("gemma", "local", (), context=8192, max_output=2048, capabilities=frozenset({"tools"}))
_TEXTS: Final = {
    "English prose": "The river rises in the hills and runs past the mill to the sea, and nobody has yet measured all of it. "
    * 15,
    "Python": "def price_of(tokens: int, rate: int) -> int:\n    return -(-tokens * rate // 1_000_000)\n" * 15,
    "JSON": json.dumps([{"id": number, "name": f"item {number}", "price": number * 1.25} for number in range(60)]),
    "Russian, Japanese, emoji": "Привет, как дела? 今日はいい天気ですね。 🦞 " * 25,
    "a short question": "What is the capital of France?",
}


def table() -> str:
    """One row a kind of text; says so where there is no real model to ask."""
    title = "**The estimate beside a real model's own count of the input**\n\n"
    if not local_model.installed():
        return title + "Not measured: the extra `local` is not installed."
    counter = TokenCounter(load_tokenizer)
    lines = []
    with local_model.running() as server:
        for kind, text in _TEXTS.items():
            body = orjson.dumps({"model": "gemma", "messages": [{"role": "user", "content": text}], "max_tokens": 1})
            call = chat.read(body, NO_HEADERS).call(Caller("t", "k", "r", "r"), Directives())
            estimated, actual = input_tokens(call, _MODEL, counter), _counted_by(server.base_url, body)
            lines.append(f"| {kind} | {estimated} | {actual} | {estimated / actual:.2f} |")
    about = "gemma-3-270m on llama.cpp: no tokenizer is bundled for it, so a factor stands in (`core/tokens.py`).\n\n"
    return f"{title}{about}| input | estimate | actual | estimate ÷ actual |\n|---|---|---|---|\n" + "\n".join(lines)


def _counted_by(base_url: str, body: bytes) -> int:
    request = urllib.request.Request(f"{base_url}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        usage = json.load(answer)["usage"]
    return int(usage["prompt_tokens"])
