"""Which answers refuse the client certificate, and which only look like it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecert.http_verdict import MOST_BYTES, STATUSES, Signature, StartOfAnswer, recognise

HTML = ((b"Content-Type", b"text/html"),)


def nginx(title: str, product: str = "nginx/1.26.3") -> bytes:
    """A page as ngx_http_special_response.c writes it."""
    return (
        f"<html>\r\n<head><title>400 {title}</title></head>\r\n<body>\r\n"
        f"<center><h1>400 Bad Request</h1></center>\r\n<center>{title}</center>\r\n"
        f"<hr><center>{product}</center>\r\n</body>\r\n</html>\r\n"
    ).encode()


# Apache 2.4.71 under TLS 1.3 to a client without post-handshake authentication.
APACHE = b"""<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01//EN" "http://www.w3.org/TR/html4/strict.dtd">
<html><head>
<title>403 Forbidden</title>
</head><body>
<h1>Forbidden</h1>
<p>You don't have permission to access this resource.%s</p>
</body></html>
"""
APACHE_REASON = b"Reason: Cannot perform Post-Handshake Authentication.<br />"


def iis_page(said: str) -> bytes:
    """The page of IIS's custerr folder."""
    return (
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" '
        '"http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">\r\n<html xmlns="http://www.w3.org/1999/xhtml">'
        '\r\n<head>\r\n<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1"/>\r\n'
        f'<title>{said}</title>\r\n<style type="text/css">\r\n<!--\r\nbody{{margin:0;font-size:.7em}}\r\n-->'
        '\r\n</style>\r\n</head>\r\n<body>\r\n<div id="header"><h1>Server Error</h1></div>\r\n'
        f"<fieldset>\r\n  <h2>{said}</h2>\r\n</fieldset>\r\n</body>\r\n</html>\r\n"
    ).encode("latin-1")


def iis_detailed(code: str, word: str = "Forbidden") -> bytes:
    """The page that IIS shows in detail."""
    return (
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">\r\n<html> \r\n<head> \r\n'
        f'<title>IIS 10.0 Detailed Error - {code} - {word}</title> \r\n<style type="text/css"> \r\n'
        f"</style> \r\n</head> \r\n<body> \r\n<h3>HTTP Error {code} - {word}</h3>\r\n</body>\r\n</html>\r\n"
    ).encode()


IIS_6 = (
    b"<HTML><HEAD><TITLE>The page requires a client certificate</TITLE>\r\n"
    b"</HEAD><BODY><h2>HTTP Error 403.7 - Forbidden: SSL client certificate is required.<br>"
    b"Internet Information Services (IIS)</h2></BODY></HTML>"
)
KONG = b'{"message":"No required TLS certificate was sent"}'
KONG_PRETTY = (
    b'{\n  "message": "TLS certificate failed verification",\n  "request_id": "8d5f2c6e1e9d3b5b2c3a"\n}'
)
TOMCAT = (
    b'<!doctype html><html lang="en"><head><title>HTTP Status 401 \xe2\x80\x93 Unauthorized</title>'
    b'<style type="text/css">body {font-family:Tahoma,Arial,sans-serif;}</style></head><body>'
    b'<h1>HTTP Status 401 \xe2\x80\x93 Unauthorized</h1><hr class="line" /><p><b>Type</b> Status Report</p>'
    b"<p><b>Message</b> %s</p></body></html>"
)
TOMCAT_5 = (
    b"<html><head><title>Apache Tomcat/5.0.28 - Error report</title></head><body><h1>HTTP Status 400 - "
    b"No client\ncertificate chain in this request</h1></body></html>"
)

REFUSALS = [
    (Signature.NGINX_400, 400, nginx("The SSL certificate error")),
    (Signature.NGINX_400_REQUIRED, 400, nginx("No required SSL certificate was sent")),
    (Signature.NGINX_400_REQUIRED, 400, nginx("No required SSL certificate was sent", "openresty")),
    (
        Signature.NGINX_400,
        400,
        nginx("The SSL certificate error", "Microsoft-Azure-Application-Gateway/v2"),
    ),
    (Signature.APACHE_403, 403, APACHE % APACHE_REASON),
    (Signature.IIS_403_7, 403, iis_page("403.7 - Forbidden: SSL client certificate is required.")),
    (Signature.IIS_403_7, 403, iis_detailed("403.7")),
    (Signature.IIS_403_7, 403, IIS_6),
    (Signature.IIS_403_12, 403, iis_detailed("403.12")),
    (
        Signature.IIS_403_13,
        403,
        iis_page("403.13 - Forbidden: Client certificate has been revoked on the Web server."),
    ),
    (
        Signature.IIS_403_16,
        403,
        iis_page("403.16 - Forbidden: Client certificate is ill-formed or is not trusted by the Web server."),
    ),
    (
        Signature.IIS_403_17,
        403,
        iis_page("403.17 - Forbidden: Client certificate has expired or is not yet valid."),
    ),
    (Signature.IIS_403_16, 403, iis_detailed("403.16", "Verboten")),
    (Signature.KONG_401_REQUIRED, 401, KONG),
    (Signature.KONG_401, 401, KONG_PRETTY),
    (Signature.TOMCAT_401_REQUIRED, 401, TOMCAT % b"No client certificate chain in this request"),
    (Signature.TOMCAT_401, 401, TOMCAT % b"Cannot authenticate with the provided credentials"),
    (Signature.TOMCAT_401_REQUIRED, 400, TOMCAT_5),
    (Signature.TYK_403_REQUIRED, 403, b'{\n    "error": "Client TLS certificate is required"\n}'),
    (Signature.TYK_403, 403, b'{\n    "error": "Certificate with SHA256 %b not allowed"\n}' % (b"5f" * 32)),
    (Signature.HTTP_495, 495, b""),
    (Signature.HTTP_496, 496, b"whatever it says"),
]


@pytest.mark.parametrize(("signature", "status", "body"), REFUSALS)
def test_refusal_is_recognised_by_the_products_own_words(
    signature: Signature, status: int, body: bytes
) -> None:
    """In any case of letters, since proxies on the way may rewrite pages."""
    assert recognise(status, HTML, body) is signature
    assert recognise(status, HTML, body.upper()) is signature


def test_every_signature_has_an_answer_that_shows_it() -> None:
    """A new one without a real body to test it with fails here."""
    assert {signature for signature, _, _ in REFUSALS} == set(Signature)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b'{"error":"the certificate field is missing"}'),
        (400, b'{"error":"No required SSL certificate was sent"}'),
        (400, b"<html><head><title>400 Bad Request</title></head><p>The SSL certificate error</p></html>"),
        (400, nginx("The plain HTTP request was sent to HTTPS port")),
        (400, nginx("Request Header Or Cookie Too Large")),
        (400, b"<p>In our FAQ: what does 400 The SSL certificate error mean?</p>"),
        (403, nginx("The SSL certificate error")),
        (400, APACHE % APACHE_REASON),
        (403, APACHE % b""),
        (403, iis_page("403 - Forbidden: Access is denied.")),
        (403, iis_page("403.4 - Forbidden: SSL is required to view this resource.")),
        (403, iis_detailed("403.14")),
        (403, iis_detailed("403.170")),
        (401, iis_detailed("403.7")),
        (403, b'{"price":403.7 - 1,"text":"403.16 - Forbidden"}'),
        (403, b'{"message":"Forbidden"}'),
        (403, b'{"error":"Access to this API has been disallowed"}'),
        (403, KONG),
        (401, b'{"message":"Unauthorized"}'),
        (401, b'{"message":"ask why No required TLS certificate was sent"}'),
        (401, TOMCAT % b"This request requires HTTP authentication"),
        (401, b'{"error":"Cannot authenticate with the provided credentials"}'),
        (401, b'{"error":"No client certificate chain in this request"}'),
        (401, b"<html><body>[ISS.0084.9004] Access Denied</body></html>"),
        (400, b""),
        (403, b"\xff\xfe\x00\x01 not text \x80"),
        (200, nginx("The SSL certificate error")),
        (500, nginx("The SSL certificate error")),
        (404, iis_detailed("403.7")),
    ],
)
def test_answer_that_merely_speaks_of_certificates_does_not_count(status: int, body: bytes) -> None:
    """An application's own words, a product's other pages, or the right words under another status."""
    assert recognise(status, HTML, body) is None


@pytest.mark.parametrize("coding", [b"gzip", b"br", b" GZIP "])
def test_compressed_body_is_not_looked_into(coding: bytes) -> None:
    """Its bytes are not its words, whatever they look like; `identity` is none."""
    body = nginx("The SSL certificate error")
    assert recognise(400, [(b"content-ENCODING", coding)], body) is None
    assert recognise(400, [(b"Content-Encoding", b"identity")], body) is Signature.NGINX_400


def gathered(status: int, pieces: list[bytes]) -> Signature | None:
    """What a start makes of `pieces`, the last of which ends the body."""
    start = StartOfAnswer(status, HTML)
    for number, piece in enumerate(pieces):
        if start.add(piece, number == len(pieces) - 1):
            return start.recognise()
    raise AssertionError("it never had enough")


@given(cuts=st.lists(st.integers(0, 400), max_size=6), which=st.sampled_from(REFUSALS))
def test_body_may_come_in_any_pieces(cuts: list[int], which: tuple[Signature, int, bytes]) -> None:
    """Cut anywhere, also in the middle of the words, and with empty pieces."""
    signature, status, body = which
    at = [0, *sorted(cuts), len(body)]
    assert gathered(status, [body[a:b] for a, b in pairwise(at)]) is signature


def test_only_the_first_four_kilobytes_are_looked_at() -> None:
    """Nothing more is kept of a body without end, and the verdict does not wait for it."""
    page = nginx("The SSL certificate error")
    start = StartOfAnswer(400, HTML)
    assert not start.add(page, False)
    assert start.add(b" " * 10_000_000, False)
    assert start.recognise() is Signature.NGINX_400
    late = StartOfAnswer(400, HTML)
    assert late.add(b" " * MOST_BYTES + page, True)
    assert late.recognise() is None


@given(
    status=st.sampled_from([*STATUSES, 200, 0]),
    headers=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=3),
    body=st.binary(max_size=200),
)
def test_no_bytes_can_break_it(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Whatever an upstream sends, the answer goes on its way."""
    found = recognise(status, headers, body)
    assert found in {None, Signature.HTTP_495, Signature.HTTP_496}
    assert isinstance(StartOfAnswer(status, headers).server, str)
