"""The states of calls and runs as the stores write them: numbers, in the order of their lives."""

from collections.abc import Mapping
from typing import Final

from gateway.ledger.contract import HoldState, RunState

LIVE: Final = 1
EXPIRED: Final = 2
COMMITTED: Final = 3
RELEASED: Final = 4
STATES: Final[Mapping[int, HoldState]] = {
    LIVE: HoldState.LIVE,
    EXPIRED: HoldState.EXPIRED,
    COMMITTED: HoldState.COMMITTED,
    RELEASED: HoldState.RELEASED,
}

ACTIVE: Final = 0
STOPPED: Final = 1
PAUSED: Final = 2
RUN_STATES: Final[Mapping[int, RunState]] = {ACTIVE: RunState.ACTIVE, STOPPED: RunState.STOPPED, PAUSED: RunState.PAUSED}
