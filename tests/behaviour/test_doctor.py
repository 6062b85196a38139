"""`sidecert doctor` shakes hands with real upstreams, tells what it saw, and never sends a request."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from sidecert.cli import main
from support.certs import SERVER_AUTH, Leaf, Pki, expired
from support.front_peers import apache, plain_service
from support.java_peers import JavaKind, java_peers
from support.peers import Peers, raw_peer
from support.recorder import TlsRecorder, TlsVersion
from support.sidecar import PROGRAM, Addressed, config, route, sidecert

TLS: list[TlsVersion] = ["1.2", "1.3"]
SHORT = {"connect": "300ms", "handshake": "300ms"}
OTHER: dict[TlsVersion, TlsVersion] = {"1.2": "1.3", "1.3": "1.2"}


@pytest.fixture(autouse=True)
def _no_config_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDECERT_CONFIG", raising=False)


class Doctor:
    """Writes a config of these routes and runs the command with it."""

    def __init__(self, folder: Path, pki: Pki) -> None:
        self.folder = folder
        self._pki = pki

    def write(
        self, *routes: Mapping[str, Any], credentials: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Path:
        path = self.folder / "sidecert.yaml"
        known = self._pki.credentials if credentials is None else credentials
        path.write_text(yaml.safe_dump(config(routes, known), sort_keys=False))
        return path

    def run(self, *arguments: str, status: int) -> str:
        """What it prints, after a check of its exit status; nothing may be on stderr."""
        ran = sidecert("doctor", *arguments, cwd=self.folder)
        assert (ran.returncode, ran.stderr) == (status, ""), ran.stdout + ran.stderr
        return ran.stdout

    def ask(self, *arguments: str, status: int) -> dict[str, Any]:
        """What `--json` prints."""
        told: dict[str, Any] = json.loads(self.run("--json", *arguments, status=status))
        assert told["accepted"] is (status == 0)
        return told


@pytest.fixture
def doctor(tmp_path: Path, pki: Pki) -> Doctor:
    return Doctor(tmp_path, pki)


def line(report: str, name: str) -> str:
    """The one line of a step, its mark first."""
    found = [each.strip() for each in report.splitlines() if re.match(rf"  \S {re.escape(name)}  ", each)]
    assert len(found) == 1, report
    return re.sub("  +", "  ", found[0])


def next_thing(report: str) -> str:
    last = report.splitlines()[-1]
    assert last.startswith("Next: ")
    return last.removeprefix("Next: ")


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("peer", ["recorder", "haproxy", "openssl"])
def test_good_certificate_is_accepted(
    peer: str, tls: TlsVersion, doctor: Doctor, peers: Peers, pki: Pki
) -> None:
    """Each step in its order, with what was seen; that the other version is missing is not bad."""
    upstream = getattr(peers, peer)(tls=tls)
    doctor.write(route("orders", upstream, trust=pki.trust))
    report = doctor.run("orders", status=0)
    where = f"127.0.0.1:{upstream.port}"
    assert report.startswith(f"{where} (route orders)\n\n")
    names = re.findall(
        r"^  \S (DNS|TCP|TLS 1.3|TLS 1.2|its chain|it asks|without|as alice|clock)  ", report, re.M
    )
    assert names == [
        *("DNS", "TCP", "TLS 1.3", "TLS 1.2", "its chain", "it asks", "without", "as alice", "clock")
    ]
    assert line(report, "DNS") == "· DNS  127.0.0.1 is an address: nothing to look up"
    assert line(report, "TCP").startswith(f"✓ TCP  connected to {where} in ")
    assert re.match(rf"✓ TLS {tls}  \S+, in \d", line(report, f"TLS {tls}"))
    assert line(report, f"TLS {OTHER[tls]}") == (
        f"· TLS {OTHER[tls]}  not to be had: alert protocol_version (70) in answer to our first message"
    )
    assert line(report, "its chain") == (
        f"✓ its chain  issued under the CAs in {pki.trust}, for the name 127.0.0.1"
    )
    assert re.search(
        r"^ +CN=localhost, issued by CN=sidecert test root, until [-0-9: ]+ UTC, for localhost; 127\.0\.0",
        report,
        re.M,
    )
    assert line(report, "it asks").startswith("✓ it asks  for a client certificate from ")
    assert line(report, "without").startswith("· without  a handshake without one is refused: alert ")
    assert line(report, "as alice") == "✓ as alice  accepted"
    assert line(report, "clock").startswith("✓ clock  2")
    assert "✓ The handshake succeeded (ok)\n" in report
    assert "\n3 handshakes were made, and no request was sent.\n" in report
    assert next_thing(report) == "Nothing: make the call. If it fails, its answer and sidecert's log say why."
    if isinstance(upstream, TlsRecorder):
        assert upstream.requests == []


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("peer", ["recorder", "haproxy", "openssl"])
def test_refused_certificate_is_told_and_the_others_are_tried(
    peer: str, tls: TlsVersion, doctor: Doctor, peers: Peers, pki: Pki
) -> None:
    """None, then one of another CA and an expired one, each with its outcome; and alice's, which is taken."""
    upstream = getattr(peers, peer)(tls=tls)
    late = pki.ca.caller("late", **expired()).write(pki.folder / "late", "late")
    credentials = {"stranger": pki.stranger.config, "late": late.config, "alice": pki.alice.config}
    doctor.write(route("orders", upstream, trust=pki.trust, credential="none"), credentials=credentials)
    ran = sidecert("doctor", "--json", "orders", cwd=doctor.folder)
    told = json.loads(ran.stdout)
    assert (ran.returncode, told["outcome"], told["trusted"]) == (1, "client_cert_required", True)
    assert ran.stderr == ""  # that another route's is expired is told where it is tried, below
    assert told["certificate"]["requested"] is told["certificate"]["required"] is True
    assert [(each["id"], each["outcome"]) for each in told["credentials"]] == [
        ("none", "client_cert_required"),
        ("stranger", "client_cert_unknown_ca"),
        ("late", "client_cert_expired"),
        ("alice", "ok"),
    ]
    for each in told["credentials"][:3]:
        assert any(text.startswith("alert ") for text in each["evidence"])
    assert told["handshakes"] == 5
    assert told["next"].startswith(
        f"127.0.0.1:{upstream.port} accepts alice: set `credential: alice` on route orders if "
    )
    if isinstance(upstream, TlsRecorder):
        assert upstream.requests == []


def test_refused_certificate_ends_with_the_words_that_a_call_gets(
    doctor: Doctor, peers: Peers, pki: Pki
) -> None:
    """Title, cause, what was seen and the remedy are those of `explain`."""
    upstream = peers.haproxy()
    doctor.write(
        route("orders", upstream, trust=pki.trust, credential="stranger"),
        credentials={"stranger": pki.stranger.config},
    )
    report = doctor.run("orders", status=1)
    title = "The upstream refused the client certificate (client_cert_unknown_ca)"
    assert line(report, "as stranger") == f"✗ as stranger  {title}"
    end = report[report.index(f"\n✗ {title}\n") :]
    assert f"    {upstream.address} does not know the CA that issued the certificate of the credential" in end
    assert "    - alert unknown_ca (48) after the handshake\n" in end
    assert "\n3 handshakes were made, and no request was sent.\n" in end
    assert next_thing(report).startswith(
        "Append the certificate of its issuer CN=sidecert other root to the file of "
    )


def test_java_gives_no_reason_and_httpsserver_not_even_an_alert(
    doctor: Doctor, pki: Pki, tmp_path: Path
) -> None:
    """What webMethods Integration Server is made of: a close is told as a probable refusal."""
    crl = tmp_path / "crl.pem"
    crl.write_bytes(pki.ca.crl())
    listeners: list[tuple[JavaKind, Leaf]] = [("socket", pki.ca.peer()), ("https", pki.ca.peer())]
    with java_peers(tmp_path / "java", pki.trust, crl, listeners, tls="1.3") as java:
        with_alert, without = java.peers
        doctor.write(
            route("socket", with_alert, trust=pki.trust, credential="stranger"),
            route("https", without, trust=pki.trust, credential="stranger"),
        )
        report = doctor.run("socket", status=1)
        assert line(report, "without").endswith("is refused: alert bad_certificate (42) after the handshake")
        assert "alert certificate_unknown (46) after the handshake" in report
        assert line(report, "as alice") == "✓ as alice  accepted"
        report = doctor.run("https", status=1)
        closed = "the upstream closed the connection after the handshake, without an alert"
        assert line(report, "without").endswith(f"is probably refused: {closed}")
        assert line(report, "as stranger") == (
            "✗ as stranger  The upstream probably refused the client certificate (client_cert_rejected)"
        )
        assert line(report, "as alice") == "✓ as alice  accepted"
        assert java.requests("socket") == java.requests("https") == 0


def test_apache_that_asks_for_a_path_only_is_told_as_far_as_it_can_be_seen(
    doctor: Doctor, pki: Pki, tmp_path: Path
) -> None:
    """Post-handshake authentication and renegotiation come after a request, which is never sent."""
    location = "<Location /secret>\nSSLVerifyClient require\n</Location>"
    with (
        plain_service() as behind,
        apache(
            tmp_path / "apache", pki.upstream, pki.trust, behind, verify="off", extra=location
        ) as upstream,
    ):
        doctor.write(route("orders", upstream, trust=pki.trust))
        report = doctor.run("orders", status=0)
        assert line(report, "it asks") == "! it asks  for no client certificate in the handshake"
        assert "only a call can show that" in report
        assert behind.connections == 0


OPEN = "the handshake passes, as it does without a certificate; the verdict comes in HTTP (nginx: 400)"


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("verify", ["on", "optional"])
def test_handshake_that_passes_anyway_is_not_called_accepted(
    verify: Any, tls: TlsVersion, doctor: Doctor, peers: Peers, pki: Pki
) -> None:
    """nginx judges in its answer: the report says so, and what will surely be wrong with a certificate."""
    upstream = peers.nginx(tls=tls, verify=verify)
    middle = pki.ca.intermediate("middle")
    folder = pki.folder / f"open-{verify}-{tls}"
    certificates = {
        "late": pki.ca.caller("late", **expired()).write(folder, "late"),
        "foreign": pki.stranger,
        "short": middle.caller("short").write(folder, "short", chain=False),
        "whole": middle.caller("whole").write(folder, "whole"),
        "wrong": pki.ca.caller("wrong", usages=[SERVER_AUTH]).write(folder, "wrong"),
    }
    known = {name: files.config for name, files in certificates.items()}
    routes = [route(name, upstream, trust=pki.trust, credential=name) for name in known]
    doctor.write(*routes, route("bare", upstream, trust=pki.trust, credential="none"), credentials=known)
    lists = "the CAs that the upstream lists (CN=sidecert test root)"
    short = f"it comes from CN=middle, which is neither in its file (only the leaf) nor one of {lists}"
    foreign = short.replace("CN=middle", "CN=sidecert other root")
    said = {
        "late": "it expired on ",
        "foreign": foreign,
        "short": short,
        "wrong": "it is not for callers: its extendedKeyUsage is serverAuth, without clientAuth",
    }
    for name, words in said.items():
        report = sidecert("doctor", name, cwd=doctor.folder)
        assert report.returncode == 1
        assert line(report.stdout, f"as {name}") == f"! as {name}  {OPEN}"
        assert words in report.stdout
        assert "\n✗ The handshake passes, as it does without a certificate\n" in report.stdout
        assert "accepted\n" not in report.stdout
    assert next_thing(report.stdout).startswith(
        "Have the certificate of `credentials.wrong` issued again with "
    )
    short_next = next_thing(sidecert("doctor", "short", cwd=doctor.folder).stdout)
    assert short_next.startswith(
        "Append the certificate of its issuer CN=middle to the file of `credentials.short`"
    )
    for name in ("whole", "bare"):
        report = sidecert("doctor", name, cwd=doctor.folder)
        assert report.returncode == 0
        assert "\n! The handshake passes" in report.stdout
        assert next_thing(report.stdout).startswith("Make a call and look at the status of its answer")
    told = json.loads(sidecert("doctor", "--json", "late", cwd=doctor.folder).stdout)
    assert (told["accepted"], told["open"], told["certain"]) == (False, True, False)
    assert told["wrong"][0].startswith("it expired on ")
    # all in short
    ran = sidecert("doctor", cwd=doctor.folder)
    assert ran.returncode == 1
    for name in known:
        mark = "!" if name == "whole" else "✗"
        assert line(ran.stdout, name) == f"{mark} {name}  {upstream.address} as {name}: {OPEN}"
    assert short in ran.stdout
    assert next_thing(ran.stdout) == "sidecert doctor late"


def test_proof_makes_an_open_handshake_an_accepted_one(doctor: Doctor, peers: Peers, pki: Pki) -> None:
    """Upstreams that refuse a handshake without a certificate have accepted those that they let pass."""
    doctor.write(route("orders", peers.haproxy(), trust=pki.trust))
    ran = doctor.ask(status=0)
    assert (ran["routes"][0]["open"], ran["routes"][0]["wrong"], ran["handshakes"]) == (False, [], 2)


def test_which_of_the_listed_cas_issued_the_certificate_is_told(
    doctor: Doctor, peers: Peers, pki: Pki
) -> None:
    """haproxy lists its CAs: alice's is among them, the stranger's is not."""
    doctor.write(route("orders", peers.haproxy(), trust=pki.trust, credential="stranger"))
    told = doctor.ask("orders", status=1)
    assert told["certificate"]["acceptable_cas"] == ["CN=sidecert test root"]
    chains = {each["id"]: each["chains_to"] for each in told["credentials"]}
    assert chains == {"stranger": [], "alice": ["CN=sidecert test root"], "bob": ["CN=sidecert test root"]}
    assert "it comes from CN=sidecert other root, which is neither in its file" in doctor.run(
        "orders", status=1
    )


def test_upstream_that_asks_for_no_certificate(doctor: Doctor, peers: Peers, pki: Pki) -> None:
    """No certificate is tried, since none would be sent; that it may ask later is said."""
    upstream = peers.recorder(verify="off")
    doctor.write(route("orders", upstream, trust=pki.trust))
    report = doctor.run("orders", status=0)
    assert line(report, "it asks") == "! it asks  for no client certificate in the handshake"
    assert "it may still ask once it knows the path of a call, by post-handshake authentication" in report
    assert line(report, "as any") == "· as any  not tried: it is not asked for, and would not be sent"
    assert "\n2 handshakes were made" in report
    assert "on which port" in next_thing(report)


def test_upstream_without_tickets_is_accepted_as_far_as_it_can_be_seen(
    doctor: Doctor, peers: Peers, pki: Pki
) -> None:
    """TLS 1.3 with no ticket and no alert: no proof, and the report does not claim any."""

    def no_tickets(context: Any) -> None:
        context.num_tickets = 0

    upstream = peers.recorder(tls="1.3", configure=no_tickets)
    doctor.write(route("orders", upstream, trust=pki.trust))
    report = doctor.run("orders", status=0)
    assert line(report, "as alice") == "✓ as alice  accepted as far as it can be seen: no word against it"
    told = doctor.ask("orders", "--credential", "stranger", status=1)
    assert told["outcome"] == "client_cert_unknown_ca"


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("server_untrusted", "The upstream's certificate is not trusted"),
        ("server_expired", "The upstream's certificate is expired"),
        ("server_name_mismatch", "The upstream's certificate is for another name"),
    ],
)
def test_upstream_that_is_not_proven_is_looked_at_without_a_certificate(
    outcome: str, words: str, tls: TlsVersion, doctor: Doctor, peers: Peers, pki: Pki
) -> None:
    """The diagnosis goes on behind the bad chain, and no credential is shown to whoever that is."""
    folder = pki.folder / outcome
    files = {
        "server_untrusted": pki.other_ca.peer(),
        "server_expired": pki.ca.peer(**expired()),
        "server_name_mismatch": pki.ca.peer("elsewhere.test"),
    }[outcome].write(folder, "upstream")
    upstream = peers.recorder(files=files, tls=tls)
    doctor.write(route("orders", upstream, trust=pki.trust))
    report = doctor.run("orders", status=1)
    assert line(report, "its chain") == f"✗ its chain  {words} ({outcome})"
    assert line(report, "it asks").startswith("✓ it asks  for a client certificate")
    assert line(report, "without").startswith("· without  a handshake without one is refused: alert ")
    assert line(report, "as any") == (
        "! as any  not tried: a certificate is shown only to an upstream that has proven who it is"
    )
    assert f"\n✗ {words} ({outcome})\n" in report
    if outcome == "server_expired":
        assert "EXPIRED on " in report
        assert line(report, "clock").startswith("! clock  ")
    elif outcome == "server_name_mismatch":
        assert ", for elsewhere.test\n" in report
    else:
        end = f"its end leads to CN=sidecert other root, which is not among the CAs in {pki.trust}"
        assert end in report
    # each handshake that came to the certificate brought none
    assert upstream.handshakes == 0
    upstream.wait_for(lambda: len(upstream.failures) == 2)
    assert sum("PEER_DID_NOT_RETURN_A_CERTIFICATE" in text for text in upstream.failures) == 1
    told = doctor.ask("orders", status=1)
    assert (told["outcome"], told["trusted"], told["credentials"]) == (outcome, False, [])
    assert told["chain"][0]["subject"]


def test_route_that_checks_nothing_gets_its_own_certificate_and_no_other(
    doctor: Doctor, peers: Peers, pki: Pki
) -> None:
    """`trust: insecure`: as in calls; who the upstream is nobody knows, so the others are kept back."""
    upstream = peers.recorder(files=pki.other_ca.peer().write(pki.folder / "insecure", "upstream"))
    doctor.write(route("orders", upstream, trust="insecure", credential="stranger"))
    for what in ("orders", upstream.address):
        ran = sidecert("doctor", "--json", what, cwd=doctor.folder)
        told = json.loads(ran.stdout)
        assert (ran.returncode, told["outcome"], told["trusted"]) == (1, "client_cert_unknown_ca", None)
        assert [each["id"] for each in told["credentials"]] == ["stranger"]


FAILING: dict[str, tuple[Callable[[Peers], Addressed], str, str]] = {
    "closed-port": (lambda peers: peers.closed_port(), "connect_refused", "TCP"),
    "black-hole": (lambda peers: peers.black_hole(), "connect_timeout", "TCP"),
    "silent": (lambda peers: peers.silent(), "handshake_timeout", "TLS 1.2"),
    "plain-http": (lambda peers: peers.plain_http(), "not_tls", "TLS 1.3"),
    "ssh": (lambda peers: peers.banner(), "not_tls", "TLS 1.3"),
    "closes-at-accept": (lambda peers: peers.closes_at_accept(), "closed_in_handshake", "TLS 1.2"),
    "closes-after-hello": (lambda peers: peers.closes_after_hello(), "closed_in_handshake", "TLS 1.2"),
}
TLS_PORT = ("Set `upstream.port` of the route to the port where the upstream takes TLS",)
LOOK_THERE = ("`upstream.server_name` (127.0.0.1)", "openssl s_client -connect 127.0.0.1:")
REMEDIES = {
    "closed-port": ("Check that the upstream runs", "nc -vz 127.0.0.1 "),
    "black-hole": ("Have the way from here", "`upstream.timeouts.connect`"),
    "silent": ("is a TLS port", "`upstream.timeouts.handshake`"),
    "plain-http": TLS_PORT,
    "ssh": TLS_PORT,
    "closes-at-accept": LOOK_THERE,
    "closes-after-hello": LOOK_THERE,
}


@pytest.mark.parametrize("name", FAILING)
def test_upstream_that_cannot_be_used_has_a_failed_step_and_a_remedy(
    name: str, doctor: Doctor, peers: Peers, pki: Pki
) -> None:
    """Where it ended, the outcome that calls have too, and what to do; within the route's limits."""
    make, outcome, step = FAILING[name]
    doctor.write(route("orders", make(peers), trust=pki.trust, timeouts=SHORT))
    began = time.monotonic()
    report = doctor.run("orders", status=1)
    assert time.monotonic() - began < 5
    assert line(report, step).startswith(f"✗ {step}  ")
    assert re.search(rf"^✗ .+ \({outcome}\)$", report, re.M)
    assert all(words in next_thing(report) for words in REMEDIES[name])
    assert "as alice" not in report


def test_name_that_does_not_exist(doctor: Doctor, pki: Pki) -> None:
    """It ends at the first step."""
    settings = {"host": "no-such-host.invalid", "trust": str(pki.trust), "timeouts": {"connect": "3s"}}
    doctor.write({"id": "orders", "match": {"host": "x.test"}, "upstream": settings, "credential": "alice"})
    report = doctor.run("orders", status=1)
    assert line(report, "DNS") == "✗ DNS  The upstream's name could not be looked up (dns_failed)"
    assert "\n0 handshakes were made" in report


def test_version_that_the_route_forbids(doctor: Doctor, peers: Peers, pki: Pki) -> None:
    """What the upstream does speak is told all the same."""
    upstream = peers.recorder(tls="1.2")
    doctor.write(route("orders", upstream, trust=pki.trust, tls={"min": 1.3, "max": 1.3}))
    report = doctor.run("orders", status=1)
    assert line(report, "TLS 1.3").startswith("✗ TLS 1.3  not to be had: alert protocol_version (70)")
    assert line(report, "TLS 1.2").endswith("; `upstream.tls` of the route does not allow it")
    assert "(protocol_mismatch)\n" in report
    assert "`upstream.tls` of the route" in next_thing(report)


def test_address_is_tried_with_every_credential(doctor: Doctor, peers: Peers, pki: Pki) -> None:
    """HOST:PORT under the settings of the route that leads there; one that is accepted is a yes."""
    upstream = peers.recorder()
    doctor.write(route("orders", upstream, trust=pki.trust, credential="stranger"))
    told = doctor.ask(upstream.address, status=0)
    assert (told["route"], told["outcome"]) == ("orders", "ok")
    tried = {each["id"]: each["outcome"] for each in told["credentials"]}
    assert list(tried.items()) == [
        ("stranger", "client_cert_unknown_ca"),
        ("alice", "ok"),
        ("bob", "ok"),
    ]
    assert told["next"] == "Set `credential: alice` on route orders."
    told = doctor.ask(upstream.address, "--credential", "bob", status=0)
    assert [each["id"] for each in told["credentials"]] == ["bob"]
    told = doctor.ask("orders", "--credential", "none", status=1)
    assert (told["outcome"], told["handshakes"]) == ("client_cert_required", 2)
    assert upstream.requests == []


def test_address_needs_no_config(
    tmp_path: Path, peers: Peers, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's CAs and no certificate; what to do next is to get one into a config."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.trust))
    demanding, open_to_all = peers.recorder(), peers.recorder(verify="off")
    ran = sidecert("doctor", demanding.address, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert "(no route leads there: the defaults are used)" in ran.stdout
    assert line(ran.stdout, "without").startswith("✗ without  a handshake without one is refused: alert ")
    assert next_thing(ran.stdout).startswith("Put your certificate and its key under `credentials`")
    ran = sidecert("doctor", open_to_all.address, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.other_trust))
    ran = sidecert("doctor", open_to_all.address, cwd=tmp_path)
    assert ran.returncode == 1
    assert "(server_untrusted)" in ran.stdout


def test_all_routes_in_short(doctor: Doctor, peers: Peers, pki: Pki) -> None:
    """A line for each, in the config's order, and the first bad one to go on with."""
    upstream = peers.recorder()
    doctor.write(
        route("slow", peers.silent(), trust=pki.trust, timeouts=SHORT),
        route("orders", upstream, trust=pki.trust),
        route("odd", upstream, trust=pki.trust, credential="stranger"),
        route("open", peers.recorder(verify="off"), trust=pki.trust),
        {"id": "wild", "match": {"host": "*.partners.test"}, "credential": "alice"},
    )
    report = doctor.run(status=1)
    where = upstream.address
    assert [re.sub("  +", "  ", each.strip()) for each in report.splitlines()[1:5]] == [
        f"✓ orders  {where} as alice: accepted",
        f"✗ odd  {where} as stranger: The upstream refused the client certificate (client_cert_unknown_ca)",
        line(report, "open"),
        "· wild  not tried: its host comes from the call (*.partners.test); sidecert doctor HOST:PORT",
    ]
    assert line(report, "slow").endswith("(handshake_timeout)")
    assert line(report, "open").startswith("! open  ")
    assert line(report, "open").endswith("as alice: accepted, but not asked for its certificate")
    assert "\n5 handshakes were made, and no request was sent.\n" in report
    assert next_thing(report) == "sidecert doctor slow"
    told = doctor.ask(status=1)
    assert [each["outcome"] for each in told["routes"]] == [
        *("handshake_timeout", "ok", "client_cert_unknown_ca", "ok")
    ]
    assert (told["handshakes"], told["not_tried"]) == (5, ["wild"])
    doctor.write(route("orders", upstream, trust=pki.trust))
    assert doctor.ask(status=0)["next"].startswith("Nothing: make the calls.")
    assert upstream.requests == []


def has_ended(sock: socket.socket) -> bool:
    """Whether the other side has closed; at once, even where nobody has read that far yet."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def test_routes_to_one_upstream_are_tried_one_at_a_time(doctor: Doctor, peers: Peers, pki: Pki) -> None:
    """Some gateways lock out who comes too often: each attempt is over before the next one begins."""
    lock, going_on, most, total = threading.Lock(), list[socket.socket](), 0, 0

    def count(sock: socket.socket) -> None:
        nonlocal most, total
        with lock:
            total += 1
            going_on.append(sock)
            # not those that have ended and whose threads have only not been told yet
            most = max(most, sum(not has_ended(each) for each in going_on))
        try:
            while sock.recv(65536):
                pass
        finally:
            with lock:
                going_on.remove(sock)

    with raw_peer("counting", count) as peer:
        doctor.write(*(route(f"r{n}", peer, trust=pki.trust, timeouts=SHORT) for n in range(4)))
        assert doctor.ask(status=1)["handshakes"] == 4
    assert (total, most) == (4, 1)


def test_different_upstreams_do_not_wait_for_each_other(doctor: Doctor, pki: Pki) -> None:
    """Each of eight says nothing until all the others have been called too."""
    all_called = threading.Barrier(8)

    def wait_for_the_others(sock: socket.socket) -> None:
        try:
            all_called.wait(20)
        except threading.BrokenBarrierError:
            pass

    with ExitStack() as stack:
        eight = [stack.enter_context(raw_peer(f"s{n}", wait_for_the_others)) for n in range(8)]
        patient = {"handshake": "30s"}
        doctor.write(*(route(each.name, each, trust=pki.trust, timeouts=patient) for each in eight))
        told = doctor.ask(status=1)
    assert not all_called.broken
    assert [each["outcome"] for each in told["routes"]] == ["closed_in_handshake"] * 8


SHAPE = {
    "upstream": str,
    "route": str,
    "server_name": str,
    "trust": str,
    "accepted": bool,
    "open": bool,
    "wrong": [str],
    "outcome": str,
    "title": str,
    "cause": str,
    "evidence": [str],
    "remedy": str,
    "certain": bool,
    "next": str,
    "handshakes": int,
    "addresses": [str],
    "tls": [
        {
            "version": str,
            "agreed": bool,
            "outcome": str,
            "cipher": str,
            "address": str,
            "connect_seconds": float,
            "handshake_seconds": float,
        }
    ],
    "chain": [
        {
            "subject": str,
            "issuer": str,
            "names": [str],
            "not_before": str,
            "not_after": str,
            "fingerprint": str,
        }
    ],
    "trusted": bool,
    "certificate": {"requested": bool, "required": bool, "acceptable_cas": [str]},
    "credentials": [
        {
            "id": str,
            "accepted": bool,
            "proven": bool,
            "open": bool,
            "wrong": [str],
            "chains_to": [str],
            "outcome": str,
            "title": str,
            "cause": str,
            "evidence": [str],
            "remedy": str,
            "certain": bool,
        }
    ],
    "steps": [{"name": str, "status": str, "text": str, "details": [str]}],
}


def check_shape(value: Any, shape: Any, at: str = "") -> None:
    if isinstance(shape, dict):
        assert list(value) == list(shape), at
        for key in shape:
            check_shape(value[key], shape[key], f"{at}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), at
        for each in value:
            check_shape(each, shape[0], f"{at}[]")
    else:
        assert type(value) is shape, (at, value)


def test_json_has_everything_in_a_fixed_shape(doctor: Doctor, peers: Peers, pki: Pki) -> None:
    """Scripts rely on it: the same keys always, whatever came of it."""
    doctor.write(
        route("orders", peers.haproxy(), trust=pki.trust),
        route("closed", peers.closed_port(), trust=pki.trust),
    )
    told = doctor.ask("orders", status=0)
    check_shape(told, SHAPE)
    assert [each["version"] for each in told["tls"]] == ["1.3", "1.2"]
    assert {each["status"] for each in told["steps"]} <= {"ok", "failed", "warning", "info"}
    assert re.fullmatch(r"[0-9a-f]{64}", told["chain"][0]["fingerprint"])
    assert list(doctor.ask("closed", status=1)) == list(SHAPE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], 'no route is called "nonsense"'),
        (["order"], "did you mean orders?"),
        (["orders", "--credential", "alicia"], 'no credential is called "alicia"; did you mean alice?'),
        (["--credential", "alice"], "--credential needs a ROUTE or HOST:PORT"),
        (["https://orders.test:8443/"], "is neither a route nor HOST:PORT: a URL"),
        (["orders.test:"], "it needs a port behind its last colon"),
        (["orders.test:70000"], "it needs a port behind its last colon"),
        (["::1:8443"], "an IPv6 address needs brackets: [::1]:8443"),
        (["wild"], "route wild takes its host from the call (*.partners.test); name one: sidecert doctor "),
    ],
)
def test_bad_usage_is_status_2(
    arguments: list[str], words: str, doctor: Doctor, peers: Peers, pki: Pki
) -> None:
    """With what would be right; nothing is called."""
    path = doctor.write(
        route("orders", peers.closed_port(), trust=pki.trust),
        {"id": "wild", "match": {"host": "*.partners.test"}, "credential": "alice"},
    )
    ran = CliRunner().invoke(main, ["doctor", "-c", str(path), *arguments])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert words in ran.stderr
    assert isinstance(ran.exception, SystemExit)


def test_config_that_is_missing_or_broken_is_status_2(tmp_path: Path) -> None:
    """Also for HOST:PORT where a file is named."""
    for arguments in ([], ["orders"], ["-c", "missing.yaml", "localhost:8443"]):
        ran = sidecert("doctor", *arguments, cwd=tmp_path)
        assert (ran.returncode, ran.stdout) == (2, "")
    assert "-c" in sidecert("doctor", "localhost:1", "--credential", "alice", cwd=tmp_path).stderr
    (tmp_path / "sidecert.yaml").write_text("version: 1\nroutes: []\ncolour: blue\n")
    ran = sidecert("doctor", "localhost:8443", cwd=tmp_path)
    assert ran.returncode == 2
    assert "colour" in ran.stderr


def on_a_terminal(folder: Path, *arguments: str, until: bytes = b"", **environ: str) -> tuple[int, bytes]:
    """Its exit status and what it writes to a terminal of 100 columns; interrupted once `until` is seen."""
    own, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", **environ}
    process = subprocess.Popen(
        [PROGRAM, "doctor", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            if not select.select([own], [], [], 1)[0]:
                continue
            try:
                piece = os.read(own, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            written += piece
            if until and until in written:
                process.send_signal(signal.SIGINT)
                until = b""
        return process.wait(10), written
    finally:
        process.kill()
        process.wait()
        os.close(own)


def test_terminal_shows_what_is_being_done(doctor: Doctor, peers: Peers, pki: Pki) -> None:
    """A spinner with the step while it lasts, colours, long lines wrapped, and the cursor back at the end."""
    doctor.write(route("orders", peers.recorder(), trust=pki.trust))
    status, written = on_a_terminal(doctor.folder, "orders")
    text = written.decode()
    assert status == 0
    assert "TLS 1.3 with 127.0.0.1:" in text
    assert "as alice ..." in text
    assert "\x1b[32m✓" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    folded, _, last = plain.partition("Next: ")
    assert max(len(each) for each in re.split(r"[\r\n]+", folded)) <= 100
    assert last.strip().endswith("its answer and sidecert's log say why.")
    assert "no request was sent." in plain
    status, written = on_a_terminal(doctor.folder)
    assert status == 0
    assert b"routes done: 0 of 1 ..." in written
    status, written = on_a_terminal(doctor.folder, "orders", "--json")
    assert status == 0
    progress, _, document = written.partition(b"{")  # the one on stderr, the other on stdout
    assert b"with 127.0.0.1:" in progress or b"as alice ..." in progress
    assert b" ..." not in document


def test_ctrl_c_ends_it_cleanly(doctor: Doctor, peers: Peers, pki: Pki) -> None:
    """In the middle of a handshake that never ends: no traceback, the cursor back, status 130."""
    doctor.write(route("orders", peers.silent(), trust=pki.trust, timeouts={"handshake": "60s"}))
    for arguments in (["orders"], []):
        status, written = on_a_terminal(doctor.folder, *arguments, until=b" ...")
        assert status == 130
        assert b"Interrupted." in written
        assert b"Traceback" not in written
        assert written.rindex(b"\x1b[?25h") > written.rindex(b"\x1b[?25l")


def test_terminal_without_utf_8_gets_ascii(
    doctor: Doctor, peers: Peers, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks and names of a certificate alike."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    files = pki.ca.issue("Märchen", hosts=["127.0.0.1"]).write(pki.folder / "maerchen", "upstream")
    doctor.write(route("orders", peers.recorder(files=files), trust=pki.trust, credential="stranger"))
    report = doctor.run("orders", status=1)
    assert report.isascii()
    assert line(report, "TCP").startswith("+ TCP  ")
    assert line(report, "as stranger").startswith("x as stranger  ")
    assert "CN=M\\xe4rchen" in report


def test_hostile_upstream_cannot_drive_the_terminal(doctor: Doctor, peers: Peers, pki: Pki) -> None:
    """Names in its certificate are printed without their control characters."""
    files = pki.ca.issue("evil\x1b[2J\r\nNext: pay", hosts=["127.0.0.1"]).write(pki.folder / "evil", "evil")
    doctor.write(route("orders", peers.recorder(files=files), trust=pki.trust))
    report = doctor.run("orders", status=0)
    assert "\x1b" not in report
    assert "\r" not in report
    assert [each for each in report.splitlines() if each.startswith("Next:")] == [report.splitlines()[-1]]


def test_hostile_upstream_cannot_hold_it_up(doctor: Doctor, pki: Pki) -> None:
    """Handshake records without end, fast or slow, end in one outcome."""

    def flood(sock: socket.socket) -> None:
        sock.recv(65536)
        while True:
            sock.sendall(b"\x16\x03\x03\x40\x00\x02\xff\xff\xff" + b"A" * 16380)

    def drip(sock: socket.socket) -> None:
        sock.recv(65536)
        for byte in b"\x16\x03\x03\x40\x00" + b"\x02\x00\x3f\xff" + b"\x03" * 16000:
            sock.sendall(bytes([byte]))
            time.sleep(0.01)

    for serve in (flood, drip):
        with raw_peer("hostile", serve) as peer:
            doctor.write(route("orders", peer, trust=pki.trust, timeouts=SHORT))
            began = time.monotonic()
            told = doctor.ask("orders", status=1)
            assert time.monotonic() - began < 5
            assert told["outcome"] in ("tls_error", "handshake_timeout")
