"""How long a sound file lasts at most, from its bytes: by what its format says of itself, else by the slowest rate that speech has.

WAV of plain samples and MP3 frame by frame are what they are; FLAC, Ogg and MP4 say how long they are, and whoever decodes them finds the
same unless they were made to lie.
"""

import struct
from typing import Final

SLOWEST: Final = 750  # bytes a second: 6 kbit/s, the least that Opus and AMR take for speech

_BITRATES: Final = {  # kbit/s by index, of (MPEG 1?, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version bits
_PLAIN: Final = (1, 3, 6, 7)  # WAV's formats whose size is their length: PCM, float, A-law, µ-law
_EXTENSIBLE: Final = 0xFFFE


def duration_ms(data: bytes) -> int:
    """Rounded up. Never 0 for a file that has bytes."""
    known = None
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        known = _wav(data)
    elif data[:4] == b"fLaC":
        known = _flac(data)
    elif data[:4] == b"OggS":
        known = _ogg(data)
    elif data[4:8] == b"ftyp":
        known = _mp4(data)
    elif data[:3] == b"ID3" or _is_frame(data, 0):
        known = _mp3(data)
    if known:
        return known
    return -(-len(data) * 1_000 // SLOWEST)


def _wav(data: bytes) -> int | None:
    at, bytes_per_s = 12, 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"fmt " and at + 24 <= len(data):
            kind = int.from_bytes(data[at + 8 : at + 10], "little")
            if kind == _EXTENSIBLE:
                kind = int.from_bytes(data[at + 32 : at + 34], "little")
            channels, sample_rate, _, block, bits = struct.unpack_from("<HIIHH", data, at + 10)
            # Who decodes plain samples goes by channels and bits, whatever the block's size is said to be.
            bytes_per_s = sample_rate * min(block, channels * -(-bits // 8)) if kind in _PLAIN else 0
        elif name == b"data":
            # Streams state no size, or a wrong one: all that follows may be sound.
            return -(-(len(data) - at - 8) * 1_000 // bytes_per_s) if bytes_per_s else None
        at += 8 + size + size % 2
    return None


def _flac(data: bytes) -> int | None:
    """Its first block is always the one with the number of samples; 0 is an unknown one."""
    if len(data) < 26:
        return None
    sample_rate = int.from_bytes(data[18:21]) >> 4
    samples = int.from_bytes(data[21:26]) & 0xF_FFFF_FFFF
    return -(-samples * 1_000 // sample_rate) if sample_rate and samples else None


def _ogg(data: bytes) -> int | None:
    """By the furthest page's position. Opus counts at 48 kHz always; Vorbis at the rate in its head. None of several sounds in a row, of
    which each counts from 0."""
    position = begun = 0
    at = data.find(b"OggS")
    while 0 <= at <= len(data) - 14:
        begun += data[at + 5] >> 1 & 1
        position = max(position, int.from_bytes(data[at + 6 : at + 14], "little", signed=True))
        at = data.find(b"OggS", at + 27)  # no page is shorter
    if begun > 1:
        return None
    if (head := data.find(b"OpusHead", 0, 512)) >= 0:
        sample_rate = 48_000
    elif (head := data.find(b"\x01vorbis", 0, 512)) >= 0:
        sample_rate = int.from_bytes(data[head + 12 : head + 16], "little")
    else:
        return None
    return -(-position * 1_000 // sample_rate) if sample_rate and position > 0 else None


def _mp4(data: bytes) -> int | None:
    """The longest that any head says, of the film or of one of its tracks."""
    longest = 0
    for name in (b"mvhd", b"mdhd"):
        at = data.find(name)
        while at >= 0:
            wide = data[at + 4 : at + 5] == b"\x01"
            scale_at = at + (24 if wide else 16)
            scale = int.from_bytes(data[scale_at : scale_at + 4])
            length = int.from_bytes(data[scale_at + 4 : scale_at + (12 if wide else 8)])
            if not scale:
                return None
            longest = max(longest, -(-length * 1_000 // scale))
            at = data.find(name, at + 4)
    # A file in fragments says nothing, or too little, in its head.
    return longest if longest and b"moof" not in data else None


def _mp3(data: bytes) -> int | None:
    """Every frame lasts for a number of samples, whatever its bitrate."""
    at = 0
    if data[:3] == b"ID3" and len(data) > 10:
        at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    milliseconds, start, end, seen = 0.0, at, len(data), 0
    while at + 4 <= end:
        frame = _frame(data, at)
        if frame is None:
            at = data.find(b"\xff", at + 1)  # what stands between frames is skipped, as decoders do
            if at < 0:
                break
            continue
        size, lasts_ms = frame
        milliseconds += lasts_ms
        seen += size
        at += size
    # Where most is no frame, what looked like some was chance.
    return int(milliseconds) + 1 if seen * 2 > end - start else None


def _is_frame(data: bytes, at: int) -> bool:
    return at + 4 <= len(data) and _frame(data, at) is not None


def _frame(data: bytes, at: int) -> tuple[int, float] | None:
    """(bytes, milliseconds) of the MPEG audio frame whose head stands there."""
    if data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, 4 - (data[at + 1] >> 1 & 3)
    rate, bitrate = data[at + 2] >> 2 & 3, data[at + 2] >> 4
    if version == 1 or layer == 4 or rate == 3 or bitrate in (0, 15):
        return None
    sample_rate = _SAMPLE_RATES[version][rate]
    bits = _BITRATES[version == 3, layer][bitrate] * 1_000
    padding = data[at + 2] >> 1 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1_152
    size = (12 * bits // sample_rate + padding) * 4 if layer == 1 else samples // 8 * bits // sample_rate + padding
    return size, samples * 1_000 / sample_rate
