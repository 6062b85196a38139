"""Why sidecert answers a call itself, in general words; each answer has those of its own case.

Pure. A `Reason` that calls are refused with needs an entry in `REASONS`; a test notices when it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

from sidecert.errors import Reason

REASONS: Mapping[Reason, tuple[str, str]] = {
    Reason.BAD_REQUEST: (
        "The request cannot be understood without doubt: its syntax, its path or its Host is not sound, its "
        "body does not come whole, or its path could be read as that of another route.",
        "Correct the tool that sends it; `detail` says what is wrong. Where a tool speaks of TLS or of a "
        "wrong version number, it was given https:// with the address of sidecert: call http:// there, as in "
        "`curl http://127.0.0.1:8080/`; sidecert itself makes the TLS connection.",
    ),
    Reason.NO_ROUTE: (
        "No route of the config has this host, port and path. sidecert calls only what its config names.",
        "Ask which route comes close: `sidecert why http://HOST/PATH -X METHOD`; then add a route, or "
        "correct the address in the tool. `match.port` is that of this address, so mostly 80 and not 8443.",
    ),
    Reason.METHOD_NOT_ALLOWED: (
        "Routes match this host and path, but `match.methods` of each leaves this method out; or a header "
        "such as X-HTTP-Method-Override asks for another method, with which the call would not belong to its "
        "route. `detail` says which.",
        "Use one of the methods that `detail` names, or add this one to the route; leave out the header "
        "where the service needs none.",
    ),
    Reason.HOST_NOT_ALLOWED: (
        "The call came to a listener of one route, with a Host that is neither that route's nor the "
        "listener's own. A web page that plays tricks with DNS does so too.",
        "Call the listener by its own address, or by the host of its route.",
    ),
    Reason.CALLER_NOT_ALLOWED: (
        "The caller's address is none of those in `allow` of the listener (on a loopback listener without "
        "`allow`: it is not loopback). Or a browser sent the request for a web page of another origin, as "
        "its Origin or Sec-Fetch-Site says: any page on the web can make a browser send requests to where "
        "that reaches, and this one would go on under somebody's certificate. `detail` says which.",
        "If the caller is meant to call, add its address or network to `allow` of the listener; if the page "
        "is, add its origin to `origins`. Both take `any`.",
    ),
    Reason.PRIVATE_ADDRESS: (
        "The host came through a wildcard (`*.example.com`) and its name leads to a loopback, link-local or "
        "private address, which whoever runs that DNS could abuse.",
        "Set `private: true` on the route if such addresses are meant, or name the host itself in a route.",
    ),
    Reason.CONNECT_NOT_ALLOWED: (
        "The tool was given an https:// address and sidecert as its proxy, so it asked for a tunnel "
        "(CONNECT). Inside a tunnel the tool makes the TLS connection itself, and sidecert could not present "
        "a certificate.",
        "Give the tool the address with http:// instead of https://, and sidecert as the proxy for http "
        "(`http_proxy`, not `https_proxy`): `http_proxy=http://127.0.0.1:8080 curl http://HOST/PATH`. "
        "sidecert makes the TLS connection. `sidecert why https://HOST/PATH` tells what to call instead.",
    ),
    Reason.HEADER_TOO_LARGE: (
        "The request's header is larger than `limits.header_bytes` of the config, or has too many lines.",
        "Send fewer or smaller headers (mostly cookies or tokens), or raise `limits.header_bytes`.",
    ),
    Reason.METHOD_UNKNOWN: (
        "The request's method is none that HTTP knows; methods are written in capitals.",
        "Correct the method in the tool.",
    ),
    Reason.UPSTREAM_CLOSED: (
        "The upstream closed the connection before an answer began: after the request was sent, which may "
        "then have been processed, or as soon as the connection stood, with nothing sent; `detail` says "
        "which.",
        "Look into the upstream's log. The request can safely be sent again where `detail` says that no byte "
        "of it was sent; else only if it may be done twice.",
    ),
    Reason.UPSTREAM_BAD_ANSWER: (
        "The upstream's answer is malformed, or could be read in two ways, and is not passed on.",
        "Tell those who run the upstream what `detail` says; the request may have been processed.",
    ),
    Reason.OVERLOADED: (
        "As many callers are connected as `limits.connections` of the config allows, or so many host "
        "names are being looked up without an answer that no other is; `detail` says which.",
        "Call again after `Retry-After`; raise `limits.connections` if it happens in everyday use, and look "
        "at the name servers if names hang.",
    ),
    Reason.POOL_FULL: (
        "All of the route's connections to the upstream were in use for longer than a call may wait, or as "
        "many calls as may wait (`upstream.pool.max_waiting`) did so already; `detail` says which.",
        "Call again after `Retry-After`; raise `upstream.pool.max_connections` if the upstream takes more. "
        "Where it is slow to answer, find out why.",
    ),
    Reason.CIRCUIT_OPEN: (
        "As many attempts in a row to open a connection to the upstream have failed as "
        "`upstream.circuit.failures` of the route says, so calls that would need a new connection are "
        "answered at once. After `upstream.circuit.pause` one call tries again; until its verdict the others "
        "are answered so. `detail`, `evidence` and `remedy` are those of the last attempt.",
        "Do what `remedy` says about the last attempt, whose outcome `detail` names. No restart is needed: "
        "calls try again by themselves after `Retry-After`, and at once after a reload that changes the "
        "route or its files. `sidecert doctor ROUTE` tries now. With `upstream.circuit.failures: 0` each "
        "call tries.",
    ),
    Reason.DRAINING: (
        "The sidecar was told to end (SIGTERM or SIGINT), and this call had no answer yet when the time that "
        "`drain` of the config gives to calls in flight was over.",
        "Call again after `Retry-After`, when the sidecar has been started anew; a request that may have "
        "been processed (`detail` says so) only if it may be done twice. Raise `drain` if such calls take "
        "longer in everyday use, and with it the time that whoever ends the process gives it "
        "(`terminationGracePeriodSeconds`, `TimeoutStopSec`).",
    ),
    Reason.RESPONSE_TIMEOUT: (
        "The upstream took the request, but did not answer in time, or stopped reading it.",
        "Find out why the upstream is slow, or raise `upstream.timeouts.response` of the route "
        "(`upstream.timeouts.stall` where it stopped in the middle); the request may have been processed.",
    ),
    Reason.INTERNAL: (
        "An error of sidecert's own; or, inside mitmproxy, an addon of yours made something of the call that "
        "cannot be sent. `detail` says which. The call was not sent again.",
        "Correct the addon, or run without it. Report an error of sidecert's own, with the lines of the log "
        "that have the same `request_id`.",
    ),
}
"""Cause and remedy of each."""
