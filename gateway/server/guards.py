"""Who may talk to a loopback listener: loopback is not authentication, because every web page can reach it through the browser.

A page that a browser loaded from elsewhere sends its `Origin`; one that rebinds its own name to 127.0.0.1 sends that name as `Host`.
"""

from dataclasses import dataclass
from typing import Final

from multidict import CIMultiDictProxy

from gateway.wire.problem import Refused, problem

LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Guards:
    """`allowed_hosts`: names without a port, lower case, IPv6 without brackets; None lets any name in."""

    allowed_hosts: frozenset[str] | None = LOOPBACK_HOSTS
    allowed_origins: frozenset[str] = frozenset()

    def check(self, headers: CIMultiDictProxy[str]) -> None:
        """Refused: 403 host_not_allowed, origin_not_allowed."""
        if self.allowed_hosts is not None:
            named = headers.getall("Host", ())
            # A browser sends exactly one Host; two could be read in two ways.
            if len(named) != 1 or _name(named[0]) not in self.allowed_hosts:
                raise Refused(
                    problem(
                        "host_not_allowed",
                        "This gateway answers only to the host names in `allowed_hosts` (default: loopback names).",
                    )
                )
        for origin in headers.getall("Origin", ()):
            if origin not in self.allowed_origins:
                raise Refused(
                    problem(
                        "origin_not_allowed", "Requests from web pages are refused unless `allowed_origins` names their origin."
                    )
                )


def _name(host: str) -> str:
    """`LOCALHOST:8080` → `localhost`, `[::1]:8080` → `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
