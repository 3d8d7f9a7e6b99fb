"""What the provider itself counted for the start of a conversation. A hint of one process: lost with it, shared with no other.

A call that extends one which has settled is estimated as the provider's own count for what both have, plus the count of what is new. The
prefix may be wrong for the new call only where the provider does not count what it is sent (it truncates, or leaves out what its
cache had): so a count that is too small for its text is not taken, and an estimate that proved low is doubted (see `learned`).

Nothing of a prompt is kept. A prefix is a chain of hashes, message by message, over Python's own keyed hashes of the texts (see `tokens`),
begun with whose call it is: nobody learns from an estimate what another caller has sent. What applies to the whole request
(tools, response format, whatever else is not a message) is the chain's first link, since the provider counts it too.
"""

from collections.abc import Sequence
from typing import Final

from gateway.core.recent import Recent
from gateway.core.record import record
from gateway.core.values import ADDRESS, SETTINGS, Call, Part

_CONVERSATIONS: Final = 32_768  # settled calls that are remembered; one takes some 200 bytes


class Chain:
    """A call's prefixes, hashed: made once for a decision, and again when the call settles. A microsecond for three messages."""

    __slots__ = ("links", "messages", "settings")

    def __init__(self, call: Call) -> None:
        caller = call.caller
        settings = tuple([part for part in call.parts if part.role in SETTINGS])
        self.settings = settings
        self.messages = tuple([part for part in call.parts if part.role not in SETTINGS]) if settings else call.parts
        link = hash((caller.tenant, caller.key, call.dialect, call.parameters, call.continues, tuple(map(_hashed, settings))))
        links = [link]
        for part in self.messages:
            if part.attachments and ADDRESS in part.attachments:
                break  # there may be something else by the next time
            link = hash((link, _hashed(part)))
            links.append(link)
        self.links: Sequence[int] = links  # of none, one, two … messages, as far as they can be known again


def _hashed(part: Part) -> int:
    if part.images or part.attachments:
        # As text: the hash of a number is the number, and these are the client's to choose.
        return hash((part.texts, part.overhead_tokens, f"{part.images}{part.attachments}", part.mark))
    return hash((part.texts, part.overhead_tokens, part.mark))


@record
class Anchor:
    """What is known of a prefix at one model."""

    messages: int  # how many it has
    tokens: int  # the provider's own count, of all that applies to the whole request too
    text_tokens: int  # ours, of the messages alone: not scaled


@record
class Answered:
    """What stands behind the id of an answer. Not of a conversation: it grows under one id, by whose calls nobody here knows."""

    tokens: int  # read and written
    settings: int  # hash of what applied to the whole request


class Anchors:
    """Remembers what settled calls tell."""

    def __init__(self, entries: int = _CONVERSATIONS) -> None:
        self._prefixes: Recent[tuple[str, int], Anchor] = Recent(entries)
        self._answers: Recent[tuple[str, int], Answered] = Recent(entries)

    def longest(self, chain: Chain, model: str) -> Anchor | None:
        prefixes, links = self._prefixes, chain.links
        for number in range(len(links) - 1, 0, -1):
            found = prefixes.get((model, links[number]))
            if found is not None and found.messages == number:
                return found
        return None

    def settled(self, chain: Chain, model: str, tokens: int, text_tokens: int) -> None:
        messages = len(chain.messages)
        if 0 < messages < len(chain.links):
            self._prefixes.put((model, chain.links[messages]), Anchor(messages, tokens, text_tokens))

    # -- by id ----------------------------------------------------------------------------------------------------------------

    def answer(self, call: Call, model: str, answer_id: str) -> Answered | None:
        return self._answers.get((model, _id(call, answer_id)))

    def answered(self, call: Call, model: str, answer_id: str, tokens: int) -> None:
        self._answers.put((model, _id(call, answer_id)), Answered(tokens, settings_of(call)))

    def __len__(self) -> int:
        return len(self._prefixes) + len(self._answers)


def settings_of(call: Call) -> int:
    return hash(tuple([_hashed(part) for part in call.parts if part.role in SETTINGS]))


def _id(call: Call, answer_id: str) -> int:
    return hash((call.caller.tenant, call.caller.key, answer_id))
