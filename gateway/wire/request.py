"""A request that was read: what it asks for, as a Call, and what goes upstream once a plan is held. The dialects make and extend it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import orjson

from gateway.core.profiles import Profile
from gateway.core.scopes import Caller
from gateway.core.values import Caching, Call, Directives, Output, Part, Pieces, Plan
from gateway.wire.headers import identity_value
from gateway.wire.reading import refuse_variants, typed


@dataclass(
    slots=True, eq=False, kw_only=True
)  # not frozen, which would cost a fifth of reading a small request; nobody assigns to it
class Request:
    """Its body is never changed until it was `sent`. What is forwarded is made from it by `encode`, which cannot fail: all that can
    fails in reading."""

    dialect: str
    model: str
    stream: bool = False
    choices: int = 1
    client_cap: int | None = None
    cap_field: str | None = None  # the field that the client's cap came in
    wants_usage: bool = True  # the client asked for usage in its stream, or this dialect always sends it
    service_tier: str | None = None
    parts: tuple[Part, ...]
    needs: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    unpriced: tuple[str, ...] = ()
    output: Output = Output.CAPPED
    caching: Caching = Caching.AUTOMATIC
    reasons: bool = True
    predicted: int = 0
    pieces: Pieces = ()
    continues: str | None = None
    readings: int = 1
    background: bool = False
    mark: str | None = None  # of the hold, in a background request: what the provider keeps with the answer
    least_cap: int = 0
    inputs: int = 1
    counted: int | None = None  # its input is not here, only how many tokens it has
    replaceable: bool = True  # another model's answer may be of use too
    body: Mapping[str, Any] = field(repr=False)
    fragments: Mapping[str, orjson.Fragment] = field(repr=False, default_factory=dict)  # its lists and objects, encoded already
    known: frozenset[str] = field(repr=False)  # the fields whose variants were refused
    not_meant: frozenset[str] = field(repr=False)  # fields that a request can differ in and still be the same one

    @property
    def content_type(self) -> str:
        """Of what `encode` makes."""
        return "application/json"

    def text_field(self, name: str) -> str | None:
        """A top-level field that says who the caller is (`body:user` in the policy). Refused 400 where it is no text."""
        if name not in self.known:  # else its variants were refused when it was read
            refuse_variants(self.body, frozenset({name}))
        value = typed(self.body, name, str, "a string")
        return None if value is None else identity_value(value, name)

    def fingerprint(self) -> str:
        """Equal requests have equal ones: the same model is asked the same thing. How the answer travels, and what is only noted with
        it, makes no difference."""
        digest = blake2b(self.dialect.encode(), digest_size=12)
        for name in sorted(self.body.keys() - self.not_meant):
            value = orjson.dumps(self.fragments.get(name) or self.body[name])
            digest.update(b"%b:%d:" % (orjson.dumps(name), len(value)))
            digest.update(value)
        return digest.hexdigest()

    def call(self, caller: Caller, directives: Directives, fingerprint: str = "") -> Call:
        return Call(
            caller=caller,
            dialect=self.dialect,
            model=self.model,
            stream=self.stream,
            choices=self.choices,
            client_cap=self.client_cap,
            parts=self.parts,
            needs=self.needs,
            parameters=self.parameters,
            service_tier=self.service_tier,
            unpriced=self.unpriced,
            directives=directives if self.replaceable or not directives.downgrade else replace(directives, downgrade=False),
            fingerprint=fingerprint,
            output=self.output,
            caching=self.caching,
            reasons=self.reasons,
            predicted=self.predicted,
            pieces=self.pieces,
            continues=self.continues,
            readings=self.readings,
            background=self.background,
            cap_field=self.cap_field or "max_tokens",
            least_cap=self.least_cap,
            inputs=self.inputs,
            counted=self.counted,
        )

    def encode(self, plan: Plan, profile: Profile, takes: frozenset[str] | None = None) -> bytes:
        """What goes upstream: the request as it was parsed, with the plan's model and output cap. `takes`: the parameters of the plan's
        model, where they are known."""
        del profile, takes
        body = {**self.body, **self.fragments, "model": plan.model}
        if self.output is Output.CAPPED and self.cap_field is not None:
            body[self.cap_field] = plan.output_cap
        return orjson.dumps(body)

    def sent(self) -> None:
        """It will not be encoded again. What is large of it goes: the answer may take minutes."""
        self.body = self.fragments = {}

    def clamped(self, plan: Plan) -> bool:
        """Whether the forwarded cap is lower than the one the client asked for."""
        return self.client_cap is not None and plan.output_cap < self.client_cap
