"""Writes the list of modules in `structure.md` from the modules' own first lines (`make structure`).

What a module is for is said once, at its top. A test fails when the page does not say the same.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "structure.md"
ROOMS = ("cloudcomplete", "orchestration", "loadtest", "server", "cache", "engine")
BEGIN, END = "<!-- modules: written by `make structure` -->", "<!-- end of modules -->"


def main() -> None:
    """Write the page anew."""
    PAGE.write_text(with_modules(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_modules(page: str) -> str:
    """Return the page with the list of modules as they are now."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{list_modules()}{END}{after}"


def list_modules() -> str:
    """Return every room's modules with what each is for, a line each."""
    lines = []
    for room in ROOMS:
        folder = None
        for path in sorted((ROOT / room).rglob("*.py"), key=lambda path: (path.parent, path.name)):
            if "_pb2" in path.name or not (purpose := first_sentence(path)):
                continue
            if path.parent != folder:
                folder = path.parent
                lines += ["", f"**{folder.relative_to(ROOT).as_posix()}/**", ""]
            name = "the folder" if path.name == "__init__.py" else f"`{path.name}`"
            lines.append(f"- {name}: {purpose}")
    return "\n".join(lines).lstrip("\n") + "\n"


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring in one line; "" where there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z0-9)`\]]\.) (?=[A-Z])", paragraph)[0]


if __name__ == "__main__":
    main()
