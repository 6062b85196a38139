"""What the service answers: path and user in, answer out; nothing here does any I/O.

Paths are those of Integration Cloud: /integration/rest/external/integration/run/STAGE/PROJECT/NAME. The
401 is Integration Server's: the reason `[ISS.0084.9001] Invalid credentials` and `Access Denied` within.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from dataclasses import dataclass
from urllib.parse import unquote

from sidecert.twin import soap
from sidecert.twin.http import Answer, Request, fault

REST = "/integration/rest/external/integration/run/"
SOAP = "/integration/soap/external/integration/run/"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
ECHOED = (
    "host", "accept", "content-type", "content-length", "transfer-encoding", "user-agent", "soapaction",
    "authorization", "via", "forwarded", "x-forwarded-for", "connection", "proxy-connection",
)  # fmt: skip
SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end: `user` is None when the certificate is mapped to nobody."""

    user: str | None
    subject: str
    fingerprint: str
    tls: str


@dataclass(frozen=True, slots=True)
class Integration:
    stage: str
    project: str
    name: str


def answer(request: Request, caller: Caller, port: int) -> Answer:
    """The answer to `request`; `port` is the one the service listens on, for the addresses in a WSDL."""
    if request.path == "/":
        return _page(request, caller)
    if integration := _integration(request.path, REST):
        if request.method not in METHODS:
            return _method_not_allowed(request.method, METHODS)
        return _run_rest(request, caller, integration) if caller.user else _nobody()
    if integration := _integration(request.path, SOAP):
        return _soap(request, caller, integration, port)
    return fault(404, f"no integration is exposed at {request.path[:200]}")


def _integration(path: str, prefix: str) -> Integration | None:
    if not path.startswith(prefix):
        return None
    parts = [unquote(part) for part in path.removeprefix(prefix).split("/")]
    return Integration(*parts) if len(parts) == 3 and all(map(SEGMENT.fullmatch, parts)) else None


def _nobody() -> Answer:
    return fault(
        401,
        "[ISS.0084.9001] Invalid credentials: Access Denied. The client certificate is not mapped to a user"
        " (Settings > Client Certificate)",
        (("WWW-Authenticate", 'Basic realm="webMethods"'),),
        reason="[ISS.0084.9001] Invalid credentials",
    )


def _method_not_allowed(method: str, allowed: tuple[str, ...]) -> Answer:
    return fault(405, f"{method} does not run an integration", (("Allow", ", ".join(allowed)),))


def _page(request: Request, caller: Caller) -> Answer:
    if request.method not in ("GET", "HEAD"):
        return _method_not_allowed(request.method, ("GET", "HEAD"))
    who = f"user {caller.user}" if caller.user else "no user: this certificate is mapped to nobody"
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Integration twin</title></head><body>
<h1>Integration twin</h1>
<p>A look-alike of an integration service with 2-way SSL.</p>
<p>Your certificate: {html.escape(caller.subject)} ({html.escape(who)})</p>
<p>REST: {REST}STAGE/PROJECT/NAME<br>SOAP: {SOAP}STAGE/PROJECT/NAME (WSDL at ?wsdl)</p>
</body></html>
"""
    return Answer(200, "text/html; charset=utf-8", text.encode())


def _run_rest(request: Request, caller: Caller, integration: Integration) -> Answer:
    """Run as the caller's user. The echo tells the body as text, or as base64 where it isn't UTF-8."""
    echo: dict[str, object] = {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": {name: value for name, value in request.headers if name in ECHOED},
        "body_bytes": len(request.body),
        "body_sha256": hashlib.sha256(request.body).hexdigest(),
    }
    try:
        echo["body"] = request.body.decode()
    except UnicodeDecodeError:
        echo["body_base64"] = base64.b64encode(request.body).decode()
    document = {
        "user": caller.user,
        "stage": integration.stage,
        "project": integration.project,
        "integration": integration.name,
        "tls": {"version": caller.tls, "certificate": caller.subject, "fingerprint": caller.fingerprint},
        "request": echo,
    }
    return Answer(200, "application/json", json.dumps(document).encode() + b"\n")


def _soap(request: Request, caller: Caller, integration: Integration, port: int) -> Answer:
    address = f"https://{_authority(request.header('host'), port)}{request.path}"
    asks_for_wsdl = request.query.partition("=")[0].lower() == "wsdl"
    if request.method in ("GET", "HEAD") and asks_for_wsdl:
        return soap.wsdl(integration.name, address) if caller.user else _nobody()
    if request.method != "POST":
        return _method_not_allowed(request.method, ("POST", "GET", "HEAD") if asks_for_wsdl else ("POST",))
    return soap.run(request, caller.user, integration.name)


def _authority(host: str | None, port: int) -> str:
    """The host the caller used, with a port: in a WSDL it must lead back to this listener."""
    if host is None or not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", host):
        return f"localhost:{port}"
    return host if re.search(r":\d+$", host) else f"{host}:{port}"
