"""A refusal is written so that a program, a person and a log can all read it, and nobody can forge it."""

from __future__ import annotations

import email.utils
import http.client
import io
import json
from typing import Any

import pytest

from sidecert.answers import render
from sidecert.errors import Reason, Refusal

UNKNOWN_CA = Refusal(
    502,
    "client_cert_unknown_ca",
    "The upstream refused the client certificate",
    "The upstream does not know the CA that issued the certificate.",
    "Ask the upstream's people to trust the CA.",
    ("alert unknown_ca (48) after the handshake", "TLSv1.3"),
)


class _Wire(io.BytesIO):
    def makefile(self, *_: object, **__: object) -> _Wire:
        return self


def answer(refusal: Refusal = UNKNOWN_CA, method: str = "GET", **changes: Any) -> http.client.HTTPResponse:
    """`refusal`, rendered and then read by Python's own parser of HTTP."""
    how: dict[str, Any] = {
        "accept": b"",
        "route": "orders",
        "upstream": "mydomain.example.com:8443",
        "credential": "alice",
        "request_id": "req-1",
        "keep_alive": True,
        "caller_minor": 1,
        "head_only": method == "HEAD",
    }
    response = http.client.HTTPResponse(_Wire(render(refusal, **(how | changes))), method=method)  # type: ignore[arg-type]
    response.begin()
    return response


def test_problem_json_has_the_fields_of_the_interface() -> None:
    """Each field of the interface's example, with its type as a URN that stays."""
    response = answer()
    assert (response.status, response.reason) == (502, "Bad Gateway")
    assert response.getheader("Content-Type") == "application/problem+json"
    assert json.loads(response.read()) == {
        "type": "urn:sidecert:outcome:client_cert_unknown_ca",
        "title": "The upstream refused the client certificate",
        "status": 502,
        "outcome": "client_cert_unknown_ca",
        "route": "orders",
        "upstream": "mydomain.example.com:8443",
        "credential": "alice",
        "detail": "The upstream does not know the CA that issued the certificate.",
        "evidence": ["alert unknown_ca (48) after the handshake", "TLSv1.3"],
        "remedy": "Ask the upstream's people to trust the CA.",
        "request_id": "req-1",
    }


def test_answer_carries_outcome_date_and_is_never_cached_or_sniffed() -> None:
    """The headers that scripts and browsers go by."""
    response = answer()
    assert response.getheader("Sidecert-Outcome") == "client_cert_unknown_ca"
    assert response.getheader("Cache-Control") == "no-store"
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert email.utils.parsedate_to_datetime(response.getheader("Date") or "").tzinfo is not None
    assert response.getheader("Retry-After") is None
    assert response.getheader("Server") is None


def test_what_is_not_known_is_left_out() -> None:
    """Before a route is found there is no route, upstream or credential to tell."""
    refusal = Refusal.of(Reason.NO_ROUTE, "No route has this host.")
    unknown = {"route": None, "upstream": None, "credential": None, "request_id": ""}
    fields = json.loads(answer(refusal, **unknown).read())
    assert fields.keys() == {"type", "title", "status", "outcome", "detail", "evidence"}
    assert fields["evidence"] == []


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_status_and_word(reason: Reason) -> None:
    """No reason breaks the rendering, and each says its word in the header and in the body."""
    response = answer(Refusal.of(reason, "words"))
    assert response.status == reason.status
    assert response.reason
    assert response.getheader("Sidecert-Outcome") == reason.word
    assert json.loads(response.read())["title"] == reason.title


def test_retry_after_is_sent_where_it_is_set() -> None:
    """In seconds; zero is a value too."""
    assert answer(Refusal.of(Reason.DRAINING, "x", retry_after=5)).getheader("Retry-After") == "5"
    assert answer(Refusal.of(Reason.DRAINING, "x", retry_after=0)).getheader("Retry-After") == "0"


@pytest.mark.parametrize(
    ("keep_alive", "minor", "connection"),
    [(True, 1, None), (False, 1, "close"), (False, 0, "close"), (True, 0, "keep-alive")],
)
def test_connection_header_tells_the_caller_what_comes_next(
    keep_alive: bool, minor: int, connection: str | None
) -> None:
    """HTTP/1.1 keeps and HTTP/1.0 closes by default; only what differs is said."""
    assert answer(keep_alive=keep_alive, caller_minor=minor).getheader("Connection") == connection


def test_head_gets_the_head_alone() -> None:
    """The length is that of the GET, and not a byte follows."""
    raw = render(
        UNKNOWN_CA,
        accept=b"",
        route=None,
        upstream=None,
        credential=None,
        request_id="r",
        keep_alive=True,
        caller_minor=1,
        head_only=True,
    )
    assert raw.endswith(b"\r\n\r\n")
    assert raw.count(b"\r\n\r\n") == 1
    length = int(raw.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    assert length == len(answer(route=None, upstream=None, credential=None, request_id="r").read())


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        (b"", False),
        (b"*/*", False),
        (b"application/json, text/plain, */*", False),
        (b"text/xml, multipart/related", False),
        (b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        (b"text/plain", True),
        (b"text/*", True),
        (b"text/plain;q=0.9, application/json;q=0.5", True),
        (b"text/plain;q=0.5, application/problem+json", False),
        (b"text/plain;q=0", False),
        (b"\xff\xfe, text/plain", True),
    ],
)
def test_text_is_sent_where_accept_prefers_it(accept: bytes, text: bool) -> None:
    """A tie goes to JSON, and so does a caller that would take neither."""
    expected = "text/plain; charset=utf-8" if text else "application/problem+json"
    assert answer(accept=accept).getheader("Content-Type") == expected


def test_text_has_one_line_per_field_and_piece_of_evidence() -> None:
    """What a person sees who reads curl's output."""
    assert answer(accept=b"text/plain").read().decode().splitlines() == [
        "type: urn:sidecert:outcome:client_cert_unknown_ca",
        "title: The upstream refused the client certificate",
        "status: 502",
        "outcome: client_cert_unknown_ca",
        "route: orders",
        "upstream: mydomain.example.com:8443",
        "credential: alice",
        "detail: The upstream does not know the CA that issued the certificate.",
        "evidence: alert unknown_ca (48) after the handshake",
        "evidence: TLSv1.3",
        "remedy: Ask the upstream's people to trust the CA.",
        "request_id: req-1",
    ]


NASTY = 'Zoë "CA"\r\nSet-Cookie: a=b\x1b[31m\x00\x85\u2028\u202e\udc80'


def test_text_cannot_be_forged_by_names_from_outside() -> None:
    """Line ends, terminal escapes, bidi marks and broken characters are shown, not obeyed."""
    refusal = Refusal(502, "server_untrusted", "t", NASTY, evidence=(NASTY,))
    body = answer(refusal, accept=b"text/plain").read().decode()
    escaped = r'Zoë "CA"\r\nSet-Cookie: a=b\x1b[31m\x00\x85\u2028\u202e\udc80'
    assert f"detail: {escaped}\n" in body
    assert f"evidence: {escaped}\n" in body


def test_json_is_ascii_and_keeps_every_character() -> None:
    """Whatever charset a legacy caller assumes, it reads the same."""
    body = answer(Refusal(502, "server_untrusted", "t", NASTY)).read()
    assert body.isascii()
    assert b"\r" not in body
    assert json.loads(body)["detail"] == NASTY


def test_long_evidence_is_capped() -> None:
    """An upstream that lists thousands of CAs does not make a long answer."""
    evidence = tuple(f"accepts CA {n} " + "x" * 5000 for n in range(500))
    body = answer(Refusal(502, "client_cert_unknown_ca", "t", "d" * 5000, "r" * 5000, evidence)).read()
    fields = json.loads(body)
    assert len(body) < 25_000
    assert len(fields["evidence"]) == 21
    assert fields["evidence"][-1] == "and 480 more"
    assert all(len(words) <= 1000 for words in (fields["detail"], fields["remedy"], *fields["evidence"]))
    assert fields["detail"].endswith("...")
