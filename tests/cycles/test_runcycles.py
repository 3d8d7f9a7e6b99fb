"""The real Python client of Cycles, as its package has it, before a real gateway: every endpoint, the decorator and streams, heartbeats,
commits whose answer was lost, that came too late or that had to be journaled; each charged once.

Every test asks as both clients do, the blocking one and the asynchronous one, for a tenant of its own.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
import runcycles
from runcycles import (
    Action,
    Amount,
    AsyncCyclesClient,
    BudgetExceededError,
    CommitRequest,
    CyclesClient,
    CyclesProtocolError,
    DebtOutstandingError,
    Decision,
    DecisionRequest,
    EventCreateRequest,
    OverdraftLimitExceededError,
    ReleaseRequest,
    ReservationCreateRequest,
    ReservationExtendRequest,
    ReservationStatus,
    Subject,
    Unit,
)

from tests.support.config import Setup, policy
from tests.support.cycles import CENT, Opened, Plane, new_tenant
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess
from tests.support.http_between import HttpBetween
from tests.support.valkey import Server

DOLLAR: Final = 100 * CENT
WITHIN_S: Final = 20.0
QUICK: Final = {"retry_initial_delay": 0.02, "retry_max_delay": 0.1}  # of the client's retries
ACTION: Final = Action(kind="llm.completion", name="test-model")


# -- a gateway, and clients of it -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", pytest.param("valkey", marks=pytest.mark.deep)])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp(f"runcycles-{request.param}")
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Server(folder / "valkey")).url if request.param == "valkey" else None
        rules = {**policy(), "budgets": []}  # the budgets are those that the admin plane makes
        running = stack.enter_context(GatewayProcess(Setup(folder, "http://127.0.0.1:9/v1", policy=rules, ledger=store)))
        yield running
        assert running.troubles == []


@pytest.fixture(scope="module")
def plane(gateway: GatewayProcess) -> Plane:
    return Plane(f"{gateway.url}/cycles", ADMIN_TOKEN)


@pytest.fixture
def own(plane: Plane) -> Opened:
    """A tenant with a dollar."""
    return plane.opened(DOLLAR)


@pytest.fixture
def way(gateway: GatewayProcess) -> Iterator[HttpBetween]:
    """A way to the gateway on which answers can be lost."""
    with HttpBetween(gateway.setup.port) as between:
        yield between


@dataclass(frozen=True, slots=True)
class Asking:
    """Either client, asked alike."""

    client: CyclesClient | AsyncCyclesClient

    async def __call__(self, endpoint: str, *args: Any, **query: str) -> Any:
        """The client's `CyclesResponse`."""
        method = getattr(self.client, endpoint)
        if isinstance(self.client, AsyncCyclesClient):
            return await method(*args, **query)
        return await asyncio.to_thread(method, *args, **query)

    async def decorated(self, work: Callable[[], Any], takes_s: float = 0.0, **options: Any) -> Any:
        """What a function decorated with `@cycles` returns or raises; it does `work` and takes that long."""
        if isinstance(self.client, AsyncCyclesClient):

            @runcycles.cycles(client=self.client, **options)
            async def coroutine() -> Any:
                done = work()
                await asyncio.sleep(takes_s)
                return done

            return await coroutine()

        @runcycles.cycles(client=self.client, **options)
        def function() -> Any:
            done = work()
            time.sleep(takes_s)
            return done

        return await asyncio.to_thread(function)

    async def streamed(self, work: Callable[[Any], Any], **options: Any) -> Any:
        """What `work` gave inside a reservation for a stream, which it is handed."""
        if isinstance(self.client, AsyncCyclesClient):
            async with self.client.stream_reservation(**options) as reservation:
                return work(reservation)

        def streams(client: CyclesClient) -> Any:
            with client.stream_reservation(**options) as reservation:
                return work(reservation)

        return await asyncio.to_thread(streams, self.client)


@dataclass(frozen=True, slots=True)
class Clients:
    """Makes the client that the test runs with."""

    kind: type[CyclesClient] | type[AsyncCyclesClient]
    made: list[CyclesClient | AsyncCyclesClient]

    def of(self, own: Opened, journal: Path | None = None, through: HttpBetween | None = None, **more: Any) -> Asking:
        if through is not None:
            more["base_url"] = f"{through.url}/cycles"
        self.made.append(self.kind(own.config(journal, **QUICK, **more)))
        return Asking(self.made[-1])


@pytest.fixture(params=[CyclesClient, AsyncCyclesClient], ids=["sync", "async"])
async def clients(request: pytest.FixtureRequest) -> Any:
    made: list[CyclesClient | AsyncCyclesClient] = []
    yield Clients(request.param, made)
    for client in made:
        if isinstance(client, AsyncCyclesClient):
            await client.aclose()
        else:
            client.close()


def reservation(of: Opened, cents: int, key: str = "r-1", **more: Any) -> ReservationCreateRequest:
    request = {"idempotency_key": key, "subject": Subject(tenant=of.tenant), "action": ACTION, "estimate": usd(cents)}
    return ReservationCreateRequest(**{**request, **more})


def commit(cents: int, key: str = "c-1", **more: Any) -> CommitRequest:
    return CommitRequest(idempotency_key=key, actual=usd(cents), **more)


def usd(cents: int) -> Amount:
    return Amount(unit=Unit.USD_MICROCENTS, amount=cents * CENT)


async def held(asking: Asking, of: Opened, cents: int, **more: Any) -> str:
    answer = await asking("create_reservation", reservation(of, cents, **more))
    assert answer.is_success, answer
    return str(answer.body["reservation_id"])


def error(answer: Any) -> tuple[int, str]:
    """Status and code; the rest of the error's body has to be as the client wants it."""
    told = answer.get_error_response()
    assert told is not None, answer.body
    assert told.request_id == answer.request_id
    return answer.status, told.error


async def within(condition: Callable[[], Any | Awaitable[Any]], wanted: Any) -> None:
    """Returns as soon as it is so."""
    deadline = time.monotonic() + WITHIN_S
    while (now := await asyncio.to_thread(condition)) != wanted:
        assert time.monotonic() < deadline, f"{now} is not {wanted}"
        await asyncio.sleep(0.02)


# -- every endpoint -------------------------------------------------------------------------------------------------------------------


async def test_a_reservation_lives_is_extended_and_is_charged_what_it_cost(own: Opened, clients: Clients) -> None:
    asking = clients.of(own)
    made = await asking("create_reservation", reservation(own, 30, metadata={"ticket": "4782"}))
    assert made.status == 200
    result = runcycles.ReservationCreateResponse.model_validate(made.body)
    assert (result.decision, result.scope_path, result.reserved) == (Decision.ALLOW, own.scope, usd(30))
    assert result.affected_scopes == [own.scope]
    assert own.balance()["reserved"] == 30 * CENT

    extended = await asking(
        "extend_reservation", result.reservation_id, ReservationExtendRequest(idempotency_key="e-1", extend_by_ms=30_000)
    )
    later = runcycles.ReservationExtendResponse.model_validate(extended.body)
    assert (extended.status, later.expires_at_ms) == (200, (result.expires_at_ms or 0) + 30_000)

    detail = runcycles.ReservationDetail.model_validate((await asking("get_reservation", result.reservation_id)).body)
    assert (detail.status, detail.reserved, detail.expires_at_ms) == (ReservationStatus.ACTIVE, usd(30), later.expires_at_ms)
    assert (detail.metadata, detail.action, detail.subject.tenant) == ({"ticket": "4782"}, ACTION, own.tenant)

    done = await asking("commit_reservation", result.reservation_id, commit(21))
    settled = runcycles.CommitResponse.model_validate(done.body)
    assert (done.status, settled.charged, settled.released) == (200, usd(21), usd(9))
    detail = runcycles.ReservationDetail.model_validate((await asking("get_reservation", result.reservation_id)).body)
    assert (detail.status, detail.committed) == (ReservationStatus.COMMITTED, usd(21))
    assert own.balance() == {"remaining": 79 * CENT, "reserved": 0, "spent": 21 * CENT, "allocated": DOLLAR}


async def test_what_is_released_costs_nothing_and_both_are_listed(own: Opened, clients: Clients) -> None:
    asking = clients.of(own)
    released, live = [await held(asking, own, 30, key=key) for key in ("r-1", "r-2")]
    done = await asking("release_reservation", released, ReleaseRequest(idempotency_key="x-1", reason="not needed"))
    assert runcycles.ReleaseResponse.model_validate(done.body).released == usd(30)
    assert own.balance()["spent"] == 0

    listed = await asking("list_reservations", tenant=own.tenant)
    told = runcycles.ReservationListResponse.model_validate(listed.body)
    assert {each.reservation_id: each.status for each in told.reservations} == {
        released: ReservationStatus.RELEASED,
        live: ReservationStatus.ACTIVE,
    }
    only = await asking("list_reservations", tenant=own.tenant, status="ACTIVE")
    assert [each["reservation_id"] for each in only.body["reservations"]] == [live]
    first = await asking("list_reservations", tenant=own.tenant, limit="1")
    assert first.body["has_more"] is True
    second = await asking("list_reservations", tenant=own.tenant, limit="1", cursor=first.body["next_cursor"])
    both = [each["reservation_id"] for page in (first, second) for each in page.body["reservations"]]
    assert sorted(both) == sorted([released, live])


async def test_an_event_is_charged_once_however_often_it_comes(own: Opened, clients: Clients) -> None:
    asking = clients.of(own)
    event = EventCreateRequest(idempotency_key="v-1", subject=Subject(tenant=own.tenant), action=ACTION, actual=usd(12))
    for _ in range(3):
        answer = await asking("create_event", event)
        assert answer.status == 201
        assert runcycles.EventCreateResponse.model_validate(answer.body).event_id
    assert own.balance()["spent"] == 12 * CENT


async def test_a_decision_and_the_balances_tell_what_a_reservation_would_find(own: Opened, clients: Clients) -> None:
    asking = clients.of(own)

    async def decided(cents: int) -> runcycles.DecisionResponse:
        request = DecisionRequest(
            idempotency_key=f"d-{cents}", subject=Subject(tenant=own.tenant), action=ACTION, estimate=usd(cents)
        )
        answer = await asking("decide", request)
        assert answer.status == 200
        return runcycles.DecisionResponse.model_validate(answer.body)

    assert (await decided(100)).decision is Decision.ALLOW
    no = await decided(101)
    assert (no.decision, no.reason_code) == (Decision.DENY, "BUDGET_EXCEEDED")
    answer = await asking("get_balances", tenant=own.tenant)
    [balance] = runcycles.BalanceResponse.model_validate(answer.body).balances
    assert (balance.scope_path, balance.remaining.amount, balance.allocated) == (own.scope, DOLLAR, usd(100))


async def test_answers_carry_the_headers_that_the_client_reads(own: Opened, clients: Clients) -> None:
    asking = clients.of(own)
    for answer in (await asking("create_reservation", reservation(own, 1)), await asking("get_balances", tenant=own.tenant)):
        assert answer.request_id
        assert answer.cycles_tenant == own.tenant
        assert answer.rate_limit_remaining is not None


# -- the decorator and streams --------------------------------------------------------------------------------------------------------


async def test_a_decorated_function_is_charged_what_it_returned(own: Opened, clients: Clients) -> None:
    def work() -> int:
        context = runcycles.get_cycles_context()
        assert context is not None
        assert own.balance()["reserved"] == 5 * CENT
        context.metrics = runcycles.CyclesMetrics(tokens_input=10, tokens_output=20)
        context.commit_metadata = {"ticket": "4782"}
        return 3

    cost = await clients.of(own).decorated(work, estimate=5 * CENT, actual=lambda cents: cents * CENT, action_kind="tool.call")
    assert cost == 3
    assert (own.balance()["spent"], own.balance()["reserved"]) == (3 * CENT, 0)


async def test_without_an_actual_cost_the_estimate_is_charged(own: Opened, clients: Clients) -> None:
    await clients.of(own).decorated(lambda: "done", estimate=4 * CENT)
    assert own.balance()["spent"] == 4 * CENT


async def test_a_decorated_function_that_fails_is_released(own: Opened, clients: Clients) -> None:
    def work() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await clients.of(own).decorated(work, estimate=5 * CENT)
    assert (own.balance()["spent"], own.balance()["reserved"]) == (0, 0)


async def test_a_stream_is_charged_by_its_usage(own: Opened, clients: Clients) -> None:
    def work(stream: Any) -> str:
        for _ in range(7):
            stream.usage.add_output_tokens(1_000)
        return str(stream.reservation_id)

    options = {"action": ACTION, "estimate": usd(10), "cost_fn": lambda usage: usage.tokens_output * 1_000}
    asking = clients.of(own)
    done = await asking.streamed(work, **options)
    assert own.balance()["spent"] == 7 * CENT
    assert (await asking("get_reservation", done)).body["status"] == "COMMITTED"


async def test_a_stream_that_breaks_off_is_released(own: Opened, clients: Clients) -> None:
    def work(_: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await clients.of(own).streamed(work, action=ACTION, estimate=usd(10))
    assert (own.balance()["spent"], own.balance()["reserved"]) == (0, 0)


async def test_a_dry_run_holds_nothing_and_says_what_would_be(own: Opened, clients: Clients) -> None:
    asking = clients.of(own)
    would = await asking.decorated(lambda: 1 / 0, estimate=5 * CENT, dry_run=True)
    assert isinstance(would, runcycles.DryRunResult)
    assert (would.is_allowed(), would.affected_scopes) == (True, [own.scope])
    with pytest.raises(CyclesProtocolError) as denied:
        await asking.decorated(lambda: 1 / 0, estimate=101 * CENT, dry_run=True)
    assert denied.value.reason_code == "BUDGET_EXCEEDED"
    assert own.balance() == {"remaining": DOLLAR, "reserved": 0, "spent": 0, "allocated": DOLLAR}


async def test_caps_of_a_policy_reach_the_function(plane: Plane, own: Opened, clients: Clients) -> None:
    plane.policy(own.tenant, own.scope, max_tokens=512, tool_denylist=["shell"], cooldown_ms=250)
    asking = clients.of(own)

    def work() -> Any:
        context = runcycles.get_cycles_context()
        assert context is not None
        assert context.decision is Decision.ALLOW_WITH_CAPS
        return context.caps

    caps = await asking.decorated(work, estimate=CENT)
    assert (caps.max_tokens, caps.cooldown_ms, caps.is_tool_allowed("shell")) == (512, 250, False)
    streamed = await asking.streamed(lambda stream: (stream.decision, stream.caps), action=ACTION, estimate=usd(1))
    assert streamed == (Decision.ALLOW_WITH_CAPS, caps)
    request = DecisionRequest(idempotency_key="d-1", subject=Subject(tenant=own.tenant), action=ACTION, estimate=usd(1))
    assert (await asking("decide", request)).body["caps"] == {"max_tokens": 512, "tool_denylist": ["shell"], "cooldown_ms": 250}


# -- leases, lost answers, and commits that come late -----------------------------------------------------------------------------------


async def test_the_heartbeat_carries_a_function_over_its_lease(own: Opened, clients: Clients) -> None:
    asking = clients.of(own)
    await asking.decorated(lambda: None, 1.4, estimate=5 * CENT, ttl_ms=1_000, grace_period_ms=0)
    [only] = (await asking("list_reservations", tenant=own.tenant)).body["reservations"]
    assert only["status"] == "COMMITTED"
    assert own.balance()["spent"] == 5 * CENT


async def test_a_commit_whose_answer_was_lost_is_charged_once(
    own: Opened, clients: Clients, way: HttpBetween, tmp_path: Path
) -> None:
    asking = clients.of(own, tmp_path / "journal", through=way)
    way.lose("/commit")
    await asking.decorated(lambda: None, estimate=5 * CENT)
    await within(lambda: len(way.asked("/commit")), 2)
    await within(lambda: list((tmp_path / "journal").rglob("*.json")), [])
    first, second = way.asked("/commit")
    assert first == second
    assert (own.balance()["spent"], own.balance()["reserved"]) == (5 * CENT, 0)
    assert way.asked("/events") == []


async def test_a_reservation_whose_answer_was_lost_is_the_same_one_when_the_client_asks_again(
    own: Opened, clients: Clients, way: HttpBetween
) -> None:
    way.lose("/reservations")
    await clients.of(own, through=way).decorated(lambda: None, estimate=5 * CENT)
    first, second = way.asked("/reservations")
    assert first == second
    [commit] = way.asked("/commit")
    [only] = (await clients.of(own)("list_reservations", tenant=own.tenant)).body["reservations"]
    assert only["reservation_id"] in commit.path
    assert (own.balance()["spent"], own.balance()["reserved"]) == (5 * CENT, 0)


async def test_a_commit_that_came_too_late_becomes_an_event_with_its_key_and_is_charged_once(
    own: Opened, clients: Clients, way: HttpBetween, tmp_path: Path
) -> None:
    asking = clients.of(own, tmp_path / "journal", through=way)
    way.block("/extend")
    await asking.decorated(lambda: None, 1.3, estimate=5 * CENT, actual=4 * CENT, ttl_ms=1_000, grace_period_ms=0)
    await within(lambda: len(way.asked("/events")), 1)
    await within(lambda: own.balance()["spent"], 4 * CENT)
    [late], [event] = way.asked("/commit"), way.asked("/events")
    assert event.body["idempotency_key"] == late.body["idempotency_key"]
    assert event.body["metadata"]["recovered_reservation_id"] in late.path
    assert "overage_policy" not in event.body
    await within(own.balance, {"remaining": 96 * CENT, "reserved": 0, "spent": 4 * CENT, "allocated": DOLLAR})
    answer = await asking("get_reservation", event.body["metadata"]["recovered_reservation_id"])
    assert error(answer) == (410, "RESERVATION_EXPIRED")


@pytest.mark.deep
async def test_a_commit_is_taken_within_the_grace_after_the_lease(own: Opened, clients: Clients, way: HttpBetween) -> None:
    asking = clients.of(own, through=way)
    way.block("/extend")
    await asking.decorated(lambda: None, 1.2, estimate=5 * CENT, ttl_ms=1_000, grace_period_ms=30_000)
    await within(lambda: own.balance()["spent"], 5 * CENT)
    assert way.asked("/events") == []


_IN_ANOTHER_PROCESS: Final = """
import sys, runcycles
url, key, tenant, journal = sys.argv[1:]
config = runcycles.CyclesConfig(url, key, tenant=tenant, journal_dir=journal, retry_initial_delay=0.02)
client = runcycles.CyclesClient(config)  # left open: what it still has to make up for is made up for at the process's end
runcycles.cycles(estimate=1_000_000, client=client)(lambda: None)()
"""


async def test_a_commit_that_never_arrived_is_made_by_the_next_process_from_the_journal(
    own: Opened, way: HttpBetween, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    way.block("/commit")
    config = own.config(journal, base_url=f"{way.url}/cycles", retry_max_attempts=1, **QUICK)
    with CyclesClient(config) as client:
        await Asking(client).decorated(lambda: None, estimate=5 * CENT)
        await within(lambda: len(way.asked("/commit")), 2)
    [pending] = journal.rglob("*.json")
    assert (own.balance()["spent"], own.balance()["reserved"]) == (0, 5 * CENT)
    way.let("/commit")
    arguments = (f"{way.url}/cycles", own.key, own.tenant, str(journal))
    ended = await asyncio.create_subprocess_exec(sys.executable, "-c", _IN_ANOTHER_PROCESS, *arguments)
    assert await ended.wait() == 0
    assert not pending.exists()
    assert (own.balance()["spent"], own.balance()["reserved"]) == (6 * CENT, 0)


@pytest.mark.deep
async def test_a_gateway_that_is_killed_between_reservation_and_commit_charges_once(
    gateway: GatewayProcess, own: Opened, clients: Clients, tmp_path: Path
) -> None:
    def work() -> None:
        gateway.kill()
        gateway.start()

    await clients.of(own, tmp_path / "journal").decorated(work, estimate=5 * CENT)
    await within(lambda: own.balance()["spent"], 5 * CENT)
    assert own.balance()["reserved"] == 0


@pytest.mark.deep
@pytest.mark.timeout(180)
async def test_the_heartbeat_carries_a_function_over_its_default_lease_of_a_minute(
    own: Opened, clients: Clients, way: HttpBetween
) -> None:
    await clients.of(own, through=way).decorated(lambda: None, 67.0, estimate=5 * CENT, grace_period_ms=0)
    assert 1 <= len(way.asked("/extend")) <= 3
    assert own.balance()["spent"] == 5 * CENT
    assert way.asked("/events") == []


# -- refusals -------------------------------------------------------------------------------------------------------------------------


async def test_what_does_not_fit_raises_budget_exceeded(own: Opened, clients: Clients) -> None:
    asking = clients.of(own)
    with pytest.raises(BudgetExceededError) as refused:
        await asking.decorated(lambda: 1 / 0, estimate=101 * CENT)
    assert (refused.value.status, refused.value.error_code, bool(refused.value.request_id)) == (409, "BUDGET_EXCEEDED", True)
    with pytest.raises(BudgetExceededError):
        await asking.streamed(lambda _: None, action=ACTION, estimate=usd(101))
    assert own.balance()["reserved"] == 0


async def test_each_409_says_its_kind(plane: Plane, own: Opened, clients: Clients) -> None:
    asking = clients.of(own)
    first = await held(asking, own, 10)
    assert error(await asking("create_reservation", reservation(own, 11))) == (409, "IDEMPOTENCY_MISMATCH")
    over = CommitRequest(idempotency_key="c-0", actual=usd(11))
    rejects = await held(asking, own, 10, key="r-2", overage_policy="REJECT")
    assert error(await asking("commit_reservation", rejects, over)) == (409, "BUDGET_EXCEEDED")
    assert (await asking("commit_reservation", first, commit(9))).status == 200
    assert (await asking("commit_reservation", first, commit(9))).status == 200
    assert error(await asking("commit_reservation", first, commit(8))) == (409, "IDEMPOTENCY_MISMATCH")
    assert error(await asking("commit_reservation", first, commit(9, key="c-2"))) == (409, "RESERVATION_FINALIZED")
    late = ReleaseRequest(idempotency_key="x-1")
    assert error(await asking("release_reservation", first, late)) == (409, "RESERVATION_FINALIZED")
    plane.freeze(own.scope)
    assert error(await asking("create_reservation", reservation(own, 1, key="r-3"))) == (409, "BUDGET_FROZEN")
    assert (await asking("commit_reservation", rejects, commit(10, key="c-3"))).status == 200
    assert own.balance()["spent"] == 19 * CENT


async def test_an_overdraft_is_a_debt_up_to_its_limit(plane: Plane, clients: Clients) -> None:
    own = plane.opened(DOLLAR)
    scope = f"{own.scope}/agent:miller"
    plane.budget(scope, 10 * CENT, overdraft=5 * CENT)
    asking, subject = clients.of(own), Subject(tenant=own.tenant, agent="Miller")
    made = {"subject": subject, "overage_policy": "ALLOW_WITH_OVERDRAFT"}
    first = await held(asking, own, 10, **made)
    assert error(await asking("commit_reservation", first, commit(16))) == (409, "OVERDRAFT_LIMIT_EXCEEDED")
    assert (await asking("commit_reservation", first, commit(14, key="c-2"))).body["charged"] == usd(14).model_dump()
    assert own.balances()[scope] == {
        "remaining": -4 * CENT,
        "reserved": 0,
        "spent": 10 * CENT,
        "allocated": 10 * CENT,
        "debt": 4 * CENT,
        "overdraft_limit": 5 * CENT,
    }
    with pytest.raises((BudgetExceededError, DebtOutstandingError, OverdraftLimitExceededError)):
        await asking.decorated(lambda: 1 / 0, estimate=CENT, agent="miller")
    plane.fund(scope, "CREDIT", 6 * CENT)
    assert own.balances()[scope]["remaining"] == 2 * CENT
    await asking.decorated(lambda: None, estimate=2 * CENT, agent="miller")


async def test_a_wrong_unit_an_unknown_reservation_and_a_foreign_key_are_told_apart(
    plane: Plane, own: Opened, clients: Clients
) -> None:
    asking, other = clients.of(own), plane.opened(DOLLAR)
    tokens = reservation(own, 1, estimate=Amount(unit=Unit.TOKENS, amount=10))
    assert error(await asking("create_reservation", tokens)) == (400, "UNIT_MISMATCH")
    poor = Opened(own.url, plane.tenant(new_tenant()), "")
    nowhere = clients.of(replace(poor, key=plane.key(poor.tenant)))
    assert error(await nowhere("create_reservation", reservation(poor, 1))) == (404, "NOT_FOUND")
    assert error(await asking("get_reservation", "rsv_unknown")) == (404, "NOT_FOUND")
    theirs = await held(clients.of(other), other, 1)
    assert error(await asking("get_reservation", theirs)) == (403, "FORBIDDEN")
    assert error(await asking("create_reservation", reservation(other, 1))) == (403, "FORBIDDEN")
    assert error(await clients.of(Opened(own.url, own.tenant, "cyc_live_wrong"))("get_balances", tenant=own.tenant)) == (
        401,
        "UNAUTHORIZED",
    )


async def test_a_closed_tenant_and_a_lease_that_was_extended_too_often_are_refused(plane: Plane, clients: Clients) -> None:
    own = plane.opened(DOLLAR, max_reservation_extensions=2)
    asking = clients.of(own)
    first = await held(asking, own, 1)
    more = [
        await asking("extend_reservation", first, ReservationExtendRequest(idempotency_key=f"e-{number}", extend_by_ms=1_000))
        for number in range(3)
    ]
    assert [answer.status for answer in more] == [200, 200, 409]
    assert error(more[2]) == (409, "MAX_EXTENSIONS_EXCEEDED")
    plane.ask("PATCH", f"/tenants/{own.tenant}", {"status": "CLOSED"})
    assert error(await asking("create_reservation", reservation(own, 1, key="r-2"))) == (409, "TENANT_CLOSED")


# -- together -------------------------------------------------------------------------------------------------------------------------


async def test_of_a_hundred_at_once_exactly_as_many_pass_as_fit(plane: Plane, clients: Clients) -> None:
    own = plane.opened(37 * CENT)
    asking = clients.of(own, connect_timeout=30.0, read_timeout=30.0)

    async def one() -> bool:
        try:
            await asking.decorated(lambda: None, estimate=CENT)
        except BudgetExceededError:
            return False
        return True

    assert sum(await asyncio.gather(*(one() for _ in range(100)))) == 37
    assert own.balance() == {"remaining": 0, "reserved": 0, "spent": 37 * CENT, "allocated": 37 * CENT}
