"""sidecert: a plain HTTP call goes in, the same call goes out as mutual TLS, and its handshake is counted.

The way of a call, and where to read on:

    listeners     the addresses that callers connect to (`sockets` binds them)
    downstream    one plain HTTP connection: requests read one at a time (`http1`), answered in order
    exchange      one request on its way, and what becomes of it
    plane         what all calls share; finds the route (`routing`) and with it the credential
    pool          the connections of one route; who may reuse which
    upstream      one mutual-TLS connection: `connect` finds the way, `tls` shakes hands and observes
    attempt       one handshake on it, from its beginning to its verdict: counted and logged once
    outcome       what came of that handshake, from a closed list (`explain` says it in words)
    metrics       the numbers; `answers` are what sidecert says itself

What it goes by: `config` (the file), `credentials` (certificates and keys), both built into a `generation`,
which `reload` swaps. What it lives in: `addon` and `mode` (mitmproxy), `admin` (metrics, health, status
page), `inspection` (calls as mitmproxy flows, when somebody looks), `cli`. When a call fails: `diagnosis`,
which `cli` calls by the name of doctor. The `twin` is a look-alike
service to call, and stands apart.
"""
