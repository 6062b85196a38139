"""One description per proxy: its configuration, written to its folder, and the command that runs it.

Each adds alice's certificate, checks the upstream's against the same CA and the name localhost, runs as one
worker and keeps as many upstream connections as it is given reason to open, unless its name says otherwise.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import HOST
from bench.scenarios import Variant
from support import sidecar
from support.certs import Pki, write_private
from support.inspecting import SCRIPT
from support.peers import Peer, haproxy_program, nginx_program

UPSTREAM_NAME = "localhost"
_MOST = 1024  # connections to the upstream; more than any load has
_BIN = Path(sys.executable).parent

_LOOKING_ADDON = '''
seen = {"calls": 0, "bytes": 0}


def response(flow):
    """What an addon that inspects looks at."""
    seen["calls"] += 1
    seen["bytes"] += len(flow.request.path) + len(flow.response.raw_content or b"")
'''


@dataclass(frozen=True)
class Place:
    """Where a proxy runs: its own folder and ports, the certificates, the upstream, and its variant."""

    folder: Path
    port: int
    admin_port: int
    pki: Pki
    upstream: Peer
    variant: Variant

    @property
    def alice(self) -> Path:
        """alice's key and certificates in one file, as some want them."""
        both = self.pki.alice.key.read_bytes() + self.pki.alice.certificate.read_bytes()
        return write_private(self.folder / "alice.pem", both)

    def write(self, name: str, text: str) -> str:
        return str(write_private(self.folder / name, text.encode()))


class NotToBeHad(Exception):
    """The proxy is not on this machine; the words say why."""


def sidecert(place: Place) -> list[str]:
    variant, pki = place.variant, place.pki
    credentials = {"alice": pki.alice.config}
    for number in range(1, variant.credentials):
        credentials[f"other-{number}"] = (
            pki.ca.caller(f"other-{number}").write(place.folder / "others").config
        )
    names = list(credentials)
    upstream = {
        "trust": pki.trust,
        "server_name": UPSTREAM_NAME,
        "pool": {"max_idle": _MOST, "max_connections": _MOST},
    }
    routes = [sidecar.route("bench", place.upstream, host=HOST, **upstream)]
    for number in range(1, max(variant.routes, variant.credentials)):
        holder = names[number % len(names)]
        routes.append(sidecar.route(f"other-{number}", place.upstream, credential=holder, **upstream))
    config = sidecar.config(routes, credentials, listeners=[{"bind": f"127.0.0.1:{place.port}"}])
    config["admin"] = {"bind": f"127.0.0.1:{place.admin_port}"}
    path = place.write("sidecert.yaml", json.dumps(config, indent=1))  # which is YAML, and quick to write
    if variant.inspecting:
        return [*_mitmdump(place), "-n", "-s", str(SCRIPT), "--set", f"sidecert={path}"]
    return [sidecar.PROGRAM, "run", "-c", path, *(("--access-log",) if variant.access_log else ())]


def nginx(place: Place, *, pooled: bool = True) -> list[str]:
    folder, pki, upstream = place.folder, place.pki, place.upstream.address
    keep = f"keepalive {_MOST}; keepalive_requests 1000000000; keepalive_timeout 3600s;" if pooled else ""
    text = f"""
        daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr error;
        events {{ worker_connections 8192; }}
        http {{
            access_log {f"{folder}/access.log" if place.variant.access_log else "off"};
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
            fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
            upstream service {{ server {upstream}; {keep} }}
            server {{
                listen 127.0.0.1:{place.port} backlog=4096;
                keepalive_requests 1000000000; client_max_body_size 0;
                location / {{
                    proxy_pass https://service;
                    proxy_http_version 1.1; proxy_set_header Connection {'""' if pooled else "close"};
                    proxy_request_buffering off; proxy_max_temp_file_size 0;
                    proxy_set_header Host {upstream};
                    proxy_ssl_certificate {pki.alice.certificate};
                    proxy_ssl_certificate_key {pki.alice.key};
                    proxy_ssl_trusted_certificate {pki.trust}; proxy_ssl_verify on;
                    proxy_ssl_name {UPSTREAM_NAME}; proxy_ssl_server_name on;
                    proxy_ssl_protocols TLSv1.2 TLSv1.3;
                }}
            }}
        }}
    """
    path = place.write("nginx.conf", text)
    return [nginx_program(), "-p", str(folder), "-e", "stderr", "-c", path]


def nginx_unpooled(place: Place) -> list[str]:
    """As many set it up: a handshake for each call, though a resumed one."""
    return nginx(place, pooled=False)


def haproxy(place: Place) -> list[str]:
    text = f"""
        global
            nbthread 1
            maxconn 4000
        defaults
            mode http
            timeout connect 5s
            timeout client 60s
            timeout server 60s
            http-reuse always
        frontend calls
            bind 127.0.0.1:{place.port} backlog 4096
            default_backend service
        backend service
            server service {place.upstream.address} ssl crt {place.alice} ca-file {place.pki.trust} \
verify required verifyhost {UPSTREAM_NAME} sni str({UPSTREAM_NAME}) pool-max-conn -1 pool-purge-delay 1h
    """
    return [haproxy_program(), "-db", "-f", place.write("haproxy.cfg", f"{text}\n")]


def envoy(place: Place) -> list[str]:
    program = _of_wheel("envoy", "_bin/envoy") or shutil.which("envoy")
    if program is None:
        raise NotToBeHad("envoy is not installed; `make bench` brings it as a wheel where there is one")
    api = "type.googleapis.com/envoy.extensions"
    tls = {
        "@type": f"{api}.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": UPSTREAM_NAME,
        "common_tls_context": {
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_2",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(place.pki.alice.certificate)},
                    "private_key": {"filename": str(place.pki.alice.key)},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(place.pki.trust)},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": UPSTREAM_NAME}}],
            },
        },
    }
    manager = {
        "@type": f"{api}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "calls",
        "codec_type": "HTTP1",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "service", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{api}.filters.http.router.v3.Router"}},
        ],
    }
    limits = {f"max_{what}": 8192 for what in ("connections", "pending_requests", "requests")}
    endpoint = {"address": _socket_address(place.upstream.host, place.upstream.port)}
    config = {
        "static_resources": {
            "listeners": [
                {
                    "name": "calls",
                    "address": _socket_address("127.0.0.1", place.port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "service",
                    "type": "STATIC",
                    "circuit_breakers": {"thresholds": [limits]},
                    "load_assignment": {
                        "cluster_name": "service",
                        "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
                    },
                    "transport_socket": {"name": "tls", "typed_config": tls},
                }
            ],
        }
    }
    path = place.write("envoy.json", json.dumps(config))
    return [program, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]


def caddy(place: Place) -> list[str]:
    program = shutil.which("caddy", path=str(_BIN)) or shutil.which("caddy")
    if program is None:
        raise NotToBeHad("caddy is not installed; `make bench` brings it as a wheel where there is one")
    transport = {
        "protocol": "http",
        "versions": ["1.1"],
        "keep_alive": {"max_idle_conns_per_host": _MOST, "max_idle_conns": _MOST},
        "tls": {
            "client_certificate_file": str(place.pki.alice.certificate),
            "client_certificate_key_file": str(place.pki.alice.key),
            "ca": {"provider": "file", "pem_files": [str(place.pki.trust)]},
            "server_name": UPSTREAM_NAME,
        },
    }
    handler = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": place.upstream.address}],
        "transport": transport,
    }
    calls = {
        "listen": [f"127.0.0.1:{place.port}"],
        "protocols": ["h1"],
        "automatic_https": {"disable": True},
        "routes": [{"handle": [handler]}],
    }
    config = {
        "admin": {"disabled": True, "config": {"persist": False}},
        "logging": {"logs": {"default": {"level": "ERROR"}}},
        "apps": {"http": {"servers": {"calls": calls}}},
    }
    return [program, "run", "--config", place.write("caddy.json", json.dumps(config))]


def stunnel(place: Place) -> list[str]:
    """Passes bytes on, so each connection of a caller is one to the upstream, with a handshake."""
    program = shutil.which("stunnel4") or shutil.which("stunnel")
    if program is None:
        raise NotToBeHad("stunnel is not installed (Debian: apt-get install stunnel4)")
    text = f"""
        foreground = yes
        pid =
        debug = 3
        syslog = no
        [calls]
        client = yes
        accept = 127.0.0.1:{place.port}
        connect = {place.upstream.address}
        cert = {place.alice}
        CAfile = {place.pki.trust}
        verifyChain = yes
        checkHost = {UPSTREAM_NAME}
        sni = {UPSTREAM_NAME}
        sslVersionMin = TLSv1.2
    """
    return [program, place.write("stunnel.conf", text)]


def mitmdump(place: Place) -> list[str]:
    """Stock mitmdump in reverse mode; its listener is on loopback only."""
    return [
        *_mitmdump(place),
        *("--mode", f"reverse:https://{place.upstream.address}"),
        *("--listen-host", "127.0.0.1", "--listen-port", str(place.port)),
        *("--set", f"client_certs={place.alice}"),
        *("--set", f"ssl_verify_upstream_trusted_ca={place.pki.trust}"),
    ]


def _mitmdump(place: Place) -> list[str]:
    """Quiet, since a line per call would cost it more, and passing large bodies on as they come."""
    command = [str(_BIN / "mitmdump"), "-q", "--set", f"confdir={place.folder}"]
    if place.variant.inspecting:
        return [*command, "-s", place.write("looking.py", _LOOKING_ADDON)]
    return [*command, "--set", "stream_large_bodies=64k"]


def _of_wheel(package: str, path: str) -> str | None:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    program = Path(found.origin).parent / path
    return str(program) if program.is_file() else None


def _socket_address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


PROXIES: dict[str, Callable[[Place], list[str]]] = {
    "nginx": nginx,
    "sidecert": sidecert,
    "haproxy": haproxy,
    "envoy": envoy,
    "caddy": caddy,
    "stunnel": stunnel,
    "nginx-unpooled": nginx_unpooled,
    "mitmdump": mitmdump,
}

NEVER_HAD = {"ghostunnel": "no wheel and no Debian package of it"}
"""Those that the goals name and that cannot be had by name."""
