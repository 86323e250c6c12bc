"""docs/architecture.md names every module, and no two of them lead to each other."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/greylag"
FRONTEND = ROOT / "frontend/src"
_SMALLEST = 8  # lines of a module that is more than a mark for its folder
_IMPORT = re.compile(r'(?:from|import) ?\(?"\./(\w+)"')


def named() -> Iterator[str]:
    """Yield the paths that the table names; a name alone lies in the folder named before it."""
    for row in (ROOT / "docs/architecture.md").read_text().splitlines():
        folder = ""
        for word in re.findall(r"`([\w./-]+)`", row) if row.startswith("|") else ():
            if word.endswith("/"):
                folder = word
            elif "/" in word:
                folder = word.rpartition("/")[0] + "/"
                yield word
            else:
                yield folder + word


def test_every_module_is_named() -> None:
    known = set(named())
    modules = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if len(path.read_text().splitlines()) >= _SMALLEST
    }
    pages = {f"frontend/src/{path.name}" for path in FRONTEND.glob("*.ts*")}
    assert sorted((modules | pages) - {"frontend/src/modules.d.ts"} - known) == []


def imported(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the names of the modules that one imports, for its types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = {f"{node.module}.{one.name}" for one in node.names}
            yield from inner & modules.keys() or {node.module} & modules.keys()


def test_no_module_leads_back_to_itself() -> None:
    paths = {
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path
        for path in SOURCE.rglob("*.py")
        if path.name != "__init__.py"
    }
    sorter = TopologicalSorter({name: set(imported(path, paths)) for name, path in paths.items()})
    sorter.prepare()


def test_no_script_of_the_page_leads_back_to_itself() -> None:
    graph = {path.stem: set(_IMPORT.findall(path.read_text())) for path in FRONTEND.glob("*.ts*")}
    TopologicalSorter(graph).prepare()
