"""How credential files are changed under a running program, and callers that never pause meanwhile."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.certs import Leaf, private_folder, write_private
from support.clients import Address, Caller, call


def pem(leaf: Leaf) -> dict[str, bytes]:
    """A credential as a Kubernetes secret of type tls has it."""
    return {"tls.crt": leaf.certificate_pem(), "tls.key": leaf.key_pem()}


class SecretVolume:
    """A folder as kubelet mounts a secret: `NAME -> ..data/NAME`, `..data -> ..DATE`, swapped at once."""

    def __init__(self, folder: Path, files: Mapping[str, bytes]) -> None:
        self.folder = private_folder(folder)
        self._numbers = itertools.count()
        self.swap(files)
        for name in files:
            (folder / name).symlink_to(f"..data/{name}")

    def swap(self, files: Mapping[str, bytes]) -> None:
        """As kubelet's AtomicWriter does it; the files before are removed at once."""
        data = self.folder / "..data"
        before = self.folder / os.readlink(data) if data.is_symlink() else None
        new = private_folder(self.folder / f"..2026_11_23_12_00_00.{next(self._numbers):010d}")
        for name, content in files.items():
            write_private(new / name, content)
        link = self.folder / "..data_tmp"
        link.symlink_to(new.name)
        link.rename(data)
        if before is not None:
            for path in before.iterdir():
                path.unlink()
            before.rmdir()

    @property
    def config(self) -> dict[str, str]:
        """As one of a config's `credentials`."""
        return {"certificate": str(self.folder / "tls.crt"), "key": str(self.folder / "tls.key")}


def move_over(path: Path, content: bytes) -> None:
    """Written beside it and renamed, as `mv` and most editors do."""
    write_private(path.with_name(f"{path.name}.new"), content).rename(path)


@dataclass
class Made:
    """One call: what it was told, or the error that it met; `before` and `after` is what `now` gave."""

    name: str
    status: int
    error: str
    before: int
    after: int


@dataclass
class Load:
    """Callers that call `host` without a pause, each call under a name of its own, for a with block.

    Half of the keep-alive and half of the other calls are POSTs, which are never sent again. `now` gives
    the beginning's and the end's mark of each call.
    """

    address: Address
    host: str
    now: Callable[[], tuple[int, int]] = lambda: (0, 0)
    keep_alive: int = 2
    one_by_one: int = 2
    made: list[Made] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, args=(number, number < self.keep_alive), daemon=True)
            for number in range(self.keep_alive + self.one_by_one)
        ]

    @property
    def failed(self) -> list[Made]:
        return [made for made in self.made if made.status != 200]

    def wait_for_more(self, calls: int) -> None:
        """Waits until so many more calls have ended."""
        with self._changed:
            wanted = len(self.made) + calls
            assert self._changed.wait_for(lambda: len(self.made) >= wanted, 20), "the calls came to a stop"

    def _work(self, number: int, keep_alive: bool) -> None:
        method, body = ("POST", b"x" * 100) if number % 2 else ("GET", None)
        with Caller(self.address) as caller:
            for count in itertools.count():
                if self._stopping.is_set():
                    return
                name = f"/{number}/{count}"
                target = f"http://{self.host}{name}"
                before, status, error = self.now()[0], 0, ""
                try:
                    if keep_alive:
                        status = caller.call(method, target, body).status
                    else:
                        status = call(self.address, method, target, body).status
                except Exception as exc:
                    error = repr(exc)
                    caller.close()
                with self._changed:
                    self.made.append(Made(name, status, error, before, self.now()[1]))
                    self._changed.notify_all()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
