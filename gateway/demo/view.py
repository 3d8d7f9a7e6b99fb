"""How the demo shows itself: a live picture on a terminal, plain lines anywhere else."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gateway.demo.bill import MICROCENTS

_LAST_EVENTS = 8
_LINE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The run at one moment, in microcents. Unguarded: no ceiling, nothing held."""

    seconds: float = 0
    spent: int = 0
    held: int = 0
    calls: int = 0
    model: str = ""
    ceiling: int | None = None

    @property
    def remaining(self) -> int | None:
        return None if self.ceiling is None else max(0, self.ceiling - self.spent - self.held)


class View(Protocol):
    """Told what happens; shows it."""

    def begin(self, title: str) -> None: ...

    def update(self, reading: Reading) -> None: ...

    def say(self, line: str) -> None: ...

    def end(self) -> None: ...


def usd(microcents: int) -> str:
    """Two decimals for the eye; the totals at the end are exact."""
    return f"${microcents / MICROCENTS:.2f}"


@dataclass(slots=True)
class LineView:
    """One line a second, and one for each event."""

    write: Callable[[str], None]
    _last_s: float = -_LINE_EVERY_S

    def begin(self, title: str) -> None:
        self.write(f"\n== {title}")
        self._last_s = -_LINE_EVERY_S

    def update(self, reading: Reading) -> None:
        if reading.seconds - self._last_s < _LINE_EVERY_S:
            return
        self._last_s = reading.seconds
        rest = "" if reading.remaining is None else f", {usd(reading.held)} held, {usd(reading.remaining)} left"
        self.write(
            f"{reading.seconds:5.1f} s  {usd(reading.spent)} spent{rest}, {reading.calls} calls, {reading.model or 'no model yet'}"
        )

    def say(self, line: str) -> None:
        self.write(f"         {line}")

    def end(self) -> None:
        """Nothing is kept open."""


@dataclass(slots=True)
class LiveView:
    """A panel per phase that redraws itself."""

    console: Console
    _title: str = ""
    _reading: Reading = field(default_factory=Reading)
    _events: list[str] = field(default_factory=list)
    _live: Live | None = None

    def begin(self, title: str) -> None:
        self.end()
        self._title, self._reading, self._events = title, Reading(), []
        self._live = Live(get_renderable=self._picture, console=self.console, refresh_per_second=10)
        self._live.start()

    def update(self, reading: Reading) -> None:
        self._reading = reading

    def say(self, line: str) -> None:
        self._events.append(line)
        del self._events[:-_LAST_EVENTS]

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _picture(self) -> RenderableType:
        reading = self._reading
        facts = Table.grid(padding=(0, 3))
        spent = Text(usd(reading.spent), style="bold red" if reading.ceiling is None else "bold green")
        facts.add_row(
            "spent",
            spent,
            "calls",
            str(reading.calls),
            "model",
            Text(reading.model or "-", style="cyan"),
            f"{reading.seconds:.0f} s",
        )
        parts: list[RenderableType] = [facts]
        if reading.ceiling is not None:
            facts.add_row("held", usd(reading.held), "left", usd(reading.remaining or 0), "ceiling", usd(reading.ceiling), "")
            parts.append(
                ProgressBar(total=reading.ceiling, completed=min(reading.spent + reading.held, reading.ceiling), width=70)
            )
        parts.extend(Text(line, style="dim") for line in self._events)
        return Panel(Group(*parts), title=self._title, title_align="left", width=100)


def view_for(console: Console) -> View:
    """Live where there is a terminal to draw on."""
    if console.is_terminal:
        return LiveView(console)
    return LineView(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
