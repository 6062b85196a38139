"""Certificates as facts: how a new one of ours is told from the one before."""

from __future__ import annotations

import pytest

from sidecert.presented import OwnCertificate
from support.own import fact, own

BETWEEN = fact("CN=between", "CN=root")


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (own(), ""),
        (own(fact(ends=99999999)), ""),
        (
            own(fact(issuer="CN=other")),
            "The one before was issued by CN=root, the new one by CN=other",
        ),
        (
            own(fact("CN=bob", "CN=other")),
            "The one before was issued by CN=root, the new one by CN=other; "
            "the one before names CN=alice, the new one CN=bob",
        ),
        (
            own(fact(issuer="CN=alice"), self_signed=True),
            "The one before was issued by CN=root, the new one by itself",
        ),
        (
            own(fact(), BETWEEN),
            "The one before is sent without intermediates, "
            "the new one with an intermediate, the last issued by CN=root",
        ),
        (own(uses=[]), "The one before is for clientAuth, the new one for any use"),
    ],
)
def test_what_differs_is_told_the_issuer_first(new: OwnCertificate, told: str) -> None:
    """Dates and keys differ in every renewal, and are no news."""
    assert new.differs_from(own()) == told
