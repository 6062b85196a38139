"""The commands that remedies name can be copied: they run as they stand and show what they are for."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from sidecert.errors_page import CERTIFICATE, SAMPLES
from sidecert.explain import explain
from sidecert.explain_http import explain_answer
from sidecert.http_verdict import Signature
from sidecert.outcome import Observation
from support.certs import Pki
from support.peers import Peer, Peers

SHOWS = {
    "-dates": "notAfter=",
    "-ext extendedKeyUsage": "TLS Web Client Authentication",
    "-showcerts": "-----BEGIN CERTIFICATE-----",
    "-cert CRT -key KEY": "Verify return code: 0",
    "-tls1_2": "TLSv1.2",
    "-nameopt RFC2253": "subject=",
    "curl -v --cert": "HTTP/1.1 200",
    "getent hosts": "localhost",
    "keytool -importcert": "Certificate was added to keystore",
    "keytool -exportcert": "-----BEGIN CERTIFICATE-----",
}


def remedies(upstream: str) -> list[str]:
    """All that can be told of an upstream at that address."""
    told = []
    for outcome, samples in SAMPLES.items():
        for seen in samples:
            verdict = explain(
                outcome,
                seen,
                upstream=upstream,
                server_name="localhost",
                credential="alice",
                certificate=CERTIFICATE if seen.certificate_sent else None,
                now=time.time(),
            )
            told.append(verdict.remedy)
    for signature in Signature:
        for asked in (True, False):
            answered = explain_answer(
                signature,
                Observation(certificate_requested=asked, certificate_sent=True),
                status=400,
                server="",
                upstream=upstream,
                credential="alice",
                certificate=CERTIFICATE,
                now=time.time(),
            )
            told.append(answered.remedy)
    return told


def commands(upstream: str) -> list[str]:
    """Those for a shell, each once."""
    quoted = {part for remedy in remedies(upstream) for part in re.findall(r"`([^`]+)`", remedy)}
    return sorted(
        part for part in quoted if part.split()[0] in ("openssl", "curl", "getent", "keytool", "nc")
    )


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def folder(pki: Pki, tmp_path: Path) -> Path:
    """The reader's: alice's files and the CA's, under the names that the commands have for them."""
    alice = pki.credentials["alice"]
    for name, path in (("CRT", alice["certificate"]), ("KEY", alice["key"]), ("ca.pem", pki.trust)):
        shutil.copy(path, tmp_path / name)
    return tmp_path


@pytest.fixture
def upstream(peers: Peers) -> Peer:
    return peers.nginx()


def test_commands_run_as_they_stand(upstream: Peer, folder: Path, pki: Pki) -> None:
    """Against a real upstream; those of programs that this machine lacks are left out."""
    found = commands(f"localhost:{upstream.port}")
    ran = set()
    # The file that one makes is what the other reads.
    for command in sorted(found, key=lambda each: "-exportcert" in each):
        if shutil.which(command.split()[0]) is None:
            continue
        # What a reader on a terminal would be asked for, and trust that the system of a test does not have.
        asked = command.replace("keytool", "keytool -storepass changeit")
        asked = asked.replace("-importcert", "-importcert -noprompt")
        asked = asked.replace("openssl s_client", "openssl s_client -CAfile ca.pem")
        asked = asked.replace("curl -v", "curl -v --cacert ca.pem")
        asked = asked.replace("> ca.pem", "| tee exported.pem")
        result = run(asked, folder)
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        for part, shown in SHOWS.items():
            if part in command:
                assert shown in result.stdout + result.stderr, command
                ran.add(part)
    assert {"-dates", "-ext extendedKeyUsage", "-showcerts"} <= ran
    assert {"-cert CRT -key KEY", "-tls1_2"} <= ran


def test_every_command_is_one_that_is_tried_here() -> None:
    """A new one in a remedy needs a line above that says what it shows."""
    for command in commands("localhost:8443"):
        known = any(part in command for part in SHOWS) or command == "nc -vz localhost 8443"
        assert known, command
