"""What is wrong with the files of a credential, collected so that all of it is told at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sidecert.credentials.filekinds import Unusable


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a file. `key` is the config key that names it."""

    key: str
    wrong: str
    right: str
    warning: bool = False


class Findings(list[Finding]):
    """All of one credential, or of one file of CAs."""

    def collect[T](self, key: str, read: Callable[[], T]) -> T | None:
        """What `read` gives; None where it raises `Unusable`, which is noted."""
        try:
            return read()
        except Unusable as problem:
            self.append(Finding(key, problem.wrong, problem.right))
            return None

    def warn(self, key: str, wrong: str, right: str) -> None:
        """Note what keeps nothing from being used."""
        self.append(Finding(key, wrong, right, warning=True))

    @property
    def are_fatal(self) -> bool:
        """Whether more than warnings are among them."""
        return any(not finding.warning for finding in self)
