"""The files that a user gives, spoilt. The long form is `make fuzz`, guided by what a file reaches."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.kept import kept
from support.lengths import rounds
from support.spoilt_files import SpoiltFiles, spoilt


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SpoiltFiles:
    return SpoiltFiles(tmp_path_factory.mktemp("spoilt"))


@pytest.mark.long_form(seconds=900)
@given(spoilt(list(SpoiltFiles.configs())))
@settings(max_examples=rounds(150, 20_000))
def test_any_config_is_taken_or_explained(files: SpoiltFiles, data: bytes) -> None:
    """Never anything but a generation, or problems in printable words."""
    files.play_config(data)


@pytest.mark.long_form(seconds=900)
@given(st.data())
@settings(max_examples=rounds(150, 20_000), suppress_health_check=[HealthCheck.too_slow])
def test_any_credential_or_trust_is_loaded_or_explained(files: SpoiltFiles, data: st.DataObject) -> None:
    """Never another's key, nor a passphrase in the words."""
    files.play_file(data.draw(spoilt(files.files)))


def test_files_that_are_not_spoilt_are_loaded(files: SpoiltFiles) -> None:
    """Or the tests above would prove nothing."""
    assert [files.play_file(data) for data in files.files] == [
        *["loaded"] * 8,
        *["trusted"] * 2,
    ]
    taken = [files.play_config(data) for data in files.configs()].count("taken")
    assert taken >= 4


ODD_VALUES = (
    *(
        '"\\e[31m"',
        '"/\\e[31m"',
        '"\\e::1:80"',
        '"\\x85x"',
        '"::\\u2028:80"',
        "a" * 5000,
        f"a:{'b' * 5000}:80",
    ),
    *(
        "9" * 5000,
        f"0x{'f' * 5000}",
        f"0b{'1' * 20000}",
        f"{'9' * 400}.5s",
        f"{'9' * 300}k",
        f"\u00e9:{'9' * 5000}",
    ),
    *("-1", ".inf", ".nan", "1e400", "2001-01-01", "!!binary aaaa", "1:2:3", "[[a]]", "{a: b}"),
)
PLACES = (
    *("version: %s", "%s: 1", "drain: %s", "admin: {bind: %s}", "listeners: [{bind: %s}]"),
    *(f"listeners: [{{bind: 0.0.0.0:80, {key}: %s}}]" for key in ("allow", "origins", "mode", "route")),
    *(f"limits: {{{key}: %s}}" for key in ("connections", "header_bytes", "keepalive")),
    *(f"credentials: {{a: {{{pair}}}}}" for pair in ("certificate: %s, key: b", "pkcs12: %s", "prove: %s")),
    *(f"routes: [{{id: a, credential: %s, match: {{{pair}}}}}]" for pair in ("host: a.b", "host: %s")),
    *(f"routes: [{{id: %s, match: {{host: a, {key}: %s}}}}]" for key in ("port", "path", "methods")),
    *(
        f"routes: [{{id: a, credential: none, match: {{host: a.b}}, upstream: {{{key}: %s}}}}]"
        for key in ("host", "port", "server_name", "host_header", "trust", "tls", "pool", "timeouts")
    ),
    "routes: [{id: a, credential: none, match: {host: a.b}, upstream: {timeouts: {connect: %s}}}]",
)


@pytest.mark.parametrize("place", PLACES)
def test_any_value_at_any_key_is_explained(files: SpoiltFiles, place: str) -> None:
    """In a line that is printable and ends, whatever is quoted in it."""
    for value in ODD_VALUES:
        lines = [place.replace("%s", value)]
        lines += [] if place.startswith("version") else ["version: 1"]
        lines += (
            [] if place.startswith("routes") else ["routes: [{id: a, credential: none, match: {host: a.b}}]"]
        )
        files.play_config("\n".join(lines).encode())


def test_kept_files_break_no_promise(files: SpoiltFiles) -> None:
    """What `make fuzz` has reached, it reaches here too."""
    for data in kept("config"):
        files.play_config(data)
    for data in kept("credentials"):
        files.play_file(data)
