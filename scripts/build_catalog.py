"""Builds `gateway/data/catalog.json` from two public price tables: facts only, and where the two disagree, the dearer one.

    pip download --no-deps litellm genai-prices
    python -m scripts.build_catalog litellm-*.whl genai_prices-*.whl --as-of 2026-11-22

The same wheels and date make the same bytes. Prices are integer microcents per million tokens (fees: per million pieces), rounded up.
What cannot be priced whole is left out, so that a call to it is refused: `gateway/data/catalog-disagreements.md` lists that, too.
"""

import argparse
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from tiktoken.model import encoding_name_for_model

from gateway.bundled import load_profiles
from gateway.price_file import PIECEWISE_CONTEXT, PIECEWISE_MAX_OUTPUT

DATA: Final = Path(__file__).parent.parent / "gateway" / "data"

# Our provider → litellm's, genai-prices'. A model name two of them share belongs to the first.
PROVIDERS: Final = {
    "openai": (("openai", "text-completion-openai"), "openai"),
    "anthropic": (("anthropic",), "anthropic"),
    "gemini": (("gemini",), "google"),
    "mistral": (("mistral",), "mistral"),
    "deepseek": (("deepseek",), "deepseek"),
    "xai": (("xai",), "x-ai"),
    "groq": (("groq",), "groq"),
    "cohere": (("cohere_chat", "cohere"), "cohere"),
    "perplexity": (("perplexity",), "perplexity"),
}
PREFIX: Final = re.compile(r"^(openai|anthropic|gemini|mistral|deepseek|xai|groq|cohere|perplexity)/(?=.)")

# litellm's mode → the dialects that such a model is asked in. None: as its entry says.
MODES: Final[Mapping[str, tuple[str, ...] | None]] = {
    "chat": None,
    "responses": ("responses",),
    "completion": ("completions",),
    "embedding": ("embeddings",),
    "moderation": ("moderations",),
    "image_generation": ("images", "image_edits"),
    "audio_speech": ("speech",),
    "audio_transcription": ("transcriptions", "translations"),
}
WORDS: Final = frozenset({"chat", "responses", "completion"})  # modes whose answer is text, billed by the token
ENDPOINTS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/completions": "completions",
    "/v1/images/generations": "images",
    "/v1/images/edits": "image_edits",
    "/v1/audio/speech": "speech",
    "/v1/audio/transcriptions": "transcriptions",
}
UNSAID: Final = {"openai": ("chat", "responses")}  # what a chat model is asked in whose entry says nothing

# Never a model that is priced here: by a pattern of its name, in these modes.
LEFT_OUT: Final = (
    (r"deep-research|multi-agent", WORDS, "runs paid tools by itself"),
    (r"guard|container|lyria|tts|robotics|computer-use|omni|realtime|live|-fim-", WORDS, "not a chat model"),
    (r"search-api", WORDS, "what it finds is billed as input, which nothing bounds"),
    (r"pplx|llama|mistral|mixtral|-online$|-chat$|^perplexity/", frozenset({"perplexity"}), "no longer served"),
)
# Every call searches: the fee of a medium search (of a small one at Perplexity) is one of each request; a larger one costs the difference.
SEARCHES: Final = ((r"search-preview", "medium"), (r"^sonar", "low"))
TOKENIZED: Final = WORDS | {"embedding"}  # modes whose input is text, counted by the model's own tokenizer
SIZES: Final = ("low", "medium", "high")

# New models that only genai-prices lists: their own prices, and the limits and abilities of the model they follow.
FOLLOWS: Final = {"claude-fable-5-2": "claude-fable-5-1", "claude-mythos-5-2": "claude-mythos-5-1"}

# Chat parameters of OpenAI's API reference. Its reasoning models refuse the sampling ones, the others refuse the reasoning ones.
COMMON: Final = frozenset(
    [
        "messages",
        "model",
        "stream",
        "stream_options",
        "max_completion_tokens",
        "n",
        "stop",
        "seed",
        "user",
        "metadata",
        "store",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "response_format",
        "service_tier",
        "prompt_cache_key",
        "safety_identifier",
        "modalities",
        "prediction",
    ]
)
SAMPLING: Final = frozenset(
    ["temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "max_tokens"]
)
REASONING: Final = frozenset({"reasoning_effort", "verbosity"})

CAPABILITIES: Final = (
    ("tools", "supports_function_calling"),
    ("vision", "supports_vision"),
    ("json_schema", "supports_response_schema"),
    ("files", "supports_pdf_input"),
    ("audio_input", "supports_audio_input"),
    ("audio_output", "supports_audio_output"),
)
OPENAI_PREVIEW_SEARCH: Final = "0.025"  # `web_search_preview` at a model that does not reason; the newer tool costs less
# By OpenAI's price list of 2026-11, in US dollars for one: whatever model asks for it. Sessions go by the container's memory.
OPENAI_TOOLS: Final = {
    "web_searches": "0.01",
    "file_searches": "0.0025",
    "code_sessions": "0.03",
    "code_sessions/1g": "0.03",
    "code_sessions/4g": "0.12",
    "code_sessions/16g": "0.48",
    "code_sessions/64g": "1.92",
}
# What a model of these modes takes or gives at its prices, whatever its entry says.
THERE_FOR: Final = {"image_generation": {"vision"}, "audio_speech": {"audio_output"}, "audio_transcription": {"audio_input"}}
CLASSES: Final = ("input", "output", "cached_input", "cache_write", "cache_write_long")
LITELLM_KEYS: Final = {
    "input": ("input_cost_per_token",),
    "output": ("output_cost_per_token", "output_cost_per_reasoning_token"),
    "cached_input": ("cache_read_input_token_cost", "input_cost_per_token_cache_hit"),
    "cache_write": ("cache_creation_input_token_cost",),
    "cache_write_long": ("cache_creation_input_token_cost_above_1hr", "cache_creation_input_token_cost_above_12hr"),
    "audio_input": ("input_cost_per_audio_token",),
    "cached_audio": ("cache_read_input_audio_token_cost",),
    "audio_output": ("output_cost_per_audio_token",),
    "image_input": ("input_cost_per_image_token",),
    "cached_image": ("cache_read_input_image_token_cost",),
    "image_output": ("output_cost_per_image_token",),
}
GENAI_KEYS: Final = {
    "input": ("input_mtok",),
    "output": ("output_mtok",),
    "cached_input": ("cache_read_mtok",),
    "cache_write": ("cache_write_mtok", "cache_write_5m_mtok"),
    "cache_write_long": ("cache_write_1h_mtok",),
    "audio_input": ("input_audio_mtok",),
    "cached_audio": ("cache_audio_read_mtok",),
    "audio_output": ("output_audio_mtok",),
    "image_input": ("input_image_mtok",),
    "cached_image": ("cache_image_read_mtok",),
    "image_output": ("output_image_mtok",),
}
OTHERS: Final = tuple(sorted(LITELLM_KEYS.keys() - set(CLASSES)))
# Who reports sound and images apart from text. Elsewhere the dearer price holds for all of the output, and dearer input is withheld.
DETAILED: Final = frozenset({"openai"})
# What the client writes → the words for it in litellm, in genai-prices. OpenAI renamed `priority` to `fast`; both are accepted.
SERVICE_TIERS: Final = {
    "batch": ("_batches", "batch"),
    "flex": ("_flex", "flex"),
    "priority": ("_priority", "priority"),
    "fast": ("_priority", "fast"),
    "ultrafast": ("_ultrafast", ""),
}
OPENAI_ONLY: Final = {"fast", "ultrafast"}

INSTEAD: Final = {"cached_input": "input", "cache_write": "input", "cache_write_long": "cache_write"}

Row = list[Any]  # the start of a tier, the price of each of CLASSES, and perhaps a map of OTHERS
Prices = dict[str, dict[int, int]]  # class → {tokens the tier starts above → microcents per million tokens}


@dataclass(slots=True)
class Notes:
    """What a reader of the catalog should know: where the sources differ, and what was left out."""

    disagreements: list[tuple[str, ...]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def microcents(usd: Decimal, per_tokens: int) -> int | None:
    """USD for so many tokens → microcents per million tokens, rounded up. None for what must not pass as a price: 0, less, NaN."""
    if not usd.is_finite() or usd <= 0:
        return None
    return int((usd * 100_000_000 * (1_000_000 // per_tokens)).to_integral_value(ROUND_CEILING))


def litellm_prices(entry: Mapping[str, Any], suffix: str) -> Prices:
    """Keys look like `input_cost_per_token_above_200k_tokens_priority`."""
    prices: Prices = {}
    for name, keys in LITELLM_KEYS.items():
        for key in keys:
            for found, value in entry.items():
                match = re.fullmatch(rf"{key}(?:_above_(\d+)k_tokens)?{suffix}", found)
                if match is None or isinstance(value, bool) or not isinstance(value, int | Decimal):
                    continue
                price = microcents(Decimal(value), 1)
                if price is not None:
                    tiers = prices.setdefault(name, {})
                    above = int(match[1] or 0) * 1000
                    tiers[above] = max(price, tiers.get(above, 0))
    return prices


def genai_prices(model: Any, tier: str, as_of: datetime) -> Prices:
    """The dearest of the prices in force on that day and those announced for later: some hours may be cheaper."""
    conditional = model.prices if isinstance(model.prices, list) else []
    standing = [model.get_prices(as_of, {"service_tier": tier} if tier else None)]
    standing += [
        entry.prices
        for entry in conditional
        if not tier
        and (entry.constraint is None or getattr(entry.constraint, "start_date", as_of.date()) >= as_of.date())
        # An entry without a constraint is history once a dated one is in force.
        and not (
            entry.constraint is None
            and any(getattr(other.constraint, "start_date", date.max) <= as_of.date() for other in conditional)
        )
    ]
    changed = {
        key
        for v in model.price_variants or ()
        if v.when == {"service_tier": tier}
        for key, price in vars(v.prices).items()
        if price is not None
    }
    prices: Prices = {}
    for name, keys in GENAI_KEYS.items():
        for key in keys:
            if tier and key not in changed:
                continue
            for standard in standing:
                listed = getattr(standard, key, None)
                if listed is None:
                    continue
                steps = (
                    [(0, listed)]
                    if isinstance(listed, Decimal)
                    else [(0, listed.base), *((t.start, t.price) for t in listed.tiers)]
                )
                for above, usd in steps:
                    price = microcents(usd, 1_000_000)
                    if price is not None:
                        tiers = prices.setdefault(name, {})
                        tiers[above] = max(price, tiers.get(above, 0))
    return prices


def fee(usd: Any, pieces: int = 1) -> int:
    """USD for so many pieces → microcents per million pieces, rounded up."""
    return int((Decimal(usd) * 100_000_000 * 1_000_000 / pieces).to_integral_value(ROUND_CEILING))


def fees(provider: str, name: str, mode: str, entries: list[Mapping[str, Any]], second: Any, by_token: bool) -> dict[str, int]:
    """What is billed by the piece. `by_token`: the model's tokens are priced, which then pay for its work."""
    found: dict[str, int] = {}
    for piece, usd, pieces in (*_listed(entries, by_token), *_listed_second(second, by_token)):
        if isinstance(usd, int | Decimal) and usd > 0:
            found[piece] = max(found.get(piece, 0), fee(usd, pieces))
    _fold_searches(name, found)
    if provider == "openai" and mode in ("chat", "responses"):
        tools = dict(OPENAI_TOOLS)
        if not any(e.get("supports_reasoning") is True for e in entries):
            tools["web_searches"] = OPENAI_PREVIEW_SEARCH
        for piece, usd in tools.items():
            if "requests" not in found or piece != "web_searches":  # which stands for the searches of such a model
                found[piece] = max(found.get(piece, 0), fee(Decimal(usd)))
    if any(piece.startswith("images") for piece in found):
        found["images"] = max(price for piece, price in found.items() if piece.startswith("images"))
    return dict(sorted(found.items()))


def _listed(entries: list[Mapping[str, Any]], by_token: bool) -> Iterable[tuple[str, Any, int]]:
    for entry in entries:
        yield "requests", entry.get("input_cost_per_request"), 1
        sizes = entry.get("search_context_cost_per_query", {})
        for size in SIZES:
            yield f"web_searches/{size}", sizes.get(f"search_context_size_{size}"), 1
        if by_token:
            continue
        for kind, usd in entry.get("kinds", ()):
            yield f"images/{kind}", usd, 1
        yield "characters", entry.get("input_cost_per_character"), 1
        for side in ("input", "output"):
            yield "images", entry.get(f"{side}_cost_per_image"), 1
            yield "audio_seconds", entry.get(f"{side}_cost_per_second"), 1


def _listed_second(second: Any, by_token: bool) -> Iterable[tuple[str, Any, int]]:
    """Not its fees of requests, which are those of Perplexity's largest search."""
    prices = None if second is None or isinstance(second.prices, list) else second.prices
    yield "web_searches", getattr(prices, "web_searches_kcount", None), 1000
    if not by_token:
        yield "audio_seconds", getattr(prices, "audio_hours", None), 3600
        yield "characters", getattr(prices, "input_mchars", None), 1_000_000


def _fold_searches(name: str, found: dict[str, int]) -> None:
    """One fee where all sizes cost the same; of a model that searches at every call, what a size costs beside the request's own fee."""
    any_size = found.pop("web_searches", 0)
    by_size = {size: max(any_size, found.pop(f"web_searches/{size}", 0)) for size in SIZES}
    if not any(by_size.values()):
        return
    usual = next((size for pattern, size in SEARCHES if re.search(pattern, name)), None)
    if usual is not None:
        found["requests"] = max(found.get("requests", 0), by_size[usual])
        by_size = {size: max(0, price - found["requests"]) for size, price in by_size.items()}
    found["web_searches"] = max(by_size.values())
    if len(set(by_size.values())) > 1:
        found.update((f"web_searches/{size}", price) for size, price in by_size.items())


def at(tiers: Mapping[int, int], above: int) -> int | None:
    """The price of a call just over so many input tokens."""
    starts = [start for start in tiers if start <= above]
    return tiers[max(starts)] if starts else None


def merge(
    name: str, sources: Iterable[tuple[str, Prices]], notes: Notes, writes: bool = True, detailed: bool = False
) -> list[Row] | None:
    """Tiers `[above, input, output, cached input, cache write, long cache write]`, each rate the dearest that any source lists, and after
    these the other classes that have a price of their own. `writes`: the model bills its output by the token."""
    listed = [
        (source, prices)
        for source, prices in sources
        if at(prices.get("input", {}), 0)
        and (not writes or any(at(prices.get(rate, {}), 0) for rate in ("output", "image_output", "audio_output")))
    ]
    if not listed:
        return None
    starts = sorted({0, *(start for _, prices in listed for tiers in prices.values() for start in tiers)})
    # "Above 200k" in one table is "from 200,000 on" in the other: one tier, the earlier one.
    starts = [start for start in starts if start - 1 not in starts]
    merged: list[Row] = []
    for start in starts:
        row: dict[str, int] = {}
        for rate in (*CLASSES, *OTHERS):
            found = {source: price for source, prices in listed if (price := at(prices.get(rate, {}), start + 1))}
            if len(set(found.values())) > 1:
                notes.disagreements.append(
                    (
                        name,
                        f"{rate}, above {start:,}" if start else rate,
                        *(usd(found.get(s)) for s in ("litellm", "genai-prices")),
                    )
                )
            if found or rate in INSTEAD:
                # A rate that nobody lists is the rate of plain input (for long cache writes: of short ones).
                row[rate] = max(found.values(), default=row.get(INSTEAD[rate], 0) if rate in INSTEAD else 0)
        row["cache_write_long"] = max(row["cache_write_long"], row["cache_write"])
        others = {rate: row[rate] for rate in OTHERS if rate in row}
        written = max((price for rate, price in others.items() if rate.endswith("_output")), default=0)
        if not writes:
            row["output"] = 0
        elif "output" not in row or not detailed:
            row["output"] = max(row.get("output", 0), written)
        merged.append([start, *(row[rate] for rate in CLASSES), *([others] if others and detailed else [])])
    return [merged[0], *(later for earlier, later in pairwise(merged) if later[1:] != earlier[1:])]


def usd(price: int | None) -> str:
    return "–" if price is None else f"${Decimal(price) / 100_000_000:f}"


def floor_by(tiers: list[Row], base: list[Row]) -> list[Row]:
    """A service tier that has no price of its own for long input is billed there as the standard one, if that is dearer."""
    starts = {row[0] for row in base}
    own = {row[0] - 1 if row[0] - 1 in starts else row[0]: row[1:] for row in tiers}  # "above 200k", again
    rows: list[Row] = []
    for start in sorted({*own, *(row[0] for row in base)}):
        rates = own[max(s for s in own if s <= start)]
        standard = next(row[1:] for row in reversed(base) if row[0] <= start)
        rows.append([start, *(rates if start in own else dearer(rates, standard))])
    return [rows[0], *(later for earlier, later in pairwise(rows) if later[1:] != earlier[1:])]


def dearer(rates: Row, standard: Row) -> Row:
    """Class by class, the dearer of both."""
    count = len(CLASSES)
    others = [row[count] if len(row) > count else {} for row in (rates, standard)]
    merged = {rate: max(row.get(rate, 0) for row in others) for rate in sorted(set().union(*others))}
    return [*map(max, rates[:count], standard[:count]), *([merged] if merged else [])]


def encoding_of(name: str) -> str | None:
    """As tiktoken says; `o200k_harmony` is `o200k_base` with more special tokens, which text cannot contain."""
    try:
        found = encoding_name_for_model(name.removeprefix("openai/")).replace("o200k_harmony", "o200k_base")
        return found if found in ("o200k_base", "cl100k_base") else None
    except KeyError:
        return None


def unusable(provider: str, name: str, mode: str, entries: list[Mapping[str, Any]]) -> str | None:
    """Why a model is left out, or None."""
    for pattern, where, reason in LEFT_OUT:
        if (mode in where or provider in where) and re.search(pattern, name):
            return reason
    for entry in entries:
        if mode in WORDS and any(entry.get(f"output_cost_per_{kind}") for kind in ("video_token", "second")):
            return "its output is not text alone, and other output is dearer"
    return None


def dialects_of(provider: str, mode: str, entries: list[Mapping[str, Any]]) -> list[str] | None:
    """None: not known."""
    by_mode, endpoints = MODES[mode], {each for entry in entries for each in entry.get("supported_endpoints", ())}
    found = {ENDPOINTS[each] for each in endpoints if each in ENDPOINTS}
    if by_mode is not None:
        return sorted({*found, *by_mode}) if found or not endpoints else []
    return sorted(found or UNSAID.get(provider, ())) or None


def facts(
    provider: str, name: str, mode: str, entries: list[Mapping[str, Any]], context_window: int | None
) -> dict[str, Any] | None:
    """Limits and abilities. Two entries for one name: only what both can do, and the smaller limits."""

    def least(*keys: str) -> int | None:
        found = [int(e[key]) for e in entries for key in keys if isinstance(e.get(key), int | Decimal) and int(e[key]) > 0]
        return min(found) if found else None

    max_input = least("max_input_tokens") or context_window
    if max_input is None and mode in WORDS:
        return None
    max_input = max_input or PIECEWISE_CONTEXT
    max_output = least("max_output_tokens") or (max_input if mode in WORDS else min(max_input, PIECEWISE_MAX_OUTPUT))
    context = max(max_input, context_window or 0)
    if provider == "gemini":
        context = max(context, max_input + max_output)  # Google states input and output limits side by side
    able = {ours for ours, theirs in CAPABILITIES if all(e.get(theirs) is True for e in entries)} | THERE_FOR.get(mode, set())
    for ability, key in (("audio_input", "input_cost_per_audio_token"), ("vision", "input_cost_per_image_token")):
        # Dearer than text, and the provider's report won't tell how much of it there was: the model counts as unable.
        if provider not in DETAILED and any(e.get(key, 0) > e.get("input_cost_per_token", 0) for e in entries):
            able.discard(ability)
    if mode in WORDS and not any(e.get("output_cost_per_audio_token") for e in entries):
        able.discard("audio_output")
    reasoning = any(e.get("supports_reasoning") is True for e in entries)
    parameters: frozenset[str] | None = None
    if provider == "openai" and mode == "chat":
        parameters = COMMON | (REASONING if reasoning else SAMPLING)
    elif any(e.get("supports_sampling_params") is False for e in entries):
        parameters = COMMON | REASONING | {"max_tokens"}
    return {
        "context": context,
        "max_input": max_input,
        "max_output": min(max_output, context),
        "capabilities": sorted(able),
        "reasoning": reasoning,
        "encoding": encoding_of(name) if mode in TOKENIZED else None,
        "parameters": None if parameters is None else sorted(parameters),
    }


def build(
    litellm: Mapping[str, Any], find: Callable[[str, str], Any], as_of: datetime, notes: Notes
) -> dict[str, dict[str, Any]]:
    """Model name → what `gateway.bundled` reads."""
    models: dict[str, dict[str, Any]] = {}
    profiles = load_profiles()
    for provider, (theirs, _) in PROVIDERS.items():
        spoken = profiles[provider].dialects or frozenset()
        for (name, mode), found in sorted(entries_of(litellm, theirs).items()):
            if MODES[mode] is not None and spoken.isdisjoint(MODES[mode] or ()):
                continue
            reason = unusable(provider, name, mode, found)
            second = find(provider, name)
            model = None if reason else _model(provider, name, mode, found, second, as_of, notes)
            if isinstance(model, dict) and name not in models:
                models[name] = model
            else:
                notes.left_out[f"{provider}: {name}"] = reason or ("name taken" if isinstance(model, dict) else model or "")
    return dict(sorted(models.items()))


def entries_of(litellm: Mapping[str, Any], theirs: tuple[str, ...]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """(model, mode) → the entries about it. What an image of some quality and size costs stands under names of their own."""
    entries: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    kinds: dict[str, list[tuple[str, Any]]] = {}
    for key, entry in litellm.items():
        mode = entry.get("mode")
        if entry.get("litellm_provider") not in theirs or mode not in MODES:
            continue
        kind = re.fullmatch(r"(?:(\w+)/)?(\d+)-x-(\d+)/(.+)", key)
        if kind is not None and entry.get("input_cost_per_image"):
            quality = f"{kind[1]}/" if kind[1] else ""
            kinds.setdefault(kind[4], []).append((f"{quality}{kind[2]}x{kind[3]}", entry["input_cost_per_image"]))
        elif "/" not in key or PREFIX.match(key):
            entries.setdefault((PREFIX.sub("", key), mode), []).append(entry)
    for name, found in kinds.items():
        if (name, "image_generation") in entries:
            entries[name, "image_generation"].append({**entries[name, "image_generation"][0], "kinds": found})
    for name, followed in FOLLOWS.items():
        if (followed, "chat") in entries and (name, "chat") not in entries:
            entries[name, "chat"] = [
                {key: value for key, value in e.items() if "cost" not in key and key != "deprecation_date"}
                for e in entries[followed, "chat"]
            ]
    return entries


def _model(
    provider: str, name: str, mode: str, found: list[Mapping[str, Any]], second: Any, as_of: datetime, notes: Notes
) -> dict[str, Any] | str:
    """One model, or why it is left out."""
    detailed, writes = provider in DETAILED, mode not in ("embedding", "moderation")
    sources = [("litellm", litellm_prices(e, "")) for e in found]
    if second is not None:
        sources.append(("genai-prices", genai_prices(second, "", as_of)))
    tiers = merge(name, sources, notes, writes, detailed)
    by_piece = fees(provider, name, mode, found, second, tiers is not None)
    limits = facts(provider, name, mode, found, second.context_window if second else None)
    if limits is None:
        return "no limits known"
    free = mode == "moderation" and all(e.get("input_cost_per_token") == 0 for e in found)
    if tiers is None and not free:
        if not any(piece.split("/")[0] in ("images", "audio_seconds", "characters") for piece in by_piece):
            return "no price above zero"
        tiers = [[0, 0, 0, 0, 0, 0]]
    service: dict[str, list[Row]] = {}
    for tier, (suffix, word) in SERVICE_TIERS.items():
        if tiers is None or (tier in OPENAI_ONLY and provider != "openai"):
            continue
        priced = [("litellm", litellm_prices(e, suffix)) for e in found]
        if second is not None and word:
            priced.append(("genai-prices", genai_prices(second, word, as_of)))
        rates = merge(f"{name} ({tier})", priced, notes, writes, detailed)
        if rates is not None:
            service[tier] = floor_by([with_others(row, tiers) for row in rates], tiers)
    retired = any(date.fromisoformat(e["deprecation_date"]) <= as_of.date() for e in found if e.get("deprecation_date"))
    dialects = dialects_of(provider, mode, found)
    if dialects == []:
        return "not served on any route that is metered"
    return {
        "provider": provider,
        "tiers": tiers or [],
        "service_tiers": service,
        **limits,
        **({"fees": by_piece} if by_piece else {}),
        **({"dialects": dialects} if dialects is not None else {}),
        **({"free": True} if free else {}),
        **({"retired": True} if retired else {}),
    }


def with_others(row: Row, base: list[Row]) -> Row:
    """A service tier without a price of its own for sound or images bills these as the standard one."""
    standard = next(each for each in reversed(base) if each[0] <= row[0])
    count = len(CLASSES) + 1
    others = {**(standard[count] if len(standard) > count else {}), **(row[count] if len(row) > count else {})}
    return [*row[:count], *([others] if others else [])]


def write(models: Mapping[str, Mapping[str, Any]], notes: Notes, as_of: date) -> str:
    """One model a line: a new price is one line of diff."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(model, separators=(',', ':'))}" for name, model in models.items())
    version = f"{as_of.isoformat()}-{hashlib.sha256(lines.encode()).hexdigest()[:8]}"
    (DATA / "catalog.json").write_text(f'{{"version": "{version}", "models": {{\n{lines}\n}}}}\n', encoding="utf-8")
    report = [
        "# Where the catalog's sources disagree",
        f"\nGenerated with catalog {version}. USD per million tokens; the dearer price is the one we use.\n",
        "| model | rate | litellm | genai-prices |\n|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in dict.fromkeys(notes.disagreements)),
        "\n## Left out\n\nA call to one of these is refused as not priced, unless the configuration prices it.\n",
        "| model | why |\n|---|---|",
        *(f"| {name} | {why} |" for name, why in sorted(notes.left_out.items())),
    ]
    (DATA / "catalog-disagreements.md").write_text("\n".join(report) + "\n", encoding="utf-8")
    return version


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("litellm", type=Path, help="the litellm wheel")
    arguments.add_argument("genai_prices", type=Path, help="the genai-prices wheel")
    arguments.add_argument("--as-of", type=date.fromisoformat, required=True, help="the day whose prices hold, YYYY-MM-DD")
    given = arguments.parse_args()
    with zipfile.ZipFile(given.litellm) as wheel:
        litellm = json.loads(wheel.read("litellm/model_prices_and_context_window_backup.json"), parse_float=Decimal)
    sys.path.insert(0, str(given.genai_prices))  # a pure wheel imports from its zip
    from genai_prices.data import providers

    by_id = {provider.id: provider for provider in providers}
    notes = Notes()
    as_of = datetime(given.as_of.year, given.as_of.month, given.as_of.day, tzinfo=UTC)
    models = build(litellm, lambda ours, name: by_id[PROVIDERS[ours][1]].find_model(name), as_of, notes)
    version = write(models, notes, given.as_of)
    print(f"{version}: {len(models)} models, {len(notes.disagreements)} disagreements, {len(notes.left_out)} left out")


if __name__ == "__main__":
    main()
