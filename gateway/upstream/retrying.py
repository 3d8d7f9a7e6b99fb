"""What a provider's failure says about sending the call again. Pure."""

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from gateway.core.record import record
from gateway.wire.status import may_be_sent_again


@record
class Failure:
    """Why a call did not succeed, as far as sending it again is concerned. `status` None: it was not sent."""

    status: int | None
    retry_after_s: float | None = None
    final: bool = False  # the provider itself said not to try again

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], now_s: float) -> "Failure":
        """Reads `retry-after-ms`, `Retry-After` (seconds or a date) and `x-should-retry`. `now_s`: seconds since the epoch."""
        final = headers.get("x-should-retry", "").strip().lower() == "false"
        return cls(status, _retry_after_s(headers, now_s), final)


NOT_SENT: Final = Failure(None)


@record
class RetryPolicy:
    """When to send a call again under the same hold: only what was provably not billed, and never for long. Pure."""

    retries: int = 2
    total_wait_s: float = 8.0
    first_wait_s: float = 0.5

    def wait_s(self, failure: Failure, attempt: int, waited_s: float, jitter: float) -> float | None:
        """How long to wait before sending again; None: pass the failure on.

        `attempt` counts from 1; `waited_s` is the sum of earlier waits; `jitter` in [0, 1) spreads callers apart. A Retry-After that does
        not fit into what is left of `total_wait_s` is the client's to wait for, not ours.
        """
        if attempt > self.retries or failure.final:
            return None
        if failure.status is not None and not may_be_sent_again(failure.status):
            return None
        backoff_s = self.first_wait_s * 2 ** (attempt - 1) * (0.5 + jitter / 2)
        wait_s = backoff_s if failure.retry_after_s is None else failure.retry_after_s + backoff_s * jitter / 2
        return wait_s if waited_s + wait_s <= self.total_wait_s else None


def _retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    for name, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if text.isascii() and text.replace(".", "", 1).isdigit():
            return float(text) / per_second
    try:
        at = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now_s)
