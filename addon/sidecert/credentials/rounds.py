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

MOST_RSA_BITS = 8192
"""One signature of 8192 bits takes 28 ms, in which calls wait, and it grows with the cube."""
MOST_STORED_RSA_BITS = 4096
"""Of a key in a PKCS#12 store, which is never opened without a test of its primes: calls wait 0.2 to 0.45 s
for 4096 bits, 5.7 s for 8192. The same key as PEM takes 0.17 s at most."""
_MOST_KEY_BYTES = 2560
"""Of a key in a store, with what its encryption adds: RSA of 4096 bits has 2.5 kB, of 4608 2.7 kB."""

_SCRYPT = b"\x06\x09\x2b\x06\x01\x04\x01\xda\x47\x04\x0b"  # RFC 7914 section 7
# PBKDF2 and the other schemes of RFC 8018 A.3, and those of RFC 7292 appendix C.
_DERIVATION = re.compile(
    rb"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05[\x01-\x0c]|"
    rb"\x06\x0a\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01[\x01-\x06]",
    re.DOTALL,
)
# RFC 7292 4.2: the bag types that hold a private key, in clear and encrypted.
_KEY_BAG = re.compile(rb"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01[\x01\x02]", re.DOTALL)


def excess(der: bytes) -> str | None:
    """What is too much about the encryption of a PKCS#12 store or PKCS#8 key, in words; None for nothing."""
    rounds = 0
    for start in _each(der, b"\x06"):
        name = _element(der, start, 0x06)
        if name is None or name[2] - start > 34:
            continue
        known = der[start : name[2]]
        numbers = _numbers(der, name[2])
        if known == _SCRYPT:
            memory = 128 * numbers[0] * numbers[1] * numbers[2] if len(numbers) >= 3 else MOST_MEMORY + 1
            if memory > MOST_MEMORY:
                return f"its encryption asks for {memory >> 20} MiB of memory (scrypt)"
        elif numbers:
            rounds += numbers[0]
        elif _DERIVATION.fullmatch(known):
            return "its encryption does not say how many rounds it asks for"
    return f"its encryption asks for {rounds:,} rounds" if rounds > MOST_ROUNDS else None


def has_large_key(store: bytes) -> bool:
    """Whether a key in a PKCS#12 store has more than MOST_STORED_RSA_BITS, as far as it is open to see."""
    for bag in _KEY_BAG.finditer(store):
        key = _element(store, bag.end(), 0xA0)
        if key is not None and key[1] - key[0] > _MOST_KEY_BYTES:
            return True
    return False


def _each(data: bytes, what: bytes) -> Iterator[int]:
    found = data.find(what)
    while found >= 0:
        yield found
        found = data.find(what, found + 1)


def _numbers(der: bytes, start: int) -> list[int]:
    """The numbers that follow the salt in the parameters of the algorithm whose name ends at `start`.

    Whatever the algorithm, for those that are not known here take their time as well: a derivation has a
    SEQUENCE of salt and rounds, a store's MAC (RFC 7292 section 4) perhaps a NULL, a digest, salt and rounds.
    """
    inside = _element(der, start, 0x30)
    if inside is not None:
        salt = _element(der, inside[0], 0x04)
    else:
        digest = _element(der, start + 2 if der[start : start + 2] == b"\x05\x00" else start, 0x04)
        if digest is not None and der[digest[2] : digest[2] + 2] == b"\0\0":  # the end of what holds it
            digest = (*digest[:2], digest[2] + 2)
        salt = _element(der, digest[2], 0x04) if digest else None
    return list(islice(_integers(der, salt[2]), 3)) if salt else []


def _element(der: bytes, start: int, tag: int, depth: int = 0) -> tuple[int, int, int] | None:
    """Where the content of the element at `start` begins and ends, and the element; None where it has
    another tag. In BER a string may come in pieces, and anything without a length (X.690 8.1.3)."""
    if start + 2 > len(der) or der[start] not in (tag, tag | 0x20):
        return None
    size, start = der[start + 1], start + 2
    if size == 0x80:
        end = _end_of_contents(der, start, depth)
        return None if end is None else (start, end, end + 2)
    if size & 0x80:
        size, start = int.from_bytes(der[start : start + (size & 0x7F)]), start + (size & 0x7F)
    return (start, start + size, start + size) if start + size <= len(der) else None


def _end_of_contents(der: bytes, start: int, depth: int) -> int | None:
    """Where the two zeros stand that end what began without a length."""
    while start + 2 <= len(der) and depth < 16:
        if der[start : start + 2] == b"\0\0":
            return start
        inner = _element(der, start, der[start], depth + 1)
        if inner is None:
            return None
        start = inner[2]
    return None


def _integers(der: bytes, start: int) -> Iterator[int]:
    """The INTEGERs that follow each other from `start` on."""
    while (found := _element(der, start, 0x02)) is not None:
        yield int.from_bytes(der[found[0] : min(found[1], found[0] + 9)])  # of more it is too much anyway
        start = found[2]
