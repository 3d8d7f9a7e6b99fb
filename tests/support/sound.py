"""Sound files, made up."""

import io
import wave


def wav(seconds: float, rate: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    """Silence."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(b"\x00" * int(seconds * rate) * channels * width)
    return made.getvalue()
