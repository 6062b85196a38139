"""What other tools say where sidecert says an outcome, a reason or a signature: so that a search finds it.

Seen with curl 7.88, OpenSSL 3.0 and 4.0, Java 17, Node 20, Python 3.12, wget 1.21, git 2.39 and libwww-perl
against servers that fail in just that way; the words of Postman, Go, .NET and IAIK (the TLS of webMethods
Integration Server and SAP PO) are those of their users' reports. `...` stands for what differs each
time. Data only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sidecert.errors import Reason
from sidecert.http_verdict import Signature
from sidecert.outcome import Outcome


class Saying(NamedTuple):
    """The words of one tool."""

    tool: str
    words: str


def _said(**tools: str) -> tuple[Saying, ...]:
    return tuple(Saying(_TOOLS[tool], line) for tool, lines in tools.items() for line in lines.split("\n"))


_TOOLS = {
    "postman": "Postman",
    "node": "Node.js, newman",
    "curl": "curl",
    "openssl": "openssl s_client",
    "java": "Java",
    "iaik": "webMethods, SAP (IAIK)",
    "python": "Python, requests",
    "go": "Go",
    "wget": "wget",
    "git": "git",
    "perl": "Perl",
    "dotnet": ".NET",
    "browser": "Chrome",
    "java_log": "Java, in the upstream's log",
    "go_log": "Go, in the upstream's log",
    "nginx_log": "nginx, in the upstream's log",
    "apache_log": "Apache, in the upstream's log",
}


def _alert(number: int, openssl: str, java: str, go: str) -> tuple[Saying, ...]:
    """What is said of a TLS alert; `openssl`, `java` and `go` have its names there."""
    code = openssl.replace(" ", "_").upper()
    # OpenSSL has renamed these in 3.2 and again in 4.0.
    names = [openssl.replace("sslv3", version) for version in ("sslv3", "ssl/tls", "tls")]
    return _said(
        postman=f"Error: write EPROTO ... SSL routines:OPENSSL_internal:{code} ... SSL alert number {number}",
        node=f"write EPROTO ... {openssl} ... SSL alert number {number}\nERR_SSL_{code}",
        curl=f"curl: (35) ... {openssl}\ncurl: (56) OpenSSL SSL_read: ... {openssl}, errno 0",
        openssl="\n".join(dict.fromkeys(f"SSL routines::{name}" for name in names)),
        java=f"javax.net.ssl.SSLHandshakeException: Received fatal alert: {java}",
        iaik=f"iaik.security.ssl.SSLException: Peer sent alert: Alert Fatal: {java.replace('_', ' ')}",
        python=f"ssl.SSLError: [SSL: {code}] {openssl}",
        go=f"remote error: tls: {go}",
    )


_HANDSHAKE_FAILURE = _alert(40, "sslv3 alert handshake failure", "handshake_failure", "handshake failure")
_NO_REASON = _said(
    postman="Error: socket hang up\nError: read ECONNRESET",
    curl="curl: (56) OpenSSL SSL_read: ... unexpected eof while reading, errno 0\n"
    "curl: (52) Empty reply from server",
    java="java.net.SocketException: Connection reset\njavax.net.ssl.SSLException: Connection reset",
)
_CLOSED = _said(
    postman="Error: Client network socket disconnected before secure TLS connection was established",
    node="ECONNRESET Client network socket disconnected before secure TLS connection was established\n"
    "read ECONNRESET",
    curl="curl: (35) OpenSSL SSL_connect: SSL_ERROR_SYSCALL in connection to ...\n"
    "curl: (35) Recv failure: Connection reset by peer",
    openssl="unexpected eof while reading\nwrite:errno=104",
    java="javax.net.ssl.SSLHandshakeException: Remote host terminated the handshake\n"
    "javax.net.ssl.SSLHandshakeException: Remote host closed connection during handshake\n"
    "java.net.SocketException: Connection reset",
    python="ssl.SSLEOFError: [SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol\n"
    "ConnectionResetError: [Errno 104] Connection reset by peer",
    go="EOF",
)
_PORT_SPEAKS_HTTP = _said(
    postman="Error: write EPROTO ... SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER",
    node="write EPROTO ... wrong version number",
    curl="curl: (35) ... wrong version number",
    openssl="SSL routines::wrong version number",
    java="javax.net.ssl.SSLException: Unsupported or unrecognized SSL message",
    python="ssl.SSLError: [SSL: WRONG_VERSION_NUMBER] wrong version number",
    go="http: server gave HTTP response to HTTPS client\n"
    "tls: first record does not look like a TLS handshake",
)

IN_GENERAL = _said(
    postman="Could not get any response\nCould not send request\nThe server could not send a response\n"
    "The server couldn't send a response: Ensure that the backend is working properly",
    curl="curl: (35) ...",
    java="javax.net.ssl.SSLHandshakeException",
    python="requests.exceptions.SSLError: HTTPSConnectionPool(...): Max retries exceeded with url: ...",
    dotnet="System.Net.Http.HttpRequestException: The SSL connection could not be established, "
    "see inner exception.\n"
    "The request was aborted: Could not create SSL/TLS secure channel.",
)
"""Said of nearly every failed handshake, so that it tells nothing."""

OWN_FILES = _said(
    curl="curl: (58) could not load PEM client certificate, OpenSSL error ..., "
    "(no key found, wrong pass phrase, or wrong file format?)\n"
    "curl: (58) unable to set private key file: '...' type PEM",
    openssl="Could not read private key from ...\nmaybe wrong password",
    postman="Error: mac verify failure\nError: bad decrypt",
    java="java.io.IOException: keystore password was incorrect\n"
    "java.io.IOException: Keystore was tampered with, or password was incorrect",
    python="ssl.SSLError: [SSL] PEM lib\nssl.SSLError: [X509: KEY_VALUES_MISMATCH] key values mismatch",
    go="tls: private key does not match public key",
)
"""Said where the files of the certificate cannot be used; sidecert looks at them before it starts."""

KNOWN_AS: Mapping[str, tuple[Saying, ...]] = {
    Outcome.CLIENT_CERT_REQUIRED: (
        *_said(  # TLS 1.3 only, and by other names in BoringSSL, which is in Postman
            postman="Error: write EPROTO ... SSL routines:OPENSSL_internal:TLSV1_CERTIFICATE_REQUIRED ... "
            "SSL alert number 116\nError: write EPROTO ... TLSV1_ALERT_CERTIFICATE_REQUIRED",
            node="ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED ... SSL alert number 116",
            curl="curl: (56) OpenSSL SSL_read: ... tlsv13 alert certificate required, errno 0\n"
            "curl: (98) ... tlsv13 alert certificate required",
            openssl="SSL routines::tlsv13 alert certificate required",
            java="javax.net.ssl.SSLHandshakeException: Received fatal alert: certificate_required",
            python="ssl.SSLError: [SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required",
            go="remote error: tls: certificate required",
        ),
        *_HANDSHAKE_FAILURE,
        *_said(
            java_log="javax.net.ssl.SSLHandshakeException: Empty client certificate chain\n"
            "javax.net.ssl.SSLHandshakeException: null cert chain",
            go_log="tls: client didn't provide a certificate",
            browser="ERR_BAD_SSL_CLIENT_AUTH_CERT",
        ),
    ),
    Outcome.CLIENT_CERT_UNKNOWN_CA: (
        *_alert(48, "tlsv1 alert unknown ca", "unknown_ca", "unknown certificate authority"),
        *_said(
            go_log="tls: failed to verify certificate: x509: certificate signed by unknown authority",
            java_log="javax.net.ssl.SSLHandshakeException: PKIX path building failed",
        ),
    ),
    Outcome.CLIENT_CERT_EXPIRED: (
        *_alert(45, "sslv3 alert certificate expired", "certificate_expired", "expired certificate"),
        *_said(curl="curl: (60) SSL certificate verification failed"),
    ),
    Outcome.CLIENT_CERT_REVOKED: _alert(
        44, "sslv3 alert certificate revoked", "certificate_revoked", "revoked certificate"
    ),
    Outcome.CLIENT_CERT_UNSUPPORTED: _alert(
        43, "sslv3 alert unsupported certificate", "unsupported_certificate", "unsupported certificate"
    ),
    Outcome.CLIENT_CERT_REJECTED: (
        *_alert(42, "sslv3 alert bad certificate", "bad_certificate", "bad certificate"),
        *_alert(46, "sslv3 alert certificate unknown", "certificate_unknown", "unknown certificate"),
        *_HANDSHAKE_FAILURE,
        *_alert(49, "tlsv1 alert access denied", "access_denied", "access denied"),
        *_alert(51, "tlsv1 alert decrypt error", "decrypt_error", "error decrypting message"),
        *_NO_REASON,
        *_said(browser="ERR_BAD_SSL_CLIENT_AUTH_CERT"),
    ),
    Outcome.SERVER_UNTRUSTED: _said(
        postman="Self-signed SSL certificates are blocked\nSelf-signed SSL certificates are being blocked\n"
        "SSL Error: Self signed certificate\nSSL Error: Unable to verify the first certificate\n"
        "Error: self signed certificate in certificate chain\nError: unable to verify the first certificate",
        node="DEPTH_ZERO_SELF_SIGNED_CERT self-signed certificate\n"
        "SELF_SIGNED_CERT_IN_CHAIN self-signed certificate in certificate chain\n"
        "UNABLE_TO_VERIFY_LEAF_SIGNATURE unable to verify the first certificate\n"
        "UNABLE_TO_GET_ISSUER_CERT_LOCALLY unable to get local issuer certificate",
        curl="curl: (60) SSL certificate problem: unable to get local issuer certificate\n"
        "curl: (60) SSL certificate problem: self-signed certificate\n"
        "curl: (60) SSL certificate problem: self-signed certificate in certificate chain",
        openssl="Verify return code: 20 (unable to get local issuer certificate)\n"
        "Verify return code: 18 (self-signed certificate)\n"
        "Verify return code: 19 (self-signed certificate in certificate chain)\n"
        "Verify return code: 21 (unable to verify the first certificate)",
        java="javax.net.ssl.SSLHandshakeException: PKIX path building failed: "
        "sun.security.provider.certpath.SunCertPathBuilderException: "
        "unable to find valid certification path to requested target",
        python="ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
        "unable to get local issuer certificate",
        go="tls: failed to verify certificate: x509: certificate signed by unknown authority",
        dotnet="The remote certificate is invalid because of errors in the certificate chain: UntrustedRoot\n"
        "The remote certificate is invalid according to the validation procedure: "
        "RemoteCertificateChainErrors",
        browser="ERR_CERT_AUTHORITY_INVALID",
    ),
    Outcome.SERVER_EXPIRED: _said(
        postman="Error: certificate has expired",
        node="CERT_HAS_EXPIRED certificate has expired",
        curl="curl: (60) SSL certificate problem: certificate has expired",
        openssl="Verify return code: 10 (certificate has expired)\n"
        "Verify return code: 9 (certificate is not yet valid)",
        java="javax.net.ssl.SSLHandshakeException: PKIX path validation failed: "
        "java.security.cert.CertPathValidatorException: validity check failed\n"
        "java.security.cert.CertificateExpiredException: NotAfter: ...",
        python="ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
        "certificate has expired",
        go="tls: failed to verify certificate: x509: certificate has expired or is not yet valid",
        dotnet="The remote certificate is invalid because of errors in the certificate chain: NotTimeValid",
        browser="ERR_CERT_DATE_INVALID",
    ),
    Outcome.SERVER_NAME_MISMATCH: _said(
        postman="Error: Hostname/IP does not match certificate's altnames: ...",
        node="ERR_TLS_CERT_ALTNAME_INVALID Hostname/IP does not match certificate's altnames: ...",
        curl="curl: (60) SSL: no alternative certificate subject name matches target host name '...'\n"
        "curl: (51) SSL: no alternative certificate subject name matches target host name '...'",
        openssl="Verify return code: 62 (hostname mismatch)\nVerify return code: 64 (IP address mismatch)",
        java="javax.net.ssl.SSLHandshakeException: No name matching ... found\n"
        "javax.net.ssl.SSLHandshakeException: No subject alternative DNS name matching ... found.\n"
        "javax.net.ssl.SSLHandshakeException: No subject alternative names matching IP address ... found",
        python="ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
        "Hostname mismatch, certificate is not valid for '...'",
        go="tls: failed to verify certificate: x509: certificate is valid for ..., not ...",
        dotnet="The remote certificate is invalid according to the validation procedure: "
        "RemoteCertificateNameMismatch",
        browser="ERR_CERT_COMMON_NAME_INVALID",
    ),
    Outcome.PROTOCOL_MISMATCH: (
        *_alert(70, "tlsv1 alert protocol version", "protocol_version", "protocol version not supported"),
        *_said(
            curl="curl: (35) ... unsupported protocol",
            openssl="SSL routines::unsupported protocol",
            java="javax.net.ssl.SSLHandshakeException: No appropriate protocol "
            "(protocol is disabled or cipher suites are inappropriate)",
            browser="ERR_SSL_VERSION_OR_CIPHER_MISMATCH",
        ),
    ),
    Outcome.NO_SHARED_PARAMETERS: (
        *_HANDSHAKE_FAILURE,
        *_alert(
            71, "tlsv1 alert insufficient security", "insufficient_security", "insufficient security level"
        ),
        *_said(
            openssl="SSL routines::dh key too small",
            java_log="javax.net.ssl.SSLHandshakeException: no cipher suites in common",
            browser="ERR_SSL_VERSION_OR_CIPHER_MISMATCH",
        ),
    ),
    Outcome.NOT_TLS: _PORT_SPEAKS_HTTP,
    Outcome.CLOSED_IN_HANDSHAKE: _CLOSED,
    Outcome.HANDSHAKE_TIMEOUT: _said(
        postman="Error: ESOCKETTIMEDOUT",
        curl="curl: (28) SSL connection timeout\ncurl: (28) Operation timed out",
        java="java.net.SocketTimeoutException: Read timed out",
        python="TimeoutError: _ssl.c: ... The handshake operation timed out",
        go="net/http: TLS handshake timeout",
    ),
    Outcome.CONNECT_REFUSED: _said(
        postman="Error: connect ECONNREFUSED ...",
        node="connect ECONNREFUSED ...",
        curl="curl: (7) Failed to connect to ... port ...: Connection refused\n"
        "curl: (7) Failed to connect to ... port ... after ... ms: Couldn't connect to server",
        java="java.net.ConnectException: Connection refused",
        python="ConnectionRefusedError: [Errno 111] Connection refused\n"
        "urllib3.exceptions.NewConnectionError: Failed to establish a new connection: "
        "[Errno 111] Connection refused",
        go="connect: connection refused",
        dotnet="No connection could be made because the target machine actively refused it.",
        browser="ERR_CONNECTION_REFUSED",
    ),
    Outcome.CONNECT_TIMEOUT: _said(
        postman="Error: connect ETIMEDOUT ...",
        node="connect ETIMEDOUT ...",
        curl="curl: (28) Failed to connect to ... port ...: Connection timed out\n"
        "curl: (28) Connection timed out after ... milliseconds",
        java="java.net.SocketTimeoutException: connect timed out\n"
        "java.net.ConnectException: Connection timed out",
        python="requests.exceptions.ConnectTimeout: HTTPSConnectionPool(...): "
        "Max retries exceeded with url: ...",
        go="dial tcp ...: i/o timeout",
        browser="ERR_CONNECTION_TIMED_OUT",
    ),
    Outcome.DNS_FAILED: _said(
        postman="Error: getaddrinfo ENOTFOUND ...\nError: getaddrinfo EAI_AGAIN ...",
        node="getaddrinfo ENOTFOUND ...",
        curl="curl: (6) Could not resolve host: ...",
        java="java.net.UnknownHostException: ...",
        python="socket.gaierror: [Errno -2] Name or service not known",
        go="dial tcp: lookup ...: no such host",
        dotnet="No such host is known.",
        browser="ERR_NAME_NOT_RESOLVED",
    ),
    Outcome.CONNECT_FAILED: _said(
        postman="Error: connect EHOSTUNREACH ...\nError: connect ENETUNREACH ...",
        curl="curl: (7) Failed to connect to ... port ...: No route to host",
        java="java.net.NoRouteToHostException: No route to host",
        python="OSError: [Errno 113] No route to host",
        go="connect: no route to host",
    ),
    Outcome.TLS_ERROR: (
        *_alert(112, "tlsv1 unrecognized name", "unrecognized_name", "unrecognized name"),
        *_alert(80, "tlsv1 alert internal error", "internal_error", "internal error"),
    ),
    Reason.BAD_REQUEST.word: (
        *_PORT_SPEAKS_HTTP,
        *_said(
            node="fetch failed ERR_SSL_WRONG_VERSION_NUMBER",
            java="javax.net.ssl.SSLException: Unrecognized SSL message, plaintext connection?",
            wget="GnuTLS: An unexpected TLS packet was received.\nUnable to establish SSL connection.",
            perl="SSL connect attempt failed error:...:SSL routines::wrong version number",
            browser="ERR_SSL_PROTOCOL_ERROR",
        ),
    ),
    Reason.CONNECT_NOT_ALLOWED.word: _said(
        postman="Error: tunneling socket could not be established, statusCode=403",
        node="tunneling socket could not be established, statusCode=403\n"
        "Proxy response (403) !== 200 when HTTP Tunneling",
        curl="curl: (56) CONNECT tunnel failed, response 403\n"
        "curl: (56) Received HTTP code 403 from proxy after CONNECT",
        wget="Proxy tunneling failed: Forbidden\nUnable to establish SSL connection.",
        git="fatal: unable to access '...': CONNECT tunnel failed, response 403",
        openssl="s_client: HTTP CONNECT failed, reason= 403 Forbidden",
        java='java.io.IOException: Unable to tunnel through proxy. Proxy returns "HTTP/1.1 403 Forbidden"\n'
        "java.io.IOException: Tunnel failed, got: 403",
        python="OSError: Tunnel connection failed: 403 Forbidden\n"
        "urllib.error.URLError: <urlopen error Tunnel connection failed: 403 Forbidden>\n"
        "requests.exceptions.ProxyError: ... ('Unable to connect to proxy', "
        "OSError('Tunnel connection failed: 403 Forbidden'))",
        perl="500 establishing SSL tunnel failed: 403 Forbidden",
        dotnet="The proxy tunnel request to proxy '...' failed with status code '403'.",
        browser="ERR_TUNNEL_CONNECTION_FAILED",
    ),
    Reason.UPSTREAM_CLOSED.word: _said(
        postman="Error: socket hang up",
        curl="curl: (52) Empty reply from server\ncurl: (56) Recv failure: Connection reset by peer",
        java="java.net.SocketException: Unexpected end of file from server\n"
        "org.apache.http.NoHttpResponseException: ... failed to respond",
        python="requests.exceptions.ConnectionError: ('Connection aborted.', "
        "RemoteDisconnected('Remote end closed connection without response'))",
        dotnet="The response ended prematurely.",
    ),
    Reason.UPSTREAM_BAD_ANSWER.word: _said(
        postman="Error: Parse Error: ...",
        curl="curl: (1) Received HTTP/0.9 when not allowed\ncurl: (8) Weird server reply",
        python="http.client.BadStatusLine: ...",
    ),
    Reason.RESPONSE_TIMEOUT.word: _said(
        postman="Error: ESOCKETTIMEDOUT\nRequest timed out",
        curl="curl: (28) Operation timed out after ... milliseconds with 0 bytes received",
        java="java.net.SocketTimeoutException: Read timed out",
        python="requests.exceptions.ReadTimeout: HTTPSConnectionPool(...): Read timed out.",
        go="context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
        dotnet="The request was canceled due to the configured HttpClient.Timeout of 100 seconds elapsing.",
    ),
    Signature.NGINX_400: _said(
        browser="400 Bad Request: The SSL certificate error",
        nginx_log="client SSL certificate verify error: (...) while reading client request headers",
    ),
    Signature.NGINX_400_REQUIRED: _said(
        browser="400 Bad Request: No required SSL certificate was sent",
        nginx_log="client sent no required SSL certificate while reading client request headers",
    ),
    Signature.APACHE_403: _said(
        browser="You don't have permission to access this resource.Reason: Cannot perform Post-Handshake "
        "Authentication.",
        apache_log="AH10158: cannot perform post-handshake authentication",
    ),
}
"""By the name of the outcome, reason or signature. What no other tool has a word for is left out."""
