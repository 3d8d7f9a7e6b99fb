"""Answers that a provider keeps: read, cancelled, deleted, their input listed. All of it costs nothing and passes as it is.

A background answer carries the mark of its call's hold (`Identity.hold_mark`). Whoever asks for it settles that hold, once it says what
was used, in whatever process: committing is exactly once, and corrects a hold whose lease has ended. Until then asking keeps the hold.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.charging import Charging
from gateway.core.catalog import Model
from gateway.core.decide import Rulebook
from gateway.core.meter import Meter
from gateway.core.money import Microcents
from gateway.core.profiles import OnDisconnect
from gateway.core.values import Ending
from gateway.forwarding import Forwarding
from gateway.identity import Identity, Principal
from gateway.ledger.contract import CallRecord, HoldState, LedgerLost, LedgerUnavailable, Settled, Settlement
from gateway.observer import Observer
from gateway.relay import Shared
from gateway.upstream import Answer, NotSent, TooLarge, Unknown
from gateway.whole import Whole
from gateway.wire import responses
from gateway.wire.exchange import ClientGone, Inbound, Outlet
from gateway.wire.headers import returnable
from gateway.wire.problem import Refused, problem

_STREAMED: Final = "text/event-stream"


class StoredAnswers:
    """`rulebook` is the policy in force."""

    def __init__(
        self,
        shared: Shared,
        identity: Identity,
        rulebook: Callable[[], Rulebook],
        forwarding: Forwarding,
        observer: Observer,
    ) -> None:
        self._shared = shared
        self._identity = identity
        self._rulebook = rulebook
        self._forwarding = forwarding
        self._observer = observer

    async def serve(self, inbound: Inbound, outlet: Outlet) -> None:
        """One request of `responses.STORED`."""
        try:
            principal = self._identity.principal(inbound.headers, model_route=True)
            name = self._provider(principal, inbound.parameters["id"])
            answer = await self._opened(name, principal, inbound, outlet)
        except Refused as refusal:
            said = refusal.problem
            with contextlib.suppress(ClientGone):
                await outlet.answer(said.status, [*said.headers(), *refusal.headers], said.body())
            return
        if answer is None:
            return
        try:
            if answer.headers.get("Content-Type", "").lower().startswith(_STREAMED):
                await self._relay_stream(name, principal, answer, outlet)
            else:
                await self._relay(name, principal, answer, outlet)
        except ClientGone:
            pass  # nothing hangs on it: whoever asks next settles
        finally:
            answer.release()

    def _provider(self, principal: Principal, answer_id: str) -> str:
        """The one that made the answer, else the likeliest."""
        served, catalog = self._identity.served(principal), self._rulebook().catalog
        able = [
            name for name in self._shared.settings.providers if name in served and catalog.speaks(name, responses.DIALECT.name)
        ]
        if not able:
            raise Refused(problem("model_not_served", "No provider that keeps answers has a credential here."))
        made_by = self._shared.origins.find(answer_id)
        if made_by in able:
            return made_by
        return "openai" if "openai" in able else able[0]

    async def _opened(self, name: str, principal: Principal, inbound: Inbound, outlet: Outlet) -> Answer | None:
        """None: the client has left meanwhile. From here on its leaving ends whatever is waited for."""
        opening = asyncio.ensure_future(self._open(name, principal, inbound))

        def leave() -> None:
            if not opening.cancel() and not opening.cancelled() and opening.exception() is None:
                opening.result().close()

        outlet.on_gone(leave)
        try:
            return await opening
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return None

    async def _open(self, name: str, principal: Principal, inbound: Inbound) -> Answer:
        try:
            return await self._shared.upstreams[name].open(self._forwarding.request(name, principal, inbound, inbound.body))
        except (NotSent, Unknown) as failure:
            raise Refused(problem("provider_unreachable", f"{name} gave no answer ({failure}).")) from failure

    async def _relay(self, name: str, principal: Principal, answer: Answer, outlet: Outlet) -> None:
        whole = Whole(answer, self._shared.settings.max_response, self._shared.answers)
        try:
            body = await whole.read()
            response = await self._shared.large.of(body, responses.response_of)
            if response is not None:
                await self._look_at(name, principal, response)
            await outlet.answer(answer.status, returnable(answer.headers), body)
        except (Unknown, TooLarge) as failure:
            said = problem("provider_cut", f"The answer of {name} broke off ({failure}).")
            await outlet.answer(said.status, said.headers(), said.body())
        finally:
            whole.give_back()

    async def _relay_stream(self, name: str, principal: Principal, answer: Answer, outlet: Outlet) -> None:
        """A background answer as it is made."""
        stream = responses.ResponsesStream(Meter(self._rulebook().counter, None))
        await outlet.start(answer.status, returnable(answer.headers))

        def relay(piece: bytes) -> bool:
            relayed = stream.feed(piece)
            return (not relayed or outlet.put(relayed)) and not stream.done

        with contextlib.suppress(Unknown):
            while not await answer.pour(relay) and not stream.done:
                await outlet.room()
        rest = stream.finish()
        await self._look_at(name, principal, stream.response)
        if stream.cut and not stream.error_seen:
            await outlet.write(rest)
            outlet.abort()  # never a clean end
            return
        await outlet.finish(rest)

    # -- its hold -------------------------------------------------------------------------------------------------------------

    async def _look_at(self, provider: str, principal: Principal, response: Mapping[str, Any]) -> None:
        """Settles the hold that the answer is marked with, or keeps it. A ledger that is away keeps nobody from reading an answer: asking
        again will do."""
        mark = responses.hold_mark(response)
        marked = None if mark is None else self._identity.marked(principal.tenant, mark)
        if marked is None:
            return
        hold_id, flat = marked
        with contextlib.suppress(LedgerUnavailable, LedgerLost, TimeoutError):
            async with asyncio.timeout(self._shared.settings.commit_wait_ms / 1000):
                if responses.is_final(response):
                    await self._settle(provider, principal.tenant, hold_id, Microcents(flat), response)
                else:
                    await self._shared.ledger.extend(principal.tenant, hold_id, self._shared.settings.background_lease_ms)

    async def _settle(self, provider: str, tenant: str, hold_id: str, flat: Microcents, response: Mapping[str, Any]) -> None:
        """Nothing happens where it was settled before, or where the answer does not say what was used: then its lease ends the hold."""
        hold = await self._shared.ledger.record(tenant, "bdg_" + hold_id.removeprefix("rsv_"))
        if hold is None or hold.state not in (HoldState.LIVE, HoldState.EXPIRED):
            return
        model = self._model(hold, provider)
        if model is None:
            return
        meter = Meter(self._rulebook().counter, model.encoding)
        responses.read_response(response, meter)
        if not meter.reported:
            return
        charging = Charging(model, OnDisconnect.COUNT, meter)
        usage, cost = charging.later(flat)
        settled = await self._shared.ledger.commit(tenant, hold_id, Settlement(cost, usage, Ending.COMPLETED))
        if isinstance(settled, Settled) and settled.changed:
            self._observer.settled_later(hold, provider, usage, cost)
            self._observer.unpriced(provider, model.name, charging.unpriced(usage))
            for alert in settled.alerts:
                self._shared.alert(alert)

    def _model(self, hold: CallRecord, provider: str) -> Model | None:
        """As it is priced at the provider that answered."""
        routes = self._rulebook().catalog.routes_of(hold.selected_model)
        return next((route.model for route in routes if route.provider == provider), None)
