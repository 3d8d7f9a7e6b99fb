"""What deep tests need beside .venv, installed from locks: npm packages, and Python packages that can't live with the others. Each stays as
long as its lock is the same; what can't be installed skips its tests, and says why.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

import pytest

from tests.support.shipped import ROOT

NPM: Final = ROOT / "tests/real/npm"
PYTHON: Final = ROOT / "tests/real/python"
NATIVE: Final = {"claude": "@anthropic-ai/claude-code-*/claude", "opencode": "opencode-*-*/bin/opencode"}


def npm() -> Path:
    """The folder of the npm packages' programs. No package's scripts are run: the native programs are in packages of their own."""
    programs = NPM / "node_modules" / ".bin"
    found = shutil.which("npm")
    if shutil.which("node") is None or found is None:
        pytest.skip("there is no node and npm here")
    lock, done = NPM / "package-lock.json", NPM / "node_modules" / "installed"
    if not _is_there(lock, done):
        # Not `npm ci`: it wants the lock to have the optional packages of every platform, of which a mirror may lack some.
        _install([found, "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund"], NPM)
        for name, native in NATIVE.items():  # what their scripts would do
            (programs / name).unlink()
            (programs / name).symlink_to(min(NPM.glob(f"node_modules/{native}")))
        done.write_text(lock.read_text())
    return programs


def python(name: str) -> Path:
    """The folder of programs of an environment made from `NAME.lock`."""
    lock, folder = PYTHON / f"{name}.lock", PYTHON / "environments" / name
    if not _is_there(lock, folder / "installed"):
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, symlinks=True)
        command = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet", "--disable-pip-version-check"]
        _install([*command, "--no-deps", "--no-compile", "--require-hashes", "--only-binary", ":all:", "-r", str(lock)], PYTHON)
        (folder / "installed").write_text(lock.read_text())
    return folder / "bin"


def _is_there(lock: Path, done: Path) -> bool:
    return done.exists() and done.read_text() == lock.read_text()


def _install(command: list[str], folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}  # which tests/conftest.py sets
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        pytest.skip(f"what {folder.name} needs could not be installed: {(ran.stderr or ran.stdout)[-500:]}")
