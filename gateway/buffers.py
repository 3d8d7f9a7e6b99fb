"""How many bytes are kept at once for whoever has yet to take them, over all calls of the process."""


class Buffers:
    """`most`: bytes. Whoever keeps something takes its size first, and gives that back once."""

    __slots__ = ("_most", "held")

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    def take(self, size: int) -> bool:
        """False: that would be more than may be kept at once, and nothing was taken."""
        if self.held + size > self._most:
            return False
        self.held += size
        return True

    def give(self, size: int) -> None:
        self.held -= size
        assert self.held >= 0, "given back twice"
