"""Many routes to one host and port of one upstream, which differ in one thing each that a connection must not
be shared across, and what the upstream must see of a call to each.

The upstream sends session tickets and takes them back, so that a resumed session would be seen as one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.certs import Files, Leaf, Pki
from support.clients import Address, Caller, Talker
from support.recorder import Seen, TlsRecorder, tls_recorder
from support.sidecar import Sidecar, config, route, running


@dataclass(frozen=True)
class Member:
    """A route, a call that belongs to it, and what the upstream must see of one."""

    config: dict[str, Any]
    host: str
    path: str
    leaf: Leaf | None
    chain: int
    method: str = "GET"
    listener: int = 0
    tls: str = "TLSv1.3"
    server_name: str | None = None
    host_header: str | None = None

    def line(self, token: str) -> bytes:
        """The head of a call, for an origin server."""
        head = f"{self.method} {self.path}?{token} HTTP/1.1\r\nHost: {self.host}\r\n"
        return f"{head}{'Content-Length: 0' if self.method == 'POST' else 'X: x'}\r\n\r\n".encode()

    def check(self, seen: Seen, default_host: str) -> None:
        fingerprint = None if self.leaf is None else self.leaf.fingerprint
        assert (seen.fingerprint, seen.chain) == (fingerprint, self.chain), self.config["id"]
        assert (seen.tls, seen.server_name) == (self.tls, self.server_name), self.config["id"]
        assert seen.header("Host") == (self.host_header or default_host), self.config["id"]
        assert not seen.resumed, self.config["id"]


@dataclass
class Crowd:
    """A running sidecar with all those routes."""

    sidecar: Sidecar
    upstream: TlsRecorder
    members: Mapping[str, Member]
    _tokens: Iterator[int] = field(default_factory=itertools.count)

    def token(self) -> str:
        """A word for a call that no other call has. It goes into the query: where a path leads is remembered,
        and what was remembered must be put to the test."""
        return f"t{next(self._tokens)}"

    def seen(self, token: str) -> list[Seen]:
        """How the upstream saw that call, each time it came."""
        return [each for each in list(self.upstream.requests) if each.target.endswith("?" + token)]

    def check(self, name: str, token: str) -> int:
        """Holds a call against its route; gives back the number of its connection."""
        [seen] = self.seen(token)
        self.members[name].check(seen, self.upstream.address)
        return seen.connection

    def address(self, name: str) -> Address:
        return self.sidecar.listeners[self.members[name].listener]

    def mix(self, *names: str, calls: int = 8) -> None:
        """Calls to these routes in turn and at random, over one connection, over new ones and pipelined: each
        arrives as its route says, and no connection serves two of them."""
        draw = random.Random(f"{names}")
        order = [*names, *reversed(names), *draw.choices(names, k=calls)]
        made = [(name, self.token()) for name in order * 3]
        kept, fresh, piped = made[: len(order)], made[len(order) : -len(order)], made[-len(order) :]
        with ExitStack() as stack:
            callers = {
                self.members[name].listener: stack.enter_context(Caller(self.address(name))) for name in names
            }
            for name, token in kept:
                self._call(callers[self.members[name].listener], name, token)
        for name, token in fresh:
            with Caller(self.address(name)) as caller:
                self._call(caller, name, token)
        for listener in {self.members[name].listener for name in names}:
            those = [(name, token) for name, token in piped if self.members[name].listener == listener]
            with Talker(self.sidecar.listeners[listener]) as talker:
                talker.send(b"".join(self.members[name].line(token) for name, token in those))
                for name, _ in those:
                    assert talker.read_answer(self.members[name].method).status == 200
        used: dict[str, set[int]] = {}
        for name, token in made:
            used.setdefault(name, set()).add(self.check(name, token))
        for one, other in itertools.combinations(names, 2):
            assert not used[one] & used[other], f"{one} and {other} shared a connection"

    def _call(self, caller: Caller, name: str, token: str) -> None:
        member = self.members[name]
        body = b"" if member.method == "POST" else None
        target = f"{member.path}?{token}"
        if member.listener == 0:
            target = f"http://{member.host}{target}"
        assert caller.call(member.method, target, body).status == 200


@contextmanager
def crowd(pki: Pki, folder: Path) -> Iterator[Crowd]:
    """A `Crowd` for the length of a with block."""
    between = pki.ca.intermediate()
    trust = folder / "accepted.pem"
    trust.write_bytes(pki.ca.pem + between.pem)
    leafs = {"alice": pki.ca.caller("alice"), "bob": pki.ca.caller("bob"), "carol": between.caller("carol")}
    files = {name: leaf.write(folder / "callers") for name, leaf in leafs.items()}
    files["bare"] = leafs["carol"].write(folder / "callers", "bare", chain=False)
    with tls_recorder(pki.upstream, trust, verify="optional") as upstream:
        members = _members(upstream, pki, leafs)
        listeners = [
            {"bind": "127.0.0.1:0"},
            {"bind": f"unix:{folder / 'a.sock'}", "route": "plain"},
            {"bind": f"unix:{folder / 'b.sock'}", "route": "pinned"},
        ]
        routes = [each.config for name, each in members.items() if name != "plain, pinned"]
        whole = config(routes, _credentials(files), listeners=listeners)
        with running(folder / "sidecar", whole) as sidecar:
            yield Crowd(sidecar, upstream, members)


def _credentials(files: Mapping[str, Files]) -> dict[str, dict[str, str]]:
    return {name: each.config for name, each in files.items()}


def _members(upstream: TlsRecorder, pki: Pki, leafs: Mapping[str, Leaf]) -> dict[str, Member]:
    members: dict[str, Member] = {}
    # OpenSSL completes a leaf that comes alone from what the route trusts: here, by the root.
    chains = {"alice": 2, "bob": 2, "carol": 2, "bare": 1}

    def add(
        name: str,
        credential: str = "alice",
        *,
        host: str | None = None,
        path: str = "/",
        match: Mapping[str, object] | None = None,
        calls: Mapping[str, Any] | None = None,
        **settings: object,
    ) -> None:
        host = host or f"{name}.test"
        made = route(
            name, upstream, **{"trust": pki.trust, **settings}, credential=credential, host=host, match=match
        )
        leaf = None if credential == "none" else leafs["carol" if credential == "bare" else credential]
        shown = {"host": host, "path": path, "chain": chains.get(credential, 0), **(calls or {})}
        members[name] = Member(made, leaf=leaf, **shown)

    add("plain")
    add("other-credential", "bob")
    add("no-credential", "none")
    add("whole-chain", "carol")
    add("bare-leaf", "bare")
    add("untrusting", trust=pki.other_trust)
    add("insecure", trust="insecure", calls={"chain": 1})
    add("named", server_name="localhost", calls={"server_name": "localhost"})
    add("misnamed", server_name="other.test")
    add("old-tls", tls={"max": "1.2"}, calls={"tls": "TLSv1.2"})
    add("new-tls", tls={"min": "1.3"})
    add("virtual-host", host_header="virtual.test", calls={"host_header": "virtual.test"})
    add("path", "bob", host="plain.test", match={"path": "/bob/**"}, path="/bob/")
    add("method", "carol", host="plain.test", match={"methods": ["POST"]}, calls={"method": "POST"})
    add("port", "bare", host="plain.test", match={"port": 81}, calls={"host": "plain.test:81"})
    add("wildcard", "bob", host="*.plain.test", calls={"host": "x.plain.test"})
    add("pinned", "bob", calls={"listener": 2, "host": "localhost"})
    by_listener = {**vars(members["plain"]), "listener": 1, "host": "localhost"}
    members["plain, pinned"] = Member(**by_listener)
    return members
