"""Forms with files (`multipart/form-data`): read strictly, and encoded again, so that what the provider reads is what was read here.

A form is parsed whole, from memory. What two readers could understand in two ways is refused 400 `ambiguous_request`: a field that comes
twice, text that is no UTF-8, anything before the first boundary or after the last.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final
from urllib.parse import unquote

from gateway.core.record import record
from gateway.wire.headers import RequestHeaders, single
from gateway.wire.problem import Refused, bad_request

MAX_FIELDS: Final = 128
MAX_FIELD_HEAD: Final = 8_192  # bytes
MAX_TEXT: Final = 1 << 20  # bytes of a field that is no file

_TYPE: Final = re.compile(
    r'multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"]{1,70})"|([^\s";]{1,70}))\s*(?:;.*)?', re.IGNORECASE | re.DOTALL
)
_BOUNDARY: Final = re.compile(r"[A-Za-z0-9'()+_,./:=? -]*[A-Za-z0-9'()+_,./:=?-]", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}(?:\[[A-Za-z0-9_.-]{0,100}\])*", re.ASCII)
_PARAMETER: Final = re.compile(r';\s*([A-Za-z]+\*?)=(?:"((?:[^"\\]|\\.)*)"|([^\s";]+))\s*', re.ASCII)
_MEDIA_TYPE: Final = re.compile(r"[\x20-\x7e]{1,200}", re.ASCII)


@record
class Field:
    """One field of a form; with a `filename`, a file."""

    name: str
    value: bytes
    filename: str | None = None
    media_type: str | None = None

    @property
    def text(self) -> str:
        return self.value.decode()


def is_form(headers: RequestHeaders) -> bool:
    return headers.get("Content-Type", "").strip().lower().startswith("multipart/form-data")


def parse(raw: bytes, headers: RequestHeaders) -> tuple[Field, ...]:
    """The form's fields, in their order."""
    match = _TYPE.fullmatch((single(headers, "Content-Type") or "").strip())
    boundary = None if match is None else match[1] or match[2]
    if boundary is None or _BOUNDARY.fullmatch(boundary) is None:
        raise _bad("expected the Content-Type multipart/form-data with a boundary")
    delimiter = b"\r\n--" + boundary.encode()
    # The first delimiter has no line end of its own before it.
    pieces = (b"\r\n" + raw).split(delimiter)
    if pieces[0] or len(pieces) < 2:
        raise _bad("it does not begin with its boundary")
    if pieces.pop() not in (b"--", b"--\r\n"):
        raise _bad("it does not end with its boundary")
    if len(pieces) - 1 > MAX_FIELDS:
        raise _bad(f"it has more than {MAX_FIELDS} fields")
    fields = tuple(_field(piece) for piece in pieces[1:])
    names = set()
    for field in fields:
        if field.name in names and not field.name.endswith("[]"):
            raise _bad(f"the field {field.name!r} comes twice", field.name)
        names.add(field.name)
    return fields


def encode(fields: Sequence[Field], boundary: str) -> bytes:
    """`boundary`: of `boundary_for` the same fields."""
    pieces: list[bytes] = []
    for field in fields:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field.name}"'
        if field.filename is not None:
            head += f'; filename="{_quoted(field.filename)}"'
        if field.media_type is not None:
            head += f"\r\nContent-Type: {field.media_type}"
        pieces += (head.encode(), b"\r\n\r\n", field.value, b"\r\n")
    pieces.append(f"--{boundary}--\r\n".encode())
    return b"".join(pieces)


def boundary_for(fields: Sequence[Field]) -> str:
    """One that stands in none of them: made from them, so that nobody can put it there beforehand."""
    digest = blake2b(digest_size=16)
    for field in fields:
        digest.update(field.value)
    while True:
        boundary = digest.hexdigest()
        if not any(boundary.encode() in field.value for field in fields):
            return boundary
        digest.update(b"again")


def _field(piece: bytes) -> Field:
    """`piece`: from behind one boundary to before the next."""
    if not piece.startswith(b"\r\n"):
        raise _bad("a boundary is not followed by a line's end")
    end = piece.find(b"\r\n\r\n", 0, MAX_FIELD_HEAD)
    if end < 0:
        raise _bad("a field has no head, or a very long one")
    disposition = media_type = None
    for line in piece[2:end].split(b"\r\n") if end > 0 else ():
        name, colon, value = _line(line).partition(":")
        name = name.strip().lower()
        if (
            not colon
            or (name == "content-disposition" and disposition is not None)
            or (name == "content-type" and media_type is not None)
        ):
            raise _bad("a field's head can't be read in only one way")
        if name == "content-disposition":
            disposition = value.strip()
        elif name == "content-type":
            media_type = value.strip()
            if _MEDIA_TYPE.fullmatch(media_type) is None:
                raise _bad("a field has a Content-Type that is none")
        elif name == "content-transfer-encoding" and value.strip().lower() not in ("binary", "8bit", "7bit"):
            raise _bad("a field is encoded, which nothing here decodes")
    if disposition is None:
        raise _bad("a field has no Content-Disposition")
    name, filename = _disposition(disposition)
    content = piece[end + 4 :]
    if filename is None:
        if len(content) > MAX_TEXT:
            raise _bad(f"the field {name!r} is longer than {MAX_TEXT:,} bytes", name)
        try:
            content.decode()
        except UnicodeDecodeError:
            raise _bad(f"the field {name!r} holds bytes that are not UTF-8", name) from None
    return Field(name, content, filename, media_type)


def _line(line: bytes) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise _bad("a field's head holds bytes that are not UTF-8") from None
    if not text.isprintable():
        raise _bad("a field's head holds control characters")
    return text


def _disposition(value: str) -> tuple[str, str | None]:
    """(name, filename)"""
    kind, semicolon, rest = value.partition(";")
    given: dict[str, str] = {}
    at, rest = 0, semicolon + rest
    while at < len(rest):
        match = _PARAMETER.match(rest, at)
        if match is None or (key := match[1].lower()) in given:
            raise _bad("a field's Content-Disposition can't be read in only one way")
        given[key] = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
        at = match.end()
    name = given.get("name")
    if kind.strip().lower() != "form-data" or name is None or _NAME.fullmatch(name) is None or given.keys() - _DISPOSITION:
        raise _bad("a field's Content-Disposition names no field")
    filename = given.get("filename")
    if filename is None and "filename*" in given:  # RFC 5987
        charset, _, encoded = given["filename*"].partition("''")
        if charset.lower() != "utf-8":
            raise _bad("a file's name is not in UTF-8")
        filename = unquote(encoded)
    if filename is not None and not filename.isprintable():
        raise _bad("a file's name holds control characters")
    return name, filename


_DISPOSITION: Final = frozenset({"name", "filename", "filename*"})


def _quoted(filename: str) -> str:
    """As browsers write it."""
    return filename.replace("\\", "\\\\").replace('"', "%22")


def _bad(what: str, param: str | None = None) -> Refused:
    return bad_request("ambiguous_request", f"The form can't be taken: {what}.", param)
