"""What a file is that the config names for a certificate, a key, a PKCS#12 store or trust.

A file of a wrong kind is an `Unusable`, which names the file, says what it is and which command makes the
right thing of it. No message ever quotes what a file holds.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization

Role = Literal["certificate", "key", "pkcs12", "trust"]


class Unusable(Exception):
    """A file can't be used for what the config names it for. Becomes a finding in `credentials`."""

    def __init__(self, wrong: str, right: str) -> None:
        super().__init__(wrong)
        self.wrong = wrong
        self.right = right


class Kind(StrEnum):
    """What a PEM block or a whole file is, in words."""

    CERTIFICATE = "a certificate"
    TRUSTED_CERTIFICATE = "a certificate in OpenSSL's own TRUSTED form"
    KEY = "a private key"
    OPENSSH_KEY = "a private key in OpenSSH's own form"
    PUBLIC_KEY = "a public key"
    REQUEST = "a certificate request (CSR)"
    PKCS7 = "a PKCS#7 file (certificates, no key)"
    REVOCATION_LIST = "a revocation list (CRL)"
    PARAMETERS = "key parameters"
    OTHER_PEM = "PEM of another kind"
    CERTIFICATE_DER = "a certificate in DER (binary) form"
    KEY_DER = "a private key in DER (binary) form"
    PKCS7_DER = "a PKCS#7 file (certificates, no key) in DER (binary) form"
    PKCS12 = "a PKCS#12 store"
    JAVA_STORE = "a Java key store (JKS or JCEKS)"
    CUT_SHORT = "cut short: its DER (binary) form says that it is longer"
    BASE64_OF_PEM = "PEM that is base64-encoded once more"
    ONE_LINE_PEM = "PEM without its line breaks"
    TEXT = "text without a PEM block"
    BINARY = "binary data of an unknown kind"


_LABELS = {
    "CERTIFICATE": Kind.CERTIFICATE,
    "X509 CERTIFICATE": Kind.CERTIFICATE,
    "TRUSTED CERTIFICATE": Kind.TRUSTED_CERTIFICATE,
    "PRIVATE KEY": Kind.KEY,
    "ENCRYPTED PRIVATE KEY": Kind.KEY,
    "RSA PRIVATE KEY": Kind.KEY,
    "EC PRIVATE KEY": Kind.KEY,
    "DSA PRIVATE KEY": Kind.KEY,
    "OPENSSH PRIVATE KEY": Kind.OPENSSH_KEY,
    "PUBLIC KEY": Kind.PUBLIC_KEY,
    "RSA PUBLIC KEY": Kind.PUBLIC_KEY,
    "CERTIFICATE REQUEST": Kind.REQUEST,
    "NEW CERTIFICATE REQUEST": Kind.REQUEST,
    "PKCS7": Kind.PKCS7,
    "CMS": Kind.PKCS7,
    "X509 CRL": Kind.REVOCATION_LIST,
    "EC PARAMETERS": Kind.PARAMETERS,
    "DH PARAMETERS": Kind.PARAMETERS,
}
_STARTS = (
    (b"\xfe\xed\xfe\xed", Kind.JAVA_STORE),
    (b"\xce\xce\xce\xce", Kind.JAVA_STORE),
    (b"ssh-", Kind.PUBLIC_KEY),
    (b"ecdsa-sha2-", Kind.PUBLIC_KEY),
    (b"LS0tLS1CRUdJTi", Kind.BASE64_OF_PEM),
)
_TO_P12 = "keytool -importkeystore -srckeystore {f} -destkeystore {p} -deststoretype PKCS12"
_STORES = {
    Kind.PKCS12: "write `pkcs12: {f}` in place of `certificate` and `key`",
    Kind.JAVA_STORE: "convert it with `" + _TO_P12 + "` and write `pkcs12: {p}`",
}
_KEY_ELSEWHERE = "name the certificate here; this file looks like one for `key`"
_CERTIFICATE_ELSEWHERE = "name the private key here; this file looks like one for `certificate`"
_UNPACK = {
    Kind.TRUSTED_CERTIFICATE: "convert it with `openssl x509 -in {f} -out {o}` and name {o}",
    Kind.CERTIFICATE_DER: "convert it with `openssl x509 -inform DER -in {f} -out {o}` and name {o}",
    Kind.PKCS7: "convert it with `openssl pkcs7 -in {f} -print_certs -out {o}` and name {o}",
    Kind.PKCS7_DER: "convert it with `openssl pkcs7 -inform DER -in {f} -print_certs -out {o}` and name {o}",
}
_EVERYWHERE = {
    Kind.BASE64_OF_PEM: "decode it with `base64 -d {f} > {o}` and name {o}",
    Kind.ONE_LINE_PEM: r"put its line breaks back (each written-out `\n`: `sed 's/\\n/\n/g' {f} > {o}`)",
    Kind.CUT_SHORT: "copy it again, in binary mode",
}
_RIGHT: dict[Role, dict[Kind, str]] = {
    "certificate": _EVERYWHERE
    | _UNPACK
    | _STORES
    | {
        Kind.KEY: _KEY_ELSEWHERE,
        Kind.KEY_DER: _KEY_ELSEWHERE,
        Kind.OPENSSH_KEY: _KEY_ELSEWHERE,
        Kind.REQUEST: "send the request to the CA and name the certificate that the CA gives back",
        Kind.PUBLIC_KEY: "name the certificate that the CA made for this public key",
    },
    "key": _EVERYWHERE
    | _STORES
    | {
        Kind.CERTIFICATE: _CERTIFICATE_ELSEWHERE,
        Kind.CERTIFICATE_DER: _CERTIFICATE_ELSEWHERE,
        Kind.KEY_DER: "convert it with `openssl pkey -inform DER -in {f} -out {o}` and name {o}",
        Kind.OPENSSH_KEY: "convert a copy of it with `ssh-keygen -p -m PKCS8 -f COPY` and name that copy",
        Kind.PUBLIC_KEY: "name the private key that belongs to it",
        Kind.REQUEST: "name the private key that the request was made with",
    },
    "pkcs12": {
        Kind.BASE64_OF_PEM: "decode it with `base64 -d {f} > {o}`, and write `certificate` and `key` instead",
        Kind.CUT_SHORT: "copy it again, in binary mode",
        Kind.JAVA_STORE: "convert it with `" + _TO_P12 + "` and name {p}",
        Kind.CERTIFICATE: "write `certificate: {f}` and `key: ...` in place of `pkcs12`",
        Kind.KEY: "write `key: {f}` and `certificate: ...` in place of `pkcs12`",
        Kind.TEXT: "name a PKCS#12 store (.p12, .pfx); if this is one in base64: `base64 -d {f} > {p}`",
    },
    "trust": _EVERYWHERE
    | _UNPACK
    | {
        Kind.PKCS12: "convert it with `openssl pkcs12 -in {f} -nokeys -out {o}` and name {o}",
        Kind.JAVA_STORE: "convert it with `keytool -list -rfc -keystore {f} > {o}` and name {o}",
    },
}
WANTED: dict[Role, str] = {
    "certificate": "name a PEM file (-----BEGIN CERTIFICATE-----) with it and then its intermediates",
    "key": "name a PEM file with the private key (-----BEGIN PRIVATE KEY----- and the like)",
    "pkcs12": "name a PKCS#12 store (.p12, .pfx) with the certificate and its private key",
    "trust": "name a PEM file with the CA certificates to trust (-----BEGIN CERTIFICATE-----)",
}
"""What is right in general, for each of the config's keys that name a file."""


def not_wanted(path: Path, role: Role, kind: Kind) -> Unusable:
    """The finding for a file that is a `kind` where a `role` is wanted."""
    where = shlex.quote(str(path))
    middle = "-converted" if path.suffix in (".pem", ".p12") else ""
    pem = shlex.quote(str(path.with_name(f"{path.stem}{middle}.pem")))
    store = shlex.quote(str(path.with_name(f"{path.stem}{middle}.p12")))
    right = _RIGHT[role].get(kind, WANTED[role])
    return Unusable(
        f"{path} is {kind}", right.replace("{f}", where).replace("{o}", pem).replace("{p}", store)
    )


@dataclass(frozen=True, slots=True)
class Block:
    """One PEM block, cleaned: no blanks around lines, no blank lines, LF only."""

    number: int
    label: str
    headers: tuple[str, ...]
    pem: bytes

    @property
    def kind(self) -> Kind:
        """What the label says that the block is."""
        return _LABELS.get(self.label, Kind.OTHER_PEM)

    @property
    def is_encrypted(self) -> bool:
        """Whether a private key is, as PKCS#8 or in the older way of RFC 1421 (Proc-Type: 4,ENCRYPTED)."""
        return self.label == "ENCRYPTED PRIVATE KEY" or any("ENCRYPTED" in header for header in self.headers)

    @property
    def has_foreign_headers(self) -> bool:
        """Whether there are headers other than those by which RFC 1421 tells how a key is encrypted."""
        return any(not header.startswith(("Proc-Type:", "DEK-Info:")) for header in self.headers)

    @property
    def body(self) -> bytes:
        """What is between its lines, without headers."""
        return b"".join(self.pem.splitlines()[len(self.headers) + 2 if self.headers else 1 : -1])

    @property
    def has_old_cipher(self) -> bool:
        """Whether the RFC 1421 headers name a cipher other than AES and 3DES."""
        ciphers = [header[9:].strip() for header in self.headers if header.startswith("DEK-Info:")]
        return any(not cipher.startswith(("AES-", "DES-EDE3-")) for cipher in ciphers)


def find_blocks(path: Path, data: bytes) -> list[Block]:
    """The PEM blocks in `data`, which may have any text before, between and after. Raises `Unusable`.

    Takes what editors, mail and `cat` do to such files: a byte order mark, UTF-16, CRLF, indentation, a
    missing line break between two blocks.
    """
    found: list[Block] = []
    label, lines = "", list[str]()
    for line in _lines(data):
        if line.startswith("-----BEGIN ") and line.endswith("-----"):
            if label:
                raise _cut_short(path, len(found) + 1, label)
            label, lines = line[11:-5], []
        elif line.startswith("-----END ") and label:
            if line != f"-----END {label}-----":
                raise _cut_short(path, len(found) + 1, label)
            found.append(_block(len(found) + 1, label, lines))
            label = ""
        elif label:
            lines.append(line)
    if label:
        raise _cut_short(path, len(found) + 1, label)
    return found


def _lines(data: bytes) -> list[str]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", "replace")
    else:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("ascii", "replace")
    return [line.strip() for line in text.replace("-----BEGIN ", "\n-----BEGIN ").splitlines()]


def _block(number: int, label: str, lines: list[str]) -> Block:
    headers = tuple(line for line in lines if ":" in line)  # RFC 1421 headers; base64 has no colon
    head = (*headers, "") if headers else ()
    body = (line for line in lines if line and ":" not in line)
    text = "\n".join((f"-----BEGIN {label}-----", *head, *body, f"-----END {label}-----", ""))
    return Block(number, label, headers, text.encode("ascii", "replace"))


def _cut_short(path: Path, number: int, label: str) -> Unusable:
    name = label if label in _LABELS else "unknown"
    return Unusable(
        f"{path} is cut short: its PEM block number {number} ({name}) has no matching END line",
        "copy the whole file again, from its first -----BEGIN to its last -----END line",
    )


def kind_of(found: Sequence[Block], data: bytes) -> Kind:
    """What a file is, given the PEM blocks that `find_blocks` found in it."""
    kinds = [block.kind for block in found if block.kind is not Kind.PARAMETERS]
    return kinds[0] if kinds else _sniff(data)


def _sniff(data: bytes) -> Kind:
    for start, kind in _STARTS:
        if data.startswith(start):
            return kind
    if data[:1] == b"\x30":
        return _sniff_der(data)
    if b"-----BEGIN " in data:
        return Kind.ONE_LINE_PEM
    return Kind.TEXT if data.isascii() and b"\0" not in data else Kind.BINARY


def _sniff_der(data: bytes) -> Kind:
    # X.690 8.1.3: a length below 128 in one byte, else the number of length bytes that follow.
    size = data[1] if len(data) > 1 else 0
    start = 2 + (size & 0x7F if size & 0x80 else 0)
    length = int.from_bytes(data[2:start]) if size & 0x80 else size
    body = data[start:]
    if length > len(body):
        return Kind.CUT_SHORT
    if body.startswith(b"\x02\x01\x03"):  # PFX ::= SEQUENCE { version INTEGER (3), ... }, RFC 7292
        return Kind.PKCS12
    if body.startswith(b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07"):  # OID pkcs7
        return Kind.PKCS7_DER
    if _parses(lambda: x509.load_der_x509_certificate(data)):
        return Kind.CERTIFICATE_DER
    if _parses(lambda: serialization.load_der_private_key(data, None, unsafe_skip_rsa_key_validation=True)):
        return Kind.KEY_DER
    if _parses(lambda: x509.load_der_x509_csr(data)):
        return Kind.REQUEST
    if _parses(lambda: serialization.load_der_public_key(data)):
        return Kind.PUBLIC_KEY
    if _parses(lambda: x509.load_der_x509_crl(data)):
        return Kind.REVOCATION_LIST
    return Kind.BINARY


def _parses(load: Callable[[], object]) -> bool:
    try:
        load()
    except TypeError:  # a private key that is encrypted
        return True
    except Exception:  # the parsers name no closed list of errors
        return False
    return True
