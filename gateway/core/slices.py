"""How much of a stream's output is held at first, and how that grows with what is seen of it. Pure: all of slicing's figures.

    held so far, by the plan's slice
    |------------------ seen -----------|---- ask ahead from here ----|-- ON_THE_WAY --|
                                                                      ^ no further without more

Tokens are per choice unless said otherwise. A slice grows by at least the first one, and by half of what was written: so an answer of N
tokens asks about log N times, and never holds much more than half again what it wrote.
"""

from typing import Final

FIRST: Final = 1_024
SMALLEST: Final = 256  # asked for where a larger one has no room, before the stream is ended
ON_THE_WAY: Final = 64  # what the provider may have written by the time that it learns that nobody reads on


def caps_after(held: int, seen: int, most: int) -> tuple[int, ...]:
    """What to hold next of an answer that may have `most`, the larger one first."""
    start = max(held, seen)
    return tuple(dict.fromkeys(min(most, start + more) for more in (max(FIRST, seen // 2), SMALLEST)))


def sure_of(held: int, most: int) -> int:
    """How far the output may be seen to go while so much is held. All of it may come once all of it is held."""
    return held if held >= most else held - ON_THE_WAY


def ask_from(seen: int, sure: int) -> int:
    """What must be seen for more to be asked for ahead of need: half of what is left."""
    return seen + max(0, sure - seen) // 2
