"""The bundled provider as a process: what an openai client gets, and what is billed for it."""

import json
import subprocess
import sys
from collections.abc import Iterator

import httpx
import openai
import pytest

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "gateway.demo.provider", "--price", "big=15:75", "--price", "small=1:5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["base_url"].removesuffix("/v1")
        process.terminate()
        assert process.wait(10) == 0


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    httpx.delete(f"{address}/__bill")
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)


def bill(address: str) -> dict[str, object]:
    told: dict[str, object] = httpx.get(f"{address}/__bill").json()
    return told


def test_the_bill_is_the_usage_it_reported(client: openai.OpenAI, address: str) -> None:
    whole = client.chat.completions.create(model="big", messages=HELLO)
    chunks = list(
        client.chat.completions.create(model="small", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    assert whole.usage is not None
    assert chunks[-1].usage == whole.usage
    prompt, completion = whole.usage.prompt_tokens, whole.usage.completion_tokens
    assert bill(address)["microcents"] == prompt * 1500 + completion * 7500 + prompt * 100 + completion * 500


def test_a_stream_that_was_left_is_billed_for_what_was_made(client: openai.OpenAI, address: str) -> None:
    httpx.post(f"{address}/__script", json={"replies": [{"tokens": 200_000}]}).raise_for_status()
    stream = client.chat.completions.create(model="big", messages=HELLO, stream=True)
    next(stream)
    stream.close()
    client.close()
    for _ in range(100):
        calls = bill(address)["calls"]
        assert isinstance(calls, list)
        if calls:
            break
    assert calls[0]["ended"] == "cut"
    assert 0 < calls[0]["completion_tokens"] < 200_000


def test_a_script_says_what_the_next_reply_is(client: openai.OpenAI, address: str) -> None:
    httpx.post(f"{address}/__script", json={"replies": [{"text": "yes"}]}).raise_for_status()
    assert client.chat.completions.create(model="big", messages=HELLO).choices[0].message.content == "yes"
    assert httpx.post(f"{address}/__script", json={"replies": [{"txt": "no"}]}).status_code == 400


def test_its_models_are_those_with_a_price(client: openai.OpenAI, address: str) -> None:
    assert [model.id for model in client.models.list()] == ["big", "small"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="unknown", messages=HELLO)
    assert bill(address)["calls"] == []


def test_what_openai_refuses_it_refuses(client: openai.OpenAI, address: str) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="big", messages=[])
    assert httpx.post(f"{address}/v1/chat/completions", content=b"{").status_code == 400


@pytest.mark.parametrize("bad", [["--price", "big"], ["--tokens", "many"]])
def test_bad_arguments_are_one_line(bad: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.demo.provider", *bad], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
