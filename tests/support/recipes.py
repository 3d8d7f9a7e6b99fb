"""The recipes of docs/recipes.md, run as their reader would: the blocks are taken from the page, only addresses and the run's name differ.

A block named `recipe NAME` is a program (python, js) or a command (sh); `recipe NAME FILE` is a file in the home folder. The provider answers
whatever is asked, and bills it at the catalog's prices.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.demo.bill import Price
from gateway.demo.replies import Writer
from tests.support import installing
from tests.support.config import Setup, policy, run_ceiling
from tests.support.examples import Example, recipes
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.provider import FaultProvider
from tests.support.shipped import HERE

PRICES: Final = {"gpt-5-mini": Price.parse("0.25:2:0.025"), "claude-haiku-4-5": Price.parse("1:5:0.10")}
RUN: Final = "r42"  # of the page
SAID: Final = "The mill is mended."


@dataclass(frozen=True, slots=True)
class Stage:
    """A gateway with the shipped catalog, and the provider behind it."""

    gateway: GatewayProcess
    provider: FaultProvider


@contextmanager
def stage(folder: Path, writer: Writer) -> Iterator[Stage]:
    with FaultProvider(writer, PRICES) as provider:
        providers = {
            "openai": {"base_url": provider.base_url, "accepts_caller_keys": True},
            "anthropic": {"base_url": provider.base_url.removesuffix("/v1"), "accepts_caller_keys": True},
        }
        # Codex offers its model a search in every call.
        extra = {"providers": providers, "models": {}, "reservation": {"flat": {"tools.web_search": "$0.05"}}}
        with GatewayProcess(Setup(folder, "", policy=policy(run_ceiling("$5.00")), extra=extra)) as gateway:
            yield Stage(gateway, provider)


@dataclass(frozen=True, slots=True)
class Place:
    """Where packages are: the folder of their programs, and for Node the one that imports are looked up from."""

    programs: Path
    modules: Path | None = None


def here() -> Place:
    return Place(Path(sys.executable).parent)


def node() -> Place:
    return Place(installing.npm(), installing.NPM)


def apart(name: str) -> Callable[[], Place]:
    return lambda: Place(installing.python(name))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Where its package is; what its provider writes; how many calls it makes, and how many of them again where they are refused."""

    place: Callable[[], Place]
    reply: str = SAID
    refused: int = 1
    packages: tuple[str, ...] = ()  # without which it can't be run here


RECIPES: Final[Mapping[str, Recipe]] = {
    "openai-python": Recipe(here),
    "openai-node": Recipe(node),
    "openai-agents": Recipe(here, packages=("agents",)),
    "langchain": Recipe(here, packages=("langchain_openai", "langgraph")),
    "pydantic-ai": Recipe(here, packages=("pydantic_ai",)),
    "crewai": Recipe(apart("crewai")),
    "autogen": Recipe(here, packages=("autogen_agentchat", "autogen_ext")),
    "smolagents": Recipe(here, reply=f'<code>\nfinal_answer("{SAID}")\n</code>', packages=("smolagents",)),
    "vercel-ai": Recipe(node),
    "codex": Recipe(node),
    "claude-code": Recipe(node),
    "opencode": Recipe(node, refused=2),  # the other one is for a title
    "aider": Recipe(apart("aider")),
    "qwen-code": Recipe(node),
}


def cook(name: str, run: str, on: Stage, place: Place, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The recipe's end: its program or command, in a home folder that has nothing but the recipe's files."""
    [program] = [each for each in blocks(name) if each.name == f"recipe {name}"]
    for each in blocks(name):
        if each is not program:
            file = home / each.name.rpartition(" ")[2].removeprefix("~/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_here(each.text, run, on))
    text = _here(program.text, run, on)
    command, stdin, folder = _command(program.lang, text, place, home)
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        env={**_environment(on, place, home), **more},
        cwd=folder,
        timeout=300,
        check=False,
    )


def blocks(name: str) -> Sequence[Example]:
    return [each for each in recipes() if each.name.split()[1] == name]


def _here(text: str, run: str, on: Stage) -> str:
    assert HERE in text or RUN in text or "penstock run" in text, text
    return text.replace(HERE, on.gateway.url).replace(RUN, run)


def _command(lang: str, text: str, place: Place, home: Path) -> tuple[Sequence[str | Path], str, Path]:
    match lang:
        case "python":
            return [place.programs / "python", "-"], text, home
        case "js":
            assert place.modules is not None
            return ["node", "--input-type=module", "-"], text, place.modules
        case _:
            return ["sh", "-e", "-c", text], "", home


def _environment(on: Stage, place: Place, home: Path) -> Mapping[str, str]:
    """What a shell has after `export OPENAI_API_KEY=…`, and nothing that would call home."""
    return {
        "HOME": str(home),
        "PATH": f"{place.programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "OPENAI_API_KEY": CALLER_KEY,
        "ANTHROPIC_API_KEY": CALLER_KEY,
        "PENSTOCK_GATEWAY": on.gateway.url,
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CREWAI_DISABLE_TELEMETRY": "true",
        "CREWAI_TRACING_ENABLED": "false",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "AIDER_ANALYTICS": "false",
        "AIDER_CHECK_UPDATE": "false",
    }
