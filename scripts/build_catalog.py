"""Builds `gateway/data/catalog.json` from two public price tables: facts only, and where the two disagree, the dearer one.

    pip download --no-deps litellm genai-prices
    python -m scripts.build_catalog litellm-*.whl genai_prices-*.whl --as-of 2026-11-22

The same wheels and date make the same bytes. Prices are integer microcents per million tokens, rounded up. What cannot be priced
whole is left out, so that a call to it is refused: `gateway/data/catalog-disagreements.md` lists that, too.
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

DATA: Final = Path(__file__).parent.parent / "gateway" / "data"

# Our provider → litellm's, genai-prices'. A model name two of them share belongs to the first.
PROVIDERS: Final = {
    "openai": (("openai",), "openai"),
    "anthropic": (("anthropic",), "anthropic"),
    "gemini": (("gemini",), "google"),
    "mistral": (("mistral",), "mistral"),
    "deepseek": (("deepseek",), "deepseek"),
    "xai": (("xai",), "x-ai"),
    "groq": (("groq",), "groq"),
    "cohere": (("cohere_chat",), "cohere"),
}
PREFIX: Final = re.compile(r"^(openai|anthropic|gemini|mistral|deepseek|xai|groq|cohere)/(?=.)")

# Never a chat model that tokens alone pay for.
NOT_CHAT: Final = (
    (r"^ft:", "fine-tuned names are the operator's own"),
    (r"deep-research|multi-agent", "runs paid tools by itself"),
    (r"search-preview|search-api", "every call pays a search fee"),
    (r"guard|container|lyria|tts|robotics|computer-use|omni|realtime|live|-fim-", "not a chat model"),
)

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
)
CLASSES: Final = ("input", "output", "cached_input", "cache_write", "cache_write_long")
LITELLM_KEYS: Final = {
    "input": ("input_cost_per_token",),
    "output": ("output_cost_per_token", "output_cost_per_reasoning_token"),
    "cached_input": ("cache_read_input_token_cost", "input_cost_per_token_cache_hit"),
    "cache_write": ("cache_creation_input_token_cost",),
    "cache_write_long": ("cache_creation_input_token_cost_above_1hr", "cache_creation_input_token_cost_above_12hr"),
}
GENAI_KEYS: Final = {
    "input": ("input_mtok",),
    "output": ("output_mtok",),
    "cached_input": ("cache_read_mtok",),
    "cache_write": ("cache_write_mtok", "cache_write_5m_mtok"),
    "cache_write_long": ("cache_write_1h_mtok",),
}
# What the client writes → the words for it in litellm, in genai-prices. OpenAI renamed `priority` to `fast`; both are accepted.
SERVICE_TIERS: Final = {
    "flex": ("_flex", "flex"),
    "priority": ("_priority", "priority"),
    "fast": ("_priority", "fast"),
    "ultrafast": ("_ultrafast", ""),
}
OPENAI_ONLY: Final = {"fast", "ultrafast"}

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


def at(tiers: Mapping[int, int], above: int) -> int | None:
    """The price of a call just over so many input tokens."""
    starts = [start for start in tiers if start <= above]
    return tiers[max(starts)] if starts else None


def merge(name: str, sources: Iterable[tuple[str, Prices]], notes: Notes) -> list[list[int]] | None:
    """Tiers `[above, input, output, cached input, cache write, long cache write]`, each rate the dearest that any source lists."""
    listed = [
        (source, prices) for source, prices in sources if at(prices.get("input", {}), 0) and at(prices.get("output", {}), 0)
    ]
    if not listed:
        return None
    starts = sorted({0, *(start for _, prices in listed for tiers in prices.values() for start in tiers)})
    # "Above 200k" in one table is "from 200,000 on" in the other: one tier, the earlier one.
    starts = [start for start in starts if start - 1 not in starts]
    merged: list[list[int]] = []
    for start in starts:
        row: dict[str, int] = {}
        for rate in CLASSES:
            found = {source: price for source, prices in listed if (price := at(prices.get(rate, {}), start + 1))}
            if len(set(found.values())) > 1:
                notes.disagreements.append(
                    (
                        name,
                        f"{rate}, above {start:,}" if start else rate,
                        *(usd(found.get(s)) for s in ("litellm", "genai-prices")),
                    )
                )
            # A rate that nobody lists is the rate of plain input (for long cache writes: of short ones).
            row[rate] = max(found.values(), default=row.get("cache_write" if rate == "cache_write_long" else "input", 0))
        row["cache_write_long"] = max(row["cache_write_long"], row["cache_write"])
        merged.append([start, *(row[rate] for rate in CLASSES)])
    return [merged[0], *(later for earlier, later in pairwise(merged) if later[1:] != earlier[1:])]


def usd(price: int | None) -> str:
    return "–" if price is None else f"${Decimal(price) / 100_000_000:f}"


def floor_by(tiers: list[list[int]], base: list[list[int]]) -> list[list[int]]:
    """A service tier that has no price of its own for long input is billed there as the standard one, if that is dearer."""
    own = {row[0]: row[1:] for row in tiers}
    rows: list[list[int]] = []
    for start in sorted({*own, *(row[0] for row in base)}):
        rates = own[max(s for s in own if s <= start)]
        standard = next(row[1:] for row in reversed(base) if row[0] <= start)
        rows.append([start, *(rates if start in own else map(max, rates, standard))])
    return [rows[0], *(later for earlier, later in pairwise(rows) if later[1:] != earlier[1:])]


def encoding_of(name: str) -> str | None:
    """As tiktoken says; `o200k_harmony` is `o200k_base` with more special tokens, which text cannot contain."""
    try:
        return encoding_name_for_model(name.removeprefix("openai/")).replace("o200k_harmony", "o200k_base")
    except KeyError:
        return None


def unusable(name: str, entries: list[Mapping[str, Any]]) -> str | None:
    """Why a model is left out, or None."""
    for pattern, reason in NOT_CHAT:
        if re.search(pattern, name):
            return reason
    for entry in entries:
        if "/v1/chat/completions" not in entry.get("supported_endpoints", ["/v1/chat/completions"]):
            return "not served on /v1/chat/completions"
        other = max(entry.get(f"output_cost_per_{kind}_token", 0) for kind in ("audio", "image", "video"))
        if other > entry.get("output_cost_per_token", 0):
            return "its output is not text alone, and other output is dearer"
    return None


def facts(provider: str, name: str, entries: list[Mapping[str, Any]], context_window: int | None) -> dict[str, Any] | None:
    """Limits and abilities. Two entries for one name: only what both can do, and the smaller limits."""

    def least(*keys: str) -> int | None:
        found = [int(e[key]) for e in entries for key in keys if isinstance(e.get(key), int | Decimal) and int(e[key]) > 0]
        return min(found) if found else None

    max_input = least("max_input_tokens") or context_window
    if max_input is None:
        return None
    max_output = least("max_output_tokens") or max_input
    context = max(max_input, context_window or 0)
    if provider == "gemini":
        context = max(context, max_input + max_output)  # Google states input and output limits side by side
    able = {ours for ours, theirs in CAPABILITIES if all(e.get(theirs) is True for e in entries)}
    for ability, key in (("audio_input", "input_cost_per_audio_token"), ("vision", "input_cost_per_image_token")):
        # Dearer than text: nothing here prices that, so the model counts as unable.
        if any(e.get(key, 0) > e.get("input_cost_per_token", 0) for e in entries):
            able.discard(ability)
    reasoning = any(e.get("supports_reasoning") is True for e in entries)
    parameters: frozenset[str] | None = None
    if provider == "openai":
        parameters = COMMON | (REASONING if reasoning else SAMPLING)
    elif any(e.get("supports_sampling_params") is False for e in entries):
        parameters = COMMON | REASONING | {"max_tokens"}
    return {
        "context": context,
        "max_input": max_input,
        "max_output": min(max_output, context),
        "capabilities": sorted(able),
        "reasoning": reasoning,
        "encoding": encoding_of(name),
        "parameters": None if parameters is None else sorted(parameters),
    }


def build(
    litellm: Mapping[str, Any], find: Callable[[str, str], Any], as_of: datetime, notes: Notes
) -> dict[str, dict[str, Any]]:
    """Model name → what `gateway.bundled` reads."""
    models: dict[str, dict[str, Any]] = {}
    for provider, (theirs, _) in PROVIDERS.items():
        entries: dict[str, list[Mapping[str, Any]]] = {}
        for key, entry in litellm.items():
            if entry.get("litellm_provider") in theirs and entry.get("mode") == "chat":
                entries.setdefault(PREFIX.sub("", key), []).append(entry)
        for name, followed in FOLLOWS.items():
            if followed in entries and name not in entries:
                entries[name] = [
                    {key: value for key, value in e.items() if "cost" not in key and key != "deprecation_date"}
                    for e in entries[followed]
                ]
        for name, found in sorted(entries.items()):
            reason = unusable(name, found)
            second = find(provider, name)
            sources = [("litellm", litellm_prices(e, "")) for e in found]
            if second is not None:
                sources.append(("genai-prices", genai_prices(second, "", as_of)))
            tiers = merge(name, sources, notes) if reason is None else None
            limits = facts(provider, name, found, second.context_window if second else None)
            if reason or tiers is None or limits is None or name in models:
                notes.left_out[f"{provider}: {name}"] = reason or (
                    "no price above zero" if tiers is None else "no limits known" if limits is None else "name taken"
                )
                continue
            service: dict[str, list[list[int]]] = {}
            for tier, (suffix, word) in SERVICE_TIERS.items():
                if tier in OPENAI_ONLY and provider != "openai":
                    continue
                priced = [("litellm", litellm_prices(e, suffix)) for e in found]
                if second is not None and word:
                    priced.append(("genai-prices", genai_prices(second, word, as_of)))
                rates = merge(f"{name} ({tier})", priced, notes)
                if rates is not None:
                    service[tier] = floor_by(rates, tiers)
            retired = any(date.fromisoformat(e["deprecation_date"]) <= as_of.date() for e in found if e.get("deprecation_date"))
            models[name] = {
                "provider": provider,
                "tiers": tiers,
                "service_tiers": service,
                **limits,
                **({"retired": True} if retired else {}),
            }
    return dict(sorted(models.items()))


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
