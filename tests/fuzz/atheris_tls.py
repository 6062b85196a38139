"""Spoilt TLS flights of an upstream; each input is a script for `support.spoilt_flights`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sidecert.tls", "sidecert.upstream", "sidecert.outcome"]):
    from sidecert import outcome, tls, upstream  # noqa: F401
    from support.spoilt_flights import Spoilt

from driving import drive

from support.certs import Pki

SEED = bytes(range(1, 64))


def make(folder: Path) -> tuple[Iterable[bytes], Callable[[bytes], str]]:
    spoilt = Spoilt(folder / "config", Pki.make(folder / "pki"))
    return (bytes((choice,)) + SEED for choice in range(32)), lambda data: spoilt.play(data).value


if __name__ == "__main__":
    drive(make, longest=200)
