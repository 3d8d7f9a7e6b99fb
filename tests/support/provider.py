"""A provider that answers properly until it is told to misbehave, and records every byte it was sent.

It speaks HTTP/1.1 on a plain socket, so that it can break the protocol too, in a thread with a loop of its own: sync and async tests use
it alike. What it answers, and what that costs, comes from the bundled provider's `Writer` and `Bill`.

    with FaultProvider(writer, prices) as provider:
        provider.next(Behaviour(status=429, headers=(("Retry-After", "1"),)), Behaviour(cut_after_events=3))
        …                                  # two requests
        provider.requests[0].headers       # raw, in order
        provider.bill.microcents
"""

import asyncio
import contextlib
import gzip
import socket
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import count
from typing import Any, Final, Self

import orjson

from gateway.demo.bill import Bill, Price
from gateway.demo.replies import AS_ASKED, DONE, BadRequest, Event, Reply, Script, Writer, json_answer, sse, stream_events
from tests.support import anthropic_answers, responses_answers


class UsageReport(Enum):
    """How the provider reports usage."""

    AS_ASKED = "as asked"  # always in JSON; in a stream when stream_options ask for it
    NEVER = "never"
    ZEROS = "zeros"  # 0/0/0, where it would be reported
    ON_FINISH_EVENT = "on the finish event"  # always, in streams: with non-empty choices


class Cut(Enum):
    """How a connection ends before its answer does."""

    FIN = "fin"
    RST = "rst"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How one request is treated. The default is a good answer at once."""

    script: Script = AS_ASKED
    first_byte_s: float = 0  # after the request was read
    pace_s: float = 0  # between events
    tokens_per_event: int = 1

    # Instead of an answer
    close_before_reading: bool = False  # reset when the first bytes of the request arrive
    reset: bool = False  # read the request, then reset
    silent: bool = False  # read the request, then never say a word (until the test ends or the peer leaves)
    status: int | None = None  # an error of its own, with `body`
    body: bytes | None = None  # whatever it says, OpenAI-shaped error by default; with status None: a 200 with exactly this
    content_type: str = "application/json"

    # Around a good answer
    headers: tuple[tuple[str, str], ...] = ()
    usage: UsageReport = UsageReport.AS_ASKED
    usage_override: Mapping[str, Any] | None = None  # reported instead of the truth
    error_after_events: int | None = None  # `data: {"error": …}`, then a clean end without [DONE]
    cut_after_events: int | None = None  # the connection ends after that many events (0: after the head)
    cut_at_byte: int | None = None  # … after that many bytes of the body (decoded from chunks), JSON too
    cut: Cut = Cut.FIN
    stall_after_events: int | None = None  # says nothing more, keeps the connection
    done: bool = True  # send [DONE]
    gzip: bool = False  # though nobody asked for it
    padding: int = 0  # bytes of text appended to the (JSON) answer's content: a huge answer
    extra_events: tuple[bytes, ...] = ()  # raw, before the first event: comments, pings, odd line ends
    billed: bool | None = None  # None: as a provider does (a good answer is, an error is not)


GOOD: Final = Behaviour()


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived. `head` is raw, without the blank line; header names and values as sent, in order."""

    head: bytes
    body: bytes
    at: float  # time.monotonic()
    connection: int

    @property
    def request_line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def method(self) -> str:
        return self.request_line.split(" ")[0]

    @property
    def target(self) -> str:
        return self.request_line.split(" ")[1]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def asks_anthropic(self) -> bool:
        return "/messages" in self.path

    @property
    def asks_responses(self) -> bool:
        return "/responses" in self.path

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    def header(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known.lower() == name.lower()), None)

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass(slots=True)
class FaultProvider:
    """Started by `with`; every attribute may be read from any thread. `default` treats requests beyond the queue."""

    writer: Writer
    prices: Mapping[str, Price]
    default: Behaviour = GOOD
    port: int = 0
    bill: Bill = field(init=False)
    requests: list[Received] = field(default_factory=list)
    left: list[Received] = field(default_factory=list)  # requests whose client left before the answer was whole
    connections: int = 0
    open_connections: int = 0
    choose: Callable[[Received], Behaviour | None] | None = None  # by request, before the queue
    kept: responses_answers.Kept = field(default_factory=responses_answers.Kept)
    _queue: deque[Behaviour] = field(default_factory=deque)
    _serials: Iterator[int] = field(default_factory=count)
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.bill = Bill(self.prices)

    # -- for the test ------------------------------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def next(self, *behaviours: Behaviour) -> None:
        """How the next requests are treated, one each."""
        self._queue.extend(behaviours)

    @property
    def calls(self) -> list[Received]:
        """The chat requests only."""
        return [request for request in self.requests if request.target.partition("?")[0].endswith("/chat/completions")]

    def forget(self) -> None:
        self.requests.clear()
        self.left.clear()
        self.kept = responses_answers.Kept()
        self.bill.calls.clear()
        self._queue.clear()

    def wait_for(self, condition: Callable[[], bool], within_s: float = 5) -> None:
        """Sleeps until the condition holds; AssertionError if it does not in time. From a sync test or a thread."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "the provider did not get there in time"
            time.sleep(0.005)

    # -- its thread --------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening)), name="provider", daemon=True)
        self._thread.start()
        assert listening.wait(10), "the provider did not start"
        return self

    def __exit__(self, *_: object) -> None:
        loop, thread = self._loop, self._thread
        assert loop is not None
        assert thread is not None
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(10)

    async def _serve(self, listening: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        server = await self._loop.create_server(
            lambda: asyncio.StreamReaderProtocol(_Reader(limit=2**20), self._connection), "127.0.0.1", self.port, backlog=2048
        )
        self.port = server.sockets[0].getsockname()[1]
        listening.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, _Reader)
        self.connections += 1
        self.open_connections += 1
        number = self.connections
        try:
            while await self._one(reader, writer, number):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, _Broken):
            pass
        finally:
            self.open_connections -= 1
            writer.close()

    async def _one(self, reader: "_Reader", writer: asyncio.StreamWriter, number: int) -> bool:
        """One request and its answer; whether the connection goes on."""
        first = await reader.readexactly(1)
        if self._queue and self._queue[0].close_before_reading:
            self._queue.popleft()
            return _end(writer, Cut.RST)
        head = (first + await reader.readuntil(b"\r\n\r\n"))[:-4]
        received = Received(head, await _body(reader, head), time.monotonic(), number)
        self.requests.append(received)
        path = received.target.partition("?")[0]
        if path.endswith("/models") and received.method == "GET":
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.prices]
            return await _send(writer, 200, (), orjson.dumps({"object": "list", "data": data}))
        behaviour = self.choose(received) if self.choose is not None else None
        if behaviour is None:
            behaviour = self._queue.popleft() if self._queue else self.default
        # Whoever leaves is noticed at once, as by a server that reads ahead.
        answer = asyncio.ensure_future(self._answer(received, behaviour, writer))
        gone = asyncio.ensure_future(reader.gone.wait())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            cut_off = answer.done() and not answer.cancelled() and isinstance(answer.exception(), ConnectionError)
            if cut_off or not answer.done():
                self.left.append(received)
            if not answer.done():
                answer.cancel()
                await asyncio.wait({answer})
        return not answer.cancelled() and answer.result()

    # -- answers -----------------------------------------------------------------------------------------------------------------

    async def _answer(self, received: Received, behaviour: Behaviour, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(behaviour.first_byte_s)
        if behaviour.silent:
            await asyncio.Event().wait()
        if behaviour.reset:
            return _end(writer, Cut.RST)
        if behaviour.status is not None or behaviour.body is not None:
            return await self._raw_answer(received, behaviour, writer)
        if "/responses/" in received.path and not received.path.endswith("/input_tokens"):
            return await self._kept_answer(received, behaviour, writer)
        try:
            request = received.json
            asked = self._as_chat(received, request)
            reply = self.writer.reply(asked, behaviour.script, next(self._serials))
        except (orjson.JSONDecodeError, BadRequest, AttributeError) as error:
            return await _send(writer, 400, (), _error(400, str(error)))
        if reply.model not in self.prices:
            return await _send(writer, 404, (), _error(404, f"The model {reply.model!r} does not exist."))
        if received.path.endswith(("/count_tokens", "/input_tokens")):
            return await _send(writer, 200, (), orjson.dumps({"input_tokens": reply.prompt_tokens}))
        if received.asks_anthropic and request.get("stream"):
            return await self._anthropic_stream(reply, behaviour, writer)
        if received.asks_anthropic:
            return await self._anthropic_json(reply, behaviour, writer)
        if received.asks_responses:
            return await self._responses(request, asked, reply, behaviour, writer)
        if request.get("stream"):
            return await self._stream(request, reply, behaviour, writer)
        return await self._json(reply, behaviour, writer)

    def _as_chat(self, received: Received, request: Any) -> Any:
        if received.asks_responses:
            return responses_answers.as_chat(request, self.kept.before(request))
        return anthropic_answers.as_chat(request) if received.asks_anthropic else request

    async def _responses(
        self, request: Mapping[str, Any], chat: Any, reply: Reply, behaviour: Behaviour, writer: asyncio.StreamWriter
    ) -> bool:
        usage = self._responses_usage(reply, behaviour)
        whole = responses_answers.answer(request, reply, usage)
        self.kept.keep(whole, chat, reply)
        if request.get("stream"):
            *events, last = responses_answers.events(request, reply, usage, behaviour.tokens_per_event)
            events = [*(Event(data) for data in behaviour.extra_events), *events]
            failure = Event(
                responses_answers.sse("error", code="server_error", message="scripted", param=None, sequence_number=99)
            )
            return await self._send_stream(events, last, failure, reply, behaviour, writer)
        if behaviour.billed is not False:
            self._charge(reply, None, "whole")
        queued = {**whole, "status": "queued", "output": [], "usage": None}
        body = orjson.dumps(queued if request.get("background") else whole)
        return await _send(writer, 200, (("Content-Type", "application/json"), *behaviour.headers), body, behaviour)

    async def _kept_answer(self, received: Received, behaviour: Behaviour, writer: asyncio.StreamWriter) -> bool:
        answer_id, _, rest = received.path.partition("/responses/")[2].partition("/")
        answer = self.kept.answers.get(answer_id)
        if answer is None:
            return await _send(writer, 404, (), _error(404, f"Response with id '{answer_id}' not found."))
        if rest == "input_items":
            return await _send(writer, 200, (), orjson.dumps({"object": "list", "data": [], "has_more": False}))
        if received.method == "DELETE":
            del self.kept.answers[answer_id]
            return await _send(writer, 200, (), orjson.dumps({"id": answer_id, "object": "response", "deleted": True}))
        if rest == "cancel":
            answer = self.kept.answers[answer_id] = {**self.kept.now(answer), "status": "cancelled"}
            return await _send(writer, 200, (), orjson.dumps(answer))
        if "stream=true" in received.target:
            stream = _Stream(writer, behaviour)
            stream.head()
            begun = {**answer, "status": "in_progress", "output": [], "usage": None}
            await stream.write(responses_answers.sse("response.created", response=begun, sequence_number=0))
            if behaviour.cut_after_events is not None:
                return _end(writer, behaviour.cut)
            await stream.write(responses_answers.sse("response.completed", response=answer, sequence_number=1))
            return await stream.finish()
        return await _send(writer, 200, (), orjson.dumps(self.kept.now(answer)))

    def _responses_usage(self, reply: Reply, behaviour: Behaviour) -> Mapping[str, Any] | None:
        if behaviour.usage is UsageReport.NEVER:
            return None
        if behaviour.usage is UsageReport.ZEROS:
            return responses_answers.ZEROS
        return behaviour.usage_override or responses_answers.usage_of(reply)

    async def _raw_answer(self, received: Received, behaviour: Behaviour, writer: asyncio.StreamWriter) -> bool:
        status = behaviour.status or 200
        body = _error(status, f"scripted {status}") if behaviour.body is None else behaviour.body
        if behaviour.billed:
            self._charge(self.writer.reply(received.json, behaviour.script), None, "whole")
        return await _send(writer, status, (("Content-Type", behaviour.content_type), *behaviour.headers), body, behaviour)

    async def _json(self, reply: Reply, behaviour: Behaviour, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(behaviour.pace_s * reply.completion_tokens / behaviour.tokens_per_event)
        usage = None if behaviour.usage is UsageReport.NEVER else self._usage(reply, behaviour)
        body = json_answer(reply, int(time.time()), usage)
        if behaviour.padding:
            answer = orjson.loads(body)
            answer["choices"][0]["message"]["content"] += "x" * behaviour.padding
            body = orjson.dumps(answer)
        if behaviour.billed is not False:
            self._charge(reply, None, "whole")
        return await _send(writer, 200, (("Content-Type", "application/json"), *behaviour.headers), body, behaviour)

    async def _anthropic_json(self, reply: Reply, behaviour: Behaviour, writer: asyncio.StreamWriter) -> bool:
        if behaviour.billed is not False:
            self._charge(reply, None, "whole")
        body = orjson.dumps(anthropic_answers.answer(reply, self._anthropic_usage(reply, behaviour)))
        return await _send(writer, 200, (("Content-Type", "application/json"), *behaviour.headers), body, behaviour)

    async def _anthropic_stream(self, reply: Reply, behaviour: Behaviour, writer: asyncio.StreamWriter) -> bool:
        usage = self._anthropic_usage(reply, behaviour)
        *events, last = anthropic_answers.events(reply, usage, behaviour.tokens_per_event)
        events = [*(Event(data) for data in behaviour.extra_events), *events]
        failure = Event(anthropic_answers.sse("error", error={"type": "overloaded_error", "message": "scripted"}))
        return await self._send_stream(events, last, failure, reply, behaviour, writer)

    def _anthropic_usage(self, reply: Reply, behaviour: Behaviour) -> Mapping[str, Any] | None:
        if behaviour.usage is UsageReport.NEVER:
            return None
        if behaviour.usage is UsageReport.ZEROS:
            return anthropic_answers.ZEROS
        return behaviour.usage_override or anthropic_answers.usage_of(reply)

    async def _stream(self, request: Mapping[str, Any], reply: Reply, behaviour: Behaviour, writer: asyncio.StreamWriter) -> bool:
        failure = Event(sse({"error": {"message": "scripted", "type": "server_error", "param": None, "code": None}}))
        return await self._send_stream(self._events(request, reply, behaviour), DONE, failure, reply, behaviour, writer)

    async def _send_stream(
        self,
        events: Iterable[Event],
        last: Event,
        failure: Event,
        reply: Reply,
        behaviour: Behaviour,
        writer: asyncio.StreamWriter,
    ) -> bool:
        stream = _Stream(writer, behaviour)
        generated, ended = 0, "cut"
        try:
            stream.head()
            for number, event in enumerate(events):
                if number == behaviour.cut_after_events:
                    return _end(writer, behaviour.cut)
                if number == behaviour.stall_after_events:
                    await asyncio.Event().wait()
                if number == behaviour.error_after_events:
                    await stream.write(failure.data)
                    return await stream.finish()
                generated += event.tokens
                await stream.write(event.data)
                if event.tokens and behaviour.pace_s:
                    await asyncio.sleep(behaviour.pace_s)
            ended = "whole"
        finally:
            # Before the last event: whoever saw the whole answer finds it on the bill.
            if behaviour.billed is not False:
                self._charge(reply, generated, ended)
        if behaviour.done:
            await stream.write(last.data)
        return await stream.finish()

    def _events(self, request: Mapping[str, Any], reply: Reply, behaviour: Behaviour) -> Iterator[Event]:
        on_finish = behaviour.usage is UsageReport.ON_FINISH_EVENT
        asked = (request.get("stream_options") or {}).get("include_usage") is True and behaviour.usage is not UsageReport.NEVER
        told, lie = reply.usage(), self._usage(reply, behaviour)
        yield from (Event(data) for data in behaviour.extra_events)
        for event in stream_events(
            reply,
            int(time.time()),
            ask_usage=asked and not on_finish,
            tokens_per_event=behaviour.tokens_per_event,
            usage_on_finish=on_finish,
        ):
            if lie != told and b'"usage":{' in event.data:
                yield replace(event, data=sse({**orjson.loads(event.data.removeprefix(b"data: ")), "usage": lie}))
            else:
                yield event

    def _usage(self, reply: Reply, behaviour: Behaviour) -> Mapping[str, Any]:
        if behaviour.usage is UsageReport.ZEROS:
            return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return reply.usage() if behaviour.usage_override is None else behaviour.usage_override

    def _charge(self, reply: Reply, generated: int | None, ended: str) -> None:
        tokens = reply.completion_tokens if generated is None else generated
        self.bill.add(reply.model, reply.prompt_tokens, reply.cached_tokens, tokens, ended)


class _Broken(Exception):
    """The connection was ended on purpose."""


class _Reader(asyncio.StreamReader):
    """Tells when the peer has closed its side, without reading."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit=limit)
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.gone.set()


class _Stream:
    """A chunked body that can be cut at any byte, or gzipped."""

    def __init__(self, writer: asyncio.StreamWriter, behaviour: Behaviour) -> None:
        self._writer = writer
        self._behaviour = behaviour
        self._written = 0
        self._zip = zlib.compressobj(1, zlib.DEFLATED, 31)  # 31: in gzip's wrapping

    def head(self) -> None:
        headers = [
            ("Content-Type", "text/event-stream; charset=utf-8"),
            ("Transfer-Encoding", "chunked"),
            *self._behaviour.headers,
        ]
        if self._behaviour.gzip:
            headers.append(("Content-Encoding", "gzip"))
        self._writer.write(_head(200, headers))

    async def write(self, data: bytes) -> None:
        if self._behaviour.gzip:
            data = self._zip.compress(data) + self._zip.flush(zlib.Z_SYNC_FLUSH)
        limit = self._behaviour.cut_at_byte
        if limit is not None and self._written + len(data) > limit:
            data = data[: limit - self._written]
            if data:
                self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await self._writer.drain()
            _end(self._writer, self._behaviour.cut)
            raise _Broken
        self._written += len(data)
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._writer.drain()

    async def finish(self) -> bool:
        if self._behaviour.gzip:
            rest = self._zip.flush()
            self._writer.write(b"%x\r\n%b\r\n" % (len(rest), rest))
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        return True


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])}
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return body
    return await reader.readexactly(int(headers.get(b"content-length", b"0")))


def _head(status: int, headers: list[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    headers: tuple[tuple[str, str], ...],
    body: bytes,
    behaviour: Behaviour = GOOD,
) -> bool:
    more = [("Content-Type", "application/json")] if not any(name.lower() == "content-type" for name, _ in headers) else []
    if behaviour.gzip:
        body = gzip.compress(body, 1)
        more.append(("Content-Encoding", "gzip"))
    writer.write(_head(status, [*more, *headers, ("Content-Length", str(len(body)))]))
    if behaviour.cut_at_byte is not None and behaviour.cut_at_byte < len(body):
        writer.write(body[: behaviour.cut_at_byte])
        await writer.drain()
        return _end(writer, behaviour.cut)
    writer.write(body)
    await writer.drain()
    return True


def _end(writer: asyncio.StreamWriter, how: Cut) -> bool:
    if how is Cut.RST:
        plain = writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
    return False


def _error(status: int, message: str) -> bytes:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
