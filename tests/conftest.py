"""What all tests share: the event loops they run on, a provider, and gateways in front of it."""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hypothesis
import pytest
import uvloop

if TYPE_CHECKING:
    from gateway.demo.replies import Writer
    from tests.support.gateway import GatewayProcess
    from tests.support.provider import FaultProvider

# Nothing here leaves the machine. To read whom the world trusts takes every process, and every client of an SDK, 60 ms.
os.environ.setdefault("SSL_CERT_FILE", str(Path(__file__).parent / "support/tls/cert.pem"))

# How busy the machine is decides no test.
hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")

# Code that handles connections runs on uvloop in production, which closes, aborts and buffers in its own way; whoever embeds it may not.
_ON_BOTH_LOOPS: Final = frozenset(
    {
        *("test_accepting.py", "test_edge.py", "test_upstream.py", "test_dialing.py", "test_pool.py", "test_races.py"),
        *("test_resp.py", "test_servers.py"),
    }
)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.name in _ON_BOTH_LOOPS:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def valkey_url() -> str:
    """An empty Valkey (or whatever PENSTOCK_TEST_REDIS_URL names), shared by the tests of this process."""
    from tests.support.valkey import shared_url

    return shared_url()


# -- a provider and gateways in front of it: nothing is imported until a test asks -----------------------------------------------


@pytest.fixture(scope="session")
def writer() -> "Writer":
    """Writes the replies of every provider; its tokenizer takes half a second to load."""
    from gateway.bundled import load_encoding
    from gateway.demo.replies import Writer

    return Writer(load_encoding("o200k_base"))


@pytest.fixture
def provider(writer: "Writer") -> "Iterator[FaultProvider]":
    """Answers properly until told otherwise; knows `big-model` and `small-model`."""
    from tests.support.pricing import price_table
    from tests.support.provider import FaultProvider

    with FaultProvider(writer, price_table()) as running:
        yield running


@pytest.fixture
def start_gateway(tmp_path: Path, provider: "FaultProvider") -> "Iterator[Callable[..., GatewayProcess]]":
    """`start_gateway(policy=…, extra=…)`: a real gateway process before `provider`; more than one share nothing."""
    from tests.support.config import Setup
    from tests.support.gateway import GatewayProcess

    with ExitStack() as stack:

        def start(*, workers: int = 1, **setup: Any) -> GatewayProcess:
            folder = tmp_path / f"gateway-{len(started)}"
            running = GatewayProcess(Setup(folder, provider.base_url, **setup), workers=workers)
            started.append(stack.enter_context(running))
            return running

        started: list[GatewayProcess] = []
        yield start
