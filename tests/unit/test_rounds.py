"""How much work a passphrase is made to be, as it is read from files that OpenSSL has written."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecert.config import CredentialConfig, SecretSource
from sidecert.credentials import load
from sidecert.credentials.rounds import excess
from support.callers import run
from support.certs import Leaf, Pki, write_private

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="the openssl command is not installed")
PASS = "correct horse"


@pytest.fixture(scope="module")
def leaf(pki: Pki) -> Leaf:
    return pki.ca.caller("alice")


def _openssl(command: str, stdin: bytes) -> bytes:
    ran = run(str(OPENSSL), *command.split(), "-passout", f"pass:{PASS}", stdin=stdin)
    assert ran.returncode == 0, ran.stderr
    made: bytes = ran.stdout
    return made


def _refused(folder: Path, **files: bytes) -> str:
    """What is said of a credential of these files, the passphrase being right; it comes at once."""
    paths = {name: write_private(folder / name, content) for name, content in files.items()}
    config = CredentialConfig(**paths, passphrase=SecretSource(env="PASS"))  # type: ignore[arg-type]
    credential, findings = load("alice", config, {"PASS": PASS}, time.time())
    assert credential is None
    [finding] = findings
    assert "the most is 2,000,000 rounds, or 64 MiB" in finding.right
    return finding.wrong


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("-v2 aes-256-cbc -iter 2000001", "2,000,001 rounds"),
        ("-v2 aes-256-cbc -v2prf hmacWithSHA512 -iter 2000001", "2,000,001 rounds"),
        ("-v1 PBE-SHA1-3DES -iter 2000001", "2,000,001 rounds"),
        ("-v1 PBE-MD5-DES -iter 2000001 -provider legacy -provider default", "2,000,001 rounds"),
        ("-scrypt -scrypt_N 4096 -scrypt_r 8 -scrypt_p 20", "80 MiB of memory (scrypt)"),
    ],
)
def test_a_key_that_would_take_too_long_is_not_opened(
    leaf: Leaf, tmp_path: Path, how: str, words: str
) -> None:
    """Nothing else of the process runs while a key is derived, so every call would wait."""
    key = _openssl(f"pkcs8 -topk8 {how}", leaf.key_pem())
    wrong = _refused(tmp_path, certificate=leaf.certificate_pem(), key=key)
    assert wrong.endswith(f"takes too long to open: its encryption asks for {words}")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("-iter 700000", "2,100,000"),  # key, certificate and MAC
        ("-iter 1000001 -nomaciter", "2,000,002"),
        ("-iter 2000001 -certpbe NONE -nomac", "2,000,001"),
        ("-iter 700000 -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1", "2,100,000"),
    ],
)
def test_a_store_that_would_take_too_long_is_not_opened(
    leaf: Leaf, tmp_path: Path, how: str, words: str
) -> None:
    """All that is encrypted in it counts together, its MAC too."""
    store = _openssl(f"pkcs12 -export {how}", leaf.key_pem() + leaf.certificate_pem())
    assert f"asks for {words} rounds" in _refused(tmp_path, pkcs12=store)


@pytest.mark.parametrize("digest", ["md5", "ripemd160", "sm3", "sha512-256", "sha3-256"])
def test_the_rounds_of_a_mac_count_whatever_its_digest(leaf: Leaf, tmp_path: Path, digest: str) -> None:
    """OpenSSL derives with any digest that it has, not only with those that people use."""
    how = f"-iter 2000001 -keypbe NONE -certpbe NONE -macalg {digest}"
    # OpenSSL would take its time to make it: the number is written into one that has few rounds.
    store = _openssl(
        f"pkcs12 -export {how.replace('2000001', '70001')}", leaf.key_pem() + leaf.certificate_pem()
    )
    few, many = b"\x02\x03" + (70001).to_bytes(3), b"\x02\x03" + (2000001).to_bytes(3)
    assert store.endswith(few)
    assert "asks for 2,000,001 rounds" in _refused(tmp_path, pkcs12=store.removesuffix(few) + many)


def test_lines_before_the_base64_hide_no_rounds(leaf: Leaf, tmp_path: Path) -> None:
    """Nor may there be any, but for those that tell how a key is encrypted."""
    key = _openssl("pkcs8 -topk8 -iter 2000001", leaf.key_pem()).decode()
    begin, _, rest = key.partition("\n")
    for number, header in enumerate(("X: abcd1", "Proc-Type: 4,ENCRYPTEDx")):
        folder = tmp_path / str(number)
        folder.mkdir(0o700)
        files = {"certificate": leaf.certificate_pem(), "key": f"{begin}\n{header}\n\n{rest}".encode()}
        paths = {name: write_private(folder / name, content) for name, content in files.items()}
        config = CredentialConfig(**paths, passphrase=SecretSource(env="PASS"))  # type: ignore[arg-type]
        credential, [finding] = load("alice", config, {"PASS": PASS}, time.time())
        assert credential is None
        assert ("2,000,001 rounds" if number else "lines with a colon") in finding.wrong


@pytest.mark.parametrize("how", ["", "-iter 600000", "-iter 100000 -keypbe PBE-SHA1-3DES -macalg sha512"])
def test_what_people_make_is_not_too_much(leaf: Leaf, how: str) -> None:
    """OpenSSL's defaults, keytool's 10,000 and OWASP's 600,000 are all below it."""
    assert excess(_openssl(f"pkcs12 -export {how}", leaf.key_pem() + leaf.certificate_pem())) is None


@given(st.data())
def test_spoilt_stores_never_make_it_raise(pki: Pki, data: st.DataObject) -> None:
    """Wherever it is cut, and whatever byte is another."""
    store = bytearray(pki.ca.caller("alice").pkcs12(PASS))
    place = data.draw(st.integers(0, len(store) - 1))
    store[place] = data.draw(st.integers(0, 255))
    excess(bytes(store[: data.draw(st.integers(0, len(store)))]))
