"""The page that describes the structure says what the modules say of themselves."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_structure_page_lists_every_module_as_it_describes_itself() -> None:
    spec = importlib.util.spec_from_file_location("structure", DOCS / "structure.py")
    assert spec is not None
    assert spec.loader is not None
    structure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(structure)
    page = (DOCS / "structure.md").read_text(encoding="utf-8")
    assert structure.with_modules(page) == page, "run `make structure`"
    assert "- `engine.py`: The engine: read this first." in page
