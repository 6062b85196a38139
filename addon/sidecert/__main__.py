"""`python -m sidecert` is the command `sidecert`."""

from __future__ import annotations

from sidecert.cli import main

main(prog_name="sidecert")
