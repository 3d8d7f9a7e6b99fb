"""An agent that answers a ticket: it drafts, marks its draft and refines it until the mark is good enough. It never is.

The public pattern of Cycles' runaway demo, written anew. The loop knows nothing of money; its three actions are made three ways:

    Simulated()                     each takes 50 ms of simulated work and costs a cent
    decorated(Simulated(), client)  the same three functions under the real client's `@cycles`
    Asked(base_url)                 each asks a model by the openai SDK as it comes; what guards it is where the base URL points
"""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from gateway.demo.bill import MICROCENTS

if TYPE_CHECKING:
    import openai
    from runcycles import CyclesClient

TICKET: Final = "My invoice for March is $847, and my contract says $720."
GOOD_ENOUGH: Final = 8.0
CALL_S: Final = 0.05
CALL_COST: Final = MICROCENTS // 100
MODEL: Final = "big-model"
_MARK: Final = re.compile(r"\b(\d(?:\.\d)?|10)/10")
_HARSH: Final = 6.0

T = TypeVar("T")


class Enough(Exception):
    """The demo's own bound was reached; nothing else would have stopped the agent."""


class Actions(Protocol):
    def draft(self, ticket: str) -> str: ...

    def evaluate(self, draft: str) -> float: ...

    def refine(self, draft: str, mark: float) -> str: ...


def answer_ticket(actions: Actions, acted: Callable[[], None]) -> str:
    """The answer, when it is good enough. `acted` is called after each action; what it or an action raises ends the loop."""
    draft = actions.draft(TICKET)
    acted()
    while True:
        mark = actions.evaluate(draft)
        acted()
        if mark >= GOOD_ENOUGH:
            return draft
        draft = actions.refine(draft, mark)
        acted()


@dataclass(frozen=True, slots=True)
class Simulated:
    """No model, no network: `call_s` of waiting for each, and a critic that likes nothing."""

    call_s: float = CALL_S
    chance: random.Random = field(default_factory=lambda: random.Random(4782))  # noqa: S311 - marks, no secrets

    def draft(self, ticket: str) -> str:
        time.sleep(self.call_s)
        return f"Dear customer, you wrote: {ticket}"

    def evaluate(self, draft: str) -> float:
        del draft
        time.sleep(self.call_s)
        return self.chance.uniform(5.5, 6.9)

    def refine(self, draft: str, mark: float) -> str:
        time.sleep(self.call_s)
        return f"{draft[:200]} (better than {mark:.1f})"


@dataclass(frozen=True, slots=True)
class Decorated:
    """Actions under a guard each."""

    draft: Callable[[str], str]
    evaluate: Callable[[str], float]
    refine: Callable[[str, float], str]


def decorated(actions: Actions, client: "CyclesClient") -> Actions:
    """Three decorators: each call reserves a cent before it acts, and commits it after."""
    from runcycles import cycles

    def guard(name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        made: Callable[[Callable[..., T]], Callable[..., T]] = cycles(
            estimate=CALL_COST, action_kind="llm.completion", action_name=name, client=client
        )
        return made

    return Decorated(guard("draft")(actions.draft), guard("evaluate")(actions.evaluate), guard("refine")(actions.refine))


@dataclass(frozen=True, slots=True)
class Asked:
    """A model does the work: replies are streamed, and as long as they happen to be."""

    client: "openai.OpenAI"
    max_tokens: int = 300

    def draft(self, ticket: str) -> str:
        return self._ask(f"Draft an answer to this ticket: {ticket}")

    def evaluate(self, draft: str) -> float:
        marks = _MARK.findall(self._ask(f"Mark this draft out of ten, such as 9/10:\n{draft}"))
        return float(marks[-1]) if marks else _HARSH

    def refine(self, draft: str, mark: float) -> str:
        return self._ask(f"This draft got {mark:.1f}/10. Refine it:\n{draft}")

    def _ask(self, prompt: str) -> str:
        stream = self.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=self.max_tokens, stream=True
        )
        return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
