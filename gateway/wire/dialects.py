"""The dialects that are metered. One that is listed here has its route, and needs nothing else."""

from typing import Final

from gateway.wire import chat
from gateway.wire.dialect import Dialect

DIALECTS: Final[tuple[Dialect, ...]] = (chat.DIALECT,)
