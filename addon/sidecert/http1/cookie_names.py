"""Cookie names that user agents keep for TLS, hidden from a caller who has none (RFC 6265bis 4.1.3).

A user agent refuses a cookie whose name begins with `__Host-` or `__Secure-`, in any case, when the answer
came by plain HTTP. So the caller gets it as `sidecert-__Host-...`, and what it sends back under such a name
goes upstream under the old one:

    Set-Cookie: __Host-session=1           ->  Set-Cookie: sidecert-__Host-session=1
    Cookie: a=b; __Host-session=1          <-  Cookie: a=b; sidecert-__Host-session=1

A name that an upstream itself gives in the hidden form gets one more `sidecert-`, so that no two names become
the same one and each comes back as it was.
"""

from __future__ import annotations

import re
from typing import Final

MARK: Final = b"sidecert-"

_FOR_TLS: Final = rb"(?:sidecert-)*+__(?i:Host|Secure)-[^=;]*+="
_IN_SET_COOKIE: Final = re.compile(rb"[ \t]*+(?=" + _FOR_TLS + rb")")
_IN_COOKIE: Final = re.compile(rb"((?:\A|;)[ \t]*+)sidecert-(?=" + _FOR_TLS + rb")")


def hide(pair: bytes) -> bytes:
    """`name=value`, the first part of a Set-Cookie, with a name that the caller's cookie jar takes."""
    blanks = _IN_SET_COOKIE.match(pair)
    return pair if blanks is None else blanks[0] + MARK + pair[blanks.end() :]


def restore(cookies: bytes) -> bytes:
    """The value of a Cookie header with the names that the upstream gave."""
    return _IN_COOKIE.sub(rb"\1", cookies) if MARK in cookies else cookies
