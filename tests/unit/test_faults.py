"""What speaks against our certificate, told from the certificate itself and from what the upstream lists."""

from __future__ import annotations

import pytest

from sidecert.credentials.chain import build_chain, own_certificate
from sidecert.faults import faults
from sidecert.outcome import Observation, Stage
from sidecert.presented import OwnCertificate
from support.certs import SERVER_AUTH, Authority, Leaf
from support.own import DAY, NOW, fact, own

LISTS = "the CAs that the upstream lists (CN=partnerca)"


def asked(*lists: str, chains_to: tuple[str, ...] = ()) -> Observation:
    """An upstream that asked for a certificate and got ours."""
    return Observation(
        stage=Stage.FINISHED_SENT,
        certificate_requested=True,
        certificate_sent=True,
        acceptable_cas=lists,
        chains_to=chains_to,
    )


def words(certificate: OwnCertificate, seen: Observation | None = None) -> list[str]:
    return [fault.words for fault in faults(seen or asked(), certificate, NOW)]


def test_nothing_speaks_against_a_good_certificate() -> None:
    """Nor against one without extendedKeyUsage, or for any; nor where the upstream lists no CA."""
    for uses in (["clientAuth"], [], ["anyExtendedKeyUsage"], ["serverAuth", "clientAuth"]):
        assert words(own(uses=uses)) == []
    assert words(own(), asked("CN=root", chains_to=("CN=root",))) == []


def test_certificate_that_the_upstream_has_not_seen_has_no_faults() -> None:
    """It was not asked for, or we stopped at the upstream's own."""
    past = own(fact(ends=-1))
    assert words(past) == ["expired on 2027-01-15 07:59 UTC"]
    assert faults(Observation(stage=Stage.PROVEN), past, NOW) == ()
    early = asked()
    early.stage = Stage.HELLO_RECEIVED
    assert faults(early, past, NOW) == ()
    assert faults(asked(), None, NOW) == ()


@pytest.mark.parametrize(
    ("certificate", "seen", "said", "remedy"),
    [
        (
            own(fact(ends=-DAY)),
            asked(),
            "expired on 2027-01-14 08:00 UTC",
            "Put the renewed certificate into the files of `credentials.alice`.",
        ),
        (
            own(fact(starts=DAY)),
            asked(),
            "is not valid before 2027-01-16 08:00 UTC",
            "Check the clock of this machine, or wait until then.",
        ),
        (
            own(fact(), fact("CN=interca", ends=-DAY)),
            asked(),
            "is sent with the intermediate CN=interca, which expired on 2027-01-14 08:00 UTC",
            "Put the renewed certificate of CN=interca into the file of `credentials.alice`.",
        ),
        (
            own(uses=["serverAuth", "codeSigning"]),
            asked(),
            "is not for callers: its extendedKeyUsage is serverAuth; codeSigning, without clientAuth",
            "Have the certificate of `credentials.alice` issued again with extendedKeyUsage = clientAuth.",
        ),
        (
            own(fact(issuer="CN=alice"), self_signed=True),
            asked("CN=partnerca"),
            f"is self-signed, and not itself one of {LISTS}",
            "Use a certificate from one of the CAs that the upstream lists, or have its own CA added there.",
        ),
        (
            own(fact(issuer="CN=otherca"), holds_root=True),
            asked("CN=partnerca"),
            f"leads to CN=otherca, which is not one of {LISTS}",
            "Use a certificate from one of the CAs that the upstream lists, or have its own CA added there.",
        ),
        (
            own(fact(issuer="CN=interca")),
            asked("CN=partnerca"),
            f"comes from CN=interca, which is neither in its file (only the leaf) nor one of {LISTS}",
            "Append the certificate of its issuer CN=interca to the file of `credentials.alice` (it holds "
            "only the leaf), if that is an intermediate CA; else use a certificate from one of the CAs that "
            "the upstream lists, or have its own CA added there.",
        ),
        (
            own(fact(issuer="CN=low"), fact("CN=low", issuer="CN=high")),
            asked("CN=partnerca"),
            "comes from CN=high, which is neither in its file (the leaf and one intermediate) nor one of "
            + LISTS,
            "Append the certificate of its issuer CN=high to the file of `credentials.alice` (it holds the "
            "leaf and one intermediate), if that is an intermediate CA; else use a certificate from one of "
            "the CAs that the upstream lists, or have its own CA added there.",
        ),
    ],
)
def test_each_fault_has_its_words_and_remedy(
    certificate: OwnCertificate, seen: Observation, said: str, remedy: str
) -> None:
    """Dates in the one form that all dates have, and CAs by their names."""
    assert list(faults(seen, certificate, NOW)) == [(said, remedy)]


def test_decisive_fault_comes_first() -> None:
    """A date is a fact; that a CA is missing may be the upstream's affair."""
    many = own(fact(ends=-DAY), uses=["serverAuth"])
    starts = [each.split()[0] for each in words(many, asked("CN=partnerca"))]
    assert starts == ["expired", "is", "comes"]


def test_names_of_listed_cas_cannot_forge_a_line() -> None:
    """They are whatever the upstream says."""
    (said,) = words(own(), asked("CN=\x1b[2J\n"))
    assert said.isprintable()


def described(leaf: Leaf, *given: Leaf | Authority) -> OwnCertificate:
    chain = build_chain(
        leaf.certificate, [leaf.certificate, *leaf.chain, *(each.certificate for each in given)], NOW
    )
    return own_certificate(chain, "alice")


def test_own_certificate_is_described_from_its_file() -> None:
    """What is sent, what it is for, and whether its file leads up to a root."""
    root = Authority("root")
    middle = root.intermediate("middle")
    leaf = middle.caller("alice", usages=[SERVER_AUTH])
    whole = described(leaf)
    assert (whole.subject, whole.leaf.issuer, whole.issuer) == ("CN=alice", "CN=middle", "CN=root")
    assert (whole.uses, whole.held, whole.holds_root) == (
        ("serverAuth",),
        "the leaf and one intermediate",
        False,
    )
    assert whole.describe().endswith(
        ", for serverAuth, sent with an intermediate, the last issued by CN=root"
    )
    assert described(leaf, root).holds_root
    alone = described(Leaf(leaf.certificate, leaf.key))
    assert (alone.issuer, alone.held, alone.may_miss_an_intermediate) == ("CN=middle", "only the leaf", True)
