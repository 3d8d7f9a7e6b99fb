"""What decides and keeps the books in one process, whatever brings it calls: the policy in force, the ledger, who is asking, and the work
beside. The gateway has one behind its server; an integration that lives in another server's process has one behind its hooks.
"""

import asyncio
import contextlib
import itertools
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from gateway import bundled, policy_file
from gateway.core.decide import Rulebook
from gateway.core.grants import Grants, Unread
from gateway.core.learned import Learned
from gateway.core.policy import Policy
from gateway.core.tokens import TokenCounter
from gateway.events import Events
from gateway.identity import Identity
from gateway.keeper import Keeper
from gateway.ledger import opening
from gateway.ledger.archive import KEEP_MS as ARCHIVE_KEEP_MS
from gateway.ledger.archive import Archive
from gateway.ledger.contract import Expired, Keep, LedgerLost, LedgerUnavailable
from gateway.ledger.journal import Journal
from gateway.ledger.resilient import ResilientLedger
from gateway.metrics import Metrics
from gateway.observer import Observer
from gateway.reaper import Reaper
from gateway.registry import Registry
from gateway.settings import Settings
from gateway.yaml_source import Mistakes

_REAP_EVERY_MS: Final = 1_000
_TELL_AGAIN_MS: Final = 60_000
_FLUSH_EVERY_S: Final = 1.0
_LOOK_EVERY_S: Final = 1.0
_JOURNAL: Final = "journal"
_ARCHIVE: Final = "records.db"
_KEY_FILE: Final = "secret"  # its name in the state folder


class Office:
    """`rulebook` is the policy in force, as a whole; whoever keeps one for longer than a call is told of the next by `on_rulebook`."""

    def __init__(self, config: Settings, policy: Policy, events: Events, metrics_dir: Path | None = None) -> None:
        self.config = config
        self.events = events
        self.metrics = Metrics(config.catalog.models, metrics_dir)
        self.observer = Observer(events, self.metrics, time.perf_counter)
        journal = Journal(config.state_dir / _JOURNAL)
        self.ledger = ResilientLedger(
            lambda: opening.ledger_of(config.ledger, config.state_dir, clock_ms), journal, config.commit_wait_ms, self.observer
        )
        self.metrics.journal_entries = lambda: journal.waiting
        self.counter = TokenCounter(bundled.load_tokenizer)
        self.learned = Learned(self.counter)
        self.registry = Registry(self.ledger, clock_ms, self._granted, self._looking_failed)
        secret = install_secret(config.state_dir)
        self.identity = Identity(config, secret, lambda: "run_" + secrets.token_hex(12), self.registry)
        unread = Grants(unread=Unread("ledger_unavailable", "the ledger has yet to be opened"))
        self.rulebook = Rulebook(policy, config.catalog, self.counter, self.learned, unread)
        self.on_rulebook: Callable[[Rulebook], None] = _nobody
        self.policy_error: str | None = None
        # A ledger that keeps its records as long as an archive would needs none.
        self.archive = Archive(config.state_dir / _ARCHIVE) if config.ledger.keep_ms < ARCHIVE_KEEP_MS else None
        self.reaper = Reaper(self.ledger, _REAP_EVERY_MS, self._expired, self._reaping_failed)
        self._keeper = Keeper(self.ledger, self._keep, self.archive, clock_ms, self._keeping_failed)
        self._told_ms: dict[str, int] = {}  # of troubles that last: when each was last told
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """LedgerUnavailable where nothing could be remembered of a ledger that is away. A ledger that is away or lost does not stand in
        the way: its calls are refused until it serves."""
        await self.ledger.start()
        with contextlib.suppress(LedgerUnavailable, LedgerLost):
            await self.registry.look()
        for encoding in ("o200k_base", "cl100k_base"):
            await asyncio.to_thread(bundled.load_tokenizer, encoding)  # half a second that no call should wait for
        self.background(self.reaper.run())
        self.background(self._keeper.run())
        self.background(self.registry.run())
        self.background(self._flush_metrics())
        self.events.policy(self.rulebook.policy.version)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.ledger.close()
        if self.archive is not None:
            await self.archive.close()
        self.metrics.flush()

    def background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that lives until the office closes, unless it ends before."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.events.problem("a background task failed", failure)

    async def _flush_metrics(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            self.metrics.flush()

    # -- the policy -----------------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Reads the policy again. One with mistakes changes nothing but what /readyz and the log say."""
        in_force = self.rulebook.policy
        read = policy_file.reload(in_force, self.config.policy_path, self.config.catalog)
        if isinstance(read, Mistakes):
            self.policy_error = "; ".join(str(mistake) for mistake in read.mistakes)
            self.metrics.policy_reload(ok=False)
            self.events.policy_refused(in_force.version, [str(mistake) for mistake in read.mistakes])
            return
        self.policy_error = None
        if read.version == in_force.version:
            return
        self.rulebook = Rulebook(read, self.config.catalog, self.counter, self.learned, self.rulebook.grants)
        self.on_rulebook(self.rulebook)
        self.metrics.policy_reload(ok=True)
        self.events.policy(read.version, policy_file.changed_identities(in_force, read))

    def _granted(self, grants: Grants) -> None:
        """From the next call on."""
        self.rulebook = self.rulebook.beside(grants)
        self.on_rulebook(self.rulebook)

    async def watch_policy(self) -> None:
        """Reloads when the file changes. Looking once a second costs nothing; being told of it cost a thread that woke for every write
        to a ledger in the same folder."""
        seen = _stamp(self.config.policy_path)
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            found = _stamp(self.config.policy_path)
            if found != seen:
                seen = found
                self.reload()

    # -- holds and records ----------------------------------------------------------------------------------------------------

    def _keep(self) -> Keep:
        return Keep(self.config.ledger.keep_ms, self.rulebook.policy.runs.forget_after_ms)

    def _expired(self, expired: Expired) -> None:
        self.events.expired(expired)
        self.metrics.expired(expired)
        for alert in expired.alerts:
            self.observer.alert(alert)

    def _reaping_failed(self, failure: Exception) -> None:
        if not self._may_tell("reaping", failure):
            return
        if isinstance(failure, LedgerUnavailable | LedgerLost):
            self.events.log.warning("holds_wait_for_the_ledger", why=str(failure))
        else:
            self.events.problem("ending holds whose lease ran out", failure)

    def _keeping_failed(self, failure: Exception) -> None:
        if not self._may_tell("keeping", failure):
            return
        if isinstance(failure, LedgerUnavailable | LedgerLost):
            self.events.log.warning("old_records_wait_for_the_ledger", why=str(failure))
        else:
            self.events.problem("keeping the ledger small", failure)

    def _looking_failed(self, failure: Exception) -> None:
        if not self._may_tell("looking for grants", failure):
            return
        if isinstance(failure, LedgerUnavailable | LedgerLost):
            self.events.log.warning("grants_stay_as_they_were_read", why=str(failure))
        else:
            self.events.problem("reading what the Cycles admin plane made", failure)

    def _may_tell(self, work: str, failure: Exception) -> bool:
        """It may last, and then comes every few seconds."""
        trouble, now_ms = f"{work}: {type(failure).__name__}", clock_ms()
        told = now_ms - self._told_ms.get(trouble, 0) < _TELL_AGAIN_MS
        if not told:
            self._told_ms[trouble] = now_ms
        return not told


def _nobody(rulebook: Rulebook) -> None:
    del rulebook


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Differs when the file was written or replaced; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Ids:
    """Ids of decisions: the time first, so that records are written side by side, then what is this process's alone. No system call
    each: that costs as much as deciding, and nothing hangs on an id's being a secret."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(6)
        self._serial = itertools.count()

    def __call__(self) -> str:
        return f"bdg_{clock_ms():011x}{self._process}{next(self._serial) & 0xFFFFFF:06x}"


def install_secret(state_dir: Path) -> bytes:
    """What callers' keys are hashed with: made once per install, readable by its owner only. Several workers may make it at once:
    the file appears whole, and the first one counts."""
    path = state_dir / _KEY_FILE
    if not path.exists():
        state_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=state_dir) as made:  # opened with mode 0600
            made.write(secrets.token_bytes(32))
            made.flush()
            with contextlib.suppress(FileExistsError):
                os.link(made.name, path)
    return path.read_bytes()
