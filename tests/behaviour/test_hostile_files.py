"""What the config names becomes something else while sidecert runs, and the config itself too."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import StartSidecar
from support.certs import Files, Pki, write_private
from support.recorder import TlsRecorder
from support.rotation import move_over
from support.sidecar import Sidecar, route

HUGE = 40 << 20  # bytes, of a hole


def _gone(path: Path) -> None: ...


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(HUGE)


def _empty(path: Path) -> None:
    path.touch()


def _nothing_but_nuls(path: Path) -> None:
    path.write_bytes(bytes(5000))


KINDS: dict[Callable[[Path], None], tuple[str, str, str]] = {
    _gone: ("is gone", "does not exist", "does not exist"),
    _folder: ("directory", "directory", "directory"),
    _pipe: ("named pipe", "not a regular file", "not a regular file"),
    _endless: ("not a file", "not a regular file", "not a regular file"),
    _circle: ("cannot be read", "cannot be read", "cannot be read"),
    _huge: ("too large", "larger than 1 MiB", "larger than 1 MiB"),
    _empty: ("empty", "empty", "empty"),
    _nothing_but_nuls: ("binary", "binary", "binary"),
}
"""What is told of each, of a config, a certificate and a key."""


@pytest.fixture
def files(pki: Pki, tmp_path: Path) -> Files:
    """A certificate and key that a test may spoil."""
    return pki.ca.caller("alice").write(tmp_path / "mine", "me")


@pytest.fixture
def running(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, files: Files) -> Sidecar:
    """With one route, which calls with `files`."""
    return sidecar(
        route("one", recorder, trust=pki.trust, credential="me"),
        credentials={"me": {"certificate": str(files.certificate), "key": str(files.key)}},
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__[1:])
def test_what_cannot_be_read_changes_nothing_and_is_told(
    running: Sidecar, recorder: TlsRecorder, files: Files, kind: Callable[[Path], None]
) -> None:
    """The reload says which file and why; the calls go on, and what was right before is right again."""
    paths = running.path, files.certificate, files.key
    for path, words in zip(paths, KINDS[kind], strict=True):
        aside = path.rename(path.with_name("aside"))
        kind(path)
        answer = running.ask_admin("POST", "/-/reload")
        assert answer.status == 422
        assert any(words in problem["wrong"] for problem in answer.json()["problems"]), answer.text
        assert running.get("http://one.test/").status == 200
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        aside.replace(path)
        assert running.ask_admin("POST", "/-/reload").status == 200
    assert {request.subject for request in recorder.requests} == {"alice"}
    assert running.metric("sidecert_config_reloads_total", result="failed") == len(paths)


def test_a_key_that_is_cut_anywhere_changes_nothing(running: Sidecar, files: Files) -> None:
    """As a full disk leaves it."""
    path = files.key
    good = path.read_bytes()
    for size in (1, len(good) // 2, len(good) - 30):
        write_private(path, good[:size])
        answer = running.ask_admin("POST", "/-/reload")
        assert answer.status == 422
        assert str(path) in answer.text
        assert running.get("http://one.test/").status == 200
    move_over(path, good)
    assert running.ask_admin("POST", "/-/reload").status == 200
