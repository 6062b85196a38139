"""`sidecert twin`."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import shlex
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from sidecert import logs
from sidecert.cli.common import fail, json_option
from sidecert.twin import USERS, People, Twin, make

EXAMPLE = "/integration/rest/external/integration/run/development/demo/orders"

log = logging.getLogger(__name__)


@click.command()
@click.option(
    "--bind",
    default="127.0.0.1:8443",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; port 0 takes a free one.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    help="A new or empty folder for the certificates, emptied again at the end (default: a temporary one).",
)
@click.option("--tls", type=click.Choice(["1.2", "1.3"]), help="Speak only this version of TLS.")
@json_option
def twin(bind: str, folder: Path | None, tls: str | None, as_json: bool) -> None:
    """Serve a look-alike of an integration service with 2-way SSL, until Ctrl-C.

    It makes an authority, a certificate of its own and certificates for its users, maps them to users as
    webMethods Integration Cloud does, and answers REST and SOAP calls with the user who made them.
    """
    host, port = _address(bind)
    logs.setup("info")
    asyncio.run(_serve(host, port, folder, tls, as_json))


def _address(bind: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535 or "[" in host:
        raise click.BadParameter(f"{bind!r} is not HOST:PORT or [IPV6]:PORT", param_hint="--bind")
    return host, int(port)


async def _serve(host: str, port: int, folder: Path | None, tls: str | None, as_json: bool) -> None:
    stop = asyncio.Event()
    # Before the folder is made: a signal must never leave keys behind.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with _folder(folder) as place:
        own_name = () if host in ("0.0.0.0", "::") else (host,)
        people = make(place, own_name)
        service = Twin(people, _log, tls=tls)
        try:
            port = await service.start(host, port)
        except OSError as exc:
            _cannot_listen(host, port, exc)
        try:
            _announce(people, host, port, tls, as_json)
            await stop.wait()
        finally:
            await service.close()


def _log(sentence: str, facts: Mapping[str, object]) -> None:
    log.info(sentence, extra=dict(facts))


def _cannot_listen(host: str, port: int, exc: OSError) -> None:
    if exc.errno == errno.EADDRINUSE:
        fail(
            f"{host}:{port} is taken: another program listens there. Stop it, or listen elsewhere"
            f" (--bind {host}:0 takes a free port)"
        )
    fail(f"cannot listen on {host}:{port}: {exc.strerror or exc}")


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """A folder of mode 0700 for the files; whatever was put there is gone afterwards."""
    made = given is None or not given.exists()
    try:
        if given is None:
            place = Path(tempfile.mkdtemp(prefix="sidecert-twin-"))
        else:
            place = given.absolute()
            place.mkdir(mode=0o700, exist_ok=True)
            _check_empty_and_ours(place)
    except OSError as exc:
        fail(f"cannot use the folder {given}: {exc.strerror or exc}")
    try:
        yield place
    finally:
        if made:
            shutil.rmtree(place, ignore_errors=True)
        else:
            for path in place.iterdir():
                path.unlink(missing_ok=True)


def _check_empty_and_ours(place: Path) -> None:
    if any(place.iterdir()):
        fail(f"the folder {place} is not empty: name a new or an empty one, since it is emptied at the end")
    if place.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        fail(f"others may write into the folder {place}: chmod 700 it, since it will hold private keys")


def _announce(people: People, host: str, port: int, tls: str | None, as_json: bool) -> None:
    # The certificate is made out to localhost, which is also what reads best.
    shown = "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host
    url = f"https://{f'[{shown}]' if ':' in shown else shown}:{port}"
    alice = people.users["alice"]
    identity = ["--cacert", str(people.ca), "--cert", str(alice.certificate), "--key", str(alice.key)]
    call = ["-H", "Content-Type: application/json", "-d", '{"order": 4711}', url + EXAMPLE]
    curl = shlex.join(["curl", *identity, *call])
    users = [
        {
            "name": user.name,
            "treatment": user.treatment,
            "expect": user.expect,
            "certificate": str(people.users[user.name].certificate),
            "key": str(people.users[user.name].key),
        }
        for user in USERS
    ]
    if as_json:
        document = {"url": url, "host": host, "port": port, "tls": [tls] if tls else ["1.2", "1.3"]}
        document |= {"folder": str(people.folder), "ca": str(people.ca), "users": users, "curl": curl}
        click.echo(json.dumps(document))
    else:
        lines = [f"{user['name']:<8}  {user['expect']}" for user in users]
        lines.append(f"{'':<8}  no certificate at all: TLS refuses the call")
        click.echo(f"Listening on {url}")
        click.echo(f"Certificates and keys (NAME.crt, NAME.key, ca.crt) in {people.folder}\n")
        click.echo("\n".join(lines))
        click.echo(f"\nTry:\n  {curl}\n\nCtrl-C ends it and removes the folder.")
    sys.stdout.flush()
