"""`penstock run`: starts an agent under a run of its own, passes on what it is sent and how it ends, and says what it spent.

The agent is told by environment variables where the gateway is; nothing else about it is changed. What it says stays its own: only the
last lines on stderr are ours.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TextIO

from gateway.remote import Remote, RemoteError, quoted

NOT_FOUND: Final = 127  # as shells say it
NOT_EXECUTABLE: Final = 126
KEY_VARIABLES: Final = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "CODEX_API_KEY")

_FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# A terminal sends these to the whole foreground group, and so to the agent itself.
_OF_TERMINALS: Final = (signal.SIGINT, signal.SIGQUIT)
_SETTLED_WITHIN_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Launch:
    """`key`: a key of the gateway (`auth: keys`), or of the provider, for the agent and for what is asked of the gateway."""

    gateway: str
    run: str
    key: str | None = None
    admin_token: str | None = None

    def prepare(self, limit: str | None) -> None:
        """Makes sure that there is a gateway, and gives the run its limit. RemoteError.

        Never with the admin token, which may raise a run above the policy's ceiling. On a loopback listener no key is needed: the run
        then belongs to whoever uses it first.
        """
        remote = Remote(self.gateway, self.key)
        if limit is None:
            remote.get("/budget/runs", "runs", limit="1")
        else:
            remote.put(f"/budget/runs/{quoted(self.run)}", "run_id", {"limit": limit})

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """What the agent is started with."""
        base = f"{self.gateway.rstrip('/')}/run/{self.run}"
        openai = f"{base}/v1"
        environment = {
            **given,
            "OPENAI_BASE_URL": openai,
            "OPENAI_API_BASE": openai,
            "ANTHROPIC_BASE_URL": base,
            "PENSTOCK_RUN_ID": self.run,
            "PENSTOCK_GATEWAY": self.gateway,
        }
        environment.pop("PENSTOCK_ADMIN_TOKEN", None)  # an agent that has it has no ceiling
        if self.key is not None:
            environment |= {name: self.key for name in KEY_VARIABLES if not given.get(name)}
        return environment

    def summary(self, given: Mapping[str, str]) -> list[str]:
        """What the run spent. It is told to the key that the agent used, so each that it may have used is asked with."""
        tokens = dict.fromkeys((self.admin_token, self.key, *(given.get(name) for name in KEY_VARIABLES), None))
        for token in tokens:
            remote = Remote(self.gateway, token or None)
            try:
                told = _settled(remote, self.run)
                if told["calls"]:
                    rows = remote.get("/budget/spend", "rows", by="model", run=self.run, **{"from": told["first_at"][:10]})[
                        "rows"
                    ]
                    return _lines(told, rows)
            except RemoteError as failure:
                if failure.status is None:
                    return [f"run {self.run}: what it spent is not known: {failure}"]
        why = "Either it does not look at OPENAI_BASE_URL and ANTHROPIC_BASE_URL, or it used a key that is not in the environment"
        look = f"with that key as PENSTOCK_KEY, or with PENSTOCK_ADMIN_TOKEN, `penstock runs show {self.run}` tells"
        return [f"run {self.run}: no call of the command is known here. {why}: {look}"]


def new_run() -> str:
    return f"run_{secrets.token_hex(8)}"


def start(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command to its end, on the same terminal. Its exit code, or 128 + the signal that ended it. OSError: it can't be started."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # what came before there was a child

    def forward(number: int, _frame: object) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)  # which does nothing once it has ended

    def leave_to_the_terminal(number: int, frame: object) -> None:
        if not _in_foreground():
            forward(number, frame)

    for numbers, handler in ((_FORWARDED, forward), (_OF_TERMINALS, leave_to_the_terminal)):
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup: it is the agent's to ignore too
                signal.signal(number, handler)
    child = subprocess.Popen(command, env=environment)  # noqa: S603 - what the user asked for
    for came in early:
        child.send_signal(came)
    code = child.wait()
    return code if code >= 0 else 128 - code


def found(command: str) -> bool:
    return shutil.which(command) is not None


def say(lines: Sequence[str], out: TextIO | None = None) -> None:
    for line in lines:
        print(f"penstock: {line}", file=out or sys.stderr)


def _in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _settled(remote: Remote, run: str) -> dict[str, Any]:
    """The run, once nothing of it is held any more; or as it is after a moment."""
    until_s = time.monotonic() + _SETTLED_WITHIN_S
    while True:
        told = remote.get(f"/budget/runs/{quoted(run)}", "run_id")
        if told["reserved_usd"] == "0.00" or time.monotonic() > until_s:
            return told
        time.sleep(0.1)


def _lines(told: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    limit = "" if told["limit_usd"] is None else f" of ${told['limit_usd']}"
    held = "" if told["reserved_usd"] == "0.00" else f"; ${told['reserved_usd']} is still held for calls that have not ended"
    lines = [f"run {told['run_id']} spent ${told['committed_usd']}{limit}{held}"]
    width = max((len(row["model"]) for row in rows), default=0)
    for row in rows:
        calls = f"{row['calls']:,} call{'' if row['calls'] == 1 else 's'}"
        lines.append(f"  {row['model']:<{width}}  ${row['usd']}  {row['tokens']:,} tokens  {calls}")
    return lines


def for_gateway(gateway: str, run: str | None, environment: Mapping[str, str]) -> Launch:
    launch = Launch(gateway, run or new_run(), environment.get("PENSTOCK_KEY") or None)
    return replace(launch, admin_token=environment.get("PENSTOCK_ADMIN_TOKEN") or None)
