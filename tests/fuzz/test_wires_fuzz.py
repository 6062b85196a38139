"""Any bytes from callers and upstreams. The long form is `make fuzz`, guided by what a script reaches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.certs import Pki
from support.kept import kept
from support.lengths import rounds
from support.spoilt_files import spoilt
from support.spoilt_wires import CALLS, SCRIPTS, SpoiltWires

STEPS = st.builds(lambda steps: bytes((len(steps),)) + steps, st.binary(max_size=31))


@pytest.fixture(scope="module")
def wires(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpoiltWires]:
    playing = SpoiltWires(tmp_path_factory.mktemp("spoilt"), pki)
    yield playing
    playing.close()


@pytest.mark.long_form(seconds=900)
@given(STEPS, spoilt(list(SpoiltWires.requests())))
@settings(max_examples=rounds(300, 40_000))
def test_no_caller_breaks_a_promise(wires: SpoiltWires, steps: bytes, wire: bytes) -> None:
    """Every call ends, in one answer at most; upstreams get its requests only; nothing is left."""
    wires.play_downstream(steps + wire)


@pytest.mark.long_form(seconds=900)
@given(st.integers(0, len(CALLS) - 1), STEPS, spoilt(list(SpoiltWires.answers())))
@settings(max_examples=rounds(300, 40_000))
def test_no_upstream_breaks_a_promise(wires: SpoiltWires, call: int, steps: bytes, wire: bytes) -> None:
    """Every call ends, in one answer that is whole or cut; nothing of it is another call's."""
    wires.play_upstream(bytes((call,)) + steps + wire)


@pytest.mark.parametrize("call", range(len(CALLS)))
def test_call_that_nobody_spoils_is_answered(wires: SpoiltWires, call: int) -> None:
    """Or the tests above would prove nothing; a body that stops half-way is refused."""
    expected = {7: "200 200 200", 5: "tunnel", 6: "400"}.get(call, "200")
    for script in SCRIPTS[:2]:
        assert wires.play_downstream(script + CALLS[call]) == expected


def test_kept_scripts_break_no_promise(wires: SpoiltWires) -> None:
    """What `make fuzz` has reached, it reaches here too."""
    for data in kept("downstream"):
        wires.play_downstream(data)
    for data in kept("upstream"):
        wires.play_upstream(data)
