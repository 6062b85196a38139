"""Headers in which a proxy that ends TLS tells the service behind it who called.

An upstream that sits behind such a proxy elsewhere would believe our plain HTTP caller, so none is passed on.
Names are compared lower-case, with `-` for `_` and `.` (as CGI-like upstreams may read both) and without a
leading `X-`.

"By hand" are names that no product sets or reads by itself, but that guides and published configs use.
"""

from __future__ import annotations

from typing import Final

_PREFIXES: Final = (
    # Of standards and products.
    b"client-cert",  # RFC 9440; X-Client-Cert-...: Google Cloud load balancing, Kong, Puppet Server
    b"client-dn",  # X-Client-DN, and
    b"client-verif",  # X-Client-Verify: Puppet Server (`allow-header-cert-info`)
    b"ssl-client",  # ingress-nginx (`auth-tls-pass-certificate-to-upstream`), HAProxy and nginx by hand
    b"ssl-cert",  # X-SSL-Cert: nginx and HAProxy by hand
    b"sslclient",  # SSLClientCertStatus, SSLClientCertb64 ...: iRules of F5
    b"forwarded-client-cert",  # XFCC: Envoy, Istio, Cloud Foundry
    b"forwarded-tls-client",  # Traefik (`passTLSClientCert`)
    b"forwarded-ssl-client",  # Traefik 1, Apache Felix (Adobe Experience Manager)
    b"forwarded-ssl-cert",  # X-Forwarded-SSL-Certificate: Apache Felix
    b"arr-clientcert",  # IIS with Application Request Routing, Azure App Service
    b"amzn-mtls-",  # AWS Application Load Balancer
    b"cloudfront-viewer-cert-",  # AWS CloudFront
    b"cf-client-cert-",  # Cloudflare ("TLS client auth headers" of its managed transforms)
    b"cf-cert-",  # the same: Cf-Cert-Subject-DN, Cf-Cert-Verified
    b"wl-proxy-client-",  # Oracle WebLogic (`WeblogicPluginEnabled`): WL-Proxy-Client-Cert
    b"wl-proxy-ssl",
    b"$ws",  # IBM WebSphere (private headers of its plug-in): $WSCC is the certificate, $WSSN the host
    # By hand, from what nginx ($ssl_client_s_dn), Apache (SSL_CLIENT_S_DN) and HAProxy (ssl_c_s_dn) know.
    b"ssl-subject",  # X-SSL-Subject: also Puppet's guides for Apache
    b"ssl-issuer",
    b"ssl-verify",
    b"ssl-serial",
    b"ssl-s-dn",
    b"ssl-i-dn",
    b"ssl-dn",
    b"ssl-user",
    b"tls-client",
    b"tls-subject",
    b"subject-dn",  # X-Subject-DN: services that log people in by their smart card
    b"peer-cert",
    b"mtls-",  # X-Mtls-Clientcert
    b"client-ssl-",
    b"client-subject",
    b"client-s-dn",
    b"client-i-dn",
    b"clientcert",
)
_PREFIXES_WITH_X: Final = (b"x-cert-",)  # Cloudflare's examples for Workers. Too common a word without the X-
# By hand, and too common as prefixes. Remote-User is not here: it says nothing of TLS, and tools send it on
# purpose.
_NAMES: Final = frozenset({b"client-cn", b"x-client-cn", b"x-certificate"})


def tells_who_called(name: bytes) -> bool:
    """Whether a header of that name does; `name` is lower-case, with `-` for `_` and `.`."""
    return (
        name.removeprefix(b"x-").startswith(_PREFIXES) or name.startswith(_PREFIXES_WITH_X) or name in _NAMES
    )
