"""The tenants of a Redis ledger, and whether their slots are what was seen before. Every script goes through here.

Each tenant has an epoch and a sequence of its own. Once one slot is found to be another, or behind, nothing is asked any more until `start`
has found all of them in order again: what else is missing nobody can know.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from gateway.ledger.contract import LedgerLost, LedgerUnavailable, Unfit
from gateway.ledger.redis.kept import VERSION
from gateway.ledger.redis.keys import TENANTS, TenantKeys
from gateway.ledger.redis.resp import Argument, Command
from gateway.ledger.redis.scripts import Scripts
from gateway.ledger.redis.servers import Servers
from gateway.ledger.redis.shapes import LOST, Shapes
from gateway.ledger.witness import ADOPT_HINT, Seen, Witness, new_epoch

_SAMPLE: Final = 256  # tenants that are looked at when a new one is made: a server that lost its data shows in one of them


class Tenant:
    """What is known here of a tenant: its keys, and the latest point seen in its history."""

    __slots__ = ("epoch", "keys", "name", "sequence", "shapes")

    def __init__(self, name: str, seen: Seen) -> None:
        self.name = name
        self.keys = TenantKeys(name)
        self.shapes = Shapes(self.keys)
        self.epoch = seen.epoch
        self.sequence = seen.sequence

    def saw(self, sequence: int) -> None:
        if sequence > self.sequence:
            self.sequence = sequence

    @property
    def seen(self) -> Seen:
        return Seen(self.epoch, self.sequence)


class Slots:
    """See the module. `known` are the tenants that this gateway or its witness has seen."""

    def __init__(self, servers: Servers, witness: Witness, now: str | None) -> None:
        self.known: dict[str, Tenant] = {}
        self.lost: str | None = None  # why nothing is done any more
        self.servers = servers
        self.scripts = Scripts(servers.script, now)
        self._witness = witness
        self._witnessed: dict[str, Seen] = {}
        self._making: dict[str, asyncio.Task[Tenant]] = {}

    async def verify(self) -> None:
        """Every tenant that was ever seen from here is where it was, or further. LedgerLost, LedgerUnavailable."""
        witnessed = await asyncio.to_thread(self._witness.read_tenants)
        known = dict(self.known)
        for name, seen in witnessed.items():
            tenant = known.get(name)
            if tenant is None or tenant.epoch != seen.epoch:
                known[name] = Tenant(name, seen)
            else:
                tenant.sequence = max(tenant.sequence, seen.sequence)
        await self._verify(known.values())
        self.known = known
        self._witnessed = witnessed
        self.lost = None

    async def _verify(self, tenants: Iterable[Tenant]) -> None:
        listed = list(tenants)
        for start in range(0, len(listed), 1_000):
            # Steps go on while this waits, and move what was seen beyond what is told here: only what was seen before must be there.
            part = [(each, each.seen) for each in listed[start : start + 1_000]]
            told = await asyncio.gather(*[self.look(tenant.keys) for tenant, _ in part])
            for (tenant, seen), found in zip(part, told, strict=True):
                if found is None or found.epoch != seen.epoch or found.sequence < seen.sequence:
                    # Any script says so too; and where the slot is behind, it stops those who saw less of it.
                    with contextlib.suppress(LedgerUnavailable, LedgerLost):
                        await self.evaluate(tenant, self.scripts.balances, (), ())
                    raise self.lose(tenant, found)

    def lose(self, tenant: Tenant, found: Seen | None) -> LedgerLost:
        """From now on everything is refused."""
        where, what = self.servers.url, f"tenant {tenant.name!r}"
        if found is None:
            why = f"{where} no longer has {what}, which was seen there before: {ADOPT_HINT}"
        elif found.epoch.partition("-")[0] == tenant.epoch.partition("-")[0] and found.epoch != tenant.epoch:
            why = f"{where} was set back: some spend of {what} is missing there; {ADOPT_HINT}"
        elif found.epoch != tenant.epoch:
            why = f"{where} has another ledger of {what} (epoch {found.epoch}) than before ({tenant.epoch}): {ADOPT_HINT}"
        else:
            why = (
                f"{where} is older than what was seen there before (step {found.sequence} of {tenant.sequence} of {what}):"
                f" spend after that is missing; {ADOPT_HINT}"
            )
        self.lost = why
        return LedgerLost(why)

    async def look(self, keys: TenantKeys, epoch: str = "", replaces: str = "") -> Seen | None:
        """Where a tenant stands. `epoch`: what a tenant that there is not is made with, or one with the epoch that it replaces. Unfit where
        another version of Penstock has written it: nothing of it is read or changed then."""
        found, sequence, version = await self.servers.call(
            keys.meta, "EVALSHA", self.scripts.meta, 1, keys.meta, epoch, replaces, idempotent=True, replicated=True
        )
        if version != VERSION:
            raise Unfit(
                f"{self.servers.url} keeps its ledger (key {keys.meta}) in version {version}; this gateway reads version {VERSION}: stop the "
                "gateways, `penstock ledger export` it with the Penstock that wrote it, and `penstock ledger import` that with this one into "
                "an empty database"
            )
        return Seen(found.decode(), sequence) if found else None

    async def witness(self) -> None:
        """Writes down what was seen since it was written last; of a lost store above all, so that whoever looks at it next knows what it
        had. LedgerLost where the file can't be read, LedgerUnavailable where written."""
        news = {name: tenant.seen for name, tenant in self.known.items() if self._witnessed.get(name) != tenant.seen}
        if news:
            try:
                await asyncio.to_thread(self._witness.merge_tenants, news)
            except OSError as error:
                raise LedgerUnavailable(f"{self._witness.path} can't be written: {error.strerror or error}") from None
            self._witnessed.update(news)

    # -- tenants --------------------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> Tenant | None:
        """None: nobody has ever had anything there."""
        tenant = self.known.get(name)
        if tenant is None:
            found = await self.look(TenantKeys(name))
            if found is None:
                return None
            tenant = self.known.setdefault(name, Tenant(name, found))
        return tenant

    async def get(self, name: str) -> Tenant:
        """Made, if it is new. Whoever waits meanwhile waits for the same."""
        tenant = self.known.get(name)
        if tenant is not None:
            return tenant
        making = self._making.get(name)
        if making is None:
            making = self._making[name] = asyncio.get_running_loop().create_task(self._make(name))
            making.add_done_callback(lambda _: self._making.pop(name, None))
        return await asyncio.shield(making)

    async def _make(self, name: str) -> Tenant:
        keys = TenantKeys(name)
        witnessed = (await asyncio.to_thread(self._witness.read_tenants)).get(name)
        found = await self.look(keys)
        if found is None and witnessed is not None:
            raise self.lose(Tenant(name, witnessed), None)
        # Who looks after leases must find it, whatever happens next.
        await self.servers.call(TENANTS, "SADD", TENANTS, name, idempotent=True)
        if found is None:
            # An emptied store must admit nobody, so those that are known are looked at first; and again once it is made: one that is
            # emptied later is without this tenant too.
            sample = random.sample(list(self.known.values()), min(_SAMPLE, len(self.known)))
            await self._verify(sample)
            found = await self.look(keys, new_epoch())
            assert found is not None
            await self._verify(sample)
        if witnessed is not None and (witnessed.epoch != found.epoch or found.sequence < witnessed.sequence):
            raise self.lose(Tenant(name, witnessed), found)
        # Another gateway may have made it first, and steps of this one have found it since: what they saw counts too.
        tenant = self.known.setdefault(name, Tenant(name, found))
        tenant.sequence = max(tenant.sequence, found.sequence)
        await self.witness()
        return tenant

    async def all(self) -> Sequence[Tenant]:
        """Those that any gateway has seen."""
        for member in await self.servers.call(TENANTS, "SMEMBERS", TENANTS, idempotent=True):
            await self.find(member.decode("utf-8", "surrogatepass"))
        return tuple(self.known.values())

    # -- scripts --------------------------------------------------------------------------------------------------------------

    def command_of(self, tenant: Tenant, sha: str, keys: Sequence[str], args: Sequence[Argument]) -> tuple[Argument, ...]:
        """A script's. `keys`: without meta, which is always the first. `args`: without the epoch, which is too."""
        return ("EVALSHA", sha, len(keys) + 1, tenant.keys.meta, *keys, tenant.epoch, *args)

    def ask(self, tenant: Tenant, command: Command, otherwise: Callable[[], Command] | None = None) -> "asyncio.Future[Any]":
        """Under way when it returns. `checked`, or `Tenant.saw`, must see the reply."""
        if self.lost is not None:
            raise LedgerLost(self.lost)
        return self.servers.ask(tenant.keys.meta, command, otherwise, idempotent=True, replicated=True)

    def evaluate(self, tenant: Tenant, sha: str, keys: Sequence[str], args: Sequence[Argument]) -> "asyncio.Future[Any]":
        return self.ask(tenant, self.command_of(tenant, sha, keys, (tenant.sequence, *args)))

    def checked(self, tenant: Tenant, reply: Any) -> Any:
        """The reply of a script. LedgerLost where the slot is not what it was."""
        if reply[0] == LOST:
            if self.lost is not None:
                raise LedgerLost(self.lost)
            raise self.lose(tenant, Seen(reply[1].decode(), reply[2]) if reply[1] else None)
        tenant.saw(reply[1])
        return reply

    async def run(self, tenant: Tenant, sha: str, keys: Sequence[str], *args: Argument) -> Any:
        return self.checked(tenant, await self.evaluate(tenant, sha, keys, args))

    async def command(self, tenant: Tenant, *args: Argument) -> Any:
        """A plain command that reads. The keys that it names are the tenant's."""
        if self.lost is not None:
            raise LedgerLost(self.lost)
        return await self.servers.call(tenant.keys.meta, *args, idempotent=True)


async def adopt(servers: Servers, witness: Witness) -> Mapping[str, Seen]:
    """Goes on with the store as it is. A tenant that is missing or behind gets a new epoch, which stops every gateway that remembers the old
    one until that is adopted there too; one that has another epoch by now, because somebody adopted it elsewhere, is taken as it is.
    `servers`: started."""
    slots = Slots(servers, witness, None)
    try:
        witnessed = await asyncio.to_thread(witness.read_tenants)
    except LedgerLost:
        witnessed = {}  # what was seen is not readable: the store is taken as it is
    names = {each.decode("utf-8", "surrogatepass") for each in await servers.call(TENANTS, "SMEMBERS", TENANTS, idempotent=True)}
    adopted = {}
    for name in sorted(names | witnessed.keys()):
        keys, seen = TenantKeys(name), witnessed.get(name)
        found = await slots.look(keys, new_epoch())
        assert found is not None
        if seen is not None and found.epoch == seen.epoch and found.sequence < seen.sequence:
            found = await slots.look(keys, new_epoch(), replaces=found.epoch)
            assert found is not None
        await servers.call(TENANTS, "SADD", TENANTS, name, idempotent=True)
        adopted[name] = found
    await asyncio.to_thread(witness.replace_tenants, adopted)
    return adopted
