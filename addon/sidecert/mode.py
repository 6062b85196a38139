"""The proxy mode `mtls`: how mitmproxy sees our listeners, in its options, its log and mitmweb.

Importing this registers the mode with mitmproxy. The connections are served by our own protocols, not by
mitmproxy's layers; which addresses are opened stands in sidecert's config, not in the mode's spec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mitmproxy import ctx
from mitmproxy.connection import Address
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import ProxyMode

if TYPE_CHECKING:
    from sidecert.addon import Sidecert

SPEC = "mtls"


class MtlsMode(ProxyMode):
    """Plain HTTP in, mutual TLS out, by sidecert's config."""

    description = "sidecert (plain HTTP to mutual TLS)"
    transport_protocol: Literal["tcp", "udp", "both"] = "tcp"
    default_port = None

    def __post_init__(self) -> None:
        if self.full_spec != SPEC:
            raise ValueError("mode takes no arguments: addresses stand in sidecert's config")


class MtlsInstance(ServerInstance[MtlsMode]):
    """The one instance of the mode: all configured listeners together."""

    @property
    def is_running(self) -> bool:
        return _addon().is_listening

    @property
    def listen_addrs(self) -> tuple[Address, ...]:
        return _addon().listen_addrs

    async def _start(self) -> None:
        await _addon().listen()

    async def _stop(self) -> None:
        await _addon().stop_listening()

    def make_top_layer(self, context: Context) -> Layer:
        raise AssertionError("no connection of this mode is served by mitmproxy's layers")


def _addon() -> Sidecert:
    addon: Sidecert = ctx.master.addons.get("sidecert")
    return addon
