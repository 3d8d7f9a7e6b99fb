"""An answer that is encoded although `identity` was asked for. It is decoded piece by piece, so that a small one can't become a large one
before anybody has looked at its size."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from multidict import CIMultiDictProxy

from gateway.upstream.port import Answer, TooLarge, Unknown

_WBITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_UNREADABLE: Final = frozenset({"br", "zstd"})  # it would take packages that are not here
_PIECE_MAX: Final = 65_536


def decoded(answer: Answer) -> Answer:
    """The answer with its body as it was meant; in a coding that nobody registered, as it came. Unknown: it can't be decoded here."""
    coding = answer.headers.get("Content-Encoding", "").lower()
    if coding in _UNREADABLE:
        answer.close()
        raise Unknown(f"the answer is encoded as {coding}, though identity was asked for")
    return DecodedAnswer(answer, _WBITS[coding]) if coding in _WBITS else answer


class DecodedAnswer:
    """An `Answer` around another."""

    __slots__ = ("_answer", "_inflater", "_rest", "_started", "_wbits", "headers")

    def __init__(self, answer: Answer, wbits: int) -> None:
        headers = answer.headers.copy()
        headers.popall("Content-Encoding", None)
        headers.popall("Content-Length", None)
        self.headers = CIMultiDictProxy(headers)
        self._answer = answer
        self._wbits = wbits
        self._inflater = zlib.decompressobj(wbits)
        self._started = False
        self._rest = b""  # not inflated yet

    @property
    def status(self) -> int:
        return self._answer.status

    async def read(self, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in self.chunks():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                self.close()
                raise TooLarge(f"the provider's answer is longer than {limit} bytes")
        return b"".join(pieces)

    def chunks(self) -> AsyncIterator[bytes]:
        return _Pieces(self)

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        async for piece in self.chunks():
            if not take(piece):
                return False
        return True

    def close(self) -> None:
        self._answer.close()

    def release(self) -> None:
        self._answer.release()

    async def piece(self) -> bytes:
        """The next, at most `_PIECE_MAX` bytes; empty at the end. Unknown."""
        if self._rest:
            await asyncio.sleep(0)  # a few bytes may become very many: others have their turn between two pieces
        while True:
            piece = self._inflated()
            if piece:
                return piece
            if not self._rest:
                self._rest = await anext(self._answer.chunks(), b"")
                if not self._rest:
                    if self._started and not self._inflater.eof:
                        raise Unknown("the encoded answer breaks off")
                    return b""

    def _inflated(self) -> bytes:
        """What `_rest` and what was held back of it yield, empty when more is needed. Unknown: it is not what it says."""
        if self._inflater.eof and self._rest:  # another member follows
            self._inflater = zlib.decompressobj(self._wbits)
        if not self._started and self._rest:
            self._started = True
            if self._wbits == zlib.MAX_WBITS and self._rest[0] & 0xF != 8:
                # Without zlib's frame, as some servers take "deflate" to mean.
                self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            piece = self._inflater.decompress(self._rest, _PIECE_MAX)
        except zlib.error as failure:
            self.close()
            raise Unknown(f"the answer is not encoded as it says: {failure}") from failure
        self._rest = self._inflater.unconsumed_tail or self._inflater.unused_data
        return piece


class _Pieces:
    __slots__ = ("_answer",)

    def __init__(self, answer: DecodedAnswer) -> None:
        self._answer = answer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._answer.piece()
        if not piece:
            raise StopAsyncIteration
        return piece
