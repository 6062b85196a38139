"""`sidecert demo`: the whole way of a call, on a machine with nothing set up.

Twin and sidecar run as processes of their own, as they would in earnest, and everything that is said to
have happened was checked.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from sidecert.cli.children import ChildError, Children, Ended
from sidecert.cli.twin import EXAMPLE

CALL_SECONDS = 10.0
LOOPBACK = "127.0.0.1"
DOMAIN = "integration.test"
ORDER = '{"order": 4711}'
WORDS = 3
"""Fewer are no explanation."""


class Wrong(Exception):
    """A step that did not come out as it must; the text says how."""


@click.command()
@click.option("--once", is_flag=True, help="End after the calls: status 0 when all was right, else 1.")
def demo(once: bool) -> None:
    """Start a look-alike service and the sidecar, make a call through it, and show what happened."""
    console = Console(highlight=False, soft_wrap=True)
    with Children() as children:
        show = Show(console, children)
        try:
            show.run()
            if not once:
                show.serve()
        except (Wrong, ChildError) as exc:
            console.print(f"[red]Wrong:[/] {escape(str(exc))}")
            raise SystemExit(1) from None
        except Ended:
            raise SystemExit(128 + children.signal) from None


class Show:
    """The steps in their order. What they find out is kept for those that follow."""

    def __init__(self, console: Console, children: Children) -> None:
        self._console = console
        self._children = children
        self._ports = _ports({"service": 8443, "sidecar": 8080, "admin": 9090}, console)
        self._twin: dict[str, Any] = {}
        self._steps = 0

    def run(self) -> None:
        """Raises Wrong or ChildError at the first step that fails, Ended when a signal came."""
        for step in (
            self._start_twin,
            self._start_sidecar,
            self._call_without,
            self._call_through,
            self._call_with_a_bad_certificate,
            self._look_at_the_metrics,
        ):
            self._children.check_signals()
            step()

    def serve(self) -> None:
        """Until a signal comes. Raises ChildError when one of the processes ends by itself."""
        proxy = f"http://{LOOPBACK}:{self._ports['sidecar']}"
        soap = EXAMPLE.replace("/rest/", "/soap/")
        self._console.print("\n[bold]It goes on serving. Try:[/]")
        for line in (
            f"curl -x {proxy} http://alice.{DOMAIN}{EXAMPLE} -d '{ORDER}'",
            f"curl -x {proxy} 'http://bob.{DOMAIN}{soap}?wsdl'",
            f"curl -x {proxy} http://carol.{DOMAIN}{EXAMPLE}       # also erin, mallory, frank, nobody",
            f"curl -H 'Host: alice.{DOMAIN}' {proxy}{EXAMPLE}      # a tool that knows no proxy",
            f"curl http://{LOOPBACK}:{self._ports['admin']}/metrics",
        ):
            self._console.print(f"  {escape(line)}")
        self._console.print("Ctrl-C ends it.")
        self._children.watch()
        self._console.print("Ended.")

    def _start_twin(self) -> None:
        bind = f"{LOOPBACK}:{self._ports['service']}"
        folder = self._children.folder / "twin"
        child = self._children.start("twin", "--bind", bind, "--dir", str(folder), "--json")
        while not (line := child.first_line()):
            self._children.wait(child)
        self._twin = json.loads(line)
        self._say(f"The twin, a look-alike integration service, listens on {self._twin['url']}")

    def _start_sidecar(self) -> None:
        config = self._children.folder / "sidecert.yaml"
        config.write_text(_config(self._twin, self._ports))
        child = self._children.start("run", "-c", str(config))
        while not self._is_ready():
            self._children.wait(child)
        self._say(f"The sidecar listens on {LOOPBACK}:{self._ports['sidecar']}; its config is {config}")

    def _call_without(self) -> None:
        context = ssl.create_default_context(cafile=self._twin["ca"])
        port = self._ports["service"]
        try:
            connection = http.client.HTTPSConnection(LOOPBACK, port, timeout=CALL_SECONDS, context=context)
            status, _, _ = _call(connection, EXAMPLE, ORDER)
        except ssl.SSLCertVerificationError as exc:
            raise Wrong(f"the caller does not trust the twin: {exc.verify_message}") from exc
        except ssl.SSLError as exc:
            self._say("A TLS call without a certificate and without the sidecar is refused:", str(exc))
        except (OSError, http.client.HTTPException) as exc:
            raise Wrong(f"the call without a certificate did not get a TLS alert but {exc!r}") from exc
        else:
            raise Wrong(f"the call without a certificate was answered, with status {status}")

    def _call_through(self) -> None:
        status, _, body = self._through("alice")
        document = _document(body)
        if status != 200 or document.get("user") != "alice" or document["request"]["body"] != ORDER:
            raise Wrong(f"the call through the sidecar got {status}: {body[:500]!r}")
        self._say(
            "The same call in plain HTTP, through the sidecar:",
            f"curl -x http://{LOOPBACK}:{self._ports['sidecar']} http://alice.{DOMAIN}{EXAMPLE} -d '{ORDER}'",
            f"200, run by user {document['user']}, over {document['tls']['version']}",
        )

    def _call_with_a_bad_certificate(self) -> None:
        status, headers, body = self._through("mallory")
        document = _document(body)
        outcome = headers.get("sidecert-outcome")
        if status != 502 or outcome != "client_cert_unknown_ca":
            raise Wrong(f"the call as mallory got {status}, outcome {outcome}: {body[:500]!r}")
        title, detail, remedy = (str(document.get(key, "")) for key in ("title", "detail", "remedy"))
        if any(len(text.split()) < WORDS for text in (title, detail, remedy)):
            raise Wrong(f"the answer to the call as mallory explains nothing: {body[:500]!r}")
        self._say(
            "A route whose certificate the service does not know gets an explanation:",
            f"{status} {outcome}: {title}",
            f"why: {detail}",
            f"what to do: {remedy}",
        )

    def _look_at_the_metrics(self) -> None:
        status, _, body = self._plain("admin", "/metrics")
        if status != 200:
            raise Wrong(f"the sidecar's metrics got {status}")
        counted = [
            (line, dict(re.findall(r'(\w+)="([^"]*)"', line)))
            for line in body.decode().splitlines()
            if line.startswith("sidecert_handshakes_total{") and float(line.split()[-1]) > 0
        ]
        for route, outcome in (("alice", "ok"), ("mallory", "client_cert_unknown_ca")):
            if not any(labels["route"] == route and labels["outcome"] == outcome for _, labels in counted):
                raise Wrong(f"no handshake of the route {route} was counted as {outcome}: {counted}")
        self._say("Each handshake was counted:", *(line for line, _ in counted))

    def _through(self, user: str) -> tuple[int, Mapping[str, str], bytes]:
        return self._plain("sidecar", f"http://{user}.{DOMAIN}{EXAMPLE}", ORDER)

    def _plain(self, port: str, target: str, body: str | None = None) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection(LOOPBACK, self._ports[port], timeout=CALL_SECONDS)
        try:
            return _call(connection, target, body)
        except (OSError, http.client.HTTPException) as exc:
            raise Wrong(f"the call of {target} got no answer: {exc!r}") from exc

    def _is_ready(self) -> bool:
        try:
            return self._plain("admin", "/-/ready")[0] == 200
        except Wrong:
            return False

    def _say(self, headline: str, *details: str) -> None:
        self._steps += 1
        self._console.print(f"[bold]{self._steps}.[/] {escape(headline)}")
        for detail in details:
            self._console.print(f"   {escape(detail)}", style="green")


def _ports(wanted: Mapping[str, int], console: Console) -> dict[str, int]:
    """The wanted ports, and free ones for those that are taken."""
    chosen = {}
    with ExitStack() as held:  # all at once, so that no two get the same
        for name, port in wanted.items():
            sock = held.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((LOOPBACK, port))
            except OSError:
                sock.bind((LOOPBACK, 0))
                console.print(f"Port {port} is taken: the {name} gets {sock.getsockname()[1]}")
            chosen[name] = sock.getsockname()[1]
    return chosen


def _config(twin: Mapping[str, Any], ports: Mapping[str, int]) -> str:
    """A route for each of the twin's users, and one that brings no certificate."""
    quoted = json.dumps  # what JSON quotes, YAML reads
    lines = ["version: 1", "listeners:", f"  - bind: {LOOPBACK}:{ports['sidecar']}"]
    lines += ["admin:", f"  bind: {LOOPBACK}:{ports['admin']}", "drain: 1s", "credentials:"]
    for user in twin["users"]:
        lines.append(f"  {user['name']}:")
        lines += [f"    {key}: {quoted(user[key])}" for key in ("certificate", "key")]
    lines.append("routes:")
    for name in [*(user["name"] for user in twin["users"]), "nobody"]:
        lines += [
            f"  - id: {name}",
            f"    match: {{host: {name}.{DOMAIN}}}",
            "    upstream:",
            f"      host: {LOOPBACK}",
            f"      port: {ports['service']}",
            "      server_name: localhost",
            f"      trust: {quoted(twin['ca'])}",
            f"    credential: {'none' if name == 'nobody' else name}",
        ]
    return "\n".join(lines) + "\n"


def _call(
    connection: http.client.HTTPConnection, target: str, body: str | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers (names in lower case) and body."""
    try:
        connection.request("GET" if body is None else "POST", target, body)
        response = connection.getresponse()
        return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Wrong(f"JSON was expected, not {body[:500]!r}")
    return document
