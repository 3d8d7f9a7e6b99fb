"""200 calls at once on a run that nobody has seen, whose ceiling fits ten of them.

Every call costs at most 1,005,000 microcents (1,000 tokens of output, some 20 of input), and the replies use all of their output: the
ceiling of $0.105 fits ten of them, whenever each is settled.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from gateway.demo.replies import Script
from tests.support.config import policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.load import Seen, caller, chat, microcents, statuses
from tests.support.provider import Behaviour, FaultProvider

CALLS: Final = 200
FIT: Final = 10
CEILING: Final = policy(run_ceiling("$0.105"))
# Slow enough that all calls have been decided before the first is settled.
FULL_LENGTH: Final = Behaviour(script=Script(tokens=2_000), first_byte_s=0.5, tokens_per_event=50)


async def rush(gateways: Sequence[GatewayProcess], run: str, key: str = CALLER_KEY) -> list[Seen]:
    """All calls at once, every other one streaming, spread over the gateways."""
    async with caller(gateways[0].url, key) as send:
        return await asyncio.gather(
            *(
                send(
                    chat(f"call {number}", max_completion_tokens=1_000, stream=number % 2 == 0),
                    run,
                    gateways[number // 2 % len(gateways)].url,
                )
                for number in range(CALLS)
            )
        )


def assert_exactly_ten_were_served(
    seen: Sequence[Seen], gateway: GatewayProcess, provider: FaultProvider, run: str, key: str = CALLER_KEY
) -> None:
    assert statuses(seen) == {200: FIT, 402: CALLS - FIT}
    assert len(provider.calls) == FIT
    assert all(each.finished for each in seen if each.status == 200)
    assert {each.code for each in seen if each.status == 402} == {"run_ceiling_reached"}
    told = gateway.run(run, key)
    assert told["reserved_usd"] == told["unconfirmed_usd"] == "0.00"
    assert told["calls"] == FIT
    assert microcents(told["committed_usd"]) == provider.bill.microcents > 10_000_000
