"""Steps of growing conversations through each target, one call at a time: what step 10 and step 60 of 50,000 tokens add over going direct.

Every step goes to every target in turn, so that what the machine does meanwhile falls on all of them. The provider answers at once and counts
four bytes a token, so that the estimates have something to learn from.
"""

import gc
import random
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Final

from tests.bench.conversation import STEPS, Conversation, python
from tests.bench.load import Wrong, is_whole
from tests.bench.targets import Target

SHOWN: Final[Mapping[int, range]] = {10: range(8, 13), 60: range(57, 61)}  # step → the steps that stand for it
_MODEL: Final = re.compile(rb'"model":"gemma"')


class Line:
    """One connection to a target, kept."""

    def __init__(self, target: Target, run: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", target.port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = ["POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", "Authorization: Bearer sk-bench"]
        lines += ["Content-Type: application/json", f"X-Run-Id: {run}", *target.headers]
        self._head = "\r\n".join(lines)

    def ms(self, body: bytes) -> float:
        """Of one call, to the answer's last byte. Wrong where it is not whole and right."""
        data = f"{self._head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        began = time.perf_counter()
        self._socket.sendall(data)
        answer = b""
        while not _is_there(answer):
            piece = self._socket.recv(1 << 16)
            if not piece:
                raise Wrong(f"the connection was closed after {answer!r}")
            answer += piece
        return (time.perf_counter() - began) * 1e3

    def close(self) -> None:
        self._socket.close()


def measured(targets: Sequence[Target], conversations: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """target → step → ms of each call that stands for it; under "bytes", how large their requests were."""
    told: dict[str, dict[str, list[float]]] = {target.name: {str(step): [] for step in SHOWN} for target in targets}
    told["bytes"] = {str(step): [] for step in SHOWN}
    for number in range(conversations):
        bodies = [_MODEL.sub(b'"model":"bench-model"', body, count=1) for body in _talk(number).steps()]
        run = f"talk-{time.time_ns()}"
        lines = {target.name: Line(target, run) for target in targets}
        gc.disable()
        for step, body in enumerate(bodies, start=1):
            shown = next((str(name) for name, of in SHOWN.items() if step in of), None)
            for name, line in lines.items():
                took = line.ms(body)
                if shown:
                    told[name][shown].append(took)
            if shown:
                told["bytes"][shown].append(len(body))
        gc.enable()
        for line in lines.values():
            line.close()
    return told


def _talk(number: int) -> Conversation:
    talk = Conversation("Python", python, random.Random(1000 + number))
    assert max(SHOWN) == STEPS
    return talk


def _is_there(answer: bytes) -> bool:
    head = answer.find(b"\r\n\r\n")
    if head < 0:
        return False
    if answer[9:12] != b"200":
        raise Wrong(answer[:800].decode(errors="replace"))
    return is_whole(answer, head)
