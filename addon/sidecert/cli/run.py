"""`sidecert run`: mitmproxy's Master with our addon and the two that it needs, on uvloop."""

from __future__ import annotations

import asyncio
import gc
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from sidecert import logs
from sidecert.cli.common import ConfigCommand, config_option, fail_config, find_config
from sidecert.errors import ConfigError
from sidecert.hardening import keep_memory_private

if TYPE_CHECKING:
    from sidecert.generation import Generation


@click.command(cls=ConfigCommand)
@config_option
@click.option("--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True)
@click.option("--access-log", is_flag=True, help="Log a line for each call.")
def run(config: Path | None, log_level: str, access_log: bool) -> None:
    """Run the sidecar until SIGTERM or SIGINT; SIGHUP reloads the config, as do changes of its files."""
    # It waits until the addon is there to take it: by default it would end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
    # Before anything is loaded. By default the signals would be a failure, and PID 1 would not hear them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    keep_memory_private()
    path = find_config(config)
    logs.setup(log_level)
    gc.disable()  # nothing that is made while starting is garbage
    _import_all()
    gc.freeze()  # what has been imported stays, and need not be looked at again
    gc.enable()
    from sidecert.generation import build

    try:
        first = build(path, 1)
    except ConfigError as exc:
        fail_config(exc)
    asyncio.run(_serve(first, access_log), loop_factory=_loop_factory())


def _leave(number: int, frame: object) -> NoReturn:
    """A signal while the sidecar starts: nobody was served yet, so nothing is lost."""
    raise SystemExit(0)


def _import_all() -> None:
    import sidecert.addon  # noqa: F401


async def _serve(first: Generation, access_log: bool) -> None:
    from mitmproxy.addons.next_layer import NextLayer
    from mitmproxy.addons.proxyserver import Proxyserver
    from mitmproxy.master import Master
    from mitmproxy.options import Options

    from sidecert.addon import Sidecert

    master = Master(Options(server=False))
    # Without NextLayer mitmproxy warns, though no connection of ours ever asks for one.
    master.addons.add(Proxyserver(), NextLayer(), Sidecert(first, access_log=access_log))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, master.shutdown)
    try:
        await master.run()
    finally:  # the loop's end takes the handler away
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not to be had on every platform
        return None

    class Loop(uvloop.Loop):
        def set_task_factory(self, factory: object) -> None:
            """Master asks for eager tasks, which uvloop on Python 3.13.0 refuses with a TypeError."""

    return Loop
