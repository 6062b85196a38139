"""The programs that make the load: wrk, and two small ones of ours in C, compiled when they are needed."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCES = Path(__file__).parent


class NoTool(Exception):
    """A program without which nothing can be measured is not installed."""


def wrk() -> str:
    """Where wrk is. Raises NoTool."""
    path = shutil.which("wrk")
    if path is None:
        raise NoTool(
            "wrk, which makes the load, is not installed (Debian: apt-get install wrk; "
            "elsewhere see https://github.com/wg/wrk)"
        )
    return path


def caller() -> str:
    """caller.c as a program. Raises NoTool."""
    return _compiled("caller")


def relay() -> str:
    """relay.c as a program. Raises NoTool."""
    return _compiled("relay")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sidecert-bench-tools-")


@functools.cache
def _compiled(name: str) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoTool(
            "a C compiler, for the load of the bench, is missing (Debian: apt-get install build-essential)"
        )
    program = str(Path(_folder().name) / name)
    ran = subprocess.run(
        [compiler, "-O2", "-o", program, str(_SOURCES / f"{name}.c")],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise NoTool(f"{name}.c does not compile here:\n{ran.stderr}")
    return program
