"""The address of a Redis or Valkey store, as a URL in the config, and what it means. No secret of it is ever shown.

    redis://[user:password@]host[:port][/db]            rediss:// with TLS
    redis+unix:///path/of/the.sock[?db=1]
    redis+sentinel://host[:port],host2…/service[/db]    rediss+sentinel:// with TLS
    redis+cluster://host[:port],host2…                  rediss+cluster:// with TLS

With TLS: `?ssl_ca_certs=FILE&ssl_check_hostname=true|false&ssl_certfile=FILE&ssl_keyfile=FILE`.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from gateway.yaml_source import Unexpected, did_you_mean

Address: TypeAlias = tuple[str, int]  # a unix socket's path has the port 0

SCHEMES: Final = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?", re.ASCII)
_TLS_OPTIONS: Final = ("ssl_ca_certs", "ssl_check_hostname", "ssl_certfile", "ssl_keyfile")
_NOT_SHOWN: Final = "another URL (not shown: it may hold a password)"


class Topology(StrEnum):
    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files. Without `ca_certs` the system's authorities count."""

    ca_certs: str | None = None
    check_hostname: bool = True
    certfile: str | None = None
    keyfile: str | None = None


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """Where the store is, and how to log in. `addresses` are sentinels, some nodes of a cluster, or the one server."""

    topology: Topology
    addresses: tuple[Address, ...]
    service: str = ""  # what the sentinels call it
    db: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)
    tls: Tls | None = None

    def __str__(self) -> str:
        """The URL without user, password and options."""
        if self.addresses[0][1] == 0:
            return f"redis+unix://{self.addresses[0][0]}"
        kind = "" if self.topology is Topology.STANDALONE else f"+{self.topology}"
        hosts = ",".join(map(shown, self.addresses))
        path = "".join(f"/{part}" for part in (self.service, self.db) if part)
        return f"redis{'s' if self.tls else ''}{kind}://{hosts}{path}"


def shown(address: Address) -> str:
    """`host:port`, `[::1]:port`, or a socket's path."""
    host, port = address
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse(text: str) -> StoreUrl:
    """Unexpected where it is not such a URL, with what was expected."""
    scheme, _, rest = text.partition("://")
    try:
        url = urlsplit(f"//{rest}")
        options = dict(parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query)))
    except ValueError:
        raise Unexpected("a URL", _NOT_SHOWN) from None
    if url.fragment:
        raise Unexpected("a URL without a fragment: a # in a password is %23", _NOT_SHOWN)
    login, _, hosts = url.netloc.rpartition("@")
    user, _, password = (unquote(part) for part in login.partition(":"))
    path = unquote(url.path).strip("/")
    if scheme == "redis+unix":
        if hosts or not path:
            raise Unexpected("a path after three slashes, such as redis+unix:///run/valkey.sock", _NOT_SHOWN)
        db = _database(options.pop("db", ""))
        _refuse_others(options, ("db",))
        return StoreUrl(Topology.STANDALONE, ((unquote(url.path), 0),), db=db, user=user, password=password)
    base, _, kind = scheme.partition("+")
    topology = Topology(kind) if kind else Topology.STANDALONE
    tls = _tls(options) if base == "rediss" else None
    _refuse_others(options, _TLS_OPTIONS if tls else ())
    default_port = _SENTINEL_PORT if topology is Topology.SENTINEL else _PORT
    addresses = tuple(_address(host, default_port) for host in hosts.split(","))
    service, db = "", 0
    if topology is Topology.SENTINEL:
        service, _, number = path.partition("/")
        if not service:
            raise Unexpected("the service's name after the sentinels: redis+sentinel://host1,host2/service", _NOT_SHOWN)
        db = _database(number)
    elif topology is Topology.CLUSTER:
        if path:
            raise Unexpected("no database: a cluster has only one", _NOT_SHOWN)
    else:
        if len(addresses) != 1:
            raise Unexpected("one server; several are redis+cluster:// or redis+sentinel://", _NOT_SHOWN)
        db = _database(path)
    return StoreUrl(topology, addresses, service, db, user, password, tls=tls)


def _address(host: str, default_port: int) -> Address:
    match = _HOST.fullmatch(host)
    port = default_port if match is None or match[2] is None else int(match[2])
    if match is None or not 1 <= port <= 65_535:
        raise Unexpected("HOST or HOST:PORT, more of them after commas", _NOT_SHOWN)
    return match[1].strip("[]"), port


def _database(text: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) > 9_999:
        raise Unexpected("a database's number, such as redis://host/1", _NOT_SHOWN)
    return int(text)


def _tls(options: dict[str, str]) -> Tls:
    check = options.get("ssl_check_hostname", "true").lower()
    if check not in ("true", "false"):
        raise Unexpected("ssl_check_hostname=true or =false", _NOT_SHOWN)
    return Tls(options.get("ssl_ca_certs"), check == "true", options.get("ssl_certfile"), options.get("ssl_keyfile"))


def _refuse_others(options: dict[str, str], known: tuple[str, ...]) -> None:
    """A misspelt option must not be one that is quietly not used."""
    for name in options:
        if name not in known:
            expected = f"one of the options {', '.join(known)}" if known else "no options"
            raise Unexpected(expected + did_you_mean(name, known), _NOT_SHOWN)
