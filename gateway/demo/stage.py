"""The processes that a demo plays before: a scripted provider, and a gateway as a user starts one, each as long as a block."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

import aiohttp
import yaml

from gateway.demo.bill import Price
from gateway.demo.local_model import NotStarted

READY_WITHIN_S: Final = 30.0
KEY: Final = "sk-demo"


@contextlib.contextmanager
def scripted(prices: Mapping[str, str], tokens: str, event_ms: float, tokens_per_event: int) -> Iterator[str]:
    """The base URL of a scripted provider with these models. `tokens`: of a reply, such as `300-1000`. NotStarted where it does not come
    up."""
    pace = ["--tokens", tokens, "--event-ms", str(event_ms), "--tokens-per-event", str(tokens_per_event)]
    command = [sys.executable, "-m", "gateway.demo.provider", *pace]
    for name, price in prices.items():
        command += ["--price", f"{name}={price}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own module
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise NotStarted(f"the scripted provider ended with code {process.wait()}")
            yield str(json.loads(line)["base_url"])
        finally:
            process.terminate()


def config(
    folder: Path, base_url: str, prices: Mapping[str, str], profile: str, context: int, encoding: str | None
) -> dict[str, object]:
    """Of a gateway whose state is in the folder, before one provider, with the demo's policy."""
    policy = folder / "policy.yaml"
    policy.write_text(files("gateway.demo").joinpath("policy.yaml").read_text())
    models = {}
    for name, text in prices.items():
        price = Price.parse(text)
        models[name] = {
            "provider": "demo",
            "price": {"input": float(price.input), "output": float(price.output)},
            "context": context,
            "max_output": min(16_384, context),
            **({} if encoding is None else {"encoding": encoding}),
        }
    return {
        "listen": f"127.0.0.1:{_free_port()}",
        "policy": str(policy),
        "ledger": f"sqlite:///{folder / 'penstock.db'}",
        "state_dir": str(folder / "state"),
        "providers": {"demo": {"base_url": base_url, "accepts_caller_keys": True, "profile": profile}},
        "models": models,
    }


@contextlib.asynccontextmanager
async def gateway(
    told: Mapping[str, object], session: aiohttp.ClientSession, folder: Path, admin_token: str | None = None
) -> AsyncIterator[str]:
    """The address of a gateway with this config. NotStarted, with the end of its log, where it does not come up."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(dict(told), sort_keys=False))
    command = (sys.executable, "-m", "gateway", "serve", "--config", str(path))
    with (folder / "gateway.log").open("wb") as log:
        env = None if admin_token is None else {**os.environ, "PENSTOCK_ADMIN_TOKEN": admin_token}
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=env)
    address = f"http://{told['listen']}"
    try:
        await _ready(session, address, process, folder)
        yield address
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def page(session: aiohttp.ClientSession, url: str) -> dict[str, object] | None:
    """A page's JSON object; None where it is not there (yet)."""
    async with session.get(url, headers={"Authorization": f"Bearer {KEY}"}) as answer:
        return await answer.json() if answer.status == 200 else None


async def _ready(session: aiohttp.ClientSession, address: str, process: asyncio.subprocess.Process, folder: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.returncode is None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            if await page(session, f"{address}/readyz") is not None:
                return
        await asyncio.sleep(0.05)
    raise NotStarted(f"the gateway did not come up:\n{(folder / 'gateway.log').read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
