"""Which provider has made an answer, as far as this process knows: only it can go on with it, or has kept it. A hint."""

from typing import Final

_REMEMBERED: Final = 10_000


class Origins:
    """By the answer's id, or its conversation's. The oldest go first."""

    def __init__(self) -> None:
        self._providers: dict[str, str] = {}

    def learn(self, answer_id: str, provider: str) -> None:
        self._providers.pop(answer_id, None)  # the latest goes last
        self._providers[answer_id] = provider
        if len(self._providers) > _REMEMBERED:
            del self._providers[next(iter(self._providers))]

    def find(self, answer_id: str | None) -> str | None:
        return None if answer_id is None else self._providers.get(answer_id)
