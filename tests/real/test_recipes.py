"""Every recipe of docs/recipes.md, with the real package of the library or the program: it completes and is charged exactly what the
provider bills, in the run that the page names; without room it is refused as the page says, and nothing reaches the provider.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.demo.replies import Script, Writer
from tests.support.load import microcents
from tests.support.provider import Behaviour
from tests.support.recipes import RECIPES, SAID, Stage, cook, stage

pytestmark = [pytest.mark.deep, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory, writer: Writer) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("recipes"), writer) as running:
        yield running
        assert running.gateway.troubles == []


@pytest.fixture(params=RECIPES)
def name(request: pytest.FixtureRequest, on: Stage) -> str:
    for package in RECIPES[request.param].packages:
        pytest.importorskip(package)
    on.provider.forget()
    on.provider.default = Behaviour(script=Script(text=RECIPES[request.param].reply))
    return str(request.param)


def test_it_completes_and_its_run_is_charged_exactly_the_bill(on: Stage, name: str, tmp_path: Path) -> None:
    ended = cook(name, f"{name}-good", on, RECIPES[name].place(), tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert SAID in ended.stdout, ended.stdout + ended.stderr
    told = on.gateway.run(f"{name}-good")
    assert told["calls"] == len(on.provider.bill.calls) >= 1
    assert microcents(told["committed_usd"]) == on.provider.bill.microcents
    assert told["reserved_usd"] == told["unconfirmed_usd"] == "0.00"


def test_a_refusal_is_one_post_and_its_text_is_shown(on: Stage, name: str, tmp_path: Path) -> None:
    run = f"{name}-refused"
    on.gateway.admin("PUT", f"/budget/runs/{run}", {"limit": "$0.0001"}).raise_for_status()
    ended = cook(name, run, on, RECIPES[name].place(), tmp_path)
    assert on.provider.requests == []
    assert [line["code"] for line in on.gateway.calls_logged(run)] == ["call_exceeds_limit"] * RECIPES[name].refused
    shown = " ".join((ended.stdout + ended.stderr).split())  # some break it into lines
    assert f"Run {run}: this call could use up to" in shown
