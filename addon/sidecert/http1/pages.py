"""Whether a web page elsewhere may have made a browser send a request, as the browser itself says. Pure.

Browsers send Origin with all but plain GET and HEAD (Fetch standard 3.2), also with WebSocket upgrades
(RFC 6455 4.1), and Sec-Fetch-Site (W3C Fetch Metadata) to hosts that they trust, loopback among them. Pages
can neither set nor remove either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sidecert.config.hosts import bracket, canonical_origin

_NOT_FROM_ELSEWHERE: Final = frozenset((b"same-origin", b"none"))


def page_elsewhere(
    said: Sequence[tuple[bytes, bytes]], scheme: str, host: str | None, port: int | None
) -> str | None:
    """The origin of the page, None where it is the request's own or there is no page.

    `said` are the Origin and Sec-Fetch-Site headers; scheme, host and port are those that the caller called.
    A sound origin comes as `canonical_origin` spells it, anything else as it was sent; empty where it is not
    told.
    """
    origins = [value for name, value in said if name.lower() == b"origin"]
    sites = [value.lower() for name, value in said if name.lower() != b"origin"]
    told = b", ".join(origins).decode("latin-1")
    origin = canonical_origin(told) or told
    own = None
    if host is not None:
        own = canonical_origin(f"{scheme}://{bracket(host)}" + ("" if port is None else f":{port}"))
    if (origins and origin != own) or not _NOT_FROM_ELSEWHERE.issuperset(sites):
        return origin
    return None
