"""The wait for the ledger: bounded for each, one timer for all. How holds end is tested where calls are (test_flow, test_relay)."""

import asyncio
import gc
import weakref

from gateway.settling import Waits

WAIT_S = 0.02


async def test_each_wait_ends_by_itself_when_its_own_time_is_up() -> None:
    loop, waits = asyncio.get_running_loop(), Waits(WAIT_S)
    waiting = []
    for _ in range(3):
        waiting.append((loop.time(), waits.begin()))
        await asyncio.sleep(WAIT_S / 4)
    for began_s, wait in waiting:
        await wait
        assert loop.time() >= began_s + WAIT_S
    again = waits.begin()  # after a while without any
    await again


async def test_a_wait_that_is_over_leaves_the_others_their_time() -> None:
    waits = Waits(WAIT_S)
    first, second, third = waits.begin(), waits.begin(), waits.begin()
    first.set_result(None)
    second.cancel()
    await third
    assert second.cancelled()


async def test_waits_that_are_over_are_not_kept() -> None:
    waits = Waits(3_600)
    over = [waits.begin() for _ in range(100)]
    told = [weakref.ref(each) for each in over]
    for each in over:
        each.set_result(None)
    del over, each
    waits.begin()
    gc.collect()
    assert not any(each() for each in told)
