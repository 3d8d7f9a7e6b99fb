"""Lines out: one a call, with what operators ask for; never a key, a prompt or a wait."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.core.scopes import Amounts
from gateway.core.values import Usage, UsageSource
from gateway.events import CallEvent, Events, open_sink
from gateway.ledger.contract import Alert, Expired
from tests.support.records import USD, caller, decision, hold, receipt, run_account

KEY = "sk-sentinel-4f1d"
PROMPT = "sentinel prompt: my deepest secret"


class Lines:
    """A sink that keeps what it is given, and takes it only while `open`."""

    def __init__(self) -> None:
        self.raw = b""
        self.open = threading.Event()
        self.open.set()

    def __call__(self, data: bytes) -> None:
        self.open.wait(10)
        self.raw += data

    @property
    def parsed(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.raw.splitlines()]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def events(lines: Lines) -> Iterator[Events]:
    made = Events(lines)
    yield made
    lines.open.set()
    made.close()


def one_call(**dimensions: str) -> CallEvent:
    return CallEvent(
        request_id="req_1",
        caller=caller(**dimensions),
        decision_id="bdg_1",
        outcome="downgrade",
        code="",
        requested_model="gpt-5",
        selected_model="gpt-5-mini",
        provider="openai",
        status=200,
        stream=True,
        usage=Usage(UsageSource.PROVIDER, input_tokens=600, cached_tokens=200, output_tokens=40),
        held=USD // 10,
        charged=3_141_592,
        ending="completed",
        added_ms=0.41234,
        duration_ms=812.5,
    )


def test_a_call_is_one_line_of_json(events: Events, lines: Lines) -> None:
    events.call(one_call(team="research", agent="a1"))
    events.close()
    (line,) = lines.parsed
    told = datetime.fromisoformat(str(line.pop("ts")))
    assert abs((datetime.now(UTC) - told).total_seconds()) < 5
    assert line == {
        "level": "info",
        "event": "call",
        "request_id": "req_1",
        "tenant": "default",
        "key": "key_a",
        "run": "r1",
        "decision_id": "bdg_1",
        "outcome": "downgrade",
        "code": "",
        "requested_model": "gpt-5",
        "selected_model": "gpt-5-mini",
        "provider": "openai",
        "status": 200,
        "stream": True,
        "held_usd": "0.10",
        "charged_usd": "0.03141592",
        "ending": "completed",
        "added_ms": 0.412,
        "duration_ms": 812.5,
        "dimensions": {"agent": "a1", "team": "research"},
        "input_tokens": 600,
        "cached_tokens": 200,
        "cache_write_tokens": 0,
        "output_tokens": 40,
        "usage": "provider",
    }


def test_a_call_that_never_had_a_decision_says_so_with_nulls(events: Events, lines: Lines) -> None:
    events.call(
        CallEvent(
            "req_2", caller(), None, "", "run_id_invalid", "gpt-5", None, None, 400, False, None, None, None, None, None, 0.2
        )
    )
    events.close()
    (line,) = lines.parsed
    assert line["code"] == "run_id_invalid"
    assert line["decision_id"] is None
    assert line["charged_usd"] is None
    assert "usage" not in line


def test_a_lease_that_lapsed_is_told_without_alarm(events: Events, lines: Lines) -> None:
    events.expired(Expired("rsv_1", "r1", Amounts(0, 0, 0), lapsed=True))
    events.expired(Expired("rsv_2", "r1", Amounts(USD, 1)))
    events.close()
    lapsed, expired = lines.parsed
    assert (lapsed["event"], lapsed["level"], lapsed["hold_id"], lapsed["run"]) == ("lapsed", "info", "rsv_1", "r1")
    assert (expired["event"], expired["level"], expired["charged_usd"]) == ("expired", "warning", "1.00")


def test_neither_key_nor_prompt_is_ever_in_a_line(events: Events, lines: Lines) -> None:
    decided = decision(prompt=PROMPT)
    done = receipt(hold(decided))
    events.call(one_call())
    events.overrun(done, "usage_above_hold")
    events.alert(Alert(run_account(), 800_000, 5 * USD, 4 * USD))
    events.expired(Expired("rsv_1", "r1", Amounts(1, 1)))
    try:
        json.loads(f'{{"messages": "{PROMPT}", "authorization": "{KEY}" oops')
    except ValueError as error:
        error.add_note(f"{KEY} {PROMPT}")
        events.problem("flow", error, "req_1")
    try:
        {}[f"{KEY} {PROMPT}"]
    except KeyError as error:
        events.problem("flow", error)
        events.log.exception("flow_failed", error=error)
    events.close()
    text = lines.raw.decode()
    assert len(lines.parsed) == 7
    assert "sentinel" not in text.replace("test_neither_key_nor_prompt", "")
    assert "secret" not in text


def test_a_problem_says_its_type_and_its_places(events: Events, lines: Lines) -> None:
    def breaks() -> None:
        raise ZeroDivisionError(PROMPT)

    try:
        breaks()
    except ZeroDivisionError as error:
        events.problem("reaper", error)
    events.close()
    (line,) = lines.parsed
    assert (line["event"], line["level"], line["where"], line["error"]) == ("problem", "error", "reaper", "ZeroDivisionError")
    places = line["places"]
    assert isinstance(places, list)
    assert places[-1].endswith(" breaks")


def test_an_alert_names_the_account_and_its_amounts_in_usd(events: Events, lines: Lines) -> None:
    events.alert(Alert(run_account("r42"), 800_000, 5 * USD, 4 * USD + USD // 2))
    events.close()
    (line,) = lines.parsed
    assert line["budget"] == "run-ceiling"
    assert line["scope"] == {"run": "r42"}
    assert (line["threshold"], line["limit"], line["committed"]) == ("80%", "5.00", "4.50")


def test_a_policy_that_is_refused_is_told_with_every_mistake(events: Events, lines: Lines) -> None:
    events.policy("v1", ["agent-day starts at $0 from now"])
    events.policy_refused("v1", ["policy.yaml:3: limit: expected an amount"])
    events.close()
    taken, refused = lines.parsed
    assert (taken["event"], taken["changes"]) == ("policy", ["agent-day starts at $0 from now"])
    assert (refused["level"], refused["version_kept"]) == ("error", "v1")
    assert refused["mistakes"] == ["policy.yaml:3: limit: expected an amount"]


@pytest.mark.parametrize("value", ["two\nlines", 'a "quote"', "\udcff\udc80 raw bytes", "\x00\x1b[31m"])
def test_no_value_that_a_caller_chose_can_break_out_of_its_line(events: Events, lines: Lines, value: str) -> None:
    events.call(one_call(user=value))
    events.close()
    (line,) = lines.parsed
    assert line["dimensions"] == {"user": value}


def test_a_sink_that_is_stuck_makes_nobody_wait_and_what_is_lost_is_told(lines: Lines) -> None:
    events = Events(lines, max_buffered_bytes=20_000)
    lines.open.clear()
    started = time.perf_counter()
    for _ in range(1_000):
        events.call(one_call())
    assert time.perf_counter() - started < 1.0
    assert events.dropped > 900
    lines.open.set()
    events.close()
    told = [line for line in lines.parsed if line["event"] == "lines_dropped"]
    calls = [line for line in lines.parsed if line["event"] == "call"]
    assert sum(int(str(line["lines"])) for line in told) == events.dropped
    assert len(calls) + events.dropped == 1_000


def test_of_calls_that_wait_to_be_written_there_is_no_end_but_the_buffers(lines: Lines) -> None:
    lines.open.clear()
    events = Events(lines, max_buffered_bytes=3 * 1024)
    for _ in range(10):
        events.call(one_call())
    assert events.dropped == 7
    lines.open.set()
    events.close()
    assert [line["event"] for line in lines.parsed].count("call") == 3


def test_a_call_is_told_with_the_time_when_it_was_over_not_when_it_was_written(events: Events, lines: Lines) -> None:
    lines.open.clear()
    before = datetime.now(UTC)
    events.call(one_call())
    after = datetime.now(UTC)
    lines.open.set()
    events.close()
    (line,) = lines.parsed
    told = datetime.fromisoformat(str(line["ts"]))
    assert before - timedelta(milliseconds=1) <= told <= after


def test_a_call_that_cannot_be_told_is_a_problem_and_those_after_it_are_told(events: Events, lines: Lines) -> None:
    events.call(replace(one_call(), caller=None))  # type: ignore[arg-type] - a bug that nobody planned for
    events.call(one_call())
    events.close()
    problem, call = lines.parsed
    assert (problem["event"], problem["error"], problem["request_id"]) == ("problem", "AttributeError", "req_1")
    assert call["event"] == "call"


def test_closing_does_not_wait_for_a_sink_that_is_stuck(lines: Lines) -> None:
    events = Events(lines)
    lines.open.clear()
    events.call(one_call())
    started = time.perf_counter()
    events.close(timeout_seconds=0.2)
    assert time.perf_counter() - started < 2.0
    lines.open.set()


def test_a_sink_that_fails_loses_lines_and_nothing_else() -> None:
    broken = True
    taken: list[bytes] = []

    def sink(data: bytes) -> None:
        if broken:
            raise OSError(28, "No space left on device")
        taken.append(data)

    events = Events(sink)
    events.call(one_call())
    deadline = time.monotonic() + 5
    while events.dropped == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    broken = False
    events.call(one_call())
    events.close()
    written = [json.loads(line)["event"] for line in b"".join(taken).splitlines()]
    assert events.dropped == 1
    assert written == ["call", "lines_dropped"]


def test_lines_from_many_threads_all_arrive_whole(events: Events, lines: Lines) -> None:
    def many() -> None:
        for _ in range(200):
            events.call(one_call())

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events.close()
    assert len(lines.parsed) == 1_600


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event":"earlier"}\n')
    events = Events(open_sink(str(path)))
    events.log.info("serving", listen="127.0.0.1:8080")
    events.close()
    earlier, serving = [json.loads(line) for line in path.read_text().splitlines()]
    assert earlier == {"event": "earlier"}
    assert (serving["event"], serving["listen"], serving["level"]) == ("serving", "127.0.0.1:8080", "info")


def test_writes_to_a_pipe_hold_whole_lines_small_enough_not_to_be_torn() -> None:
    writes: list[bytes] = []
    events = Events(writes.append)
    for _ in range(100):
        events.call(one_call())
    events.close()
    assert all(data.endswith(b"\n") and len(data) <= 4096 for data in writes)
    assert len(writes) < 50
    assert b"".join(writes).count(b"\n") == 100
