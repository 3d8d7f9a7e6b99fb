"""A bounded memory: what was not used lately is forgotten. Nothing here outlives its process, and none of it is needed."""

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `entries`, the least recently used going first, roughly: what is used moves to the young generation; when that is full,
    the old one is dropped whole. Unlike an ordered dict, a look-up of something recent changes nothing."""

    __slots__ = ("_generation_entries", "_old", "_young")

    def __init__(self, entries: int) -> None:
        self._generation_entries = max(1, entries // 2)
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        known = self._young.get(key)
        if known is None and (known := self._old.get(key)) is not None:
            self.put(key, known)
        return known

    def put(self, key: K, value: V) -> None:
        if len(self._young) >= self._generation_entries and key not in self._young:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())
