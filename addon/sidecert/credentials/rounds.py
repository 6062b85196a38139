"""How much work the passphrase of a key or store is made to be, read from the file before it is begun.

The library that derives keys lets nothing else of the process run meanwhile, so a file that asks for minutes
would hold up every call. Measured: 0.13 to 0.4 us a round, 0.3 us for each block of scrypt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

MOST_ROUNDS = 2_000_000
"""Of all that is encrypted in one file together; a store of today has 3 * 10,000, OWASP advises 600,000."""
MOST_MEMORY = 64 << 20
"""In bytes, for scrypt: 128 * N * r * p. OpenSSL makes keys with 16 MiB."""

_PBKDF2 = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c"  # RFC 8018 A.2
_SCRYPT = b"\x06\x09\x2b\x06\x01\x04\x01\xda\x47\x04\x0b"  # RFC 7914 section 7
# The schemes of RFC 8018 A.3 and RFC 7292 appendix C, whose parameters begin alike.
_PBE = (
    rb"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05[\x01-\x0b]|"
    rb"\x06\x0a\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01[\x01-\x06]"
)
_DERIVATION = re.compile(re.escape(_PBKDF2) + b"|" + re.escape(_SCRYPT) + b"|" + _PBE, re.DOTALL)
# A store's MAC: a digest's name, perhaps its NULL, then digest, salt and rounds (RFC 7292 section 4).
_DIGEST = re.compile(
    rb"(?:\x06\x05\x2b\x0e\x03\x02\x1a|\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02.)(?:\x05\x00)?(?=\x04)",
    re.DOTALL,
)


def excess(der: bytes) -> str | None:
    """What is too much about the encryption of a PKCS#12 store or PKCS#8 key, in words; None for nothing."""
    rounds = 0
    for found in _DERIVATION.finditer(der):
        numbers = _after_salt(der, _inside(der, found.end()))
        if found[0] != _SCRYPT:
            rounds += next(iter(numbers), 0)
        elif len(numbers) >= 3 and (memory := 128 * numbers[0] * numbers[1] * numbers[2]) > MOST_MEMORY:
            return f"its encryption asks for {memory >> 20} MiB of memory (scrypt)"
    for found in _DIGEST.finditer(der):
        digest = _element(der, found.end(), 0x04)
        rounds += next(iter(_after_salt(der, digest[1] if digest else len(der))), 0)
    return f"its encryption asks for {rounds:,} rounds" if rounds > MOST_ROUNDS else None


def _after_salt(der: bytes, start: int) -> list[int]:
    """The numbers that follow the salt at `start`."""
    salt = _element(der, start, 0x04)
    return list(islice(_integers(der, salt[1]), 3)) if salt else []


def _inside(der: bytes, start: int) -> int:
    """Where the content of the SEQUENCE at `start` begins; the end of all where there is none."""
    if der[start : start + 1] != b"\x30":
        return len(der)
    size = der[start + 1 : start + 2]
    return start + 2 + (size[0] & 0x7F if size and size[0] & 0x80 else 0)


def _element(der: bytes, start: int, tag: int) -> tuple[int, int] | None:
    """Where the content of the element at `start` begins and ends; None where it has another tag."""
    if der[start : start + 1] != bytes((tag,)) or start + 1 >= len(der):
        return None
    size, start = der[start + 1], start + 2
    if size & 0x80:  # X.690 8.1.3: so many bytes of length follow
        size, start = int.from_bytes(der[start : start + (size & 0x7F)]), start + (size & 0x7F)
    return (start, start + size) if start + size <= len(der) else None


def _integers(der: bytes, start: int) -> Iterator[int]:
    """The INTEGERs that follow each other from `start` on."""
    while (found := _element(der, start, 0x02)) is not None:
        yield int.from_bytes(der[found[0] : min(found[1], found[0] + 9)])  # of more it is too much anyway
        start = found[1]
