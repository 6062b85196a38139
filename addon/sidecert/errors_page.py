"""The page of all that sidecert says of a failed call, for people who search for the words they see.

`python -m sidecert.errors_page > config/errors.md` writes it (`make docs`), from the texts of the answers and
the log; a test fails where it is stale. The last part of an answer's `type` is a heading of the page.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from sidecert.errors import Reason
from sidecert.explain import MAPPING, explain
from sidecert.explain_http import NONE_CAME, explain_answer
from sidecert.explain_reason import REASONS
from sidecert.http_verdict import Signature
from sidecert.known_as import IN_GENERAL, KNOWN_AS, OWN_FILES, Saying
from sidecert.outcome import Ending, Observation, Outcome, Stage
from sidecert.presented import OwnCertificate, Presented
from sidecert.refusals import status_of

_UPSTREAM = "mydomain.webmethodscloud.com:8443"
_SERVER_NAME = "mydomain.webmethodscloud.com"
_CREDENTIAL = "alice"
_NOW = 1767225600.0  # 2026-01-01
_DAY = 86400.0


def _certificate(subject: str, issuer: str, *names: str, until: float = _NOW + 90 * _DAY) -> Presented:
    return Presented(subject, issuer, names, until - 365 * _DAY, until, "")


_LEAF = _certificate("CN=alice,O=Example", "CN=Example Issuing CA 2,O=Example")
CERTIFICATE = OwnCertificate(_CREDENTIAL, _LEAF, uses=("clientAuth",))
"""Alice's, of which a command or a remedy may speak."""
_PAST = replace(CERTIFICATE, leaf=replace(_LEAF, not_after=_NOW - _DAY))
_THEIRS = _certificate(f"CN={_SERVER_NAME}", "CN=Example Server CA,O=Example", _SERVER_NAME)

_CONNECTING = Observation(stage=Stage.CONNECTING, addresses=("203.0.113.7",), certificate_sent=True)
_HELLO = replace(_CONNECTING, stage=Stage.HELLO_SENT)
_IN_HANDSHAKE = replace(_HELLO, stage=Stage.HELLO_RECEIVED, tls_version="TLSv1.3")
_REFUSED = replace(
    _IN_HANDSHAKE, stage=Stage.FINISHED_SENT, ending=Ending.CLOSE_NOTIFY, certificate_requested=True
)


def _alert(number: int) -> Observation:
    return replace(_REFUSED, alert_received=number)


def _verify(code: int, text: str, *presented: Presented) -> Observation:
    return replace(
        _IN_HANDSHAKE,
        presented=presented,
        ending=Ending.TLS,
        verify_code=code,
        verify_text=text,
        error="certificate verify failed",
    )


SAMPLES: Mapping[Outcome, tuple[Observation, ...]] = {
    Outcome.OK: (replace(_REFUSED, stage=Stage.PROVEN, ending=Ending.NONE),),
    Outcome.CLIENT_CERT_REQUIRED: (replace(_alert(116), certificate_sent=False), _alert(116)),
    Outcome.CLIENT_CERT_UNKNOWN_CA: (
        _alert(48),
        replace(_alert(48), acceptable_cas=("CN=Example Issuing CA,O=Example",)),
    ),
    Outcome.CLIENT_CERT_EXPIRED: (_alert(45),),
    Outcome.CLIENT_CERT_REVOKED: (_alert(44),),
    Outcome.CLIENT_CERT_UNSUPPORTED: (_alert(43),),
    Outcome.CLIENT_CERT_REJECTED: (
        _alert(42),
        _alert(46),
        replace(_alert(40), tls_version="TLSv1.2"),
        _alert(49),
        _alert(51),
        replace(_REFUSED, ending=Ending.EOF),
    ),
    Outcome.SERVER_UNTRUSTED: (
        _verify(20, "unable to get local issuer certificate", _THEIRS),
        _verify(18, "self-signed certificate"),
        _verify(23, "certificate revoked"),
        _verify(26, "unsuitable certificate purpose"),
        _verify(66, "EE certificate key too weak"),
    ),
    Outcome.SERVER_EXPIRED: (
        _verify(10, "certificate has expired", replace(_THEIRS, not_after=_NOW - _DAY)),
        _verify(9, "certificate is not yet valid", replace(_THEIRS, not_before=_NOW + _DAY)),
    ),
    Outcome.SERVER_NAME_MISMATCH: (
        _verify(62, "hostname mismatch", replace(_THEIRS, names=("example.com", "www.example.com"))),
        _verify(62, "hostname mismatch", replace(_THEIRS, names=())),
    ),
    Outcome.PROTOCOL_MISMATCH: (replace(_HELLO, ending=Ending.EOF, alert_received=70),),
    Outcome.NO_SHARED_PARAMETERS: (replace(_HELLO, ending=Ending.EOF, alert_received=40),),
    Outcome.NOT_TLS: (
        replace(_HELLO, ending=Ending.TLS, error="wrong version number", first_bytes=b"HTTP/1.1 400 Bad"),
        replace(_HELLO, ending=Ending.TLS, error="wrong version number", first_bytes=b"SSH-2.0-OpenSSH_9"),
    ),
    Outcome.CLOSED_IN_HANDSHAKE: (
        replace(_HELLO, ending=Ending.EOF),
        replace(_IN_HANDSHAKE, ending=Ending.RESET),
    ),
    Outcome.HANDSHAKE_TIMEOUT: (replace(_HELLO, ending=Ending.TIMEOUT, timeout=5.0),),
    Outcome.CONNECT_REFUSED: (replace(_CONNECTING, ending=Ending.REFUSED, error="Connection refused"),),
    Outcome.CONNECT_TIMEOUT: (replace(_CONNECTING, ending=Ending.TIMEOUT, timeout=5.0),),
    Outcome.DNS_FAILED: (
        Observation(ending=Ending.FAILED, error="Name or service not known"),
        Observation(ending=Ending.TIMEOUT, timeout=5.0),
    ),
    Outcome.CONNECT_FAILED: (replace(_CONNECTING, ending=Ending.FAILED, error="No route to host"),),
    Outcome.TLS_ERROR: (
        replace(_HELLO, ending=Ending.EOF, alert_received=112),
        replace(_IN_HANDSHAKE, ending=Ending.TLS, error="bad record mac"),
    ),
    Outcome.UNDECIDED: (replace(_IN_HANDSHAKE, ending=Ending.ABANDONED),),
}
"""What each outcome looks like, in its kinds; a test makes sure that it is the outcome of each."""

_HEAD = """\
<!-- Made by `make docs` from the texts of the answers and the log. Change those, not this. -->

# What sidecert says of a failed call, and what to do

Search this page for the words that you see: those of sidecert, or those of the tool that you come from.

{contents}

An answer that sidecert made itself has the header `Sidecert-Outcome`; its value is a heading below, and so is
the last part of the answer's `type`. The answer has the cause (`detail`), what was seen on the wire
(`evidence`) and what to do (`remedy`) of its own case, and the log has the same under its `request_id`.

The examples here are those of the credential `alice` and the upstream `{upstream}`. In
their commands CRT, KEY and TRUSTSTORE stand for files of yours.

## Words that say nothing yet

These words stand for nearly any failed handshake. `sidecert doctor HOST:PORT` or a call through sidecert
tells which:

{general}

## Words of your own files

These speak of your own certificate, key or passphrase, before anything is sent. sidecert looks at its files
when it starts or is reloaded: `sidecert check` says what is wrong with each.

{files}
"""
_HANDSHAKES = """
## Handshakes that failed

sidecert could not open a connection to the upstream. Each attempt is counted in `sidecert_handshakes_total`
by these names. Each answer says whether the request can have been processed.

"""
_ANSWERS = """\
## Answers of the upstream that refuse the client certificate

Some upstreams let the handshake pass and refuse the certificate in an HTTP answer, which sidecert passes on
as it is. It is counted in `sidecert_http_cert_rejections_total` by these names, and explained in the log
(`event` is `http_cert_rejection`). Only answers that can mean nothing else are recognised: a bare 403 of
Apache or IIS may be about the certificate or not, and a compressed one is not looked into.

`401 [ISS.0084.9001] Invalid credentials`, with `Access Denied` in its body, is webMethods Integration
Server's and is not counted either: it knows no user for the call, and says the same of a wrong name or
password. Where the route sends a certificate, that one got through the handshake, but mostly is mapped to no
user. What to do: have this very certificate mapped to a user with the usage SSL Authentication, again after
each renewal ({mapping};
in Integration Server: Security > Certificates > Configure Client Certificates), and see that the call has no
`Authorization` header with other credentials.

"""
_REFUSALS = """\
## Calls that sidecert refuses, or that end later

"""


def page() -> Iterator[str]:
    """The page, piece by piece."""
    yield _HEAD.format(
        contents="\n".join(_contents()),
        upstream=_UPSTREAM,
        general="\n".join(_list(IN_GENERAL)),
        files="\n".join(_list(OWN_FILES)),
    )
    said: _Said = {}
    yield _HANDSHAKES
    for outcome in Outcome:
        if outcome is not Outcome.OK:
            yield _outcome(outcome, said)
    yield _ANSWERS.format(mapping=MAPPING)
    for signature in Signature:
        yield _signature(signature, said)
    yield _REFUSALS
    for reason in REASONS:
        yield _reason(reason, said)


def _contents() -> Iterator[str]:
    """Links to all headings."""
    yield _wrapped("- [Words that say nothing yet](#words-that-say-nothing-yet)")
    yield _wrapped("- [Words of your own files](#words-of-your-own-files)")
    groups: tuple[tuple[str, Iterable[str]], ...] = (
        (_HANDSHAKES, (outcome for outcome in Outcome if outcome is not Outcome.OK)),
        (_ANSWERS, Signature),
        (_REFUSALS, (reason.word for reason in REASONS)),
    )
    for text, names in groups:
        title = text.strip().partition("\n")[0].removeprefix("## ")
        anchor = re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-")
        links = ", ".join(f"[{name}](#{name})" for name in names)
        yield _wrapped(f"- [{title}](#{anchor}): {links}", "  ")


def _outcome(outcome: Outcome, said: _Said) -> str:
    own = (_PAST, CERTIFICATE) if outcome is Outcome.CLIENT_CERT_EXPIRED else (CERTIFICATE,)
    cases = []
    for seen, certificate in product(SAMPLES[outcome], own):
        verdict = explain(
            outcome,
            seen,
            upstream=_UPSTREAM,
            server_name=_SERVER_NAME,
            credential=_CREDENTIAL if seen.certificate_sent else "none",
            certificate=certificate if seen.certificate_sent else None,
            now=_NOW,
        )
        cases.append((verdict.title, verdict.cause, verdict.evidence, verdict.remedy))
    status = f"answered with {status_of(outcome)}"
    if outcome is Outcome.UNDECIDED:  # the caller has left, or its call ended in another way
        status = "in the log and the metrics only"
    return _entry(outcome, status, cases, said)


def _signature(signature: Signature, said: _Said) -> str:
    asked = replace(_REFUSED, stage=Stage.PROVEN, ending=Ending.NONE)

    def case(seen: Observation, certificate: OwnCertificate | None = CERTIFICATE) -> _Case:
        verdict = explain_answer(
            signature,
            seen,
            status=int(signature.split("_")[1]),
            server="",
            upstream=_UPSTREAM,
            credential=_CREDENTIAL if certificate else "none",
            certificate=certificate,
            now=_NOW,
        )
        return verdict.title, verdict.cause, verdict.evidence, verdict.remedy

    cases = [case(asked)]
    cases.append(case(replace(asked, certificate_requested=False)))
    if signature in NONE_CAME:
        cases.append(case(replace(asked, certificate_sent=False), None))
    return _entry(signature, "passed on", cases, said)


def _reason(reason: Reason, said: _Said) -> str:
    cause, remedy = REASONS[reason]
    return _entry(reason.word, f"answered with {reason.status}", [(reason.title, cause, (), remedy)], said)


_Case = tuple[str, str, Sequence[str], str]  # title, cause, evidence, remedy


_Said = dict[str, str]
"""Where on the page a longer paragraph stands already: the section by the text."""
_LONG = 150  # characters from which on a paragraph is not repeated in another section
_WIDTH = 110


def _entry(name: str, status: str, cases: Sequence[_Case], elsewhere: _Said) -> str:
    """A section. Of the kinds after the first, only what is not said yet."""
    lines = [f"### {name}", ""]
    said: set[str] = set()

    def new(text: str) -> bool:
        if text in said:
            return False
        said.add(text)
        return True

    def paragraph(text: str, before: str, instead: str) -> list[str]:
        place = elsewhere.setdefault(text, name)
        if place == name or len(text) < _LONG:
            return [_wrapped(f"{before}{_plain(text)}"), ""]
        words = f"{before}{instead} [{place}](#{place})."
        return [words, ""] if new(words) else []

    for number, (title, cause, evidence, remedy) in enumerate(cases):
        if new(title):
            lines += [f"**{_plain(title)} ({status}).**" if number == 0 else f"**{_plain(title)}.**", ""]
        if new(cause):
            lines += paragraph(cause, "", "The cause is as under")
        seen = [_wrapped(f"- {_plain(line)}", "  ") for line in evidence if new(line)]
        lines += [*seen, ""] if seen else []
        if new(remedy):
            lines += paragraph(remedy, "What to do: ", "as under")
    if name in KNOWN_AS:
        lines += ["In the words of other tools:", "", *_list(KNOWN_AS[name]), ""]
    return "\n".join(lines) + "\n"


def _list(sayings: Iterable[Saying]) -> Iterator[str]:
    """Each of a tool's sayings on a line of its own, in one piece, so that a search finds it."""
    by_tool: dict[str, list[str]] = {}
    for said in sayings:
        words = by_tool.setdefault(said.tool, [])
        if said.words not in words:
            words.append(said.words)
    for tool, words in by_tool.items():
        yield f"- {tool}:"
        yield from (f"  - {_code(each)}" for each in words)


def _wrapped(text: str, rest: str = "") -> str:
    """`text` in lines; code and links, which are copied and searched for, stay in one piece."""
    whole = re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\)", lambda found: found[0].replace(" ", "\0"), text)
    if whole.startswith("- "):
        whole = "-\0" + whole[2:]  # a list's mark does not stand alone
    lines = textwrap.wrap(
        whole, _WIDTH, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace("\0", " ")


def _code(words: str) -> str:
    return f"`{words}`"


def _plain(text: str) -> str:
    """`text` with what Markdown would take for its own, outside of code, left as it is."""
    parts = text.split("`")
    for number in range(0, len(parts), 2):
        parts[number] = parts[number].replace("_", r"\_").replace("*", r"\*").replace("<", "&lt;")
    return "`".join(parts)


if __name__ == "__main__":
    sys.stdout.writelines(page())
