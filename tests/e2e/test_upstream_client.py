"""`upstream.client`: a gateway calls its provider with the client that its config names."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.config import Setup, free_port
from tests.support.gateway import GatewayProcess
from tests.support.provider import FaultProvider


@pytest.fixture(params=["lean", "aiohttp"])
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gateway(tmp_path: Path, shared_provider: FaultProvider, client: str) -> Iterator[GatewayProcess]:
    with GatewayProcess(Setup(tmp_path, shared_provider.base_url, extra={"upstream": {"client": client}})) as running:
        yield running


def test_calls_and_streams_pass_with_either_client(gateway: GatewayProcess) -> None:
    with gateway.client("r1") as sdk:
        for _ in range(3):
            answer = sdk.chat.completions.create(model="big-model", messages=[{"role": "user", "content": "Hi"}])
            assert answer.choices[0].message.content
            events = list(
                sdk.chat.completions.create(model="big-model", messages=[{"role": "user", "content": "Hi"}], stream=True)
            )
            assert events[-1].choices[0].finish_reason == "stop"
    assert [call["usage"] for call in gateway.calls_logged("r1")] == ["provider"] * 6


def test_a_failure_is_told_in_the_words_of_the_client_that_met_it(tmp_path: Path, client: str) -> None:
    setup = Setup(tmp_path, f"http://127.0.0.1:{free_port()}/v1", provider={"retries": 0}, extra={"upstream": {"client": client}})
    with GatewayProcess(setup) as gateway, gateway.client("r1") as sdk:
        with pytest.raises(openai.APIStatusError) as refused:
            sdk.with_options(max_retries=0).chat.completions.create(
                model="big-model", messages=[{"role": "user", "content": "Hi"}]
            )
        assert ("ClientConnectorError" if client == "aiohttp" else "ConnectionRefusedError") in str(refused.value)
