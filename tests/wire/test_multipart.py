"""A form is read in one way, or refused; what goes on says the same to everybody."""

from email import message_from_bytes
from email.message import Message
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.wire.multipart import MAX_FIELDS, MAX_TEXT, Field, boundary_for, encode, parse
from gateway.wire.problem import Refused

TYPE = "multipart/form-data; boundary=b0"


def parsed(raw: bytes, content_type: str | None = TYPE) -> tuple[Field, ...]:
    return parse(raw, CIMultiDict({} if content_type is None else {"Content-Type": content_type}))


def part(head: bytes = b'Content-Disposition: form-data; name="a"', value: bytes = b"1") -> bytes:
    return b"--b0\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


END = b"--b0--\r\n"


def test_fields_and_files_are_read() -> None:
    raw = (
        part(b'Content-Disposition: form-data; name="model"', b"whisper-1")
        + part(
            b'content-disposition:form-data;name=file;filename="a \\"b\\".wav"\r\nContent-Type: audio/wav',
            b"\x00\r\n--b1\r\n\xff",
        )
        + part(
            b"Content-Disposition: form-data; name=\"x[]\"; filename*=utf-8''%C3%A4.txt\r\nContent-Transfer-Encoding: binary", b""
        )
        + END
    )
    assert parsed(raw) == (
        Field("model", b"whisper-1"),
        Field("file", b"\x00\r\n--b1\r\n\xff", 'a "b".wav', "audio/wav"),
        Field("x[]", b"", "ä.txt"),
    )


@pytest.mark.parametrize(
    "content_type", [TYPE, 'Multipart/Form-Data; charset=utf-8; boundary="b0"', "multipart/form-data;boundary=b0;x=y"]
)
@pytest.mark.parametrize("end", [b"--b0--\r\n", b"--b0--"])
def test_common_ways_of_writing_are_taken(content_type: str, end: bytes) -> None:
    assert parsed(part() + end, content_type) == (Field("a", b"1"),)


@pytest.mark.parametrize(
    "content_type",
    [None, "", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=b0", "application/json",
     "multipart/form-data; boundary=" + "b" * 71, 'multipart/form-data; boundary="b0 "', "multipart/form-data; boundary=b\x7f"],
)  # fmt: skip
def test_a_form_without_its_boundary_is_refused(content_type: str | None) -> None:
    with pytest.raises(Refused) as refused:
        parsed(part() + END, content_type)
    assert refused.value.problem.code == "ambiguous_request"


HEAD = b'Content-Disposition: form-data; name="a"'


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"--b0", b"--b0\r\n", b"x" + part() + END, b"\r\n" + part() + END, part(), part() + b"--b0", part() + END + b"more",
        part() + b"--b0--\r\n\r\n", part() + b"--b0 \r\n" + HEAD + b"\r\n\r\n1\r\n" + END, b"--b0\r\n\r\n1\r\n" + END,
        part(b""), part(b"X: y") + END, part(HEAD + b"\r\n" + HEAD) + END, part(HEAD + b"\r\nno colon") + END,
        part(HEAD + b"\r\nContent-Type: a/b\r\nContent-Type: a/c") + END, part(HEAD + b'; name="b"') + END, part(HEAD + b"; x=y") + END,
        part(HEAD + b"; filename") + END, part(HEAD + b'; filename="a\x01"') + END, part(HEAD + b"; filename*=latin1''%E4") + END,
        part(b'Content-Disposition: attachment; name="a"') + END, part(b'Content-Disposition: form-data; name=""') + END,
        part(b'Content-Disposition: form-data; filename="a"') + END, part(b'Content-Disposition: form-data; name="a b"') + END,
        part(b'Content-Disposition: form-data; name="a\r\n b"') + END, part(HEAD + b"\xff") + END,
        part(HEAD + b"\r\nContent-Transfer-Encoding: base64") + END, part(HEAD, b"\xff") + END, part(HEAD, b"x" * (MAX_TEXT + 1)) + END,
        part() + part() + END, b"".join(part(HEAD[:-1] + b'%d"' % i) for i in range(MAX_FIELDS + 1)) + END,
        part(HEAD + b"\r\nX: " + b"y" * 9_000) + END, part(HEAD).replace(b"\r\n", b"\n") + END,
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as refused:
        parsed(raw)
    assert (refused.value.problem.code, refused.value.problem.status) == ("ambiguous_request", 400)


def test_a_field_may_come_often_only_where_its_name_says_so() -> None:
    raw = b"".join(part(b'Content-Disposition: form-data; name="x[]"', value) for value in (b"1", b"2")) + END
    assert [field.text for field in parsed(raw)] == ["1", "2"]


def test_httpx_is_understood() -> None:
    files: Any = [
        ("file", ('ä "q".mp3', b"\x00\r\n\xff", "audio/mpeg")),
        ("image[]", ("a.png", b"1")),
        ("image[]", ("b.png", b"2")),
    ]
    request = httpx.Request("POST", "http://h", data={"model": "whisper-1", "prompt": "grüße\r\n--"}, files=files)
    fields = parsed(request.read(), request.headers["Content-Type"])
    assert {field.name: field.text for field in fields if field.filename is None} == {
        "model": "whisper-1",
        "prompt": "grüße\r\n--",
    }
    assert [(field.name, field.value) for field in fields if field.filename is not None] == [
        ("file", b"\x00\r\n\xff"), ("image[]", b"1"), ("image[]", b"2")
    ]  # fmt: skip


NAMES = st.from_regex(r"\A[A-Za-z0-9_.-]{1,12}\Z")
FILENAMES = st.text(st.characters(categories=("L", "N", "P", "Zs"), include_characters=" "), max_size=20).filter(str.isprintable)
FILES = st.builds(Field, NAMES, st.binary(max_size=200), FILENAMES, st.sampled_from([None, "audio/wav", "image/png"]))
TEXTS = st.builds(Field, NAMES, st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))


@given(st.lists(st.one_of(FILES, TEXTS), min_size=1, max_size=6, unique_by=lambda field: field.name))
def test_what_is_encoded_is_read_as_the_same_here_and_elsewhere(fields: list[Field]) -> None:
    boundary = boundary_for(fields)
    raw = encode(fields, boundary)
    content_type = f"multipart/form-data; boundary={boundary}"
    again = parsed(raw, content_type)
    assert [(each.name, each.value, each.media_type) for each in again] == [
        (each.name, each.value, each.media_type) for each in fields
    ]
    assert [each.filename for each in again] == [
        None if each.filename is None else each.filename.replace('"', "%22") for each in fields
    ]
    other: Message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + raw)
    assert [each.get_param("name", header="Content-Disposition") for each in other.get_payload()] == [  # type: ignore[union-attr]
        each.name for each in fields
    ]


PIECES = st.sampled_from(
    [
        b"--b0",
        b"\r\n",
        b"--",
        HEAD,
        b'; filename="a"',
        b"\r\n\r\n",
        b"Content-Type: a/b",
        b":",
        b";",
        b'"',
        b"\\",
        b"=",
        b"x",
        b"\xff",
    ]
)


@given(st.lists(PIECES, max_size=24).map(b"".join))
def test_any_bytes_are_a_form_or_refused(raw: bytes) -> None:
    try:
        fields = parsed(b"--b0\r\n" + raw)
    except Refused:
        return
    boundary = boundary_for(fields)
    again = parsed(encode(fields, boundary), f"multipart/form-data; boundary={boundary}")
    assert [(each.name, each.value) for each in again] == [(each.name, each.value) for each in fields]
