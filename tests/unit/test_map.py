"""Who reads the map of the code finds every module on it."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest

import sidecert


@pytest.mark.parametrize("file", [sidecert.__file__, Path(__file__).parents[2] / "addon" / "DESIGN.md"])
def test_every_module_has_its_place(file: str) -> None:
    """In the package's own words, and in the list of files."""
    text = Path(file).read_text("utf-8")
    names = [each.name for each in pkgutil.iter_modules(sidecert.__path__) if each.name != "__main__"]
    assert [name for name in names if f"`{name}" not in text and f"    {name} " not in text] == []
