"""A look-alike of an integration service that asks for a client certificate on port 8443.

It stands in for webMethods Integration Cloud: a certificate is mapped to one user as under Settings >
Client Certificate, a REST or a SOAP call runs an integration as that user, and a certificate the service
doesn't want is refused by OpenSSL itself, with the alert a real service sends. It imports nothing of the
sidecar, so that what it says about the sidecar's calls is a second opinion.

    people.py    the authority, the users and their certificates, made anew at every start
    tls.py       TLS on memory buffers, so that a refusal's alert always reaches the caller
    http.py      HTTP/1.1 on one connection (h11), bounded in size and time
    service.py   path and user -> answer: the REST integration, the page, the faults
    soap.py      the SOAP integration and its WSDL
    listener.py  the listening socket and its connections
"""

from sidecert.twin.listener import Twin
from sidecert.twin.people import USERS, Files, People, User, make

__all__ = ["USERS", "Files", "People", "Twin", "User", "make"]
