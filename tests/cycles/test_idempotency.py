"""Whatever is sent twice, in whatever order and whatever else happens between: it counts once, and is answered as it was."""

import asyncio
import random
from typing import Any

import pytest

from gateway.ledger.contract import Ledger
from tests.cycles.world import TENANT, World, without_ttl
from tests.support.clock import Clock

STEPS = 60


@pytest.mark.parametrize("seed", range(4))
async def test_random_histories_count_each_key_once(ledger: Ledger, clock: Clock, seed: int) -> None:
    """A small model of its own: the sum of what was answered is what the balance says, and every answer comes again the same."""
    chosen = random.Random(seed)
    world = await World(ledger, clock).open(5_000)
    first: dict[tuple[str, ...], tuple[int, dict[str, Any]]] = {}  # what a request was answered, by all that it says
    live: dict[str, int] = {}
    spent = 0

    async def once(what: tuple[str, ...], ask: Any) -> tuple[int, dict[str, Any], bool]:
        answers = await asyncio.gather(*(ask() for _ in range(chosen.choice((1, 1, 2, 3)))))
        new = what not in first
        if new:
            first[what] = answers[0]
        for status, body in answers:
            if first[what][0] < 300:  # what was refused may be asked for again
                assert (status, without_ttl(body)) == (first[what][0], without_ttl(first[what][1])), what
        return *first[what], new

    for number in range(STEPS):
        clock.now_ms += chosen.choice((0, 1, 500))
        act = chosen.choice(("reserve", "reserve", "commit", "release", "event", "extend"))
        key, amount = f"k{chosen.randrange(STEPS // 2)}", 0
        if act == "reserve":
            amount = 10 * (int(key[1:]) % 30)
            status, body, new = await once(
                (act, key),
                lambda key=key, amount=amount: world.reserve(amount, key=key, grace_period_ms=60_000, ttl_ms=86_400_000),
            )
            if new and status == 200:
                live[body["reservation_id"]] = amount
        elif act == "event":
            amount = int(key[1:]) * 7 % 40
            status, _, new = await once(
                (act, key), lambda key=key, amount=amount: world.event(amount, key=key, overage_policy="REJECT")
            )
            spent += amount if new and status == 201 else 0
        elif live:
            of = chosen.choice(sorted(live))
            if act == "extend":
                await once((act, of, key), lambda of=of, key=key: world.extend(of, 1_000, key=key))
            elif act == "commit":
                spent += (used := live.pop(of) // 2)
                status, _, _ = await once((act, of, key), lambda of=of, used=used, key=key: world.commit(of, used, key=key))
                assert status == 200
            else:
                live.pop(of)
                status, _, _ = await once((act, of, key), lambda of=of, key=key: world.release(of, key=key))
                assert status == 200
        if number % 10 == 9:
            balance = await world.balance(f"tenant:{TENANT}")
            assert (balance["spent"], balance["reserved"]) == (spent, sum(live.values()))


async def test_a_dry_run_and_a_live_request_with_one_key_at_once_are_never_both_taken(world: World) -> None:
    for number in range(10):
        key = f"race-{number}"
        answers = await asyncio.gather(world.reserve(10, key=key, dry_run=True), world.reserve(10, key=key))
        assert sorted(status for status, _ in answers) == [200, 409]
        held = answers[1][0] == 200
        assert (await world.balance())["reserved"] == (10 if held else 0)
        if held:
            await world.release(answers[1][1]["reservation_id"])
