"""Loads the Cycles layer: each call is a reservation, then its commit, on one connection. Else as tests/bench/load.py.

    python -m tests.bench.lifecycles --port 8080 --connections 16 --header 'X-Cycles-API-Key: …'

The requests are those that the Python client makes for a decorated function whose cost is known when it returns.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

from tests.bench.load import Connection, Generator, Plan, Wrong, has_length, main
from tests.bench.targets import Target
from tests.support.cycles import Plane
from tests.support.gateway import ADMIN_TOKEN

TENANT: Final = "bench"
AGENTS: Final = 8
ALLOCATED: Final = 10**15  # nothing is refused: what a refusal costs is another question
_RESERVATION: Final = re.compile(rb'"reservation_id":"([^"]+)"')
_COMMITTED: Final = b'"status":"COMMITTED"'
_ACTUAL: Final = b'{"idempotency_key":"%b","actual":{"unit":"USD_MICROCENTS","amount":900000},"metrics":{"latency_ms":52}}'


def opened(target: Target) -> Sequence[str]:
    """A tenant, its budget and those of its agents, made by the admin plane; the header that opens them."""
    plane = Plane(f"http://127.0.0.1:{target.port}/cycles", ADMIN_TOKEN)
    plane.tenant(TENANT)
    plane.budget(f"tenant:{TENANT}", ALLOCATED)
    for number in range(AGENTS):
        plane.budget(f"tenant:{TENANT}/agent:agent-{number}", ALLOCATED)
    return (f"X-Cycles-API-Key: {plane.key(TENANT)}",)


class Lifecycles(Generator):
    """A call ends with the answer to its commit."""

    def _maker(self, number: int, wanted: int) -> Callable[[int], bytes]:
        return reservations(self._plan, number)

    def _is_whole(self, data: bytes, head: int) -> bool:
        whole = has_length(data, head)
        if whole and _COMMITTED not in data and _RESERVATION.search(data) is None:
            raise Wrong(data[:800].decode(errors="replace"))
        return whole

    def _ended(self, connection: Connection) -> None:
        made = _RESERVATION.search(connection.received)
        if made is None:
            super()._ended(connection)
            return
        connection.received = b""
        connection.sock.send(commit(self._plan, made[1]))


def reservations(plan: Plan, connection: int) -> Callable[[int], bytes]:
    """What makes the bytes of a connection's reservation from its number. Each connection is a run of its own."""
    key = f"{plan.salt}-{connection:06d}-%09d"
    body = (
        f'{{"idempotency_key":"{key}","subject":{{"tenant":"{TENANT}","workflow":"bench-{plan.salt}-{connection:06d}",'
        f'"agent":"agent-{connection % AGENTS}"}},"action":{{"kind":"llm.completion","name":"bench-model"}},'
        '"estimate":{"unit":"USD_MICROCENTS","amount":1000000},"ttl_ms":60000,"overage_policy":"ALLOW_IF_AVAILABLE"}'
    )
    whole = _post(plan, "/cycles/v1/reservations", key, body, len(body % 0)).encode()
    return lambda number: whole % (number, number)


def commit(plan: Plan, reservation: bytes) -> bytes:
    body = _ACTUAL % reservation
    head = _post(plan, f"/cycles/v1/reservations/{reservation.decode()}/commit", reservation.decode(), "", len(body))
    return head.encode() + body


def _post(plan: Plan, path: str, key: str, body: str, length: int) -> str:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Accept: */*",
        "Accept-Encoding: gzip, deflate",
        "Connection: keep-alive",
        "User-Agent: python-httpx/0.28.1",
        *plan.headers,
        f"X-Idempotency-Key: {key}",
        f"Content-Length: {length}",
        "Content-Type: application/json",
    ]
    return "\r\n".join(lines) + "\r\n\r\n" + body


if __name__ == "__main__":
    main(Lifecycles)
