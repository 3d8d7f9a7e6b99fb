"""What a call is charged, by what is known of it when it ends (design: section 8). No I/O: it never asks anybody.

phase      what is known                            a hold that ends here is
UNSENT     nothing reached a provider               released
OPENED     the request may have been read           charged in full, since nobody can say less
REFUSED    the provider said no before any output   released
RELAYING   output is seen                           charged by usage; without one, by what was counted or held
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from gateway.core import estimate
from gateway.core.catalog import Model
from gateway.core.measures import TOKENS, WORK, measure_of
from gateway.core.meter import Meter
from gateway.core.money import Microcents
from gateway.core.profiles import OnDisconnect
from gateway.core.scopes import Amounts
from gateway.core.values import Call, Ending, Hold, Output, Pieces, Plan, Usage, UsageSource

_BROKEN_OFF: Final = frozenset({Ending.CLIENT_LEFT, Ending.RUN_STOPPED, Ending.SCOPE_FROZEN, Ending.GATEWAY_STOPPED})


class Phase(Enum):
    UNSENT = auto()
    OPENED = auto()
    REFUSED = auto()
    RELAYING = auto()


@dataclass(slots=True)
class Charging:
    """Of one call, as it goes."""

    model: Model
    on_disconnect: OnDisconnect
    meter: Meter
    phase: Phase = Phase.UNSENT

    @property
    def nothing_billed(self) -> bool:
        return self.phase is Phase.UNSENT or self.phase is Phase.REFUSED

    def of(self, hold: Hold, ending: Ending) -> tuple[Usage, Amounts]:
        assert not self.nothing_billed
        plan, most = hold.plan, output_held(hold)
        call = hold.decision.call
        bound = tuple([each for each in call.pieces if self._billed(each[0])]) if call.pieces else ()
        if self.phase is Phase.OPENED:
            return _all(plan, most, bound), plan.cost_max
        usage = self.meter.usage(plan.input_tokens, most)
        if not self.meter.reported and usage.total_output_tokens < most and self._may_have_been_more(call, ending):
            return _all(plan, most, bound), plan.cost_max
        told: frozenset[str] = frozenset()
        if self.meter.pieces or usage.others or bound:
            usage, told = self._with_pieces(usage, bound)
        cost = estimate.cost_of(self.model, usage, self.meter.service_tier or call.service_tier)
        if call.flat:
            cost = replace(cost, usd=Microcents(cost.usd + estimate.flat_charge(call, self.model, told)))
        return usage, cost

    def later(self, flat: Microcents) -> tuple[Usage, Amounts]:
        """The same of a background answer, by its provider's report alone. `flat`: what was reserved flat for the call."""
        usage, _ = self._with_pieces(self.meter.usage(0), ())
        cost = estimate.cost_of(self.model, usage, self.meter.service_tier)
        return usage, replace(cost, usd=Microcents(cost.usd + flat))

    def unpriced(self, usage: Usage) -> tuple[str, ...]:
        """What the provider bills at a price that is not known here, so that somebody looks: see `Meter.unknown`."""
        found = estimate.unpriced_usage(self.model, usage, self.meter.service_tier)
        return (*found, *sorted(self.meter.unknown)) if self.meter.unknown else found

    def _with_pieces(self, usage: Usage, bound: Pieces) -> tuple[Usage, frozenset[str]]:
        """The usage with the pieces that the answer told of and, of measures that it told nothing of, what the request may have used at
        most; and the measures that were told."""
        tokens = [(measure, number) for measure, number in usage.others if measure in TOKENS]
        seen = {piece: number for piece, number in usage.others if piece not in TOKENS} | self.meter.pieces
        told = frozenset(map(measure_of, seen))
        pieces = [(piece, number) for piece, number in seen.items() if number]
        untold = [(piece, number) for piece, number in bound if measure_of(piece) not in told]
        return replace(usage, others=tuple(sorted((*tokens, *pieces, *untold)))), told

    def _billed(self, piece: str) -> bool:
        """Work without a fee is paid for by its tokens."""
        return self.model.fee(piece) is not None or measure_of(piece) not in WORK

    def _may_have_been_more(self, call: Call, ending: Ending) -> bool:
        """Without the provider's word, what was relayed is the charge, unless there may be output that nobody saw."""
        if ending is Ending.UNKNOWN:  # a bug's
            return True
        if call.output is Output.FIXED or "audio_output" in call.needs:  # no text, so none was counted; or less than was spoken
            return estimate.output_billed(self.model)
        unseen = self.meter.unseen
        if unseen is None:
            unseen = self.model.reasoning and call.reasons
        return (unseen or self.on_disconnect is OnDisconnect.FULL_HOLD) and ending in _BROKEN_OFF


class FlatCharging(Charging):
    """Of a call whose cost the config states, whatever its answer is."""

    def of(self, hold: Hold, ending: Ending) -> tuple[Usage, Amounts]:
        del ending
        return Usage(UsageSource.COUNTED), hold.plan.cost_max


def _all(plan: Plan, most: int, bound: Pieces) -> Usage:
    """Everything that is held."""
    return Usage(UsageSource.HELD, input_tokens=plan.input_tokens, output_tokens=most, others=bound)


def output_held(hold: Hold) -> int:
    """Tokens, of all choices together."""
    return estimate.output_held(hold.decision.call, hold.plan.output_cap)
