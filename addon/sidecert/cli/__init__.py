"""The command `sidecert`. Each subcommand's module is imported only when that subcommand is called."""

from __future__ import annotations

from importlib import import_module

import click

_COMMANDS = {
    "run": ("sidecert.cli.run", "The sidecar."),
    "check": ("sidecert.cli.check", "Load everything the config names and report every problem."),
    "why": ("sidecert.cli.why", "Which route and credential a URL gets, and why not the others."),
    "doctor": ("sidecert.cli.doctor", "A real handshake with an upstream, explained."),
    "schema": ("sidecert.cli.schema", "The config's JSON schema."),
    "twin": ("sidecert.cli.twin", "A look-alike integration service with 2-way SSL."),
    "demo": ("sidecert.cli.demo", "A look-alike service, the sidecar and a call through it."),
}


class _LazyGroup(click.Group):
    """A group that knows its commands' names without importing them: `run` must not pay for `demo`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"sidecert {version('sidecert')}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print it."
)
def main() -> None:
    """Make mutual-TLS calls for tools that only speak plain HTTP."""
