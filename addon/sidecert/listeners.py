"""The addresses on which sidecert takes downstream connections: opened all or none, closed without a loss.

A change is prepared first (bound, nothing accepted yet) and committed once the routes that it needs are in
force; a failure in either leaves what is open as it was. A listening socket is kept twice: the event loop
serves a duplicate. Closing that ends the loop's accepting, not the socket: what the kernel has queued until
then is accepted from ours.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sidecert.backlog import HANDSHAKES, accept_queued, close_to_new
from sidecert.callers import Callers
from sidecert.config import Bind, ListenerConfig, normalise_host
from sidecert.errors import ConfigError, Problem
from sidecert.plane import Listener
from sidecert.sockets import BACKLOG, Addresses, SocketFile, Unusable, listen, resolve, spell

_LOG = logging.getLogger("sidecert.listeners")
_WILDCARDS = frozenset(("0.0.0.0", "::"))

Factory = Callable[[Listener], asyncio.BaseProtocol]
"""Makes the protocol of a connection that was accepted on that listener."""


@dataclass(slots=True, eq=False)
class _Open:
    config: ListenerConfig
    listener: Listener
    sockets: list[socket.socket]
    file: SocketFile | None = None
    servers: list[asyncio.Server] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Change:
    """A prepared set of listeners: `commit` puts it in force, `discard` gives up what it has bound."""

    kept: dict[str, ListenerConfig] = field(default_factory=dict)
    opened: dict[str, _Open] = field(default_factory=dict)
    """With those of `kept` whose unix socket's file was removed or replaced: they are bound anew."""


class Listeners:
    """All listeners of the process, by their label. Used on the event loop's thread only."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._open: dict[str, _Open] = {}

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    @property
    def addresses(self) -> dict[str, list[str]]:
        """What is listened on, as `127.0.0.1:8080`, `[::1]:8080` or `unix:/run/in.sock`, by label."""
        return {label: [spell(sock) for sock in entry.sockets] for label, entry in self._open.items()}

    @property
    def tcp_addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each TCP socket."""
        sockets = [sock for entry in self._open.values() for sock in entry.sockets]
        return tuple(sock.getsockname()[:2] for sock in sockets if sock.family != socket.AF_UNIX)

    async def prepare(self, configs: Sequence[ListenerConfig], file: Path) -> Change:
        """Bind what of `configs` is not open yet; `file` is where the user finds them.

        Raises ConfigError with a problem for each that cannot be opened; then nothing has changed.
        """
        change = Change()
        try:
            problems = await self._prepare(change, configs, file)
            if problems:
                raise ConfigError(problems)
        except BaseException:
            self.discard(change)
            raise
        return change

    async def _prepare(self, change: Change, configs: Sequence[ListenerConfig], file: Path) -> list[Problem]:
        problems = []
        found = await self._look_up(configs)
        lost = {label for label, entry in self._open.items() if entry.file and not entry.file.is_ours}
        for number, config in enumerate(configs):
            label = config.bind.label
            try:
                if label not in self._open:
                    addresses = found[label]
                    if isinstance(addresses, BaseException):
                        raise addresses
                    entry = change.opened[label] = _listen(config, addresses)
                    await self._make_servers(entry)
                    continue
                if label in lost:
                    entry = change.opened[label] = _listen_again(self._open[label], config)
                    await self._make_servers(entry)
                self._set_mode(label, config.mode)
                change.kept[label] = config
            except Unusable as exc:
                wrong, right = self._explain(config.bind, exc)
                problems.append(Problem(str(file), None, f"listeners[{number}].bind", wrong, right))
            except OSError as exc:
                if label in self._open and label not in lost:
                    wrong = f"the mode of {config.bind.path} cannot be changed: {exc.strerror}"
                    right = "run the sidecar as the file's owner, or restart it"
                    problems.append(Problem(str(file), None, f"listeners[{number}].mode", wrong, right))
                    continue
                wrong = f"{label} cannot be opened: {exc.strerror or exc}"
                problems.append(
                    Problem(str(file), None, f"listeners[{number}].bind", wrong, "see what the system lacks")
                )
        return problems

    async def _look_up(self, configs: Sequence[ListenerConfig]) -> dict[str, Addresses | BaseException]:
        """What `resolve` gave, or raised, for each that is not open, by label; all at the same time."""
        binds = [config.bind for config in configs if config.bind.label not in self._open]
        found = await asyncio.gather(*map(resolve, binds), return_exceptions=True)
        return {bind.label: addresses for bind, addresses in zip(binds, found, strict=True)}

    def discard(self, change: Change) -> None:
        """Give up a change that was not committed."""
        for label in change.kept:
            try:
                if label in self._open:
                    self._set_mode(label, self._open[label].config.mode)
            except OSError as exc:
                _LOG.warning("the mode of %s could not be set back: %s", label, exc.strerror)
        for entry in change.opened.values():
            if entry.file is not None:
                entry.file.remove()
            for server in entry.servers:
                server.close()
            for sock in entry.sockets:
                sock.close()

    async def commit(self, change: Change) -> Sequence[_Open]:
        """Accept on what was prepared; gives what the change does not name, which is to be stopped
        (`stop_removed`) and still accepts until then.

        A listener that is kept is not touched, but for the route that it is pinned to and who may call, which
        change before anything else is waited for: its callers are at the new routes already. An error leaves
        what is open as it was, and the change to be discarded.
        """
        before = {label: self._open[label].config for label in change.kept}
        self._apply(change.kept)
        try:
            for entry in change.opened.values():
                for server in entry.servers:
                    await server.start_serving()
            for entry in change.opened.values():
                _log_listening(entry)
        except BaseException:
            self._apply(before)
            raise
        removed = [entry for label, entry in self._open.items() if label not in change.kept]
        for entry in removed:
            entry.listener.callers = replace(entry.listener.callers, gone=True)
        removed += [self._open[label] for label in change.kept if label in change.opened]
        kept = {label: self._open[label] for label in self._open if label in change.kept}
        self._open = {**kept, **change.opened}
        return removed

    async def stop_removed(self, removed: Sequence[_Open]) -> None:
        """Accept what is queued at what `commit` gave, then close it. Raises nothing: a failure is logged."""
        try:
            await self._stop(removed)
        except Exception:
            _LOG.exception("a listener was not closed well by a fault of sidecert's own")

    def _apply(self, configs: Mapping[str, ListenerConfig]) -> None:
        for label, config in configs.items():
            entry = self._open[label]
            entry.config = config
            entry.listener.route = config.route
            callers = Callers.of(config)
            if callers != entry.listener.callers:
                entry.listener.callers = callers

    def _set_mode(self, label: str, mode: int) -> None:
        """Of a unix socket's file; nothing else has one."""
        entry = self._open.get(label)
        if entry is not None and entry.file is not None:
            entry.file.set_mode(mode)

    async def stop(self) -> None:
        """Accept what is queued, then close all listeners. The accepted connections live on."""
        entries = list(self._open.values())
        self._open.clear()
        await self._stop(entries)

    async def _make_servers(self, entry: _Open) -> None:
        """Take from the system all that serving needs; nothing is accepted before `commit`."""
        loop = asyncio.get_running_loop()
        for sock in entry.sockets:
            create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            twin = sock.dup()
            try:
                server = await create(
                    partial(self._factory, entry.listener), sock=twin, backlog=BACKLOG, start_serving=False
                )
            except BaseException:
                twin.close()
                raise
            entry.servers.append(server)

    async def _stop(self, entries: Sequence[_Open]) -> None:
        adopting = []
        for entry in entries:
            if entry.file is not None:
                entry.file.remove()  # first, so that nobody comes after the last accept
        # Not in a generator: each must be closed to new connections.
        if any([close_to_new(sock) for entry in entries for sock in entry.sockets]):
            await asyncio.sleep(HANDSHAKES)
        for entry in entries:
            label = entry.config.bind.label
            try:
                for server in entry.servers:
                    server.close()
                for sock in entry.sockets:
                    with sock:
                        adopting += [self._adopt(entry, accepted) for accepted in accept_queued(sock)]
            except Exception:  # the others are to be closed all the same
                _LOG.exception("%s was not closed well by a fault of sidecert's own", label)
            else:
                _LOG.info("stopped listening on %s", label, extra={"event": "stopped", "listener": label})
        await asyncio.gather(*adopting)

    async def _adopt(self, entry: _Open, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(partial(self._factory, entry.listener), accepted)
        except OSError as exc:  # the caller has gone in the meantime
            _LOG.debug("a queued connection was lost: %s", exc)
            accepted.close()
        except Exception:
            _LOG.exception("a queued connection was lost by a fault of sidecert's own")
            accepted.close()

    def _explain(self, bind: Bind, error: Unusable) -> tuple[str, str]:
        own = next((label for label, entry in self._open.items() if _is_same_port(entry, bind)), None)
        if error.errno != errno.EADDRINUSE or own is None:
            return error.wrong, error.right
        wrong = f"{bind.label} overlaps with {own}, on which this sidecar still listens"
        return wrong, "restart the sidecar to swap one for the other"


def _log_listening(entry: _Open) -> None:
    route = f" for route {entry.config.route}" if entry.config.route else ""
    for sock in entry.sockets:
        fields = {"event": "listening", "listener": entry.config.bind.label, "address": spell(sock)}
        _LOG.info("listening on %s%s", spell(sock), route, extra=fields)


def _listen(config: ListenerConfig, addresses: Addresses) -> _Open:
    bind = config.bind
    sockets = listen(bind, addresses, config.mode)
    hosts = _own_hosts(bind, sockets) if bind.path is None else frozenset()
    listener = Listener(bind.label, config.route, hosts, Callers.of(config))
    return _Open(config, listener, sockets, None if bind.path is None else SocketFile(bind.path))


def _listen_again(lost: _Open, config: ListenerConfig) -> _Open:
    """In the place of one whose unix socket has lost its file. The callers of both are of one listener."""
    assert config.bind.path is not None
    return _Open(config, lost.listener, listen(config.bind, [], config.mode), SocketFile(config.bind.path))


def _own_hosts(bind: Bind, sockets: Sequence[socket.socket]) -> frozenset[str]:
    """What a caller may call this listener in Host; `routing` compares without the port."""
    hosts = {normalise_host(bind.host), *(str(sock.getsockname()[0]) for sock in sockets)}
    if hosts & _WILDCARDS:
        hosts |= {"127.0.0.1", "::1"}
    return frozenset(hosts)


def _is_same_port(entry: _Open, bind: Bind) -> bool:
    ports = [sock.getsockname()[1] for sock in entry.sockets if sock.family != socket.AF_UNIX]
    return bind.path is None and bind.port in ports
