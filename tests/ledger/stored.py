"""Looks at what a Redis ledger keeps, and changes it behind its back."""

from typing import Any

from gateway.ledger.redis.kept import KeptAccount, KeptCall, KeptMeta, KeptRun, keep_meta, read_account, read_call, read_run
from gateway.ledger.redis.keys import TenantKeys
from gateway.ledger.redis.packing import NUMBER_SIZE, unpacked_numbers
from tests.ledger.builders import TENANT
from tests.support.valkey import Server

_META_SIZE = 5 * NUMBER_SIZE


def meta_of(server: Server, tenant: str = TENANT) -> KeptMeta:
    text = server.command("GET", TenantKeys(tenant).meta)
    return KeptMeta(*unpacked_numbers(text[:_META_SIZE]), text[_META_SIZE:].decode())


def change_meta(server: Server, tenant: str = TENANT, **changes: Any) -> None:
    server.command("SET", TenantKeys(tenant).meta, keep_meta(meta_of(server, tenant)._replace(**changes)))


def account_of(server: Server, key: str, tenant: str = TENANT) -> KeptAccount:
    return read_account(server.command("GET", TenantKeys(tenant).account(key)))


def run_of(server: Server, run: str, tenant: str = TENANT) -> KeptRun:
    return read_run(server.command("GET", TenantKeys(tenant).run(run)))


def call_of(server: Server, tail: str, tenant: str = TENANT) -> KeptCall:
    return read_call(server.command("GET", TenantKeys(tenant).call(tail)))
