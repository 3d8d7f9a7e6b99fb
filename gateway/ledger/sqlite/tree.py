"""Where a run stands among the runs: its ancestors, and what of theirs reaches it. See `The tree` in the contract."""

from gateway.core.scopes import Caller
from gateway.ledger.contract import DEPTH, Barrier
from gateway.ledger.sqlite.books import Books
from gateway.ledger.sqlite.cards import RunRow
from gateway.ledger.states import ACTIVE, PAUSED, STOPPED


def place_of(books: Books, caller: Caller, run: RunRow | None) -> tuple[str, ...] | Barrier:
    """The ancestry that the run has, or gets if its place is still open. A barrier is about `caller.parent`."""
    parent = caller.parent
    if run is not None and run.placed:
        return run.ancestry if parent is None or run.ancestry[:1] == (parent,) else Barrier.PARENT_CHANGED
    if parent is None:
        return ()
    if parent == caller.run:
        return Barrier.CYCLE
    above = books.run(caller.tenant, parent)
    if above is None:
        return (parent,)
    if caller.run in above.ancestry:
        return Barrier.CYCLE
    if above.owner not in ("", caller.owner):
        return Barrier.FOREIGN_PARENT
    return (parent, *above.ancestry) if len(above.ancestry) < DEPTH else Barrier.TOO_DEEP


def take_place(books: Books, caller: Caller, run: RunRow, ancestry: tuple[str, ...]) -> None:
    """Fixes the place of a run, and that of a parent which had none: so nobody can be placed under its own descendant later."""
    run.placed = 1
    run.ancestry = ancestry
    run.change()
    if ancestry:
        parent = books.run(caller.tenant, ancestry[0]) or books.new_run(caller.tenant, ancestry[0], caller.owner)
        if not parent.placed:
            parent.placed = 1
            parent.owner = parent.owner or caller.owner
            parent.change()


def use_ancestors(books: Books, tenant: str, ancestry: tuple[str, ...]) -> None:
    """They are in use as long as their descendants are."""
    for run in ancestry:
        row = books.run(tenant, run)
        if row is not None:
            row.use(books.now_ms)


def is_paused(books: Books, tenant: str, run: RunRow) -> bool:
    """A pause that a refusal set ends with the next raise."""
    return run.state == PAUSED and (run.paused_no is None or run.paused_no == books.rules(tenant).raises)


def barrier_above(books: Books, caller: Caller, run: RunRow | None, ancestry: tuple[str, ...]) -> tuple[Barrier, str] | None:
    """The first stop or pause on the way up from the caller's run, and the run that has it."""
    barrier = _barrier(books, caller.tenant, run)
    if barrier is not None:
        return barrier, caller.run
    for each in ancestry:
        barrier = _barrier(books, caller.tenant, books.run(caller.tenant, each))
        if barrier is not None:
            return barrier, each
    return None


def _barrier(books: Books, tenant: str, run: RunRow | None) -> Barrier | None:
    if run is None or run.state == ACTIVE:
        return None
    if run.state == STOPPED:
        return Barrier.STOPPED
    return Barrier.PAUSED if is_paused(books, tenant, run) else None
