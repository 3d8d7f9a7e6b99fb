"""Config and policy files for tests: small builders over plain dicts, written as YAML into a test's own folder."""

import hashlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tests.support.pricing import MODELS, TestModel

RUN_CEILING = "run-ceiling"


def free_port() -> int:
    """A port that nobody listens on at the moment. Restarts keep it, so it can't be left to the kernel."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_ceiling(limit: str = "$1.00", **keys: Any) -> dict[str, Any]:
    """The budget most tests need: a hard ceiling per run."""
    return {"name": RUN_CEILING, "scope": "run", "limit": limit, **keys}


def policy(*budgets: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    """`policy(run_ceiling("$2"), models={"downgrade": {…}}, output={…})`."""
    return {"version": 1, "budgets": [dict(budget) for budget in budgets or (run_ceiling(),)], **sections}


def ladder(**of_model: Sequence[str]) -> dict[str, Any]:
    """The policy's `models` section: `ladder(**{"big-model": ["small-model"]})`."""
    return {"downgrade": {model: list(cheaper) for model, cheaper in of_model.items()}}


def listed(name: str, key: str, **more: Any) -> dict[str, Any]:
    """An entry of the config's `keys`."""
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}


def opened_by(*keys: Mapping[str, Any]) -> dict[str, Any]:
    """What a Setup needs so that only the gateway's own keys open it: `Setup(…, **opened_by(listed("ci", "pk-ci")))`."""
    return {"provider": {"accepts_caller_keys": False}, "extra": {"auth": "keys", "keys": list(keys)}}


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything a gateway is started from. `upstream` is the provider's base URL; `ledger` a URL, or its whole section (a SQLite file of
    its own by default); `extra` is laid over the config's top level."""

    folder: Path
    upstream: str
    policy: Mapping[str, Any] = field(default_factory=policy)
    models: Sequence[TestModel] = MODELS
    provider: Mapping[str, Any] = field(default_factory=dict)  # more keys of `providers.test`
    ledger: str | Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    def write(self) -> Path:
        """Both files; returns the config's path. Called again, it replaces them: the ledger beside them stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "policy.yaml").write_text(yaml.safe_dump(dict(self.policy), sort_keys=False))
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config(), sort_keys=False))
        return path

    def twin(self) -> "Setup":
        """Another gateway on the same state: its own port and files, the same ledger and install secret."""
        shared = {key: self.config()[key] for key in ("ledger", "state_dir")}
        return replace(self, folder=self.folder / "twin", port=free_port(), extra={**self.extra, **shared})

    def elsewhere(self, host: str) -> "Setup":
        """A gateway on another machine: it shares the ledger (one with an address), and nothing else."""
        assert self.ledger is not None
        return replace(self, folder=self.folder / host, port=free_port())

    def config(self) -> dict[str, Any]:
        provider = {"base_url": self.upstream, "accepts_caller_keys": True, **self.provider}
        return {
            "listen": f"127.0.0.1:{self.port}",
            "policy": str(self.folder / "policy.yaml"),
            "ledger": f"sqlite:///{self.folder / 'ledger.db'}" if self.ledger is None else self.ledger,
            "state_dir": str(self.folder / "state"),
            "providers": {"test": provider},
            "models": {model.name: model.as_config("test") for model in self.models},
            **self.extra,
        }
