"""What a request's head says: where its URL leads, and which headers go there. Pure."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from gateway.core.record import record
from gateway.upstream.port import NotSent

# Framing and negotiation are the client's; what a caller says about them would contradict what is sent.
OURS: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "expect",
        "te",
        "trailer",
        "upgrade",
        "accept-encoding",
    }
)
_UNFIT: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")  # control characters but tab; bytes that were not UTF-8
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNFIT_IN_URL: Final = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")
_PORTS: Final = {"http": 80, "https": 443}
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # with no body, these say no length either


class Origin(NamedTuple):
    """Whom a connection is made to. A tuple, because it is looked up twice a call, and tuples hash in C."""

    scheme: str  # http or https
    host: str  # in ASCII, IPv6 without brackets
    port: int


@record
class Target:
    origin: Origin
    opening: str  # the request line and the headers that every such request has, each with its line's end


@lru_cache(maxsize=1024)  # a gateway asks for the same few URLs again and again
def target(method: str, url: str, proxy_headers: str | None) -> Target:
    """`proxy_headers`: what a proxy is told along with a request that it passes on; None: there is no proxy on the way. Over https, there
    never is one that sees the request. NotSent: nobody can be asked for that."""
    if _TOKEN.fullmatch(method) is None or _UNFIT_IN_URL.search(url) is not None:
        raise NotSent("the method or the URL holds a character that HTTP can't carry")
    try:
        split = urlsplit(url)
        origin = _origin(split)
    except ValueError as failure:
        raise NotSent(f"the URL can't be read: {failure}") from failure
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    authority = host if origin.port == _PORTS[origin.scheme] else f"{host}:{origin.port}"
    path = split.path or "/"
    if split.query or "?" in url.partition("#")[0]:
        path = f"{path}?{split.query}"
    if origin.scheme == "http" and proxy_headers is not None:
        path = f"http://{authority}{path}"
    else:
        proxy_headers = ""
    return Target(origin, f"{method} {path} HTTP/1.1\r\nHost: {authority}\r\nAccept-Encoding: identity\r\n{proxy_headers}")


def _origin(url: SplitResult) -> Origin:
    """ValueError."""
    if url.scheme not in _PORTS:
        raise ValueError("it is neither http nor https")
    if not url.hostname:
        raise ValueError("it names no host")
    if "@" in url.netloc:
        raise ValueError("it holds credentials")
    host = url.hostname.encode("idna").decode()  # names beyond ASCII in the form that DNS knows
    return Origin(url.scheme, host, _PORTS[url.scheme] if url.port is None else url.port)


def request_head(method: str, opening: str, headers: Iterable[tuple[str, str]], length: int) -> bytes:
    """NotSent: a header holds what would not arrive as it is."""
    lines = [opening]
    for name, value in headers:
        start = _start_of_line(name)
        if start is None:
            continue
        if not value.isprintable() and not fits_a_header(value):
            raise NotSent("a header holds a character that HTTP can't carry")
        lines.append(f"{start}{value}\r\n")
    lines.append(f"Content-Length: {length}\r\n\r\n" if length or method not in _WITHOUT_BODY else "\r\n")
    return "".join(lines).encode()


def fits_a_header(text: str) -> bool:
    return _UNFIT.search(text) is None


@lru_cache(maxsize=1024)  # every call has the same few names
def is_ours(name: str) -> bool:
    return name.lower() in OURS


@lru_cache(maxsize=1024)
def _start_of_line(name: str) -> str | None:
    """None: the header is ours to write."""
    if _TOKEN.fullmatch(name) is None:
        raise NotSent("a header's name holds a character that HTTP can't carry")
    return None if name.lower() in OURS else f"{name}: "
