"""The real `openai` SDK on the smaller routes, with the bundled prices: answers come as the provider gave them, and cost what it said."""

import base64
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import openai
import orjson
import pytest

from gateway.demo.replies import Writer
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.pricing import price_table
from tests.support.provider import Behaviour, FaultProvider, Received
from tests.support.sound import wav

STREAMS: Final = Path(__file__).parents[1] / "wire" / "streams"
VECTORS: Final = ([0.25, -1.5, 3.0], [1.0, 0.0, -0.5])
MODELS: Final = [
    *(
        "text-embedding-3-*",
        "gpt-3.5-turbo-instruct*",
        "omni-moderation-*",
        "gpt-image-*",
        "tts-1",
        "gpt-4o-mini-tts",
        "whisper-1",
    ),
    *("gpt-4o-transcribe",),
]
PNG: Final = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


def answer_to(received: Received) -> Behaviour:
    """What OpenAI would say, by its published shapes."""
    path = received.target.partition("?")[0].removeprefix("/v1")
    return {
        "/embeddings": _embeddings,
        "/completions": _completion,
        "/moderations": _moderation,
        "/images/generations": _images,
        "/images/edits": _images,
        "/audio/speech": _speech,
        "/audio/transcriptions": _transcription,
        "/audio/translations": _transcription,
    }[path](received)


def _json(value: Any) -> Behaviour:
    return Behaviour(body=orjson.dumps(value))


def _sse(name: str) -> Behaviour:
    return Behaviour(body=(STREAMS / f"{name}.sse").read_bytes(), content_type="text/event-stream")


def _embeddings(received: Received) -> Behaviour:
    asked = received.json
    inputs = asked["input"] if type(asked["input"]) is list and type(asked["input"][0]) is not int else [asked["input"]]
    packed = asked.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(struct.pack("<3f", *VECTORS[i])).decode() if packed else VECTORS[i],
        }
        for i in range(len(inputs))
    ]
    usage = {"prompt_tokens": 4 * len(inputs), "total_tokens": 4 * len(inputs)}
    return _json({"object": "list", "data": data, "model": asked["model"], "usage": usage})


def _completion(received: Received) -> Behaviour:
    if received.json.get("stream"):
        return _sse("completions/openai")
    choices = [{"text": f"t{i}", "index": i, "logprobs": None, "finish_reason": "stop"} for i in range(2)]
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    return _json({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": choices, "usage": usage})


def _moderation(received: Received) -> Behaviour:
    result = {"flagged": False, "categories": {}, "category_scores": {}, "category_applied_input_types": {}}
    return _json({"id": "modr-1", "model": received.json["model"], "results": [result]})


def _images(received: Received) -> Behaviour:
    if (received.header("content-type") or "").startswith("application/json") and received.json.get("stream"):
        return _sse("images/generation")
    usage = {
        "input_tokens": 50,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        "output_tokens": 272,
        "total_tokens": 322,
    }
    return _json({"created": 1, "data": [{"b64_json": base64.b64encode(PNG).decode()}], "usage": usage})


def _speech(received: Received) -> Behaviour:
    if received.json.get("stream_format") == "sse":
        return _sse("speech/openai")
    return Behaviour(body=b"\xff\xfb\x90\x00" * 1_000, content_type="audio/mpeg")


def _transcription(received: Received) -> Behaviour:
    body = received.body
    assert wav(2.5) in body
    if b'name="stream"\r\n\r\ntrue' in body:
        return _sse("transcriptions/openai")
    if b'name="response_format"\r\n\r\ntext' in body:
        return Behaviour(body=b"hi there\n", content_type="text/plain; charset=utf-8")
    if b'name="response_format"\r\n\r\nverbose_json' in body:
        return _json({"task": "transcribe", "language": "english", "duration": 2.5, "text": "hi there", "segments": []})
    if b"gpt-4o-transcribe" in body:
        details = {"text_tokens": 0, "audio_tokens": 25}
        usage = {"type": "tokens", "input_tokens": 25, "input_token_details": details, "output_tokens": 4, "total_tokens": 29}
        return _json({"text": "hi there", "usage": usage})
    return _json({"text": "hi there", "usage": {"type": "duration", "seconds": 3}})


@pytest.fixture(scope="module")
def provider(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, price_table()) as running:
        running.choose = answer_to
        yield running


@pytest.fixture(scope="module")
def gateway(folder: Path, provider: FaultProvider) -> Iterator[GatewayProcess]:
    setup = Setup(folder, provider.base_url, policy(run_ceiling("$5")), provider={"models": MODELS})
    with GatewayProcess(setup) as running:
        yield running
        assert running.troubles == []


Check = Callable[[openai.OpenAI], None]


def vectors(client: openai.OpenAI) -> None:
    assert client.embeddings.create(model="text-embedding-3-small", input="hello there").data[0].embedding == VECTORS[0]


def plain_vectors(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="text-embedding-3-large", input=["a", "b"], encoding_format="float", dimensions=3)
    assert [each.embedding for each in answer.data] == [list(vector) for vector in VECTORS]


def token_vectors(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="text-embedding-3-small", input=[[1, 2, 3], [4]])
    assert len(answer.data) == 2


def completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="gpt-3.5-turbo-instruct", prompt=["a", "b"], max_tokens=5)
    assert [choice.text for choice in answer.choices] == ["t0", "t1"]


def streamed_completion(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="a", max_tokens=20, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello wörld 🌍"  # no usage chunk, which has no choices


def moderation(client: openai.OpenAI) -> None:
    assert client.moderations.create(input="hi").results[0].flagged is False


def image(client: openai.OpenAI) -> None:
    answer = client.images.generate(model="gpt-image-1.5", prompt="a river", size="1024x1024", quality="low")
    assert answer.data is not None
    assert answer.data[0].b64_json == base64.b64encode(PNG).decode()


def streamed_image(client: openai.OpenAI) -> None:
    events = list(
        client.images.generate(model="gpt-image-1.5", prompt="a", size="1024x1024", quality="low", stream=True, partial_images=2)
    )
    assert [event.type for event in events] == [*["image_generation.partial_image"] * 2, "image_generation.completed"]


def edit(client: openai.OpenAI) -> None:
    files = [("a.png", PNG), ("b.png", PNG)]
    answer = client.images.edit(model="gpt-image-1.5", image=files, prompt="a river", size="1024x1024", quality="low")
    assert answer.usage is not None
    assert answer.usage.output_tokens == 272


def speech(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(model="tts-1", voice="coral", input="hello there") as answer:
        assert b"".join(answer.iter_bytes()) == b"\xff\xfb\x90\x00" * 1_000


def speech_with_usage(client: openai.OpenAI) -> None:
    answer = client.audio.speech.create(model="gpt-4o-mini-tts", voice="coral", input="hello there", stream_format="sse")
    assert answer.content == (STREAMS / "speech/openai.sse").read_bytes()


def transcription(client: openai.OpenAI) -> None:
    assert client.audio.transcriptions.create(model="whisper-1", file=("a.wav", wav(2.5))).text == "hi there"


def verbose_transcription(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        model="whisper-1", file=("a.wav", wav(2.5)), response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert answer.duration == 2.5


def plain_transcription(client: openai.OpenAI) -> None:
    answer: Any = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", wav(2.5)), response_format="text")
    assert answer == "hi there\n"


def token_transcription(client: openai.OpenAI) -> None:
    assert (
        client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", wav(2.5)), prompt="Ada").text == "hi there"
    )


def streamed_transcription(client: openai.OpenAI) -> None:
    stream = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", wav(2.5)), stream=True)
    assert [event.type for event in stream] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]


def translation(client: openai.OpenAI) -> None:
    assert client.audio.translations.create(model="whisper-1", file=("a.wav", wav(2.5))).text == "hi there"


COSTS: Final[list[tuple[Check, str]]] = [  # by hand, from the published prices
    (vectors, "0.00000008"),  # 4 × $0.02 a million
    (plain_vectors, "0.00000104"),  # 8 × $0.13
    (token_vectors, "0.00000016"),
    (completion, "0.0000215"),  # 5 × $1.50 + 7 × $2
    (streamed_completion, "0.0000215"),
    (moderation, "0.00"),
    (image, "0.009074"),  # 10 × $5 + 40 × $8 + 272 × $32
    (streamed_image, "0.015474"),  # 10 × $5 + 40 × $8 + 472 × $32
    (edit, "0.009074"),
    (speech, "0.000165"),  # 11 × $15
    (speech_with_usage, "0.0012204"),  # 14 × $0.60 + 101 × $12
    (transcription, "0.0003"),  # 3 × $0.0001 a second
    (verbose_transcription, "0.0003"),
    (plain_transcription, "0.0003"),
    (token_transcription, "0.00019"),  # 25 × $6 + 4 × $10
    (streamed_transcription, "0.00052"),  # 4 × $2.50 + 10 × $6 + 45 × $10
    (translation, "0.0003"),
]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK's, of translations
@pytest.mark.parametrize(("check", "cost"), COSTS, ids=[check.__name__ for check, _ in COSTS])
def test_the_sdk_gets_its_answer_and_the_run_is_charged_the_published_price(
    gateway: GatewayProcess, run: str, check: Check, cost: str
) -> None:
    check(gateway.client(run))
    view = gateway.run(run)
    assert (view["committed_usd"], view["reserved_usd"]) == (cost, "0.00")


def test_a_refusal_is_one_request_and_reads_as_one(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    provider.requests.clear()
    client = gateway.client(run, **{"X-Run-Limit": "$0.0001"})
    with pytest.raises(openai.APIStatusError) as refused:
        client.images.generate(model="gpt-image-1.5", prompt="a river")
    assert (refused.value.status_code, refused.value.code) == (402, "budget_exceeded")
    assert provider.requests == []
