"""The page about prices names every measure and every field that may have a flat reserve."""

import re
from pathlib import Path

from gateway.core import measures
from gateway.price_file import FEES
from gateway.wire import chat, messages, reading, responses

PAGE = (Path(__file__).parents[2] / "docs" / "prices.md").read_text(encoding="utf-8")
ROUTES = Path(chat.__file__).parent


def first_column(mark: str) -> set[str]:
    table = PAGE.split(f"<!-- {mark}:")[1].split("\n\n")[0]
    return {name for line in table.splitlines()[3:] for name in re.findall(r"`([^`/]+)`", line.split("|")[1])}


def test_every_measure_is_in_the_table_with_its_key() -> None:
    assert first_column("measures") == measures.TOKENS | measures.PIECES
    for key, measure in FEES.items():
        assert re.search(rf"^\| `{measure}` \|.*\| `{key}` \|$", PAGE, re.MULTILINE), measure


def test_every_field_of_the_common_routes_that_nothing_models_is_in_the_table() -> None:
    named = first_column("flat")
    fields = chat._UNPRICED | messages._UNPRICED | reading.ROUTED | {"prompt", "context_management", "search_parameters"}
    assert fields <= responses._UNPRICED | chat._UNPRICED | messages._UNPRICED
    written = {
        name
        for module in ("chat", "messages", "responses")
        for name in re.findall(r'unpriced\.append\("([\w.]+)"\)', (ROUTES / f"{module}.py").read_text(encoding="utf-8"))
    }
    assert fields | written <= named
