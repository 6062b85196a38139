"""The files that a user gives, spoilt. The long form is `make fuzz`, guided by what a file reaches."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
    files.play_file(data.draw(spoilt(list(files.files()))))


def test_files_that_are_not_spoilt_are_loaded(files: SpoiltFiles) -> None:
    """Or the tests above would prove nothing."""
    assert [files.play_file(data) for data in files.files()] == [
        *["loaded"] * 8,
        *["trusted"] * 2,
    ]
    taken = [files.play_config(data) for data in files.configs()].count("taken")
    assert taken >= 4
