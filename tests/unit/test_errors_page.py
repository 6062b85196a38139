"""One page has all that sidecert says of failed calls, in its own words and in those of other tools."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import sidecert
from sidecert.answers import render
from sidecert.errors import Reason, Refusal
from sidecert.errors_page import SAMPLES, page
from sidecert.explain_reason import REASONS
from sidecert.http_verdict import Signature
from sidecert.known_as import IN_GENERAL, KNOWN_AS, OWN_FILES
from sidecert.outcome import Observation, Outcome, decide

COMMITTED = Path(__file__).parents[2] / "config" / "errors.md"
NAMES = [
    *(str(outcome) for outcome in Outcome if outcome is not Outcome.OK),
    *(str(signature) for signature in Signature),
    *(reason.word for reason in Reason),
]


def section(name: str) -> str:
    """What the page says under that heading, up to the next."""
    _, found, rest = "".join(page()).partition(f"### {name}\n")
    assert found
    return rest.partition("\n#")[0]


def test_committed_page_is_that_of_the_code() -> None:
    """It is made by `make docs`; who changes a text, an outcome or a reason runs that."""
    assert COMMITTED.read_text() == "".join(page()), "config/errors.md is stale: run `make docs`"


def test_every_outcome_reason_and_signature_has_its_heading_once() -> None:
    """And there are no others."""
    headings = [line.removeprefix("### ") for line in "".join(page()).splitlines() if line.startswith("### ")]
    assert headings == NAMES
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_section_has_a_title_and_what_to_do(name: str) -> None:
    """Somebody who found the words must not be left there."""
    lines = section(name).strip().splitlines()
    assert lines[0].startswith("**")
    assert any(line.startswith("What to do: ") for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_last_part_of_an_answers_type_is_a_heading(name: str) -> None:
    """So that a program can make a link of it; GitHub's anchors keep underscores."""
    answer = render(
        Refusal(502, name, "title", "detail"),
        accept=b"",
        route=None,
        upstream=None,
        credential=None,
        request_id="",
        keep_alive=True,
        caller_minor=1,
        head_only=False,
    )
    kind = json.loads(answer.partition(b"\r\n\r\n")[2])["type"]
    assert section(kind.rpartition(":")[2])


@pytest.mark.parametrize(
    ("outcome", "seen"), [(outcome, seen) for outcome, samples in SAMPLES.items() for seen in samples]
)
def test_examples_are_of_their_outcome(outcome: Outcome, seen: Observation) -> None:
    """What the page shows as evidence is what really leads to that outcome."""
    assert decide(seen) is outcome


def test_each_outcome_has_an_example_and_each_reason_its_words() -> None:
    """A new one without them fails here."""
    assert set(SAMPLES) == set(Outcome)
    assert all(SAMPLES.values())
    assert set(REASONS) == set(Reason)
    for cause, remedy in REASONS.values():
        assert cause.endswith(".")
        assert remedy.endswith(".")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("Self-signed SSL certificates are blocked", "server_untrusted"),
        ("SSL alert number 42", "client_cert_rejected"),
        (
            "Client network socket disconnected before secure TLS connection was established",
            "closed_in_handshake",
        ),
        ("Received fatal alert: bad_certificate", "client_cert_rejected"),
        ("PKIX path building failed", "server_untrusted"),
        ("unable to find valid certification path", "server_untrusted"),
        ("No name matching", "server_name_mismatch"),
        ("java.net.SocketException: Connection reset", "closed_in_handshake"),
        ("java.net.SocketException: Connection reset", "client_cert_rejected"),
        ("sslv3 alert handshake failure", "client_cert_required"),
        ("sslv3 alert handshake failure", "no_shared_parameters"),
        ("tlsv13 alert certificate required", "client_cert_required"),
        ("curl: (6)", "dns_failed"),
        ("curl: (7)", "connect_refused"),
        ("curl: (28)", "connect_timeout"),
        ("curl: (35)", "not_tls"),
        ("curl: (51)", "server_name_mismatch"),
        ("curl: (52)", "upstream_closed"),
        ("curl: (56)", "client_cert_rejected"),
        ("curl: (60)", "server_untrusted"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED]", "server_untrusted"),
        ("The remote certificate is invalid", "server_untrusted"),
        ("No required SSL certificate was sent", "nginx_400_required"),
        ("403.16 - Forbidden", "iis_403_16"),
    ],
)
def test_words_of_the_tools_that_people_come_from_lead_to_the_right_place(words: str, name: str) -> None:
    """As those tools write them, so that a search finds them."""
    assert words in section(name)


def test_words_that_tell_nothing_stand_before_all_sections() -> None:
    """Postman says the same of nearly everything."""
    head = "".join(page()).partition("\n### ")[0]
    assert "The server could not send a response" in head
    assert "The SSL connection could not be established" in head
    assert "curl: (58)" in head


def test_sayings_are_single_lines_that_markdown_can_show_as_code() -> None:
    """Of names that exist, and none twice under one name."""
    assert set(KNOWN_AS) <= set(NAMES)
    for sayings in (IN_GENERAL, OWN_FILES, *KNOWN_AS.values()):
        for said in sayings:
            assert said.tool
            assert said.words.isprintable()
            assert "`" not in said.words
            assert said.words == said.words.strip()
            assert said.words


def test_contents_at_the_top_lead_to_every_heading() -> None:
    """The page is long; nobody should have to scroll through it to see what there is."""
    text = "".join(page())
    contents = text[: text.index("\n## ")]
    for name in NAMES:
        assert f"[{name}](#{name})" in contents
    for heading in re.findall(r"^## (.*)$", text, re.M):
        anchor = re.sub(r"[^a-z -]", "", heading.lower()).replace(" ", "-")
        assert f"[{heading}](#{anchor})" in contents


def test_no_long_paragraph_is_there_twice() -> None:
    """Kin sections lead to the one that has it."""
    paragraphs = [part for part in "".join(page()).split("\n\n") if len(part) > 200 and part[0] != "-"]
    assert len(paragraphs) == len(set(paragraphs))


def test_lines_fit_where_they_can_be_folded() -> None:
    """What is copied or searched for stays in one piece, and makes the only longer lines."""
    for line in "".join(page()).splitlines():
        assert len(line) <= 110 or re.fullmatch(r"[ -]*(`[^`]*`|\[[^]]*\]\([^)]*\))[.;:,]?", line), line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("connect_not_allowed", "curl: (56) CONNECT tunnel failed, response 403"),
        ("connect_not_allowed", "Tunnel connection failed: 403 Forbidden"),
        ("connect_not_allowed", "Proxy tunneling failed: Forbidden"),
        ("connect_not_allowed", 'Unable to tunnel through proxy. Proxy returns "HTTP/1.1 403 Forbidden"'),
        ("bad_request", "curl: (35) ... wrong version number"),
        ("bad_request", "Unsupported or unrecognized SSL message"),
    ],
)
def test_https_by_mistake_is_found_by_the_words_of_the_tool(name: str, words: str) -> None:
    """The commonest mistake of all, with what to call instead."""
    found = section(name)
    assert words in found
    assert "call http://" in found or "with http:// instead of https://" in " ".join(found.split())


def test_what_is_not_surely_about_a_certificate_can_be_found() -> None:
    """webMethods says the same of a wrong password: not counted, but whoever searches for it finds it."""
    assert "[ISS.0084.9001] Invalid credentials" in COMMITTED.read_text()


@pytest.mark.parametrize("reason", Reason)
def test_only_reasons_that_calls_are_refused_with_have_advice(reason: Reason) -> None:
    """One that the code does not raise must not be told as if somebody could get it."""
    tellers = {"errors.py", "errors_page.py", "explain_reason.py", "known_as.py"}
    package = Path(sidecert.__file__).parent
    code = "".join(path.read_text() for path in package.rglob("*.py") if path.name not in tellers)
    assert re.search(rf"\bReason\.{reason.name}\b", code)
    assert f"### {reason.word}\n" in "".join(page())


def test_outcome_that_no_answer_has_is_told_so() -> None:
    """The caller of an undecided attempt has left, or its answer says something else."""
    assert "answered with" not in section("undecided")
    assert "in the log and the metrics only" in section("undecided")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason.METHOD_NOT_ALLOWED, ("match.methods", "X-HTTP-Method-Override")),
        (Reason.UPSTREAM_CLOSED, ("after the request was sent", "with nothing sent")),
        (Reason.INTERNAL, ("sidecert's own", "an addon of yours")),
        (Reason.OVERLOADED, ("limits.connections", "looked up")),
    ],
)
def test_words_fit_each_case_of_a_reason(reason: Reason, words: tuple[str, ...]) -> None:
    """Each of these reasons stands for two cases, and the page is read in both."""
    said = " ".join(section(reason.word).split())
    assert all(word in said for word in words)
