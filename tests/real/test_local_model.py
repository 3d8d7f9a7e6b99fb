"""A real model behind the gateway: llama.cpp's own server makes the replies and counts the tokens. Needs the extra `local`."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.demo import local_model
from tests.support.config import Setup, ladder, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.pricing import TestModel

pytestmark = [pytest.mark.deep, pytest.mark.skipif(not local_model.installed(), reason=local_model.MISSING)]

# Dear enough that a few sentences of a small model reach a dollar.
BIG = TestModel("gemma-big", "2500", "10000", context=4096, max_output=2048, capabilities=("json_schema",), encoding=None)
SMALL = TestModel("gemma-small", "500", "2000", context=4096, max_output=2048, capabilities=("json_schema",), encoding=None)
PRICES = {model.name: model.price for model in (BIG, SMALL)}


@pytest.fixture(scope="module")
def model() -> Iterator[local_model.LocalModel]:
    with local_model.running() as running:
        yield running


@pytest.fixture
def gateway(model: local_model.LocalModel, tmp_path: Path) -> Iterator[GatewayProcess]:
    setup = Setup(
        tmp_path,
        model.base_url,
        policy=policy(run_ceiling("$1.00", downgrade_below="35%"), models=ladder(**{BIG.name: [SMALL.name]})),
        models=(BIG, SMALL),
        provider={"profile": "llama.cpp"},
    )
    with GatewayProcess(setup) as running:
        yield running


def ask(client: openai.OpenAI, text: str, **keys: Any) -> tuple[openai.types.CompletionUsage, str]:
    """One streamed call; the server's usage, and the model that served it."""
    raw = client.chat.completions.with_raw_response.create(
        model=BIG.name,
        messages=[{"role": "user", "content": text}],
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
        **keys,
    )
    chunks = list(raw.parse())
    assert chunks[-1].usage is not None
    return chunks[-1].usage, raw.headers.get("X-Budget-Selected-Model", BIG.name)


def cost(usage: openai.types.CompletionUsage, model: str) -> int:
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    return PRICES[model].microcents(usage.prompt_tokens, cached, usage.completion_tokens)


def test_a_run_is_metered_by_the_servers_own_usage_downgraded_and_stopped(gateway: GatewayProcess) -> None:
    client = gateway.client("story")
    spent, served, refusal = 0, list[str](), None
    while refusal is None and len(served) < 50:
        try:
            usage, model = ask(client, f"Step {len(served)}: tell how a river begins, in one sentence.")
        except openai.APIStatusError as error:
            refusal = error
        else:
            spent += cost(usage, model)
            served.append(model)
            assert Decimal(gateway.run("story")["committed_usd"]) * 100_000_000 == spent
    assert refusal is not None
    assert refusal.status_code == 402
    assert refusal.code == "budget_exceeded"
    assert served == sorted(served), "first the model that was asked for, then the cheaper one"
    assert set(served) == {BIG.name, SMALL.name}
    run = gateway.run("story")
    assert spent <= 100_000_000
    assert run["reserved_usd"] == "0.00"


def test_the_estimate_is_never_below_what_the_server_counts(gateway: GatewayProcess) -> None:
    texts = {
        "prose": "The river rises in the hills and runs past the mill to the sea. " * 20,
        "code": "def price_of(tokens: int, rate: int) -> int:\n    return -(-tokens * rate // 1_000_000)\n" * 12,
        "other": "Привет, как дела? 今日はいい天気ですね。 🦞 " * 20,
    }
    for name, text in texts.items():
        raw = gateway.client(f"estimate-{name}").chat.completions.with_raw_response.create(
            model=SMALL.name, messages=[{"role": "user", "content": text}], max_tokens=1
        )
        usage = raw.parse().usage
        assert usage is not None
        record = gateway.get(f"/budget/decisions/{raw.headers['X-Budget-Decision-Id']}")
        estimated = record["held_tokens"] - 1
        print(f"{name}: estimate {estimated}, actual {usage.prompt_tokens}, ratio {estimated / usage.prompt_tokens:.2f}")
        assert estimated >= usage.prompt_tokens


def test_two_choices_are_charged_as_two_though_the_server_reports_one(gateway: GatewayProcess) -> None:
    answer = gateway.client("two").chat.completions.create(
        model=SMALL.name, messages=[{"role": "user", "content": "Tell how a river begins."}], max_tokens=12, n=2
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    charged = Decimal(gateway.run("two")["committed_usd"]) * 100_000_000
    assert charged == PRICES[SMALL.name].microcents(answer.usage.prompt_tokens, 0, 24)


def test_a_stream_that_is_left_frees_what_it_held(gateway: GatewayProcess) -> None:
    client = gateway.client("left")
    stream = client.chat.completions.create(
        model=SMALL.name, messages=[{"role": "user", "content": "Tell a long story."}], max_tokens=200, stream=True
    )
    for _ in range(4):
        next(stream)
    stream.close()
    for _ in range(100):
        run = gateway.run("left")
        if run["reserved_usd"] == "0.00":
            break
    assert run["reserved_usd"] == "0.00"
    assert Decimal(0) < Decimal(run["committed_usd"]) < Decimal("0.40")  # 200 tokens would have been that


def test_a_json_schema_is_honoured_by_the_model_through_the_gateway(gateway: GatewayProcess) -> None:
    schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"], "additionalProperties": False}
    answer = gateway.client("json").chat.completions.create(
        model=SMALL.name,
        messages=[{"role": "user", "content": "Is a river wet?"}],
        max_tokens=30,
        response_format={"type": "json_schema", "json_schema": {"name": "river", "strict": True, "schema": schema}},
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")
