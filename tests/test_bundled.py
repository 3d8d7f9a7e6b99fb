"""What ships in the package: the catalog knows today's models and leans dear, the ranks are OpenAI's, nothing touches the network."""

import hashlib
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway import bundled
from gateway.core.catalog import Catalog, Model, Rates
from gateway.core.measures import WORK, measure_of
from gateway.core.money import parse_usd
from gateway.core.profiles import OnDisconnect

RANKS = Path(bundled.__file__).parent / "data" / "ranks"
ROOT = Path(__file__).parents[1]
PUBLISHED = {  # as tiktoken_ext.openai_public states them
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return bundled.load_catalog()


def every_tier(catalog: Catalog) -> list[tuple[Model, tuple[Rates, ...]]]:
    return [(m, tiers) for m in catalog.models.values() for tiers in (m.tiers, *(rates for _, rates in m.service_tiers))]


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("gpt-6-astra", "openai"),
        ("gpt-6.1-sol", "openai"),
        ("gpt-5.1", "openai"),
        ("gpt-5", "openai"),
        ("gpt-5-mini", "openai"),
        ("gpt-5-nano", "openai"),
        ("gpt-4.1", "openai"),
        ("gpt-4o", "openai"),
        ("gpt-4o-mini", "openai"),
        ("o3", "openai"),
        ("claude-fable-5-2", "anthropic"),
        ("claude-opus-5-5", "anthropic"),
        ("claude-sonnet-5-5", "anthropic"),
        ("claude-sonnet-4-5", "anthropic"),
        ("claude-haiku-4-5", "anthropic"),
        ("gemini-2.5-pro", "gemini"),
        ("gemini-2.5-flash", "gemini"),
        ("gemini-3.8-flash", "gemini"),
        ("mistral-large-latest", "mistral"),
        ("deepseek-v4-pro", "deepseek"),
        ("grok-4.7", "xai"),
        ("openai/gpt-oss-120b", "groq"),
        ("command-a-03-2025", "cohere"),
        ("sonar-pro", "perplexity"),
        ("gpt-5.3-codex", "openai"),
        ("gpt-audio-mini", "openai"),
        ("text-embedding-3-small", "openai"),
        ("gpt-image-1.5", "openai"),
        ("gpt-4o-mini-tts", "openai"),
        ("tts-1", "openai"),
        ("gpt-4o-transcribe", "openai"),
        ("whisper-large-v3-turbo", "groq"),
        ("grok-imagine-image", "xai"),
        ("davinci-002", "openai"),
    ],
)
def test_the_catalog_knows_the_current_models_of_the_big_providers(catalog: Catalog, name: str, provider: str) -> None:
    model = catalog.find(name)
    assert model is not None
    assert model.provider == provider
    assert model.priced
    assert not model.free


def test_a_price_is_microcents_per_million_tokens(catalog: Catalog) -> None:
    """GPT-5: $1.25 in, $0.125 cached, $10.00 out."""
    model = catalog.models["gpt-5"]
    assert model.tiers == (
        Rates(parse_usd("1.25"), parse_usd("10"), parse_usd("0.125"), parse_usd("1.25"), cache_write_long=parse_usd("1.25")),
    )
    assert (model.context, model.max_input, model.max_output) == (400_000, 272_000, 128_000)
    assert {"tools", "vision", "json_schema"} <= model.capabilities


def test_no_price_in_the_catalog_is_free_or_negative(catalog: Catalog) -> None:
    for model, tiers in every_tier(catalog):
        for rates in tiers:
            long = rates.cache_write_long
            assert long is not None, model.name
            assert long >= rates.cache_write, model.name
            assert all(price > 0 for _, price in rates.others), model.name
            if work_by_the_piece(model):
                assert (rates.input, rates.output) == (0, 0), model.name
                continue
            assert min(rates.input, rates.cached_input, rates.cache_write) > 0, model.name
            assert (rates.output > 0) != (model.dialects == {"embeddings"}), model.name


def work_by_the_piece(model: Model) -> bool:
    return any(measure_of(piece) in WORK and price > 0 for piece, price in model.fees)


def test_nothing_is_free_but_moderation(catalog: Catalog) -> None:
    assert {model.dialects for model in catalog.models.values() if model.free} == {frozenset({"moderations"})}


def dollars(usd: str) -> int:
    """For one piece: fees are held per million."""
    return parse_usd(usd) * 1_000_000


def test_sound_and_images_have_their_own_prices(catalog: Catalog) -> None:
    audio, image = catalog.models["gpt-audio"], catalog.models["gpt-image-1.5"]
    assert dict(audio.tiers[0].others) == {"audio_input": parse_usd("32"), "audio_output": parse_usd("64")}
    assert {"audio_input", "audio_output"} <= audio.capabilities
    assert dict(image.tiers[0].others) == {
        "image_input": parse_usd("8"),
        "cached_image": parse_usd("2"),
        "image_output": parse_usd("32"),
    }
    assert image.tiers[0].output == parse_usd("10")
    assert "vision" in image.capabilities


def test_what_is_billed_by_the_piece_has_its_fee(catalog: Catalog) -> None:
    assert catalog.models["tts-1-hd"].fees == (("characters", 3_000_000_000),)
    assert catalog.models["whisper-1"].fees == (("audio_seconds", dollars("0.0001")),)
    assert catalog.models["grok-imagine-image-2.0"].fee("images/low/1024x1024") == dollars("0.04")
    assert catalog.models["grok-imagine-image-2.0"].fee("images/high/1536x1024") == dollars("0.06")


def test_a_model_that_searches_at_every_call_has_a_fee_of_each_request(catalog: Catalog) -> None:
    assert dict(catalog.models["gpt-4o-search-preview"].fees)["requests"] == dollars("0.025")
    assert catalog.models["gpt-4o-search-preview"].fee("web_searches/high") == 0
    sonar = catalog.models["sonar-pro"]
    fees = [sonar.fee(piece) for piece in ("requests", "web_searches/low", "web_searches/medium", "web_searches/high")]
    assert fees == [dollars("0.006"), 0, dollars("0.004"), dollars("0.008")]


def test_the_providers_own_tools_have_fees(catalog: Catalog) -> None:
    assert catalog.models["claude-sonnet-4-5"].fee("web_searches") == dollars("0.01")
    gpt = catalog.models["gpt-5"]
    fees = [gpt.fee(piece) for piece in ("web_searches", "file_searches", "code_sessions", "code_sessions/4g")]
    assert fees == [dollars("0.01"), dollars("0.0025"), dollars("0.03"), dollars("0.12")]
    assert catalog.models["gpt-4o"].fee("web_searches") == dollars("0.025")


def test_a_fine_tuned_model_has_the_price_of_its_base(catalog: Catalog) -> None:
    tuned = catalog.find("ft:gpt-4o-mini-2024-07-18:acme::A1b2")
    assert tuned is not None
    assert (tuned.name, tuned.tiers[0].input) == ("ft:gpt-4o-mini-2024-07-18:acme::A1b2", parse_usd("0.30"))
    assert catalog.provider_of("ft:gpt-4o-mini-2024-07-18:acme::A1b2") == "openai"
    assert catalog.find("ft:gpt-unknown:acme::A1b2") is None


def test_a_model_names_what_it_can_be_asked_in(catalog: Catalog) -> None:
    assert catalog.models["gpt-5-pro"].dialects == {"responses"}
    assert catalog.models["gpt-4o"].dialects == {"chat", "responses"}
    assert catalog.models["gpt-3.5-turbo-instruct"].dialects == {"completions"}
    assert catalog.models["claude-sonnet-4-5"].dialects is None
    known = {dialect for model in catalog.models.values() for dialect in model.dialects or ()}
    assert known <= {dialect for profile in bundled.load_profiles().values() for dialect in profile.dialects or ()}


def test_batches_cost_half(catalog: Catalog) -> None:
    model = catalog.models["gpt-4o"]
    assert dict(model.service_tiers)["batch"][0].output * 2 == model.tiers[0].output


def test_tiers_start_at_zero_and_rise(catalog: Catalog) -> None:
    for model, tiers in every_tier(catalog):
        if model.free:
            continue
        assert tiers[0].above_input_tokens == 0, model.name
        for lower, upper in pairwise(tiers):
            assert lower.above_input_tokens < upper.above_input_tokens, model.name
            assert upper.input >= lower.input, model.name
            assert upper.output >= lower.output, model.name


def test_long_input_is_dearer_where_the_provider_says_so(catalog: Catalog) -> None:
    short, long = catalog.models["gemini-2.5-pro"].tiers
    assert long.above_input_tokens == 200_000
    assert (short.input, long.input) == (parse_usd("1.25"), parse_usd("2.50"))
    assert (short.output, long.output) == (parse_usd("10"), parse_usd("15"))


def test_service_tiers_have_their_own_prices(catalog: Catalog) -> None:
    tiers = dict(catalog.models["gpt-5"].service_tiers)
    assert tiers["flex"][0].input == parse_usd("0.625")
    assert tiers["priority"][0].output == parse_usd("20")
    assert tiers["fast"] == tiers["priority"]


def test_limits_make_sense(catalog: Catalog) -> None:
    for model in catalog.models.values():
        assert 0 < model.max_output <= model.context, model.name
        assert model.max_input is not None, model.name
        assert 0 < model.max_input <= model.context, model.name


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-5.1", "o200k_base"),
        ("o3", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("claude-opus-5-5", None),
    ],
)
def test_a_model_names_its_tokenizer_if_it_has_a_public_one(catalog: Catalog, name: str, encoding: str | None) -> None:
    assert catalog.models[name].encoding == encoding


def test_every_encoding_that_the_catalog_names_is_bundled(catalog: Catalog) -> None:
    assert {model.encoding for model in catalog.models.values()} == {*bundled.ENCODINGS, None}


def test_openai_reasoning_models_do_not_take_sampling_parameters_nor_the_others_an_effort(catalog: Catalog) -> None:
    reasoning, plain = catalog.models["gpt-5-mini"].parameters, catalog.models["gpt-4o-mini"].parameters
    assert reasoning is not None
    assert plain is not None
    assert "reasoning_effort" in reasoning - plain
    assert {"temperature", "max_tokens"} <= plain - reasoning


def test_a_provider_that_does_not_tell_images_from_text_is_charged_all_output_as_images(catalog: Catalog) -> None:
    assert catalog.models["gemini-2.5-flash-image"].tiers[0].output == parse_usd("30")


@pytest.mark.parametrize("name", ["o3-deep-research", "sonar-deep-research", "gpt-realtime", "gpt-5-search-api"])
def test_a_model_whose_calls_nothing_bounds_has_no_price(catalog: Catalog, name: str) -> None:
    assert catalog.find(name) is None


def test_the_catalog_has_a_version_of_day_and_content(catalog: Catalog) -> None:
    day, digest = catalog.version.rsplit("-", 1)
    stored = (RANKS.parent / "catalog.json").read_text(encoding="utf-8")
    lines = stored.split("{\n", 1)[1].rsplit("\n}}", 1)[0]
    assert len(day) == len("2026-11-22")
    assert digest == hashlib.sha256(lines.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    ("name", "cap_field", "stream_options", "on_disconnect", "covers_all"),
    [
        ("openai", "max_completion_tokens", True, OnDisconnect.DRAIN, True),
        ("azure", "max_completion_tokens", True, OnDisconnect.DRAIN, True),
        ("anthropic", "max_tokens", True, OnDisconnect.DRAIN, True),
        ("mistral", "max_tokens", False, OnDisconnect.DRAIN, True),
        ("llama.cpp", "max_tokens", True, OnDisconnect.COUNT, False),
        ("generic", "max_tokens", True, OnDisconnect.DRAIN, True),
    ],
)
def test_each_provider_is_asked_in_its_own_way(
    name: str, cap_field: str, stream_options: bool, on_disconnect: OnDisconnect, covers_all: bool
) -> None:
    profile = bundled.load_profiles()[name]
    assert profile.name == name
    assert (profile.output_cap_field, profile.stream_options) == (cap_field, stream_options)
    assert (profile.on_disconnect, profile.usage_covers_all_choices) == (on_disconnect, covers_all)


def test_every_provider_of_the_catalog_has_a_profile(catalog: Catalog) -> None:
    assert {model.provider for model in catalog.models.values()} <= bundled.load_profiles().keys()


@pytest.mark.parametrize("name", bundled.ENCODINGS)
def test_the_ranks_are_the_published_ones(name: str) -> None:
    assert hashlib.sha256((RANKS / f"{name}.tiktoken").read_bytes()).hexdigest() == PUBLISHED[name]


@pytest.mark.parametrize(
    ("encoding", "text", "tokens"),
    [
        ("o200k_base", "hello world", [24912, 2375]),
        ("cl100k_base", "hello world", [15339, 1917]),
        ("o200k_base", "", []),
        ("o200k_base", "Grüße, 世界! 🌍", None),
    ],
)
def test_an_encoding_gives_the_known_tokens_and_loses_nothing(encoding: str, text: str, tokens: list[int] | None) -> None:
    loaded = bundled.load_encoding(encoding)
    found = loaded.encode_ordinary(text)
    assert loaded.decode(found) == text
    assert tokens is None or found == tokens


def texts_of_every_kind() -> list[str]:
    """The project's own pages and code, cut anywhere, and characters at random: few, many, of all planes and of those that are split on."""
    chance = random.Random(5)
    pages = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("gateway/core/*.py"))]
    cut = [page[at : at + chance.randrange(1, 3_000)] for page in pages for at in range(0, len(page), 4_000)]
    planes = (range(32, 127), range(0x80, 0xD800), range(0xE000, 0x110000), (10, 32, 32, 9))
    wild = ["".join(chr(chance.choice(chance.choice(planes))) for _ in range(chance.randrange(1, 80))) for _ in range(2_000)]
    split = ["".join(chance.choice(" \n\t\r'ſaZs9١İß一あé̈<|>") for _ in range(chance.randrange(1, 60))) for _ in range(2_000)]
    return ["", " " * 5_000, "ab" * 5_000, "a<|endoftext|>b", *cut, *wild, *split]


@pytest.mark.parametrize("name", bundled.ENCODINGS)
def test_the_fast_tokenizer_counts_what_tiktoken_counts(name: str) -> None:
    fast, exact = bundled.load_tokenizer(name), bundled.load_encoding(name)
    assert type(fast).__module__.startswith("toktok") or type(fast).__name__ == "Tokenizer"
    wrong = [text for text in texts_of_every_kind() if fast.count(text) != len(exact.encode_ordinary(text))]
    assert wrong == []


@pytest.mark.parametrize("installed", [None, SimpleNamespace(_encoding=lambda _: SimpleNamespace(count=len))])
def test_where_the_fast_tokenizer_is_missing_or_wrong_tiktoken_counts(installed: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "toktok", installed)
    for name, tokens in bundled._SAMPLE_TOKENS.items():
        assert bundled.load_tokenizer.__wrapped__(name).count(bundled._SAMPLE) == tokens
        assert len(bundled.load_encoding(name).encode_ordinary(bundled._SAMPLE)) == tokens


def test_an_encoding_is_built_once() -> None:
    assert bundled.load_encoding("cl100k_base") is bundled.load_encoding("cl100k_base")


def test_an_encoding_that_is_not_bundled_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"p50k_base.*o200k_base, cl100k_base"):
        bundled.load_encoding("p50k_base")


def test_ranks_that_were_altered_are_refused() -> None:
    with pytest.raises(bundled.BundledDataDamaged, match="cl100k_base"):
        bundled.load_ranks("cl100k_base", PUBLISHED["o200k_base"])


def test_loading_everything_touches_no_network_and_leaves_tiktoken_as_it_was() -> None:
    program = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("touched the network")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from gateway import bundled
from tiktoken_ext import openai_public
before = dict(vars(openai_public))
bundled.load_catalog(), bundled.load_profiles()
for name in bundled.ENCODINGS:
    assert len(bundled.load_encoding(name).encode("hello world")) == 2
assert vars(openai_public) == before
assert "requests" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
