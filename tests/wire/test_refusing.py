"""Who is refused how: the SDKs as designed, and the few clients that would try again in the way that makes them stop."""

import re
from dataclasses import replace

import orjson
import pytest

from gateway import bundled
from gateway.core.scopes import Unit
from gateway.wire import chat, messages, responses
from gateway.wire.problem import BudgetFacts, problem
from gateway.wire.refusing import Reader, Readers

READERS = bundled.load_clients()
CEILING = problem("run_ceiling_reached", "Run r1 has reached its ceiling: limit $2.00.")
CODEX = "codex_exec/0.169.0 (Debian 12.0.0; x86_64) unknown (codex_exec; 0.169.0)"
SDK = "OpenAI/Python 2.54.0"


@pytest.mark.parametrize("agent", ["", SDK, "claude-cli/2.1.330 (external, sdk-cli)", "ai/7.0.173 ai-sdk/openai/4.0.118"])
@pytest.mark.parametrize("dialect", [chat.DIALECT, responses.DIALECT], ids=lambda each: each.name)
@pytest.mark.parametrize("stream", [False, True])
def test_everybody_else_gets_402_and_the_text(agent, dialect, stream) -> None:
    answer = READERS.answer(CEILING, dialect, agent, stream)
    assert (answer.status, answer.headers, answer.body) == (402, CEILING.headers(), CEILING.body(dialect.shape))


@pytest.mark.parametrize(
    "code", ["run_ceiling_reached", "run_stopped", "too_many_runs", "model_not_priced", "run_owned_by_another"]
)
def test_codex_reads_the_text_in_the_stream_that_it_asked_for(code: str) -> None:
    said = problem(code, "Run r1 has reached its ceiling: limit $2.00.")
    answer = READERS.answer(said, responses.DIALECT, CODEX, stream=True)
    assert answer.status == 200
    assert dict(answer.headers) == {"content-type": "text/event-stream", "x-should-retry": "false"}
    kind, data, *rest = answer.body.split(b"\n")
    assert (kind, rest) == (b"event: response.failed", [b"", b""])
    event = orjson.loads(data.removeprefix(b"data: "))
    assert (event["type"], event["response"]["status"]) == ("response.failed", "failed")
    assert event["response"]["error"] == {"code": "invalid_prompt", "message": said.detail}


@pytest.mark.parametrize(("dialect", "stream"), [(responses.DIALECT, False), (chat.DIALECT, True), (chat.DIALECT, False)])
def test_where_no_stream_can_tell_it_codex_gets_the_one_status_that_it_does_not_try_again(dialect, stream: bool) -> None:
    answer = READERS.answer(CEILING, dialect, CODEX, stream)
    assert (answer.status, answer.headers, answer.body) == (400, CEILING.headers(), CEILING.body(dialect.shape))


@pytest.mark.parametrize(("agent", "status"), [("Aider/0.86.2", 400), ("mini-swe-agent/2.4", 404)])
def test_clients_that_go_through_another_library_get_the_status_that_it_gives_up_at(agent: str, status: int) -> None:
    assert READERS.answer(CEILING, chat.DIALECT, agent, stream=True).status == status


@pytest.mark.parametrize("dialect", [chat.DIALECT, responses.DIALECT, messages.DIALECT], ids=lambda each: each.name)
def test_opencode_finds_none_of_the_numbers_for_which_it_would_try_again(dialect) -> None:
    facts = BudgetFacts("ceiling", "run", "r1", Unit.USD, 500_0000, 50_3000, 0, 429_0000, 524_0000, 5_040, None, "2026-500")
    text = "Run r1 has reached its ceiling: limit $0.0500, spent $0.01503; to go on: lower max_tokens (now 5,024), 429, 500500."
    said = replace(problem("run_ceiling_reached", text), budget=facts)
    answer = READERS.answer(said, dialect, "opencode/1.18.33 ai-sdk/provider-utils/5.0.1", stream=True)
    assert (answer.status, answer.headers) == (402, said.headers())
    assert not re.search(rb"429|500|502|503|504|524", answer.body)
    told = orjson.loads(answer.body)
    assert told["error"]["message"].replace("\u2060", "") == told["detail"].replace("\u2060", "") == text
    assert (told["status"], told["code"]) == (402, "run_ceiling_reached")


@pytest.mark.parametrize(
    "code", ["rate_of_spend", "overloaded", "ledger_unavailable", "ledger_lost", "provider_timeout", "invalid_key"]
)
def test_what_may_be_tried_again_or_is_no_refusal_of_the_call_keeps_its_status(code: str) -> None:
    said = problem(code, "Later.")
    for stream in (False, True):
        answer = READERS.answer(said, responses.DIALECT, CODEX, stream)
        assert (answer.status, answer.body) == (said.status, said.body())


def test_the_first_entry_that_fits_counts() -> None:
    readers = Readers([Reader("one", "agent", 400), Reader("two", "agent/2", 404)])
    assert readers.answer(CEILING, chat.DIALECT, "Agent/2", stream=False).status == 400


def test_user_agents_without_end_are_forgotten() -> None:
    readers = Readers([Reader("one", "agent", 400)])
    for number in range(3_000):
        readers.answer(CEILING, chat.DIALECT, f"agent/{number}", stream=False)
    assert readers._of.cache_info().currsize == 1024
