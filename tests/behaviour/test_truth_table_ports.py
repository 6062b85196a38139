"""Every way in which a port can be no good, under each TLS version: one outcome, the true one.

As in test_truth_table_certificates, what is expected stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from support.certs import Pki
from support.clients import Talker
from support.fates import GOODBYE, Fate, Fates, alert, fates
from support.peers import Peers
from support.recorder import TlsVersion
from support.sidecar import Addressed, Sidecar, StartSidecar, route
from support.truth import TruthTable, calls

TLS: list[TlsVersion] = ["1.2", "1.3"]
SECTION = "What is wrong with the port, or with the way to it"
LIMIT = 0.3
SHORT = {"connect": "300ms", "handshake": "300ms", "response": "500ms"}
OLD_HELLO = bytes((22, 3, 1, 0, 42, 2, 0, 0, 38, 3, 1, *bytes(33), 0, 0x2F, 0))
"""A ServerHello of TLS 1.0: a random, no session, TLS_RSA_WITH_AES_128_CBC_SHA."""
GARBAGE = bytes(range(200, 256)) * 4


@dataclass(frozen=True)
class Trouble:
    """A port, and what a call to it comes to: (outcome, how it is told, the answer's own outcome or None)."""

    words: str
    make: Callable[[Peers, Fates, TlsVersion], Addressed]
    tls12: tuple[str, str, str | None]
    tls13: tuple[str, str, str | None]
    late: float = 0.0
    """Seconds until there is a verdict."""
    upstream: tuple[tuple[str, Any], ...] = ()
    """More for the route's `upstream`."""


def both(
    words: str, make: Callable[[Peers, Fates, TlsVersion], Addressed], outcome: str, how: str, **more: Any
) -> Trouble:
    return Trouble(words, make, (outcome, how, None), (outcome, how, None), **more)


def fated(words: str, fate: Fate, outcome: str, how: str, **more: Any) -> Trouble:
    return both(words, lambda _, fates, __: fates.listen(fate), outcome, how, **more)


def other_version(peers: Peers, fates: Fates, tls: TlsVersion) -> Addressed:
    return fates.listen(Fate(tls="1.2" if tls == "1.3" else "1.3"))


def goodbye_after_finished(peers: Peers, fates: Fates, tls: TlsVersion) -> Addressed:
    """TLS 1.2 has no keys of the upstream's at that point; TLS 1.3 has, and its tickets come later."""
    if tls == "1.2":
        return fates.listen(Fate(GOODBYE, "finished", tls="1.2"))
    return fates.listen(Fate("goodbye", "finished", tls="1.3", tickets=False))


def foreign_ciphers(peers: Peers, fates: Fates, tls: TlsVersion) -> Addressed:
    """RSA authentication with an EC key, and a suite that OpenSSL does not offer by default."""
    ciphers = ("-cipher", "AES128-SHA256") if tls == "1.2" else ("-ciphersuites", "TLS_AES_128_CCM_SHA256")
    return peers.openssl(tls=tls, arguments=ciphers)


CLOSED, NO_ALERT = "closed_in_handshake", "closes, no alert"
TROUBLES = {
    "plain-http": both("Plain HTTP", lambda peers, *_: peers.plain_http(), "not_tls", "its first bytes"),
    "ssh": both("An SSH banner", lambda peers, *_: peers.banner(), "not_tls", "its first bytes"),
    "garbage": both("Garbage", lambda peers, *_: peers.banner(GARBAGE), "not_tls", "its first bytes"),
    "closed-port": both(
        "Nobody listens", lambda peers, *_: peers.closed_port(), "connect_refused", "no connection"
    ),
    "black-hole": both(
        "Packets vanish", lambda peers, *_: peers.black_hole(), "connect_timeout", "silence", late=LIMIT
    ),
    "no-name": both(
        "The name does not exist",
        lambda peers, *_: peers.closed_port(),
        "dns_failed",
        "no connection",
        upstream=(("host", "no-such-host.invalid"),),
    ),
    "silent": both(
        "Accepts and says nothing",
        lambda peers, *_: peers.silent(),
        "handshake_timeout",
        "silence",
        late=LIMIT,
    ),
    "closes-at-accept": fated("Closes at accept", Fate("close", "accept"), CLOSED, NO_ALERT),
    "resets-at-accept": fated("Resets at accept", Fate("reset", "accept"), CLOSED, NO_ALERT),
    "closes-after-hello": fated("Closes after our ClientHello", Fate("close", "hello"), CLOSED, NO_ALERT),
    "resets-after-hello": fated("Resets after our ClientHello", Fate("reset", "hello"), CLOSED, NO_ALERT),
    "closes-after-server-hello": fated(
        "Closes after its ServerHello", Fate("close", "server hello"), CLOSED, NO_ALERT
    ),
    "resets-after-server-hello": fated(
        "Resets after its ServerHello", Fate("reset", "server hello"), CLOSED, NO_ALERT
    ),
    "silent-after-server-hello": fated(
        "Says nothing after its ServerHello",
        Fate("silence", "server hello"),
        "handshake_timeout",
        "silence",
        late=LIMIT,
    ),
    "closes-after-finished": fated(
        "Asked for a certificate, closes after our Finished",
        Fate("close", "finished"),
        "client_cert_rejected",
        NO_ALERT,
    ),
    "resets-after-finished": fated(
        "Asked for a certificate, resets after our Finished",
        Fate("reset", "finished"),
        "client_cert_rejected",
        NO_ALERT,
    ),
    "goodbye-after-hello": fated(
        "Says close_notify after our ClientHello", Fate(GOODBYE, "hello"), CLOSED, NO_ALERT
    ),
    "canceled-after-hello": fated(
        "Says user_canceled and close_notify, as JDK 17 does",
        Fate(alert(90, warning=True) + GOODBYE, "hello"),
        CLOSED,
        NO_ALERT,
    ),
    "goodbye-after-finished": both(
        "Asked for a certificate, says close_notify after our Finished",
        goodbye_after_finished,
        "client_cert_rejected",
        NO_ALERT,
    ),
    "closes-unasked": Trouble(
        "Asked for no certificate, closes after our Finished",
        lambda _, fates, __: fates.listen(Fate("close", "finished", asks=False)),
        (CLOSED, NO_ALERT, None),
        ("ok", "closes, no alert", "upstream_closed"),
    ),
    "silent-after-finished": Trouble(
        "Asked for a certificate, says nothing after our Finished",
        lambda _, fates, __: fates.listen(Fate("silence", "finished")),
        ("handshake_timeout", "silence", None),
        ("undecided", "silence", "response_timeout"),
        late=1.0,
        upstream=(("timeouts", {"handshake": "1s", "response": "500ms"}),),  # the handshake must get there
    ),
    "closes-after-request": Trouble(
        "Closes after the request",
        lambda _, fates, __: fates.listen(Fate("close", "request")),
        ("ok", "closes, no alert", "upstream_closed"),
        ("ok", "closes, no alert", "upstream_closed"),
    ),
    "no-tickets": fated("Sends no session tickets", Fate(tickets=False), "ok", "HTTP 200"),
    "refused-hello": fated(
        "Refuses our ClientHello", Fate(alert(40), "hello"), "no_shared_parameters", "alert handshake_failure"
    ),
    "unknown-name": fated(
        "Does not know the server name", Fate(alert(112), "hello"), "tls_error", "alert unrecognized_name"
    ),
    "denied": fated("Denies access at once", Fate(alert(49), "hello"), "tls_error", "alert access_denied"),
    "broken": fated("Has an error of its own", Fate(alert(80), "hello"), "tls_error", "alert internal_error"),
    "old-version": fated(
        "Speaks TLS 1.0", Fate(OLD_HELLO, "hello"), "protocol_mismatch", "its first message"
    ),
    "other-version": both(
        "Speaks other TLS versions only", other_version, "protocol_mismatch", "alert protocol_version"
    ),
    "other-ciphers": both(
        "Shares no cipher suite", foreign_ciphers, "no_shared_parameters", "alert handshake_failure"
    ),
}


@pytest.fixture
def fated_peers(pki: Pki) -> Iterator[Fates]:
    with fates(pki.upstream, pki.trust) as running:
        yield running


@pytest.mark.parametrize("tls", TLS)
def test_each_trouble_with_a_port_has_its_outcome(
    tls: TlsVersion,
    sidecar: StartSidecar,
    peers: Peers,
    fated_peers: Fates,
    pki: Pki,
    truth_table: TruthTable,
) -> None:
    """And the caller is answered within a second of the verdict."""
    running = sidecar(
        *(
            routed(name, trouble, trouble.make(peers, fated_peers, tls), tls, pki)
            for name, trouble in TROUBLES.items()
        )
    )
    for name, cell in calls(running, TROUBLES, {name: each.late for name, each in TROUBLES.items()}):
        trouble = TROUBLES[name]
        outcome, how, answer = trouble.tls12 if tls == "1.2" else trouble.tls13
        # An end that crosses the request may be seen before the request has left: then a second is opened.
        crosses = name == "closes-unasked" and answer is not None
        twice = crosses and cell.outcomes() == {outcome: 2}
        fields = cell.check(outcome, how, answer=answer, attempts=2 if twice else 1)
        if answer is not None:
            unsent = crosses and "No byte of the request was sent" in fields["detail"]
            assert unsent or "may have been processed" in fields["detail"]
        both_outcomes = f"{outcome}, {answer}" if answer else outcome
        truth_table.saw(SECTION, trouble.words, tls, both_outcomes, how)


def routed(name: str, trouble: Trouble, peer: Addressed, tls: TlsVersion, pki: Pki) -> dict[str, Any]:
    """A route that speaks this version only, with short limits where silence is the trouble: a busy machine
    takes longer than those for a handshake, or for an end behind it."""
    limits = {"timeouts": SHORT} if trouble.late else {}
    spec = route(name, peer, trust=pki.trust, tls={"min": tls, "max": tls}, **limits)
    spec["upstream"].update(dict(trouble.upstream))
    return spec


LEAVES = {
    "The caller leaves while packets vanish": ("connecting", lambda peers, _: peers.black_hole()),
    "The caller leaves before any answer to our ClientHello": ("hello", lambda peers, _: peers.silent()),
    "The caller leaves before the verdict on our certificate": (
        "finished",
        lambda _, fates: fates.listen(Fate("silence", "finished")),
    ),
}


@pytest.mark.parametrize("tls", TLS)
def test_caller_that_leaves_before_the_verdict_leaves_it_undecided(
    tls: TlsVersion,
    sidecar: StartSidecar,
    peers: Peers,
    fated_peers: Fates,
    pki: Pki,
    truth_table: TruthTable,
) -> None:
    """Whatever was awaited: one attempt, counted and logged at once."""
    running = sidecar(
        *(
            route(name, make(peers, fated_peers), trust=pki.trust, tls={"min": tls, "max": tls})
            for name, make in LEAVES.values()
        )
    )
    for words, (name, _) in LEAVES.items():
        leave(running, name)
        assert running.outcomes(name) == {"undecided": 1}
        assert running.metric("sidecert_handshake_duration_seconds_count", route=name) == 1
        assert running.metric("sidecert_requests_in_progress", route=name) == 0
        (record,) = [record for record in running.events("undecided") if record["route"] == name]
        assert record["outcome"] == "undecided"
        assert any(line.startswith("we left") for line in record["evidence"])
        truth_table.saw(SECTION, words, tls, "undecided", "silence")


def leave(running: Sidecar, name: str) -> None:
    """A call on that route whose caller goes while its connection is being opened."""

    def active() -> float | None:
        return running.metric("sidecert_upstream_connections", route=name, state="active")

    with Talker(running.listener) as talker:
        talker.send(f"GET / HTTP/1.1\r\nHost: {name}.test\r\n\r\n".encode())
        running.wait_for(lambda: active() == 1)
        talker.reset()
    running.wait_for(lambda: active() == 0, 3)
