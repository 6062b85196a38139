"""sidecert: a plain HTTP call goes in, the same call goes out as mutual TLS, and its handshake is counted.

The way of a call, and where to read on:

    listeners     the addresses that callers connect to (`sockets` binds them, `backlog` closes their queues)
    downstream    one plain HTTP connection: requests read one at a time (`http1`), answered in order
    callers       who may call: by their address, and by the page that made their browser call
    exchange      one request on its way, and what becomes of it
    plane         what all calls share; finds the route (`routing`, `paths`) and with it the credential
    pool          the connections of one route; who may reuse which
    circuit       which upstreams are left alone for a while
    upstream      one mutual-TLS connection: `connect` finds the way, `tls` shakes hands and observes
    attempt       one handshake on it, from its beginning to its verdict: counted and logged once
    outcome       what came of that handshake, from a closed list
    rewriting     the addresses and cookies in an answer, made right for a caller of plain HTTP
    metrics       the numbers

On all of it: `timers` (deadlines), `outflow` (whether what was written still leaves) and `memo` (what was
worked out before).

What is said of a call that fails:

    explain       an outcome in words, from the `evidence`, the certificates (`presented`) and their `faults`
    http_verdict  an answer of an upstream that refuses the certificate (`explain_http`)
    errors        our own reasons (`explain_reason`)
    refusals      any of these as one of our `answers`, in the form that `media_types` chooses
    calllog       the same for the log (`logs`, `words`), without what repeats itself (`sparing`)
    errors_page   all of them on one page, with what other tools say (`known_as`)
    diagnosis     handshakes made to find out, which `cli` calls by the name of doctor

What it goes by:

    config        the file
    credentials   the certificates and keys that it names
    generation    both, loaded and checked
    reload        puts the next one in force, when somebody asks, or `watch` has seen a change
    proving       shows new certificates to upstreams first, each in a `trial` beside the one before

What it lives in: `addon` and `mode` (mitmproxy), `script` (mitmproxy's own tools), `admin` (metrics, health,
status page), `inspection` (calls as mitmproxy flows, when somebody looks), `cli`. The process: `hardening`
(nobody reads its memory), `openfiles` (how many it may have), `threads` (for what may hang). The `twin` is a
look-alike service to call, and stands apart.
"""
