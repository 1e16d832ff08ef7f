"""The structure of the package, counted from its imports: rooms, floors, arrows, circles, files, and the longest ones.

    python benchmarks/structure.py            # a table; `make structure`
    python benchmarks/structure.py --json
    python benchmarks/structure.py --root OTHER_CHECKOUT

A *room* is an entry of README's map: a folder directly under vta_sam/, or a file there. A *floor* is one more than the
highest floor among the rooms that a room imports. An *arrow* is a pair of rooms of which the first imports the second;
imports inside functions and for type checkers count as well.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "vta_sam"


def modules(root: Path) -> dict[str, Path]:
    """Dotted names of all modules of the package below ``root`` ⇒ their files."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that one module imports, wherever in the file."""
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            if full.split(".")[0] == PACKAGE:
                found |= {f"{full}.{alias.name}" if f"{full}.{alias.name}" in known else full for alias in node.names}
    return (found & set(known)) - {name, PACKAGE}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (strongly connected components of more than one), by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while True:
                group.append(stack.pop())
                if group[-1] == node:
                    break
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def room_of(module: str) -> str:
    """vta_sam.media.audio ⇒ media; vta_sam.clip ⇒ clip."""
    return (module.split(".") + [PACKAGE])[1]


def rooms(files: dict[str, set[str]]) -> dict[str, set[str]]:
    """Arrows between files ⇒ arrows between rooms. The package's own face, which hands names on, is none."""
    found: dict[str, set[str]] = {}
    for module, others in files.items():
        if module != PACKAGE:
            here = room_of(module)
            found.setdefault(here, set()).update(room_of(other) for other in others if room_of(other) != here)
    return found


def floors(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Rooms without circles ⇒ each one's floor; what imports nothing is on floor 1."""
    found: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((floor(other) for other in arrows.get(room, ())), default=0)
        return found[room]

    for room in arrows:
        floor(room)
    return found


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """(lines without the docstring, name) of every function in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            yield lines, node.name


def structure(root: Path = REPOSITORY) -> dict:
    """All counts of a checkout, as plain values."""
    known = modules(root)
    files = {name: imported(name, path, known) for name, path in known.items()}
    between = rooms(files)
    lines = {path.relative_to(root).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
             for path in known.values()}
    room_circles = circles(between)
    longest_file = max(lines, key=lambda name: lines[name])
    longest_function = max((size, name, path.relative_to(root).as_posix())
                           for path in known.values() for size, name in functions(path))
    names = [Path(name).name for name in lines if not name.endswith("__init__.py")]
    folders = {path.parent for path in known.values()}
    return {
        "files": len(lines), "median_lines": int(statistics.median(lines.values())), "lines": sum(lines.values()),
        "folders": len(folders), "rooms": len(between), "loose_files": sum(1 for n in lines if n.count("/") == 1),
        "floors": max(floors(between).values()) if not room_circles else None,
        "arrows_between_rooms": sum(len(others) for others in between.values()),
        "arrows_between_files": sum(len(others) for others in files.values()),
        "circles_of_rooms": room_circles, "circles_of_files": circles(files),
        "names_twice": sorted({name for name in names if names.count(name) > 1}),
        "longest_file": [longest_file, lines[longest_file]],
        "longest_function": [f"{longest_function[2]}:{longest_function[1]}", longest_function[0]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="another checkout to count")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counted = structure(options.root)
    if options.json:
        print(json.dumps(counted))
        return
    for name, value in counted.items():
        shown = ("; ".join(" <-> ".join(group) if isinstance(group, list) else str(group) for group in value) or "none"
                 ) if isinstance(value, list) and not name.startswith("longest") else value
        shown = f"{value[1]} lines, {value[0]}" if name.startswith("longest") else shown
        print(f"{name.replace('_', ' '):24}{shown}")


if __name__ == "__main__":
    main()
