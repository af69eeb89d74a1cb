"""The guard of conftest.py: a test that reaches out fails at once, wherever it runs."""

from __future__ import annotations

import socket

import pytest


@pytest.mark.parametrize("host", ["example.org", "192.0.2.1"])
def test_connecting_to_another_machine_fails(host: str) -> None:
    with pytest.raises(RuntimeError, match="tests have no network"):
        socket.create_connection((host, 80), timeout=1)


def test_an_address_given_directly_fails_too() -> None:
    with socket.socket() as connection, pytest.raises(RuntimeError, match="tests have no network"):
        connection.connect(("192.0.2.1", 80))
    with socket.socket() as connection, pytest.raises(RuntimeError, match="tests have no network"):
        connection.connect_ex(("192.0.2.1", 80))


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
