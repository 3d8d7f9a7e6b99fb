"""How each provider wants its requests, and how it reports usage. Data: `gateway/data/profiles.yaml`."""

from dataclasses import dataclass
from enum import StrEnum


class OnDisconnect(StrEnum):
    """What is charged when the client leaves before the provider has reported usage."""

    DRAIN = "drain"  # read on, bounded, for the real usage; then count
    COUNT = "count"  # close at once; what was relayed + the input estimate
    FULL_HOLD = "full_hold"  # close at once; the whole hold: the model may have reasoned unseen


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    output_cap_field: str  # written when the client named none: "max_completion_tokens" | "max_tokens"
    stream_options: bool  # whether `stream_options.include_usage` may be sent
    on_disconnect: OnDisconnect = OnDisconnect.DRAIN
    dialects: frozenset[str] | None = None  # what it can be asked in, by the names in `wire.dialects`; None: not known, so all
    versioned_base: bool = True  # its base URL ends with the API's version ("/v1"); False: the version is part of each route
    # llama.cpp reports the tokens of one choice for n > 1: the larger of report × n and what was counted is charged.
    usage_covers_all_choices: bool = True
