"""One call, one line, once both its ends are known, in whichever order they come."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.core.scopes import Amounts
from gateway.core.values import Ending, Receipt, Usage, UsageSource
from gateway.events import Events
from gateway.ledger.contract import Alert
from gateway.metrics import Metrics
from gateway.observer import Observer, Story
from tests.support.records import USD, caller, decision, hold, receipt, run_account
from tests.test_events import Lines
from tests.test_metrics import scrape


class Told:
    """What an observer wrote and counted, and the clock it went by."""

    def __init__(self) -> None:
        self.sink = Lines()
        self.events = Events(self.sink)
        self.metrics = Metrics({"gpt-5-mini"})
        self.now_s = 100.0
        self.observer = Observer(self.events, self.metrics, lambda: self.now_s)

    def lines(self, event: str = "call") -> list[dict[str, Any]]:
        self.events.close()
        return [line for line in self.sink.parsed if line["event"] == event]

    @property
    def line(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line

    @property
    def counts(self) -> dict[str, float]:
        return scrape(self.metrics)


@pytest.fixture
def told() -> Told:
    return Told()


def admitted(told: Told) -> Story:
    """A story up to the provider, 2 ms after it began."""
    story = told.observer.story("req_1")
    story.called_by(caller(agent="a1"))
    story.decided(decision())
    story.reserved(0.001)
    story.held(hold())
    told.now_s += 0.002
    story.sent()
    return story


def answer(story: Story) -> None:
    story.answered(200)


def settle(story: Story) -> None:
    story.settled(receipt(), 0.001)


@pytest.mark.parametrize("ends", [(answer, settle), (settle, answer)], ids=["answered first", "settled first"])
def test_a_call_is_told_once_after_its_second_end(told: Told, ends: tuple[Callable[[Story], None], ...]) -> None:
    story = admitted(told)
    ends[0](story)
    assert told.sink.raw == b""
    told.now_s += 1
    ends[1](story)
    line = told.line
    assert (line["request_id"], line["run"], line["decision_id"], line["dimensions"]) == ("req_1", "r1", "bdg_1", {"agent": "a1"})
    assert (line["outcome"], line["code"], line["status"], line["ending"]) == ("allow", "", 200, "completed")
    assert (line["held_usd"], line["charged_usd"]) == ("0.10", "0.05")
    assert (line["added_ms"], line["duration_ms"]) == (2.0, 1002.0)


def test_a_call_in_order_is_counted_once(told: Told) -> None:
    story = admitted(told)
    assert told.counts["penstock_holds"] == 1
    answer(story)
    settle(story)
    counts = told.counts
    assert counts["penstock_decisions_total{code=,outcome=allow}"] == 1
    assert counts["penstock_calls_total{ending=completed}"] == 1
    assert counts["penstock_spend_usd_total{model=gpt-5-mini,provider=openai}"] == 0.05
    assert counts["penstock_holds"] == 0


def test_a_refused_call_has_one_end(told: Told) -> None:
    story = told.observer.story("req_1")
    story.called_by(caller())
    story.decided(decision())
    story.refused("run_ceiling_reached", 402)
    story.answered(402)
    line = told.line
    assert (line["outcome"], line["code"], line["status"], line["selected_model"]) == ("block", "run_ceiling_reached", 402, None)
    assert (line["held_usd"], line["charged_usd"], line["ending"], line["added_ms"]) == (None, None, None, None)
    assert told.counts["penstock_decisions_total{code=run_ceiling_reached,outcome=block}"] == 1


def test_a_call_refused_before_anyone_knew_who_it_was_is_told_too(told: Told) -> None:
    story = told.observer.story("req_1")
    story.refused("ambiguous_request", 400)
    story.answered(400)
    line = told.line
    assert (line["outcome"], line["decision_id"], line["run"], line["requested_model"]) == ("", None, "", "")


def test_a_call_refused_before_its_decision_says_what_was_asked_for(told: Told) -> None:
    story = told.observer.story("req_1")
    story.asked("nobody-knows", True)
    story.refused("model_not_priced", 400)
    story.answered(400)
    line = told.line
    assert (line["requested_model"], line["selected_model"], line["stream"], line["decision_id"]) == (
        "nobody-knows",
        None,
        True,
        None,
    )


def test_a_run_id_that_was_ignored_is_in_the_line(told: Told) -> None:
    story = told.observer.story("req_1")
    story.called_by(caller())
    story.answered(0)
    assert "run_ignored" not in told.line
    other = Told()
    story = other.observer.story("req_2")
    who = caller()
    story.called_by(type(who)(who.tenant, who.key, who.run, who.run_scope, run_ignored="r9"))
    story.answered(0)
    assert other.line["run_ignored"] == "r9"


def test_a_client_that_left_before_its_answer_keeps_the_status_that_was_meant_for_it(told: Told) -> None:
    story = told.observer.story("req_1")
    story.refused("run_ceiling_reached", 402)
    story.answered(0)
    assert told.line["status"] == 402


def test_the_providers_failure_after_a_hold_is_no_block(told: Told) -> None:
    story = admitted(told)
    story.provider_failed("openai", "connect")
    story.refused("provider_unreachable", 502)
    story.settled(Receipt(hold(), Usage(UsageSource.COUNTED), Amounts(0, 0, 0), Ending.NOT_SENT), 0.001)
    story.answered(502)
    line, counts = told.line, told.counts
    assert (line["outcome"], line["code"], line["status"], line["ending"]) == ("allow", "provider_unreachable", 502, "not_sent")
    assert counts["penstock_provider_errors_total{kind=connect,provider=openai}"] == 1
    assert counts["penstock_calls_total{ending=not_sent}"] == 1
    assert not any("outcome=block" in name for name in counts)
    assert not any(name.startswith("penstock_spend_usd_total{") for name in counts)


def test_a_hold_that_was_left_to_its_lease_is_told_and_warned_about(told: Told) -> None:
    story = admitted(told)
    story.unsettled(Ending.UNKNOWN, "openai reset the connection")
    story.answered(504)
    told.events.close()
    warning, line = told.sink.parsed
    assert (warning["event"], warning["hold_id"], warning["why"]) == ("unsettled", "rsv_1", "openai reset the connection")
    assert (line["ending"], line["charged_usd"], line["held_usd"]) == ("unknown", None, "0.10")
    assert told.counts["penstock_holds"] == 0


@pytest.mark.parametrize(
    ("usage", "usd", "cause"),
    [
        (Usage(UsageSource.PROVIDER, input_tokens=900, output_tokens=1024), USD // 10, None),
        (Usage(UsageSource.PROVIDER, input_tokens=901, output_tokens=10), USD // 10 + 1, "input"),
        (Usage(UsageSource.PROVIDER, input_tokens=600, cached_tokens=301, output_tokens=1024), USD // 10, "input"),
        (Usage(UsageSource.PROVIDER, input_tokens=900, output_tokens=1025), USD // 10, "output"),
        (Usage(UsageSource.PROVIDER, input_tokens=900, output_tokens=10), USD // 10 + 1, "price"),
    ],
    ids=["as held", "more input", "more cached input", "more output", "dearer"],
)
def test_what_cost_more_than_was_held_is_an_overrun_with_its_cause(told: Told, usage: Usage, usd: int, cause: str | None) -> None:
    story = admitted(told)
    story.settled(receipt(usage=usage, usd=usd), 0.001)
    assert [line["cause"] for line in told.lines("overrun")] == ([] if cause is None else [cause])
    assert sum(value for name, value in told.counts.items() if name.startswith("penstock_overruns_total{")) == (cause is not None)


def test_an_alert_is_written_and_counted(told: Told) -> None:
    told.observer.alert(Alert(run_account(), 800_000, 5 * USD, 4 * USD))
    assert [line["threshold"] for line in told.lines("alert")] == ["80%"]
    assert told.counts["penstock_alerts_total{budget=run-ceiling,threshold=80%}"] == 1


def test_a_ledger_that_comes_and_goes_is_told_once_a_minute_and_counted_all_the_time(told: Told) -> None:
    for _ in range(200):
        told.observer.ledger_serves("the disk is full")
        assert told.counts["penstock_ledger_serves"] == 0
        told.now_s += 0.25
        told.observer.ledger_serves(None)
        assert told.counts["penstock_ledger_serves"] == 1
        told.now_s += 0.25
    told.observer.ledger_serves("nobody listens there")
    told.events.close()
    said = [(line["event"], line.get("why")) for line in told.sink.parsed]
    once = [("ledger_away", "the disk is full"), ("ledger_back", None)]
    assert said == [*once, *once, ("ledger_away", "nobody listens there")]


def test_what_went_into_the_journal_is_counted_by_its_step_and_by_how_much_waits(told: Told) -> None:
    told.observer.journalled("commit")
    told.metrics.journal_entries = lambda: 7
    told.observer.kept_aside("rsv_1", "the ledger knows no such hold")
    counts = told.counts
    assert counts["penstock_journalled_total{step=commit}"] == 1
    assert counts["penstock_journal_entries"] == 7
    [line] = told.lines("journal_kept_aside")
    assert (line["level"], line["what"]) == ("error", "rsv_1")


def test_what_was_billed_without_a_price_is_counted_each_time_and_told_once_a_minute(told: Told) -> None:
    story = admitted(told)
    for _ in range(3):
        story.unpriced("openai", "gpt-5-mini", ("audio_input", "service_tier"))
    told.now_s += 60
    story.unpriced("openai", "gpt-5-mini", ("audio_input",))
    lines = told.lines("unpriced_usage")
    assert [(line["provider"], line["model"], line["what"]) for line in lines] == [
        ("openai", "gpt-5-mini", "audio_input"),
        ("openai", "gpt-5-mini", "service_tier"),
        ("openai", "gpt-5-mini", "audio_input"),
    ]
    assert told.counts["penstock_unpriced_usage_total{provider=openai,what=audio_input}"] == 4


def test_names_that_a_provider_makes_up_do_not_become_labels_without_end(told: Told) -> None:
    for number in range(150):
        told.observer.unpriced("openai", "m", (f"usage.made_up_{number}_tokens",))
    told.observer.unpriced("openai", "m", ("x" * 65, "No Name"))
    labels = [name for name in told.counts if name.startswith("penstock_unpriced_usage_total")]
    assert len(labels) == 101
    assert told.counts["penstock_unpriced_usage_total{provider=openai,what=other}"] == 52
