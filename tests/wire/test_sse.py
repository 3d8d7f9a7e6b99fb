"""Events are cut out of any byte stream, however it arrives, and no byte is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.sse import Event, Events


def events_of(*chunks: bytes, max_event: int = 1 << 20) -> list[Event]:
    events = Events(max_event)
    found = [event for chunk in chunks for event in events.feed(chunk)]
    last = events.finish()
    return found if last is None else [*found, last]


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\n\r\ndata: b\r\n\ndata: c\n\n", [b"a", b"b", b"c"]),
        (b"data: a\ndata: b\ndata\n\n", [b"a\nb\n"]),
        (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
        (b": ping\n\nevent: x\nid: 1\nretry: 3\n\ndata: a\n\n", [b"", b"", b"a"]),
        (b"event: error\ndata: a\n\n", [b"a"]),
        (b"datum: a\nxdata: b\n\n", [b""]),
        (b"\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\n\ndata: b", [b"a", b"b"]),
        (b"data: a\n\ndata: b\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r", [b"a", b"b"]),
        (b"\n\n\n\ndata: a\n\n\ndata: b\n\n", [b"", b"", b"a", b"b"]),
        (b"", []),
    ],
)
def test_the_stream_is_cut_into_events_wherever_its_chunks_end(stream: bytes, data: list[bytes]) -> None:
    for cut in range(len(stream) + 1):
        events = events_of(stream[:cut], stream[cut:])
        assert [event.data for event in events] == data, cut
        assert b"".join(event.raw for event in events) == stream
    assert [event.data for event in events_of(*(bytes([byte]) for byte in stream))] == data


@given(
    st.lists(st.sampled_from([b"data: a", b"data: \xc3\xa9", b":x", b"\r\n", b"\n", b"\r", b"data", b"\xef\xbb\xbf"])), st.data()
)
def test_any_stream_gives_the_same_events_in_one_chunk_and_in_many(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole, cut = events_of(stream), events_of(*chunks)
    assert cut == whole
    assert b"".join(event.raw for event in cut) == stream


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_an_empty_line_too_many_is_not_lost_wherever_its_chunks_end(line_end: bytes) -> None:
    stream = b"data: a" + line_end * 3 + b"data: b" + line_end * 2
    for cut in range(8, len(stream)):
        events = events_of(b"data: z\n\n", stream[:cut], stream[cut:])
        assert b"".join(event.raw for event in events) == b"data: z\n\n" + stream
        assert [event.data for event in events if event.data] == [b"z", b"a", b"b"], cut


def test_an_event_is_given_out_as_soon_as_its_last_byte_has_come() -> None:
    events = Events()
    assert events.feed(b"data: a\n") == []
    assert [event.data for event in events.feed(b"\n")] == [b"a"]
    assert [event.data for event in events.feed(b"data: b\r\n\r\n")] == [b"b"]
    assert events.finish() is None


def test_an_event_that_is_too_large_passes_in_pieces_and_the_next_one_is_read_again() -> None:
    huge = b"data: " + b"x" * 500
    for end in (b"\n\n", b"\r\n\r\n"):
        stream = huge + end + b"data: b\n\n"
        events = Events(max_event=100)
        found, was_mid_event = [], False
        for start in range(0, len(stream), 7):
            found += events.feed(stream[start : start + 7])
            was_mid_event |= events.mid_event
        assert b"".join(event.raw for event in found) == stream
        assert [event.data for event in found if event.data is not None] == [b"b"]
        assert max(len(event.raw) for event in found) <= 107
        assert was_mid_event
        assert not events.mid_event


def test_a_large_event_in_small_chunks_is_searched_once_not_again_for_each() -> None:
    events = Events()
    for _ in range(4000):  # 4 MB; if every chunk searched all that came before, this would be 8 GB
        assert events.feed(b"x" * 1000) == []
    assert len(events.feed(b"\n\n")[0].raw) == 4_000_002
