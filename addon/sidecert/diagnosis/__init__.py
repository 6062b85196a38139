"""An upstream examined without a request: what it is, what it asks for, and whose certificate it takes.

`subject` says what to examine, `probe` makes one handshake, `examination` makes them in order and collects a
`diagnosis`; `steps` and `advice` put it into words.
"""

from __future__ import annotations

from sidecert.diagnosis.diagnosis import Diagnosis, Status, Step
from sidecert.diagnosis.examination import Teller, examine
from sidecert.diagnosis.subject import NoSubject, Subject, of_address, of_route, upstream_of
from sidecert.diagnosis.survey import Attempt, survey

__all__ = [
    "Attempt",
    "Diagnosis",
    "NoSubject",
    "Status",
    "Step",
    "Subject",
    "Teller",
    "examine",
    "of_address",
    "of_route",
    "survey",
    "upstream_of",
]
