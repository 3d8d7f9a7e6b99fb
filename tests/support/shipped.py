"""What a stranger has after `make run`: the shipped example config and default policy, before a provider that tests control.

`play` makes one real answer of every kind that docs/ shows; the pages' examples are compared with them.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import yaml

from gateway.demo.replies import Script, Writer
from tests.support.config import Setup, free_port
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess
from tests.support.loopback import LOOPBACK
from tests.support.pricing import TestModel, price_table
from tests.support.provider import Behaviour, FaultProvider

ROOT = Path(__file__).parents[2]
HERE = "http://127.0.0.1:8080"  # where the pages' gateway listens
LOCAL = "http://127.0.0.1:9801"  # and the provider `local`
DOWNGRADE = {"models": {"downgrade": {"gemma-3-270m": ["gemma-3-270m-small"]}}}  # the line that the pages add to the policy
HELLO: dict[str, Any] = {"model": "gemma-3-270m", "max_tokens": 500, "messages": [{"role": "user", "content": "Hello."}]}
KEY = "none"  # the pages' API key: a local model wants none


def example_config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "config.example.yaml").read_text())
    return loaded


def default_policy(part: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """policies/default.yaml with `part` laid over it."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "policies/default.yaml").read_text())
    return merged(loaded, part or {})


def merged(base: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged, anything else is replaced."""
    result = dict(base)
    for key, value in part.items():
        below = base.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def local_prices() -> dict[str, TestModel]:
    """The example config's models at `local`, as the stand-in provider bills them."""
    models = example_config()["models"]
    return {
        name: TestModel(name, str(entry["price"]["input"]), str(entry["price"]["output"]))
        for name, entry in models.items()
        if "price" in entry
    }


@dataclass(frozen=True, slots=True)
class Shipped(Setup):
    """Written as shipped, but for the two addresses and the folder."""

    policy: Mapping[str, Any] = field(default_factory=lambda: default_policy(DOWNGRADE))

    def config(self) -> dict[str, Any]:
        config = example_config()
        config["listen"] = f"127.0.0.1:{self.port}"
        config["policy"] = str(self.folder / "policy.yaml")
        config["providers"]["local"]["base_url"] = self.upstream
        return merged(config, self.extra)


@dataclass(frozen=True, slots=True)
class Stage:
    """A gateway as the pages have it, and the provider behind it."""

    gateway: GatewayProcess
    provider: FaultProvider

    def elsewhere(self, text: str) -> str:
        """The pages' addresses → those of this stage."""
        return text.replace(HERE, self.gateway.url).replace(LOCAL, f"http://127.0.0.1:{self.provider.port}")

    def ask(self, run: str, *, key: str = KEY, headers: Mapping[str, str] | None = None, **body: Any) -> httpx.Response:
        request = {**HELLO, **body}
        given = {"X-Run-Id": run, "Authorization": f"Bearer {key}", **(headers or {})}
        return httpx.post(f"{self.gateway.url}/v1/chat/completions", json=request, headers=given, **LOOPBACK, timeout=30)

    def page(
        self, path: str, *, method: str = "GET", key: str = KEY, body: Any = None, idempotency_key: str | None = None
    ) -> httpx.Response:
        given = {"Authorization": f"Bearer {key}", **({} if idempotency_key is None else {"Idempotency-Key": idempotency_key})}
        return httpx.request(method, self.gateway.url + path, json=body, headers=given, **LOOPBACK, timeout=30)


@contextmanager
def stage(folder: Path, writer: Writer) -> Iterator[Stage]:
    with ExitStack() as stack:
        provider = stack.enter_context(FaultProvider(writer, price_table(*local_prices().values())))
        setup = Shipped(folder, provider.base_url, port=free_port())
        yield Stage(stack.enter_context(GatewayProcess(setup)), provider)


@dataclass(frozen=True, slots=True)
class Answers:
    """By the name that a page's example has: bodies (JSON values), and heads (lower-case header names)."""

    bodies: Mapping[str, Any]
    heads: Mapping[str, Mapping[str, str]]


def play(on: Stage) -> Answers:
    """One real answer of each kind. The runs are named as in the pages' examples."""
    said: dict[str, httpx.Response] = {}
    short = Behaviour(script=Script(text="By the old mill."))
    on.provider.next(short, short)
    said["answer"] = on.ask("r1", headers={"X-Agent-Id": "writer"})
    said["downgrade"] = on.ask("r2", headers={"X-Run-Limit": "$0.006"})
    said["refusal"] = on.ask("r2", headers={"X-Run-Limit": "$0.001"})
    said["bad-request"] = on.ask("r1", model="mystery-1")
    said["models"] = on.page("/v1/models")
    said["run"] = on.page("/budget/runs/r1")
    said["runs"] = on.page("/budget/runs?limit=1")
    said["limited"] = on.page("/budget/runs/r3", method="PUT", body={"limit": "$2.00"})
    said["stopped"] = on.page("/budget/runs/r2/stop", method="POST", body={"reason": "looks stuck"})
    said["decision"] = on.page(f"/budget/decisions/{said['answer'].headers['X-Budget-Decision-Id']}")
    said["refused-decision"] = on.page(f"/budget/decisions/{said['refusal'].headers['X-Budget-Decision-Id']}")
    said["spend"] = on.page("/budget/spend?by=agent,model")
    said["healthz"] = on.page("/healthz")
    said["readyz"] = on.page("/readyz")
    on.provider.next(Behaviour(reset=True))  # nobody can say what became of this call
    said["unknown"] = on.ask("r4")
    said["holds"] = on.page("/admin/holds?run=r4", key=ADMIN_TOKEN)
    hold = said["holds"].json()["holds"][0]["reservation_id"]
    said["settled"] = on.page(f"/admin/holds/{hold}/settle", method="POST", key=ADMIN_TOKEN, body={"cost_usd": "0.001"})
    spent = {"run_id": "r5", "cost_usd": "0.12", "name": "web_search"}
    said["event"] = on.page("/budget/events", method="POST", body=spent, idempotency_key="search-17")
    wanted = {"run_id": "r5", "estimate_usd": "0.50", "name": "render", "ttl": "5m"}
    said["reservation"] = on.page("/budget/reservations", method="POST", body=wanted, idempotency_key="render-3")
    reservation = f"/budget/reservations/{said['reservation'].json()['reservation_id']}"
    said["committed"] = on.page(f"{reservation}/commit", method="POST", body={"cost_usd": "0.31"})
    said["estimate"] = on.page("/budget/estimate?run_id=r5", method="POST", body=HELLO)
    on.page("/budget/runs/r5/ask", method="POST", body={"amount": "$2.00", "reason": "two chapters are left"})
    said["asks"] = on.page("/admin/asks", key=ADMIN_TOKEN)
    said["paused"] = on.page("/budget/runs/r5/pause", method="POST", body={"reason": "a look first"})
    on.page("/budget/runs/r5/resume", method="POST")
    team = {"scope": {"team": "research"}, "reason": "a leaked key"}
    said["frozen"] = on.page("/admin/freeze", method="POST", key=ADMIN_TOKEN, body=team)
    said["all-frozen"] = on.page("/admin/frozen", key=ADMIN_TOKEN)
    on.page("/admin/thaw", method="POST", key=ADMIN_TOKEN, body=team)
    account = "/admin/accounts/" + quote("run-ceiling|run=r5|lifetime|usd", safe="")
    credit = {"amount": "-0.05", "reason": "the provider's credit", "id": "credit-9"}
    said["adjusted"] = on.page(f"{account}/adjust", method="POST", key=ADMIN_TOKEN, body=credit)
    said["account"] = on.page(account, key=ADMIN_TOKEN)
    said["acts"] = on.page("/admin/acts?limit=1", key=ADMIN_TOKEN)
    bodies = {name: answer.json() for name, answer in said.items()}
    bodies["ask"] = bodies["asks"]["asks"][0]
    heads: dict[str, Mapping[str, str]] = {name: dict(answer.headers) for name, answer in said.items()}
    return Answers(bodies | logged(on), heads)


def logged(on: Stage) -> dict[str, Any]:
    """`log-EVENT`: the first line of each kind in the gateway's log; `log-call` is that of a call that was let through."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and on.gateway.log.count('"event":"call"') < 5:
        time.sleep(0.05)
    found: dict[str, Any] = {}
    for line in re.findall(r"^\{.*\}$", on.gateway.log, re.MULTILINE):
        told = json.loads(line)
        if told["event"] != "call" or told["charged_usd"] is not None:
            found.setdefault(f"log-{told['event']}", told)
    return found
