"""Which handler serves a request: matched on the raw path, exactly. What is not listed is refused, so nothing is forwarded unmetered.

There is no normalising: `/v1//chat/completions`, `/V1/Chat/Completions`, a trailing slash or `%2F` is another path, and another path is 404.
A provider may read such a path as the metered one; this gateway never sends it there. For the same reason a parameter of a route that is
forwarded (`/v1/responses/{id}`) is a plain word, so that it means one segment to everybody, and goes upstream as it came.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field
from typing import Final, TypeAlias, TypeVar
from urllib.parse import unquote

from gateway.core.record import record
from gateway.wire.exchange import Headers, Inbound, Outlet, Reply
from gateway.wire.problem import Problem, problem

Proxy: TypeAlias = Callable[[Inbound, Outlet], Awaitable[None]]
Page: TypeAlias = Callable[[Inbound, Mapping[str, str]], Awaitable[Reply]]  # with the path's parameters, percent-decoded

T = TypeVar("T")

_RUN: Final = "/run/"
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~:@=+,-]{1,256}", re.ASCII)  # but for dots alone


@record
class Route:
    """`path` may have parameters: `/budget/runs/{id}`. A parameter is one segment, never empty."""

    method: str
    path: str
    page: Page


@record
class Metered:
    """A route of the model surface. `path` is raw, without `/run/RUN_ID`."""

    proxy: Proxy
    path: str
    path_run: str | None
    parameters: Mapping[str, str] = field(default_factory=dict)


@record
class Visit:
    """One of the gateway's own pages."""

    page: Page
    parameters: Mapping[str, str]


@record
class Miss:
    """No route. `headers` go with the problem."""

    problem: Problem
    headers: Headers = ()


Found: TypeAlias = Metered | Visit | Miss


class Routes:
    """`metered` maps (method, path) to what serves it, under `/` and under `/run/RUN_ID/`. A HEAD is served by the GET of its path.

    Its paths may have parameters, which `Inbound.parameters` then has: `{id}` is one segment of plain characters, as it came; `{id%}` any
    segment, percent-decoded, and only for what forwards nothing. A path without parameters goes before one with, then the first counts.
    """

    def __init__(self, metered: Mapping[tuple[str, str], Proxy], pages: Sequence[Route] = ()) -> None:
        self._metered: dict[str, dict[str, Metered]] = {}  # without parameters
        self._metered_patterns: list[tuple[tuple[str, ...], dict[str, Proxy]]] = []
        for (method, path), proxy in metered.items():
            if "{" in path:
                _of_pattern(self._metered_patterns, path)[method] = proxy
            else:
                self._metered.setdefault(path, {})[method] = Metered(proxy, path, None)
        self._pages: dict[str, dict[str, Page]] = {}  # without parameters
        self._patterns: list[tuple[tuple[str, ...], dict[str, Page]]] = []
        for route in pages:
            self._page_methods(route.path)[route.method] = route.page

    def find(self, method: str, path: str) -> Found:
        """`path` is raw, without the query."""
        if method == "HEAD":
            method = "GET"
        inner, path_run = path, None
        if path.startswith(_RUN):
            path_run, slash, rest = path[len(_RUN) :].partition("/")
            inner = slash + rest
        methods = self._metered.get(inner)
        if methods is not None and path_run != "":
            found = methods.get(method)
            if found is None:
                return _wrong_method(methods)
            return found if path_run is None else Metered(found.proxy, inner, path_run)
        if inner == "/v1" or inner.startswith("/v1/"):
            by_pattern = None if path_run == "" else self._metered_by_pattern(method, inner, path_run)
            return by_pattern or Miss(problem("route_not_metered", f"Nothing meters {_shown(path)}, so it is not forwarded."))
        return self._visit(method, path)

    def _metered_by_pattern(self, method: str, inner: str, path_run: str | None) -> Found | None:
        if inner.lower() in self._metered:  # `/v1/Chat/completions`: a provider may read that as the other route
            return None
        segments = inner.split("/")
        for pattern, methods in self._metered_patterns:
            parameters = _match_plain(pattern, segments)
            if parameters is not None:
                proxy = methods.get(method)
                return Metered(proxy, inner, path_run, parameters) if proxy is not None else _wrong_method(methods)
        return None

    def _visit(self, method: str, path: str) -> Visit | Miss:
        pages = self._pages.get(path)
        if pages is not None:
            page = pages.get(method)
            return Visit(page, {}) if page is not None else _wrong_method(pages)
        segments = path.split("/")
        for pattern, pages in self._patterns:
            parameters = _match(pattern, segments)
            if parameters is not None:
                page = pages.get(method)
                return Visit(page, parameters) if page is not None else _wrong_method(pages)
        return Miss(problem("not_found", f"There is nothing at {_shown(path)}."))

    def _page_methods(self, path: str) -> dict[str, Page]:
        if "{" not in path:
            return self._pages.setdefault(path, {})
        return _of_pattern(self._patterns, path)


def _of_pattern(patterns: list[tuple[tuple[str, ...], dict[str, T]]], path: str) -> dict[str, T]:
    """What serves the path with parameters, by method; made where there is none."""
    pattern = tuple(path.split("/"))
    for known, methods in patterns:
        if known == pattern:
            return methods
    patterns.append((pattern, {}))
    return patterns[-1][1]


def _match_plain(pattern: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    parameters: dict[str, str] = {}
    for expected, segment in zip(pattern, segments, strict=True):
        if not expected.startswith("{"):
            if expected != segment:
                return None
        elif expected.endswith("%}"):
            if not segment:
                return None
            parameters[expected[1:-2]] = unquote(segment)
        elif _PLAIN.fullmatch(segment) is None or not segment.strip("."):
            return None
        else:
            parameters[expected[1:-1]] = segment
    return parameters


def _match(pattern: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    parameters: dict[str, str] = {}
    for expected, segment in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            if not segment:
                return None
            parameters[expected[1:-1]] = unquote(segment)
        elif expected != segment:
            return None
    return parameters


def _wrong_method(served: Mapping[str, object]) -> Miss:
    methods = sorted(served.keys() | ({"HEAD"} if "GET" in served else set()))
    allow = ", ".join(methods)
    return Miss(problem("method_not_allowed", f"This path takes {allow}."), (("Allow", allow),))


def _shown(path: str) -> str:
    """A path as a message shows it: the caller chose it, so it is short and printable."""
    return ascii(path[:80])[1:-1]
