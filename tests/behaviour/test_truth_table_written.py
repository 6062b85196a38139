"""addon/TRUTH_TABLE.md says what the tests before this one have seen; `make truth-table` writes it anew."""

from __future__ import annotations

import pytest

from support.truth import PAGE, WRITE, TruthTable


def test_committed_truth_table_is_what_this_run_saw(truth_table: TruthTable) -> None:
    """Cell by cell; a run that has seen them all sees the very page."""
    if not truth_table.cells:
        pytest.skip("the tests that see the truth table's cells did not run")
    committed = TruthTable.committed()
    if WRITE:
        PAGE.write_text(truth_table.page())
        gone = sorted({row for _, row, _ in committed.cells} - {row for _, row, _ in truth_table.cells})
        pytest.skip(f"{PAGE.name} is written; gone from it: {', '.join(gone) or 'nothing'}")
    seen = {cell: committed.cells.get(cell) for cell in truth_table.cells}
    assert truth_table.cells == seen, "run `make truth-table` if what was seen is the truth"
    if truth_table.cells.keys() == committed.cells.keys():
        assert PAGE.read_text() == truth_table.page()
