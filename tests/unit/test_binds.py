"""Addresses to listen on."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecert.config.binds import Bind, bind


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("LocalHost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
        ("[0:0::1]:1", "::1", 1),
        ("0.0.0.0:80", "0.0.0.0", 80),
    ],
)
def test_a_tcp_address_keeps_its_spelling_as_the_label(written: str, host: str, port: int) -> None:
    """The host is normalised and without brackets."""
    assert bind(written, None) == Bind(written, "tcp", host, port, None)


def test_a_unix_socket_is_relative_to_the_config() -> None:
    """Its label stays as it was written."""
    assert bind("unix:run/in.sock", Path("/etc/sidecert")) == Bind(
        "unix:run/in.sock", "unix", path=Path("/etc/sidecert/run/in.sock")
    )


@pytest.mark.parametrize(
    ("written", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/in.sock", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("gateway.internal:1", False),
    ],
)
def test_only_loopback_is_closed_to_the_network(written: str, loopback: bool) -> None:
    """A name may resolve to anything."""
    assert bind(written, None).loopback is loopback


@pytest.mark.parametrize(
    ("one", "two", "overlap"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("127.0.0.1:1", "0.0.0.0:1", True),
        ("127.0.0.1:1", "[::]:1", False),
        ("[::1]:1", "[::]:1", True),
        ("0.0.0.0:1", "[::]:1", False),
        ("localhost:1", "127.0.0.1:1", True),
        ("localhost:1", "[::1]:1", True),
        ("localhost:1", "[::]:1", True),
        ("gateway.internal:1", "0.0.0.0:1", False),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "unix:/b", False),
        ("unix:/a", "127.0.0.1:1", False),
    ],
)
def test_addresses_that_need_one_socket_overlap(one: str, two: str, overlap: bool) -> None:
    """Whichever of the two is asked."""
    first, second = bind(one, None), bind(two, None)
    assert first.overlaps(second) is overlap
    assert second.overlaps(first) is overlap
