"""The twin's authority and users."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from sidecert.twin.people import USERS, People, make


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    return make(tmp_path_factory.mktemp("people"), ["twin.example", "192.0.2.7"])


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_keys_are_for_their_owner_only_and_belong_to_their_certificates(people: People) -> None:
    """A key that others can read would be no example to follow."""
    for files in (people.service, *people.users.values()):
        assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
        assert key.public_key() == certificate(files.certificate).public_key()


def test_only_mapped_users_are_in_the_mapping(people: People) -> None:
    """By the fingerprint of the very certificate, as Integration Cloud does it."""
    expected = {
        certificate(people.users[user.name].certificate).fingerprint(hashes.SHA256()).hex(): user.name
        for user in USERS
        if user.treatment == "mapped"
    }
    assert people.mapping == expected
    assert sorted(people.mapping.values()) == ["alice", "bob"]


def test_each_user_has_the_flaw_that_is_said(people: People) -> None:
    """erin's is expired, mallory's from elsewhere, frank's for services; the others are good."""
    now = datetime.datetime.now(datetime.UTC)
    issuer = certificate(people.ca).subject
    for user in USERS:
        held = certificate(people.users[user.name].certificate)
        usage = held.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert (held.not_valid_after_utc < now) == (user.treatment == "expired")
        assert (held.issuer != issuer) == (user.treatment == "unknown_ca")
        assert (ExtendedKeyUsageOID.CLIENT_AUTH not in usage) == (user.treatment == "wrong_usage")


def test_the_service_is_called_localhost_and_what_else_was_asked_for(people: People) -> None:
    """Names and addresses each as what they are, or callers would not find them."""
    held = certificate(people.service.certificate)
    names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "twin.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1",
        "::1",
        "192.0.2.7",
    ]


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    """Somebody's own ca.crt would be gone."""
    (tmp_path / "ca.crt").write_text("mine")
    with pytest.raises(FileExistsError):
        make(tmp_path)
    assert (tmp_path / "ca.crt").read_text() == "mine"
