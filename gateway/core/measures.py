"""What a call can be billed for beside plain tokens: the names of measures, as usage, prices and bounds use them.

A measure is a class of tokens with a price of its own, or something that is billed by the piece. A piece may have a kind after a slash
(`images/hd/1024x1024`), which is priced as such, else as its measure (`images`).
"""

from collections.abc import Mapping
from typing import Final

# Tokens with a price of their own, where a model has one.
CACHE_WRITE_LONG: Final = "cache_write_long"
AUDIO_INPUT: Final = "audio_input"
CACHED_AUDIO: Final = "cached_audio"
IMAGE_INPUT: Final = "image_input"
CACHED_IMAGE: Final = "cached_image"
AUDIO_OUTPUT: Final = "audio_output"
IMAGE_OUTPUT: Final = "image_output"

INPUT_TOKENS: Final = frozenset({CACHE_WRITE_LONG, AUDIO_INPUT, CACHED_AUDIO, IMAGE_INPUT, CACHED_IMAGE})
OUTPUT_TOKENS: Final = frozenset({AUDIO_OUTPUT, IMAGE_OUTPUT})
TOKENS: Final = INPUT_TOKENS | OUTPUT_TOKENS
# What was read from a cache → the same where it was not. It has that price where it has none of its own, or that of other cached input
# where neither has one. The other classes have that of plain input or output.
CACHED: Final[Mapping[str, str]] = {CACHED_AUDIO: AUDIO_INPUT, CACHED_IMAGE: IMAGE_INPUT}

# Billed by the piece.
WEB_SEARCHES: Final = "web_searches"
FILE_SEARCHES: Final = "file_searches"
CODE_SESSIONS: Final = "code_sessions"
IMAGES: Final = "images"
AUDIO_SECONDS: Final = "audio_seconds"
CHARACTERS: Final = "characters"
REQUESTS: Final = "requests"  # a fee for each call, whatever it uses

# What a model is there for. Some bill it by the piece, others by the token: a request says how much of both it can take, and what the
# model has no fee for, its tokens pay for.
WORK: Final = frozenset({IMAGES, AUDIO_SECONDS, CHARACTERS})
PIECES: Final = WORK | {WEB_SEARCHES, FILE_SEARCHES, CODE_SESSIONS, REQUESTS}

# Fields of requests (see `Call.unpriced`) → what they make the provider bill, which an answer may say the number of.
BILLED_AS: Final[Mapping[str, str]] = {
    "tools.web_search": WEB_SEARCHES,
    "tools.web_search_preview": WEB_SEARCHES,
    "tools.file_search": FILE_SEARCHES,
    "tools.code_interpreter": CODE_SESSIONS,
    "tools.code_execution": CODE_SESSIONS,
    "web_search_options": WEB_SEARCHES,
    "search_parameters": WEB_SEARCHES,
}


def measure_of(piece: str) -> str:
    """`images/hd/1024x1024` → `images`."""
    return piece.partition("/")[0]
