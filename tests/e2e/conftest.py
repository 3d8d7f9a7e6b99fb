"""Gateways that the tests of a module share, because a process takes a second to start. Tests keep apart by their run ids."""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.demo.replies import Writer
from tests.support.pricing import price_table
from tests.support.provider import FaultProvider

if TYPE_CHECKING:
    from _pytest.fixtures import FixtureRequest


@pytest.fixture(scope="module")
def shared_provider(writer: Writer) -> Iterator[FaultProvider]:
    """One provider for a module's tests; each finds it as new."""
    with FaultProvider(writer, price_table()) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, request: "FixtureRequest") -> Path:
    return tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])


@pytest.fixture
def run(request: "FixtureRequest") -> str:
    """A run id of the test's own."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", request.node.name)[:100] + f".{next(_NUMBERS)}"


_NUMBERS = count()
