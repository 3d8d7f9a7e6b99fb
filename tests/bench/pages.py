"""Puts a benchmark's tables into docs/benchmarks.md."""

from pathlib import Path
from typing import Final

DOCS: Final = Path("docs/benchmarks.md")


def write(report: str, begin: str, end: str) -> None:
    """Replaces what stands between the marks; the rest of the page is people's."""
    page = DOCS.read_text()
    before, mark, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    assert mark, f"{DOCS} has no {begin}"
    DOCS.write_text(f"{before}{begin}\n\n{report}\n\n{end}{after}")
