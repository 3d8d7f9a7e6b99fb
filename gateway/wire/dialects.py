"""The dialects that are metered. One that is listed here has its route, and needs nothing else."""

from typing import Final

from gateway.wire import chat, responses
from gateway.wire.dialect import Dialect

DIALECTS: Final[tuple[Dialect, ...]] = (chat.DIALECT, responses.DIALECT)

# Every route of the model surface that the gateway itself serves: no config may name one as unmetered.
METERED_ROUTES: Final[tuple[tuple[str, str], ...]] = (
    *(("POST", dialect.path) for dialect in DIALECTS),
    ("GET", "/v1/models"),
)
