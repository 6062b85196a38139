"""What others got wrong in sharing connections and TLS sessions: none of it happens here.

One upstream at one host and port, which would resume any session, and routes to it that differ in one thing
each (`support.crowd`). Every test names where its trouble was met.
"""

from __future__ import annotations

import random
import shutil
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from OpenSSL import SSL

from support.certs import Files, Leaf, Pki
from support.clients import Caller, Talker, call
from support.crowd import Crowd, crowd
from support.peers import Peers
from support.recorder import AnswerFunction, Exchange, TlsRecorder, TlsVersion, echo, fixed
from support.sidecar import Sidecar, StartSidecar, route


@pytest.fixture(scope="module")
def routes(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    with crowd(pki, tmp_path_factory.mktemp("crowd")) as running:
        yield running


# -- a connection is another one where anything about it differs ---------------------------------------------


def test_connection_is_not_shared_with_another_certificate(routes: Crowd) -> None:
    """CVE-2016-5420: curl took a connection that was made with another client certificate."""
    routes.mix("plain", "other-credential")


def test_connection_is_not_shared_between_a_certificate_and_none(routes: Crowd) -> None:
    """curl 7.71, github.com/curl/curl/issues/5617: a certificate given as a blob was not compared, so the
    connection that was made without one served the calls that needed it."""
    routes.mix("no-credential", "plain", "other-credential")


def test_connection_is_not_shared_with_another_chain_of_the_same_certificate(routes: Crowd) -> None:
    """github.com/curl/curl/pull/21667: only the certificate was compared, none of what came with it."""
    routes.mix("whole-chain", "bare-leaf")


def test_connection_is_not_shared_with_other_tls_versions(routes: Crowd) -> None:
    """CVE-2022-27782: curl left TLS settings out of what it compared."""
    routes.mix("plain", "old-tls", "new-tls")


def test_connection_is_not_shared_with_another_trust(routes: Crowd) -> None:
    """CVE-2021-22924 (curl forgot the issuer to check), github.com/api7/lua-resty-ldap/pull/32 (whether to
    check at all was no part of the pool's key): a route that trusts another CA is not served by what was
    opened for one that trusts this CA, or everybody."""
    for lax in ("plain", "insecure"):
        routes.mix("plain", "insecure")
        token = routes.token()
        with Caller(routes.address("untrusting")) as caller:
            for name in ("untrusting", lax, "untrusting"):
                answer = caller.get(f"http://{name}.test/?{token}")
                trusted = name != "untrusting"
                assert answer.status == (200 if trusted else 502)
                assert answer.header("Sidecert-Outcome") == (None if trusted else "server_untrusted")
        assert len(routes.seen(token)) == 1


def test_connection_is_not_shared_with_another_server_name(routes: Crowd) -> None:
    """github.com/aio-libs/aiohttp/pull/12835 and github.com/envoyproxy/envoy/pull/9901: the name to ask for
    and to check was no part of the pool's key."""
    routes.mix("plain", "named")
    token = routes.token()
    with Caller(routes.address("misnamed")) as caller:
        for _ in range(3):
            outcome = caller.get(f"http://misnamed.test/?{token}").header("Sidecert-Outcome")
            assert outcome == "server_name_mismatch"
            assert caller.get("http://named.test/").status == 200
    assert not routes.seen(token)


def test_connection_is_not_shared_with_another_host_header(routes: Crowd) -> None:
    """github.com/mosn/mosn/issues/2279: two names at one address, and the upstream wants Host as it was."""
    routes.mix("plain", "virtual-host", "named")


def test_connection_is_not_shared_where_path_method_or_port_choose_the_credential(routes: Crowd) -> None:
    """github.com/envoyproxy/envoy/pull/13966: what the first call had asked for held for later ones as well.
    Here the host is the same, and path, method, the port in the URL or a label before it decide."""
    routes.mix("plain", "path", "method", "port", "wildcard")


def test_connection_is_not_shared_with_another_listener(routes: Crowd) -> None:
    """github.com/OpenSIPS/opensips/issues/1651: the domain that a call came in for was not compared. Here the
    very same bytes come in on two pinned listeners."""
    routes.mix("plain, pinned", "pinned")
    routes.mix("pinned", "other-credential", "plain")


def test_no_two_of_all_routes_share_anything(routes: Crowd) -> None:
    """Eight callers at once, every route that can be called, in random order; some leave in the middle."""
    names = [name for name in routes.members if name not in ("untrusting", "misnamed")]
    made: list[tuple[str, str]] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for name in draw.choices(names, k=12):
            token = routes.token()
            made.append((name, token))
            with Talker(routes.address(name)) as talker:
                talker.send(routes.members[name].line(token))
                if draw.random() < 0.2:
                    routes.upstream.wait_for(lambda token=token: bool(routes.seen(token)))  # type: ignore[misc]
                    talker.reset()
                else:
                    assert talker.read_answer().status == 200

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(work, range(8)))
    owner: dict[int, str] = {}
    for name, token in made:
        route_id = routes.members[name].config["id"]
        assert owner.setdefault(routes.check(name, token), route_id) == route_id
    assert len(made) == 96


# -- a TLS session is never resumed ------------------------------------------------------------------------


def resume(upstream: TlsRecorder, first: Files, then: Files, trust: Path, tls: TlsVersion) -> SSL.Connection:
    """A connection that presents `then` and goes on with the session of one that presented `first`."""
    session = None
    for files in (first, then):
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version({"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}[tls])
        context.use_certificate_chain_file(str(files.certificate))
        context.use_privatekey_file(str(files.key))
        context.load_verify_locations(str(trust))
        with Talker((upstream.host, upstream.port)) as talker:
            connection = SSL.Connection(context, talker.sock)
            talker.sock.setblocking(True)
            if session is not None:
                connection.set_session(session)
            connection.set_connect_state()
            connection.do_handshake()
            connection.send(b"GET /direct HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.recv(65536)
            session = connection.get_session()
            connection.shutdown()  # or OpenSSL takes the session for spoilt
    return connection


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_no_session_is_ever_resumed(tls: TlsVersion, sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """CVE-2016-5419 and CVE-2017-7468 (curl resumed a session under another client certificate),
    github.com/rustls/rustls/issues/2284 (configs with other certificates share a store of sessions).

    The upstream gives tickets and would resume, as is shown first: it then takes bob for alice.
    """

    def once(exchange: Exchange) -> None:
        echo(exchange)
        exchange.finish()

    upstream = peers.recorder(tls=tls, verify="optional")
    resume(upstream, pki.alice, pki.bob, pki.trust, tls)
    assert [(seen.subject, seen.resumed) for seen in upstream.requests] == [("alice", False), ("alice", True)]
    upstream.answer = once
    upstream.requests.clear()
    credentials = {"one": "alice", "two": "bob", "three": "none", "four": "alice"}
    running = sidecar(
        *(route(name, upstream, trust=pki.trust, credential=each) for name, each in credentials.items())
    )
    order = random.Random(5419).choices(list(credentials), k=40)
    with Caller(running.listener) as caller:
        for name in order:
            assert caller.get(f"http://{name}.test/{name}").status == 200
        assert running.ask_admin("POST", "/-/reload").status == 200
        for name in credentials:
            assert caller.get(f"http://{name}.test/{name}").status == 200
    for seen in upstream.requests:
        wanted = credentials[seen.target[1:]]
        assert (seen.subject, seen.resumed) == (None if wanted == "none" else wanted, False)
    assert len({seen.connection for seen in upstream.requests}) == len(upstream.requests) == 44


# -- across reloads ----------------------------------------------------------------------------------------


class Rotating:
    """A credential whose files are replaced."""

    def __init__(self, folder: Path, leaf: Leaf) -> None:
        self._folder = folder
        self.put(leaf)

    def put(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self.files = leaf.write(self._folder, "me")


def reload(running: Sidecar) -> None:
    assert running.ask_admin("POST", "/-/reload").status == 200


def start(
    sidecar: StartSidecar, upstream: TlsRecorder, pki: Pki, folder: Path, **more: object
) -> tuple[Sidecar, Rotating]:
    """A sidecar with one route, and the credential that it goes by."""
    me = Rotating(folder, pki.ca.caller("me"))
    credentials = {"me": me.files.config}
    only = route("orders", upstream, trust=pki.trust, credential="me", **more)
    return sidecar(only, credentials=credentials), me


def fingerprints(upstream: TlsRecorder) -> dict[str, str | None]:
    return {seen.target: seen.fingerprint for seen in list(upstream.requests)}


def held_back(gate: threading.Event) -> AnswerFunction:
    """Answers /held... when the gate is opened, and everything else at once."""

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        if exchange.seen.target.startswith("/held"):
            assert gate.wait(30)
        echo(exchange)

    return answer


def test_renewed_certificate_is_used_from_the_next_call_on(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """github.com/envoyproxy/envoy/issues/28386 and github.com/istio/istio/issues/7630: connections made with
    the old secret live on and are used. The paths, the name, and in every second round the key stay."""
    running, me = start(sidecar, recorder, pki, tmp_path / "me")
    with Caller(running.listener) as caller:
        for number in range(6):
            assert {caller.get(f"http://orders.test/{number}/{n}").status for n in range(3)} == {200}
            for n in range(3):
                assert fingerprints(recorder)[f"/{number}/{n}"] == me.leaf.fingerprint
            me.put(pki.ca.caller("me", key=me.leaf.key if number % 2 else "ec"))
            reload(running)
    assert len({seen.connection for seen in recorder.requests}) == 6  # without those of the proofs


def test_credentials_that_change_places_take_their_connections_along(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """CVE-2021-22924: curl compared what a certificate is called and not what it is. Two credentials swap
    their files, both stay known: no route keeps what was opened under its name before."""
    leafs = [pki.ca.caller("one"), pki.ca.caller("two")]
    both = [Rotating(tmp_path / name, leaf) for name, leaf in zip("ab", leafs, strict=True)]
    running = sidecar(
        *(route(name, recorder, trust=pki.trust, credential=name) for name in "ab"),
        credentials={name: each.files.config for name, each in zip("ab", both, strict=True)},
    )
    with Caller(running.listener) as caller:
        for number in range(4):
            for name, each in zip("ab", both, strict=True):
                assert caller.get(f"http://{name}.test/{name}{number}").status == 200
                assert fingerprints(recorder)[f"/{name}{number}"] == each.leaf.fingerprint
            both[0].put(leafs[(number + 1) % 2])
            both[1].put(leafs[number % 2])
            reload(running)
    assert len({seen.connection for seen in recorder.requests}) == 8  # without those of the proofs


def test_connection_in_use_at_a_reload_never_serves_a_later_call(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """Istio #7630 again, for what was busy: a call that began before ends as who it was, those that waited
    behind it too, and nobody who comes later."""
    gate = threading.Event()
    upstream = peers.recorder(answer=held_back(gate))
    running, me = start(sidecar, upstream, pki, tmp_path / "me", pool={"max_connections": 1})
    before = me.leaf.fingerprint
    with ThreadPoolExecutor(3) as callers:
        held = callers.submit(call, running.listener, "GET", "http://orders.test/held")
        upstream.wait_for(lambda: len(upstream.requests) == 1)
        waiting = callers.submit(call, running.listener, "GET", "http://orders.test/waiting")
        running.wait_for(lambda: running.metric("sidecert_requests_in_progress", route="orders") == 2)
        me.put(pki.ca.caller("me"))
        reload(running)
        assert running.get("http://orders.test/after").status == 200  # the new pool has a place of its own
        gate.set()
        assert (held.result().status, waiting.result().status) == (200, 200)
    assert running.get("http://orders.test/last").status == 200
    after = me.leaf.fingerprint
    assert fingerprints(upstream) == {"/held": before, "/waiting": before, "/after": after, "/last": after}


def test_call_that_is_repeated_after_a_reload_goes_out_as_who_it_began(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """github.com/curl/curl/pull/21667 asks what a connection is compared with: for a second try too, it is
    the call as it began. The connection dies under a GET after the certificate has been rotated."""
    gate = threading.Event()

    def dying(exchange: Exchange) -> None:
        if exchange.seen.target == "/second" and exchange.seen.connection == 1:
            assert gate.wait(30)
            exchange.cut()
        else:
            echo(exchange)

    upstream = peers.recorder(answer=dying)
    running, me = start(sidecar, upstream, pki, tmp_path / "me")
    before = me.leaf.fingerprint
    with Caller(running.listener) as caller, ThreadPoolExecutor(1) as other:
        assert caller.get("http://orders.test/first").status == 200
        second = other.submit(caller.get, "http://orders.test/second")
        upstream.wait_for(lambda: len(upstream.requests) == 2)
        me.put(pki.ca.caller("me"))
        reload(running)
        assert running.get("http://orders.test/third").status == 200
        gate.set()
        assert second.result().status == 200
        assert caller.get("http://orders.test/fourth").status == 200
    seen = [(each.target, each.fingerprint) for each in upstream.requests]
    after = me.leaf.fingerprint
    assert sorted(seen) == sorted(
        [("/first", before), ("/second", before), ("/third", after), ("/second", before), ("/fourth", after)]
    )
    assert running.metric("sidecert_retries_total", route="orders") == 1


def test_handshake_under_way_at_a_reload_serves_only_the_call_that_began_it(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """github.com/sidorares/node-mysql2/pull/4529: what comes late belongs to the config that asked for it.
    The upstream takes its time over the handshake, and the certificate is rotated meanwhile."""
    slow, begun = threading.Event(), threading.Event()

    def configure(context: ssl.SSLContext) -> None:
        noting: Any = context.sni_callback

        def callback(wire: Any, name: str | None, context: ssl.SSLContext) -> None:
            noting(wire, name, context)
            if not begun.is_set():
                begun.set()
                assert slow.wait(30)

        context.sni_callback = callback

    upstream = peers.recorder(configure=configure)
    running, me = start(sidecar, upstream, pki, tmp_path / "me")
    before = me.leaf.fingerprint
    with ThreadPoolExecutor(1) as other:
        early = other.submit(call, running.listener, "POST", "http://orders.test/early", b"x")
        assert begun.wait(10)
        me.put(pki.ca.caller("me"))
        reload(running)
        assert running.get("http://orders.test/late").status == 200
        slow.set()
        assert early.result().status == 200
    assert running.get("http://orders.test/later").status == 200
    after = me.leaf.fingerprint
    assert fingerprints(upstream) == {"/early": before, "/late": after, "/later": after}


def test_route_that_stops_trusting_stops_at_once(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """CVE-2021-22924 with time in between: the trust file is replaced under the same path, and no connection
    that the old one allowed is used."""
    trust = tmp_path / "trust.pem"
    shutil.copy(pki.trust, trust)
    running = sidecar(route("orders", recorder, trust=trust))
    with Caller(running.listener) as caller:
        for file, status in ((pki.trust, 200), (pki.other_trust, 502), (pki.trust, 200)):
            shutil.copy(file, trust)
            reload(running)
            assert [caller.get("http://orders.test/").status for _ in range(2)] == [status] * 2
    assert len(recorder.requests) == 4


def test_route_that_gives_up_its_credential_has_none(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """curl #5617 with a reload in between: `credential: none`, then another, on one keep-alive connection."""
    upstream = peers.recorder(verify="optional")
    running = sidecar(route("orders", upstream, trust=pki.trust))
    text = yaml.safe_load(running.path.read_text())
    with Caller(running.listener) as caller:
        for credential in ("alice", "none", "bob", "none", "alice"):
            text["routes"][0]["credential"] = credential
            running.rewrite(text)
            reload(running)
            assert caller.get(f"http://orders.test/{credential}").status == 200
    for seen in upstream.requests:
        assert "/" + (seen.subject or "none") == seen.target
    assert len({seen.connection for seen in upstream.requests}) == 5


def test_path_that_moves_to_another_route_moves_its_identity(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Envoy #13966 with a reload in between: where a call leads is remembered for one config only."""
    upstream = peers.recorder()
    rest = route("rest", upstream, trust=pki.trust, credential="alice", host="orders.test")
    some = route("some", upstream, trust=pki.trust, credential="bob", host="orders.test")
    running = sidecar(rest, some | {"match": {"host": "orders.test", "path": "/some/**"}})
    text = yaml.safe_load(running.path.read_text())
    with Caller(running.listener) as caller:
        for path in ("/some/**", "/other/**", "/some/**"):
            text["routes"][1]["match"]["path"] = path
            running.rewrite(text)
            reload(running)
            for target in ("/some/a", "/other/a", "/some/a", "/other/a"):
                answer = caller.get(f"http://orders.test{target}")
                assert answer.json()["subject"] == ("bob" if target[:5] == path[:5] else "alice")
    assert len({seen.connection for seen in upstream.requests}) == 2


@pytest.mark.parametrize(
    ("authorization", "shared"),
    [
        ("Negotiate YWJj", False),
        ("ntlm\tYWJj", False),
        ("NTLM", False),
        ("Basic YWJj", True),
        ("Bearer a", True),
    ],
)
def test_connection_that_somebody_has_authenticated_on_is_nobody_elses(
    sidecar: StartSidecar, peers: Peers, pki: Pki, authorization: str, shared: bool
) -> None:
    """CVE-2015-3143 and CVE-2016-0755: NTLM and Negotiate say who calls for a connection, not for a call, and
    curl gave the connection to others."""
    upstream = peers.recorder()
    running = sidecar(route("one", upstream, trust=pki.trust))
    for headers in ({}, {"Authorization": authorization}, {}, {}):
        assert running.get("http://one.test/", headers=headers).status == 200
    before, his, after, last = [seen.connection for seen in upstream.requests]
    assert upstream.requests[1].header("Authorization") == authorization
    assert his == before
    assert (after == his) is shared
    assert last == after


# -- redirects ---------------------------------------------------------------------------------------------


def test_redirect_takes_no_certificate_to_another_origin(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """CVE-2018-1000007 and CVE-2022-27774: curl followed to another host, or another port, with the
    credentials of the first. Here it is the caller's to follow: to a configured route as that, else not."""
    upstream, other, stranger = peers.recorder(), peers.recorder(), peers.recorder()
    at_other = {"host": "127.0.0.1", "match": {"port": other.port}}
    running = sidecar(
        route("orders", upstream, trust=pki.trust, credential="alice"),
        route("part", upstream, trust=pki.trust, credential="bob", host="orders.test", match={"path": "/b"}),
        route("known", other, trust=pki.trust, credential="bob", **at_other),
    )
    places = [f"https://{stranger.address}/", f"//{stranger.address}/", f"https://{other.address}/known"]
    with Caller(running.listener) as caller:
        for status in (301, 302, 303, 307, 308):
            for location in places:
                upstream.answer = fixed(b"", status, ("Location", location))
                for method, body in (("GET", None), ("POST", b"body")):
                    answer = caller.call(method, "http://orders.test/", body)
                    assert (answer.status, answer.header("Location")) == (status, location)
        assert len(upstream.requests) == 30
        assert stranger.connections == other.connections == 0
        # Back to its own origin, under a path that is another route's: as that one.
        upstream.answer = fixed(b"", 302, ("Location", f"https://{upstream.address}/b"))
        followed = caller.get("http://orders.test/").header("Location")
        assert followed == "http://orders.test/b"
        upstream.answer = echo
        assert caller.get(followed).json()["subject"] == "bob"
        assert caller.get(f"http://{other.address}/known").json()["subject"] == "bob"
        assert caller.get(f"http://{stranger.address}/").status == 403
    assert {seen.subject for seen in upstream.requests[:-1]} == {"alice"}
    assert stranger.connections == 0
