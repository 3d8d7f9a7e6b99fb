"""One HTTP/1.1 answer, read from bytes by llhttp. Pure: the same bytes, however they are cut, are the same answer.

What comes before the answer (100, 103) is skipped, trailers too. What can be read in more than one way is `Malformed`, and so is what was
not asked for: another protocol (101), a transfer coding but chunked. Whatever follows the answer's end is `surplus`.
"""

from functools import lru_cache
from typing import Final

import httptools
from multidict import CIMultiDict, CIMultiDictProxy, istr

HEAD_MAX: Final = 65_536  # bytes, with all that came before the answer
_WITHOUT_BODY: Final = frozenset({204, 304})


class Malformed(Exception):
    """These bytes are no answer, or no more of one."""


class AnswerParser:
    """`status` is 0 until the head is there. The body's pieces are kept until `taken`, in `size` bytes."""

    __slots__ = (
        "_body_follows",
        "_fed",
        "_lines",
        "_parser",
        "_pieces",
        "_to_the_close",
        "ended",
        "headers",
        "keeps",
        "size",
        "status",
        "surplus",
    )

    def __init__(self, *, head_only: bool = False) -> None:
        """`head_only`: the answer to a HEAD, which has no body whatever it says."""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        # Some servers pad a chunk's size, and every client in use reads past that.
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True, lenient_optional_cr_before_lf=True)
        self._body_follows = not head_only
        self._to_the_close = False
        self._fed = 0
        self._lines: list[tuple[istr, str]] = []
        self._pieces: list[bytes] = []
        self.status = 0
        self.headers: CIMultiDictProxy[str] = _NO_HEADERS
        self.size = 0
        self.ended = False
        self.keeps = False  # the connection serves another request after this answer
        self.surplus = False

    def feed(self, data: bytes | memoryview) -> None:
        """Malformed: what came before it holds."""
        parser = self._parser
        assert parser is not None, "nothing follows the end"
        if not self.status:
            self._fed += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as failure:
            if not self.ended:
                self.stop()
                ours = failure.__context__
                raise Malformed(str(ours or f"what came is no HTTP/1.1 answer: {failure}")) from failure
            self.surplus = True
        if self._fed > HEAD_MAX and not self.status:
            self.stop()
            raise Malformed(f"the answer's head is longer than {HEAD_MAX} bytes")

    def close(self) -> None:
        """The connection has ended. Malformed: the answer had not."""
        self.stop()
        if self._to_the_close:
            self.ended = True
        if not self.ended:
            raise Malformed(f"the connection was closed {'in the middle of the answer' if self.status else 'before an answer'}")

    def taken(self) -> bytes:
        """What has arrived of the body since it was last asked for."""
        pieces = self._pieces
        self.size = 0
        if len(pieces) == 1:
            return pieces.pop()
        joined = b"".join(pieces)
        pieces.clear()
        return joined

    def stop(self) -> None:
        """Nothing more will be read. The parser and this hold on to each other, which only the garbage collector would end."""
        self._parser = None

    # -- llhttp's calls -------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.ended:
            self.surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:
            self._lines.append((_name(name), value.decode("utf-8", "surrogateescape").rstrip(" \t")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None:  # of what follows the answer
            return
        status = parser.get_status_code()
        if status < 200:
            if status == 101:
                raise Malformed("the answer changes to a protocol that nobody asked for")
            self._lines.clear()
            return
        if self._fed > HEAD_MAX and sum(len(name) + len(value) + 4 for name, value in self._lines) > HEAD_MAX:
            raise Malformed(f"the answer's head is longer than {HEAD_MAX} bytes")
        self.status = status
        self.headers = headers = CIMultiDictProxy(CIMultiDict(self._lines))
        self._lines.clear()
        codings = headers.getall("Transfer-Encoding", None)
        if codings is not None and (len(codings) > 1 or codings[0].lower() != "chunked"):
            self.status = 0
            raise Malformed("the answer has a transfer coding that nobody asked for")
        announced = codings is not None or headers.get("Content-Length", "0").strip("0") != ""
        self.keeps = parser.should_keep_alive()
        if self._body_follows and status not in _WITHOUT_BODY:
            self._to_the_close = codings is None and "Content-Length" not in headers
        else:
            # Whoever announces a body that may not follow can't be trusted to send none.
            self.keeps = self.keeps and not announced
            self.on_message_complete()

    def on_body(self, piece: bytes) -> None:
        if self.ended:
            self.surplus = True
            return
        self._pieces.append(piece)
        self.size += len(piece)

    def on_message_complete(self) -> None:
        if self.status:
            self.ended = True
            self.stop()


_NO_HEADERS: Final = CIMultiDictProxy(CIMultiDict[str]())


@lru_cache(maxsize=1024)
def _name(name: bytes) -> istr:
    """Ready for a multidict, which would work it out each time."""
    return istr(name.decode("utf-8", "surrogateescape"))
