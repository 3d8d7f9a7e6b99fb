"""The ACL rule of docs/store.md is enough for everything that a gateway asks of Redis or Valkey, and for nothing dangerous."""

import time
from pathlib import Path

import pytest

from gateway import store_url
from gateway.core.values import Ending, Hold
from gateway.ledger.contract import Debiting, Keep, Ledger
from gateway.ledger.opening import adopt, ledger_of
from gateway.ledger.verify import verify_ledger
from gateway.settings import RedisSettings
from tests.ledger.builders import LEASE_MS, TENANT, account, caller, charge, decision, plan, settlement
from tests.support.examples import examples
from tests.support.valkey import Refused, Server, commands

FROZEN = (("team", "x"),)


@pytest.fixture
def rule() -> str:
    (example,) = [each for each in examples("text") if each.name == "acl"]
    command, setuser, name, *rules = example.text.split()
    assert (command, setuser, name) == ("ACL", "SETUSER", "penstock")
    return " ".join(rules)


async def every_step(ledger: Ledger) -> None:
    now_ms = time.time_ns() // 1_000_000
    hold = await ledger.reserve(decision(plan(charge(account(), None)), at_ms=now_ms), LEASE_MS)
    assert isinstance(hold, Hold)
    await ledger.extend(TENANT, hold.id, LEASE_MS)
    await ledger.commit(TENANT, hold.id, settlement())
    await ledger.release(TENANT, "rsv_never", Ending.NOT_SENT)
    await ledger.reserve(decision(plan(charge(account("full"), 1)), at_ms=now_ms), LEASE_MS)
    await ledger.debit(decision(plan(charge(account(), None)), at_ms=now_ms), settlement(), Debiting.ASK)
    await ledger.pause(TENANT, "r1", "me", "why")
    await ledger.resume(TENANT, "r1", "me", "why")
    await ledger.stop(TENANT, "r1", "me", "why")
    await ledger.freeze(TENANT, FROZEN, "me", "why")
    await ledger.frozen(TENANT)
    await ledger.thaw(TENANT, FROZEN, "me", "why")
    await ledger.adjust(TENANT, account().key, 1, "act_1", "me", "why")
    await ledger.set_account_limit(TENANT, account().key, 100, "me", "why")
    await ledger.reset(TENANT, account().key, "me", "why")
    await ledger.acts(TENANT, 10)
    await ledger.runs(TENANT, None, 10)
    await ledger.run(TENANT, "r1")
    await ledger.record(TENANT, hold.decision.id)
    await ledger.holds(TENANT, None, 10)
    await ledger.expire()
    await ledger.halted(TENANT, [caller()])
    await ledger.spend(TENANT, ["day"], 0, now_ms + 1, None)
    assert (await verify_ledger(ledger.dump())).different == 0
    await ledger.retire(TENANT, [each.decision_id for each in await ledger.aged(Keep(0, 0), 10)], Keep(0, 0))
    await ledger.sweep(Keep(0, 0), 10)


async def test_the_acl_rule_of_the_page_is_enough(rule: str, tmp_path: Path) -> None:
    with Server(tmp_path / "server", users={"penstock": rule}) as server:
        config = RedisSettings(store_url.parse(f"redis://penstock:SECRET@127.0.0.1:{server.port}"))
        ledger = ledger_of(config, tmp_path, lambda: 0)
        await ledger.start()
        await every_step(ledger)
        await ledger.close()
        await adopt(config, tmp_path)
        for forbidden in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("GET", "other"), ("SHUTDOWN",)):
            with pytest.raises(Refused, match="NOPERM"):
                commands(("127.0.0.1", server.port), ("AUTH", "penstock", "SECRET"), forbidden)
