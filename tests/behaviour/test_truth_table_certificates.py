"""Every server, TLS version and kind of certificate: one outcome, the true one, wherever it is told.

What is expected stands here, from what TLS and these servers really do, and comes from no code of the
product.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.certs import SERVER_AUTH, Files, Leaf, Pki, expired, not_yet_valid, write_private
from support.front_peers import apache, plain_service, stunnel
from support.java_peers import JavaKind, java_peers
from support.peers import haproxy, nginx, openssl_s_server
from support.recorder import TlsVersion, tls_recorder
from support.sidecar import Addressed, StartSidecar, route
from support.truth import Cell, TruthTable, calls

TLS: list[TlsVersion] = ["1.2", "1.3"]
Expected = tuple[str, str]
"""The outcome, and how it is told."""

# -- what must be --------------------------------------------------------------------------------------

CERTIFICATES = {
    "right": "The right certificate",
    "chained": "The right certificate, from an intermediate CA",
    "none": "No certificate",
    "other-ca": "A certificate of another CA",
    "expired": "An expired certificate",
    "not-yet-valid": "A certificate that is not valid yet",
    "revoked": "A revoked certificate",
    "wrong-eku": "A certificate for servers only (EKU)",
    "no-intermediate": "A certificate whose intermediate is missing",
}
FINE = {"right": ("ok", "HTTP 200"), "chained": ("ok", "HTTP 200")}

OPENSSL: dict[str, Expected] = {
    **FINE,
    "none": ("client_cert_required", "alert certificate_required"),
    "other-ca": ("client_cert_unknown_ca", "alert unknown_ca"),
    "expired": ("client_cert_expired", "alert certificate_expired"),
    # RFC 8446 has no alert for it; OpenSSL's choice gives no reason.
    "not-yet-valid": ("client_cert_rejected", "alert bad_certificate"),
    "revoked": ("client_cert_revoked", "alert certificate_revoked"),
    "wrong-eku": ("client_cert_unsupported", "alert unsupported_certificate"),
    "no-intermediate": ("client_cert_unknown_ca", "alert unknown_ca"),
}
OPENSSL_12 = {**OPENSSL, "none": ("client_cert_required", "alert handshake_failure")}
NGINX: dict[str, Expected] = {**dict.fromkeys(CERTIFICATES, ("ok", "HTTP 400")), **FINE}
NGINX_OPTIONAL = {**NGINX, "none": ("ok", "HTTP 200")}
JAVA_SOCKET: dict[str, Expected] = {
    **dict.fromkeys(CERTIFICATES, ("client_cert_rejected", "alert certificate_unknown")),
    **FINE,
    "none": ("client_cert_required", "alert bad_certificate"),
}
JAVA_HTTPS: dict[str, Expected] = {
    **dict.fromkeys(CERTIFICATES, ("client_cert_rejected", "closes, no alert")),
    **FINE,
    "none": ("client_cert_required", "closes, no alert"),
}
SERVERS: dict[str, dict[TlsVersion, dict[str, Expected]]] = {
    "nginx": {"1.2": NGINX, "1.3": NGINX},
    "nginx, optional": {"1.2": NGINX_OPTIONAL, "1.3": NGINX_OPTIONAL},
    "haproxy": {"1.2": OPENSSL_12, "1.3": OPENSSL},
    "openssl s_server": {"1.2": OPENSSL_12, "1.3": OPENSSL},
    "Python ssl": {"1.2": OPENSSL_12, "1.3": OPENSSL},
    "stunnel": {"1.2": OPENSSL_12, "1.3": OPENSSL},
    "Apache": {"1.2": OPENSSL_12, "1.3": OPENSSL},
    "Java SSLServerSocket": {"1.2": JAVA_SOCKET, "1.3": JAVA_SOCKET},
    "Java HttpsServer": {"1.2": JAVA_HTTPS, "1.3": JAVA_HTTPS},
}
LISTS_NO_CAS = ("Python ssl",)
# They complete their own chain from the CAs that they trust; then it is the root that OpenSSL dislikes.
SENDS_ITS_ROOT = ("Python ssl", "stunnel", "Apache")

# Of the upstream's certificate: the outcome, OpenSSL's code, and what the route says to bring it about.
UPSTREAM_CERTIFICATES: dict[str, tuple[str, str]] = {
    "The upstream's certificate is of an unknown CA": ("server_untrusted", "code 20"),
    "The upstream's certificate is expired": ("server_expired", "code 10"),
    "The upstream's certificate has another name": ("server_name_mismatch", "code 62"),
    "The upstream's certificate has another address": ("server_name_mismatch", "code 64"),
}

# -- the servers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identities:
    """The callers' certificates by condition, and what the servers need to judge them."""

    files: dict[str, Files]
    crl: Path
    upstream: Leaf
    late_upstream: Leaf


@pytest.fixture(scope="module")
def identities(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Identities:
    folder = tmp_path_factory.mktemp("identities")
    intermediate = pki.ca.intermediate()
    revoked = pki.ca.caller("revoked")
    chained = intermediate.caller("chained")
    files = {
        "right": pki.alice,
        "chained": chained.write(folder),
        "other-ca": pki.stranger,
        "expired": pki.ca.caller("expired", **expired()).write(folder),
        "not-yet-valid": pki.ca.caller("early", **not_yet_valid()).write(folder),
        "revoked": revoked.write(folder),
        "wrong-eku": pki.ca.caller("wrong", usages=(SERVER_AUTH,)).write(folder),
        "no-intermediate": chained.write(folder, "lone", chain=False),
    }
    crl = write_private(folder / "crl.pem", pki.ca.crl(revoked) + intermediate.crl())
    return Identities(files, crl, pki.ca.peer(), pki.ca.peer(**expired()))


class Starter:
    """Starts a server by its name, once with a good certificate of its own and once with an expired one."""

    def __init__(self, folder: Path, stack: ExitStack, pki: Pki, identities: Identities) -> None:
        self._folder, self._stack, self._pki, self._identities = folder, stack, pki, identities

    def start(self, name: str, tls: TlsVersion) -> tuple[Addressed, Addressed]:
        """(with the good certificate, with the expired one)"""
        leafs = (self._identities.upstream, self._identities.late_upstream)
        if name.startswith("Java"):
            kind: JavaKind = "socket" if name.endswith("Socket") else "https"
            listeners = [(kind, leaf) for leaf in leafs]
            java = java_peers(
                self._folder / "java", self._pki.trust, self._identities.crl, listeners, tls=tls
            )
            good, late = self._stack.enter_context(java).peers
            return good, late
        good, late = (
            self._one(name, tls, leaf.write(self._folder, f"own{n}")) for n, leaf in enumerate(leafs)
        )
        return good, late

    def _one(self, name: str, tls: TlsVersion, own: Files) -> Addressed:
        crl, trust = self._identities.crl, self._pki.trust
        folder = self._folder / own.key.stem
        enter = self._stack.enter_context
        match name:
            case "nginx" | "nginx, optional":
                verify = "optional" if "optional" in name else "on"
                return enter(nginx(folder, own, trust, tls=tls, verify=verify, extra=f"ssl_crl {crl};"))
            case "haproxy":
                return enter(haproxy(folder, own, trust, tls=tls, bind=f"crl-file {crl}"))
            case "openssl s_server":
                # -CRL would take the first of several only.
                both = write_private(self._folder / "both.pem", trust.read_bytes() + crl.read_bytes())
                return enter(openssl_s_server(folder, own, both, tls=tls, arguments=("-crl_check",)))
            case "Python ssl":
                return enter(
                    tls_recorder(own, trust, tls=tls, configure=lambda context: _revoke(context, crl))
                )
            case "stunnel":
                return enter(stunnel(folder, own, trust, enter(plain_service()), tls=tls, crl=crl))
            case "Apache":
                return enter(apache(folder, own, trust, enter(plain_service()), tls=tls, crl=crl))
        raise AssertionError(name)


def _revoke(context: ssl.SSLContext, crl: Path) -> None:
    context.load_verify_locations(crl)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


@pytest.fixture
def starter(pki: Pki, identities: Identities, tmp_path: Path) -> Iterator[Starter]:
    with ExitStack() as stack:
        yield Starter(tmp_path / "servers", stack, pki, identities)


# -- the tests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("server", SERVERS)
def test_certificate_of_each_kind_has_its_outcome(
    server: str,
    tls: TlsVersion,
    sidecar: StartSidecar,
    starter: Starter,
    pki: Pki,
    identities: Identities,
    truth_table: TruthTable,
) -> None:
    """What the server thinks of our certificate, and what we think of the server's."""
    good, late = starter.start(server, tls)
    misled: dict[str, dict[str, Any]] = {
        "untrusted": {"peer": good, "trust": pki.other_trust},
        "late": {"peer": late, "trust": pki.trust},
        "misnamed": {"peer": good, "trust": pki.trust, "server_name": "elsewhere.test"},
        "misplaced": {"peer": good, "trust": pki.trust, "server_name": "127.0.0.2"},
    }
    running = sidecar(
        *(
            route(name, good, trust=pki.trust, credential="none" if name == "none" else name)
            for name in CERTIFICATES
        ),
        *(route(name, credential="right", **spec) for name, spec in misled.items()),
        credentials={name: files.config for name, files in identities.files.items()},
    )
    for name, cell in calls(running, CERTIFICATES):
        outcome, how = SERVERS[server][tls][name]
        fields = cell.check(outcome, how)
        check_certificate_request(cell, server, fields)
        truth_table.saw(CERTIFICATES[name], server, tls, outcome, cell.how)
    for (_, cell), (condition, (outcome, code)) in zip(
        calls(running, misled), UPSTREAM_CERTIFICATES.items(), strict=True
    ):
        cell.check(outcome, "code 19" if code == "code 20" and server in SENDS_ITS_ROOT else code)
        assert cell.metric("sidecert_client_cert_requests_total", requested="yes") == 0
        truth_table.saw(condition, server, tls, outcome, cell.how)


def check_certificate_request(cell: Cell, server: str, fields: Any) -> None:
    """It was counted as asked for; the evidence has the CAs that the server lists, and ours among them."""
    requests = {
        word: cell.metric("sidecert_client_cert_requests_total", requested=word) for word in ("yes", "no")
    }
    assert requests == {"yes": 1, "no": 0}, (server, cell.route)
    if fields is None:
        return
    lines = fields["evidence"]
    assert any(line.startswith("the upstream asked for a client certificate") for line in lines)
    listed = "the CAs that the upstream accepts: CN=sidecert test root"
    assert (listed in lines) is (server not in LISTS_NO_CAS), lines
    if server in LISTS_NO_CAS or cell.route == "none":
        assert not any("chains to" in line for line in lines)
    else:
        stranger = cell.route in ("other-ca", "no-intermediate")
        ours = "none" if stranger else "CN=sidecert test root"
        assert f"of these, our certificate chains to {ours}" in lines
