"""What operators and owners do by hand, each a step like those of a call's path. An act that changed nothing leaves nothing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from gateway.core.scopes import Account
from gateway.core.values import Balance, Ending, Usage, UsageSource
from gateway.ledger.contract import MOST, AccountView, Adjusting, Frozen, Fund, Funded, Funding, SetLimit, Settled, Settlement
from gateway.ledger.sqlite.books import Books
from gateway.ledger.sqlite.cards import AccountRow
from gateway.ledger.sqlite.steps import commit, release
from gateway.ledger.sqlite.tree import is_paused
from gateway.ledger.states import ACTIVE, PAUSED, STOPPED

T = TypeVar("T")


def set_limit(books: Books, tenant: str, run_id: str, owner: str, change: SetLimit) -> bool:
    """False: another owns the run."""
    assert change.limit >= 0, change
    run = books.run(tenant, run_id)
    if run is not None and run.owner not in ("", owner) and not change.by_admin:
        return False
    if run is None:
        run = books.new_run(tenant, run_id, owner)
        books.changes += 1
    if change.by_admin:
        limit, raised = change.limit, 1
    else:
        if run.owner != owner:
            run.owner = owner
            run.change()
            books.changes += 1
        limit, raised = change.limit if run.limit is None else min(run.limit, change.limit), run.raised
    if (limit, raised) != (run.limit, run.raised):
        run.limit, run.raised = limit, raised
        run.change()
        books.add_act(tenant, change.who, "set_limit", f"{run_id} {limit}", "")
        if change.by_admin:
            books.add_raise(tenant)
    return True


def stop(books: Books, tenant: str, run_id: str, who: str, why: str) -> bool:
    """False: no such run."""
    run = books.run(tenant, run_id)
    if run is None:
        return False
    if run.state != STOPPED:
        run.state, run.paused_no, run.paused_by = STOPPED, None, ""
        run.change()
        books.add_act(tenant, who, "stop", run_id, why)
    return True


def pause(books: Books, tenant: str, run_id: str, who: str, why: str) -> bool:
    """False: no such run."""
    run = books.run(tenant, run_id)
    if run is None:
        return False
    if run.state != STOPPED and (run.state, run.paused_no, run.paused_by) != (PAUSED, None, who):
        run.state, run.paused_no, run.paused_by = PAUSED, None, who
        run.change()
        books.add_act(tenant, who, "pause", run_id, why)
    return True


def resume(books: Books, tenant: str, run_id: str, who: str, why: str) -> bool:
    """False: no such run."""
    run = books.run(tenant, run_id)
    if run is None:
        return False
    if is_paused(books, tenant, run):
        run.state, run.paused_no, run.paused_by = ACTIVE, None, ""
        run.change()
        books.add_act(tenant, who, "resume", run_id, why)
    return True


def freeze(books: Books, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
    """False: it was frozen."""
    frozen = Frozen(tuple(sorted(scope)), books.now_ms, who, why)
    if any(each.text == frozen.text for each in books.rules(tenant).frozen):
        return False
    books.freeze(tenant, frozen)
    books.add_act(tenant, who, "freeze", frozen.text, why)
    return True


def thaw(books: Books, tenant: str, text: str, who: str, why: str) -> bool:
    """False: it was not frozen."""
    if not any(each.text == text for each in books.rules(tenant).frozen):
        return False
    books.thaw(tenant, text)
    books.add_act(tenant, who, "thaw", text, why)
    return True


def set_account_limit(books: Books, tenant: str, key: str, limit: int | None, who: str, why: str) -> AccountView | None:
    assert limit is None or limit >= 0, limit
    found = books.account_by_key(tenant, key)
    if found is None:
        return None
    account, row = found
    if row.limit != limit:
        books.limit_account(row, limit)
        books.add_act(tenant, who, "set_account_limit", f"{key} {'none' if limit is None else limit}", why)
        books.add_raise(tenant)
    return view(account, row)


def adjust(
    books: Books, tenant: str, key: str, amount: int, act_id: str, who: str, why: str
) -> tuple[Adjusting, AccountView] | None:
    found = books.account_by_key(tenant, key)
    if found is None:
        return None
    account, row = found
    if books.has_act(tenant, act_id):
        return Adjusting.REPLAYED, view(account, row)
    if account.window.span_ms:
        return Adjusting.ROLLING, view(account, row)
    if row.committed - row.unconfirmed + amount < 0:
        return Adjusting.BELOW_ZERO, view(account, row)
    row.committed += amount
    row.adjusted += amount
    row.change()
    books.add_act(tenant, who, "adjust", f"{key} {amount}", why, act_id)
    books.add_raise(tenant)
    return Adjusting.DONE, view(account, row)


def reset(books: Books, tenant: str, key: str, who: str, why: str) -> AccountView | None:
    found = books.account_by_key(tenant, key)
    if found is None:
        return None
    account, row = found
    if row.reset():
        books.add_act(tenant, who, "reset", key, why)
        books.add_raise(tenant)
    return view(account, row)


def fund(books: Books, account: Account, change: Fund, act_id: str, who: str, why: str) -> Funded:
    assert not account.window.span_ms, account
    row = books.account(account)
    before = view(account, row) if row.stored or row.changed else None
    if books.has_act(account.tenant, act_id):
        return Funded(Funding.REPLAYED, before, view(account, row))
    limit = (row.limit or 0) + change.by if change.to is None else change.to
    committed = row.committed if change.committed is None else row.unconfirmed + change.committed
    if limit < 0:
        return Funded(Funding.TOO_LITTLE, before, view(account, row))
    if limit > MOST or (change.committed is not None and committed + row.reserved > MOST):
        return Funded(Funding.TOO_MUCH, before, view(account, row))
    if change.at_least_free and limit < committed + row.reserved:
        return Funded(Funding.TOO_LITTLE, before, view(account, row))
    gives_room = row.limit is None or limit - committed > row.limit - row.committed
    if change.committed is not None:
        row.adjusted += committed - row.committed
        row.committed = committed
        row.alerted = 0
    books.limit_account(row, limit)
    books.add_act(account.tenant, who, "fund", f"{account.key} {change.text}", why, act_id)
    if gives_room:
        books.add_raise(account.tenant)
    return Funded(Funding.DONE, before, view(account, row))


def put_document(books: Books, tenant: str, name: str, text: str | None, expected: str | None) -> bool:
    if books.document(tenant, name) != expected:
        return False
    if text != expected:
        books.put_document(tenant, name, text)
    return True


def remember(books: Books, tenant: str, name: str, text: str, keep_ms: int) -> str | None:
    known = books.memo(tenant, name)
    if known is None:
        books.put_memo(tenant, name, text, books.now_ms + keep_ms)
    return known


def view(account: Account, row: AccountRow) -> AccountView:
    balance = Balance(account, row.limit, row.committed, row.reserved, row.unconfirmed)
    return AccountView(balance, row.carried, row.adjusted)


def settle(books: Books, tenant: str, hold_id: str, cost_usd: int | None, who: str, why: str) -> Settled | None:
    call = books.call(tenant, hold_id.removeprefix("rsv_"))
    if call is None:
        return None
    settled: Settled | None
    if cost_usd is None or call.record is None:
        settled = release(books, tenant, hold_id, Ending.UNKNOWN, "")
    else:
        cost = replace(call.record.held, usd=cost_usd)
        settled = commit(books, tenant, hold_id, Settlement(cost, Usage(UsageSource.HELD), Ending.UNKNOWN))
    if settled is not None and settled.changed:
        books.add_act(tenant, who, "settle", f"{hold_id} {'none' if cost_usd is None else cost_usd}", why)
    return settled
