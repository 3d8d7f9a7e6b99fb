"""What the benchmark asks of the machine: cores, the CPU time and memory of process trees, open files."""

import contextlib
import os
import platform
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_WITH_CORES_TO_SPARE: Final = 4


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for what is measured, `rest` for the provider, the load and a store; `two` for two workers, where there are enough."""

    one: frozenset[int]
    two: frozenset[int]
    rest: frozenset[int]

    @property
    def to_spare(self) -> bool:
        return len(self.two) > 1


def cores() -> Cores:
    here = sorted(os.sched_getaffinity(0))
    spare = len(here) >= _WITH_CORES_TO_SPARE
    measured = here[:2] if spare else here[:1]
    return Cores(frozenset(here[:1]), frozenset(measured), frozenset(here[len(measured) :] or here))


def pin(pid: int, on: Iterable[int]) -> None:
    """A process tree with all the threads it has by now; what they start later inherits."""
    for process in tree(pid):
        for thread in _names(f"/proc/{process}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), on)


def tree(pid: int) -> Sequence[int]:
    """A process and all that descend from it."""
    return (pid, *(below for child in _children(pid) for below in tree(child)))


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of processes with all their threads, ended ones too. In steps of 10 ms, so of little use below a second."""
    return sum(_cpu_ticks(pid) for pid in pids) * _TICK_S


def cpu_of_threads(pid: int) -> Mapping[int, tuple[float, float]]:
    """User and system time of each thread of a process, by its id."""
    told = {}
    for thread in _names(f"/proc/{pid}/task"):
        for line in _lines(f"/proc/{pid}/task/{thread}/stat"):
            after_name = line.rpartition(")")[2].split()
            told[int(thread)] = (int(after_name[11]) * _TICK_S, int(after_name[12]) * _TICK_S)
    return told


def memory_kb(pids: Iterable[int]) -> int:
    """Resident memory; what processes share counts once."""
    return sum(_pss_kb(pid) for pid in pids)


def core_s(core: int) -> float:
    """How long a core has been busy since the machine started, stolen time included."""
    for line in _lines("/proc/stat"):
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _waiting, irq, soft_irq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + soft_irq + steal) * _TICK_S
    return 0.0


def allow_many_files() -> None:
    """For this process and those it starts: as many open files as the system allows it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def about() -> str:
    model = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return (
        f"{len(os.sched_getaffinity(0))} × {model or platform.machine()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def _children(pid: int) -> Iterator[int]:
    for thread in _names(f"/proc/{pid}/task"):
        for line in _lines(f"/proc/{pid}/task/{thread}/children"):
            yield from map(int, line.split())


def _cpu_ticks(pid: int) -> int:
    for line in _lines(f"/proc/{pid}/stat"):
        after_name = line.rpartition(")")[2].split()
        return int(after_name[11]) + int(after_name[12])
    return 0


def _pss_kb(pid: int) -> int:
    return sum(int(line.split()[1]) for line in _lines(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:"))


def _lines(path: str) -> Sequence[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return ()


def _names(folder: str) -> Sequence[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)  # noqa: PTH208 - names are all that is needed
    return ()
