"""Answers of HTTP that refuse the client certificate, a closed list, and the pure rule that knows them.

Some upstreams let the handshake pass and say only in an answer that they do not like the certificate. Only
what can be nothing else counts: the product's own words, as the whole text of a title, a heading or a JSON
string, under the product's own status. Left out, because others say the same: Apache's bare 403, IIS's
`403.htm`, the `{"message":"Forbidden"}` of AWS API Gateway, the 401 "Access Denied" of webMethods, and what a
policy of Azure API Management, Apigee or WSO2 was told to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum


class Signature(StrEnum):
    """The closed list: product, status, and what else tells its kinds apart.

    A new member needs an explanation too; a test notices when it is missing.
    """

    NGINX_400 = "nginx_400"
    NGINX_400_REQUIRED = "nginx_400_required"
    IIS_403_7 = "iis_403_7"
    IIS_403_12 = "iis_403_12"
    IIS_403_13 = "iis_403_13"
    IIS_403_16 = "iis_403_16"
    IIS_403_17 = "iis_403_17"
    APACHE_403 = "apache_403"
    KONG_401 = "kong_401"
    KONG_401_REQUIRED = "kong_401_required"
    TOMCAT_401 = "tomcat_401"
    TOMCAT_401_REQUIRED = "tomcat_401_required"
    TYK_403 = "tyk_403"
    TYK_403_REQUIRED = "tyk_403_required"
    HTTP_495 = "http_495"
    HTTP_496 = "http_496"


STATUSES = frozenset((400, 401, 403, 495, 496))
"""An answer with any other status never refuses a certificate, as far as `recognise` knows."""

MOST_BYTES = 4096
"""So much of a body is looked at: every page below says what it is in its first kilobyte."""

_IIS = {
    b"7": Signature.IIS_403_7,
    b"12": Signature.IIS_403_12,
    b"13": Signature.IIS_403_13,
    b"16": Signature.IIS_403_16,
    b"17": Signature.IIS_403_17,
}
# Titles of the detailed pages ("IIS 10.0 Detailed Error - 403.7 - Forbidden") and headings of the plain ones
# ("403.16 - Forbidden: Client certificate is ill-formed ..."), in any language. The numbers are those of
# https://learn.microsoft.com/en-us/troubleshoot/developer/webapps/iis/www-administration-management/http-status-code
_IIS_PAGE = re.compile(
    rb"<(?:title|h[23])>(?:iis [0-9.]+ detailed error - |http error )?403\.(7|12|13|16|17) - "
)

_WORDS: tuple[tuple[Signature, tuple[int, ...], tuple[bytes, ...]], ...] = (
    # src/http/ngx_http_special_response.c; Azure Application Gateway, OpenResty and Tengine have its pages.
    # https://nginx.org/en/docs/http/ngx_http_ssl_module.html#errors
    # https://learn.microsoft.com/en-us/azure/application-gateway/mutual-authentication-troubleshooting
    (Signature.NGINX_400_REQUIRED, (400,), (b"<title>400 no required ssl certificate was sent</title>",)),
    (Signature.NGINX_400, (400,), (b"<title>400 the ssl certificate error</title>",)),
    # `error-notes` in https://github.com/apache/httpd/blob/trunk/modules/ssl/ssl_engine_kernel.c
    (Signature.APACHE_403, (403,), (b"reason: cannot perform post-handshake authentication.<br />",)),
    # https://developer.konghq.com/plugins/mtls-auth/
    (Signature.KONG_401_REQUIRED, (401,), (b'"message":"no required tls certificate was sent"',)),
    (Signature.KONG_401, (401,), (b'"message":"tls certificate failed verification"',)),
    # SSLAuthenticator of Tomcat, JBoss Web and GlassFish; 400 in old ones.
    # https://bz.apache.org/bugzilla/show_bug.cgi?id=38553
    (
        Signature.TOMCAT_401_REQUIRED,
        (400, 401),
        (b"http status 40", b"no client certificate chain in this request"),
    ),
    (
        Signature.TOMCAT_401,
        (401,),
        (b"http status 401", b"cannot authenticate with the provided credentials"),
    ),
    # https://github.com/TykTechnologies/tyk/blob/master/certs/manager.go
    (Signature.TYK_403_REQUIRED, (403,), (b'"error":"client tls certificate is required"',)),
    (Signature.TYK_403, (403,), (b'"error":"certificate with sha256 ', b' not allowed"')),
)
# nginx's own numbers, which it turns into 400; who does send them means the same by them, such as Pomerium:
# https://www.pomerium.com/docs/reference/downstream-mtls-settings
_CODES = {495: Signature.HTTP_495, 496: Signature.HTTP_496}


def recognise(status: int, headers: Iterable[tuple[bytes, bytes]], start_of_body: bytes) -> Signature | None:
    """Which refusal the answer is, None where it is not surely one.

    `start_of_body` is its first `MOST_BYTES`, or all of it. Of a compressed body nothing is recognised.
    """
    if status in _CODES:
        return _CODES[status]
    if status not in STATUSES or not start_of_body or _is_encoded(headers):
        return None
    # All the words are ASCII. Pages break and indent their lines as they like.
    text = b" ".join(start_of_body[:MOST_BYTES].lower().split()).replace(b'": "', b'":"')
    for signature, statuses, words in _WORDS:
        if status in statuses and all(part in text for part in words):
            return signature
    page = _IIS_PAGE.search(text) if status == 403 else None
    return _IIS[page[1]] if page is not None else None


def _is_encoded(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(
        name.lower() == b"content-encoding" and value.strip().lower() not in (b"", b"identity")
        for name, value in headers
    )


class StartOfAnswer:
    """Gathers the first bytes of an answer's body as they come, and says once what they are."""

    __slots__ = ("_body", "_headers", "status")

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status = status
        self._headers = headers
        self._body = b""

    @property
    def server(self) -> str:
        """The Server header, empty where there is none."""
        named = (value for name, value in self._headers if name.lower() == b"server")
        return next(named, b"").decode("latin-1")

    def add(self, piece: bytes, done: bool) -> bool:
        """Whether enough has come; nothing is to be added after that."""
        self._body += piece[: MOST_BYTES - len(self._body)]
        return done or len(self._body) == MOST_BYTES

    def recognise(self) -> Signature | None:
        """What it is, by what has come."""
        return recognise(self.status, self._headers, self._body)
