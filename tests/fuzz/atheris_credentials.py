"""PEM and PKCS#12 files with anything in them; the first byte says which file it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sidecert.credentials", "sidecert.tls"]):
    from support.spoilt_files import SpoiltFiles

from driving import drive


def make(folder: Path) -> tuple[Iterable[bytes], Callable[[bytes], str]]:
    files = SpoiltFiles(folder)
    return files.files, files.play_file


if __name__ == "__main__":
    drive(make, longest=6000)
