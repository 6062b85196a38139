"""addon/TRUTH_TABLE.md says what the tests before this one have seen; `make truth-table` writes it anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.truth import LEFT_OUT, PAGE, WRITE, TruthTable


def saw_all(request: pytest.FixtureRequest) -> bool:
    """Whether each test that sees cells has run, and was not skipped for a program that is missing."""
    here = Path(__file__)
    wanted = {path.name for path in here.parent.glob("test_truth_table_*.py")}
    left_out = request.config.pluginmanager.get_plugin(LEFT_OUT).nodes
    return (
        wanted <= {item.path.name for item in request.session.items}
        and not any("::" in argument for argument in request.config.args)
        and not any(Path(node.partition("::")[0]).name in wanted for node in left_out)
    )


def test_committed_truth_table_is_what_this_run_saw(
    truth_table: TruthTable, request: pytest.FixtureRequest
) -> None:
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
    if saw_all(request):
        stale = committed.cells.keys() - truth_table.cells.keys()
        assert not stale, "run `make truth-table`: no test sees these any more"
        assert PAGE.read_text() == truth_table.page()
