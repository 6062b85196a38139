"""The few errors that cross module borders. Each is raised once, with its words, and rendered once.

A user's mistake in a file is a `Problem`, and all of them together are one `ConfigError`. A call that
sidecert answers itself is a `Refusal`. An upstream's answer that cannot be passed on is a `BadAnswer`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from sidecert.words import shown

_LONGEST = 1500  # characters of each part of a problem


class SidecertError(Exception):
    """Base of the errors that sidecert raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the config or a file it names.

    `wrong` says what is wrong, `right` what would be right; neither ever holds a secret. A `warning`
    does not stop the sidecar. What they quote of the config, or of a path, may hold anything: it is made
    fit for a line here, once for all.
    """

    file: str
    line: int | None
    path: str
    wrong: str
    right: str
    warning: bool = False

    def __post_init__(self) -> None:
        for name in ("file", "path", "wrong", "right"):
            object.__setattr__(self, name, shown(getattr(self, name), _LONGEST))

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        text = f"{where}: {self.path}: {self.wrong}" if self.path else f"{where}: {self.wrong}"
        return f"{text}; {self.right}" if self.right else text


MOST_TOLD = 200
"""A few lines of YAML can make tens of thousands, which nobody reads and which take seconds to log."""


def telling(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """All of them; of very many the first, errors before warnings, and at the end how many are left out."""
    found = tuple(problems)
    if len(found) <= MOST_TOLD:
        return found
    chosen = sorted(range(len(found)), key=lambda index: found[index].warning)
    left_out = chosen[MOST_TOLD:]
    wrong = f"there are {len(left_out)} more problems at least"
    warning = all(found[index].warning for index in left_out)
    more = Problem(found[0].file, None, "", wrong, "begin with those that are told", warning)
    return (*(found[index] for index in sorted(chosen[:MOST_TOLD])), more)


class ConfigError(SidecertError):
    """The config cannot be used; holds every problem that was found, warnings too (see `telling`)."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = telling(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Reason(Enum):
    """Why sidecert answers a call itself, other than a handshake outcome (interface: Answers)."""

    BAD_REQUEST = ("bad_request", 400, "The request is malformed")
    NO_ROUTE = ("no_route", 403, "No route matches this request")
    METHOD_NOT_ALLOWED = ("method_not_allowed", 403, "The method is not allowed here")
    HOST_NOT_ALLOWED = ("host_not_allowed", 403, "This listener does not answer for that host")
    CALLER_NOT_ALLOWED = ("caller_not_allowed", 403, "This caller may not call")
    PRIVATE_ADDRESS = ("private_address", 403, "The host resolves to a private address")
    CONNECT_NOT_ALLOWED = ("connect_not_allowed", 403, "CONNECT is not served")
    HEADER_TOO_LARGE = ("header_too_large", 431, "The request header is too large")
    METHOD_UNKNOWN = ("method_unknown", 501, "The request method is not known")
    UPSTREAM_CLOSED = ("upstream_closed", 502, "The upstream closed the connection without an answer")
    UPSTREAM_BAD_ANSWER = ("upstream_bad_answer", 502, "The upstream's answer is malformed")
    OVERLOADED = ("overloaded", 503, "The sidecar has no room for this call")
    POOL_FULL = ("pool_full", 503, "All connections to the upstream are in use")
    CIRCUIT_OPEN = ("circuit_open", 503, "The upstream keeps failing; not tried again yet")
    DRAINING = ("draining", 503, "The sidecar is shutting down")
    RESPONSE_TIMEOUT = ("response_timeout", 504, "The upstream did not answer in time")
    INTERNAL = ("internal_error", 502, "The sidecar failed, or an addon in it")

    def __init__(self, word: str, status: int, title: str) -> None:
        self.word = word
        self.status = status
        self.title = title


class Refusal(SidecertError):
    """A call that sidecert answers itself, as `application/problem+json`.

    `outcome` is a `Reason`'s word or a handshake outcome; `retry_after` is in seconds.
    """

    def __init__(
        self,
        status: int,
        outcome: str,
        title: str,
        detail: str,
        remedy: str = "",
        evidence: tuple[str, ...] = (),
        retry_after: int | None = None,
    ) -> None:
        super().__init__(f"{outcome}: {detail}")
        self.status = status
        self.outcome = outcome
        self.title = title
        self.detail = detail
        self.remedy = remedy
        self.evidence = evidence
        self.retry_after = retry_after

    @classmethod
    def of(
        cls,
        reason: Reason,
        detail: str,
        remedy: str = "",
        *,
        evidence: tuple[str, ...] = (),
        retry_after: int | None = None,
    ) -> Refusal:
        """The refusal for `reason`, with its fixed status and title."""
        return cls(reason.status, reason.word, reason.title, detail, remedy, evidence, retry_after)


class BadAnswer(SidecertError):
    """An upstream's answer is malformed or ambiguous; the text says how, without quoting its body."""
