"""The twin's connections: who is who, and how long the twin waits."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecert.twin import People, Twin, make
from sidecert.twin.http import Limits

GET = b"GET /integration/rest/external/integration/run/a/b/c HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
HALF_A_BODY = GET.replace(b"GET", b"POST") % b"Content-Length: 5\r\n" + b"abc"
CLOSING = GET % b"Connection: close\r\n"
Events = list[Mapping[str, object]]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    return make(tmp_path_factory.mktemp("people"))


@asynccontextmanager
async def listening(people: People, limits: Limits | None = None) -> AsyncIterator[tuple[int, Events]]:
    events: Events = []
    twin = Twin(people, lambda _, facts: events.append(facts), limits=limits)
    port = await twin.start("127.0.0.1", 0)
    try:
        yield port, events
    finally:
        await twin.close()


def context(people: People, user: str = "alice") -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=people.ca)
    made.load_cert_chain(people.users[user].certificate, people.users[user].key)
    return made


async def say(people: People, port: int, data: bytes, user: str = "alice") -> bytes:
    """Send, and read until the twin closes."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context(people, user), server_hostname="localhost"
    )
    writer.write(data)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_certificate_is_mapped_for_itself_not_for_its_name(people: People) -> None:
    """alice's certificate is nobody's once another one is stored for alice, and bob's can be carol's."""
    fingerprint = {name: each for each, name in people.mapping.items()}
    other = dataclasses.replace(people, mapping={"00" * 32: "alice", fingerprint["bob"]: "carol"})

    async def test() -> None:
        async with listening(other) as (port, events):
            assert b" 401 " in await say(other, port, CLOSING)
            assert b'"user": "carol"' in await say(other, port, CLOSING, "bob")
            assert [(each["certificate"], each["user"]) for each in events] == [
                ("alice", None),
                ("bob", "carol"),
            ]

    run(test)


@pytest.mark.parametrize(
    ("limits", "data", "answer"),
    [
        (Limits(idle=0.1), b"", b""),
        (Limits(head=0.1), b"GET / HTTP/1.1\r\n", b"HTTP/1.1 408 "),
        (
            Limits(body=0.1),
            GET.replace(b"GET", b"POST") % b"Content-Length: 5\r\n" + b"abc",
            b"HTTP/1.1 408 ",
        ),
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_a_slow_caller_is_not_waited_for(people: People, limits: Limits, data: bytes, answer: bytes) -> None:
    """Half a request gets 408, none at all just the close."""

    async def test() -> None:
        async with listening(people, limits) as (port, _):
            assert (await say(people, port, data))[: len(answer) or None] == answer

    run(test)


def test_a_caller_that_breaks_off_harms_nobody(people: People) -> None:
    """In the middle of the handshake, of a head and of a body."""

    async def test() -> None:
        async with listening(people) as (port, events):
            for data in (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"):
                _, plain = await asyncio.open_connection("127.0.0.1", port)
                plain.write(data)
                plain.close()
                await plain.wait_closed()
            for data in (GET[:30], HALF_A_BODY):
                _, shaken = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=context(people), server_hostname="localhost"
                )
                shaken.write(data)
                await shaken.drain()
                shaken.transport.abort()
            assert b'"user": "alice"' in await say(people, port, CLOSING)
            assert 200 in [each.get("status") for each in events]

    run(test)


def test_close_cuts_connections_that_are_open(people: People) -> None:
    """It must not wait for callers that keep theirs."""

    async def test() -> None:
        async with listening(people) as (port, _):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context(people), server_hostname="localhost"
            )
            writer.write(GET % b"")
            await reader.readuntil(b"\r\n\r\n")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1_000_000)
        writer.transport.abort()

    run(test)


def test_a_folder_without_its_files_is_an_error_at_once(people: People, tmp_path: Path) -> None:
    """Not at the first call."""
    with pytest.raises(OSError, match="No such file"):
        Twin(dataclasses.replace(people, ca=tmp_path / "none"), lambda *_: None)
