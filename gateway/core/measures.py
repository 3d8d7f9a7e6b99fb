"""What a call can be billed for beside plain tokens: the names of measures, as usage, prices and bounds use them.

A measure is a class of tokens with a price of its own, or something that is billed by the piece. A piece may have a kind after a slash
(`images/hd/1024x1024`), which is priced as such, else as its measure (`images`).
"""

from typing import Final

# Tokens with a price of their own, where a model has one: (measure, the class whose price they have otherwise).
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

# Billed by the piece.
WEB_SEARCHES: Final = "web_searches"
FILE_SEARCHES: Final = "file_searches"
CODE_SESSIONS: Final = "code_sessions"
IMAGES: Final = "images"
AUDIO_SECONDS: Final = "audio_seconds"
CHARACTERS: Final = "characters"
REQUESTS: Final = "requests"  # a fee for each call, whatever it uses
