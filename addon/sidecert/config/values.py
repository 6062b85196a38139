"""The values a config holds, each checked and converted by one pure function.

Every function takes what the YAML held and returns the converted value, or raises `Mistake` with what is
wrong and what would be right. A value that code has converted already is taken as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from sidecert.config.hosts import is_address, normalise_host
from sidecert.config.mistake import Mistake, kind, nearest, shown
from sidecert.paths import Pattern

MAX_PORT = 65535
MAX_SECONDS = 86400
TLS_VERSIONS = ("1.2", "1.3")
TRUST_WORDS = ("system", "insecure")
# what httptools knows, without CONNECT
_METHODS = (
    "ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY "
    "OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE "
    "UNBIND UNLINK UNLOCK UNSUBSCRIBE"
)
METHODS = frozenset(_METHODS.split())
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h)\Z")
_LOOSE_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) *(ms|[smh])[a-z]*\Z")
_SHIFT = {"KiB": 10, "MiB": 20}
_SIZE = re.compile(r"([0-9]{1,9})(KiB|MiB)\Z")
_LOOSE_SIZE = re.compile(r"([0-9]{1,9}) *([km])(?:i?b|ib?)?\Z")
_DIGITS = re.compile(r"[0-9]+\Z")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z")


def text(value: object) -> str:
    """A text that is not empty; a number is taken as the text it was written as."""
    if isinstance(value, bool):
        raise Mistake(
            f"{kind(value)} is no text", f'put it in quotes if it is meant as a word: "{kind(value)}"'
        )
    if value is None:
        raise Mistake("there is no value", "write a text")
    if not isinstance(value, str | int):
        raise Mistake(f"this is {kind(value)}, not a text", "write one text")
    if value == "":
        raise Mistake("this is empty", "write a text")
    return str(value)


def is_name(written: str) -> bool:
    """Whether it can be the id of a route or a credential."""
    return bool(_ID.match(written))


def name(value: object) -> str:
    """The id of a route or a credential, which is a metric label, a key path and a word in logs."""
    written = text(value)
    if not is_name(written):
        raise Mistake(
            f"{shown(written)} cannot be an id", "letters, digits, . _ - only, at most 64, first no . or -"
        )
    return written


def whole(value: object, least: int, most: int) -> int:
    """A whole number from `least` to `most`."""
    if isinstance(value, str) and _DIGITS.match(value) and int(value[:19]) <= most:
        raise Mistake(f"{shown(value)} is a text", f"write {int(value)}, without quotes or leading zeros")
    if isinstance(value, bool) or not isinstance(value, int):
        found = shown(value) if isinstance(value, str) else kind(value)
        raise Mistake(f"{found} is not a whole number", f"write a number from {least} to {most}")
    if not least <= value <= most:
        raise Mistake(f"{value} is out of range", f"write a number from {least} to {most}")
    return value


def port(value: object) -> int:
    """A TCP port that can be called."""
    return whole(value, 1, MAX_PORT)


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        found = shown(value) if isinstance(value, str) else kind(value)
        raise Mistake(f"{found} is neither true nor false", "write true or false, without quotes")
    return value


def duration(value: object) -> float:
    """Seconds, more than 0 and at most a day, from `500ms`, `5s`, `2m`, `1h`; code may give a float."""
    seconds = drain(value)
    if not seconds:
        raise Mistake("0 would leave no time at all", "write at least 1ms")
    return seconds


def drain(value: object) -> float:
    """Seconds as in `duration`, where 0 means at once."""
    if isinstance(value, float):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Mistake(f"this is {kind(value)}, not a duration", "write one such as 5s")
    written = str(value)
    if match := _DURATION.match(written):
        seconds = int(match[1]) * _MILLISECONDS[match[2]] / 1000
        if seconds > MAX_SECONDS:
            raise Mistake(f"{shown(written)} is more than a day", "write at most 24h")
        return seconds
    if _DIGITS.match(written):
        raise Mistake(f"{written} has no unit", f"write {written}s for seconds, or ms, m, h")
    right = "write a whole number and ms, s, m or h, such as 5s"
    if loose := _LOOSE_DURATION.match(written.lower()):
        amount, unit = float(loose[1]), loose[2]
        exact = amount * _MILLISECONDS[unit]
        if amount == int(amount):
            right = f"write {int(amount)}{unit}"
        elif exact == int(exact):
            right = f"write {int(exact)}ms"
    raise Mistake(f"{shown(written)} is not a duration", right)


def size(value: object, least: int, most: int) -> int:
    """Bytes from `64KiB` or `1MiB`; code may give them as a number through the default only."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Mistake(f"this is {kind(value)}, not a size", "write one such as 64KiB")
    written = str(value)
    if match := _SIZE.match(written):
        size_in_bytes = int(match[1]) << _SHIFT[match[2]]
        if not least <= size_in_bytes <= most:
            raise Mistake(
                f"{shown(written)} is out of range", f"write {size_words(least)} to {size_words(most)}"
            )
        return size_in_bytes
    if _DIGITS.match(written):
        kib = max(1, -(-int(written[:15]) // 1024))
        raise Mistake(f"{written} has no unit", f"write {size_words(kib * 1024)}")
    loose = _LOOSE_SIZE.match(written.lower())
    right = (
        f"write {loose[1]}{'KiB' if loose[2] == 'k' else 'MiB'}"
        if loose
        else "write one such as 64KiB or 1MiB"
    )
    raise Mistake(f"{shown(written)} is not a size", right)


def size_words(size_in_bytes: int) -> str:
    """`65536` -> `64KiB`."""
    return f"{size_in_bytes >> 20}MiB" if size_in_bytes % (1 << 20) == 0 else f"{size_in_bytes >> 10}KiB"


def tls_version(value: object) -> str:
    """`1.2` or `1.3`, the versions that sidecert speaks."""
    written = text(value)
    if written not in TLS_VERSIONS:
        if match := re.fullmatch(r"(?i)TLS\s*v?\s*(1\.[23])", written):
            raise Mistake(f"{shown(written)} is not a TLS version here", f"write {match[1]}")
        raise Mistake(f"{shown(written)} is not a TLS version that sidecert speaks", "write 1.2 or 1.3")
    return written


def path_pattern(value: object) -> str:
    """A path that begins with `/`, in which a segment may be `*` (any one) or `**` (any number of them)."""
    written = text(value)
    if "://" in written:
        raise Mistake("this is a URL, not a path", "write only what follows the host, such as /rest/**")
    if any(not c.isprintable() for c in written):
        raise Mistake(f"{shown(written)} holds a character that no path can have", "write it as %XX")
    try:
        Pattern.of(written)
    except ValueError as error:
        raise Mistake(f"{shown(written)}: {error}", "write one such as /rest/**") from None
    return written


def method_list(value: object) -> object:
    """The list of methods, not yet looked at one by one."""
    if isinstance(value, str):
        raise Mistake("this is a text, not a list", f"write [{value.upper() if value.isalpha() else 'GET'}]")
    if not isinstance(value, list | frozenset):
        raise Mistake(f"this is {kind(value)}, not a list", "write one such as [GET, POST]")
    if not value:
        raise Mistake("the list is empty, so nothing would match", "leave the key out to take any method")
    return value


def method(value: object) -> str:
    """A request method, upper-case as HTTP has it (RFC 9110 9.1)."""
    written = text(value)
    if written in METHODS:
        return written
    if written == "CONNECT":
        raise Mistake("CONNECT is never served", "leave it out")
    if "," in written:
        raise Mistake(f"{shown(written)} is not one method", "write [GET, POST], without quotes around them")
    near = nearest(written.upper(), METHODS)
    right = f"did you mean {near}?" if near else "write one such as GET, POST, PUT, PATCH or DELETE"
    raise Mistake(f"{shown(written)} is not a method", right)


def environment_name(value: object) -> str:
    """The name of an environment variable. It is never repeated: it may be the secret itself by mistake."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise Mistake("this is not the name of an environment variable", "write one such as ALICE_PASS")
    return value


def host_name(value: object) -> str:
    """A host without a wildcard, normalised."""
    return normalise_host(text(value))


def host_pattern(value: object) -> str:
    """A host, or `*.` before a name of its parent domain; normalised."""
    written = text(value)
    if written in ("*", "*.", "**"):
        raise Mistake(
            "a route for every host is not taken", "write *.example.com, or one route for each host"
        )
    if "*" in written.removeprefix("*."):
        wrong = f"{shown(written)} has a * that is not its whole first label"
        raise Mistake(wrong, "write it as in *.example.com, which stands for any labels before example.com")
    if not written.startswith("*."):
        return normalise_host(written)
    parent = normalise_host(written[2:])
    if is_address(parent):
        raise Mistake("an address has no subdomains", "write the address without *.")
    return f"*.{parent}"


def host_header(value: object) -> str:
    """A Host header as it is sent: a host in ASCII with an optional port (RFC 9110 7.2), kept as written."""
    written = text(value)
    host, colon, port = written.rpartition(":")
    if not colon or written.endswith("]") or not port.isdecimal():
        host, port = written, ""
    if written.count(":") > 1 and not written.startswith("["):
        raise Mistake(f"{shown(written)} is an IPv6 address without brackets", 'write "[2001:db8::1]:8443"')
    ascii_host = normalise_host(host)
    if not written.isascii():
        raise Mistake("a header is ASCII", f"write {ascii_host}{':' + port if port else ''}")
    if port and not 0 < int(port[:6]) <= MAX_PORT:
        raise Mistake(f"{shown(port)} is not a port", f"write a number from 1 to {MAX_PORT}")
    return written


def file_path(value: object, folder: Path | None) -> Path:
    """An absolute path; a relative one begins in `folder`. The value is never repeated: it may be a key."""
    if isinstance(value, Path):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Mistake(f"this is {kind(value)}, not a path", "write the path of a file")
    written = str(value)
    if "-----BEGIN" in written:
        raise Mistake("this is the PEM text itself", "put it in a file and write the file's path")
    if not written or any(ord(c) < 32 for c in written):
        raise Mistake("this is not the path of a file", "write a path, relative to this config or absolute")
    if written.startswith("~"):
        raise Mistake("a ~ is not expanded", "write the whole path, from / on")
    return (folder or Path.cwd()) / written


def trust(value: object, folder: Path | None) -> Path | str:
    """`system`, `insecure`, or the path of a PEM file with the CAs."""
    if isinstance(value, bool):
        right = "write system, the path of a CA file, or insecure to verify nothing"
        raise Mistake(f"{kind(value)} is not a trust", right)
    if isinstance(value, str) and value.lower() in TRUST_WORDS:
        if value not in TRUST_WORDS:
            raise Mistake(
                f"{shown(value)} is not lower-case", f"write {value.lower()}, or ./{value} for a file"
            )
        return value
    return file_path(value, folder)
