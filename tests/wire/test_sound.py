"""How long a sound is: exact where its format is plain, what it says of itself elsewhere, never too short where nothing is known."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.sound import SLOWEST, duration_ms
from tests.support.sound import wav


def mp3_frame(kbps_index: int = 9, rate_index: int = 0, padding: int = 0, version: int = 3) -> bytes:
    """Layer III; 128 kbit/s at 44.1 kHz by default: 417 bytes."""
    kbps = {3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128), 2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80)}[version][kbps_index]
    rate = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000)}[version][rate_index]
    size = (144 if version == 3 else 72) * kbps * 1_000 // rate + padding
    head = bytes([0xFF, 0xE0 | version << 3 | 1 << 1 | 1, kbps_index << 4 | rate_index << 2 | padding << 1, 0])
    return head + b"\x00" * (size - 4)


@pytest.mark.parametrize(
    ("seconds", "rate", "channels", "width"), [(1.5, 16_000, 1, 2), (3, 44_100, 2, 2), (0.25, 8_000, 1, 1), (2, 48_000, 2, 3)]
)
def test_a_wav_of_plain_samples_is_as_long_as_it_is(seconds: float, rate: int, channels: int, width: int) -> None:
    assert duration_ms(wav(seconds, rate, channels, width)) == seconds * 1_000


def test_a_streamed_wav_without_its_size_is_as_long_as_what_follows() -> None:
    made = bytearray(wav(1))
    made[40:44] = b"\xff\xff\xff\xff"
    assert duration_ms(bytes(made)) == 1_000
    made[40:44] = b"\x00\x00\x00\x00"
    assert duration_ms(bytes(made)) == 1_000


def test_a_wav_of_packed_samples_is_bounded_by_its_size() -> None:
    packed = bytearray(wav(1))
    packed[20:22] = struct.pack("<H", 0x11)  # ADPCM
    assert duration_ms(bytes(packed)) == -(-len(packed) * 1_000 // SLOWEST)


def test_an_mp3_is_as_long_as_its_frames_whatever_their_rate() -> None:
    varied = b"".join(mp3_frame(index) for index in (1, 5, 9, 9, 2) * 20)
    assert 2_612 <= duration_ms(varied) <= 2_614  # 100 frames of 1,152 samples at 44,100
    tagged = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 0]) + b"\xff" * 128 + varied + b"TAG" + b"\x00" * 125
    assert duration_ms(tagged) == duration_ms(varied)
    assert 2_399 <= duration_ms(mp3_frame(4, 1, version=2) * 100) <= 2_401  # 576 samples at 24,000


def test_what_only_looks_like_an_mp3_is_bounded_by_its_size() -> None:
    odd = mp3_frame() + b"\x01" * 10_000
    assert duration_ms(odd) == -(-len(odd) * 1_000 // SLOWEST)


def test_flac_ogg_and_mp4_say_how_long_they_are() -> None:
    packed = 48_000 << 44 | 1 << 41 | 15 << 36 | 96_000  # rate, channels, bits, samples
    flac = b"fLaC\x00\x00\x00\x22" + b"\x00" * 10 + packed.to_bytes(8) + b"\x00" * 16
    assert duration_ms(flac) == 2_000
    page = b"OggS\x00\x02" + bytes(8) + b"\x00" * 14 + b"OpusHead" + b"\x00" * 40
    last = b"OggS\x00\x04" + struct.pack("<q", 48_000 * 7) + b"\x00" * 60
    assert duration_ms(page + b"\x00" * 500 + last) == 7_000
    film = (
        b"\x00\x00\x00\x14ftypM4A "
        + b"\x00" * 8
        + b"\x00\x00\x00\x6cmvhd"
        + b"\x00" * 12
        + struct.pack(">II", 1_000, 12_345)
        + b"\x00" * 80
    )
    assert duration_ms(film) == 12_345


def test_several_ogg_sounds_in_a_row_are_bounded_by_their_size() -> None:
    def sound(seconds: int) -> bytes:
        page = b"OggS\x00\x02" + bytes(8) + b"\x00" * 14 + b"OpusHead" + b"\x00" * 40
        return page + b"OggS\x00\x04" + struct.pack("<q", 48_000 * seconds) + b"\x00" * 60

    both = sound(3_600) + sound(1)
    assert duration_ms(both) == -(-len(both) * 1_000 // SLOWEST)


def test_an_ogg_page_at_the_end_that_counts_less_than_one_before_shortens_nothing() -> None:
    page = b"OggS\x00\x02" + bytes(8) + b"\x00" * 14 + b"OpusHead" + b"\x00" * 40
    pages = [b"OggS\x00\x04" + struct.pack("<q", 48_000 * seconds) + b"\x00" * 60 for seconds in (7, 1)]
    assert duration_ms(page + b"".join(pages)) == 7_000


def test_a_wav_that_claims_large_blocks_is_as_long_as_its_samples() -> None:
    made = bytearray(wav(3))
    made[32:34] = b"\xff\xff"
    assert duration_ms(bytes(made)) == 3_000


@pytest.mark.parametrize(
    "start",
    [
        b"fLaC",
        b"OggS",
        b"RIFF\x00\x00\x00\x00WAVE",
        b"\x00\x00\x00\x14ftypM4A ",
        b"ID3",
        b"\x1aE\xdf\xa3",
        b"\xff\xfb",
        b"",
        b"x",
    ],
)
@pytest.mark.parametrize("length", [0, 1, 30, 3_000])
def test_a_file_that_says_nothing_is_bounded_by_its_size(start: bytes, length: int) -> None:
    data = start + b"\x00" * length
    assert duration_ms(data) == -(-len(data) * 1_000 // SLOWEST)


HEADS = [
    b"",
    b"RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00",
    b"fLaC",
    b"OggS",
    b"\x00\x00\x00\x14ftypM4A ",
    b"ID3\x04\x00\x00",
    b"\xff\xfb\x90\x00",
]


@given(
    st.sampled_from(HEADS),
    st.binary(max_size=400),
    st.sampled_from([b"", b"OpusHead", b"mvhd", b"data\x04\x00\x00\x00", b"OggS"]),
    st.binary(max_size=80),
)
def test_any_bytes_last_for_a_time(head: bytes, first: bytes, mark: bytes, rest: bytes) -> None:
    data = head + first + mark + rest
    assert duration_ms(data) > 0 or not data
