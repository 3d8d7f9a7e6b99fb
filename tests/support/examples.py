"""The examples of README.md and docs/, as fenced blocks: `lang` is the first word after the fence, `name` the second.

yaml             a whole policy or config, which loads; `yaml part`: laid over the shipped one, it loads
sh               each line is run, or is one of the few that only a person runs
python           run before a gateway with a scripted provider; a `text output` that follows is what it prints
json NAME        has the keys of the real answer NAME (tests/support/shipped.py makes them)
http NAME        has the header names of that answer
text NAME        what a program prints: checked where NAME has a test
any recipe NAME  belongs to a recipe, and is run with the real package by tests/real/test_recipes.py
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.shipped import ROOT

PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE: Final = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Example:
    """One block, and where it begins. `after` is the text of the `text output` block that follows it, if one does."""

    page: str
    line: int
    lang: str
    name: str
    text: str
    after: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples(*langs: str) -> Sequence[Example]:
    return [each for page in PAGES for each in _of(page) if each.lang in langs and not each.name.startswith("recipe ")]


def recipes() -> Sequence[Example]:
    return [each for each in _of(ROOT / "docs/recipes.md") if each.name.startswith("recipe ")]


def _of(page: Path) -> Iterator[Example]:
    text = page.read_text()
    blocks = list(_FENCE.finditer(text))
    for block, following in zip(blocks, [*blocks[1:], None], strict=False):
        lang, _, name = block["info"].strip().partition(" ")
        after = following["text"] if following is not None and following["info"].strip() == "text output" else None
        line = text.count("\n", 0, block.start()) + 1
        yield Example(str(page.relative_to(ROOT)), line, lang, name, block["text"], after)


def keys(value: Any) -> Any:
    """What two answers of one kind have in common: their members' names, of lists those of the first entry."""
    if isinstance(value, dict):
        return {name: keys(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [keys(inner) for inner in value[:1]]
    return None


def masked(text: str) -> set[str]:
    """The kinds of lines in an output: ids and numbers differ from run to run."""
    return {re.sub(r"\d[\d.,]*", "#", re.sub(r"[0-9a-f]{12,}", "#", line)).strip() for line in text.splitlines() if line.strip()}
