"""The faults that tests put between a ledger and its server."""

import socket
import ssl
from urllib.parse import urlsplit

import hiredis
import pytest

from tests.support.between import CERTIFICATE, Between
from tests.support.valkey import commands


@pytest.fixture
def server_port(valkey_url: str) -> int:
    return urlsplit(valkey_url).port or 6379


def test_a_command_that_was_cut_before_never_happened(server_port: int) -> None:
    with Between(server_port) as link:
        link.cut_before("incr")
        with pytest.raises(ConnectionError):
            commands(("127.0.0.1", link.port), ("SET", "a", "1"), ("INCR", "a"))
        assert commands(("127.0.0.1", link.port), ("GET", "a")) == [b"1"]


def test_a_command_that_was_cut_after_happened_and_nobody_heard_of_it(server_port: int) -> None:
    with Between(server_port) as link:
        link.cut_after("INCR")
        with pytest.raises(ConnectionError):
            commands(("127.0.0.1", link.port), ("SET", "a", "1"), ("INCR", "a"))
        assert commands(("127.0.0.1", link.port), ("GET", "a")) == [b"2"]
        assert link.connections == 2


def test_it_ends_tls(server_port: int) -> None:
    with Between(server_port, tls=True) as link:
        context = ssl.create_default_context(cafile=CERTIFICATE)
        with (
            socket.create_connection(("localhost", link.port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            tls.sendall(hiredis.pack_command(("PING",)))
            assert tls.recv(100) == b"+PONG\r\n"
