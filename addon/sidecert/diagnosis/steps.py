"""The steps of an examination in words, each a function of what was seen. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sidecert.config.hosts import bracket, is_address
from sidecert.diagnosis.diagnosis import Diagnosis, Status, Step, Trial, allows
from sidecert.diagnosis.probe import PATIENCE, Probe
from sidecert.evidence import evidence
from sidecert.explain import Verdict
from sidecert.outcome import Outcome, Stage, is_certain
from sidecert.presented import Presented
from sidecert.words import listed, moment, shown

# X509_V_ERR_*: self-signed, or no way to an issuer that is trusted.
_NO_ISSUER = (18, 19, 20, 21)
_MOST_WORDS = 2000  # characters of a line


def name_lookup(diagnosis: Diagnosis, probe: Probe) -> Step:
    host = diagnosis.subject.upstream.host
    if is_address(host):
        return Step("DNS", Status.INFO, f"{host} is an address: nothing to look up")
    if probe.seen.stage is Stage.RESOLVING:
        return _failed("DNS", diagnosis.explain(probe, None))
    return Step("DNS", Status.OK, f"{host} is {listed(probe.seen.addresses)}")


def connection(diagnosis: Diagnosis, probe: Probe) -> Step:
    if not probe.connected:
        return _failed("TCP", diagnosis.explain(probe, None))
    place = f"{bracket(probe.address)}:{diagnosis.subject.upstream.port}" if probe.address else "it"
    return Step("TCP", Status.OK, f"connected to {place} in {_time(probe.connect_seconds)}")


def version(diagnosis: Diagnosis, number: str, probe: Probe) -> Step:
    """Whether the upstream speaks a version; that it does not is bad only where no call could be made."""
    name = f"TLS {number}"
    tls = diagnosis.subject.upstream.route.config.upstream.tls
    if probe.agreed:
        text = f"{probe.cipher or 'agreed'}, in {_time(probe.handshake_seconds)}"
        if allows(tls, number):
            return Step(name, Status.OK, text)
        return Step(name, Status.INFO, f"{text}; `upstream.tls` of the route does not allow it")
    status = Status.INFO if diagnosis.base is not None else Status.FAILED
    return Step(name, status, f"not to be had: {_ending(probe)}")


def upstream_certificate(diagnosis: Diagnosis, base: Probe, distrust: Verdict | None, now: float) -> Step:
    """The chain that was presented, and what is wrong with it."""
    subject = diagnosis.subject
    trusted = "the system's CAs" if subject.trust == "system" else f"the CAs in {subject.trust_label}"
    details = tuple(_describe(each, now) for each in base.chain)
    if distrust is not None:
        if base.check_code in _NO_ISSUER and base.chain:
            details += (f"its end leads to {base.chain[-1].issuer}, which is not among {trusted}",)
        return Step("its chain", Status.FAILED, f"{distrust.title} ({distrust.outcome})", details)
    if subject.trust == "insecure":
        return Step("its chain", Status.WARNING, "not checked: the route's trust is `insecure`", details)
    text = f"issued under {trusted}, for the name {subject.upstream.server_name}"
    return Step("its chain", Status.OK, text, details)


def request(diagnosis: Diagnosis, base: Probe) -> Iterator[Step]:
    """Whether the upstream asks for a certificate, from which CAs, and what it does without one."""
    asked, names = base.seen.certificate_requested, base.seen.acceptable_cas
    differ = tuple(
        f"under TLS {number} it does {'not ' if asked else ''}ask for one"
        for number, found in diagnosis.looks.items()
        if found.agreed and found.seen.certificate_requested != asked
    )
    if not asked:
        status = Status.WARNING if any(diagnosis.subject.wanted) else Status.INFO
        yield Step("it asks", status, "for no client certificate in the handshake", (*differ, *_LATER))
        return
    whose = f"from {listed(names)}" if names else "from any CA: it names none"
    yield Step("it asks", Status.OK, f"for a client certificate {whose}", differ)
    yield _without(diagnosis, base)


def _without(diagnosis: Diagnosis, base: Probe) -> Step:
    if diagnosis.required is False:
        text = "a handshake without one is accepted too: its verdict on a certificate may come in the answer"
        return Step("without", Status.WARNING, f"{text} to a call (nginx: 400)", _LATER)
    if base.outcome is Outcome.OK:
        text = f"it said nothing within {PATIENCE:g} s to a handshake without one: it may refuse the call"
        return Step("without", Status.INFO, text)
    status = Status.INFO if any(diagnosis.subject.wanted) else Status.FAILED
    if diagnosis.required:
        probably = "" if is_certain(base.seen) else "probably "
        return Step("without", status, f"a handshake without one is {probably}refused: {_ending(base)}")
    return Step("without", status, f"a handshake without one came to nothing: {_ending(base)}")


_LATER = (
    "it may still ask once it knows the path of a call, by post-handshake authentication (TLS 1.3) or "
    "renegotiation (TLS 1.2), as Apache and IIS do: only a call can show that",
)


OPEN = "the handshake passes, as it does without a certificate; the verdict comes in HTTP (nginx: 400)"


def trial(each: Trial) -> Step:
    """What became of one credential."""
    name = f"as {each.id}"
    if each.open:
        return Step(name, Status.WARNING, OPEN, each.wrong)
    if each.accepted:
        text = "accepted" if each.probe.proven else "accepted as far as it can be seen: no word against it"
        return Step(name, Status.WARNING if each.wrong else Status.OK, text, each.wrong)
    details = (_ending(each.probe), *each.wrong)
    return Step(name, Status.FAILED, f"{each.verdict.title} ({each.verdict.outcome})", details)


def not_tried(diagnosis: Diagnosis, distrusted: bool) -> Step | None:
    """Why no credential is shown, where there are some to show."""
    ids = [each.id for each in (*diagnosis.subject.wanted, *diagnosis.subject.others) if each is not None]
    if not ids:
        return None
    name = f"as {ids[0]}" if len(ids) == 1 else "as any"
    if distrusted:
        text = "not tried: a certificate is shown only to an upstream that has proven who it is"
        return Step(name, Status.WARNING, text)
    return Step(name, Status.INFO, "not tried: it is not asked for, and would not be sent")


def clock(diagnosis: Diagnosis, now: float) -> Step:
    """What can be known of the clocks: TLS tells no time, but certificates have dates."""
    here = f"{moment(now)} by this machine"
    chain = diagnosis.base.chain if diagnosis.base is not None else ()
    outside = [each for each in chain if not each.not_before <= now <= each.not_after]
    if outside:
        each = outside[0]
        when = (
            f"before {moment(each.not_before)}"
            if now < each.not_before
            else f"after {moment(each.not_after)}"
        )
        text = f"{here}, which is {when} and so outside the dates of {each.subject}: is it right?"
        return Step("clock", Status.WARNING, text)
    for tried in diagnosis.trials:
        own = tried.credential
        if own is not None and tried.probe.outcome is Outcome.CLIENT_CERT_EXPIRED and now <= own.not_after:
            text = f"{here}, by which {own.id} is valid until {moment(own.not_after)}: one clock may be wrong"
            return Step("clock", Status.WARNING, text)
    if not chain:
        return Step("clock", Status.INFO, f"{here}; nothing was seen that has a date")
    text = f"{here}, within the dates of its chain (TLS itself tells no time)"
    return Step("clock", Status.OK, text)


def _failed(name: str, verdict: Verdict) -> Step:
    return Step(name, Status.FAILED, f"{verdict.title} ({verdict.outcome})")


def _ending(probe: Probe) -> str:
    """How the upstream ended it: its alert, else the last that was seen."""
    told = evidence(probe.seen, None, 0.0)
    return next((line for line in told if line.startswith("alert ")), told[-1] if told else "no word")


def _describe(each: Presented, now: float) -> str:
    names = f", for {listed(each.names)}" if each.names else ""
    if now > each.not_after:
        when = f"EXPIRED on {moment(each.not_after)}"
    elif now < each.not_before:
        when = f"NOT VALID before {moment(each.not_before)}"
    else:
        when = f"until {moment(each.not_after)}"
    by = "by itself" if each.issuer == each.subject else f"by {each.issuer}"
    return shown(f"{each.subject}, issued {by}, {when}{names}", _MOST_WORDS)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
