"""Which providers had better not be asked for a while: a circuit breaker each. A hint of this process, which nothing of money hangs on.

A provider rests after failures in a row, for longer each time; one that says when to come again (`Retry-After`) rests for that long. When
the rest is over, one call tries it: its answer ends the matter, its failure starts the next rest. A model that is served nowhere else is
asked for there all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FAILURES: Final = 5  # in a row
FIRST_REST_S: Final = 5.0
LONGEST_REST_S: Final = 60.0
PROBE_S: Final = 10.0  # how long the one call that tries it keeps the others away

_NONE: Final[frozenset[str]] = frozenset()


@dataclass(slots=True)
class _Trouble:
    failures: int = 0
    rest_s: float = FIRST_REST_S
    until_s: float = 0.0


class Breakers:
    """By provider. `clock_s` is monotonic; `told` hears of each rest: (provider, seconds)."""

    def __init__(self, clock_s: Callable[[], float], told: Callable[[str, float], None]) -> None:
        self._clock_s = clock_s
        self._told = told
        self._troubles: dict[str, _Trouble] = {}  # of those that failed since they last answered

    def resting(self) -> frozenset[str]:
        if not self._troubles:
            return _NONE
        now_s = self._clock_s()
        return frozenset(provider for provider, trouble in self._troubles.items() if trouble.until_s > now_s)

    def asked(self, provider: str) -> None:
        """A call goes there. After a rest it is the one that tries."""
        trouble = self._troubles.get(provider)
        if trouble is not None and trouble.failures >= FAILURES:
            trouble.until_s = max(trouble.until_s, self._clock_s() + PROBE_S)

    def answered(self, provider: str) -> None:
        if self._troubles:
            self._troubles.pop(provider, None)

    def failed(self, provider: str, retry_after_s: float | None = None) -> None:
        """It could not be reached, did not answer, or turned the call away for reasons of its own."""
        trouble = self._troubles.setdefault(provider, _Trouble())
        trouble.failures += 1
        if retry_after_s is not None:
            self._rest(provider, trouble, min(retry_after_s, LONGEST_REST_S))
        elif trouble.failures >= FAILURES:
            self._rest(provider, trouble, trouble.rest_s)
            trouble.rest_s = min(2 * trouble.rest_s, LONGEST_REST_S)

    def _rest(self, provider: str, trouble: _Trouble, seconds: float) -> None:
        trouble.until_s = self._clock_s() + seconds
        self._told(provider, seconds)
