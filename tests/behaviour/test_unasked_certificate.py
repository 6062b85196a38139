"""An upstream that asks for no certificate: everything seems to work, so the log says it, once."""

from __future__ import annotations

import signal

import pytest

from support.certs import Pki
from support.peers import Peers
from support.recorder import TlsVersion
from support.sidecar import Sidecar, StartSidecar, route

TLS: list[TlsVersion] = ["1.2", "1.3"]


def told(running: Sidecar) -> list[str]:
    return [record["route"] for record in running.events("certificate_not_requested")]


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("server", ["nginx", "haproxy", "openssl", "recorder"])
def test_upstream_that_never_asks_is_told_once(
    server: str, tls: TlsVersion, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Each connection is counted as not asked, and one record names the route that has a credential."""
    upstream = getattr(peers, server)(tls=tls, verify="off")
    idle = {"pool": {"max_idle": 0}}  # so that each call opens a connection
    running = sidecar(
        route("orders", upstream, trust=pki.trust, **idle),
        route("open", upstream, trust=pki.trust, credential="none", **idle),
    )
    for name in ("orders", "open"):
        for _ in range(3):
            assert running.get(f"http://{name}.test/").status == 200
        assert running.outcomes(name) == {"ok": 3}
        for requested, count in (("no", 3), ("yes", 0)):
            assert (
                running.metric("sidecert_client_cert_requests_total", route=name, requested=requested)
                == count
            )
    assert told(running) == ["orders"]
    (record,) = running.events("certificate_not_requested")
    assert (record["level"], record["credential"], record["upstream"]) == (
        "warning",
        "alice",
        upstream.address,
    )
    assert "upstream.port" in record["remedy"]


def test_it_is_told_again_after_a_reload_and_never_of_one_that_asks(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """A generation's log is whole by itself."""
    silent, asking = peers.recorder(verify="off"), peers.recorder(verify="optional")
    idle = {"pool": {"max_idle": 0}}
    running = sidecar(
        route("orders", silent, trust=pki.trust, **idle), route("asked", asking, trust=pki.trust, **idle)
    )

    def call_all() -> None:
        for name in ("orders", "asked", "orders", "asked"):
            assert running.get(f"http://{name}.test/").status == 200

    call_all()
    assert told(running) == ["orders"]
    running.signal(signal.SIGHUP)
    running.wait_for(lambda: running.metric("sidecert_config_generation") == 2)
    call_all()
    assert told(running) == ["orders", "orders"]
