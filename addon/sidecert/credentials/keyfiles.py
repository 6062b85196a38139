"""A file that the config names -> the certificates or the private key in it, decrypted in memory.

What cannot be loaded raises `Unusable`, which names the file and what would be right. The errors of the
parsers below are not a closed list and may quote what they read: all are caught, and none is passed on.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12
from OpenSSL.crypto import X509

from sidecert.credentials import certificates, filekinds, rounds
from sidecert.credentials.filekinds import WANTED, Block, Kind, Role, Unusable

MAX_BYTES = 1 << 20
"""No certificate, key or store that is meant for this is larger; a log or a disk image is."""
# RFC 7292 appendix C: the schemes with RC4 and RC2, which OpenSSL 3 keeps in its legacy provider.
_LEGACY_PKCS12 = tuple(b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01" + bytes((n,)) for n in (1, 2, 5, 6))
# RFC 7292 4.2: the bag types that hold a private key, in clear and encrypted.
_KEY_BAGS = tuple(b"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01" + bytes((n,)) for n in (1, 2))
_GIVE_PASSPHRASE = "give it as `passphrase: {env: NAME}` or `passphrase: {file: PATH}`"


@dataclass(frozen=True, slots=True)
class Passphrase:
    """What the config gives to open a file with."""

    text: bytes | None
    """None where the config gives none, or where what it names cannot be read."""
    is_known: bool = True
    """False where what the config names cannot be read, which is a finding of its own."""


@dataclass(frozen=True, slots=True)
class Store:
    """What a PKCS#12 store holds."""

    key: PrivateKeyTypes | None
    certificates: tuple[x509.Certificate, ...]
    keys: int
    """How many private keys are in it, as far as it is open to see; `key` is the first."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that was opened, to be known again: opening it takes long, and nothing else runs meanwhile."""

    mark: bytes
    """Of its bytes and its passphrase, by a secret of this process: it says nothing about either."""
    store: Store


Known = Mapping[bytes, Opened]
"""What was opened before, by its mark."""
_MARKING = os.urandom(32)


def _opened(
    data: bytes, passphrase: Passphrase, known: Known, open: Callable[[], Store | None]
) -> Opened | None:
    text = b"" if passphrase.text is None else b"\1" + passphrase.text
    mark = hashlib.blake2b(len(text).to_bytes(8) + text + data, key=_MARKING).digest()
    before = known.get(mark)
    if before is not None:
        return before
    store = open()
    return None if store is None else Opened(mark, store)


def read_certificates(path: Path, role: Role) -> tuple[list[x509.Certificate], bool]:
    """The certificates of a PEM file, at least one, and whether a private key is in it too."""
    data = _read(path, role)
    blocks = filekinds.find_blocks(path, data)
    given = [_parse_certificate(path, block) for block in blocks if block.kind is Kind.CERTIFICATE]
    if not given:
        raise filekinds.not_wanted(path, role, filekinds.kind_of(blocks, data))
    return given, any(block.kind is Kind.KEY for block in blocks)


def _parse_certificate(path: Path, block: Block) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(block.pem)
        certificates.check_readable(certificate)
        X509.from_cryptography(certificate)  # OpenSSL is stricter
    except Exception:
        raise Unusable(
            f"{path} holds a certificate that is damaged (its PEM block number {block.number})",
            "copy it again; `openssl x509 -noout -text` must be able to read it",
        ) from None
    return certificate


def read_key(path: Path, passphrase: Passphrase, known: Known) -> Opened | None:
    """The private key of a PEM file; None where it is encrypted and the passphrase is not known."""
    data = _read(path, "key")
    return _opened(data, passphrase, known, lambda: _open_key(path, data, passphrase))


def _open_key(path: Path, data: bytes, passphrase: Passphrase) -> Store | None:
    blocks = filekinds.find_blocks(path, data)
    keys = [block for block in blocks if block.kind is Kind.KEY]
    if not keys:
        raise filekinds.not_wanted(path, "key", filekinds.kind_of(blocks, data))
    if len(keys) > 1:
        raise Unusable(f"{path} holds {len(keys)} private keys", "leave only the certificate's own key in it")
    if keys[0].has_foreign_headers:
        raise Unusable(
            f"{path} has lines with a colon between the BEGIN and END of its private key",
            "take them out, or move them above the BEGIN line",
        )
    if keys[0].is_encrypted and not passphrase.is_known:
        return None
    key = _decrypt_key(path, keys[0], passphrase) if keys[0].is_encrypted else _load_key(path, keys[0])
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size > rounds.MOST_RSA_BITS:
        raise Unusable(
            f"{path} holds a private key that is too large (RSA of {key.key_size} bits): each signature "
            "would hold up all calls",
            f"use RSA of at most {rounds.MOST_RSA_BITS} bits, or EC",
        )
    return Store(key, (), 1)


def _load_key(path: Path, block: Block) -> PrivateKeyTypes:
    try:
        # Whether the primes of RSA are prime takes 0.2 to 0.6 s with 4096 bits, in which all calls wait. That
        # the key works with its certificate is tried instead (`credentials`).
        return serialization.load_pem_private_key(block.pem, None, unsafe_skip_rsa_key_validation=True)
    except UnsupportedAlgorithm:
        raise unsupported(path, "unknown") from None
    except Exception:
        raise damaged(path) from None


def damaged(path: Path) -> Unusable:
    """The error for a key that does not load, or with which nothing can be signed."""
    return Unusable(
        f"{path} holds a private key that is damaged, or too weak to load",
        f"copy it again; `openssl pkey -in {shlex.quote(str(path))} -check -noout` must accept it",
    )


def _decrypt_key(path: Path, block: Block, passphrase: Passphrase) -> PrivateKeyTypes:
    where = shlex.quote(str(path))
    if passphrase.text is None:
        raise Unusable(f"{path} is encrypted, and no passphrase is given", _GIVE_PASSPHRASE)
    try:
        der = binascii.a2b_base64(b"".join(block.body.split()), strict_mode=True)
    except binascii.Error:
        raise damaged(path) from None
    _check_effort(path, der)
    try:
        return serialization.load_pem_private_key(
            block.pem, passphrase.text, unsafe_skip_rsa_key_validation=True
        )
    except UnsupportedAlgorithm:
        raise unsupported(path, "unknown") from None
    except Exception:
        if block.has_old_cipher:
            raise Unusable(
                f"{path} is encrypted with an old cipher that is no longer read",
                "convert it with `openssl pkey -provider legacy -provider default "
                f"-in {where} -aes256 -out NEW.key` and name NEW.key",
            ) from None
        raise Unusable(
            f"{path} cannot be decrypted with the given passphrase: it is wrong, or the file is damaged",
            f"try it by hand: `openssl pkey -in {where} -noout` asks for the passphrase",
        ) from None


def unsupported(path: Path, kind: str) -> Unusable:
    """The error for a key that loads, and that TLS has no signature scheme for."""
    return Unusable(
        f"{path} holds a private key of a kind that TLS has no use for ({kind})",
        "use RSA of 2048 bits or more, EC (secp256r1, secp384r1, secp521r1) or Ed25519",
    )


def read_pkcs12(path: Path, passphrase: Passphrase, known: Known) -> Opened | None:
    """What is in a PKCS#12 store; None where it does not open and the passphrase is not known."""
    data = _read(path, "pkcs12")
    return _opened(data, passphrase, known, lambda: _open_store(path, data, passphrase))


def _open_store(path: Path, data: bytes, passphrase: Passphrase) -> Store | None:
    kind = filekinds.kind_of(filekinds.find_blocks(path, data), data)
    if kind is not Kind.PKCS12:
        raise filekinds.not_wanted(path, "pkcs12", kind)
    _check_effort(path, data)
    if rounds.has_large_key(data):
        raise Unusable(
            f"{path} holds a private key that is too large for a PKCS#12 store (more than RSA of "
            f"{rounds.MOST_STORED_RSA_BITS} bits): opening it would hold up all calls for seconds",
            f"convert it with `openssl pkcs12 -in {shlex.quote(str(path))} -out NEW.pem` and write "
            "`certificate: NEW.pem` and `key: NEW.pem` in place of `pkcs12`, or use a smaller key",
        )
    # A store without a passphrase opens with none only, and giving one all the same is no mistake.
    for text in dict.fromkeys((passphrase.text, None)):
        store = _open_pkcs12(data, text)
        if store is not None:
            return store
    if not passphrase.is_known:
        return None
    if passphrase.text is None:
        raise Unusable(f"{path} cannot be opened without a passphrase, or is damaged", _GIVE_PASSPHRASE)
    where = shlex.quote(str(path))
    right = f"try it by hand: `openssl pkcs12 -in {where} -noout` asks for the passphrase"
    if any(scheme in data for scheme in _LEGACY_PKCS12):
        right = (
            "if the passphrase is right, its old encryption (RC2 or RC4) is not read here: convert it "
            f"with `openssl pkcs12 -legacy -in {where} -out NEW.pem` and write `certificate: NEW.pem` and "
            "`key: NEW.pem` in place of `pkcs12`"
        )
    wrong = f"{path} cannot be opened with the given passphrase: it is wrong, or the file is damaged"
    raise Unusable(wrong, right)


def _check_effort(path: Path, der: bytes) -> None:
    """Raises `Unusable` for a file that would take so long to open that calls had to wait."""
    excess = rounds.excess(der)
    if excess is not None:
        most = f"{rounds.MOST_ROUNDS:,} rounds, or {rounds.MOST_MEMORY >> 20} MiB"
        raise Unusable(
            f"{path} takes too long to open: {excess}",
            f"make it anew with less, such as openssl's and keytool's default; the most is {most}",
        )


def _open_pkcs12(data: bytes, passphrase: bytes | None) -> Store | None:
    try:
        store = pkcs12.load_pkcs12(data, passphrase)
        entries = (store.cert, *store.additional_certs)
        held = tuple(entry.certificate for entry in entries if entry is not None)
        for certificate in held:
            certificates.check_readable(certificate)
    except Exception:
        return None
    return Store(store.key, held, max(sum(data.count(bag) for bag in _KEY_BAGS), int(store.key is not None)))


def _read(path: Path, role: Role) -> bytes:
    """The bytes of a regular file of at most MAX_BYTES, which are never none. Raises `Unusable`."""
    try:
        # Without O_NONBLOCK a named pipe would hold the start up for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unusable(f"{path} is not a regular file", WANTED[role])
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        wrong = "is a link to a file that is not there" if path.is_symlink() else "does not exist"
        raise Unusable(f"{path} {wrong}", WANTED[role]) from None
    except IsADirectoryError:
        raise Unusable(f"{path} is a directory", WANTED[role]) from None
    except PermissionError:
        right = "let the user that runs sidecert read it, and the folders above it"
        raise Unusable(f"{path} may not be read by this user", right) from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the path
        words = (problem.strerror if isinstance(problem, OSError) else None) or "no such path"
        raise Unusable(f"{path} cannot be read: {words}", WANTED[role]) from None
    if len(data) > MAX_BYTES:
        raise Unusable(f"{path} is larger than 1 MiB", WANTED[role])
    if not data.strip():
        raise Unusable(f"{path} is empty", WANTED[role])
    return data
