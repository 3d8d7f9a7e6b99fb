"""The hook in LiteLLM's proxy: our decision in front of every call that it makes, and every call settled.

    litellm_settings:
      callbacks: gateway.integrations.litellm.budget        # and PENSTOCK_CONFIG=/etc/penstock.yaml in its environment

LiteLLM asks                              what happens here
async_pre_call_hook                       once a request: who is calling, a Call, a hold; the model and the cap that were held are written
async_pre_call_deployment_hook            once an attempt (retries and fallbacks too), and for calls that LiteLLM makes of its own: each has
                                          a hold, for what is really sent
async_post_call_success_deployment_hook   an attempt's whole answer: committed
async_post_call_failure_deployment_hook   an attempt that failed: released where nothing can have been billed, else left to its lease
async_post_call_streaming_iterator_hook   a stream: metered as it passes, committed at its end, whoever ended it
async_post_call_success_hook, …_failure_  what the attempts' hooks were not asked about: answers from a cache, a stream that never opened

The composition root of this process's part: it reads the environment.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import ProxyException
from litellm.types.utils import is_litellm_owned_kwarg
from multidict import CIMultiDict, CIMultiDictProxy

from gateway import bundled, policy_file, settings
from gateway.core.catalog import Catalog
from gateway.core.policy import Policy
from gateway.core.scopes import Caller
from gateway.core.values import Directives, Ending, Output
from gateway.events import Events, open_sink
from gateway.identity import DEFAULT_TENANT, Principal
from gateway.integrations import litellm_words as words
from gateway.integrations.attempts import Attempt, Door, Session, Wanted
from gateway.integrations.exchanges import CURRENT, Exchange, Exchanges
from gateway.office import Office, clock_ms
from gateway.wire import chat
from gateway.wire.budget import undecided_headers
from gateway.wire.dialect import Dialect
from gateway.wire.exchange import Inbound
from gateway.wire.headers import NO_HEADERS, directives
from gateway.wire.problem import Refused, problem
from gateway.wire.refusing import Answer

CONFIG: Final = "PENSTOCK_CONFIG"
_NO_DIRECTIVES: Final = Directives()
_MODELS_S: Final = 5.0  # how long the router's models are taken to be what they were
_ITSELF: Final = "litellm"  # who calls, where LiteLLM does so of its own: health checks, guardrails that ask a model

_attempt: ContextVar[Attempt | None] = ContextVar("penstock_attempt", default=None)


class BudgetRefusal(ProxyException):  # type: ignore[misc]
    """What LiteLLM handles as one of its own. The client reads `answer`; this says the same where no `Exchanges` stands around."""

    def __init__(self, refused: Refused, answer: Answer, headers: list[tuple[str, str]]) -> None:
        said = refused.problem
        super().__init__(
            message=said.detail,
            type=said.error_type,
            param=said.param,
            code=answer.status,
            headers=dict([*said.headers(), *headers]),
            openai_code=said.error_code,
        )
        self.status_code = answer.status  # as LiteLLM's router asks its exceptions
        self._said = said

    def to_dict(self) -> dict[str, Any]:
        return self._said.error()


class Budget(CustomLogger):  # type: ignore[misc]
    """Made at import, and opened by the first call: LiteLLM has an event loop by then."""

    def __init__(self, config: Path) -> None:
        super().__init__()
        self._config, policy = _load(config)
        self._policy = policy
        self._keys = {key.sha256: key for key in self._config.keys} if self._config.auth == "keys" else {}
        self._names = words.Names(self._config.catalog, bundled.load_catalog())
        self._models = Models(self._names, self._config.catalog)
        self._readers = bundled.load_clients()
        self._opening: asyncio.Task[Door] | None = None
        _stand_around()

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def _door(self) -> Door:
        """Refused 503, where nothing can be kept."""
        if self._opening is None or (
            self._opening.done() and (self._opening.cancelled() or self._opening.exception() is not None)
        ):
            self._opening = asyncio.get_running_loop().create_task(self._open())
        try:
            return await asyncio.shield(self._opening)
        except Exception as failure:
            raise Refused(problem("ledger_unavailable", f"the budget can't be kept here: {failure}")) from failure

    async def _open(self) -> Door:
        office = Office(self._config, self._policy, Events(open_sink(self._config.log)))
        await office.open()
        door = Door(office)
        office.background(door.watch.run())
        office.background(office.watch_policy())
        return door

    # -- a request ------------------------------------------------------------------------------------------------------------

    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str) -> None:
        """Once a request, before LiteLLM chooses who serves it."""
        del cache
        exchange = CURRENT.get() or Exchange()
        headers, dialect = NO_HEADERS, None
        try:
            dialect = words.dialect_of(call_type)
            if dialect is None:
                exchange.free = True
                return
            door = await self._door()
            policy = door.rulebook.policy
            headers = words.headers_of(data, policy)
            group = str(data.get("model") or "")
            model, cap = self._models.behind(group)
            wanted = _wanted(dialect, words.body_of(data, is_litellm_owned_kwarg), headers, model, cap)
            inbound = _inbound(dialect, headers, str(data.get("litellm_call_id", "")))
            principal = words.principal_of(user_api_key_dict, data, self._keys)
            caller = door.office.identity.caller(principal, inbound, wanted.request, policy, clock_ms())
            exchange.session = door.session(caller, directives(headers), inbound.request_id, self._models.servable)
            exchange.mark = data.get("litellm_logging_obj")
            plan = await exchange.session.admit(wanted)
        except Refused as refused:
            raise self._refusal(
                refused, exchange, exchange.session, dialect, headers, stream=data.get("stream") is True
            ) from None
        if plan.model != wanted.model:
            data["model"] = self._models.group_of(plan.model, group)
        if wanted.request.output is Output.CAPPED:
            words.write_cap(data, words.cap_field(dialect, wanted.request.cap_field), plan.output_cap)

    # -- its attempts ---------------------------------------------------------------------------------------------------------

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """Before each call of a deployment, with what it will be sent. Also of calls that LiteLLM makes of its own."""
        exchange, inside = CURRENT.get() or Exchange(), _attempt.get()
        session, dialect = None, None
        try:
            if call_type is None and exchange.free:
                return None
            dialect = words.dialect_of("unknown" if call_type is None else str(getattr(call_type, "value", call_type)))
            if dialect is None:
                return None
            model = self._names.of(words.deployment_of({"litellm_params": kwargs, "model_info": kwargs.get("model_info")}, ""))
            kwargs = {**kwargs, "max_retries": 0}  # what an SDK tried again of its own would be a second call under one hold
            if inside is not None and inside.live and inside.is_served_by(dialect, model, words.is_same_call):
                return kwargs
            door = await self._door()
            session = self._session(door, exchange, kwargs)
            wanted = _wanted(dialect, words.body_of(kwargs, is_litellm_owned_kwarg), _headers(kwargs), model)
            attempt = await session.begin(wanted, inside)
        except Refused as refused:
            raise self._refusal(refused, exchange, session, dialect, NO_HEADERS, stream=kwargs.get("stream") is True) from None
        exchange.answer = None  # what was refused before did not stand in the way of this one
        _attempt.set(attempt)
        if wanted.request.output is Output.CAPPED:
            words.write_cap(kwargs, words.cap_field(dialect, wanted.request.cap_field), attempt.plan.output_cap)
        return kwargs

    async def async_post_call_success_deployment_hook(self, request_data: dict[str, Any], response: Any, call_type: Any) -> None:
        """With the whole answer of an attempt, unless it streams."""
        attempt = self._attempt_of(call_type)
        if attempt is not None:
            await attempt.answered(words.answer_of(response))
            _left(attempt)

    async def async_post_call_failure_deployment_hook(
        self, request_data: Mapping[str, Any], exception: Exception, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        attempt = self._attempt_of(call_type)
        if attempt is not None:
            _failed(attempt, exception)
            await attempt.written()  # so that the next attempt finds the room that this one gave back
            _left(attempt)

    # -- its end --------------------------------------------------------------------------------------------------------------

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """A stream on its way to the client. Whoever ends it, and however, ends this."""
        exchange = CURRENT.get()
        session = None if exchange is None else exchange.session
        if session is not None and session.latest is not None and words.from_cache(response):
            session.latest.not_sent()
            session = None
        if session is None or session.latest is None:
            async for chunk in response:
                yield chunk
            return
        ending, last = Ending.CLIENT_LEFT, None
        try:
            async for chunk in response:
                attempt = session.latest  # another one, where LiteLLM fell back in the middle
                told = getattr(chunk, "usage", None) is not None
                attempt.relay(words.event_of(chunk, without_usage=told and words.is_its_own_count(response)))
                last = chunk
                if attempt.interruption is not None or attempt.exceeds:
                    ending = attempt.interruption or Ending.OUTPUT_EXCEEDED
                    raise _broken_off(attempt, ending)
                yield chunk
            ending = Ending.COMPLETED
        except Exception:
            ending = Ending.PROVIDER_CUT if ending is Ending.CLIENT_LEFT else ending
            raise
        finally:
            _stream_ended(session.latest, response, last, ending)
            if ending is Ending.COMPLETED:
                await session.latest.written()

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> None:
        """An answer that no deployment gave: from LiteLLM's cache. What else was not settled by now is."""
        attempt = _current()
        if attempt is not None and attempt.live:
            if words.from_cache(response):
                attempt.not_sent()
            else:
                await attempt.answered(words.answer_of(response))

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
    ) -> None:
        """What an attempt's own hook was not told: that a stream never opened."""
        attempt = _current()
        if attempt is not None and attempt.live:
            _failed(attempt, original_exception)

    # -- parts ----------------------------------------------------------------------------------------------------------------

    def _session(self, door: Door, exchange: Exchange, kwargs: Mapping[str, Any]) -> Session:
        """Whose attempt it is: the request's, or one of a call that LiteLLM makes beside it or of its own."""
        session = exchange.session
        if session is not None and not exchange.over and exchange.mark is kwargs.get("litellm_logging_obj"):
            return session
        caller = _itself(door) if session is None else session.caller
        return door.session(caller, _NO_DIRECTIVES, str(kwargs.get("litellm_call_id", "")), self._models.servable)

    def _attempt_of(self, call_type: Any) -> Attempt | None:
        """The one that this task is making. None: another kind of call that only served it."""
        attempt = _attempt.get()
        dialect = words.dialect_of(str(getattr(call_type, "value", call_type)))
        while attempt is not None and attempt.wanted.dialect is not dialect:
            if attempt.live:
                return None
            attempt = attempt.inside
        return attempt

    def _refusal(
        self,
        refused: Refused,
        exchange: Exchange,
        session: Session | None,
        dialect: Dialect | None,
        headers: CIMultiDictProxy[str],
        *,
        stream: bool,
    ) -> BudgetRefusal:
        answer = self._readers.answer(refused.problem, dialect or chat.DIALECT, headers.get("User-Agent", ""), stream)
        told = list(refused.headers) or undecided_headers("") if session is None else session.refused(refused, answer.status)
        exchange.answer = answer
        return BudgetRefusal(refused, answer, told)


class Models:
    """The router's, by the names that their prices are known by."""

    def __init__(self, names: words.Names, catalog: Catalog) -> None:
        self._names = names
        self._catalog = catalog
        self._until_s = 0.0
        self._groups: dict[str, str] = {}  # model → a group that only it serves

    def behind(self, group: str) -> tuple[str, int | None]:
        """The dearest model that may serve the group, and the cap that its deployments have as their own."""
        found = [words.deployment_of(entry, group) for entry in _deployments(group)] or [words.Deployment(group)]
        names = [self._names.of(deployment) for deployment in found]
        caps = [deployment.cap for deployment in found if deployment.cap is not None]
        return max(names, key=self._dearness), max(caps) if len(caps) == len(found) else None

    def servable(self) -> Collection[str]:
        """What a request may be rewritten to."""
        now_s = time.monotonic()
        if now_s >= self._until_s:
            self._until_s = now_s + _MODELS_S
            behind: dict[str, set[str]] = {}
            for entry in _deployments(None):
                group = str(entry.get("model_name") or "")
                behind.setdefault(group, set()).add(self._names.of(words.deployment_of(entry, group)))
            served = [(group, next(iter(models))) for group, models in behind.items() if len(models) == 1 and "*" not in group]
            self._groups = {model: group for group, model in sorted(served, key=lambda pair: pair[0] == pair[1])}
        return self._groups.keys()

    def group_of(self, model: str, otherwise: str) -> str:
        return self._groups.get(model, otherwise)

    def _dearness(self, name: str) -> tuple[int, int]:
        model = self._catalog.find(name)
        if model is None or model.free or not model.tiers:
            return (-1, -1)
        return (model.tiers[0].output, model.tiers[0].input)


def _deployments(group: str | None) -> Sequence[Mapping[str, Any]]:
    router = getattr(sys.modules.get("litellm.proxy.proxy_server"), "llm_router", None)
    return () if router is None else router.get_model_list(model_name=group) or ()


# -- what a hook is handed --------------------------------------------------------------------------------------------------------


def _wanted(dialect: Dialect, body: dict[str, Any], headers: CIMultiDictProxy[str], model: str, cap: int | None = None) -> Wanted:
    """`cap`: the deployment's, where the request has none. Refused, where it can't be read."""
    if cap is not None and not any(body.get(name) for name in words.CAPS):
        body[words.cap_field(dialect, None)] = cap
    raw = words.encoded(body)
    return Wanted(dialect, dialect.read(raw, headers), model, len(raw))


def _headers(kwargs: Mapping[str, Any]) -> CIMultiDictProxy[str]:
    """Those that LiteLLM sends beside the provider's own."""
    extra = kwargs.get("extra_headers")
    return (
        CIMultiDictProxy(CIMultiDict((str(name), str(value)) for name, value in extra.items()))
        if isinstance(extra, Mapping)
        else NO_HEADERS
    )


def _inbound(dialect: Dialect, headers: CIMultiDictProxy[str], request_id: str) -> Inbound:
    return Inbound("POST", dialect.path, "", None, headers, b"", request_id)


def _itself(door: Door) -> Caller:
    """A run a day, as nobody begins or ends one."""
    named = f"{_ITSELF}:{datetime.now(UTC):%Y-%m-%d}"
    inbound = _inbound(chat.DIALECT, NO_HEADERS, "")
    principal = Principal(DEFAULT_TENANT, _ITSELF)
    return door.office.identity.caller(principal, inbound, None, door.rulebook.policy, clock_ms(), named)


def _current() -> Attempt | None:
    exchange = CURRENT.get()
    return None if exchange is None or exchange.session is None else exchange.session.latest


def _left(attempt: Attempt) -> None:
    """The task goes on with whatever it was doing when it made this one; a call of LiteLLM's own is over with it."""
    _attempt.set(attempt.inside)
    exchange = CURRENT.get()
    if exchange is None or attempt.session is not exchange.session:
        attempt.session.over(200)


def _failed(attempt: Attempt, failure: Exception) -> None:
    if isinstance(failure, BudgetRefusal):  # it stopped before it was sent
        attempt.not_sent()
        return
    match words.billing_of(failure):
        case words.Billing.NOT_SENT:
            attempt.not_sent()
        case words.Billing.REFUSED:
            attempt.refused()
        case words.Billing.UNKNOWN:
            attempt.broke_off()


def _stream_ended(attempt: Attempt, response: Any, last: Any, ending: Ending) -> None:
    if not attempt.live:
        return
    usage = words.usage_in(last)
    if usage is not None and not words.is_its_own_count(response):
        attempt.relay(words.event_of({"choices": [], "usage": usage}))
    attempt.end(ending)


def _broken_off(attempt: Attempt, ending: Ending) -> Exception:
    run = attempt.caller.run
    attempt.end(ending)
    if ending is Ending.OUTPUT_EXCEEDED:
        return RuntimeError(f"Run {run}: more output came than is held for it.")
    return RuntimeError(
        f"Run {run} was {'frozen' if ending is Ending.SCOPE_FROZEN else 'stopped'} while this call was under way."
    )


def _stand_around() -> None:
    """Around the proxy's application, which is there when its config is read. Elsewhere the refusals are LiteLLM's words for ours."""
    app = getattr(sys.modules.get("litellm.proxy.proxy_server"), "app", None)
    if app is None or isinstance(app.middleware_stack, Exchanges):
        return
    if app.middleware_stack is None:
        app.add_middleware(Exchanges)
    else:
        app.middleware_stack = Exchanges(app.middleware_stack)


def _load(config: Path) -> tuple[settings.Settings, Policy]:
    """Mistakes, where either file has one. LiteLLM reaches the providers, and each in the words of any other."""
    read = settings.read(config, os.environ, bundled.load_catalog(), bundled.load_profiles(), elsewhere=_ITSELF)
    if read.mistakes is not None:
        raise read.mistakes
    assert read.settings is not None
    found = replace(read.settings, catalog=replace(read.settings.catalog, spoken={}, routes={}))
    return found, policy_file.load(found.policy_path, found.catalog)


def _config() -> Path:
    named = Path(os.environ.get(CONFIG, "penstock.yaml"))
    if CONFIG not in os.environ and not named.is_file():
        raise FileNotFoundError(f"{CONFIG} is not set, and there is no {named} in {Path.cwd()}: name Penstock's config there.")
    return named


budget: Final = Budget(_config())
