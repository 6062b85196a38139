"""The config file: YAML in, frozen models out, with every problem at once."""

from __future__ import annotations

from sidecert.values import normalise_host

__all__ = ["normalise_host"]
