"""Whom `ROUTE` and `HOST:PORT` mean, and which certificates are tried there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecert.diagnosis import NoSubject, Subject, of_address, of_route
from sidecert.generation import Generation
from support.certs import Pki
from support.inside import generation
from support.peers import Peer
from support.sidecar import config, route

HERE = Peer("here", 8443)


@pytest.fixture
def loaded(pki: Pki, tmp_path: Path) -> Generation:
    """Several routes to one place, a wildcard, one that checks nothing and one without a certificate."""
    wild = {"id": "wild", "match": {"host": "*.example.test"}, "credential": "bob"}
    return generation(
        tmp_path,
        config(
            [
                wild,
                route("orders", HERE, trust=pki.trust, server_name="orders.test"),
                route("bills", HERE, trust=pki.other_trust, credential="bob"),
                route("lab", Peer("lab", 9443), trust="insecure"),
                route("open", Peer("open", 7443), trust=pki.trust, credential="none"),
            ],
            pki.credentials,
        ),
    )


def ids(subject: Subject) -> tuple[list[str], list[str]]:
    wanted = ["none" if each is None else each.id for each in subject.wanted]
    return wanted, [each.id for each in subject.others]


def test_route_is_tried_under_its_own_credential_first(loaded: Generation) -> None:
    """The others may be tried after it, but not on an upstream that nobody has vouched for."""
    assert ids(of_route(loaded, "orders")) == (["alice"], ["bob", "stranger"])
    assert ids(of_route(loaded, "open")) == (["none"], ["alice", "bob", "stranger"])
    assert ids(of_route(loaded, "lab")) == (["alice"], [])
    assert ids(of_route(loaded, "orders", "bob")) == (["bob"], [])
    assert ids(of_route(loaded, "orders", "none")) == (["none"], [])


def test_address_takes_the_settings_of_a_route_that_leads_there(loaded: Generation) -> None:
    """The first in the file, or the one under the credential that is named; its own certificate first."""
    first = of_address(loaded, "127.0.0.1:8443")
    assert (first.route, first.upstream.server_name) == ("orders", "orders.test")
    assert ids(first) == (["alice", "bob", "stranger"], [])
    named = of_address(loaded, "127.0.0.1:8443", "bob")
    assert (named.route, ids(named)) == ("bills", (["bob"], []))
    assert named.trust == of_route(loaded, "bills").trust
    wild = of_address(loaded, "A.Example.Test.:8443")
    assert (wild.route, wild.upstream.host) == ("wild", "a.example.test")
    assert wild.upstream.chosen_by_caller
    assert ids(wild) == (["bob", "alice", "stranger"], [])
    assert ids(of_address(loaded, "127.0.0.1:9443")) == (["alice"], [])


def test_address_to_which_no_route_leads_has_the_defaults(loaded: Generation) -> None:
    """Also where only the port differs, or the wildcard's own name is called."""
    for text in ("127.0.0.1:8444", "example.test:8443", "[::1]:8443", "notexample.test:8443"):
        subject = of_address(loaded, text)
        assert (subject.route, subject.trust, subject.trust_label) == (None, "system", "system")
        assert ids(subject) == (["alice", "bob", "stranger"], [])
    alone = of_address(None, "[::1]:8443")
    assert (alone.upstream.label, ids(alone)) == ("[::1]:8443", (["none"], []))


@pytest.mark.parametrize(
    ("text", "credential", "words"),
    [
        ("orders.test:0", None, "it needs a port"),
        (":8443", None, "the host is empty"),
        ("user@orders.test:8443", None, "holds a user name"),
        ("orders.test:٨", None, "it needs a port"),
        ("*.orders.test:8443", None, "is a pattern"),
        ("orders.test:8443", "alcie", "did you mean alice?"),
    ],
)
def test_what_is_no_address_is_told_with_what_would_be_right(
    text: str, credential: str | None, words: str, loaded: Generation
) -> None:
    """One NoSubject, whose text goes to the terminal."""
    with pytest.raises(NoSubject, match=words.replace("?", r"\?")):
        of_address(loaded, text, credential)


def test_credential_needs_a_config() -> None:
    """There is none to look it up in."""
    with pytest.raises(NoSubject, match="there is no config"):
        of_address(None, "orders.test:8443", "alice")
    assert ids(of_address(None, "orders.test:8443")) == (["none"], [])
