"""The tables in docs/ list what there is, all of it, and nothing else."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from gateway.core.values import Ending
from gateway.cycles.answering import Answering
from gateway.cycles.plane import Plane
from gateway.metrics import Metrics
from gateway.wire import responses
from gateway.wire.dialects import DIALECTS
from gateway.wire.problem import KINDS, kind_of
from tests.support.examples import PAGES
from tests.support.shipped import ROOT

API: Final = (ROOT / "docs/api.md").read_text()
CLIENTS: Final = (ROOT / "docs/clients.md").read_text()
OPERATIONS: Final = (ROOT / "docs/operations.md").read_text()
LINKING: Final = (*PAGES, ROOT / "CHANGELOG.md")
SOURCE: Final = "\n".join(path.read_text() for path in sorted((ROOT / "gateway").rglob("*.py")))


def rows(page: str, after: str) -> Sequence[Sequence[str]]:
    """The cells of the first table after the text, without its head."""
    table = re.search(r"(?:^\|.*\n)+", page[page.index(after) :], re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_code_is_in_the_table_with_its_status() -> None:
    table = {code: int(status) for status, codes, _ in rows(API, "<!-- codes") for code in words(codes)}
    assert table.pop("<scope>_ceiling_reached") == kind_of("run_ceiling_reached").status
    assert table == {code: kind.status for code, kind in KINDS.items()}


def test_every_metric_is_in_the_table_with_its_labels() -> None:
    registry = Metrics(())._registry
    there = {}
    for collector in registry._collector_to_names:
        name, kind, labels = collector._name, collector._type, collector._labelnames
        there[f"{name}_total" if kind == "counter" else name] = list(labels)
    assert {words(name)[0]: words(labels) for name, labels, _ in rows(OPERATIONS, "<!-- metrics")} == there


def test_every_ending_is_in_the_table() -> None:
    assert {words(ending)[0] for ending, _ in rows(OPERATIONS, "<!-- endings")} == {ending.value for ending in Ending}


def test_every_client_that_is_refused_in_its_own_way_is_in_the_table() -> None:
    stored = yaml.safe_load((ROOT / "gateway/data/clients.yaml").read_text())
    told = {row[0]: row[2] for row in rows(CLIENTS, "## How they are refused")}
    assert told.keys() == {entry["client"] for entry in stored}
    assert all(str(entry.get("status", 402)) in told[entry["client"]] for entry in stored)


def test_every_event_of_the_log_is_in_the_table_with_its_level() -> None:
    logged = {name: level for level, name in re.findall(r'log\.(info|warning|error)\(\s*"(\w+)"', SOURCE)}
    told = {words(event)[0]: level for event, level, _ in rows(OPERATIONS, "The other events")}
    assert told == logged | {"lines_dropped": "warning"}


def test_every_header_that_comes_back_is_in_the_table() -> None:
    sent = set(re.findall(r'"(X-(?:Budget|Run)-[A-Za-z-]+)"', (ROOT / "gateway/wire/budget.py").read_text()))
    told = {header for headers, _, _ in rows(API, "## Headers out") for header in words(headers)}
    assert told == sent | {"X-Request-Id", "x-should-retry"}


def test_every_header_that_is_read_is_told_of() -> None:
    read = set(re.findall(r'"(X-(?:Budget|Run|Parent)-[A-Za-z-]+)"', (ROOT / "gateway/wire/headers.py").read_text()))
    assert {header for header in read if f"`{header}`" not in API} == set()


def test_every_endpoint_is_in_the_table() -> None:
    pages = re.findall(r'(?:Route|ledger_page)\(\s*"([A-Z]+)", "([^"]+)"', SOURCE)
    metered = re.findall(r'\("(POST|GET)", "(/v1/[^"]+)"\):', (ROOT / "gateway/app.py").read_text())
    metered += [("POST", dialect.path) for dialect in DIALECTS]
    metered += responses.STORED
    # `{name%}` is percent-decoded: the route's own matter.
    there, prefixed = (
        {f"{method} {path}".replace("%}", "}") for method, path in found}
        for found in ([*pages, *metered], ((method, f"/run/{{run_id}}{path}") for method, path in metered))
    )
    listed = {words(endpoint)[0] for endpoint, _ in rows(API, "## Endpoints")}
    assert there <= listed <= there | prefixed
    assert "So is every route below `/v1`" in API


def test_every_route_of_the_cycles_protocol_is_in_its_table() -> None:
    ground: Any = None
    pages = Plane.over(ground, Answering(False), newer_members=False).pages()
    told = [route for routes, _ in rows((ROOT / "docs/cycles.md").read_text(), "## What is served") for route in words(routes)]
    assert sorted(told) == sorted(f"{method} {path}" for method, path, _ in pages)


def test_every_test_that_a_page_names_is_there() -> None:
    named = {(path, name) for page in PAGES for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text())}
    assert {path for path, _ in named} >= {"tests/ledger/test_state_machine.py"}
    assert [path for path, _ in named if not (ROOT / path).is_file()] == []
    assert [name for path, name in named if name and f"def {name}(" not in (ROOT / path).read_text()] == []


def test_every_link_leads_somewhere() -> None:
    links = [(page, target) for page in LINKING for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())]
    assert [(page.name, target) for page, target in links if "://" not in target and not (page.parent / target).exists()] == []


def test_every_anchor_is_a_heading() -> None:
    links = [(page, *found) for page in LINKING for found in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text())]
    inside = [(page, page.parent / target if target else page, anchor) for page, target, anchor in links if "://" not in target]
    assert [(page.name, anchor) for page, into, anchor in inside if anchor not in _anchors(into)] == []


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, without punctuation, dashes for spaces."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_layers_are_those_that_are_enforced() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    enforced = project["tool"]["importlinter"]["contracts"][0]["layers"]
    told = re.search(r"## Layers\n\n((?:    .*\n)+)", (ROOT / "docs/architecture.md").read_text())
    assert told is not None
    layers = [re.findall(r"\w+", layer) for layer in told[1].split(">")]
    assert layers == [names for layer in enforced if (names := re.findall(r"\w+", layer)) != ["__main__"]]
