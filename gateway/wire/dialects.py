"""The dialects that are metered. One that is listed here has its route, and needs nothing else."""

from typing import Final

from gateway.wire import chat, completions, embeddings, images, messages, moderations, responses, speech, transcriptions
from gateway.wire.dialect import Dialect
from gateway.wire.headers import RequestHeaders
from gateway.wire.problem import Shape

DIALECTS: Final[tuple[Dialect, ...]] = (
    chat.DIALECT,
    messages.DIALECT,
    responses.DIALECT,
    completions.DIALECT,
    embeddings.DIALECT,
    moderations.DIALECT,
    images.DIALECT,
    images.EDITS,
    images.VARIATIONS,
    speech.DIALECT,
    transcriptions.DIALECT,
    transcriptions.TRANSLATIONS,
)

# Every route of the model surface that the gateway itself serves: no config may name one as unmetered.
METERED_ROUTES: Final[tuple[tuple[str, str], ...]] = (
    *(("POST", dialect.path) for dialect in DIALECTS),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/responses/input_tokens"),
    *responses.STORED,
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name%}"),
)


def shape_for(path: str, headers: RequestHeaders) -> Shape:
    """How whoever asks for this path, with a run before it or not, reads a refusal, also where no route was found."""
    if path.startswith("/run/"):
        path = "/" + path[len("/run/") :].partition("/")[2]
    for dialect in DIALECTS:
        if path == dialect.path or path.startswith(dialect.path + "/"):
            return dialect.shape
    return Shape.ANTHROPIC if "anthropic-version" in headers else Shape.OPENAI
