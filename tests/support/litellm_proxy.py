"""LiteLLM's real proxy, in its own process and environment (`.venv-litellm`), with our hook in it. Its models are the fake provider's.

with LiteLLM(setup, provider) as litellm:
    litellm.post("/v1/chat/completions", {...}, run="r1")
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import httpx
import openai
import pytest
import yaml

from tests.support.config import Setup, free_port

HERE: Final = Path(__file__).parents[2]
PYTHON: Final = HERE / os.environ.get("PENSTOCK_LITELLM_VENV", ".venv-litellm") / "bin" / "python"
HOOK: Final = "gateway.integrations.litellm.budget"
MASTER: Final = "sk-master-of-litellm"
READY_WITHIN_S: Final = 240.0  # each of its processes imports for ten seconds and more
# What keeps it from asking the network for anything.
_OFFLINE: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "NO_PROXY": "*",
    "DO_NOT_TRACK": "1",
}

# Else its supervisor ends workers that are still importing after 5 s.
_PATIENT: Final = ("--timeout_worker_healthcheck", "120")
_PAGE: Final = (HERE / "docs/litellm.md").read_text()


def shown(first: str) -> str:
    """The block of docs/litellm.md, of no language, that begins with that word."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", _PAGE, re.MULTILINE | re.DOTALL)
    return next(text for language, text in blocks if not language and text.startswith(first))


needs_litellm = pytest.mark.skipif(not PYTHON.exists(), reason="LiteLLM's environment is made by `make test-deep`")


def deployment(group: str, base_url: str, model: str | None = None, **params: Any) -> dict[str, Any]:
    """An entry of its model list."""
    info = params.pop("model_info", {})
    entry = {"model": model or f"openai/{group}", "api_base": base_url, "api_key": "sk-provider", **params}
    return {"model_name": group, "litellm_params": entry, "model_info": info}


@dataclass(slots=True)
class LiteLLM:
    """Started by `with`. `models`: its model list; by default one group for each model of the setup."""

    setup: Setup
    models: Sequence[Mapping[str, Any]] = ()
    litellm_settings: Mapping[str, Any] = field(default_factory=dict)
    router_settings: Mapping[str, Any] = field(default_factory=dict)
    general_settings: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def folder(self) -> Path:
        return self.setup.folder

    def config(self) -> dict[str, Any]:
        models = self.models or [deployment(model.name, self.setup.upstream) for model in self.setup.models]
        return {
            "model_list": [dict(model) for model in models],
            "litellm_settings": {"callbacks": HOOK, "request_timeout": 60, **self.litellm_settings},
            "router_settings": {"num_retries": 0, **self.router_settings},
            "general_settings": {"master_key": MASTER, **self.general_settings},
        }

    def __enter__(self) -> Self:
        penstock = self.setup.write()
        path = self.folder / f"litellm-{self.port}.yaml"
        path.write_text(yaml.safe_dump(self.config(), sort_keys=False))
        environment = {**os.environ, **_OFFLINE, "PENSTOCK_CONFIG": str(penstock), "PYTHONPATH": str(HERE)}
        command = [str(PYTHON.parent / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--num_workers", str(self.workers), *_PATIENT],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, number: int = signal.SIGTERM) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    @property
    def log_path(self) -> Path:
        return self.folder / f"litellm-{self.port}.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log[-6000:]
            try:
                if httpx.get(f"{self.url}/health/liveliness", trust_env=False, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(self.log[-6000:])

    # -- asking it ------------------------------------------------------------------------------------------------------------

    def headers(self, run: str | None = None, key: str = MASTER, **more: str) -> dict[str, str]:
        named = {} if run is None else {"X-Run-Id": run}
        return {"Authorization": f"Bearer {key}", **named, **more}

    def post(self, path: str, body: Mapping[str, Any], run: str | None = None, **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=self.headers(run, **headers), trust_env=False, timeout=60)

    def chat(
        self, run: str | None, model: str = "big-model", text: str = "tell me about rivers", **fields: Any
    ) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 20, **fields}
        return self.post("/v1/chat/completions", body, run)

    def client(self, run: str, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=MASTER, default_headers={"X-Run-Id": run}, **options)
