"""The path of a call in each of the smaller dialects: held, relayed, charged by what the provider said, given back where it refused."""

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from gateway.core.catalog import Model, Rates
from gateway.core.measures import AUDIO_INPUT, AUDIO_SECONDS, CHARACTERS, IMAGE_INPUT, IMAGE_OUTPUT
from gateway.core.money import format_usd
from gateway.core.policy import OutputPolicy
from gateway.core.values import Pieces
from gateway.ledger.contract import CallRecord
from gateway.wire import completions, embeddings, images, moderations, speech, transcriptions
from gateway.wire.dialect import Dialect
from tests.support.flow import Client, World, world
from tests.support.provider import Behaviour, FaultProvider
from tests.support.rulebooks import policy
from tests.support.sound import wav

DOLLAR = 100_000_000


HEARS, SPEAKS, SEES = frozenset({"audio_input"}), frozenset({"audio_output"}), frozenset({"vision"})


def priced(name: str, input_usd: float, output_usd: float = 0, others: Pieces = (), **facts: Any) -> Model:
    """Dollars per million tokens."""
    given, written = int(input_usd * DOLLAR), int(output_usd * DOLLAR)
    defaults: dict[str, Any] = {"context": 8_192, "max_output": 4_096, "encoding": "cl100k_base"}
    return Model(name, "test", (Rates(given, written, given, given, others=others),), **{**defaults, **facts})


MODELS = [
    priced("embed", 0.02),
    priced("instruct", 1.5, 2),
    Model("moderate", "test", (), context=32_768, max_output=0, free=True),
    priced("whisper", 0, fees=((AUDIO_SECONDS, DOLLAR * 100),), capabilities=HEARS),  # $0.0001 a second
    priced("transcribe", 2.5, 10, others=((AUDIO_INPUT, 6 * DOLLAR),), capabilities=HEARS),
    priced("tts", 0, fees=((CHARACTERS, 15 * DOLLAR),), capabilities=SPEAKS),
    priced("mini-tts", 0.6, 12, capabilities=SPEAKS),
    priced("gpt-image-1.5", 5, 0, others=((IMAGE_INPUT, 8 * DOLLAR), (IMAGE_OUTPUT, 32 * DOLLAR)), capabilities=SEES),
    priced("painter", 0, fees=(("images", 4 * 10**6 * 10**6), ("images/hd/1024x1024", 8 * 10**6 * 10**6)), capabilities=SEES),
]


def charged(record: CallRecord) -> str:
    assert record.charged is not None
    return format_usd(record.charged.usd)


async def asked(here: World, dialect: Dialect, run: str = "r1", client: Client | None = None, **body: Any) -> Client:
    return await here.ask(orjson.dumps(body), run, client, dialect)


# -- embeddings -------------------------------------------------------------------------------------------------------------------


async def test_vectors_are_charged_by_the_provider_s_count(tmp_path: Path, provider: FaultProvider) -> None:
    answer = {"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 5, "total_tokens": 5}}
    provider.next(Behaviour(body=orjson.dumps(answer)))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(here, embeddings.DIALECT, model="embed", input=["hello there", "you"])
        record = await here.record()
    assert (got.status, got.json) == (200, answer)
    assert provider.requests[0].target == "/v1/embeddings"
    assert provider.requests[0].json == {"model": "embed", "input": ["hello there", "you"]}
    assert charged(record) == "0.0000001"  # 5 × $0.02 / 1,000,000
    assert record.usage is not None
    assert (record.usage.input_tokens, record.usage.output_tokens) == (5, 0)
    assert record.held.tokens == 3 + 2 * embeddings.INPUT_OVERHEAD


async def test_more_inputs_than_one_context_holds_are_no_reason_to_refuse(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"usage": {"prompt_tokens": 16000, "total_tokens": 16000}}'))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        assert (await asked(here, embeddings.DIALECT, model="embed", input=["word " * 2_000] * 8)).status == 200
        assert charged(await here.record()) == "0.00032"


async def test_vectors_without_a_count_are_charged_by_ours(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"data": []}'))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        await asked(here, embeddings.DIALECT, model="embed", input=[1, 2, 3])
        record = await here.record()
    assert record.usage is not None
    assert (record.usage.source, record.usage.input_tokens) == ("counted", 3 + embeddings.INPUT_OVERHEAD)
    assert record.charged == record.held


# -- completions ------------------------------------------------------------------------------------------------------------------


async def test_every_prompt_s_answers_are_held(tmp_path: Path, provider: FaultProvider) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 30, "total_tokens": 32}
    provider.next(Behaviour(body=orjson.dumps({"choices": [], "usage": usage})))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        await asked(here, completions.DIALECT, model="instruct", prompt=["a", "b"], n=2, best_of=3, max_tokens=10)
        record = await here.record()
    assert provider.requests[0].target == "/v1/completions"
    assert record.held.tokens == 2 * (1 + completions.PROMPT_OVERHEAD) + 2 * 3 * 10
    assert charged(record) == "0.000063"  # 2 × $1.50 + 30 × $2 a million


async def test_a_completion_without_a_cap_gets_the_policy_s(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"choices": []}'))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        await asked(here, completions.DIALECT, model="instruct", prompt="a")
    assert provider.requests[0].json["max_tokens"] == 4_096


async def test_a_streamed_completion_is_relayed_and_its_usage_taken_out(tmp_path: Path, provider: FaultProvider) -> None:
    stream = (Path(__file__).parent / "wire/streams/completions/openai.sse").read_bytes()
    provider.next(Behaviour(body=stream, content_type="text/event-stream"))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(here, completions.DIALECT, model="instruct", prompt="a", max_tokens=20, stream=True)
        record = await here.record()
    assert provider.requests[0].json["stream_options"] == {"include_usage": True}
    assert b'"usage"' not in got.body
    assert got.body.endswith(b"data: [DONE]\n\n")
    assert charged(record) == "0.0000215"  # 5 × $1.50 + 7 × $2 a million


# -- moderations ------------------------------------------------------------------------------------------------------------------


async def test_a_free_moderation_passes_with_nothing_left(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"id": "modr-1", "results": []}'))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await here.ask(b'{"model": "moderate", "input": "hi"}', dialect=moderations.DIALECT, **{"X-Run-Limit": "$0"})
        assert (got.status, charged(await here.record())) == (200, "0.00")


# -- transcriptions ---------------------------------------------------------------------------------------------------------------


def form(sound: bytes, **texts: str) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://h", data=texts, files={"file": ("a.wav", sound, "audio/wav")})
    return request.read(), request.headers["Content-Type"]


async def heard(here: World, sound: bytes, **texts: str) -> Client:
    body, content_type = form(sound, **texts)
    return await here.ask(body, "r1", None, transcriptions.DIALECT, **{"Content-Type": content_type})


async def test_sound_that_is_billed_by_the_second_is_held_by_its_length(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"text": "hi", "usage": {"type": "duration", "seconds": 2}}'))
    provider.next(Behaviour(body=b"1\n00:00:00,000 --> 00:00:02,000\nhi\n", content_type="text/plain"))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        assert (await heard(here, wav(2.5), model="whisper")).json["text"] == "hi"
        record = await here.record()
        assert (format_usd(record.held.usd), charged(record)) == ("0.0003", "0.0002")
        assert (await heard(here, wav(2.5), model="whisper", response_format="srt")).body.startswith(b"1\n00")
        assert charged(await here.record()) == "0.0003"  # nothing was told: what was bounded
    sent = provider.requests[0]
    assert sent.target == "/v1/audio/transcriptions"
    assert (sent.header("content-type") or "").startswith("multipart/form-data; boundary=")
    assert wav(2.5) in sent.body


async def test_sound_that_is_billed_by_the_token_is_charged_by_its_classes(tmp_path: Path, provider: FaultProvider) -> None:
    usage = {
        "type": "tokens",
        "input_tokens": 30,
        "input_token_details": {"text_tokens": 5, "audio_tokens": 25},
        "output_tokens": 4,
    }
    provider.next(Behaviour(body=orjson.dumps({"text": "hi", "usage": usage})))
    stream = (Path(__file__).parent / "wire/streams/transcriptions/openai.sse").read_bytes()
    provider.next(Behaviour(body=stream, content_type="text/event-stream"))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        await heard(here, wav(2.5), model="transcribe")
        record = await here.record()
        assert charged(record) == "0.0002025"  # 5 × $2.50 + 25 × $6 + 4 × $10 a million
        assert record.held.usd >= 20_250
        assert (await heard(here, wav(2.5), model="transcribe", stream="true")).body == stream
        assert charged(await here.record()) == "0.00052"  # 4 × $2.50 + 10 × $6 + 45 × $10


# -- speech -----------------------------------------------------------------------------------------------------------------------


async def test_characters_are_charged_as_many_as_there_are(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b"\xff\xfb" * 40_000, content_type="audio/mpeg"))
    small = policy(output=OutputPolicy(max_tokens=10))  # of tokens, which this model does not bill
    async with world(tmp_path, provider.base_url, small, models=MODELS) as here:
        got = await asked(here, speech.DIALECT, model="tts", input="hello there", voice="coral")
        record = await here.record()
    assert (got.body, got.headers["content-type"], got.whole) == (b"\xff\xfb" * 40_000, "audio/mpeg", True)
    assert (charged(record), format_usd(record.held.usd)) == ("0.000165", "0.000165")  # 11 × $15 a million


async def test_sound_without_a_report_is_charged_as_held_and_with_one_as_told(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b"\xff\xfb", content_type="audio/mpeg"))
    stream = (Path(__file__).parent / "wire/streams/speech/openai.sse").read_bytes()
    provider.next(Behaviour(body=stream, content_type="text/event-stream"))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        await asked(here, speech.DIALECT, model="mini-tts", input="hello there", voice="coral")
        record = await here.record()
        assert record.held.tokens == 2 + speech.sound_tokens("hello there")
        assert record.charged == record.held
        got = await asked(here, speech.DIALECT, model="mini-tts", input="hello there", voice="coral", stream_format="sse")
        assert got.body == stream
        assert charged(await here.record()) == "0.0012204"  # 14 × $0.60 + 101 × $12 a million


async def test_speech_beyond_the_policy_s_output_is_refused(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(output=OutputPolicy(max_tokens=100)), models=MODELS) as here:
        got = await asked(here, speech.DIALECT, model="mini-tts", input="hello there " * 10, voice="coral")
    assert (got.status, got.json["code"]) == (400, "not_estimable")
    assert "output.max_tokens" in got.json["detail"]
    assert provider.requests == []


async def test_sound_that_breaks_off_is_no_whole_sound(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b"x" * 1_000, content_type="audio/mpeg", cut_at_byte=400))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(here, speech.DIALECT, model="tts", input="hello", voice="coral")
        assert (got.body, got.whole, got.aborted) == (b"x" * 400, False, True)
        assert charged(await here.record()) == "0.000075"


# -- images -----------------------------------------------------------------------------------------------------------------------


async def test_images_are_held_by_size_and_quality_and_charged_by_their_tokens(tmp_path: Path, provider: FaultProvider) -> None:
    details = {"input_tokens_details": {"text_tokens": 10, "image_tokens": 0}}
    provider.next(Behaviour(body=orjson.dumps({"data": [], "usage": {"input_tokens": 10, **details, "output_tokens": 544}})))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        await asked(here, images.DIALECT, model="gpt-image-1.5", prompt="a river", n=2, quality="low", size="1024x1024")
        record = await here.record()
    assert charged(record) == "0.017458"  # 10 × $5 + 544 × $32 a million
    assert record.held.tokens == 2 + images.PROMPT_OVERHEAD + 2 * 272
    assert record.held.usd == 18 * 500 + 2 * 272 * 3200


async def test_images_that_are_billed_by_the_piece_cost_their_kind(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(*[Behaviour(body=b'{"data": [{"url": "u"}]}')] * 2)
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        await asked(here, images.DIALECT, model="painter", prompt="a river", n=3)
        assert charged(await here.record()) == "0.12"
        await asked(here, images.DIALECT, model="painter", prompt="a river", quality="hd", size="1024x1024")
        assert charged(await here.record()) == "0.08"


async def test_a_streamed_image_is_charged_by_its_last_event(tmp_path: Path, provider: FaultProvider) -> None:
    stream = (Path(__file__).parent / "wire/streams/images/generation.sse").read_bytes()
    provider.next(Behaviour(body=stream, content_type="text/event-stream"))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(
            here,
            images.DIALECT,
            model="gpt-image-1.5",
            prompt="a",
            stream=True,
            partial_images=2,
            quality="low",
            size="1024x1024",
        )
        assert got.body == stream
        assert charged(await here.record()) == "0.015474"  # 10 × $5 + 40 × $8 + 472 × $32 a million


async def test_a_refusal_gives_no_advice_that_can_t_be_followed(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        body = orjson.dumps({"model": "gpt-image-1.5", "prompt": "a", "quality": "high"})
        got = await here.ask(body, dialect=images.DIALECT, **{"X-Run-Limit": "$0.01"})
    assert (got.status, got.json["code"]) == (402, "call_exceeds_limit")
    assert "max_tokens" not in got.json["detail"]  # an image has no such field


async def test_an_image_by_no_known_rule_is_refused_where_a_ceiling_is_hard(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(here, images.DIALECT, model="gpt-image-1.5", prompt="a", quality="max")
    assert (got.status, got.json["code"]) == (400, "not_estimable")
    assert "reservation.flat" in got.json["detail"]
    assert provider.requests == []


# -- a client that leaves in the middle -------------------------------------------------------------------------------------------


def leaving() -> Client:
    """Takes the first bytes, and goes."""

    async def leave(data: bytes) -> None:
        del data
        client.leave()

    client = Client(on_write=leave)
    return client


async def test_a_stream_is_read_on_for_its_usage_when_its_client_left(tmp_path: Path, provider: FaultProvider) -> None:
    streams = Path(__file__).parent / "wire/streams"
    cases: list[tuple[str, Dialect, dict[str, Any], str]] = [
        ("completions/openai", completions.DIALECT, {"model": "instruct", "prompt": "a", "max_tokens": 20, "stream": True}, "0.0000215"),
        ("speech/openai", speech.DIALECT, {"model": "mini-tts", "input": "hello", "stream_format": "sse"}, "0.0012204"),
        (
            "images/generation", images.DIALECT,
            {"model": "gpt-image-1.5", "prompt": "a", "stream": True, "quality": "low", "size": "1024x1024", "partial_images": 2}, "0.015474",
        ),
    ]  # fmt: skip
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        for name, dialect, body, cost in cases:
            provider.next(Behaviour(body=(streams / f"{name}.sse").read_bytes(), content_type="text/event-stream"))
            client = await asked(here, dialect, name.replace("/", "-"), leaving(), **body)
            assert not client.whole
            assert charged(await here.record(name.replace("/", "-"))) == cost


async def test_sound_that_nobody_hears_to_its_end_costs_its_characters(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b"x" * 300_000, content_type="audio/mpeg"))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        client = await asked(here, speech.DIALECT, client=leaving(), model="tts", input="hello", voice="coral")
        assert (charged(await here.record()), client.whole) == ("0.000075", False)
        assert (await here.run()).reserved == 0


# -- all of them ------------------------------------------------------------------------------------------------------------------

REQUESTS: list[tuple[Dialect, dict[str, Any]]] = [
    (embeddings.DIALECT, {"model": "embed", "input": "a"}),
    (completions.DIALECT, {"model": "instruct", "prompt": "a"}),
    (moderations.DIALECT, {"model": "moderate", "input": "a"}),
    (speech.DIALECT, {"model": "tts", "input": "a", "voice": "coral"}),
    (images.DIALECT, {"model": "gpt-image-1.5", "prompt": "a"}),
    (images.EDITS, {"model": "gpt-image-1.5", "prompt": "a", "images": [{"file_id": "f"}]}),
]


@pytest.mark.parametrize(("dialect", "body"), REQUESTS, ids=lambda each: getattr(each, "name", ""))
async def test_what_the_provider_refuses_is_given_back(
    tmp_path: Path, provider: FaultProvider, dialect: Dialect, body: dict[str, Any]
) -> None:
    provider.next(Behaviour(status=400, body=b'{"error": {"message": "no"}}'))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(here, dialect, **body)
        view = await here.run()
    assert (got.status, got.body) == (400, b'{"error": {"message": "no"}}')
    assert (view.reserved, view.committed) == (0, 0)


@pytest.mark.parametrize(("dialect", "body"), REQUESTS, ids=lambda each: getattr(each, "name", ""))
async def test_an_answer_that_never_came_is_charged_at_most(
    tmp_path: Path, provider: FaultProvider, dialect: Dialect, body: dict[str, Any]
) -> None:
    provider.next(Behaviour(body=b'{"data": [' + b" " * 2_000 + b"]}", cut_at_byte=1_000))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(here, dialect, **body)
        assert (got.status, got.json["code"]) == (502, "provider_cut")
        held = await here.live_holds("r1")
        assert [hold.requested_model for hold in held] == [body["model"]]  # until its lease ends: nobody can say what was billed


@pytest.mark.parametrize(("dialect", "body"), REQUESTS, ids=lambda each: getattr(each, "name", ""))
async def test_a_client_that_leaves_settles_the_call(
    tmp_path: Path, provider: FaultProvider, dialect: Dialect, body: dict[str, Any]
) -> None:
    provider.next(
        Behaviour(body=b'{"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}', first_byte_s=0.05)
    )
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        client = Client()
        client.leave()
        await asked(here, dialect, client=client, **body)
        view = await here.run()
    assert view.reserved == 0
    assert client.status == 0
