"""The Lua scripts of the Redis ledger: their texts, put together, and what the gateway calls them by.

Every script that looks at a tenant's books has `lua/common.lua` before it; those that move money also `lua/lines.lua`. The longest one,
reserve, goes on in the parts of a folder. `hold` and `commit` do what is usual without all that, on `lua/short.lua`.
"""

from collections.abc import Callable
from importlib.resources import files
from typing import Final

_NOW: Final = "local time = call('TIME')\n  return time[1] * 1000 + math.floor(time[2] / 1000)"
_COMMON: Final = ("common.lua",)
_MONEY: Final = ("common.lua", "lines.lua")
_SHORT: Final = ("short.lua",)
_PARTS: Final = {
    "account": _MONEY,
    "balances": _MONEY,
    "commit": _SHORT,
    "document": _COMMON,
    "documents": _COMMON,
    "due": _COMMON,
    "extend": _MONEY,
    "freeze": _COMMON,
    "fund": _MONEY,
    "hold": _SHORT,
    "meta": (),
    "memo": _COMMON,
    "reserve": _MONEY,
    "retire": _MONEY,
    "run": _COMMON,
    "runs": _COMMON,
    "settle": _MONEY,
    "sweep": _MONEY,
}
# What stands behind a script's own file.
_GOES_ON: Final = {"reserve": tuple(f"reserve/{part}.lua" for part in ("barriers", "ladder", "claim", "refuse", "hold"))}


class Scripts:
    """The SHA-1 of every script, as `load` gave it for the text. `now`: Lua for the body of the clock, in a test's hands."""

    __slots__ = tuple(_PARTS)

    account: str
    balances: str
    commit: str
    document: str
    documents: str
    due: str
    extend: str
    freeze: str
    fund: str
    hold: str
    meta: str
    memo: str
    reserve: str
    retire: str
    run: str
    runs: str
    settle: str
    sweep: str

    def __init__(self, load: Callable[[str], str], now: str | None = None) -> None:
        for name in _PARTS:
            setattr(self, name, load(text_of(name, now)))


def text_of(name: str, now: str | None = None) -> str:
    """A script as it is sent to the server. `now` replaces the server's clock."""
    folder = files("gateway.ledger.redis") / "lua"
    text = "".join(
        (folder / part).read_text(encoding="utf-8") for part in (*_PARTS[name], f"{name}.lua", *_GOES_ON.get(name, ()))
    )
    if now is None or not _PARTS[name]:
        return text
    assert text.count(_NOW) == 1, name
    return text.replace(_NOW, now)
