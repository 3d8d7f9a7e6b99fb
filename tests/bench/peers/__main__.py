"""Installs the peers of `versions.toml` into .bench/, each from its own registry and into an environment of its own; never into .venv.

    python -m tests.bench.peers [NAME …]

What is there in its version already stays. What can't be installed is said, and the end is 1; the benchmark then reports it as missing. Packages'
install scripts are not run.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.targets import CONFIGS, PEERS, nginx_binary

WITHIN_S: Final = 900.0


class Refused(Exception):
    """A step of an installation failed; with what it said."""


def litellm(pins: Mapping[str, Any], folder: Path) -> str:
    """uv resolves within seconds what pip takes minutes for."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    if _version_of(python, "litellm") != pins["version"]:
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"uv=={pins['uv']}"])
        uv = str(folder / "bin" / "uv")
        _run([uv, "pip", "install", "--quiet", "--python", str(python), f"{pins['package']}=={pins['version']}"])
    return f"litellm {_version_of(python, 'litellm')}"


def portkey(pins: Mapping[str, Any], folder: Path) -> str:
    if shutil.which("npm") is None:
        raise Refused("there is no npm on PATH")
    wanted = {"private": True, "dependencies": {pins["package"]: pins["version"]}, "overrides": pins["overrides"]}
    manifest, installed = folder / "package.json", folder / "node_modules" / pins["package"] / "package.json"
    if not installed.exists() or json.loads(manifest.read_text()) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        manifest.write_text(json.dumps(wanted))
        _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
    node = _run(["node", "--version"]).strip()
    return f"{pins['package']} {json.loads(installed.read_text())['version']} on node {node}"


def nginx(pins: Mapping[str, Any], folder: Path) -> str:
    """The one on PATH; else Debian's package, unpacked and not installed."""
    if nginx_binary() is None:
        if shutil.which("apt-get") is None:
            raise Refused("there is no nginx on PATH, and no apt-get")
        folder.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", pins["package"]], folder)
        (package,) = folder.glob("nginx_*.deb")
        _run(["dpkg-deb", "-x", package.name, "root"], folder)
    binary = nginx_binary()
    assert binary is not None
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=False, timeout=10)
    if said.returncode:
        raise Refused(f"{binary} does not run here: {said.stderr}")
    return f"{said.stderr.strip()} ({'unpacked' if PEERS.resolve() in binary.parents else 'on PATH'}: {binary.name})"


INSTALLS: Final[Mapping[str, Callable[[Mapping[str, Any], Path], str]]] = {"nginx": nginx, "portkey": portkey, "litellm": litellm}


def main(names: Sequence[str]) -> int:
    pins: Mapping[str, Any] = tomllib.loads((CONFIGS / "versions.toml").read_text())
    told = PEERS / "versions.json"
    versions, missing = json.loads(told.read_text()) if told.exists() else {}, 0
    for name in names or INSTALLS:
        try:
            versions[name] = INSTALLS[name](pins[name], (PEERS / name).resolve())
            print(f"{name}: {versions[name]}", flush=True)
        except (Refused, OSError, subprocess.TimeoutExpired) as why:
            missing += 1
            versions.pop(name, None)
            print(f"MISSING: {name} could not be installed: {why}", file=sys.stderr, flush=True)
    PEERS.mkdir(exist_ok=True)
    told.write_text(json.dumps(versions, indent=1))
    return 1 if missing else 0


def _version_of(python: Path, package: str) -> str:
    """Empty where it is not installed."""
    program = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=False, timeout=60).stdout.strip()


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=WITHIN_S)
    if ended.returncode:
        raise Refused(f"{' '.join(command)}: {(ended.stderr or ended.stdout)[-1500:]}")
    return ended.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
