"""The demo keeps its word: by the provider's own bill, the guarded run stays within its dollar."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from gateway.demo import run
from gateway.demo.view import LineView, LiveView, Reading, view_for


async def test_the_same_agent_passes_a_dollar_unguarded_and_not_when_guarded(tmp_path: Path) -> None:
    lines: list[str] = []
    told = io.StringIO()
    scene = replace(run.SCRIPTED, event_ms=0)  # at once
    code = await run.play(scene, LineView(lines.append), Console(file=told, width=200), tmp_path)
    assert code == 0, told.getvalue()
    totals = dict(line.split()[:2] for line in told.getvalue().splitlines() if line)
    assert 3 < float(totals["unguarded"].lstrip("$")) < 6
    assert 0.9 < float(totals["guarded"].lstrip("$")) <= 1
    assert any("budget runs low: the gateway serves small-model" in line for line in lines)
    assert sum("Run demo has reached its ceiling" in line for line in lines) == 3


def test_the_ceiling_that_is_checked_is_the_policys() -> None:
    policy = yaml.safe_load((Path(run.__file__).parent / "policy.yaml").read_text())
    assert [budget["limit"] for budget in policy["budgets"]] == ["$1.00"]
    assert run.CEILING == 100_000_000


def test_a_run_above_its_ceiling_or_off_the_bill_fails_the_demo() -> None:
    console = Console(file=io.StringIO())
    stopped = run.Guarded(committed=90_000_000, reserved=0, billed=90_000_000, refusals=("enough",))
    assert run._verdict(console, 400_000_000, stopped) == 0
    for wrong in (
        replace(stopped, committed=100_000_001, billed=100_000_001),
        replace(stopped, billed=90_000_001),
        replace(stopped, reserved=1),
        replace(stopped, refusals=()),
    ):
        assert run._verdict(console, 400_000_000, wrong) == 1


def test_an_unknown_model_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main("gpt") == 1
    assert capsys.readouterr().err == "penstock: found --model gpt, expected scripted or local\n"


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert run.main("scripted") == 1
    assert capsys.readouterr().err == f"penstock: {run.NO_SDK}\n"


def test_without_a_terminal_lines_come_once_a_second() -> None:
    lines: list[str] = []
    view = LineView(lines.append)
    view.begin("guarded")
    for tenth in range(25):
        view.update(Reading(seconds=tenth / 10, spent=50_000_000, held=10_000_000, calls=3, model="m", ceiling=100_000_000))
    assert len(lines) == 4
    assert lines[1] == "  0.0 s  $0.50 spent, $0.10 held, $0.40 left, 3 calls, m"
    assert isinstance(view_for(Console(file=io.StringIO())), LineView)


def test_on_a_terminal_the_picture_shows_the_spend_and_what_happened() -> None:
    drawn = io.StringIO()
    view = LiveView(Console(file=drawn, force_terminal=True, width=110))
    view.begin("guarded")
    view.update(Reading(seconds=2, spent=50_000_000, held=10_000_000, calls=3, model="small-model", ceiling=100_000_000))
    view.say("budget runs low")
    view.end()
    for part in ("guarded", "$0.50", "$0.40", "small-model", "budget runs low"):
        assert part in drawn.getvalue()


def test_a_process_that_does_not_come_up_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "SCRIPTED", replace(run.SCRIPTED, prices={"big-model": "no:price"}))
    assert run.main("scripted") == 1
    assert "the scripted provider ended with code 2" in capsys.readouterr().err
