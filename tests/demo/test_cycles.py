"""The comparison keeps its word: under `@cycles` the agent stops at exactly a dollar, through the proxy within one, by the provider's bill."""

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from gateway.demo import cycles
from gateway.demo.cycles import Course, Pace, Proxied
from gateway.demo.view import LineView

DOLLAR = 100_000_000


async def test_both_guarded_agents_are_stopped_and_the_others_are_not(tmp_path: Path) -> None:
    lines: list[str] = []
    told = io.StringIO()
    pace = Pace(call_s=0, event_ms=0, tokens="250-300", unguarded_s=0.1)  # at once, and with few calls
    code = await cycles.play(pace, LineView(lines.append), Console(file=told, width=200), tmp_path)
    assert code == 0, told.getvalue()
    rows = {cells[0]: cells[1:] for line in told.getvalue().splitlines() if len(cells := re.split("  +", line.strip())) > 4}
    assert rows["under @cycles at Penstock"][:3] == ["409 BUDGET_EXCEEDED", "100", "$1.00000000"]
    stopped_by, calls, spent, *_ = rows["through Penstock, undecorated"]
    assert stopped_by == "402 budget_exceeded"
    assert int(calls) > 50
    assert 0.95 < float(spent.lstrip("$")) <= 1
    assert "then the cheaper model did, until the stop" in told.getvalue()
    assert rows["simulated actions"][0] == rows["openai SDK"][0] == "the demo's patience"


def test_a_stop_at_anything_but_a_dollar_or_off_the_bill_fails_the_demo() -> None:
    console = Console(file=io.StringIO())
    stopped = Course("a", ended="409 BUDGET_EXCEEDED", spent=DOLLAR, at_s=[0.1] * 100)
    proxied = Proxied(Course("b", ended="402 budget_exceeded", spent=99_000_000), 99_000_000, 60)
    assert cycles._verdict(console, stopped, proxied) == 0
    for wrong in (
        replace(stopped, at_s=[0.1] * 99),
        replace(stopped, spent=DOLLAR + 1),
        replace(stopped, ended="409 IDEMPOTENCY_MISMATCH"),
        replace(stopped, reserved=1),
    ):
        assert cycles._verdict(console, wrong, proxied) == 1
    for off in (
        replace(proxied, billed=99_000_001),
        replace(proxied, course=replace(proxied.course, spent=DOLLAR + 1), billed=DOLLAR + 1),
        replace(proxied, course=replace(proxied.course, reserved=1)),
        replace(proxied, course=replace(proxied.course, ended="500 None")),
        replace(proxied, downgraded_at=None),
    ):
        assert cycles._verdict(console, stopped, off) == 1


def test_what_a_guard_adds_is_counted_over_the_calls_that_both_made() -> None:
    beside = Course("unguarded", at_s=[0.05, 0.10])
    assert Course("guarded", at_s=[0.06, 0.12, 0.90]).added_ms(beside) == pytest.approx(10)
    assert Course("guarded", at_s=[0.08, 0.12, 0.90]).added_ms(beside, only_first=1) == pytest.approx(30)


def test_without_the_clients_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "runcycles", None)
    assert cycles.main() == 1
    assert capsys.readouterr().err == f"penstock: {cycles.MISSING}\n"
