"""`sidecert schema`."""

from __future__ import annotations

import json

import click


@click.command()
def schema() -> None:
    """Print the JSON schema of the config file, for editors and validators."""
    from sidecert import config

    click.echo(json.dumps(config.schema(), indent=2))
