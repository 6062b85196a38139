"""Config files with anything in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["sidecert.config", "sidecert.routing", "sidecert.generation", "yaml"]
):
    from support.spoilt_files import SpoiltFiles

from driving import drive


def make(folder: Path) -> tuple[Iterable[bytes], Callable[[bytes], str]]:
    return SpoiltFiles.configs(), SpoiltFiles(folder).play_config


if __name__ == "__main__":
    drive(make, longest=8000)
